"""Probe: how many exponentials per second the special-function units deliver."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK, WARPS, UNROLLED = 2048, 8, 16


@triton.jit
def exp_chain_kernel(x, steps, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    """A thread block takes BLOCK numbers through all steps, each thread a few independent chains."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    for _ in range(0, steps, UNROLLED):
        for _ in tl.static_range(UNROLLED):
            value = tl.exp2(-value)
    tl.store(x + at, value)


def exp_chain(x: torch.Tensor, steps: int) -> int:
    """Takes x [n] fp32 in place through `steps` times x ← 2^(−x), which stays in (0, 1]; returns the exponentials.

    n is a multiple of 2,048 (one thread block each), steps of 16.
    """
    if x.numel() % BLOCK or steps % UNROLLED:
        raise ValueError(f"{x.numel()} numbers and {steps} steps are no multiples of {BLOCK} and {UNROLLED}")
    exp_chain_kernel[(x.numel() // BLOCK,)](x, steps, BLOCK, UNROLLED, num_warps=WARPS)
    return x.numel() * steps


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """One thread block."""
    x = torch.empty(BLOCK, device=device)
    return {"fp32": lambda: exp_chain(x, 1024)}
