"""Mixture of block attention, row by row: gate, top-k, gather; compared with dense attention under a block mask."""

from collections.abc import Callable

import torch

from costmodel.mixers.moba import Dims
from costmodel.step import Step
from validation.references import gqa
from validation.references.chunked import dense
from validation.references.dsa import best
from validation.references.plain import difference, linear, random

Choice = Callable[[int, int], torch.Tensor]
"""From a head that selects and a query to the token positions that it attends to."""


def attend_chosen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selectors: int, choice: Choice) -> torch.Tensor:
    """q [H, S, dk] over the keys [Hkv, L, dk] that one of the selecting heads chose for it: [S, H·dv]."""
    H, S, dk = q.shape
    out = torch.zeros(S, H, v.shape[-1], dtype=q.dtype)
    for i in range(S):
        chosen = [choice(selector, i) for selector in range(selectors)]
        for h in range(H):
            g, seen = h * k.shape[0] // H, chosen[h * selectors // H]
            if len(seen):
                share = torch.softmax(q[h, i : i + 1] @ k[g, seen].T / dk**0.5, -1)
                out[i, h] = (share @ v[g, seen])[0]
    return out.flatten(1)


def tokens_of(blocks: torch.Tensor, b: int, end: int) -> torch.Tensor:
    """Positions below `end` in the blocks of b tokens."""
    positions = (blocks[:, None] * b + torch.arange(b)).flatten()
    return positions[positions < end]


def block_mask(chosen: torch.Tensor, b: int, P: int, L: int) -> torch.Tensor:
    """chosen [heads, S, blocks] (bool) as a causal mask [heads, S, L] over tokens."""
    wide = chosen.repeat_interleave(b, -1)[..., :L]
    return wide & (torch.arange(L) <= torch.arange(P, L)[:, None])


def means(k: torch.Tensor, b: int) -> torch.Tensor:
    """Mean keys [Hkv, blocks, dk] of the finished blocks of k [Hkv, L, dk]."""
    n = k.shape[1] // b
    return k[:, : n * b].reshape(len(k), n, b, -1).mean(2)


def choose(q: torch.Tensor, mean: torch.Tensor, d: Dims, P: int) -> Choice:
    """The k − 1 best earlier blocks of a head by the product with their mean key, and its own."""

    def choice(h: int, i: int) -> torch.Tensor:
        own = (P + i) // d.b
        scores = mean[h * mean.shape[0] // q.shape[0], :own] @ q[h, i, :, None]
        picked = best(scores[:, 0], d.k - 1)
        return tokens_of(torch.cat([picked, torch.tensor([own])]), d.b, P + i + 1)

    return choice


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    if step.phase == "decode" and not d.sparse_decode:
        gqa.counted(d, D, step)
        return
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + d.Hkv * (d.dk + d.dv) + (d.H * d.dv if d.gate else 0))
        q, k, v = random(d.H, step.S, d.dk), random(d.Hkv, step.L, d.dk), random(d.Hkv, step.L, d.dv)
        linear(attend_chosen(q, k, v, d.H, choose(q, means(k, d.b), d, step.P)), D)


def compare(d: Dims) -> float:
    """Against all gate scores by einsum, earlier blocks only, and dense attention under the mask of the best."""
    S, P = 5 * d.b + 3, d.b + 2
    L, group = P + S, d.H // d.Hkv
    q, k, v = random(d.H, S, d.dk), random(d.Hkv, L, d.dk), random(d.Hkv, L, d.dv)
    plain = attend_chosen(q, k, v, d.H, choose(q, means(k, d.b), d, P))
    blocks = -(-L // d.b)
    padded = torch.cat([k, torch.zeros(d.Hkv, blocks * d.b - L, d.dk, dtype=k.dtype)], 1)
    mean = torch.stack([padded[:, n * d.b : (n + 1) * d.b].sum(1) / d.b for n in range(blocks)], 1)
    scores = torch.einsum("hsd,hnd->hsn", q, mean.repeat_interleave(group, 0))
    own = torch.arange(P, L) // d.b
    number = torch.arange(blocks)
    scores = scores.masked_fill(number == own[:, None], torch.inf).masked_fill(number > own[:, None], -torch.inf)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best(scores, d.k), True)
    return difference(plain, dense(q, k, v, block_mask(chosen, d.b, P, L)))
