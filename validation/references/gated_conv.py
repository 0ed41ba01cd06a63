"""Gated short convolution, window by window; compared with a grouped convolution of torch."""

import torch

from costmodel.mixers.gated_conv import Dims
from costmodel.step import Step
from validation.references.plain import difference, linear, random, short_conv


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        before, behind, x = linear(random(step.S, D), 3 * d.W).chunk(3, -1)
        linear(behind * short_conv(before * x, d.conv), D)


def compare(d: Dims) -> float:
    """A sum over shifted inputs against torch's depthwise convolution."""
    S = 13
    before, behind, x, taps = random(S, d.W), random(S, d.W), random(S, d.W), random(d.W, d.conv)
    gated = torch.cat([torch.zeros(d.conv - 1, d.W, dtype=x.dtype), before * x])
    plain = behind * sum(gated[i : i + S] * taps[:, i] for i in range(d.conv))
    expected = torch.nn.functional.conv1d(gated.T[None], taps[:, None], groups=d.W)[0].T
    return difference(plain, behind * expected)
