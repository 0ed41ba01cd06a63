"""Latent attention, row by row in both forms; the absorbed one compared with dense expanded attention."""

import math

import torch

from costmodel.mixers.mla import Dims, absorbs
from costmodel.step import Step
from validation.references.gqa import attend, visible
from validation.references.plain import linear, random


def queries_and_latents(d: Dims, D: int, x: torch.Tensor, P: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query latent [S, q_l] (or the input), queries [H, S, dn + dr] and latents with position keys [P + S, c + dr]."""
    low = x if d.q_l is None else linear(x, d.q_l)
    q = linear(low, d.H * (d.dn + d.dr)).view(len(x), d.H, -1).transpose(0, 1)
    return low, q, torch.cat([random(P, d.c + d.dr), linear(x, d.c + d.dr)])


def expand(latents: torch.Tensor, d: Dims, w_k: torch.Tensor, w_v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [H, L, dn + dr] and values [H, L, dv] from latents; w_k [H, dn, c], w_v [H, c, dv]."""
    c = latents[:, : d.c]
    k = torch.stack([torch.cat([c @ w_k[h].T, latents[:, d.c :]], -1) for h in range(d.H)])
    return k, torch.stack([c @ w_v[h] for h in range(d.H)])


def absorb(q: torch.Tensor, d: Dims, w_k: torch.Tensor) -> torch.Tensor:
    """Queries over latents [H, S, c + dr], scaled for the width of the expanded heads."""
    scale = math.sqrt((d.c + d.dr) / (d.dn + d.dr))
    return scale * torch.stack([torch.cat([q[h, :, : d.dn] @ w_k[h], q[h, :, d.dn :]], -1) for h in range(d.H)])


def values_of(out: torch.Tensor, d: Dims, w_v: torch.Tensor) -> torch.Tensor:
    """Outputs over latents [S, H·c] to value heads [S, H·dv]."""
    return torch.cat([out[:, h * d.c : (h + 1) * d.c] @ w_v[h] for h in range(d.H)], -1)


def weights(d: Dims) -> tuple[torch.Tensor, torch.Tensor]:
    """Both halves of kv_b, by head."""
    return random(d.H, d.dn, d.c), random(d.H, d.c, d.dv)


def finish(out: torch.Tensor, d: Dims, D: int, x: torch.Tensor) -> None:
    """Gate and output projection."""
    linear(out * torch.sigmoid(linear(x, d.H * d.dv)) if d.gate else out, D)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    w_k, w_v = weights(d)
    first, last = visible(step.S, step.P, None, step.bidirectional)
    for _ in range(step.B):
        x = random(step.S, D)
        _, q, latents = queries_and_latents(d, D, x, step.P)
        if absorbs(d, step):
            out = attend(absorb(q, d, w_k), latents[None], latents[None, :, : d.c], first, last)
            out = values_of(out, d, w_v)
        else:
            out = attend(q, *expand(latents, d, w_k, w_v), first, last)
        finish(out, d, D, x)


def compare(d: Dims) -> float:
    """Absorbed, row by row, against expanded, dense under a mask."""
    S, P, D = 13, 5, 24
    w_k, w_v = weights(d)
    _, q, latents = queries_and_latents(d, D, random(S, D), P)
    first, last = visible(S, P, None, False)
    plain = values_of(attend(absorb(q, d, w_k), latents[None], latents[None, :, : d.c], first, last), d, w_v)
    expected = dense(q, latents, d, w_k, w_v, torch.arange(P + S) < torch.tensor(last)[:, None])
    return float((plain - expected).abs().max() / expected.abs().max())


def dense(
    q: torch.Tensor, latents: torch.Tensor, d: Dims, w_k: torch.Tensor, w_v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Expanded attention over all keys under a mask [S, L], as einsums: [S, H·dv]."""
    k = torch.einsum("lc,hnc->hln", latents[:, : d.c], w_k)
    k = torch.cat([k, latents[:, d.c :].expand(d.H, -1, -1)], -1)
    scores = torch.einsum("hsd,hld->hsl", q, k) / (d.dn + d.dr) ** 0.5
    share = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    return torch.einsum("hsl,lc,hcv->shv", share, latents[:, : d.c], w_v).flatten(1)
