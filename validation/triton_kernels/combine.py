"""Joins the partial outputs of attention whose keys were split over thread blocks."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

WIDTH = 128
"""Output columns of one thread block."""


@triton.jit
def combine_kernel(partial, lse, out, rows, width, splits: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """A thread block joins up to WIDTH columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    exponent = tl.load(lse + split * rows.to(tl.int64) + row, mask=split < splits, other=float("-inf"))
    highest = tl.max(exponent, 0)
    weight = tl.exp2(exponent - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weight, 0)
    weight = weight / tl.where(total == 0.0, 1.0, total)
    at = (split[:, None] * rows.to(tl.int64) + row) * width + column[None, :]
    seen = (split < splits)[:, None] & (column < width)[None, :]
    values = tl.load(partial + at, mask=seen, other=0.0)
    tl.store(out + row * width + column, tl.sum(weight[:, None] * values, 0), mask=column < width)


def combine(partial: torch.Tensor, lse: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes out [rows, width] = Σ_s 2^(lse_s − lse) · partial_s with lse = log2 Σ_s 2^lse_s, and returns it.

    partial [splits, rows, width] fp32: every split's normalised output; lse [splits, rows] fp32: log2 of its sum of
    weights, −inf for a split without a key. A row that no split has a key for becomes 0.
    """
    splits, rows, width = partial.shape
    grid = (rows, triton.cdiv(width, WIDTH))
    combine_kernel[grid](partial, lse, out, rows, width, splits, triton.next_power_of_2(splits), WIDTH, num_warps=4)
    return out


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """128 heads of 512 values in 16 splits."""
    partial, lse = torch.empty(16, 128, 512, device=device), torch.empty(16, 128, device=device)
    out = torch.empty(128, 512, dtype=torch.bfloat16, device=device)
    return {"16 splits": lambda: combine(partial, lse, out)}
