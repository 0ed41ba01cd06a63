"""Bytes on each device under a layout, and how many sequences fit.

Weights by dtype as they are split, caches by their real layouts (rounded up to whole blocks of tokens), the largest
pair of a kernel's and its predecessor's results, and what an engine keeps besides.
"""

from itertools import pairwise
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div
from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.memory import MemoryUse
from costmodel.parallel.placement import Placed, Stage, cache_bytes, local_step
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


def blocks_of(context: Quantity, block: int) -> Quantity:
    """Tokens that the blocks of a paged cache reserve for a sequence.

    >>> blocks_of(1000, 16)
    1008
    """
    return block * ceil_div(context, block)
