"""The search: every task of the space evaluated, here or on other processes, and the answers put together.

Tasks are independent, each answers with the little that no other part of it beats, and answers are put together in the
order of the tasks: the result does not depend on who evaluated what.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import groupby
from typing import NamedTuple

from costmodel.errors import Impossible
from costmodel.parallel.remedies import remedies
from costmodel.planning.candidates import FITS, evaluate
from costmodel.planning.engines import Engines
from costmodel.planning.outcomes import Outcome
from costmodel.planning.pairing import paired
from costmodel.planning.points import Candidate, Points, exceeded, rank, undominated
from costmodel.planning.pools import joined
from costmodel.planning.question import Loaded, Question, cache_formats, load, weight_formats
from costmodel.planning.reach import NOBODY, Before
from costmodel.planning.space import Count, Dimension, Layouts, Task, Tasks, layouts
from costmodel.step import Step
from costmodel.units import format_bytes

BEATEN = "bounded: even if nobody waited, plans and points that were found before are better"
"""What the count of points of engines says that are asked no more, see `reach`."""

Evaluator = Callable[[Question, Sequence[Tasks], bool], Iterable[list[Outcome]]]
"""Evaluates batches of tasks, each of one device, formats and drafts, and gives their outcomes in order."""


class Found(NamedTuple):
    """What a search found.

    best: of each device that has a plan, the best first. frontier: of each device, points that no other beats in
    tokens/s of a user and tokens/s per GPU within the service level; cloud: those of each layout, whatever their
    latency, and of pairs of pools. closest: where nothing holds the service level, what comes nearest. dimensions and
    counts: what was searched.
    """

    best: tuple[Candidate, ...]
    frontier: tuple[Candidate, ...]
    cloud: tuple[Points | Candidate, ...]
    closest: Candidate | None
    dimensions: tuple[Dimension, ...]
    counts: tuple[Count, ...]


def tasks_of(loaded: Loaded) -> tuple[list[Tasks], tuple[Dimension, ...], list[Count]]:
    """The space: its tasks, in batches of one device, formats and drafts, its dimensions, and what has no engine."""
    asked, model = loaded.question, loaded.model
    spread = Layouts(asked.layouts or layouts(model, asked.gpus, asked.context_parallel))
    batches, left_out = list[Tasks](), Counter[str]()
    used: dict[str, dict[str, None]] = {"weights": {}, "kv": {}}
    for hw, device in loaded.devices.items():
        for weights in weight_formats(model, device, asked.weights):
            for kv in cache_formats(model, asked.kv):
                try:
                    loaded.precision(hw, weights, kv)
                except Impossible as error:
                    left_out[f"no engine ({error})"] += len(spread) * len(asked.drafts)
                    continue
                used["weights"][weights or "own"] = used["kv"][kv or "own"] = None
                batches += [Tasks(hw, weights, kv, draft, spread) for draft in asked.drafts]
    dimensions = (
        Dimension("devices", tuple(loaded.devices)),
        Dimension("GPUs of a replica", asked.gpus),
        Dimension("layouts", spread),
        Dimension("weights", tuple(used["weights"])),
        Dimension("KV cache", tuple(used["kv"])),
        Dimension("drafted tokens", asked.drafts),
        Dimension("chunk budgets", asked.budgets),
        Dimension("pools", asked.modes),
    )
    return batches, dimensions, [Count("engines", count, why) for why, count in left_out.items()]


@contextmanager
def _without_collection() -> Iterator[None]:
    """No look for cycles of garbage meanwhile: a search leaves none, and keeps much that each look would go through."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def here(question: Question, batches: Sequence[Tasks], bounds: bool) -> Iterator[list[Outcome]]:
    """Evaluate in this process."""
    loaded = load(question)
    before: dict[str, Before] = {}
    with _without_collection():
        for batch in batches:
            known = before.get(batch.hw, NOBODY)
            outcomes = evaluate(loaded, batch, bounds, known)
            before[batch.hw] = reduce(Before.and_after, outcomes, known)
            yield outcomes


def evaluate_batch(question: Question, batch: Tasks, bounds: bool) -> list[Outcome]:
    """Evaluate one batch in another process, which knows nothing yet."""
    return next(iter(here(question, [batch], bounds)))


def search(
    question: Question, evaluator: Evaluator = here, progress: Callable[[int, int], None] | None = None
) -> Found:
    """The best plans for a question. Where nothing holds the service level, `best` is empty and `closest` is not.

    Raises Impossible where no engine of the space fits at all.
    """
    loaded = load(question.checked())
    batches, dimensions, counts = tasks_of(loaded)
    outcomes = _run(question, batches, evaluator, True, progress)
    found = _together(question, outcomes)
    bounded = any(count.why.startswith(("excluded: TPOT", "excluded: TTFT")) for count in found.counts)
    if not found.best and (bounded or any(outcome.beaten for outcome in outcomes)):
        # What the bounds excluded may be the closest: now it has to be looked at.
        outcomes = _run(question, batches, evaluator, False, progress)
        found = _together(question, outcomes)
    if all(all(outcome.excluded) for outcome in outcomes):
        reasons, tasks = _reasons(outcomes), sum(len(batch.layouts) for batch in batches)
        told = "; ".join(
            [count.why for count in counts] + [f"{count} of {tasks}: {why}" for why, count in reasons.items()]
        )
        more = _what_would_fit(loaded, outcomes)
        raise Impossible(f"{loaded.model.name}: no layout of up to {question.most} GPUs can serve it ({told}){more}")
    return found._replace(dimensions=dimensions, counts=(*counts, *found.counts))


