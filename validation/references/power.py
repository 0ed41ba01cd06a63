"""Power attention by feature maps and folded states, token by token; compared with squared dot products."""

import torch

from costmodel.mixers.power import Dims, features
from costmodel.step import Step
from validation.references.plain import difference, linear, random


def feature_map(x: torch.Tensor) -> torch.Tensor:
    """The products of two elements of each row, mixed ones times √2: φ(q)·φ(k) = (q·k)²."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1])
    return x[..., i] * x[..., j] * torch.where(i == j, 1, 2).to(x.dtype).sqrt()


class KeyHead:
    """The open chunk of a key head and its state [D_φ, dv + 1], None before the first fold."""

    def __init__(self, d: Dims, P: int) -> None:
        self.d, rows = d, P % d.C
        self.k, self.v, self.a = random(rows, d.dk), random(rows, d.dv), decays(d, rows)
        self.state = random(features(d), d.dv + 1) if P >= d.C else None

    def step(self, t: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Outputs [G, dv] of token t for the query heads of the group; k, v of one token, a its decay."""
        self.k, self.v, self.a = torch.cat([self.k, k]), torch.cat([self.v, v]), torch.cat([self.a, a])
        decay = self.a.cumprod(0)
        weights = (q @ self.k.T) ** 2 * (decay[-1] / decay)
        out, norm = weights @ self.v, weights.sum(-1, keepdim=True)
        if self.state is not None:
            found = decay[-1] * (feature_map(q) @ self.state)
            out, norm = out + found[:, :-1], norm + found[:, -1:]
        if (t + 1) % self.d.C == 0:
            values = torch.cat([self.v, torch.ones(self.d.C, 1, dtype=v.dtype)], -1)
            new = feature_map(self.k * (decay[-1] / decay)[:, None] ** 0.5).T @ values
            self.state = new if self.state is None else decay[-1] * self.state + new
            self.k, self.v, self.a = self.k[:0], self.v[:0], self.a[:0]
        return out / norm


def decays(d: Dims, S: int) -> torch.Tensor:
    """One per token: in (0.8, 1), or 1 without gating."""
    return 0.8 + 0.2 * torch.sigmoid(random(S)) if d.gate else torch.ones(S, dtype=torch.float64)


def run(head: KeyHead, P: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Outputs [S, G, dv] of one group: q [S, G, dk], k [S, dk], v [S, dv], a [S]."""
    rows = [slice(i, i + 1) for i in range(len(q))]
    return torch.stack([head.step(P + i, q[i], k[r], v[r], a[r]) for i, r in enumerate(rows)])


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    group = d.H // d.Hkv
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + d.Hkv * (d.dk + d.dv + (1 if d.gate else 0)))
        heads = [
            run(
                KeyHead(d, step.P),
                step.P,
                random(step.S, group, d.dk),
                random(step.S, d.dk),
                random(step.S, d.dv),
                decays(d, step.S),
            )
            for _ in range(d.Hkv)
        ]
        linear(torch.cat(heads, 1).flatten(1), D)


def compare(d: Dims) -> float:
    """Against squared, decayed and normalised dot products of all pairs, over three chunks and a bit."""
    S, group = 3 * d.C + 3, d.H // d.Hkv
    q, k, v, a = random(S, group, d.dk), random(S, d.dk), random(S, d.dv), decays(d, S)
    logs = a.log().cumsum(0)
    weights = torch.einsum("sgd,td->gst", q, k) ** 2 * (logs[:, None] - logs).exp().tril()
    expected = torch.einsum("gst,tv->sgv", weights / weights.sum(-1, keepdim=True), v)
    return difference(run(KeyHead(d, 0), 0, q, k, v, a), expected)
