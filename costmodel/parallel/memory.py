"""Bytes on each device under a layout, and how many sequences fit.

Weights by dtype as they are split, caches by their real layouts (rounded up to whole blocks of tokens), the largest
pair of a kernel's and its predecessor's results, and what an engine keeps besides. A step fits where its batch is no
more than the sequences that do.
"""

from itertools import pairwise
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum
from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.memory import MemoryUse
from costmodel.parallel.placement import Placed, Stage, cache_bytes, local_step
from costmodel.parallel.stages import microbatches, stage_kernels
from costmodel.step import Phase, Precision, Step

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
PREFIX_AT_A_TIME = 64 * 1024
"""Cached tokens that a chunk of a prompt expands or scores at a time.

Source: vllm-project/vllm, v1/attention/backends/mla/common.py (largest workspace of chunked prefill)."""


def last_chunk(length: Quantity, chunk: Quantity) -> Step:
    """The last chunk of a prompt of so many tokens, with as much of its prefix as its results hold at a time.

    >>> last_chunk(20_000, 8192).P, last_chunk(1_000_000, 8192).P
    (11808, 65536)
    """
    return Step(B=1, S=chunk, P=minimum(length - chunk, PREFIX_AT_A_TIME), phase="prefill")


def stage_memory(
    placed: Placed, stage: Stage, step: Step, precision: Precision, hardware: Hardware, reserve: Reserve = VLLM
) -> MemoryUse:
    """What one device of a stage holds under an engine; step: of prefill or decode, of the whole replica, as asked.

    An engine runs prompts in chunks, so results are those of its largest chunk, or of the decode step where they are
    more; a model without a cache runs the step at once. Reserved: graphs, workspaces, buffers, the unused rest of the
    last block of each sequence, and the share of the memory that the engine leaves alone.
    """
    weights = stage.part.weight_bytes(precision)
    reserved: Quantity = hardware.memory.hbm.capacity - _usable(placed, hardware, reserve)
    if step.bidirectional:
        return MemoryUse(weights, 0, step_results(placed, stage, step, precision, hardware), reserved)
    whole = step._replace(P=blocks_of(step.L, reserve.block) - step.S)
    cache = cache_bytes(placed, stage, step, precision)
    reserved += cache_bytes(placed, stage, whole, precision) - cache
    return MemoryUse(weights, cache, results_bytes(placed, stage, step, precision, hardware, reserve), reserved)


def results_bytes(
    placed: Placed, stage: Stage, step: Step, precision: Precision, hardware: Hardware, reserve: Reserve = VLLM
) -> Quantity:
    """Results of two kernels in a row, where they are largest: in a chunk of a prompt of step.L tokens, or in a decode
    step."""
    chunk = last_chunk(step.L, min(reserve.chunk, step.L))
    last = chunk._replace(bidirectional=placed.whole.bidirectional)
    prefill = placed._replace(phase="prefill")
    largest = step_results(prefill, stage._replace(cores=None), last, precision, hardware)
    return maximum(largest, step_results(placed, stage, step, precision, hardware)) if step.decoding else largest


def step_results(placed: Placed, stage: Stage, step: Step, precision: Precision, hardware: Hardware) -> Quantity:
    """Bytes on a device of a stage of the results of two kernels in a row, where they are largest."""
    local = local_step(placed, step, microbatches(placed, step))
    run = stage_kernels(placed, stage, local, precision, hardware)
    written = [kernel.executed.written for kernel in run if kernel.count]
    return max((before + after for before, after in pairwise(written)), default=0)


def _usable(placed: Placed, hardware: Hardware, reserve: Reserve) -> float:
    """Bytes of a device for weights, results and caches."""
    shared = reserve.communication if placed.layout.gpus > 1 else 0
    return reserve.utilization * hardware.memory.hbm.capacity - reserve.graphs - reserve.workspace - shared


def memory_by_stage(
    placed: Placed, step: Step, precision: Precision, hardware: Hardware
) -> list[tuple[Stage, MemoryUse]]:
    """The use of one device of each different stage."""
    return [(stage, stage_memory(placed, stage, step, precision, hardware)) for stage in placed.stages]


def max_concurrency(
    placed: Placed,
    context: int,
    precision: Precision,
    hardware: Hardware,
    reserve: Reserve = VLLM,
    batch: int = 1,
) -> int:
    """Sequences of so many tokens that the caches of a whole replica hold; 0 where not even one does.

    A sequence takes whole blocks of tokens. Of all stages, the fullest decides. batch: sequences of a decode step whose
    results must have room as well.
    """
    if context < 1:
        raise BadInput(f"context {context} is less than 1")
    tokens = int(blocks_of(context, reserve.block))
    phase: Phase = "prefill" if placed.by_tokens else "decode"
    step = Step(B=batch, S=1, P=context - 1, phase=phase, bidirectional=placed.whole.bidirectional)
    one = step._replace(B=1, P=tokens - 1)
    least: float | None = None
    for stage in placed.stages:
        free = _usable(placed, hardware, reserve) - float(stage.part.weight_bytes(precision))
        free -= float(results_bytes(placed, stage, step, precision, hardware, reserve))
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
