"""Mamba-1, channel by channel; its step-by-step recurrence is compared with the sum over all earlier tokens."""

import torch

from costmodel.mixers.mamba1 import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.plain import difference, linear, random, short_conv

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""x = Δ·input [S, inner], decays a [S, inner, N], B and C [S, N], state h [inner, N]."""


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token: decay, write, read."""
    x, a, b, c, h = data
    rows = []
    for t in range(len(x)):
        with vector():
            h = h * a[t]
            h = h + x[t][:, None] * b[t]
            rows.append((h @ c[t][:, None])[:, 0])
    return torch.stack(rows), h


def summed(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without a recurrence: every token meets every earlier one through the product of the decays between."""
    x, a, b, c, first = data
    upto = a.log().cumsum(0)
    rows = []
    for t in range(len(x)):
        between = (upto[t] - upto[: t + 1]).exp()
        h = (between * x[: t + 1, :, None] * b[: t + 1, None]).sum(0) + upto[t].exp() * first
        rows.append((h * c[t]).sum(-1))
    return torch.stack(rows), h


def inputs(d: Dims, S: int) -> Data:
    """Decays in (0.8, 1)."""
    a = 0.8 + 0.2 * torch.sigmoid(random(S, d.inner, d.N))
    return random(S, d.inner), a, random(S, d.N), random(S, d.N), random(d.inner, d.N)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        linear(random(step.S, D), 2 * d.inner)
        x = short_conv(random(step.S, d.inner), d.conv)
        linear(x, d.rank + 2 * d.N)
        linear(random(step.S, d.rank), d.inner)
        linear(recurrent(inputs(d, step.S))[0], D)


def compare(d: Dims) -> float:
    """The recurrence against the sum; output and final state."""
    data = inputs(d, 19)
    return max(difference(*pair) for pair in zip(recurrent(data), summed(data), strict=True))
