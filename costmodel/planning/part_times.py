"""Seconds of a part of a model's kernels over the grid of a search.

A layout is a sum of parts, and each depends on few of its degrees: mixers on tp and cp, routed experts on ep too,
nothing on pp and dp. So a search prices every part once for all layouts that divide it alike, and every kernel once for
all parts in which the same work turns up.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.kernels.base import Kernel
from costmodel.overlap import InParts, split
from costmodel.planning.built import ByKind
from costmodel.planning.engine_model import Array
from costmodel.planning.grid import Grid, Steps
from costmodel.planning.kernel_prices import Prices
from costmodel.planning.side_by_side import Indices


class PartTimes(NamedTuple):
    """Seconds of the kernels of a part of a model over a grid, of each of some layouts (the first axis); what hides
    shows where all parts are together.

    shared: token-wise kernels at the tokens, and row-wise ones at the sampled positions, of three iterations one after
    another: n sequences decode, n − 1 do, and n − 1 beside a chunk. own, prompts: other kernels of n decoding sequences
    and of chunks, of these for one budget after another. first, later: at the datasheet's peaks, of one decoding
    sequence and of its prompt's chunk by budget. samples: all kernels of each group where `SAMPLE` sequences decode.
    products: those with quantised activations in an iteration.
    """

    shared: InParts
    own: InParts
    prompts: InParts
    first: Array
    later: Array
    samples: Mapping[str, Array]
    products: Array

    def of(self, rows: Indices) -> "PartTimes":
        """Those of some layouts."""
        shared, own, prompts = (each(parts, lambda part: part[rows]) for parts in (self.shared, self.own, self.prompts))
        return PartTimes(
            shared,
            own,
            prompts,
            self.first[rows],
            self.later[rows],
            {name: values[rows] for name, values in self.samples.items()},
            self.products[rows],
        )

    def plus(self, other: "PartTimes") -> "PartTimes":
        """Both together."""
        samples = dict(self.samples)
        for name, values in other.samples.items():
            samples[name] = samples[name] + values if name in samples else values
        return PartTimes(
            self.shared.plus(other.shared),
            self.own.plus(other.own),
            self.prompts.plus(other.prompts),
            self.first + other.first,
            self.later + other.later,
            samples,
            self.products + other.products,
        )


def joined(parts: Sequence[tuple[Indices, PartTimes]]) -> PartTimes:
    """Those of all layouts, from those of groups of them, whose places are told."""
    order = numpy.argsort(numpy.concatenate([places for places, _ in parts]))
    found = [times for _, times in parts]

    def together(values: Sequence[Any]) -> Any:
        return numpy.concatenate(values)[order] if isinstance(values[0], numpy.ndarray) else values[0]

    shared, own, prompts = (
        InParts(*map(together, zip(*(times[place] for times in found), strict=True))) for place in range(3)
    )
    groups = dict.fromkeys(name for times in found for name in times.samples)
    samples = {
        name: together([times.samples.get(name, numpy.zeros(len(times.first))) for times in found]) for name in groups
    }
    first, later, products = (together([times[place] for times in found]) for place in (3, 4, 6))
    return PartTimes(shared, own, prompts, first, later, samples, products)


def part_times(part: ByKind, at: Grid, prices: Prices, layouts: int) -> PartTimes:
    """The times of a part, of so many layouts side by side."""
    C, N = at.together.shape
    size = len(at.tokens.place)
    samples: dict[str, Array] = {}
    shared, peak = nothing(layouts, size, hides=prices.hides), numpy.zeros((layouts, size))
    for run, steps in ((part.token, at.tokens), (part.row, at.rows)):
        if run:
            more, further = _seconds(run, steps, prices, layouts, samples)
            shared, peak = shared.plus(more), peak + further
    own, prompts = nothing(layouts, N, hides=prices.hides), nothing(layouts, N * C, hides=prices.hides)
    # One sequence decodes at first; one prompt alone is, of each budget, the first of those beside others.
    first, later = peak[:, 0], peak[:, 2 * N : -1 : N]
    if part.decoding or part.prompts:
        decoding, of_decoding = _seconds(part.decoding, at.decoding, prices, layouts, samples)
        prompts, of_prompts = _seconds(part.prompts, at.prompts, prices, layouts, {})
        own, first, later = (
            each(decoding, lambda part: part[:, :-1]),
            first + of_decoding[:, 0],
            later + of_prompts[:, ::N],
        )
    products = numpy.full(layouts, part.products)
    return PartTimes(each(shared, lambda part: part[:, :-1]), own, prompts, first, later, samples, products)


def _seconds(
    run: Sequence[Kernel], at: Steps, prices: Prices, layouts: int, samples: dict[str, Array]
) -> tuple[InParts, Array]:
    """Expected seconds of kernels, by layout and step, and those at the datasheet's peaks. samples: gets those of the
    last step of each group."""
    shape = layouts, at.different.tokens.size
    (exposed, short, held), peak = nothing(*shape, hides=prices.hides), numpy.zeros(shape)
    for kernel in run:
        one = prices.of(kernel)
        parts = split(kernel, one.expected * kernel.count)
        exposed += parts.exposed
        if prices.hides:
            short += parts.short
            held += parts.held
        peak += one.peak * kernel.exposed
        if kernel.group not in samples:
            samples[kernel.group] = numpy.zeros(layouts)
        samples[kernel.group] += numpy.broadcast_to(parts.exposed, shape)[:, at.place[-1]]
    return each(InParts(exposed, short, held), lambda part: part[:, at.place]), peak[:, at.place]


def nothing(*shape: int, hides: bool) -> InParts:
    """No seconds at all; where nothing is meant to hide, what only that needs is one number."""
    return InParts(numpy.zeros(shape), *(numpy.zeros(shape) if hides else 0.0 for _ in range(2)))


def each(parts: InParts, change: Callable[[Array], Array]) -> InParts:
    """The same done to each of the three that is no mere number."""
    return InParts(*(change(part) if isinstance(part, numpy.ndarray) else part for part in parts))
