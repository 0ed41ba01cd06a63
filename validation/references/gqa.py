"""Softmax attention, row by row; compared with dense attention under a mask."""

import torch

from costmodel.mixers.gqa import Dims
from costmodel.step import Step
from validation.references.plain import linear, random


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: list[int], last: list[int]) -> torch.Tensor:
    """q [H, S, dk], k [Hkv, L, dk], v [Hkv, L, dv]; query i sees keys first[i] … last[i] − 1."""
    H, Hkv = q.shape[0], k.shape[0]
    rows = []
    for i in range(q.shape[1]):
        seen = slice(first[i], last[i])
        heads = []
        for h in range(H):
            g = h * Hkv // H
            scores = q[h, i : i + 1] @ k[g, seen].T / q.shape[-1] ** 0.5
            heads.append(torch.softmax(scores, -1) @ v[g, seen])
        rows.append(torch.cat(heads, -1))
    return torch.cat(rows, 0)


def visible(S: int, P: int, w: int | None, bidirectional: bool) -> tuple[list[int], list[int]]:
    """First and one past the last visible key of each query."""
    last = [P + S if bidirectional else P + i + 1 for i in range(S)]
    return [0 if w is None else max(0, P + i + 1 - w) for i in range(S)], last


def counted(d: Dims, D: int, step: Step, w: int | None = None) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + (d.H * d.dv if d.gate else 0))
        linear(x, d.Hkv * d.dk + (0 if d.k_eq_v else d.Hkv * d.dv))
        q, k, v = random(d.H, step.S, d.dk), random(d.Hkv, step.L, d.dk), random(d.Hkv, step.L, d.dv)
        first, last = visible(step.S, step.P, w, step.bidirectional or not d.causal)
        linear(attend(q, k, v, first, last), D)


def compare(d: Dims, w: int | None = None) -> float:
    """Against dense attention with a mask, heads repeated."""
    S, P = 13, 5
    q, k, v = random(d.H, S, d.dk), random(d.Hkv, P + S, d.dk), random(d.Hkv, P + S, d.dv)
    first, last = visible(S, P, w, not d.causal)
    plain = attend(q, k, v, first, last)
    columns = torch.arange(P + S)
    mask = (columns >= torch.tensor(first)[:, None]) & (columns < torch.tensor(last)[:, None])
    group = d.H // d.Hkv
    scores = torch.einsum("hsd,hld->hsl", q, k.repeat_interleave(group, 0)) / d.dk**0.5
    dense = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    expected = torch.einsum("hsl,hld->shd", dense, v.repeat_interleave(group, 0)).flatten(1)
    return float((plain - expected).abs().max() / expected.abs().max())
