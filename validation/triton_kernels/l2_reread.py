"""Probe: the bandwidth of L2, and the footprint from which it no longer holds what is read again."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 8192, 8


@triton.jit
def l2_reread_kernel(source, sums, size, repeats, BLOCK: tl.constexpr):
    """Every thread block sums the same slice again and again, past its first-level cache."""
    share = tl.cdiv(size, tl.num_programs(0))
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, size)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(repeats):
        for first in range(begin, end, BLOCK):
            at = first + tl.arange(0, BLOCK)
            total += tl.load(source + at, mask=at < end, other=0.0, cache_modifier=".cg")
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


def l2_reread(source: torch.Tensor, sums: torch.Tensor, repeats: int) -> int:
    """sums[p] ← repeats · Σ of the p-th slice of source; returns the bytes read.

    source [n] fp32, n < 2³¹; sums [programs] fp32: as many thread blocks, each with a slice of ⌈n / programs⌉.
    """
    l2_reread_kernel[(sums.numel(),)](source, sums, source.numel(), repeats, BLOCK, num_warps=WARPS)
    return repeats * source.numel() * source.element_size()


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """Two thread blocks per unit of an H100 over 16 MiB."""
    x, sums = torch.empty(1 << 22, device=device), torch.empty(264, device=device)
    return {"fp32": lambda: l2_reread(x, sums, 10)}
