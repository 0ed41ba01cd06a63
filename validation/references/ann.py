"""Attention over an inverted-file index, row by row; compared with dense attention under the mask of the found keys.

The formula takes lists as equally filled and counts expectations. `counted` makes both exact: key i lies in list
i mod lists, and the key heads probe different lists, as many times each, so that their mean is the expectation.
"""

import torch

from costmodel.mixers.ann import Dims
from costmodel.step import Step
from validation.references.chunked import dense
from validation.references.dsa import best
from validation.references.moba import attend_chosen
from validation.references.plain import difference, linear, random


def assign(k: torch.Tensor, centroids: torch.Tensor, bands: int) -> torch.Tensor:
    """The list of every key of k [L, dk]: the nearest of the centroids [lists, dk] of its band of norms."""
    per_band = len(centroids) // bands
    norms = k.square().sum(-1).sqrt()
    edges = torch.quantile(norms, torch.linspace(0, 1, bands + 1, dtype=k.dtype)[1:-1])
    band = torch.bucketize(norms, edges)
    lists = torch.zeros(len(k), dtype=torch.long)
    for n in range(bands):
        members = band == n
        products = k[members] @ centroids[n * per_band : (n + 1) * per_band].T
        lists[members] = n * per_band + products.argmax(-1)
    return lists


def found(q: torch.Tensor, k: torch.Tensor, place: torch.Tensor, probed: torch.Tensor, most: int) -> torch.Tensor:
    """The best of the keys in the probed lists for the summed scores of q [group, dk]; k [seen, dk]."""
    candidates = torch.nonzero(torch.isin(place[: len(k)], probed))[:, 0]
    if not len(candidates):
        return candidates
    scores = (q @ k[candidates].T).sum(0)
    return candidates[best(scores, most)]


def layer(d: Dims, D: int, step: Step) -> None:
    """One sequence."""
    x, place = random(step.S, D), torch.arange(step.L) % d.lists
    linear(x, d.H * d.dk + d.Hkv * (d.dk + d.dv) + (d.H * d.dv if d.gate else 0))
    q, k, v = random(d.H, step.S, d.dk), random(d.Hkv, step.L, d.dk), random(d.Hkv, step.L, d.dv)
    centroids = random(d.Hkv, d.lists, d.dk)
    for _ in range(1 if step.phase == "decode" else d.iterations):
        for g in range(d.Hkv):
            assign(k[g, step.P :], centroids[g], d.bands)

    def choice(g: int, i: int) -> torch.Tensor:
        mine = q.reshape(d.Hkv, -1, step.S, d.dk)[g, :, i]
        mine @ centroids[g].T
        probed = (g + torch.arange(d.probes) * (d.lists // d.probes)) % d.lists
        return found(mine, k[g, : step.P + i + 1], place, probed, d.k)

    linear(attend_chosen(q, k, v, d.Hkv, choice), D)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        layer(d, D, step)


def compare(d: Dims) -> float:
    """Against all scores by einsum, a mask of the probed lists, and dense attention under the best of it."""
    S, P, group = 19, 5, d.H // d.Hkv
    L = P + S
    q, k, v = random(d.H, S, d.dk), random(d.Hkv, L, d.dk), random(d.Hkv, L, d.dv)
    centroids = random(d.Hkv, d.lists, d.dk)
    place = torch.stack([assign(k[g], centroids[g], d.bands) for g in range(d.Hkv)])

    def choice(g: int, i: int) -> torch.Tensor:
        mine = q[g * group : (g + 1) * group, i]
        probed = best((mine @ centroids[g].T).sum(0), d.probes)
        return found(mine, k[g, : P + i + 1], place[g], probed, d.k)

    plain = attend_chosen(q, k, v, d.Hkv, choice)
    summed = q.reshape(d.Hkv, group, S, d.dk).sum(1)
    rated = torch.einsum("gsd,gnd->gsn", summed, centroids)
    probed = torch.zeros_like(rated, dtype=torch.bool).scatter_(-1, best(rated, d.probes), True)
    reach = probed.gather(-1, place[:, None].expand(d.Hkv, S, L)) & (torch.arange(L) <= torch.arange(P, L)[:, None])
    scores = torch.einsum("gsd,gld->gsl", summed, k).masked_fill(~reach, -torch.inf)
    kept = torch.zeros_like(reach).scatter_(-1, best(scores, d.k), True) & reach
    return difference(plain, dense(q, k, v, kept.repeat_interleave(group, 0)))
