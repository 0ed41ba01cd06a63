"""What one engine of the search space can do, reduced to what the answer needs.

For every batch size and chunk budget: a point, as if so many GPUs were there that each engine keeps just that batch.
For every number of replicas: a plan, with the batch that the load then leaves to each engine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.errors import Impossible
from costmodel.planning.curves import Array, EngineModel, Whole, engine_curves
from costmodel.planning.operating import Operating, operating, waits
from costmodel.planning.pools import Pool, decode_pools, plan_load, prefill_pools, send_s
from costmodel.planning.question import Loaded, Question
from costmodel.planning.room import room
from costmodel.planning.space import Task

Truths = NDArray[numpy.bool_]


class Candidate(NamedTuple):
    """One way to serve the load.

    layout: text, as for `--layout`. budget: tokens of an iteration; of disaggregated layouts that of the prefill pool.
    sequences: under way in each engine that decodes. replicas: of the layout; of disaggregated ones 1, the layout has
    the workers. rate: requests per second that the whole would answer, were its engines this full, with the service
    level held. usd_per_hour: of all GPUs. limited_by: what a fuller engine would miss.
    """

    hw: str
    weights: str | None
    kv: str | None
    draft_tokens: int
    layout: str
    budget: int
    sequences: float
    replicas: int
    gpus: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    rate: float
    tokens_per_s_gpu: float
    usd_per_hour: float
    limited_by: str = ""

    @property
    def usd_per_request(self) -> float:
        """With engines as full as this."""
        return self.usd_per_hour / 3600.0 / self.rate


class Outcome(NamedTuple):
    """What became of a task. excluded: the rule or bound that did it, empty where it was evaluated.

    points: evaluated ones, those whose caches fit, and those of them within the service level. plans and frontier:
    reduced to those that no other of the task beats. prefill, decode: pools for
    disaggregation. closest: how near the
    best of those that miss the service level comes, with the plan.
    """

    task: Task
    excluded: str = ""
    points: int = 0
    fitting: int = 0
    within: int = 0
    plans: tuple[Candidate, ...] = ()
    frontier: tuple[Candidate, ...] = ()
    prefill: tuple[Pool, ...] = ()
    decode: tuple[Pool, ...] = ()
    closest: Candidate | None = None


def evaluate(loaded: Loaded, task: Task, bounds: bool = True) -> Outcome:
    """Everything about one task. bounds: leave it out where even perfect kernels would miss the service level."""
    asked = loaded.question
    try:
        engine = loaded.engine(task.hw, task.weights, task.kv, task.draft_tokens, task.layout)
    except Impossible:
        return Outcome(task, "the model does not divide")
    settings = asked.settings(task.hw, max(asked.budgets), task.draft_tokens)
    held = room(engine, asked.work, loaded.results(engine), settings)
    places = numpy.minimum(held.sequences, settings.max_sequences)
    if places.max() < 1:
        return Outcome(task, "memory: weights, buffers and one sequence do not fit")
    shared = loaded.whole(engine)
    if bounds and (missed := _bound(shared, asked)):
        return Outcome(task, missed)
    most = places.max()
    n = numpy.unique(numpy.append(shared.n[shared.n <= most], most))
    blocks = loaded.blocks(engine) if engine.layout.pp > 1 else {}
    found = engine_curves(engine, asked.work, shared, blocks, n, settings.mixed)
    outcome = Outcome(task)
    if "aggregated" in asked.modes:
        at = operating(engine, asked.work, found, places, engine.engines)
        outcome = _aggregated(asked, engine, task, at, places)
    if "disaggregated" in asked.modes:
        front = prefill_pools(asked, engine, found, send_s(asked, engine))
        back = decode_pools(asked, engine, found, places)
        outcome = outcome._replace(prefill=front, decode=back, points=outcome.points + len(front) + len(back))
    return outcome


def _bound(shared: Whole, asked: Question) -> str:
    """The service level that is missed even at the datasheet's peaks, with one sequence; empty where none is."""
    for what, one, least, most in zip(
        ("TPOT", "TTFT"), ("token of one sequence", "prompt alone"), shared.peak, reversed(asked.level), strict=True
    ):
        if most is not None and least > most:
            return f"{what}: one {one} at the datasheet's peaks takes longer"
    return ""


