"""InfLLM-v2, row by row: two levels of pooled keys, block maxima, top-k; compared with a dense form under a mask."""

import torch

from costmodel.mixers.infllm2 import COARSER, Dims, blocks
from costmodel.step import Step
from validation.references import gqa
from validation.references.chunked import dense
from validation.references.dsa import best
from validation.references.moba import Choice, attend_chosen, block_mask, tokens_of
from validation.references.nsa import complete, pooled
from validation.references.plain import difference, linear, random


def rate(q: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor, d: Dims, g: int, end: int) -> torch.Tensor:
    """What the heads q [H/Hkv, dk] of key head g give each block of `end` tokens: the largest summed probability of the
    pooled keys that touch it."""
    seen, wide = complete(end, d.l, d.r), complete(end, COARSER * d.l, COARSER * d.r)
    summed = torch.zeros(seen, dtype=q.dtype)
    for h in range(len(q)):
        row = q[h : h + 1] / d.dk**0.5
        total = torch.logsumexp(row @ coarse[g, :wide].T, -1) if wide else torch.zeros(1, dtype=q.dtype)
        if seen:
            summed += torch.exp(row @ fine[g, :seen].T - total)[0]
    rated = torch.zeros((end - 1) // d.b + 1, dtype=q.dtype)
    for n in range(len(rated)):
        first = max(0, -(-(n * d.b - d.l + 1) // d.r))  # the first entry that reaches into the block
        touching = summed[first : ((n + 1) * d.b - 1) // d.r + 1]
        rated[n] = touching.max() if len(touching) else 0.0
    return rated


def choose(q: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor, d: Dims, P: int) -> Choice:
    """The best blocks of a key head, the first ones and those of the window among them."""
    group = d.H // d.Hkv

    def choice(g: int, i: int) -> torch.Tensor:
        end = P + i + 1
        rated = rate(q[g * group : (g + 1) * group, i], fine, coarse, d, g, end)
        rated[: d.init_blocks] = torch.inf
        rated[max(0, len(rated) - max(1, d.w // d.b)) :] = torch.inf
        return tokens_of(best(rated, blocks(d)), d.b, end)

    return choice


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    if d.dense_len > step.L:
        gqa.counted(d, D, step)
        return
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + d.Hkv * (d.dk + d.dv) + (d.H * d.dv if d.gate else 0))
        q, k, v = random(d.H, step.S, d.dk), random(d.Hkv, step.L, d.dk), random(d.Hkv, step.L, d.dv)
        choice = choose(q, pooled(k, d.l, d.r), pooled(k, COARSER * d.l, COARSER * d.r), d, step.P)
        linear(attend_chosen(q, k, v, d.Hkv, choice), D)


def compare(d: Dims) -> float:
    """Against all probabilities by einsum, a maximum over touching entries by mask, and dense attention."""
    S, P = 21, 6
    L, count, group = P + S, -(-(P + S) // d.b), d.H // d.Hkv
    q, k, v = random(d.H, S, d.dk), random(d.Hkv, L, d.dk), random(d.Hkv, L, d.dv)
    choice = choose(q, pooled(k, d.l, d.r), pooled(k, COARSER * d.l, COARSER * d.r), d, P)
    plain = attend_chosen(q, k, v, d.Hkv, choice)
    rows, number = torch.arange(P, L)[:, None], torch.arange(count)

    def level(width: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        means = k.unfold(1, width, stride).mean(-1)
        done = torch.arange(means.shape[1]) * stride + width - 1 <= rows
        scores = torch.einsum("hsd,hed->hse", q, means.repeat_interleave(group, 0)) / d.dk**0.5
        return scores.masked_fill(~done, -torch.inf), done

    fine, _ = level(d.l, d.r)
    coarse, done = level(COARSER * d.l, COARSER * d.r)
    total = torch.where(done.any(-1), torch.logsumexp(coarse, -1), 0.0)
    summed = torch.exp(fine - total[..., None]).reshape(d.Hkv, group, S, -1).sum(1)
    start = torch.arange(fine.shape[-1])[:, None] * d.r
    touches = (start < (number + 1) * d.b) & (start + d.l > number * d.b)
    rated = (summed[..., None] * touches).amax(-2)
    own = rows // d.b
    forced = (number < d.init_blocks) | (number > own - max(1, d.w // d.b))
    rated = rated.masked_fill(forced, torch.inf).masked_fill(number > own, -torch.inf)
    chosen = torch.zeros_like(rated, dtype=torch.bool).scatter_(-1, best(rated, blocks(d)), True)
    mask = block_mask(chosen, d.b, P, L).repeat_interleave(group, 0)
    return difference(plain, dense(q, k, v, mask))
