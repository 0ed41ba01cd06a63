"""RWKV-4's weighted mean, token by token; compared with the sums over all earlier tokens."""

import torch

from costmodel.mixers.rwkv4 import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.plain import difference, linear, random

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""k, v [S, channels]; decay w and bonus u [channels]; sums a and b [channels]."""


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs and both sums at the end, token by token: the quotient, then the sums."""
    k, v, w, u, a, b = data
    ew = w.exp()
    rows = []
    for t in range(len(k)):
        own, ek = (u + k[t]).exp(), k[t].exp()
        with vector():
            rows.append((a + own * v[t]) / (b + own))
            a = ew * a + ek * v[t]
            b = ew * b + ek
    return torch.stack(rows), a, b


def summed(data: Data) -> torch.Tensor:
    """The same by its definition: weights e^((t−1−j)·w + k[j]) of earlier tokens, e^(u + k[t]) of the token itself."""
    k, v, w, u, a, b = data
    rows = []
    for t in range(len(k)):
        distance = torch.arange(t - 1, -1, -1, dtype=k.dtype)[:, None]
        weights = torch.cat([(distance * w + k[:t]).exp(), (u + k[t]).exp()[None]])
        upper = (weights * v[: t + 1]).sum(0) + (t * w).exp() * a
        rows.append(upper / (weights.sum(0) + (t * w).exp() * b))
    return torch.stack(rows)


def inputs(S: int, channels: int) -> Data:
    """Negative log decays, and sums as some earlier tokens would leave them."""
    w = -0.3 * torch.sigmoid(random(channels))
    return random(S, channels), random(S, channels), w, random(channels), random(channels), random(channels).exp()


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for _ in range(3):
            linear(x, d.inner)
        linear(recurrent(inputs(step.S, d.inner))[0], D)


def compare(d: Dims) -> float:
    """The recurrence against the sums."""
    data = inputs(19, d.inner)
    return difference(recurrent(data)[0], summed(data))
