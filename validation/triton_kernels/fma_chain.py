"""Probe: how many fp32 multiply-adds per second the vector lanes deliver."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK, WARPS, UNROLLED = 2048, 8, 16


@triton.jit
def fma_chain_kernel(x, factor, addend, steps, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    """A thread block takes BLOCK numbers through all steps, each thread a few independent chains."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    for _ in range(0, steps, UNROLLED):
        for _ in tl.static_range(UNROLLED):
            value = tl.fma(value, factor, addend)
    tl.store(x + at, value)


def fma_chain(x: torch.Tensor, steps: int) -> int:
    """Takes x [n] fp32 in place through `steps` times x ← x / 2 + 1, which tends to 2; returns FLOPs, 2 per step.

    n is a multiple of 2,048 (one thread block each), steps of 16.
    """
    if x.numel() % BLOCK or steps % UNROLLED:
        raise ValueError(f"{x.numel()} numbers and {steps} steps are no multiples of {BLOCK} and {UNROLLED}")
    fma_chain_kernel[(x.numel() // BLOCK,)](x, 0.5, 1.0, steps, BLOCK, UNROLLED, num_warps=WARPS)
    return 2 * x.numel() * steps


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """One thread block."""
    x = torch.empty(BLOCK, device=device)
    return {"fp32": lambda: fma_chain(x, 1024)}
