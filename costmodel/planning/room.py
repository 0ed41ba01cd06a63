"""How many sequences an engine of the search has memory for, at every chunk budget."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy

from costmodel.parallel.memory import VLLM
from costmodel.planning.cache import SequenceCache
from costmodel.planning.curves import Array, EngineModel, decode_step
from costmodel.planning.deployment import Settings, stage_cache
from costmodel.planning.workload import Workload


def largest_results(model: EngineModel, budgets: Sequence[int], longest: int) -> Array:
    """Bytes of the results of two kernels in a row, where they are largest in a chunk of each budget."""
    tokens = numpy.minimum(numpy.array(budgets, dtype=numpy.float64), longest)
    run = model.kernels(decode_step(1.0, tokens, 0.0)._replace(phase="prefill"))
    written = [kernel.executed.written for kernel in run if not (isinstance(kernel.count, int) and kernel.count == 0)]
    most = numpy.zeros(len(budgets))
    for one, other in pairwise(written):
        most = numpy.maximum(most, one + other)
    return most


class Room(NamedTuple):
    """Sequences that an engine can hold, by chunk budget, and bytes: of a mean sequence on the fullest device, and what
    is left there for caches (below 0 where weights and buffers alone do not fit)."""

    sequences: Array
    each: float
    free: Array


def room(model: EngineModel, work: Workload, results: Array, settings: Settings) -> Room:
    """How many sequences fit in memory. results: bytes of a chunk's largest results, by budget."""
    held = numpy.full(len(results), numpy.inf)
    found = Room(held, 0.0, held)
    for cache, left in _stages(model, results, settings):
        size = mean_bytes(cache, work, settings)
        # A pipeline keeps pp batches on the way, each with its part of the stage's caches.
        free = left / model.layout.pp
        fits = numpy.floor(free / size) if size else numpy.where(free > 0, numpy.inf, 0.0)
        if (fits < found.sequences).any():
            found = Room(numpy.maximum(numpy.minimum(fits, found.sequences), 0.0), size, free)
    return found


def mean_bytes(cache: SequenceCache, work: Workload, settings: Settings) -> float:
    """Bytes of a sequence on a device, on average over the time in which it decodes."""
    # Engines that reserve room for the whole answer hold it from the start.
    length = work.input + work.output if settings.reserve_output else work.context
    pages = numpy.ceil(length / settings.page_tokens) * settings.page_tokens
    kept = cache.reserved(round(work.input + work.output)) + work.snapshots * cache.state_bytes
    return float(cache.token_bytes * pages + kept)


def _stages(model: EngineModel, results: Array, settings: Settings) -> Iterator[tuple[SequenceCache, Array]]:
    """For each different stage: what a sequence keeps on one of its devices, and the bytes that are left for caches."""
    served, capacity = model.served, model.served.hardware.memory.hbm.capacity
    buffers = VLLM.graphs + VLLM.workspace + (VLLM.communication if model.layout.gpus > 1 else 0.0)
    for stage in model.decode.stages:
        weights = float(stage.part.weight_bytes(served.precision))
        held = weights + results + buffers
        usable = settings.utilisation * capacity
        left = {
            "all": usable - held,
            "static": numpy.minimum(usable - weights, capacity - held),
            "free": settings.utilisation * (capacity - held),
        }[settings.of_memory]
        yield stage_cache(model.decode, stage, served.precision), left
