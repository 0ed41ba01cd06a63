"""Absorbed latent attention of every query to the k latent rows that were selected for it.

A thread block takes one query token with a tile of its heads and gathers its rows; where queries are few, the rows
are split over thread blocks and a second kernel combines them.

Source: arXiv:2512.02556, section 2.1, eq. 2; deepseek-ai/FlashMLA, flash_mla_sparse_fwd (arguments).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.triton_kernels.combine import combine
from validation.triton_kernels.mla_decode import LOG2_E, tile_of
from validation.triton_kernels.online_softmax import normalised, online_softmax
from validation.triton_kernels.shared_memory import roomy


@triton.jit
def sparse_mla_kernel(
    q,
    latents,
    indices,
    out,
    lse,
    scale,
    queries,
    heads,
    entries,
    k,
    tokens,
    splits,
    c: tl.constexpr,
    dr: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (query token of the batch, tile of heads, split)."""
    token, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    real = (head < heads)[:, None]
    content, position = tl.arange(0, c), c + tl.arange(0, dr)
    rows = q + token * heads * (c + dr) + head[:, None] * (c + dr)
    q_content = tl.load(rows + content[None, :], mask=real, other=0.0)
    q_position = tl.load(rows + position[None, :], mask=real, other=0.0)

    tiles = tl.cdiv(k, KEYS)
    share = tl.cdiv(tiles, splits)
    cache = latents + (token // queries) * entries * (c + dr)
    highest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    summed = tl.zeros([HEADS, c], tl.float32)
    for tile in range(split * share, tl.minimum((split + 1) * share, tiles)):
        place = tile * KEYS + tl.arange(0, KEYS)
        chosen = tl.load(indices + token * k + place, mask=place < k, other=-1).to(tl.int64)
        visible = chosen >= 0
        at = cache + chosen[:, None] * (c + dr)
        k_content = tl.load(at + content[None, :], mask=visible[:, None], other=0.0)
        k_position = tl.load(at + position[None, :], mask=visible[:, None], other=0.0)
        scores = tl.dot(q_content, k_content.T) + tl.dot(q_position, k_position.T)
        scores = tl.where(visible[None, :], scores * scale, float("-inf"))
        weights, shrink, highest, total = online_softmax(scores, highest, total)
        summed = tl.dot(weights.to(k_content.dtype), k_content, summed * shrink[:, None])
    row = (split * tokens + token) * heads + head
    tl.store(out + row[:, None] * c + content[None, :], normalised(summed, total), mask=real)
    if SPLIT:
        tl.store(lse + row, highest + tl.log2(total), mask=head < heads)


def sparse_mla(
    q: torch.Tensor, latents: torch.Tensor, indices: torch.Tensor, *, dr: int, scale: float, splits: int = 1
) -> torch.Tensor:
    """out[b, i, h] = Σ_j softmax_j(scale · q[b, i, h] · latents[b, t_j]) · latents[b, t_j, :c], t_j = indices[b, i, j].

    q [B, S, H, c + dr] and latents [B, L, c + dr], contiguous, of one dtype; indices [B, S, k] int32, −1 for none; c
    and dr powers of two. Returns [B, S, H, c] in q's dtype, 0 where a query has no index.
    """
    B, S, H, width = q.shape
    c, k, tile = width - dr, indices.shape[2], tile_of(H, roomy(q.device))
    grid = (B * S, triton.cdiv(H, tile.heads), splits)
    out = torch.empty(B, S, H, c, dtype=q.dtype, device=q.device)
    partial = out if splits == 1 else torch.empty(splits, B * S * H, c, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, B * S * H, dtype=torch.float32, device=q.device)
    sparse_mla_kernel[grid](
        q,
        latents,
        indices,
        partial,
        lse,
        scale * LOG2_E,
        S,
        H,
        latents.shape[1],
        k,
        B * S,
        splits,
        c,
        dr,
        tile.heads,
        tile.keys,
        splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out if splits == 1 else combine(partial, lse, out.view(B * S * H, c)).view(B, S, H, c)


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """DeepSeek-V3.2: 2,048 of the latents of 512 + 64, with the heads of one device in eight and of one alone."""

    def call(heads: int) -> Callable[[], object]:
        q = torch.empty(1, 64, heads, 576, dtype=torch.bfloat16, device=device)
        latents = torch.empty(1, 4096, 576, dtype=torch.bfloat16, device=device)
        indices = torch.empty(1, 64, 2048, dtype=torch.int32, device=device)
        return lambda: sparse_mla(q, latents, indices, dr=64, scale=0.07)

    return {"16 heads": call(16), "128 heads": call(128)}
