"""Plans of engines that prefill and decode: each layout with 1, 2, … replicas, among which the load is dealt out."""

from collections.abc import Sequence

import numpy

from costmodel.planning.curves import Truths
from costmodel.planning.engine_model import Array
from costmodel.planning.operating import Operating, waits
from costmodel.planning.points import Candidate, exceeded, first_of, plan_load
from costmodel.planning.question import Question
from costmodel.planning.side_by_side import Indices
from costmodel.planning.stacks import Stack, lookup

KEPT = 3
"""Plans of a batch that are kept, the best."""
FEW = 1024
"""So many plans are looked at first, where it is known which are cheap."""


class Fleet:
    """Engines at work, and what they have under way where they answer a rate."""

    def __init__(
        self, asked: Question, stack: Stack, at: Operating, distinct: Truths, per_gpu: Array, held: Truths
    ) -> None:
        self.asked, self.stack, self.at = asked, stack, at
        fits = at.n[:, None] <= stack.places[..., None]
        used = numpy.isfinite(at.rate) & fits & distinct[:, None]
        # What is used comes first: places end at a batch size, and beyond one that fills the budget nothing is left.
        self.used = numpy.logical_and.accumulate(used, axis=2)
        self.usable: Truths = numpy.any(self.used, axis=2)
        self.n = numpy.broadcast_to(at.n[:, None], at.rate.shape)
        self.rates = numpy.maximum.accumulate(numpy.where(self.used, at.rate, -numpy.inf), axis=2)
        self.full = numpy.where(held, per_gpu, 0.0).max(axis=2)

    def plans(self, most: float) -> tuple[Candidate, ...]:
        """The best plans that hold the service level. most: GPUs beyond which no plan is looked at."""
        asked, stack, work = self.asked, self.stack, self.asked.work
        engine, count = stack.replicated(asked.most)
        gpus = count * stack.gpus[engine]
        near = numpy.flatnonzero((gpus >= min(asked.gpus)) & (gpus <= most))
        if not len(near):
            return ()
        engine, count, gpus = engine[near], count[near], gpus[near]
        many = count * stack.engines[engine]
        # What no engine could sustain is not looked at.
        able = self.usable[engine]
        if work.rate is not None:
            able &= (work.rate / many)[:, None] < asked.usable * self.rates[..., -1][engine]
        else:
            assert work.clients is not None
            able &= (work.clients / many)[:, None] <= numpy.where(self.used, self.n, 0.0).max(axis=2)[engine]
        row, column = numpy.nonzero(able)
        engine, count = engine[row], count[row]
        if wants_smallest(asked):
            gpus, few = gpus[row], FEW
            while few < len(gpus):
                small = numpy.flatnonzero(gpus <= numpy.partition(gpus, few)[few])
                plans = self._best(engine[small], count[small], column[small])
                if len(plans) == KEPT:
                    return plans
                few *= 8
        return self._best(engine, count, column)

    def _best(self, engine: Indices, count: Array, column: Indices) -> tuple[Candidate, ...]:
        """The best that hold the service level of some engines, each with so many replicas and at one budget."""
        asked, stack, at = self.asked, self.stack, self.at
        work, level = asked.work, asked.level
        many = count * stack.engines[engine]
        if work.rate is not None:
            each = work.rate / many
            least, first = self.rates[engine, column, 0], at.n[engine, 0]
            among = lookup(self.rates, self.used, engine, column, each).at(self.n)
            sequences = numpy.where(each <= least, each / least * first, among)
        else:
            assert work.clients is not None
            sequences = work.clients / many
            each = lookup(self.n, self.used, engine, column, sequences).at(self.rates)
        there = lookup(self.n, self.used, engine, column, sequences)
        ttft = there.at(at.base_s) + waits(work, there.at(at.line_s), there.at(at.place_s), many)
        tpot = there.at(at.tpot_s)
        e2e = ttft + tpot * (work.output - 1.0)
        gpus = count * stack.gpus[engine]
        within = numpy.flatnonzero(holds(ttft, level.ttft_s) & holds(tpot, level.tpot_s))
        if not len(within):
            return ()
        usd = gpus[within] * asked.prices[stack.tasks.hw]
        rate, full = (each * many)[within], self.full[engine[within], column[within]]
        best = {"cost": usd / rate, "gpus": gpus[within], "latency": e2e[within], "throughput": -full}[asked.optimize]
        chosen = first_of(best, usd, e2e[within], KEPT)
        return tuple(
            self._candidate(
                int(engine[place]),
                int(column[place]),
                int(count[place]),
                [float(values[place]) for values in (sequences, ttft, tpot, e2e, each * many)],
            )
            for place in within[chosen]
        )

    def closest(self) -> Candidate | None:
        """Where no plan holds the service level: the one that comes closest with all GPUs."""
        found = [near for place in range(len(self.stack.gpus)) if (near := self._closest(place)) is not None]
        return min(found, key=lambda plan: exceeded(self.asked, plan)[0], default=None)

    def _closest(self, place: int) -> Candidate | None:
        """Of one engine: the batch at which the worst of the limits is exceeded the least, and no queue grows."""
        asked, at = self.asked, self.at
        work, level = asked.work, asked.level
        count = int(asked.most // self.stack.gpus[place])
        engines = float(self.stack.engines[place]) * count
        nearest: tuple[float, Candidate] | None = None
        for column in numpy.flatnonzero(self.usable[place]) if count else ():
            used = self.used[place, column]
            base, line, wait, later = (
                values[place, column, used] for values in (at.base_s, at.line_s, at.place_s, at.tpot_s)
            )
            first = base + waits(work, line, wait, engines)
            whole_s = first + later * (work.output - 1.0)
            kept, rates = numpy.isfinite(first), self.rates[place, column, used]
            most = rates[kept].max() if kept.any() else rates[-1]
            answered = numpy.minimum(rates, asked.usable * most) * engines
            wanted = plan_load(work, whole_s) / answered
            over = numpy.maximum.reduce([wanted, _over(first, level.ttft_s), _over(later, level.tpot_s)])
            over = numpy.where(kept, over, numpy.inf)
            row = int(numpy.argmin(over))
            if nearest is None or over[row] < nearest[0]:
                point = (self.n[place, column, used], first, later, whole_s, answered)
                values = [float(each[row]) for each in point]
                nearest = float(over[row]), self._candidate(place, int(column), count, values)
        return None if nearest is None else nearest[1]

    def _candidate(self, place: int, column: int, count: int, values: Sequence[float]) -> Candidate:
        """A plan; values: sequences, TTFT, TPOT, seconds of a request, and requests per second."""
        task, gpus = self.stack.tasks.one(place), count * int(self.stack.gpus[place])
        n, ttft, tpot, e2e, rate = values
        return Candidate(
            task.hw, task.weights, task.kv, task.draft_tokens, str(task.layout), self.asked.budgets[column], n, count,
            gpus, ttft, tpot, e2e, rate, float(self.full[place, column]), gpus * self.asked.prices[task.hw],
        )  # fmt: skip


def wants_smallest(asked: Question) -> bool:
    """Whether the smallest plan that holds the service level is the best: all answer the same load."""
    return asked.work.rate is not None and asked.optimize in ("cost", "gpus")


def holds(values: Array, most: float | None, within: float = 1.0) -> Truths:
    """Which values keep a limit, or miss it by no more than a factor."""
    return numpy.ones_like(values, dtype=bool) if most is None else values <= most * within


def _over(values: Array, most: float | None) -> Array:
    return numpy.zeros_like(values) if most is None else values / most
