"""Disaggregated plans: pools of prefill and decode workers, put together so that both keep up with the load.

TTFT is the prefill pool's, TPOT the decode pool's, so each is searched alone, what another pool of its role beats is
dropped, and the rest are paired.
"""

from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.parallel.layout import Disaggregated, Workers
from costmodel.planning.engine_model import Array
from costmodel.planning.measures import ServiceLevel
from costmodel.planning.points import Candidate, plan_load, rank
from costmodel.planning.pools import Pools
from costmodel.planning.question import Question
from costmodel.planning.space import Task

Truths = NDArray[numpy.bool_]


def paired(
    asked: Question, task: Task, prefill: Pools, decode: Pools
) -> tuple[list[Candidate], list[Candidate], Candidate | None, int]:
    """The best plans, the frontier, the plan that comes closest, and how many pairs were looked at.

    task: whose device, formats and drafts the pools share. Where the rate is known, plans are pairs of pools with whole
    numbers of workers; else as many workers are taken as the load needs at a pool's share of time or batch.
    """
    level = asked.level
    prefill, decode = prefill.undominated(), decode.undominated()
    free = _pairs(asked, task, prefill.of(prefill.replicas == 0), decode.of(decode.replicas == 0))
    if free is None:
        return [], [], None, 0
    # What the GPUs allow, and what would be if there were more.
    allowed = free.within(level) & (free.gpus <= asked.most)
    edges = [*_frontier(free.tpot, free.per_gpu, allowed), *_frontier(free.tpot, free.per_gpu, free.within(level))]
    frontier = [free.candidate(row, column) for row, column in dict.fromkeys(edges)]
    looked, whole = free.gpus.size, free
    # The most per GPU is asked of engines that are kept full, however many the load then needs.
    if asked.work.rate is not None and asked.optimize != "throughput":
        exact = _pairs(asked, task, prefill.of(prefill.replicas > 0), decode.of(decode.replicas > 0))
        if exact is not None:
            whole, looked = exact, looked + exact.gpus.size
    fit = whole.within(level) & (whole.gpus <= asked.most) & (whole.gpus >= min(asked.gpus))
    plans = []
    if fit.any():
        first = {
            "cost": whole.gpus / whole.load,
            "gpus": whole.gpus,
            "latency": whole.e2e,
            "throughput": -whole.per_gpu,
        }[asked.optimize]
        places = numpy.argwhere(fit)
        order = numpy.lexsort((whole.e2e[fit], whole.gpus[fit], first[fit]))
        plans = [whole.candidate(*map(int, places[place])) for place in order[:3]]
        # A pool is a little larger than the load needs: what it answers is the load.
        plans = [plan._replace(rate=float(plan_load(asked.work, numpy.array(plan.e2e_s)))) for plan in plans]
        plans.sort(key=lambda plan: rank(plan, asked.optimize))
        return plans, frontier, None, looked
    within_gpus = whole.gpus <= asked.most
    if not within_gpus.any():
        return [], frontier, None, looked
    over = numpy.ones(whole.gpus.shape)
    for values, most in zip((whole.ttft, whole.tpot), level, strict=True):
        if most is not None:
            over = numpy.maximum(over, values / most)
    over = numpy.where(within_gpus, over, numpy.inf)
    closest = whole.candidate(*map(int, numpy.unravel_index(int(over.argmin()), over.shape)))
    return [], frontier, closest, looked


class _Pairs(NamedTuple):
    """Every prefill pool (rows) with every decode pool (columns)."""

    asked: Question
    task: Task
    fronts: Pools
    backs: Pools
    ttft: Array
    tpot: Array
    e2e: Array
    load: Array
    workers: tuple[Array, Array]
    gpus: Array
    per_gpu: Array

    def within(self, level: ServiceLevel) -> Truths:
        """Which hold the service level."""
        held = numpy.ones(self.gpus.shape, dtype=bool)
        for values, most in zip((self.ttft, self.tpot), level, strict=True):
            if most is not None:
                held &= values <= most
        return held

    def candidate(self, row: int, column: int) -> Candidate:
        """One pair as a plan."""
        fronts, backs, asked, task = self.fronts, self.backs, self.asked, self.task
        counts = [int(of[row, column]) for of in self.workers]
        layouts = [of.layouts[of.layout[place]] for of, place in ((fronts, row), (backs, column))]
        layout = Disaggregated(*(Workers(*workers) for workers in zip(counts, layouts, strict=True)))
        rate = min(
            float(of.rate[place]) * (1 if of.replicas[place] else count)
            for of, place, count in zip((fronts, backs), (row, column), counts, strict=True)
        )
        tpot = float(backs.tpot_s[column])
        later = backs.tpot_s[(backs.layout == backs.layout[column]) & (backs.tpot_s > tpot)]
        slower = float(later.min()) if len(later) else tpot
        return Candidate(
            *task[:4], str(layout), int(fronts.budget[row]), float(backs.sequences[column]), 1, layout.gpus,
            float(fronts.ttft_s[row]), tpot, float(self.e2e[row, column]), rate, float(self.per_gpu[row, column]),
            layout.gpus * asked.prices[task.hw],
            _next_limit(asked, task.hw, bool(len(later)), float(backs.places[column]), slower),
        )  # fmt: skip


def _next_limit(asked: Question, hw: str, fits: bool, places: float, tpot_s: float) -> str:
    """What the next larger batch of a decode pool would miss: a latency, memory or places, or nothing but the speed of
    a user."""
    if asked.level.tpot_s is not None and tpot_s > asked.level.tpot_s:
        return "TPOT"
    if fits:
        return "speed per user"
    return "memory" if places < asked.engines[hw].max_sequences else "max sequences"


def _pairs(asked: Question, task: Task, fronts: Pools, backs: Pools) -> _Pairs | None:
    if not len(fronts.layout) or not len(backs.layout):
        return None
    ttft, tpot = fronts.ttft_s[:, None], backs.tpot_s[None, :]
    e2e = ttft + tpot * (asked.work.output - 1.0)
    load = plan_load(asked.work, e2e)
    rates = fronts.rate[:, None], backs.rate[None, :]
    each = tuple(numpy.array([float(of.layouts[place].gpus) for place in of.layout.tolist()]) for of in (fronts, backs))
    each = each[0][:, None], each[1][None, :]
    if fronts.replicas[0]:
        workers = tuple(
            numpy.broadcast_to(values, e2e.shape) for values in (fronts.replicas[:, None], backs.replicas[None, :])
        )
        # What a prefill pool of whole workers could answer is told by its share, not by its rate: the load is both's.
        per_gpu = load * asked.work.output / (workers[0] * each[0] + workers[1] * each[1])
    else:
        workers = tuple(numpy.maximum(numpy.ceil(load / rate - 1e-9), 1.0) for rate in rates)
        per_gpu = asked.work.output / (each[0] / rates[0] + each[1] / rates[1])
    gpus = workers[0] * each[0] + workers[1] * each[1]
    return _Pairs(asked, task, fronts, backs, ttft, tpot, e2e, load, (workers[0], workers[1]), gpus, per_gpu)


def _frontier(tpot: Array, per_gpu: Array, within: Truths) -> list[tuple[int, int]]:
    """For each decode pool, fastest first, the prefill pool with which the most tokens come per GPU, while more do."""
    found, most = [], 0.0
    allowed = numpy.where(within, per_gpu, -1.0)
    for column in numpy.argsort(tpot[0], kind="stable"):
        row = int(numpy.argmax(allowed[:, column]))
        if allowed[row, column] > most:
            most = float(allowed[row, column])
            found.append((row, int(column)))
    return found
