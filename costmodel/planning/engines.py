"""Engines that share device, formats and drafts, side by side in arrays: their memory and their times.

Their kernels come from the parts that their layouts have in common (`spread`): each different part is built once for
all devices, priced once for each, and the times of a layout are the sum of its parts' rows.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel
from costmodel.parallel.exchanges import domain
from costmodel.parallel.placement import Placed, Stage, in_stages
from costmodel.planning.built import Built, ByKind
from costmodel.planning.curves import (
    Curves,
    Hops,
    Timed,
    Whole,
    engine_curves,
    last_passing_tokens,
    passing_tokens,
    whole,
)
from costmodel.planning.deployment import Settings, stage_cache
from costmodel.planning.engine_model import Array, EngineModel, Places, formats_of
from costmodel.planning.grid import chunk_step, decode_step
from costmodel.planning.kernel_kinds import KernelSource
from costmodel.planning.part_times import PartTimes, joined, part_times
from costmodel.planning.question import Loaded
from costmodel.planning.room import Held, Room, Written, largest_results, mean_bytes, room, written_bytes
from costmodel.planning.side_by_side import Groups, Indices
from costmodel.planning.slowest_stage import stage_shares, stretch
from costmodel.planning.space import Task, Tasks
from costmodel.planning.spread import Part
from costmodel.step import Step


class Times(NamedTuple):
    """Times of engines: of their different splits, and of each engine the place among these."""

    whole: Whole
    split: Indices


class Engines:
    """The engines of tasks: of those by whose layout the model divides.

    asked: their places among all.
    """

    def __init__(self, loaded: Loaded, tasks: Tasks) -> None:
        self.loaded, self.question = loaded, loaded.question
        self.key = self.hw, self.weights, self.kv, self.draft_tokens = tasks[:4]
        self.spread = loaded.spread(tasks.layouts, self.draft_tokens > 0)
        self.asked = self.spread.asked
        self.hardware = loaded.devices[self.hw]
        self.precision = loaded.precision(*self.key[:3])
        self.formats = formats_of(self.precision)
        self.grid = loaded.grid(self.hw, self.draft_tokens)

    @cached_property
    def tasks(self) -> list[Task]:
        """Those that have engines."""
        return [Task(*self.key, layout) for layout in self.spread.layouts]

    def model(self, places: Places) -> EngineModel:
        """The engine of a layout, or of several side by side."""
        return self.loaded.engine_of(self.key, places)

    def room(self, settings: Settings) -> Room:
        """How many sequences fit in memory."""
        capacity = self.hardware.memory.hbm.capacity
        return room(self.spread.degrees, capacity, self._held(settings), self.results(), settings)

    def _held(self, settings: Settings) -> Held:
        work, pages = self.question.work, (settings.page_tokens, settings.reserve_output)

        def weights(placed: Placed, stage: Stage) -> Quantity:
            return stage.part.weight_bytes(self.precision)

        def caches(placed: Placed, stage: Stage) -> Quantity:
            return mean_bytes(stage_cache(placed, stage, self.precision), work, settings)

        return Held(
            self._once(("weights", *self.formats[:-2]), lambda: self._of_stages(weights, "decode", -numpy.inf)),
            self._once(
                ("caches", *self.formats[-2:], self.formats[1], *pages), lambda: self._of_stages(caches, "decode", 1.0)
            ),
        )

    def send_s(self) -> Array:
        """Seconds in which the fullest device sends its part of a prompt's cache."""
        bandwidth = self.question.link_bandwidth or self.hardware.links.scale_out.bandwidth
        if not bandwidth:
            return numpy.full(len(self.asked), numpy.inf)
        tokens = round(self.question.work.input)

        def cache(placed: Placed, stage: Stage) -> Quantity:
            return stage_cache(placed, stage, self.precision).bytes(tokens)

        key = ("sent cache", *self.formats[-2:])
        size: Array = self._once(key, lambda: self._of_stages(cache, "prefill", 0.0).max(axis=1))
        return size / bandwidth

    def _of_stages(self, compute: Callable[[Placed, Stage], Quantity], phase: str, none: float) -> Array:
        """What a function finds for each different stage (columns) of every engine, and `none` beyond the last."""
        spread, stages = self.spread, self.spread.stages()
        found = numpy.zeros((len(spread.placed), len(stages.different)))

        def of_group(beside: Places, splits: Indices) -> Array:
            placed = in_stages(getattr(beside, phase), stages.different)
            return numpy.stack([_column(compute(placed, stage), len(splits)) for stage in placed.stages], axis=1)

        for splits, of_stages in spread.splits().each(of_group):
            found[splits] = of_stages
        return numpy.where(stages.place < 0, none, found[spread.one[:, None], stages.place])

    def results(self) -> Array:
        """Bytes of the largest results of a chunk, by engine and budget."""
        return self._once(("results", domain(self.hardware), *self.formats), self._results)

    def _results(self) -> Array:
        parts, found = self.spread.parts(self.hardware), dict[str, Written]()
        for part in parts:
            if part.what == "computed":
                found |= self._written(part, self._built(part), self.grid.prompts.different, self.grid.largest)
        order = [found[name] for name in dict.fromkeys(self.spread.model.groups)]
        if parts[-1].what == "sent":
            # What devices send of all groups, one after another, which the last part tells apart the most.
            step = chunk_step(self.question.budgets, self.question.work.longest)

            def sent(beside: Places, places: Indices) -> KernelSource:
                def run(step: Step) -> list[Kernel]:
                    return [kernel._replace(group="") for kernel in parts[-1].kernels(self.model(beside), step, None)]

                return run

            order += self._written(parts[-1], sent, step, numpy.arange(len(self.question.budgets))).values()
        return largest_results(order)

    def _written(
        self, part: Part, kernels: Callable[[Places, Indices], KernelSource], step: Step, largest: Indices
    ) -> dict[str, Written]:
        """What the kernels of a part write, of each group."""

        def compute(beside: Places, places: Indices) -> dict[str, Array]:
            return written_bytes(kernels(beside, places)(step), len(places), largest)

        found = _padded(list(part.beside.each(compute)), len(part.beside.members))
        return {name: Written(part.row, values) for name, values in found.items()}

    def times(self, chosen: Indices) -> Times:
        """The times of some engines."""
        parts = self.spread.parts(self.hardware)
        sizes = [len(part.beside.members) for part in parts]
        rows, split = numpy.unique(
            numpy.ravel_multi_index([part.row[chosen] for part in parts], sizes), return_inverse=True
        )
        model, at = self.model(self.spread.placed[0]), self.grid
        found = [self._times(part).of(row) for part, row in zip(parts, numpy.unravel_index(rows, sizes), strict=True)]
        drafting: Array | float = 0.0
        if self.draft_tokens:
            _, first = numpy.unique(split, return_index=True)
            drafting = self._draft_seconds(chosen[first])
        return Times(whole(model, at, found, drafting), split)

    def _times(self, part: Part) -> PartTimes:
        """The times of all rows of a part."""

        def kernels(beside: Places, places: Indices) -> ByKind:
            return built(beside, places).by_kind(at)

        def compute(beside: Places, places: Indices) -> PartTimes:
            return part_times(kernels(beside, places), at, prices, len(places))

        def of_all() -> PartTimes:
            prices.learn(kernel for _, run in part.beside.each(kernels) for kernel in run.all)
            return joined(list(part.beside.each(compute)))

        at, prices, built = self.grid, self.loaded.prices(self.hw), self._built(part)
        key = ("times", part.what, part.groups, *self._formats(part), self.hw, self.draft_tokens)
        return self._once(key, of_all)

    def _built(self, part: Part) -> "Callable[[Places, Indices], Built]":
        """The kernels of a part, of some of its layouts side by side: built once for all devices alike."""

        def built(beside: Places, places: Indices) -> Built:
            key = ("built", part.what, part.groups, self._reach(part), places.tobytes(), *self._formats(part))
            return self._once(key, lambda: Built(partial(part.kernels, self.model(beside), only=part.groups)))

        return built

    def _reach(self, part: Part) -> Hashable:
        """What of the device a part's kernels depend on: how far its fast links reach, and how many processors it has
        where exchanges hold some."""
        if part.what == "computed":
            return None
        units = None if self.question.exchange_units is None else self.hardware.compute.units
        return domain(self.hardware), units

    def _formats(self, part: Part) -> tuple[Any, ...]:
        """The number formats that a part depends on."""
        return {"caches": self.formats, "weights": self.formats[:-2], "hidden": self.formats[1:2]}[part.reads]

    def _draft_seconds(self, engines: Indices) -> Array:
        """Seconds in which n sequences draft their tokens, one after another."""
        at, prices, work = self.grid, self.loaded.prices(self.hw), self.question.work
        step = decode_step(at.n, 1.0, max(work.context - (self.draft_tokens + 1), 0.0))
        found = numpy.zeros((len(engines), len(at.n)))

        def compute(beside: Places, places: Indices) -> Array:
            return numpy.asarray(prices.seconds(self.model(beside).draft_kernels(step)))

        for places, seconds in self.spread.drafting(self.hardware, engines).each(compute):
            found[places] = self.draft_tokens * seconds
        return found

    def stretches(self, chosen: Indices, times: Times) -> Array:
        """How much longer the slowest stage of each of some pipelines takes than the mean one."""
        pp, spread = self.spread.degrees.pp[chosen], self.spread
        found = numpy.ones(len(chosen))
        for stages in numpy.unique(pp[pp > 1]).tolist():
            shares = spread.once(("shares", stages), partial(stage_shares, spread.model, spread.cuts[stages]))
            rows = pp == stages
            found[rows] = stretch(shares, {name: of[times.split[rows]] for name, of in times.whole.samples.items()})
        return found

    def timed(self, chosen: Indices, times: Times, most: Array) -> Timed:
        """What the times of some engines are made of, up to the most sequences of each."""
        pp, stretches = self.spread.degrees.pp[chosen].astype(numpy.float64), self.stretches(chosen, times)
        return Timed(times.whole, times.split, pp, stretches, most, self._hops(chosen, times.whole, pp, most))

    def curves(self, chosen: Indices, times: Times, most: Array) -> Curves:
        """The times of some engines with their stages and their host, up to the most sequences of each."""
        return engine_curves(self.timed(chosen, times, most), self.question.engines[self.hw].mixed)

    def _hops(self, chosen: Indices, at: Whole, pp: Array, most: Array) -> Hops:
        row, different = self.spread.hops(self.hardware)
        many, passing, ways = self.draft_tokens + 1, passing_tokens(at, self.question.work), len(different.members)
        of_n, of_chunks = numpy.zeros((ways, len(at.n))), numpy.zeros((ways, *passing.shape))
        decoded, passed = numpy.zeros(len(most)), numpy.zeros((len(most), len(passing)))
        staged = numpy.flatnonzero(pp > 1.0)
        if len(staged):
            # At the batch sizes of all, and at the largest of each.
            tokens = numpy.concatenate([numpy.maximum(at.n * many, 1.0), passing.ravel()])
            key = ("hops", self.hw, self.precision.hidden, self.draft_tokens)
            found = self._once(key, lambda: self._hop_s(different, tokens))
            of_n, of_chunks = found[:, : len(at.n)], found[:, len(at.n) :].reshape(of_chunks.shape)
            last = most[staged]
            chunk = last_passing_tokens(at, self.question.work, last)
            ends = numpy.concatenate([numpy.maximum(last * many, 1.0)[:, None], chunk], axis=1)
            found = self._hop_s(different, ends, row[chosen[staged]])
            decoded[staged], passed[staged] = found[:, 0], found[:, 1:]
        return Hops(row[chosen], of_n, of_chunks, decoded, passed)

    def _hop_s(self, different: Groups, tokens: Array, rows: Indices | None = None) -> Array:
        """Seconds in which so many tokens of each rank go from one stage to the next, by row and number of tokens: of
        all different ways the same numbers, or of some of them, again and again, numbers for each."""
        found = numpy.zeros((len(different.members), len(tokens)) if rows is None else tokens.shape)

        def compute(beside: Places, places: Indices) -> Array:
            return self.model(beside).hop_s(tokens if rows is None else tokens[places])

        for places, seconds in different.each(compute, rows):
            found[places] = seconds
        return found

    def _once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        return self.spread.once(key, compute)


def _column(values: Quantity, engines: int) -> Array:
    """One number for each engine, from a number or a column."""
    return numpy.broadcast_to(numpy.asarray(values, dtype=numpy.float64), (engines, 1))[:, 0]


def _padded(parts: Sequence[tuple[Indices, dict[str, Array]]], rows: int) -> dict[str, Array]:
    """Bytes by row, kernel and budget, from those of groups of rows; with fewer kernels, 0 follows the last."""
    found: dict[str, Array] = {}
    for name in dict.fromkeys(name for _, of_groups in parts for name in of_groups):
        most = max(of_groups[name].shape[1] for _, of_groups in parts if name in of_groups)
        budgets = next(of_groups[name].shape[2] for _, of_groups in parts if name in of_groups)
        found[name] = numpy.zeros((rows, most, budgets))
        for places, of_groups in parts:
            if name in of_groups:
                found[name][places, : of_groups[name].shape[1]] = of_groups[name]
    return found
