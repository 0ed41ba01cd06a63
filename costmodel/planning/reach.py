"""Which engines could be a plan or a point of the frontier, told before anybody's waiting is known.

Waiting makes no answer earlier. So at every batch size and chunk budget the TTFT is at least that of a prompt that
never waits, while TPOT and requests per second are known; what better ones stand before even so needs no further look.
"""

from typing import NamedTuple

import numpy

from costmodel.planning.curves import Curves, Truths
from costmodel.planning.engine_model import Array
from costmodel.planning.operating import Running, least_ttft_s, tpot_s
from costmodel.planning.outcomes import Outcome
from costmodel.planning.points import fastest_first
from costmodel.planning.question import Question
from costmodel.planning.replicas import holds, wants_smallest
from costmodel.planning.side_by_side import Indices
from costmodel.planning.stacks import Stack

WITHIN = 1.0 + 1e-9
"""Of a limit, what rounding may miss it by."""


class Before(NamedTuple):
    """What engines of a device that were evaluated before left: the points that no other of theirs beats in tokens/s of
    a user and tokens/s per GPU, the fastest first, and the GPUs of their smallest plan, infinite without one."""

    tpot_s: Array
    per_gpu: Array
    gpus: float

    def and_after(self, outcome: Outcome) -> "Before":
        """What these and others left."""
        more = numpy.array([(point.tpot_s, point.tokens_per_s_gpu) for point in outcome.frontier]).reshape(-1, 2).T
        both = numpy.concatenate([self[:2], more], axis=1)
        tpot, per_gpu = both[:, fastest_first(*both)]
        return Before(tpot, per_gpu, min([self.gpus, *(float(plan.gpus) for plan in outcome.plans)]))

    def passed_by(self, tpot_s: Array, per_gpu: Array) -> Truths:
        """Which points none of them beats."""
        most = numpy.concatenate([[0.0], self.per_gpu])
        return per_gpu > most[numpy.searchsorted(self.tpot_s, tpot_s, side="right")]


NOBODY = Before(numpy.zeros(0), numpy.zeros(0), numpy.inf)


def good_points(stack: Stack, curves: Curves, run: Running) -> Truths:
    """The points whose caches fit and whose chunks find room, by engine, budget and batch size."""
    # Without room, the rate is none or no number.
    good = run.rate > 0
    good &= curves.n[:, None] <= stack.places[..., None]
    good &= curves.distinct[:, None]
    return good


def could_matter(asked: Question, stack: Stack, run: Running, good: Truths, before: Before) -> Indices:
    """Engines that could have a point that those before do not beat, or be a plan that is no larger than theirs."""
    some = numpy.flatnonzero(_at_best(asked, stack, run, good, before))
    return some[_matters(asked, stack.of(some), run.of(some), good[some], before)]


def _at_best(asked: Question, stack: Stack, run: Running, good: Truths, before: Before) -> Truths:
    """Which could if at each batch size all budgets were as fast, and answered as much, as the best of them."""
    work, level = asked.work, asked.level
    rate, passing = numpy.where(good, run.rate, 0.0).max(axis=1), numpy.fmin.reduce(run.passing_s, axis=1)
    if work.rate is None:
        return rate.max(axis=1) > 0
    tpot = tpot_s(passing, work.output)
    near = numpy.flatnonzero((rate > 0) & holds(tpot, level.tpot_s, WITHIN))
    engine, found = near // rate.shape[1], _affordable(asked, stack, asked.usable * rate.max(axis=1), before)
    per_gpu = stack.tokens_per_s_gpu(rate.reshape(-1)[near], engine, work.output)
    found[engine[before.passed_by(tpot.reshape(-1)[near], per_gpu)]] = True
    return found


def _affordable(asked: Question, stack: Stack, rate: Array, before: Before) -> Truths:
    """Which could be a plan that is no larger than those before, each engine answering so many requests per second."""
    assert asked.work.rate is not None
    with numpy.errstate(divide="ignore"):
        count = numpy.ceil(asked.work.rate / (stack.engines * rate) / WITHIN)
    limit = min(asked.most, before.gpus) if wants_smallest(asked) else asked.most
    found: Truths = numpy.maximum(count, 1.0) * stack.gpus <= limit
    return found


def _matters(asked: Question, stack: Stack, run: Running, good: Truths, before: Before) -> Truths:
    """Which could, each budget for itself."""
    level, tpot = asked.level, run.tpot_s(asked.work.output)
    fast = good & holds(tpot, level.tpot_s, WITHIN)
    soon = good & holds(least_ttft_s(stack.model, run), level.ttft_s, WITHIN)
    near = engine, _, _ = numpy.nonzero(fast & soon)
    per_gpu = stack.tokens_per_s_gpu(run.rate[near], engine, asked.work.output)
    found = numpy.zeros(len(stack.gpus), dtype=bool)
    found[engine[before.passed_by(tpot[near], per_gpu)]] = True
    # A plan lies between two batch sizes, of which at least one keeps each limit, and answers less than the larger.
    able = _or_the_one_before(fast) & _or_the_one_before(soon)
    if asked.work.rate is None:
        return found | able.any(axis=(1, 2))
    rate = numpy.where(good, run.rate, 0.0)
    able_rate, rate = (of.max(axis=(1, 2)) for of in (rate * able, rate))
    return found | _affordable(asked, stack, numpy.minimum(able_rate, asked.usable * rate), before)


def _or_the_one_before(which: Truths) -> Truths:
    """Which batch sizes, or the next smaller ones, are some."""
    found = which.copy()
    found[..., 1:] |= which[..., :-1]
    return found
