"""Attention of every query to the blocks of keys that were selected for it (MoBA, MSA): token-level routing.

A thread block takes one query token with the heads that share its selection, padded to the 16 rows of a matrix
instruction, and walks its blocks; where queries are few, the blocks are split over thread blocks and a second kernel
combines them.

Source: MoBA, arXiv:2502.13189, section 2.2; MSA, arXiv:2606.13392; NSA, arXiv:2502.11089, section 3.4 (loop order).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.triton_kernels.combine import combine
from validation.triton_kernels.mla_decode import LOG2_E
from validation.triton_kernels.online_softmax import normalised, online_softmax

ROWS = 16
"""Rows of one matrix instruction."""

KEYS = 64
"""Keys of one step at most: with twice as many, a thread's registers run over."""


@triton.jit
def block_sparse_kernel(
    q,
    k,
    v,
    blocks,
    out,
    lse,
    scale,
    queries,
    entries,
    heads,
    key_heads,
    selectors,
    visits,
    tokens,
    splits,
    b: tl.constexpr,
    dk: tl.constexpr,
    dv: tl.constexpr,
    GROUP: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (query token of the batch, selecting head, split of its blocks)."""
    token, selector, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    group = heads // selectors
    head = selector * group + tl.arange(0, GROUP)
    real = tl.arange(0, GROUP) < group
    column, value = tl.arange(0, DK), tl.arange(0, DV)
    row = token * heads + head
    q_rows = tl.load(q + row[:, None] * dk + column[None, :], mask=real[:, None] & (column < dk)[None, :], other=0.0)

    sequence, position = token // queries, entries - queries + (token % queries).to(tl.int32)
    key_head = selector * key_heads // selectors
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    summed = tl.zeros([GROUP, DV], tl.float32)
    share = tl.cdiv(visits, splits)
    for visit in range(split * share, tl.minimum((split + 1) * share, visits)):
        block = tl.load(blocks + (token * selectors + selector) * visits + visit)
        # Of the block of the query itself, only the tiles that begin before it; of no block (−1), none.
        end = tl.where(block < 0, 0, tl.minimum(b, position + 1 - block * b))
        for first in range(0, end, KEYS):
            within = first + tl.arange(0, KEYS)
            visible = within < end
            at = ((sequence * entries + block * b + first) * key_heads + key_head).to(tl.int64)
            step = tl.arange(0, KEYS) * key_heads
            seen = visible[:, None] & (column < dk)[None, :]
            k_rows = tl.load(k + at * dk + step[:, None] * dk + column[None, :], mask=seen, other=0.0)
            scores = tl.where(visible[None, :], tl.dot(q_rows, k_rows.T) * scale, float("-inf"))
            weights, shrink, highest, total = online_softmax(scores, highest, total)
            seen = visible[:, None] & (value < dv)[None, :]
            v_rows = tl.load(v + at * dv + step[:, None] * dv + value[None, :], mask=seen, other=0.0)
            summed = tl.dot(weights.to(v_rows.dtype), v_rows, summed * shrink[:, None])
    row += split * tokens.to(tl.int64) * heads
    kept = real[:, None] & (value < dv)[None, :]
    tl.store(out + row[:, None] * dv + value[None, :], normalised(summed, total), mask=kept)
    if SPLIT:
        tl.store(lse + row, highest + tl.log2(total), mask=real)


def block_sparse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: torch.Tensor, *, b: int, scale: float, splits: int = 1
) -> torch.Tensor:
    """out[i, h] = Σ_t softmax_t(scale · q[i, h] · k[t]) · v[t] over the tokens t ≤ L − S + i of the chosen blocks.

    q [B, S, H, dk] are the last S of L positions; k [B, L, Hkv, dk] and v [B, L, Hkv, dv]; all contiguous, of one
    dtype. blocks [B, S, selectors, n] int32 numbers blocks of b tokens, −1 for none, no block twice; H is a multiple
    of selectors and selectors of Hkv, and consecutive heads share a selector. Returns [B, S, H, dv] in q's dtype.
    """
    B, S, H, dk = q.shape
    _, L, Hkv, dv = v.shape
    selectors, visits = blocks.shape[2:]
    if H % selectors or selectors % Hkv:
        raise ValueError(f"{H} heads, {selectors} selecting heads and {Hkv} key heads do not divide")
    out = torch.empty(B, S, H, dv, dtype=q.dtype, device=q.device)
    partial = out if splits == 1 else torch.empty(splits, B * S * H, dv, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, B * S * H, dtype=torch.float32, device=q.device)
    block_sparse_kernel[B * S, selectors, splits](
        q,
        k,
        v,
        blocks,
        partial,
        lse,
        scale * LOG2_E,
        S,
        L,
        H,
        Hkv,
        selectors,
        visits,
        B * S,
        splits,
        b,
        dk,
        dv,
        max(ROWS, triton.next_power_of_2(H // selectors)),
        max(16, triton.next_power_of_2(dk)),
        max(16, triton.next_power_of_2(dv)),
        max(16, min(KEYS, triton.next_power_of_2(b))),
        splits > 1,
        num_warps=4,
        num_stages=2,
    )
    return out if splits == 1 else combine(partial, lse, out.view(B * S * H, dv)).view(B, S, H, dv)


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """MoBA: every head for itself, blocks of 512; MSA: 16 heads share 16 blocks of 128."""

    def call(heads: int, key_heads: int, selectors: int, b: int, n: int) -> Callable[[], object]:
        q = torch.empty(1, 64, heads, 128, dtype=torch.bfloat16, device=device)
        k = torch.empty(1, 8192, key_heads, 128, dtype=torch.bfloat16, device=device)
        blocks = torch.empty(1, 64, selectors, n, dtype=torch.int32, device=device)
        return lambda: block_sparse(q, k, k, blocks, b=b, scale=0.09)

    return {"moba": call(32, 8, 32, 512, 3), "msa": call(64, 4, 4, 128, 16)}
