"""Sparse latent attention, row by row: index scores, top-k, gather; compared with dense attention under a mask."""

import torch

from costmodel.mixers.dsa import Dims
from costmodel.step import Step
from validation.references import mla
from validation.references.plain import linear, random


def score(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Logits [L] of one query: q [HI, dI] and weights w [HI] against index keys k [L, k_heads, dI]."""
    HI, k_heads = q.shape[0], k.shape[1]
    products = torch.cat([k[:, g] @ q[g * HI // k_heads : (g + 1) * HI // k_heads].T for g in range(k_heads)], -1)
    return (torch.relu(products) * w).sum(-1)


def attend_selected(q: torch.Tensor, latents: torch.Tensor, c: int, selected: list[torch.Tensor]) -> torch.Tensor:
    """q [H, S, c + dr] over the gathered rows of each query: [S, H·c]."""
    rows = []
    for i, chosen in enumerate(selected):
        gathered = latents[chosen]
        share = torch.softmax(q[:, i] @ gathered.T / q.shape[-1] ** 0.5, -1)
        rows.append((share @ gathered[:, :c]).flatten())
    return torch.stack(rows)


def index_inputs(
    d: Dims, x: torch.Tensor, low: torch.Tensor, P: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Index queries [S, HI, dI], keys [P + S, k_heads, dI] and head weights [S, HI]."""
    q = linear(low, d.HI * d.dI).view(len(x), d.HI, d.dI)
    k = torch.cat([random(P, d.k_heads * d.dI), linear(x, d.k_heads * d.dI)]).view(P + len(x), d.k_heads, d.dI)
    return q, k, linear(x, d.HI)


def best(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest along the last axis, or of all; of equal logits (the ReLU leaves zeros) the first."""
    return torch.sort(logits, descending=True, stable=True).indices[..., :k]


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data; a shared selection is drawn at random."""
    w_k, w_v = mla.weights(d)
    last = [step.L if step.bidirectional else step.P + i + 1 for i in range(step.S)]
    for _ in range(step.B):
        x = random(step.S, D)
        low, q, latents = mla.queries_and_latents(d, D, x, step.P)
        if d.runs:
            qi, ki, w = index_inputs(d, x, low, step.P)
            selected = [best(score(qi[i], ki[:end], w[i]), d.k) for i, end in enumerate(last)]
        else:
            selected = [best(random(end), d.k) for end in last]
        out = attend_selected(mla.absorb(q, d, w_k), latents, d.c, selected)
        mla.finish(mla.values_of(out, d, w_v), d, D, x)


def compare(d: Dims) -> float:
    """Row by row and gathered, against all scores by einsum, a mask of the k best, and dense expanded attention."""
    S, P, D = 13, 5, 24
    w_k, w_v = mla.weights(d)
    x = random(S, D)
    low, q, latents = mla.queries_and_latents(d, D, x, P)
    causal = torch.arange(P + S) < torch.arange(P + 1, P + S + 1)[:, None]
    qi, ki, w = index_inputs(d, x, low, P)
    repeated = ki.repeat_interleave(d.HI // d.k_heads, 1)
    logits = torch.einsum("shl,sh->sl", torch.relu(torch.einsum("shd,lhd->shl", qi, repeated)), w)
    if d.runs:
        selected = [best(score(qi[i], ki[: P + i + 1], w[i]), d.k) for i in range(S)]
    else:
        logits = random(S, P + S)
        selected = [best(logits[i, : P + i + 1], d.k) for i in range(S)]
    mask = torch.zeros(S, P + S, dtype=torch.bool)
    mask.scatter_(1, best(logits.masked_fill(~causal, -torch.inf), d.k), True)
    plain = mla.values_of(attend_selected(mla.absorb(q, d, w_k), latents, d.c, selected), d, w_v)
    expected = mla.dense(q, latents, d, w_k, w_v, mask & causal)
    return float((plain - expected).abs().max() / expected.abs().max())
