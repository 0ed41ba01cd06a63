"""MiniMax sparse attention, row by row: token scores, block maxima, top-k; compared with a dense form under a mask."""

import torch

from costmodel.mixers.msa import Dims
from costmodel.step import Step
from validation.references.chunked import dense
from validation.references.dsa import best
from validation.references.moba import Choice, attend_chosen, block_mask, tokens_of
from validation.references.plain import difference, linear, random


def choose(q: torch.Tensor, k: torch.Tensor, d: Dims, P: int) -> Choice:
    """q [HI, S, dI] against k [kI, L, dI]: the blocks whose best visible token scores highest, forced ones first."""

    def choice(h: int, i: int) -> torch.Tensor:
        end = P + i + 1
        scores = (k[h * d.kI // d.HI, :end] @ q[h, i, :, None])[:, 0]
        last = (end - 1) // d.b
        rated = torch.stack([scores[n * d.b : (n + 1) * d.b].max() for n in range(last + 1)])
        rated[: d.init_blocks] = torch.inf
        rated[max(0, last + 1 - d.local_blocks) :] = torch.inf
        return tokens_of(best(rated, d.k), d.b, end)

    return choice


def inputs(d: Dims, S: int, L: int) -> tuple[torch.Tensor, ...]:
    """Index queries and keys, queries, keys and values."""
    index = random(d.HI, S, d.dI), random(d.kI, L, d.dI)
    return (*index, random(d.H, S, d.dk), random(d.Hkv, L, d.dk), random(d.Hkv, L, d.dv))


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + d.Hkv * (d.dk + d.dv) + (d.H * d.dv if d.gate else 0))
        linear(x, d.HI * d.dI)
        linear(x, d.kI * d.dI)
        qi, ki, q, k, v = inputs(d, step.S, step.L)
        linear(attend_chosen(q, k, v, d.HI, choose(qi, ki, d, step.P)), D)


def compare(d: Dims) -> float:
    """Against all token scores by einsum, a padded maximum over blocks, and dense attention under a mask."""
    S, P = 6 * d.b + 3, d.b + 2
    L, blocks = P + S, -(-(P + S) // d.b)
    qi, ki, q, k, v = inputs(d, S, L)
    plain = attend_chosen(q, k, v, d.HI, choose(qi, ki, d, P))
    scores = torch.einsum("hsd,hld->hsl", qi, ki.repeat_interleave(d.HI // d.kI, 0))
    scores = scores.masked_fill(torch.arange(L) > torch.arange(P, L)[:, None], -torch.inf)
    scores = torch.cat([scores, torch.full((d.HI, S, blocks * d.b - L), -torch.inf)], -1)
    rated = scores.reshape(d.HI, S, blocks, d.b).amax(-1)
    own, number = torch.arange(P, L)[:, None] // d.b, torch.arange(blocks)
    forced = (number < d.init_blocks) | ((number > own - d.local_blocks) & (number <= own))
    rated = rated.masked_fill(forced & (number <= own), torch.inf)
    chosen = torch.zeros_like(rated, dtype=torch.bool).scatter_(-1, best(rated, d.k), True)
    mask = block_mask(chosen, d.b, P, L).repeat_interleave(d.H // d.HI, 0)
    return difference(plain, dense(q, k, v, mask))