TRADE = "speed per user"
"""What limits a point that could take more, if users were to wait longer for each token."""


def next_limit(asked: Question, hw: str, fits: bool, places: float, ttft_s: float, tpot_s: float) -> str:
    """What the next larger batch would miss: memory or places, a latency, or nothing but the speed of a user."""
    if asked.level.ttft_s is not None and ttft_s > asked.level.ttft_s:
        return "TTFT"
    if asked.level.tpot_s is not None and tpot_s > asked.level.tpot_s:
        return "TPOT"
    if fits:
        return TRADE
    most = asked.engines[hw].max_sequences
    return "memory" if places < most else "max sequences"


def _aggregated(asked: Question, engine: EngineModel, task: Task, at: Operating, places: Array) -> Outcome:
    work, level = asked.work, asked.level
    g, e = engine.layout.gpus, engine.engines
    price = asked.prices[task.hw]
    good = numpy.isfinite(at.rate) & (at.rate > 0) & (at.n[:, None] <= places[None, :])
    held = good & _holds(at.ttft_s, level.ttft_s) & _holds(at.tpot_s, level.tpot_s)
    per_gpu = at.rate * e / g * work.output
    e2e = at.e2e_s(work.output)

    def limit(row: int, column: int) -> str:
        return next_limit(
            asked,
            task.hw,
            row + 1 < len(at.n) and bool(good[row + 1, column]),
            places[column],
            float(at.ttft_s[min(row + 1, len(at.n) - 1), column]),
            float(at.tpot_s[min(row + 1, len(at.n) - 1), column]),
        )

    def candidate(row: int, column: int) -> Candidate:
        # As many replicas as the load needs at this point, each of them this full.
        share = float(plan_load(work, e2e[row : row + 1, column])[0] / (at.rate[row, column] * e))
        count = max(int(numpy.ceil(share - 1e-9)), 1)
        return Candidate(
            task.hw, task.weights, task.kv, task.draft_tokens, str(task.layout), asked.budgets[column],
            float(at.n[row]), count, count * g, float(at.ttft_s[row, column]), float(at.tpot_s[row, column]),
            float(e2e[row, column]), float(at.rate[row, column]) * e * count, float(per_gpu[row, column]),
            count * g * price, limit(row, column),
        )  # fmt: skip

    frontier = tuple(candidate(int(row), int(column)) for row, column in _best(at.tpot_s, per_gpu, good))
    plans, closest = _replicated(asked, engine, task, at, places, per_gpu, held)
    return Outcome(task, "", at.rate.size, int(good.sum()), int(held.sum()), plans, frontier, closest=closest)


