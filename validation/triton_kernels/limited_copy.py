"""Probe: the HBM bandwidth that a given number of thread blocks reaches."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 8192, 8


@triton.jit
def limited_copy_kernel(destination, source, size, BLOCK: tl.constexpr):
    """Every thread block copies each `number of thread blocks`-th piece of BLOCK numbers."""
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, size, stride):
        at = first + tl.arange(0, BLOCK)
        tl.store(destination + at, tl.load(source + at, mask=at < size), mask=at < size)


def limited_copy(destination: torch.Tensor, source: torch.Tensor, programs: int) -> int:
    """destination ← source, both contiguous fp32 of one size, by `programs` thread blocks; returns the bytes moved."""
    limited_copy_kernel[(programs,)](destination, source, source.numel(), BLOCK, num_warps=WARPS)
    return 2 * source.numel() * source.element_size()


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """One thread block per unit of an H100."""
    x = torch.empty(1 << 20, device=device)
    return {"fp32": lambda: limited_copy(x, x, 132)}
