"""Absorbed latent attention of one query token per sequence over the latent cache, keys split over the device.

All heads read one latent row per token: its first c numbers are key and value, the last dr the position key. A thread
block holds a tile of heads and walks the keys of its split; a second kernel combines the splits.

Source: arXiv:2405.04434, section 2.1 (absorption); FlashDecoding (split keys).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from validation.triton_kernels.combine import combine
from validation.triton_kernels.online_softmax import normalised, online_softmax
from validation.triton_kernels.shared_memory import roomy

LOG2_E = 1.4426950408889634


class Tile(NamedTuple):
    """Heads and keys of one thread block's step, its warps, and tiles of keys in flight."""

    heads: int
    keys: int
    warps: int
    stages: int


@triton.jit
def mla_decode_kernel(
    q,
    latents,
    lengths,
    out,
    lse,
    scale,
    heads,
    entries,
    batch,
    splits,
    c: tl.constexpr,
    dr: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (split, tile of heads, sequence)."""
    split, sequence = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    real = (head < heads)[:, None]
    content, position = tl.arange(0, c), c + tl.arange(0, dr)
    rows = q + sequence * heads * (c + dr) + head[:, None] * (c + dr)
    q_content = tl.load(rows + content[None, :], mask=real, other=0.0)
    q_position = tl.load(rows + position[None, :], mask=real, other=0.0)

    length = tl.load(lengths + sequence)
    tiles = tl.cdiv(length, KEYS)
    share = tl.cdiv(tiles, splits)
    cache = latents + sequence * entries * (c + dr)
    highest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    summed = tl.zeros([HEADS, c], tl.float32)
    for tile in range(split * share, tl.minimum((split + 1) * share, tiles)):
        key = tile * KEYS + tl.arange(0, KEYS)
        visible = key < length
        at = cache + key.to(tl.int64)[:, None] * (c + dr)
        k_content = tl.load(at + content[None, :], mask=visible[:, None], other=0.0)
        k_position = tl.load(at + position[None, :], mask=visible[:, None], other=0.0)
        scores = tl.dot(q_content, k_content.T) + tl.dot(q_position, k_position.T)
        scores = tl.where(visible[None, :], scores * scale, float("-inf"))
        weights, shrink, highest, total = online_softmax(scores, highest, total)
        summed = tl.dot(weights.to(k_content.dtype), k_content, summed * shrink[:, None])
    row = (split * batch + sequence) * heads + head
    tl.store(out + row[:, None] * c + content[None, :], normalised(summed, total), mask=real)
    if SPLIT:
        tl.store(lse + row, highest + tl.log2(total), mask=head < heads)


def tile_of(heads: int, wide: bool = True) -> Tile:
    """Few heads, or little shared memory (not wide): a warp's matrix instruction; many heads: a warpgroup's.

    >>> tile_of(16).heads, tile_of(128).heads, tile_of(128, wide=False).heads
    (16, 64, 16)
    """
    if heads <= 16 or not wide:
        return Tile(heads=16, keys=64 if wide else 32, warps=4, stages=2)
    return Tile(heads=64, keys=32, warps=8, stages=2)


def split_count(programs: int, keys: int, units: int, keys_per_split: int = 128, most: int = 64) -> int:
    """Splits that fill the device's units once, each with at least `keys_per_split` keys.

    >>> split_count(programs=2, keys=65536, units=132), split_count(programs=2, keys=100, units=132)
    (64, 1)
    """
    return max(1, min(units // max(programs, 1), keys // keys_per_split, most))


def mla_decode(
    q: torch.Tensor, latents: torch.Tensor, lengths: torch.Tensor, *, dr: int, scale: float, splits: int
) -> torch.Tensor:
    """out[b, h] = Σ_t softmax_t(scale · q[b, h] · latents[b, t]) · latents[b, t, :c] over t < lengths[b].

    q [B, H, c + dr] and latents [B, L, c + dr], contiguous, of one dtype; lengths [B] int32, 1 … L; c and dr powers of
    two. Returns [B, H, c] in q's dtype. splits: thread blocks that share the keys of a sequence.
    """
    B, H, width = q.shape
    c, tile = width - dr, tile_of(H, roomy(q.device))
    grid = (splits, triton.cdiv(H, tile.heads), B)
    out = torch.empty(B, H, c, dtype=q.dtype, device=q.device)
    partial = out if splits == 1 else torch.empty(splits, B * H, c, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, B * H, dtype=torch.float32, device=q.device)
    mla_decode_kernel[grid](
        q,
        latents,
        lengths,
        partial,
        lse,
        scale * LOG2_E,
        H,
        latents.shape[1],
        B,
        splits,
        c,
        dr,
        tile.heads,
        tile.keys,
        splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out if splits == 1 else combine(partial, lse, out.view(B * H, c)).view(B, H, c)


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """DeepSeek's latent of 512 + 64, with the heads of one device in eight and of one alone."""

    def call(heads: int) -> Callable[[], object]:
        q = torch.empty(4, heads, 576, dtype=torch.bfloat16, device=device)
        latents = torch.empty(4, 4096, 576, dtype=torch.bfloat16, device=device)
        lengths = torch.empty(4, dtype=torch.int32, device=device)
        return lambda: mla_decode(q, latents, lengths, dr=64, scale=0.07, splits=8)

    return {"16 heads": call(16), "128 heads": call(128)}
