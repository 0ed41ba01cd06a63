"""Zamba2's shared block, adapters beside their matrices; compared with adapters merged into them, dense attention."""

import torch

from costmodel.mixers.zamba2_shared import Dims
from costmodel.step import Step
from validation.references.gqa import attend, visible
from validation.references.plain import difference, linear, random


def through(x: torch.Tensor, width: int, rank: int | None) -> torch.Tensor:
    """A matrix, plus an adapter of some rank."""
    return linear(x, width) if rank is None else linear(x, width) + linear(linear(x, rank), width)


def counted(d: Dims, D: int, step: Step) -> None:
    """One call on random data."""
    rank = d.r if d.attention_adapters else None
    first, last = visible(step.S, step.P, None, step.bidirectional)
    for _ in range(step.B):
        both = torch.cat([random(step.S, D), random(step.S, D)], -1)
        q, k, v = (through(both, d.H * d.d, rank).view(step.S, d.H, d.d).transpose(0, 1) for _ in range(3))
        k, v = (torch.cat([random(d.H, step.P, d.d), new], 1) for new in (k, v))
        x = linear(attend(q, k, v, first, last), D)
        inner = through(x, 2 * d.F, d.r)
        linear(linear(torch.nn.functional.gelu(inner[:, : d.F]) * inner[:, d.F :], D), D)


def compare(d: Dims) -> float:
    """Attention with adapters aside, row by row, against merged weights under a mask."""
    S, D = 13, 24
    both = random(S, 2 * D)
    w = [random(2 * D, d.H * d.d) for _ in range(3)]
    a, b = [random(2 * D, d.r) for _ in range(3)], [random(d.r, d.H * d.d) for _ in range(3)]
    aside = [(both @ w[i] + (both @ a[i]) @ b[i]).view(S, d.H, d.d) for i in range(3)]
    q, k, v = (x.transpose(0, 1) for x in aside)
    plain = attend(q, k, v, *visible(S, 0, None, False))
    q, k, v = ((both @ (w[i] + a[i] @ b[i])).view(S, d.H, d.d) for i in range(3))
    scores = torch.einsum("shd,lhd->hsl", q, k) / d.d**0.5
    scores = scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -torch.inf)
    return difference(plain, torch.einsum("hsl,lhd->shd", torch.softmax(scores, -1), v).flatten(1))
