"""JetBlock: the chunked gated delta rule behind a convolution with taps per token; compared with plain loops."""

import torch

from costmodel.mixers.jet import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import chunked, inputs, recurrent
from validation.references.plain import difference, linear, random


def dynamic_conv(x: torch.Tensor, taps: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """x [tokens, channels], taps [tokens, channels, width], the width − 1 inputs before."""
    tokens, channels, width = taps.shape
    seen = torch.cat([before, x]).unfold(0, width, 1)
    with vector():
        out = torch.bmm(seen.reshape(-1, 1, width), taps.reshape(-1, width, 1))
    return out.reshape(tokens, channels)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    values = d.H * d.dv
    for _ in range(step.B):
        x = random(step.S, D)
        for width in (d.H * d.dk, d.H * d.dk, values, values, 2 * d.H):
            linear(x, width)
        taps = linear(linear(x, values // d.ratio), values * d.conv).reshape(step.S, values, d.conv)
        dynamic_conv(random(step.S, values), taps, random(d.conv - 1, values))
        heads = []
        for _ in range(d.H):
            data = inputs(step.S, d.dk, d.dv, 1)
            heads.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """The convolution against a loop over taps, and chunks against the recurrence."""
    S, values = 2 * d.C + 3, d.H * d.dv
    x, taps, before = random(S, values), random(S, values, d.conv), random(d.conv - 1, values)
    padded = torch.cat([before, x])
    expected = sum(taps[..., j] * padded[j : j + S] for j in range(d.conv))
    assert isinstance(expected, torch.Tensor)
    data = inputs(S, d.dk, d.dv, 1)
    pairs = [(dynamic_conv(x, taps, before), expected), *zip(chunked(data, d.C), recurrent(data), strict=True)]
    return max(difference(*pair) for pair in pairs)
