"""Compressed sparse attention, row by row: index scores of finished entries, top-k, gather; compared with masks."""

import torch

from costmodel.mixers.csa import Dims
from costmodel.step import Step
from validation.references import dsv4_window as window
from validation.references.dsa import best, score
from validation.references.hca import pool, pool_shifted, projected_tokens, visible
from validation.references.plain import difference, linear, random


def index_inputs(
    d: Dims, x: torch.Tensor, low: torch.Tensor, P: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Index queries [S, HI, dI], values and gates of the index keys [P + S, 2·m·dI], head weights [S, HI]."""
    q = linear(low, d.HI * d.dI).view(len(x), d.HI, d.dI)
    return q, projected_tokens(x, P, d.m, d.dI), linear(x, d.HI)


def select(d: Dims, qi: torch.Tensor, ki: torch.Tensor, w: torch.Tensor, P: int) -> list[torch.Tensor]:
    """The k best finished entries of each query."""
    ends = [(P + i + 1) // d.r for i in range(len(qi))]
    return [best(score(qi[i], ki[:end, None], w[i]), d.k) for i, end in enumerate(ends)]


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        low, q = window.queries(d, x)
        kv = window.keys(d, x, step.P)
        entries = pool(projected_tokens(x, step.P, d.m, d.dh), random(d.r, d.m, d.dh), d.r, d.m)
        qi, tokens, w = index_inputs(d, x, low, step.P)
        chosen = select(d, qi, pool(tokens, random(d.r, d.m, d.dI), d.r, d.m), w, step.P)
        out = window.attend(q, visible(kv, entries, chosen, step.P, d.w), window.logits_of_sinks(d))
        window.project_out(out, random(d.g, d.H * d.dh // d.g, d.o), random(d.g * d.o, D))


def compare(d: Dims) -> float:
    """Gathered rows against a mask of the k best by einsum, over keys pooled from shifted series."""
    S, P, D = 29, 6, 24
    x, sinks, bias, index_bias = random(S, D), window.logits_of_sinks(d), random(d.r, d.m, d.dh), random(d.r, d.m, d.dI)
    (low, q), kv = window.queries(d, x), window.keys(d, x, P)
    tokens, (qi, index_tokens, w) = projected_tokens(x, P, d.m, d.dh), index_inputs(d, x, low, P)
    entries, ki = pool(tokens, bias, d.r, d.m), pool(index_tokens, index_bias, d.r, d.m)
    out = window.attend(q, visible(kv, entries, select(d, qi, ki, w, P), P, d.w), sinks)
    shifted = pool_shifted(index_tokens, index_bias, d.r, d.m)
    logits = torch.einsum("shl,sh->sl", torch.relu(torch.einsum("shd,ld->shl", qi, shifted)), w)
    finished = torch.arange(1, len(ki) + 1) * d.r <= torch.arange(P + 1, P + S + 1)[:, None]
    chosen = torch.zeros_like(finished).scatter_(1, best(logits.masked_fill(~finished, -torch.inf), d.k), True)
    mask = torch.cat([window.band(S, P, d.w), chosen & finished], -1)
    dense = window.dense(q, torch.cat([kv, pool_shifted(tokens, bias, d.r, d.m)]), sinks, mask)
    return difference(out, dense)
