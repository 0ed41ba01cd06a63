"""Engines over all batch sizes and chunk budgets at once: the iteration times that a steady state is made of.

The kernels are those of the replay's tables (`step_times`): token-wise ones run once on all tokens of an iteration,
row-wise ones on every position that is sampled, attention and scans of decoding sequences and of prompts add up. Here
each is evaluated once, on arrays, for the one workload that is asked about. Engines that share device, formats and
drafts lie side by side, in arrays whose first axis they are.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.planning.deployment import host_of
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.grid import Grid
from costmodel.planning.part_times import PartTimes, each
from costmodel.planning.side_by_side import Indices
from costmodel.planning.workload import Workload

Truths = NDArray[numpy.bool_]


class Curves(NamedTuple):
    """Seconds of engines; the last axes are chunk budgets and batch sizes n, the first (if there is one more) engines.

    decode: of an iteration in which n sequences decode. alone: the same without one of them. added: what all chunks of
    a prompt add to iterations of the n − 1 others (at n = 1: a prompt on an engine that does nothing else; infinite
    where the decoding sequences fill the budget). chunks: iterations that a prompt takes. Where others have more batch
    sizes than an engine, its largest n is repeated, and added and chunks mean nothing there. Where only prompts alone
    are asked for, added and chunks have one n.
    """

    n: Array
    decode: Array
    alone: Array
    added: Array
    chunks: Array

    @property
    def distinct(self) -> Truths:
        """Which n are no repetitions."""
        first = numpy.ones((*self.n.shape[:-1], 1), dtype=bool)
        return numpy.concatenate([first, self.n[..., 1:] > self.n[..., :-1]], axis=-1)

    def rows(self, engines: Indices) -> "Curves":
        """Those of some engines."""
        return Curves(*(values[engines] for values in self))

    def of(self, engine: int) -> "Curves":
        """Those of one engine alone."""
        sizes = self.distinct[engine]
        return Curves(*(values[engine][..., sizes] for values in self))


class Whole(NamedTuple):
    """All layers on one device of each stage, of different splits of them (the first axis): what engines of the same
    split share, however many stages they have.

    n: batch sizes. decode: seconds of an iteration. added: what a chunk, or short prompts that share one, add to it.
    chunks, together: iterations that a prompt takes, and how many share one. token_peak, prompt_peak: seconds at the
    datasheet's peaks, per token of one sequence and of a prompt alone. host_s, sequence_s: what the host adds to an
    iteration and to each sequence in it. samples: seconds of each group where `SAMPLE` sequences decode.
    """

    n: Array
    decode: Array
    added: Array
    chunks: Array
    together: Array
    token_peak: Array
    prompt_peak: Array
    host_s: Array
    sequence_s: float
    samples: Mapping[str, Array]

    def of(self, splits: Indices) -> "Whole":
        """Those of some splits."""
        return self._replace(
            decode=self.decode[splits],
            added=self.added[splits],
            token_peak=self.token_peak[splits],
            prompt_peak=self.prompt_peak[splits],
            host_s=self.host_s[splits],
            samples={name: values[splits] for name, values in self.samples.items()},
        )


def whole(model: EngineModel, at: Grid, parts: Sequence[PartTimes], drafting: Array | float) -> Whole:
    """All parts of splits together. drafting: seconds in which n sequences draft. model: of one of them."""
    times = reduce(PartTimes.plus, parts)
    C, N = at.together.shape
    full = each(times.shared, lambda part: part[:, :N]).plus(times.own).total()
    others = each(times.own, lambda part: _one_fewer(at.n, part))
    fewer = each(times.shared, lambda part: part[:, N : 2 * N]).plus(others).total()
    mixed = each(times.shared, lambda part: part[:, 2 * N :]).plus(times.prompts)
    beside = mixed.plus(each(others, lambda part: numpy.tile(part, C))).total().reshape(-1, C, N)
    added = beside - numpy.where(at.n > 1.0, fewer, 0.0)[:, None, :]
    added = numpy.where(at.left >= 1.0, added, numpy.inf)
    prompt_peak = (times.later * at.chunks[:, 0] / at.together[:, 0]).min(axis=1)
    host = host_of(model.served.host, model.served.architecture, times.products)
    return Whole(
        at.n,
        full + drafting,
        added,
        at.chunks,
        at.together,
        times.first / model.pace,
        prompt_peak,
        numpy.asarray(host["host_s"]),
        float(host["sequence_s"]),
        times.samples,
    )


def _one_fewer(n: Array, values: Array) -> Array:
    """The values at n − 1 of each row, between those at batch sizes n; 0 where none is left."""
    low = numpy.clip(numpy.searchsorted(n, n - 1.0, side="right") - 1, 0, max(len(n) - 2, 0))
    high = numpy.minimum(low + 1, len(n) - 1)
    slope = (values[:, high] - values[:, low]) / numpy.maximum(n[high] - n[low], 1.0)
    return numpy.where(n > 1.0, slope * (n - 1.0 - n[low]) + values[:, low], 0.0)


def between(low: Array, high: Array, share: Array) -> Array:
    """The values at a share of the way from low to high, which may be infinite."""
    with numpy.errstate(invalid="ignore"):
        return numpy.where((share == 0.0) | (low == high), low, low + share * (high - low))


class Hops(NamedTuple):
    """Seconds in which an iteration's tokens of each rank go from one stage to the next, of n sequences that decode and
    of n among which is a chunk.

    row: of each engine, the place among different ways. decoding, passing: of these, by budget and n. last_decoding,
    last_passing: of each engine with its most sequences.
    """

    row: Indices
    decoding: Array
    passing: Array
    last_decoding: Array
    last_passing: Array

    def of(self, some: Indices | slice) -> "Hops":
        """Those of some engines."""
        row, decoding, passing, *last = self
        return Hops(row[some], decoding, passing, *(values[some] for values in last))


class Timed(NamedTuple):
    """What the times of engines are made of: split: their places in those of whole layers; pp: stages; stretch: see
    `slowest_stage.stretch`; most: sequences that each can have under way; hops: seconds from stage to stage."""

    whole: Whole
    split: Indices
    pp: Array
    stretch: Array
    most: Array
    hops: Hops

    def of(self, some: Indices | slice) -> "Timed":
        """Some of them."""
        numbers = self.pp[some], self.stretch[some], self.most[some]
        return Timed(self.whole, self.split[some], *numbers, self.hops.of(some))


def passing_tokens(at: Whole, work: Workload) -> Array:
    """Tokens of an iteration of n sequences among which is a chunk, by budget and n."""
    return at.n + at.together * (work.computed / at.chunks)


def last_passing_tokens(at: Whole, work: Workload, most: Array) -> Array:
    """The same with the most sequences of each engine, by engine and budget."""
    chunks, together = (_at_most(at.n, values, most) for values in (at.chunks, at.together))
    return most[:, None] + together * (work.computed / chunks)


def _at_most(n: Array, values: Array, most: Array) -> Array:
    """The values at the most sequences of each engine, between those of each budget at batch sizes n."""
    low = numpy.searchsorted(n, most, side="right") - 1
    high = numpy.minimum(low + 1, len(n) - 1)
    share = (most - n[low]) / numpy.maximum(n[high] - n[low], 1.0)
    return between(values[:, low], values[:, high], share).T


def engine_curves(timed: Timed, mixed: bool, batches: bool = True) -> Curves:
    """The times of engines with their stages and their host, up to the most sequences of each.

    mixed: prompts and decoding sequences share iterations. batches: what prompts add is wanted at every n, not only on
    an engine that does nothing else.
    """
    at, split, hops = timed.whole, timed.split, timed.hops
    last = _most_among(at.n, timed.most)
    n = numpy.minimum(at.n, timed.most[:, None])
    further, longer = timed.pp[:, None] - 1.0, timed.stretch[:, None]
    host_s = at.host_s[split, None]
    hop = last.placed(hops.decoding[hops.row], hops.last_decoding[last.engines])
    decode = longer * (last.of(at.decode, split) + further * hop) + host_s + n * at.sequence_s
    decode = numpy.take_along_axis(decode, last.repeated(n), axis=1)
    gaps = numpy.maximum(n[:, 1:] - n[:, :-1], 1.0)
    fewer = between(decode[:, :-1], decode[:, 1:], (gaps - 1.0) / gaps)
    alone = numpy.concatenate([numpy.zeros((len(n), 1)), fewer], axis=1)
    sizes = slice(None) if batches else slice(1)
    last = last if batches else _most_among(at.n[:1], timed.most)
    # From stage to stage go those of a chunk instead of those of the others.
    passed = hops.passing - numpy.where(at.n > 1.0, hops.decoding, 0.0)[:, None]
    others = alone[:, None, sizes]
    added = _added(
        passed[:, :, sizes][hops.row],
        at.added[:, :, sizes][split],
        further[..., None],
        longer[..., None],
        at.together[:, sizes] * at.sequence_s,
        numpy.where(n[:, None, sizes] > 1.0, others, host_s[..., None]),
        others,
    )
    added *= at.chunks[:, sizes]
    added /= at.together[:, sizes]
    added = last.placed(added, _added_at_most(timed, last, alone))
    chunks = last.of(at.chunks[None, :, sizes], numpy.zeros_like(split))
    if not mixed:
        # Prompts run alone, while the others wait.
        added = numpy.broadcast_to(added[..., :1], added.shape)
    return Curves(n, decode, alone, added, chunks)


def _added_at_most(timed: Timed, last: "Most", alone: Array) -> Array:
    """What all chunks of a prompt add with the most sequences of each engine that holds fewer, by budget."""
    at, engines = timed.whole, last.engines
    split, lone = timed.split[engines], timed.most[engines, None] <= 1.0
    others, host_s = alone[engines, last.low + 1, None], at.host_s[split, None]
    chunks, together = (last.at(values[None], numpy.zeros_like(split)) for values in (at.chunks, at.together))
    added = _added(
        timed.hops.last_passing[engines] - numpy.where(lone, 0.0, timed.hops.last_decoding[engines, None]),
        last.at(at.added, split),
        timed.pp[engines, None] - 1.0,
        timed.stretch[engines, None],
        together * at.sequence_s,
        numpy.where(lone, host_s, others),
        others,
    )
    return added * chunks / together


def _added(
    passed: Array, chunk: Array, further: Array, longer: Array, sequences_s: Array, pays: Array, others: Array
) -> Array:
    """What a chunk adds to an iteration, written over `passed`, what it adds from stage to stage. others: seconds of an
    iteration of those that decode beside it; pays: the same, or the host's where a prompt is alone."""
    passed *= further
    passed += chunk
    passed *= longer
    passed += sequences_s
    passed += pays
    passed -= others
    return passed


