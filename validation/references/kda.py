"""Kimi Delta Attention: the chunked gated delta rule with a decay per key channel; compared with its recurrence."""

import torch

from costmodel.mixers.kda import Dims, channels
from costmodel.step import Step
from validation.references.gdn import chunked, inputs, recurrent
from validation.references.plain import difference, linear, random, short_conv


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for width in (d.H * d.dk, d.H * d.dk, d.H * d.dv, d.H):
            linear(x, width)
        linear(linear(x, d.r), d.H * d.dk)
        linear(x if d.rg is None else linear(x, d.rg), d.H * d.dv)
        short_conv(random(step.S, channels(d)), d.conv)
        heads = []
        for _ in range(d.H):
            data = inputs(step.S, d.dk, d.dv, d.dk)
            heads.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(2 * d.C + 3, d.dk, d.dv, d.dk)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
