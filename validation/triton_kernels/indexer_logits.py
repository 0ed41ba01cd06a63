"""Logits of the lightning indexer: every query token scores every visible one, for token selection.

A thread block holds the rows (queries times heads) of a few queries and walks tiles of keys; the heads of a query are
the columns of the product, so that their weighted sum stays within a few lanes.

Source: arXiv:2512.02556, section 2.1, eq. 1; the fp8 form as deepseek-ai/DeepGEMM's fp8_mqa_logits, where the
queries' scales are part of the head weights and each key has one.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.triton_kernels.shared_memory import roomy

ROWS = 128
"""Queries times heads of one thread block."""

KEYS = 128
"""Keys of one step."""


@triton.jit
def indexer_logits_kernel(
    q,
    k,
    key_scale,
    weights,
    ends,
    logits,
    queries,
    keys,
    heads: tl.constexpr,
    d: tl.constexpr,
    splits,
    hidden,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    KEYS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Program (split of the keys, tile of queries, sequence)."""
    sequence = tl.program_id(2).to(tl.int64)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    row = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES * HEADS) // HEADS
    head = tl.arange(0, QUERIES * HEADS) % HEADS
    real = (row < queries) & (head < heads)
    width = tl.arange(0, D)
    at = (sequence * queries + row) * heads + head
    q_rows = tl.load(q + at[:, None] * d + width[None, :], mask=real[:, None] & (width < d)[None, :], other=0.0)
    share = tl.load(weights + at, mask=real, other=0.0)
    end = tl.load(ends + sequence * queries + query, mask=query < queries, other=0)

    tiles = tl.cdiv(keys, KEYS)
    per_split = tl.cdiv(tiles, splits)
    first = tl.program_id(0) * per_split
    last = tl.minimum(first + per_split, tiles)
    scored = tl.maximum(first, tl.minimum(last, tl.cdiv(tl.max(end, 0), KEYS)))
    out = logits + (sequence * queries + query) * keys
    for tile in range(first, scored):
        key = tile * KEYS + tl.arange(0, KEYS)
        inside = key < keys
        rows = k + (sequence * keys + key)[:, None] * d + width[None, :]
        k_rows = tl.load(rows, mask=inside[:, None] & (width < d)[None, :], other=0.0)
        products = tl.maximum(tl.dot(k_rows, q_rows.T), 0.0) * share[None, :]
        scores = tl.sum(tl.reshape(products, [KEYS, QUERIES, HEADS]), 2)
        if SCALED:
            scores *= tl.load(key_scale + sequence * keys + key, mask=inside, other=0.0)[:, None]
        scores = tl.where(key[:, None] < end[None, :], scores, hidden)
        tl.store(out[None, :] + key[:, None], scores, mask=inside[:, None] & (query < queries)[None, :])
    for tile in range(scored, last):
        key = tile * KEYS + tl.arange(0, KEYS)
        blank = tl.zeros([KEYS, QUERIES], tl.float32) + hidden
        tl.store(out[None, :] + key[:, None], blank, mask=(key < keys)[:, None] & (query < queries)[None, :])


def indexer_logits(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    ends: torch.Tensor,
    *,
    key_scale: torch.Tensor | None = None,
    splits: int = 1,
    hidden: float = float("-inf"),
) -> torch.Tensor:
    """logits[b, i, t] = key_scale[b, t] · Σ_h weights[b, i, h] · relu(q[b, i, h] · k[b, t]) for t < ends[b, i].

    q [B, S, H, d] and k [B, L, d], contiguous, bf16, fp16 or fp8 (e4m3); weights [B, S, H] fp32; ends [B, S] int32;
    key_scale [B, L] fp32, for fp8 keys. Returns [B, S, L] fp32, `hidden` where t ≥ ends[b, i]. splits: thread blocks
    that share the keys of a query.
    """
    B, S, H, d = q.shape
    L, HEADS = k.shape[1], triton.next_power_of_2(H)
    QUERIES = max(1, ROWS // HEADS)
    logits = torch.empty(B, S, L, dtype=torch.float32, device=q.device)
    grid = (splits, triton.cdiv(S, QUERIES), B)
    indexer_logits_kernel[grid](
        q,
        k,
        key_scale if key_scale is not None else weights,
        weights,
        ends,
        logits,
        S,
        L,
        H,
        d,
        splits,
        hidden,
        QUERIES,
        HEADS,
        max(16, triton.next_power_of_2(d)),
        KEYS,
        key_scale is not None,
        num_warps=8,
        num_stages=3 if roomy(q.device) else 2,
    )
    return logits


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """DeepSeek-V3.2's 64 index heads of 128, in bf16 and in fp8."""

    def call(dtype: torch.dtype) -> Callable[[], object]:
        q = torch.empty(1, 64, 64, 128, dtype=dtype, device=device)
        k = torch.empty(1, 4096, 128, dtype=dtype, device=device)
        weights, scale = torch.empty(1, 64, 64, device=device), torch.empty(1, 4096, device=device)
        ends = torch.empty(1, 64, dtype=torch.int32, device=device)
        return lambda: indexer_logits(q, k, weights, ends, key_scale=scale if dtype.itemsize == 1 else None)

    return {"bf16": call(torch.bfloat16), "fp8": call(torch.float8_e4m3fn)}
