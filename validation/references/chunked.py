"""Chunked attention, row by row; compared with dense attention under a mask of equal chunk numbers."""

import torch

from costmodel.mixers.chunked import Dims
from costmodel.step import Step
from validation.references.gqa import attend
from validation.references.plain import difference, linear, random


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    first = [(step.P + i) // d.c * d.c for i in range(step.S)]
    last = [step.P + i + 1 for i in range(step.S)]
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + d.Hkv * (d.dk + d.dv) + (d.H * d.dv if d.gate else 0))
        q, k, v = random(d.H, step.S, d.dk), random(d.Hkv, step.L, d.dk), random(d.Hkv, step.L, d.dv)
        linear(attend(q, k, v, first, last), D)


def compare(d: Dims) -> float:
    """Against dense attention with a mask: same chunk, and not later."""
    S, P = 2 * d.c + 3, d.c + 2
    q, k, v = random(d.H, S, d.dk), random(d.Hkv, P + S, d.dk), random(d.Hkv, P + S, d.dv)
    plain = attend(q, k, v, [(P + i) // d.c * d.c for i in range(S)], [P + i + 1 for i in range(S)])
    rows, columns = torch.arange(P, P + S)[:, None], torch.arange(P + S)
    mask = (columns <= rows) & (columns // d.c == rows // d.c)
    return difference(plain, dense(q, k, v, mask))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """q [H, S, dk], k [Hkv, L, dk], v [Hkv, L, dv] under a mask [S, L] or [H, S, L]: [S, H·dv], empty rows zero."""
    group = q.shape[0] // k.shape[0]
    scores = torch.einsum("hsd,hld->hsl", q, k.repeat_interleave(group, 0)) / q.shape[-1] ** 0.5
    shares = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1).nan_to_num(0.0)
    return torch.einsum("hsl,hld->shd", shares, v.repeat_interleave(group, 0)).flatten(1)
