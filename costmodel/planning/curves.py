"""Engines over all batch sizes and chunk budgets at once: the iteration times that a steady state is made of.

The kernels are those of the replay's tables (`step_times`): token-wise ones run once on all tokens of an iteration,
row-wise ones on every position that is sampled, attention and scans of decoding sequences and of prompts add up. Here
each is evaluated once, on arrays, for the one workload that is asked about. Engines that share device, formats and
drafts lie side by side, in arrays whose first axis they are.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.architecture import Architecture
from costmodel.parallel.pipeline import Cut
from costmodel.planning.deployment import host_of
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.part_times import Grid, PartTimes, Prices, decode_step, each
from costmodel.planning.workload import Workload

Truths = NDArray[numpy.bool_]


class Curves(NamedTuple):
    """Seconds of engines; the last axes are batch sizes n and chunk budgets, the first (if there is one more) engines.

    decode: of an iteration in which n sequences decode. alone: the same without one of them. added: what all chunks of
    a prompt add to iterations of the n − 1 others (the first row, n = 1: a prompt on an engine that does nothing else;
    infinite where the decoding sequences fill the budget). chunks: iterations that a prompt takes. The largest n of an
    engine is repeated where others have more.
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

    def of(self, engine: int) -> "Curves":
        """Those of one engine alone."""
        rows = self.distinct[engine]
        return Curves(*(values[engine][rows] for values in self))


class Whole(NamedTuple):
    """All layers on one device of each stage: what engines of the same split share, however many stages they have.

    n: batch sizes. decode: seconds of an iteration. added, chunks, together: as in `Curves`, and how many short prompts
    share an iteration. peak: seconds at the datasheet's peaks, per token of one sequence and of a prompt alone.
    host: what the host adds to an iteration and to each sequence in it. samples: seconds of each group where `SAMPLE`
    sequences decode.
    """

    n: Array
    decode: Array
    added: Array
    chunks: Array
    together: Array
    peak: tuple[float, float]
    host: Mapping[str, float]
    samples: Mapping[str, float]


def whole(model: EngineModel, at: Grid, parts: Sequence[PartTimes], drafting: Array | float) -> Whole:
    """All parts of a model together. drafting: seconds in which n sequences draft."""
    times = reduce(PartTimes.plus, parts)
    N, C = at.together.shape
    others = each(times.own, lambda part: numpy.interp(at.n - 1.0, at.n, part, left=0.0))
    full = each(times.shared, lambda part: part[:N]).plus(times.own).total()
    fewer = each(times.shared, lambda part: part[N : 2 * N]).plus(others).total()
    mixed = each(times.shared, lambda part: part[2 * N :].reshape(N, C)).plus(times.prompts)
    beside = mixed.plus(each(others, lambda part: part[:, None])).total()
    added = beside - numpy.where(at.n > 1.0, fewer, 0.0)[:, None]
    added = numpy.where(at.left >= 1.0, added, numpy.inf)
    peak = times.first / model.pace, float((times.later * at.chunks[0] / at.together[0]).min())
    host = host_of(model.served.host, model.served.architecture, times.products)
    return Whole(at.n, full + drafting, added, at.chunks, at.together, peak, host, times.samples)


def draft_seconds(model: EngineModel, at: Grid, work: Workload, prices: Prices) -> Array | float:
    """Seconds in which n sequences draft their tokens, one after another."""
    if not model.draft_tokens:
        return 0.0
    step = decode_step(at.n, 1.0, max(work.context - (model.draft_tokens + 1), 0.0))
    return model.draft_tokens * (numpy.zeros_like(at.n) + prices.seconds(model.draft_kernels(step)))


def between(low: Array, high: Array, share: Array) -> Array:
    """The values at a share of the way from low to high, which may be infinite."""
    with numpy.errstate(invalid="ignore"):
        return numpy.where((share == 0.0) | (low == high), low, low + share * (high - low))


