"""Bytes on each device under a layout, how many sequences fit, and what would make a step fit that does not.

Weights by dtype as they are split, caches by their real layouts (rounded up to whole blocks of tokens), the largest
pair of a kernel's and its predecessor's results, and what an engine keeps besides.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div
from costmodel.architecture import Architecture
from costmodel.errors import BadInput, Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.memory import MemoryUse
from costmodel.parallel.layout import Layout
from costmodel.parallel.placement import Options, Placed, Stage, cache_bytes, local_step, place
from costmodel.parallel.stages import microbatches, stage_kernels
from costmodel.step import Precision, Step

MIB = 2**20


class Reserve(NamedTuple):
    """What an engine keeps of a device's memory beside weights, cache and the results of a step.

    utilization: share of the memory that the engine takes at all; the rest is left to the driver, to other processes
    and to fragmentation (vLLM: --gpu-memory-utilization, 0.9). graphs: captured CUDA graphs (vLLM reports 0.5 to 1 GiB
    at its default sizes). workspace: buffers of attention (FlashInfer in vLLM: 394 MiB) and products (cuBLAS on Hopper:
    32 MiB). communication: buffers of NCCL and of an own all-reduce, where devices communicate. block: tokens of a
    block of the paged cache. chunk: tokens of the largest step (vLLM: --max-num-batched-tokens, 8192 on large devices).

    Source: vllm-project/vllm, config/cache.py, v1/attention/backends/flashinfer.py, engine/arg_utils.py;
    pytorch/pytorch, aten/src/ATen/cuda/CublasHandlePool.cpp.
    """

    utilization: float = 0.9
    graphs: float = 768 * MIB
    workspace: float = 426 * MIB
    communication: float = 512 * MIB
    block: int = 16
    chunk: int = 8192


VLLM = Reserve()
"""The defaults of vLLM."""


def stage_memory(placed: Placed, stage: Stage, step: Step, precision: Precision, hardware: Hardware) -> MemoryUse:
    """What one device of a stage holds in a step of prefill or decode; step: of the whole replica, as asked."""
    local = local_step(placed, step, microbatches(placed, step))
    run = stage_kernels(placed, stage, local, precision, hardware)
    written = [kernel.executed.written for kernel in run if kernel.count]
    working = max((before + after for before, after in pairwise(written)), default=0)
    cache = 0 if step.bidirectional else cache_bytes(placed, stage, step, precision)
    return MemoryUse(stage.part.weight_bytes(precision), cache, working)


def memory_by_stage(
    placed: Placed, step: Step, precision: Precision, hardware: Hardware
) -> list[tuple[Stage, MemoryUse]]:
    """The use of one device of each different stage."""
    return [(stage, stage_memory(placed, stage, step, precision, hardware)) for stage in placed.stages]


def max_concurrency(
    placed: Placed, context: int, precision: Precision, hardware: Hardware, reserve: Reserve = VLLM
) -> int:
    """Sequences of so many tokens that the caches of a whole replica hold; 0 where not even one does.

    A sequence takes whole blocks of tokens. Of all stages, the fullest decides.
    """
    if context < 1:
        raise BadInput(f"context {context} is less than 1")
    tokens = int(blocks_of(context, reserve.block))
    chunk = min(reserve.chunk, context)
    first = Step(B=1, S=chunk, P=context - chunk, phase="prefill", bidirectional=placed.whole.bidirectional)
    one = Step(B=1, S=1, P=tokens - 1, phase="decode", bidirectional=placed.whole.bidirectional)
    prefill = placed._replace(phase="prefill")
    least: float | None = None
    for stage in placed.stages:
        run = stage_kernels(prefill, stage._replace(cores=None), local_step(prefill, first), precision, hardware)
        working = max((a + b for a, b in pairwise(k.executed.written for k in run if k.count)), default=0)
        shared = reserve.communication if placed.layout.gpus > 1 else 0
        free = reserve.utilization * hardware.memory.hbm.capacity - reserve.graphs - reserve.workspace - shared
        free -= float(stage.part.weight_bytes(precision)) + float(working)
        each = float(cache_bytes(placed, stage, one, precision))
        if each > 0:
            held = max(free, 0.0) // each
            least = held if least is None else min(least, held)
        elif free < 0:
            least = 0.0
    return int(least * placed.layout.dp) if least is not None else MOST_SEQUENCES


MOST_SEQUENCES = 10**9
"""What fits where sequences keep nothing."""


class Remedy(NamedTuple):
    """A change with which a step fits, and the bytes that the fullest device then needs."""

    change: str
    memory_bytes: float


def remedies(
    architecture: Architecture,
    layout: Layout,
    step: Step,
    precision: Precision,
    hardware: Hardware,
    options: Options,
) -> Iterator[Remedy]:
    """What would make a step fit: the smallest tp, pp and ep of powers of two, and narrower weights or caches."""
    room = hardware.memory.hbm.capacity

    def needed(trial: Layout, formats: Precision) -> float | None:
        try:
            placed = place(architecture, trial, step.phase, options)
        except (Impossible, BadInput):
            return None
        return max(float(use.total) for _, use in memory_by_stage(placed, step, formats, hardware))

    degrees = (
        ("tp", "pp", "ep") if any(isinstance(b.dims, moe.Dims) for b in architecture.ffns.values()) else ("tp", "pp")
    )
    for degree in degrees:
        trial = layout
        for _ in range(7):
            size = 2 * getattr(trial, degree)
            trial = trial._replace(
                **{degree: size}, **({"dp": max(layout.dp, size // layout.tp)} if degree == "ep" else {})
            )
            found = needed(trial, precision)
            if found is not None and found <= room:
                yield Remedy(str(trial), found)
                break
    for text, formats in _narrower(precision, hardware):
        found = needed(layout, formats)
        if found is not None and found <= room:
            yield Remedy(text, found)
            break


def _narrower(precision: Precision, hardware: Hardware) -> Iterator[tuple[str, Precision]]:
    """Formats with fewer bytes, the widest first, that the device multiplies or unpacks."""
    blocks = ("mixer", "ffn", "experts", "shared_experts")
    for dtype in ("fp8", "int4"):
        if dtype == "fp8" and not hardware.has_engine("fp8"):
            continue
        weights = {**dict.fromkeys(blocks, dtype), **{k: v for k, v in precision.weights.items() if k not in blocks}}
        yield f"{dtype} weights", precision._replace(weights=weights)
        yield f"{dtype} weights and fp8 cache", precision._replace(weights=weights, kv="fp8")


def blocks_of(context: Quantity, block: int) -> Quantity:
    """Tokens that the blocks of a paged cache reserve for a sequence.

    >>> blocks_of(1000, 16)
    1008
    """
    return block * ceil_div(context, block)
