"""What the engines of the search space can do, reduced to what the answer needs.

For every batch size and chunk budget: a point, as if so many GPUs were there that each engine keeps just that batch.
For every number of replicas: a plan, with the batch that the load then leaves to each engine. All engines of a batch of
tasks are evaluated together, on arrays.
"""

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from costmodel.errors import Impossible
from costmodel.planning.curves import Curves, Truths
from costmodel.planning.engine_model import Array
from costmodel.planning.engines import Engines, Times
from costmodel.planning.operating import Operating, operating, running
from costmodel.planning.outcomes import Outcome
from costmodel.planning.points import LIMITS, Points, fastest_first, plan_load, rises
from costmodel.planning.pools import decode_pools, prefill_pools
from costmodel.planning.prefill_only import only_prefill
from costmodel.planning.question import Loaded, Question
from costmodel.planning.reach import NOBODY, WITHIN, Before, could_matter, good_points
from costmodel.planning.replicas import Fleet, holds, wants_smallest
from costmodel.planning.side_by_side import Indices
from costmodel.planning.space import Tasks
from costmodel.planning.stacks import Stack

FEW = 32
"""Engines whose points are evaluated first: what they leave bounds the others."""
MANY = 512
"""Engines whose points are evaluated together at most, so that their arrays stay in the processor's caches."""
DIVIDES = "the model does not divide"
FITS = "memory: weights, buffers and one sequence do not fit"


def evaluate(loaded: Loaded, tasks: Tasks, bounds: bool = True, before: Before = NOBODY) -> list[Outcome]:
    """Everything about tasks, of some after others. bounds: leave out those for which even perfect kernels would miss
    the service level, and those that better ones stand before. before: what other tasks of the device left."""
    asked = loaded.question
    stack, place, excluded = _stack(loaded, tasks, bounds)
    if stack is None:
        return [Outcome(tasks, tuple(excluded))]
    outcomes = []
    first, start, size = 0, 0, FEW
    while first < len(place):
        last = min(first + size, len(place))
        end = place[last] if last < len(place) else len(excluded)
        some = Outcome(tasks.of(slice(start, end)), tuple(excluded[start:end]))
        some = _evaluated(asked, stack.of(numpy.arange(first, last)), some, before, bounds)
        before = before.and_after(some)
        outcomes.append(some)
        first, start, size = last, end, min(2 * size, MANY)
    return outcomes


def _evaluated(asked: Question, stack: Stack, outcome: Outcome, before: Before, bounds: bool) -> Outcome:
    """The outcome of engines side by side."""
    if asked.work.prefill_only:
        return only_prefill(asked, stack, outcome)
    curves = stack.curves() if "aggregated" in asked.modes else stack.apart()
    if "aggregated" in asked.modes:
        outcome = _aggregated(asked, stack, curves, outcome, before, bounds)
    if "disaggregated" in asked.modes:
        (front, prefilling), (back, decoding) = (find(asked, stack, curves) for find in (prefill_pools, decode_pools))
        points = outcome.points + prefilling + decoding
        outcome = outcome._replace(prefill=front, decode=back, points=points)
    return outcome


def _stack(loaded: Loaded, tasks: Tasks, bounds: bool) -> tuple[Stack | None, list[int], list[str]]:
    """The engines that are worth evaluating with their places among all tasks, and for each task why it is not."""
    asked, excluded = loaded.question, [DIVIDES] * len(tasks.layouts)
    try:
        engines = Engines(loaded, tasks)
    except Impossible:
        return None, [], excluded
    if not engines.spread.layouts:
        return None, [], excluded
    settings = asked.settings(engines.hw, max(asked.budgets), engines.draft_tokens)
    places = numpy.minimum(engines.room(settings).sequences, settings.max_sequences)
    why = numpy.where(places.max(axis=1) < 1, FITS, "").astype(object)
    fitting = numpy.flatnonzero(why == "")
    times = engines.times(fitting) if len(fitting) else None
    if times is not None and bounds:
        why[fitting] = _bounds(asked, times)
    for place, reason in zip(engines.asked.tolist(), why.tolist(), strict=True):
        excluded[place] = reason
    if times is None or all(why):
        return None, [], excluded
    kept = why[fitting] == ""
    chosen, times = fitting[kept], times._replace(split=times.split[kept])
    degrees, worth = engines.spread.degrees, engines.asked[chosen].tolist()
    stack = Stack(
        tasks.chosen(worth),
        engines.model(engines.spread.placed[0]),
        degrees.gpus[chosen].astype(numpy.float64),
        (degrees.dp * degrees.pp)[chosen].astype(numpy.float64),
        places[chosen],
        engines.timed(chosen, times, places[chosen].max(axis=1)),
        asked.engines[engines.hw].mixed,
        numpy.zeros(len(chosen)) if asked.work.prefill_only else engines.send_s()[chosen],
    )
    return stack, worth, excluded


def _bounds(asked: Question, times: Times) -> NDArray[numpy.object_]:
    """The service level that each engine misses even at the datasheet's peaks, with one sequence; "" where none is."""
    found = numpy.full(len(times.split), "", dtype=object)
    for what, one, least, most in (
        ("TTFT", "prompt alone", times.whole.prompt_peak, asked.level.ttft_s),
        ("TPOT", "token of one sequence", times.whole.token_peak, asked.level.tpot_s),
    ):
        if most is not None:
            found[least[times.split] > most] = f"{what}: one {one} at the datasheet's peaks takes longer"
    return found


