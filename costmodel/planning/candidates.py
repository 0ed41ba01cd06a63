"""What the engines of the search space can do, reduced to what the answer needs.

For every batch size and chunk budget: a point, as if so many GPUs were there that each engine keeps just that batch.
For every number of replicas: a plan, with the batch that the load then leaves to each engine. All engines of a batch of
tasks are evaluated together, on arrays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from costmodel.errors import Impossible
from costmodel.planning.curves import Truths, Whole, engine_curves
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.operating import Operating, operating
from costmodel.planning.points import LIMITS, Candidate, Points, fastest_first, plan_load, rises
from costmodel.planning.pools import NO_POOLS, Pools, decode_pools, prefill_pools
from costmodel.planning.question import Loaded, Question
from costmodel.planning.replicas import Fleet, holds
from costmodel.planning.room import rooms
from costmodel.planning.space import Task
from costmodel.planning.stacks import Places, Stack

DIVIDES = "the model does not divide"
FITS = "memory: weights, buffers and one sequence do not fit"


class Outcome(NamedTuple):
    """What became of tasks that share device, formats and drafts.

    excluded: for each the rule or bound that did it, empty where it was evaluated. points: evaluated ones, those whose
    caches fit, and those of them within the service level. plans: the best. cloud: of each task, the points that no
    other of it beats; frontier: those of all within the service level. prefill, decode: pools for disaggregation that
    no other beats. closest: where there is no plan, what comes nearest to the service level.
    """

    tasks: tuple[Task, ...]
    excluded: tuple[str, ...]
    points: int = 0
    fitting: int = 0
    within: int = 0
    plans: tuple[Candidate, ...] = ()
    frontier: tuple[Candidate, ...] = ()
    cloud: Points | None = None
    prefill: Pools = NO_POOLS
    decode: Pools = NO_POOLS
    closest: Candidate | None = None


def evaluate(loaded: Loaded, tasks: Sequence[Task], bounds: bool = True) -> Outcome:
    """Everything about tasks that share device, formats and drafts. bounds: leave out those for which even perfect
    kernels would miss the service level."""
    asked = loaded.question
    stack, excluded = _stack(loaded, tasks, bounds)
    outcome = Outcome(tuple(tasks), tuple(excluded))
    if stack is None:
        return outcome
    if "aggregated" in asked.modes:
        at = operating(stack.models[0], asked.work, stack.curves, stack.places, stack.engines)
        outcome = _aggregated(asked, stack, at, outcome)
    if "disaggregated" in asked.modes:
        front, back = prefill_pools(asked, stack), decode_pools(asked, stack)
        points = outcome.points + len(front.layout) + len(back.layout)
        outcome = outcome._replace(prefill=front.undominated(), decode=back.undominated(), points=points)
    return outcome


def _stack(loaded: Loaded, tasks: Sequence[Task], bounds: bool) -> tuple[Stack | None, list[str]]:
    """The engines that are worth evaluating, and for each task why it is not."""
    asked, excluded = loaded.question, [DIVIDES] * len(tasks)
    divided: list[tuple[int, EngineModel]] = []
    for place, task in enumerate(tasks):
        try:
            divided.append((place, loaded.engine(*task)))
        except Impossible:
            continue
    if not divided:
        return None, excluded
    room = _room(loaded, [model for _, model in divided], tasks[0])
    for (place, model), most in zip(divided, room, strict=True):
        excluded[place] = FITS if most.max() < 1 else ""
        if bounds and not excluded[place]:
            excluded[place] = _bound(loaded.whole(model), asked)
    rows = [row for row, (place, _) in enumerate(divided) if not excluded[place]]
    if not rows:
        return None, excluded
    chosen = [divided[row] for row in rows]
    return _stacked(loaded, [tasks[place] for place, _ in chosen], [model for _, model in chosen], room[rows]), excluded


def _room(loaded: Loaded, models: Sequence[EngineModel], task: Task) -> Array:
    """Sequences that engines can have under way, by chunk budget: for memory, and as they are told."""
    asked = loaded.question
    settings = asked.settings(task.hw, max(asked.budgets), task.draft_tokens)
    results = numpy.stack([loaded.results(model) for model in models])
    fits = rooms(models, [loaded.held(model) for model in models], results, settings)
    return numpy.minimum(fits, settings.max_sequences)


def _stacked(loaded: Loaded, tasks: Sequence[Task], models: Sequence[EngineModel], places: Array) -> Stack:
    """Engines side by side, with their curves."""
    asked = loaded.question
    curves = engine_curves(
        models,
        [loaded.whole(model) for model in models],
        [loaded.stretch(model) for model in models],
        asked.work,
        places.max(axis=1),
        asked.engines[tasks[0].hw].mixed,
    )
    return Stack(
        tuple(tasks),
        tuple(models),
        numpy.array([float(model.layout.gpus) for model in models]),
        numpy.array([float(model.engines) for model in models]),
        places,
        curves,
        numpy.array([loaded.send_s(model) for model in models]),
    )


def _bound(shared: Whole, asked: Question) -> str:
    """The service level that is missed even at the datasheet's peaks, with one sequence; empty where none is."""
    for what, one, least, most in zip(
        ("TPOT", "TTFT"), ("token of one sequence", "prompt alone"), shared.peak, reversed(asked.level), strict=True
    ):
        if most is not None and least > most:
            return f"{what}: one {one} at the datasheet's peaks takes longer"
    return ""