class Most(NamedTuple):
    """Engines that hold fewer sequences than the last batch size: the place of the last one that is no more than these,
    and how far their most lies from it to the next. Where others have that next one, they have their most."""

    engines: Indices
    low: Indices
    share: Array

    def placed(self, values: Array, of_most: Array) -> Array:
        """Values by batch size (the last axis), with those at the most sequences in their place."""
        values[self.engines, ..., self.low + 1] = of_most
        return values

    def at(self, values: Array, rows: Indices) -> Array:
        """The values of rows, one for each of these engines, at their most sequences: between those at two n."""
        low, high = (values[rows, ..., place] for place in (self.low, self.low + 1))
        return between(low, high, self.share.reshape(-1, *(1,) * (values.ndim - 2)))

    def of(self, values: Array, rows: Indices) -> Array:
        """The values of each engine's row, with those at its most sequences in their place."""
        return self.placed(values[rows], self.at(values, rows[self.engines]))

    def repeated(self, n: Array) -> Indices:
        """Of each batch size the place where its value is: that of the most for all beyond."""
        places = numpy.tile(numpy.arange(n.shape[1]), (len(n), 1))
        places[self.engines] = numpy.minimum(places[self.engines], self.low[:, None] + 1)
        return places


def _most_among(n: Array, most: Array) -> Most:
    engines = numpy.flatnonzero(most < n[-1])
    low = numpy.searchsorted(n, most[engines], side="right") - 1
    return Most(engines, low, (most[engines] - n[low]) / (n[low + 1] - n[low]))