def engine_curves(
    engines: Sequence[EngineModel],
    wholes: Sequence[Whole],
    stretches: Sequence[float],
    work: Workload,
    most: Array,
    mixed: bool = True,
) -> Curves:
    """The times of engines with their stages and their host, up to the most sequences that each can hold.

    stretches: see `stretch`. mixed: prompts and decoding sequences share iterations.
    """
    first = wholes[0]
    n = numpy.minimum(first.n, most[:, None])
    pp = numpy.array([float(engine.layout.pp) for engine in engines])
    decode = _up_to(first.n, numpy.stack([each.decode for each in wholes]), most)
    added = _up_to(first.n, numpy.stack([each.added for each in wholes]), most)
    chunks, together = (_up_to(first.n, values[None], most) for values in (first.chunks, first.together))
    lone = n > 1.0
    size = work.computed / chunks
    for members in _with_equal_hops(engines):
        model, further = engines[members[0]], pp[members, None] - 1.0
        tokens = n[members]
        hop = model.hop_s(numpy.maximum(tokens * (model.draft_tokens + 1), 1.0))
        passed = model.hop_s(tokens[:, :, None] + together[members] * size[members])
        decode[members] += further * hop
        added[members] += further[..., None] * (passed - numpy.where(lone[members], hop, 0.0)[:, :, None])
    longer = numpy.array(stretches)[:, None]
    host_s, sequence_s = (
        numpy.array([each.host[name] for each in wholes])[:, None] for name in ("host_s", "sequence_s")
    )
    decode = longer * decode + host_s + n * sequence_s
    gaps = numpy.maximum(n[:, 1:] - n[:, :-1], 1.0)
    fewer = between(decode[:, :-1], decode[:, 1:], (gaps - 1.0) / gaps)
    alone = numpy.concatenate([numpy.zeros((len(n), 1)), fewer], axis=1)
    step = longer[..., None] * added + together * sequence_s[..., None]
    step += numpy.where(lone, alone, host_s)[:, :, None]
    added = chunks * (step - alone[:, :, None]) / together
    if not mixed:
        # Prompts run alone, while the others wait.
        added = numpy.broadcast_to(added[:, :1], added.shape)
    return Curves(n, decode, alone, numpy.where(numpy.isnan(added), numpy.inf, added), chunks)


def _up_to(n: Array, values: Array, most: Array) -> Array:
    """The values at batch sizes n up to the most of each engine, and the value there for all beyond."""
    low = numpy.searchsorted(n, most, side="right") - 1
    high = numpy.minimum(low + 1, len(n) - 1)
    share = (most - n[low]) / numpy.maximum(n[high] - n[low], 1.0)
    engines = numpy.arange(len(most)) if len(values) > 1 else numpy.zeros(len(most), dtype=int)
    wide = (slice(None),) + (None,) * (values.ndim - 2)
    last = between(values[engines, low], values[engines, high], share[wide])
    inside = (n <= most[:, None])[(slice(None), *wide)]
    return numpy.where(inside, values, last[:, None])


def _with_equal_hops(engines: Sequence[EngineModel]) -> list[list[int]]:
    """Places of the engines with several stages, those together that send alike."""
    found: dict[Any, list[int]] = {}
    for place, engine in enumerate(engines):
        if engine.layout.pp > 1:
            found.setdefault(engine.hop_of(), []).append(place)
    return list(found.values())


class Shares(NamedTuple):
    """Of the different stages of a pipeline (rows), the parts of each group's kernels that they have, and how many
    stages are like each."""

    groups: tuple[str, ...]
    parts: Array
    times: Array


def stage_shares(model: Architecture, cuts: Sequence[Cut]) -> Shares:
    """The parts of the groups in the stages of a pipeline."""
    every = {name: count for counts in model.counts() for name, count in counts.items()}
    groups = ("embedding", *every, "head")
    parts = []
    for cut in cuts:
        part = model._replace(layers=cut.layers)
        here = {name: count for counts in part.counts() for name, count in counts.items()}
        blocks = [here.get(name, 0) / count for name, count in every.items()]
        parts.append([float(cut.embeds), *blocks, float(cut.predicts)])
    return Shares(groups, numpy.array(parts), numpy.array([float(cut.times) for cut in cuts]))


def stretch(shares: Shares, samples: Mapping[str, float]) -> float:
    """How much longer the slowest stage of a pipeline takes than the mean one: the pace of all.

    samples: seconds of each group.
    """
    seconds = shares.parts @ numpy.array([samples.get(name, 0.0) for name in shares.groups])
    return float(seconds.max() * shares.times.sum() / (shares.times @ seconds))