def _aggregated(asked: Question, stack: Stack, at: Operating, outcome: Outcome) -> Outcome:
    """Engines that prefill and decode."""
    work, level = asked.work, asked.level
    distinct = stack.curves.distinct[:, :, None]
    good = numpy.isfinite(at.rate) & (at.rate > 0) & (at.n[:, :, None] <= stack.places[:, None, :]) & distinct
    held = good & holds(at.ttft_s, level.ttft_s) & holds(at.tpot_s, level.tpot_s)
    per_gpu = at.rate * stack.engines[:, None, None] / stack.gpus[:, None, None] * work.output
    cloud = _cloud(asked, stack, at, per_gpu, good)
    within = numpy.flatnonzero(cloud.exceeded(asked) <= 1.0 + 1e-9)
    edge = within[fastest_first(cloud.tpot_s[within], cloud.tokens_per_s_gpu[within])]
    fleet = Fleet(asked, stack, at, per_gpu, held)
    plans = fleet.plans()
    return outcome._replace(
        points=int(distinct.sum()) * len(asked.budgets),
        fitting=int(good.sum()),
        within=int(held.sum()),
        plans=plans,
        frontier=tuple(cloud.candidates(edge)),
        cloud=cloud,
        closest=None if plans else fleet.closest(),
    )


def _cloud(asked: Question, stack: Stack, at: Operating, per_gpu: Array, good: Truths) -> Points:
    """Of each engine, the points that no other of it beats in tokens/s of a user and tokens/s per GPU."""
    flat = (len(stack.tasks), -1)
    tpot = numpy.where(good, at.tpot_s, numpy.inf).reshape(flat)
    speed = numpy.where(good, per_gpu, -1.0).reshape(flat)
    order = numpy.lexsort((-speed, tpot), axis=-1)
    task, place = numpy.nonzero(rises(numpy.take_along_axis(speed, order, axis=1)))
    row, budget = numpy.divmod(order[task, place], len(asked.budgets))
    here = (task, row, budget)
    ttft, tpot, rate = at.ttft_s[here], at.tpot_s[here], at.rate[here]
    e2e = ttft + tpot * (asked.work.output - 1.0)
    # As many replicas as the load needs at this point, each of them this full.
    each = rate * stack.engines[task]
    count = numpy.maximum(numpy.ceil(plan_load(asked.work, e2e) / each - 1e-9), 1.0)
    return Points(
        stack.tasks,
        asked.budgets,
        asked.prices[stack.tasks[0].hw],
        task,
        budget,
        at.n[task, row],
        count,
        count * stack.gpus[task],
        ttft,
        tpot,
        e2e,
        each * count,
        per_gpu[here],
        _next_limits(asked, stack, at, good, here),
    )


def _next_limits(asked: Question, stack: Stack, at: Operating, good: Truths, here: Sequence[Places]) -> Places:
    """What the next larger batch would miss first, as places in LIMITS."""
    task, row, budget = here
    further = numpy.minimum(row + 1, at.n.shape[1] - 1)
    more = stack.curves.distinct[task, further] & (further > row)
    later = (task, numpy.where(more, further, row), budget)
    most = asked.engines[stack.tasks[0].hw].max_sequences
    full = numpy.where(stack.places[task, budget] < most, LIMITS.index("memory"), LIMITS.index("max sequences"))
    found = numpy.where(more & good[task, further, budget], LIMITS.index("speed per user"), full)
    for name, values in (("TPOT", at.tpot_s), ("TTFT", at.ttft_s)):
        limit = asked.level.tpot_s if name == "TPOT" else asked.level.ttft_s
        if limit is not None:
            found = numpy.where(values[later] > limit, LIMITS.index(name), found)
    return found
