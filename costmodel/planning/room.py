"""How many sequences an engine of the search has memory for, at every chunk budget."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy

from costmodel.parallel.memory import VLLM
from costmodel.planning.cache import SequenceCache
from costmodel.planning.deployment import Settings, stage_cache
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.kernel_kinds import KernelSource
from costmodel.planning.part_times import decode_step
from costmodel.planning.workload import Workload
from costmodel.step import Step


def largest_results(written: Array) -> Array:
    """Bytes of the results of two kernels in a row, where they are largest. written: of kernels (rows) in chunks of
    each budget."""
    return (written[1:] + written[:-1]).max(axis=0)


def chunk_step(budgets: Sequence[int], longest: int) -> Step:
    """A chunk of each budget."""
    tokens = numpy.minimum(numpy.array(budgets, dtype=numpy.float64), longest)
    return decode_step(1.0, tokens, 0.0)._replace(phase="prefill")


def written_bytes(kernels: KernelSource, chunk: Step, budgets: int, by_group: bool = True) -> dict[str, Array]:
    """Bytes that each kernel of a chunk writes, by budget: of each group, or of all in one."""
    found: dict[str, list[Array]] = {}
    for kernel in kernels(chunk):
        if not (isinstance(kernel.count, int) and kernel.count == 0):
            written = numpy.broadcast_to(numpy.asarray(kernel.executed.written, dtype=numpy.float64), (budgets,))
            found.setdefault(kernel.group if by_group else "", []).append(written)
    return {name: numpy.array(of_group) for name, of_group in found.items()}


class Room(NamedTuple):
    """Sequences that an engine can hold, by chunk budget, and bytes: of a mean sequence on the fullest device, and what
    is left there for caches (below 0 where weights and buffers alone do not fit)."""

    sequences: Array
    each: float
    free: Array


class Held(NamedTuple):
    """Bytes on a device of each different stage of an engine: of weights, and of a mean sequence."""

    weights: Array
    sequence: Array


NO_STAGE = Held(numpy.array([-numpy.inf]), numpy.array([1.0]))
"""What stands where an engine has fewer stages than others: a device that is never full."""


def stage_weights(model: EngineModel) -> Array:
    """Bytes of the weights on a device of each different stage."""
    return numpy.array([float(stage.part.weight_bytes(model.served.precision)) for stage in model.decode.stages])


def stage_sequences(model: EngineModel, work: Workload, settings: Settings) -> Array:
    """Bytes of a mean sequence on a device of each different stage."""
    caches = [stage_cache(model.decode, stage, model.served.precision) for stage in model.decode.stages]
    return numpy.array([mean_bytes(cache, work, settings) for cache in caches])


def sent_bytes(model: EngineModel, input_tokens: int) -> float:
    """Bytes of a prompt's cache that the fullest device of an engine sends to another pool."""
    caches = (stage_cache(model.prefill, stage, model.served.precision) for stage in model.prefill.stages)
    return max(float(cache.bytes(input_tokens)) for cache in caches)


def room(model: EngineModel, kept: Held, results: Array, settings: Settings) -> Room:
    """How many sequences fit in memory. results: bytes of a chunk's largest results, by budget."""
    (fits,), (free,) = _fitting([model], [kept], results[None], settings)
    found = Room(numpy.full(len(results), numpy.inf), 0.0, numpy.full(len(results), numpy.inf))
    for of_stage, left, size in zip(fits, free, kept.sequence, strict=True):
        if (of_stage < found.sequences).any():
            found = Room(numpy.maximum(numpy.minimum(of_stage, found.sequences), 0.0), float(size), left)
    return found


def rooms(models: Sequence[EngineModel], kept: Sequence[Held], results: Array, settings: Settings) -> Array:
    """How many sequences fit in the memory of engines of one device (rows), by chunk budget."""
    fits, _ = _fitting(models, kept, results, settings)
    return numpy.maximum(fits.min(axis=1), 0.0)


def _fitting(
    models: Sequence[EngineModel], kept: Sequence[Held], results: Array, settings: Settings
) -> tuple[Array, Array]:
    """Sequences for which there is memory, and the bytes that are left for them, by engine, stage and budget."""
    most = max(len(each.weights) for each in kept)
    weights, size = (
        numpy.array([[*each[place], *NO_STAGE[place].repeat(most - len(each[place]))] for each in kept])[..., None]
        for place in (0, 1)
    )
    capacity = models[0].served.hardware.memory.hbm.capacity
    layouts = [model.layout for model in models]
    sent = numpy.array([VLLM.communication if layout.gpus > 1 else 0.0 for layout in layouts])[:, None, None]
    taken = weights + results[:, None, :] + (VLLM.graphs + VLLM.workspace + sent)
    usable = settings.utilisation * capacity
    left = {
        "all": usable - taken,
        "static": numpy.minimum(usable - weights, capacity - taken),
        "free": settings.utilisation * (capacity - taken),
    }[settings.of_memory]
    # A pipeline keeps pp batches on the way, each with its part of the stage's caches.
    free = left / numpy.array([float(layout.pp) for layout in layouts])[:, None, None]
    whole = numpy.floor(free / numpy.where(size > 0, size, 1.0))
    return numpy.where(size > 0, whole, numpy.where(free > 0, numpy.inf, 0.0)), free


def mean_bytes(cache: SequenceCache, work: Workload, settings: Settings) -> float:
    """Bytes of a sequence on a device, on average over the time in which it decodes."""
    # Engines that reserve room for the whole answer hold it from the start.
    length = work.input + work.output if settings.reserve_output else work.context
    pages = math.ceil(length / settings.page_tokens) * settings.page_tokens
    kept = cache.reserved(round(work.input + work.output)) + work.snapshots * cache.state_bytes
    return float(cache.token_bytes * pages + kept)