def _what_would_fit(loaded: Loaded, outcomes: Sequence[Outcome]) -> str:
    """By how much the best of the layouts that memory excludes misses, and what would make it fit."""
    asked = loaded.question
    nearest: tuple[float, float, float, Task] | None = None
    for _, group in groupby(outcomes, key=lambda outcome: outcome.tasks[:4]):
        alike = list(group)
        missed = tuple(
            layout
            for outcome in alike
            for layout, why in zip(outcome.tasks.layouts, outcome.excluded, strict=True)
            if why == FITS
        )
        if not missed:
            continue
        engines = Engines(loaded, alike[0].tasks._replace(layouts=missed))
        found = engines.room(asked.settings(engines.hw, min(asked.budgets)))
        lacking = found.each - found.free.max(axis=1)
        place = int(lacking.argmin())
        if nearest is None or lacking[place] < nearest[0]:
            results = float(engines.results()[place].min())
            nearest = float(lacking[place]), float(found.each[place]), results, engines.tasks[place]
    if nearest is None:
        return ""
    lacking, each, results, task = nearest
    device = loaded.devices[task.hw]
    step = Step(B=task.layout.dp, S=1, P=max(round(asked.work.context) - 1, 0), phase="decode")
    precision = loaded.precision(task.hw, task.weights, task.kv)
    # What an engine does not use at all is as good as taken by results.
    kept = results + (1.0 - asked.engines[task.hw].utilisation) * device.memory.hbm.capacity
    changes = [remedy.change for remedy in remedies(loaded.model, task.layout, step, precision, device, kept)]
    would = f"; {', '.join(changes)} would fit" if changes else ""
    return (
        f"; {task.layout} on {task.hw} lacks the least: {format_bytes(lacking)} on a device, one sequence taking "
        f"{format_bytes(each)}{would}"
    )


def _run(
    question: Question,
    batches: Sequence[Tasks],
    evaluator: Evaluator,
    bounds: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    done, tasks = 0, sum(len(batch.layouts) for batch in batches)
    for found in evaluator(question, batches, bounds):
        outcomes += found
        done += sum(len(outcome.excluded) for outcome in found)
        if progress is not None:
            progress(done, tasks)
    return outcomes


def _reasons(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many tasks each rule or bound excluded."""
    found = Counter[str]()
    for outcome in outcomes:
        found.update(outcome.excluded)
    found.pop("", None)
    return found


def _together(question: Question, outcomes: Sequence[Outcome]) -> Found:
    plans: list[Candidate] = []
    within: list[Candidate] = []
    cloud: list[Points | Candidate] = []
    missed: list[Candidate] = []
    pairs = 0
    for _, group in groupby(outcomes, key=lambda outcome: outcome.tasks[:4]):
        alike = list(group)
        for outcome in alike:
            plans += outcome.plans
            within += outcome.frontier
            cloud += [outcome.cloud] if outcome.cloud is not None else []
            missed += [outcome.closest] if outcome.closest is not None else []
        front, back = joined([outcome.prefill for outcome in alike]), joined([outcome.decode for outcome in alike])
        more, edge, near, looked = paired(question, alike[0].tasks.one(0), front, back)
        plans, pairs = plans + more, pairs + looked
        cloud += edge
        within += [point for point in edge if exceeded(question, point)[0] <= 1.0 + 1e-9]
        missed += [near] if near is not None else []
    best: dict[str, Candidate] = {}
    for plan in sorted(plans, key=lambda plan: rank(plan, question.optimize)):
        best.setdefault(plan.hw, plan)
    closest = None if best or not missed else min(missed, key=lambda plan: exceeded(question, plan)[0])
    frontier = [point for hw in dict.fromkeys(point.hw for point in within) for point in undominated(within, hw)]
    return Found(tuple(best.values()), tuple(frontier), tuple(cloud), closest, (), tuple(_counted(outcomes, pairs)))


def _counted(outcomes: Sequence[Outcome], pairs: int) -> Iterator[Count]:
    engines, excluded = sum(len(outcome.excluded) for outcome in outcomes), _reasons(outcomes)
    yield Count("engines", engines, "in the space: device, formats, drafts, layout")
    for why, count in excluded.items():
        yield Count("engines", count, f"excluded: {why}")
    yield Count("engines", engines - excluded.total(), "evaluated")
    yield Count("points", sum(outcome.points for outcome in outcomes), "evaluated: batch size, chunk budget")
    yield Count("points", sum(outcome.fitting for outcome in outcomes), "of aggregated engines whose caches fit")
    beaten = sum(outcome.beaten for outcome in outcomes)
    if beaten:
        yield Count("points", beaten, f"of them {BEATEN}")
    rest = "of the rest" if beaten else "of them"
    yield Count("points", sum(outcome.within for outcome in outcomes), f"{rest} within the service level")
    if pairs:
        yield Count("pairs", pairs, "of prefill and decode pools that no other pool of their role beats")