def _aggregated(
    asked: Question, stack: Stack, curves: Curves, outcome: Outcome, before: Before, bounds: bool
) -> Outcome:
    """Engines that prefill and decode."""
    work, level = asked.work, asked.level
    run = running(stack.model, work, curves)
    good = good_points(stack, curves, run)
    outcome = outcome._replace(
        points=int(curves.distinct.sum()) * len(asked.budgets), fitting=int(numpy.count_nonzero(good))
    )
    left = 0
    if bounds and not asked.every_point:
        # The points of each layout are not asked for, so only those matter that could be in the answer.
        some = could_matter(asked, stack, run, good, before)
        left = outcome.fitting
        stack, curves, run, good = stack.of(some), curves.rows(some), run.of(some), good[some]
        left -= int(numpy.count_nonzero(good))
    if not len(stack.gpus):
        return outcome._replace(beaten=left)
    at = operating(stack.model, work, curves, stack.places, stack.engines, run)
    held = good & holds(at.ttft_s, level.ttft_s) & holds(at.tpot_s, level.tpot_s)
    some = numpy.arange(len(stack.gpus))
    per_gpu = stack.tokens_per_s_gpu(run.rate, some[:, None, None], work.output)
    if not asked.every_point:
        # Engines of which no point is beyond those before add nothing to the frontier.
        near = numpy.nonzero(good & holds(at.ttft_s, level.ttft_s, WITHIN) & holds(at.tpot_s, level.tpot_s, WITHIN))
        some = numpy.unique(near[0][before.passed_by(at.tpot_s[near], per_gpu[near])])
    cloud = _cloud(asked, stack, at, curves.distinct, per_gpu, good, some)
    within = numpy.flatnonzero(cloud.exceeded(asked) <= WITHIN)
    first = within[fastest_first(cloud.tpot_s[within], cloud.tokens_per_s_gpu[within])]
    fleet = Fleet(asked, stack, at, curves.distinct, per_gpu, held)
    plans = fleet.plans(before.gpus if wants_smallest(asked) else numpy.inf)
    return outcome._replace(
        beaten=left,
        within=int(held.sum()),
        plans=plans,
        frontier=tuple(cloud.candidates(first)),
        cloud=cloud if asked.every_point else None,
        # Where any were left out, the search looks again at all before it tells what comes closest.
        closest=None if plans or left or before.gpus < numpy.inf else fleet.closest(),
    )


def _cloud(
    asked: Question, stack: Stack, at: Operating, distinct: Truths, per_gpu: Array, good: Truths, some: Indices
) -> Points:
    """Of each of some engines, the points that no other of it beats in tokens/s of a user and tokens/s per GPU."""
    tpot, speed = (
        numpy.where(good[some], values[some], none).reshape(len(some), good[0].size)
        for values, none in ((at.tpot_s, numpy.inf), (per_gpu, -1.0))
    )
    # Of each budget in turn, latencies rise already; of equal ones the last that rises above is the best per GPU.
    order = numpy.argsort(tpot, axis=-1, kind="stable")
    task, place = numpy.nonzero(rises(numpy.take_along_axis(speed, order, axis=1)))
    place = order[task, place]
    again = (task[1:] == task[:-1]) & (tpot[task[1:], place[1:]] == tpot[task[:-1], place[:-1]])
    kept = numpy.concatenate([~again, numpy.ones(min(len(task), 1), dtype=bool)])
    task = some[task[kept]]
    budget, size = numpy.divmod(place[kept], at.n.shape[1])
    here = (task, budget, size)
    ttft, tpot, rate = at.ttft_s[here], at.tpot_s[here], at.rate[here]
    e2e = ttft + tpot * (asked.work.output - 1.0)
    # As many replicas as the load needs at this point, each of them this full.
    each = rate * stack.engines[task]
    count = numpy.maximum(numpy.ceil(plan_load(asked.work, e2e) / each - 1e-9), 1.0)
    return Points(
        stack.tasks,
        asked.budgets,
        asked.prices[stack.tasks.hw],
        task,
        budget,
        at.n[task, size],
        count,
        count * stack.gpus[task],
        ttft,
        tpot,
        e2e,
        each * count,
        per_gpu[here],
        _next_limits(asked, stack, at, distinct, good, here),
    )


def _next_limits(
    asked: Question, stack: Stack, at: Operating, distinct: Truths, good: Truths, here: Sequence[Indices]
) -> Indices:
    """What the next larger batch would miss first, as places in LIMITS."""
    task, budget, size = here
    further = numpy.minimum(size + 1, at.n.shape[1] - 1)
    more = distinct[task, further] & (further > size)
    later = (task, budget, numpy.where(more, further, size))
    most = asked.engines[stack.tasks.hw].max_sequences
    full = numpy.where(stack.places[task, budget] < most, LIMITS.index("memory"), LIMITS.index("max sequences"))
    found = numpy.where(more & good[task, budget, further], LIMITS.index("speed per user"), full)
    for name, values in (("TPOT", at.tpot_s), ("TTFT", at.ttft_s)):
        limit = asked.level.tpot_s if name == "TPOT" else asked.level.ttft_s
        if limit is not None:
            found = numpy.where(values[later] > limit, LIMITS.index(name), found)
    return found
