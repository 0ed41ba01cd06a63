"""How many sequences an engine of the search has memory for, at every chunk budget."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel
from costmodel.parallel.memory import VLLM
from costmodel.planning.cache import SequenceCache
from costmodel.planning.deployment import Settings
from costmodel.planning.engine_model import Array
from costmodel.planning.kernel_kinds import at_steps
from costmodel.planning.side_by_side import Indices
from costmodel.planning.workload import Workload


class Written(NamedTuple):
    """Bytes that each kernel of a group writes, by row, kernel and budget; row: that of each engine."""

    row: Indices
    bytes: Array


def largest_results(run: Sequence[Written]) -> Array:
    """Bytes of the results of two kernels in a row, where they are largest, by engine and budget. run: of the groups of
    a chunk, one after another."""
    within = [(of[:, 1:] + of[:, :-1]).max(axis=1)[row] for row, of in run if of.shape[1] > 1]
    between = [of[row, -1] + later[further, 0] for (row, of), (further, later) in pairwise(run)]
    return numpy.maximum.reduce([*within, *between])


def written_bytes(run: Sequence[Kernel], engines: int, places: Indices) -> dict[str, Array]:
    """Bytes that each kernel of a chunk writes, by engine, kernel and budget, of each group. places: of the budgets'
    chunks among the steps of the kernels."""
    found: dict[str, list[Array]] = {}
    for kernel in run:
        if not (isinstance(kernel.count, int) and kernel.count == 0):
            written = at_steps(kernel.executed.written, places)
            found.setdefault(kernel.group, []).append(numpy.broadcast_to(written, (engines, len(places))))
    return {name: numpy.stack(of_group, axis=1) for name, of_group in found.items()}


class Held(NamedTuple):
    """Bytes on a device of each different stage (columns) of engines (rows): of weights, and of a mean sequence. Where
    an engine has fewer stages than others, the rest is never full."""

    weights: Array
    sequence: Array


class Room(NamedTuple):
    """What an engine has room for, or each of several (the first axis), by chunk budget: sequences; and bytes on the
    fullest device: of a mean sequence (each, whatever the budget), and of what is left for caches (free; below 0 where
    weights and buffers alone do not fit)."""

    sequences: Array
    each: Any
    free: Array

    def of(self, engine: int) -> "Room":
        """That of one engine."""
        return Room(*(values[engine] for values in self))


def room(layouts: Any, capacity: float, held: Held, results: Array, settings: Settings) -> Room:
    """How many sequences fit in memory. layouts: their degrees, as columns. capacity: bytes of a device. results: bytes
    of a chunk's largest results, by engine and budget."""
    weights, size = held.weights[..., None], held.sequence[..., None]
    sent = numpy.where(layouts.gpus > 1, VLLM.communication, 0.0)[:, None, None]
    taken = weights + results[:, None, :] + (VLLM.graphs + VLLM.workspace + sent)
    usable = settings.utilisation * capacity
    left = {
        "all": usable - taken,
        "static": numpy.minimum(usable - weights, capacity - taken),
        "free": settings.utilisation * (capacity - taken),
    }[settings.of_memory]
    # A pipeline keeps pp batches on the way, each with its part of the stage's caches.
    free = left / layouts.pp.astype(numpy.float64)[:, None, None]
    whole = numpy.floor(free / numpy.where(size > 0, size, 1.0))
    fits = numpy.where(size > 0, whole, numpy.where(free > 0, numpy.inf, 0.0))
    # The fullest stage is the first that is below all before it at some budget.
    engines, fullest = numpy.arange(len(fits)), numpy.full(len(fits), -1)
    least = numpy.full_like(fits[:, 0], numpy.inf)
    for stage in range(fits.shape[1]):
        below = numpy.any(fits[:, stage] < least, axis=1)
        fullest = numpy.where(below, stage, fullest)
        least = numpy.where(below[:, None], numpy.maximum(numpy.minimum(fits[:, stage], least), 0.0), least)
    bounded = fullest >= 0
    return Room(
        least,
        numpy.where(bounded, held.sequence[engines, fullest], 0.0),
        numpy.where(bounded[:, None], free[engines, fullest], numpy.inf),
    )


def mean_bytes(cache: SequenceCache, work: Workload, settings: Settings) -> Quantity:
    """Bytes of a sequence on a device, on average over the time in which it decodes."""
    # Engines that reserve room for the whole answer hold it from the start.
    length = work.input + work.output if settings.reserve_output else work.context
    pages = math.ceil(length / settings.page_tokens) * settings.page_tokens
    kept = cache.reserved(round(work.input + work.output)) + work.snapshots * cache.state_bytes
    return cache.token_bytes * pages + kept