def _replicated(
    asked: Question, engine: EngineModel, task: Task, at: Operating, places: Array, per_gpu: Array, held: Truths
) -> tuple[tuple[Candidate, ...], Candidate | None]:
    """The best plans with 1, 2, … replicas, and the one that comes closest to the service level."""
    work, level, price = asked.work, asked.level, asked.prices[task.hw]
    g, e = engine.layout.gpus, engine.engines
    counts = numpy.arange(1, asked.most // g + 1, dtype=numpy.float64)
    plans: list[Candidate] = []
    nearest: tuple[float, Candidate] | None = None

    def row_of(column: int, count: int, n: float, ttft: float, tpot: float, e2e: float, rate: float) -> Candidate:
        full = per_gpu[held[:, column], column]
        return Candidate(
            task.hw, task.weights, task.kv, task.draft_tokens, str(task.layout), asked.budgets[column],
            n, count, count * g, ttft, tpot, e2e, rate, float(full.max()) if full.size else 0.0, count * g * price,
        )  # fmt: skip

    for column in range(len(asked.budgets)):
        usable = numpy.isfinite(at.rate[:, column]) & (at.n <= places[column])
        if not usable.any():
            continue
        n, rates = at.n[usable], numpy.maximum.accumulate(at.rate[usable, column])
        if work.rate is not None:
            each = work.rate / (counts * e)
            sequences = numpy.where(each <= rates[0], each / rates[0] * n[0], numpy.interp(each, rates, n))
            sustained = each < asked.usable * rates[-1]
        else:
            assert work.clients is not None
            sequences = work.clients / (counts * e)
            each = numpy.interp(sequences, n, rates)
            sustained = sequences <= n[-1]
        # Waiting is told for each number of engines, among which arrivals are dealt out.
        parts = (at.base_s, at.line_s, at.place_s)
        base, line_s, place_s = (numpy.interp(sequences, n, part[usable, column]) for part in parts)
        ttft = base + waits(work, line_s, place_s, counts * e)
        tpot = numpy.interp(sequences, n, at.tpot_s[usable, column])
        e2e = ttft + tpot * (work.output - 1.0)
        within = sustained & _holds(ttft, level.ttft_s) & _holds(tpot, level.tpot_s)
        within &= counts * g >= min(asked.gpus)
        values = (sequences, ttft, tpot, e2e, each * e * counts)
        for index in numpy.nonzero(within)[0]:
            plans.append(row_of(column, int(counts[index]), *(float(value[index]) for value in values)))
        if not within.any():
            # With all GPUs: the batch at which the worst of the limits is exceeded the least, and no queue grows.
            count = int(counts[-1])
            first = (at.base_s + waits(work, at.line_s, at.place_s, count * e))[usable, column]
            later = at.tpot_s[usable, column]
            whole_s = first + later * (work.output - 1.0)
            kept = numpy.isfinite(first)
            answered = numpy.minimum(rates, asked.usable * rates[kept if kept.any() else -1].max()) * e * count
            wanted = plan_load(work, whole_s) / answered
            over = numpy.maximum.reduce([wanted, _over(first, level.ttft_s), _over(later, level.tpot_s)])
            over = numpy.where(kept, over, numpy.inf)
            place = int(numpy.argmin(over))
            if nearest is None or over[place] < nearest[0]:
                point = (n, first, later, whole_s, answered)
                nearest = float(over[place]), row_of(column, count, *(float(values[place]) for values in point))
    chosen = sorted(plans, key=lambda plan: rank(plan, asked.optimize))[:3]
    return tuple(chosen), None if chosen or nearest is None else nearest[1]


def rank(plan: Candidate, optimize: str) -> tuple[float, ...]:
    """What a plan is ordered by, the best first; ties go to the cheaper, then to the faster one."""
    first = {
        "cost": plan.usd_per_hour / plan.rate,
        "gpus": float(plan.gpus),
        "latency": plan.e2e_s,
        "throughput": -plan.tokens_per_s_gpu,
    }[optimize]
    return (float(f"{first:.9g}"), plan.usd_per_hour, plan.e2e_s)


def _holds(values: Array, most: float | None) -> Truths:
    return numpy.ones_like(values, dtype=bool) if most is None else values <= most


def _over(values: Array, most: float | None) -> Array:
    return numpy.zeros_like(values) if most is None else values / most


def _best(tpot: Array, per_gpu: Array, good: Truths) -> Sequence[tuple[int, int]]:
    """The places that no other of the array beats in both: tokens/s of a user, and tokens/s per GPU."""
    rows, columns = numpy.nonzero(good)
    order = numpy.lexsort((-per_gpu[rows, columns], tpot[rows, columns]))
    found, most = [], 0.0
    for place in order:
        row, column = rows[place], columns[place]
        if per_gpu[row, column] > most:
            most = per_gpu[row, column]
            found.append((int(row), int(column)))
    return found
