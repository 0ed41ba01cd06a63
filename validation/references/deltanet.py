"""DeltaNet: the chunked gated delta rule with decays of one; compared with its own recurrence, which has none."""

import torch

from costmodel.mixers.deltanet import Dims, rule
from costmodel.mixers.gated_delta_product import channels
from costmodel.step import Step
from validation.references import gdn
from validation.references.gated_delta_product import recurrent
from validation.references.plain import difference, linear, random, short_conv


def inputs(d: Dims, S: int) -> gdn.Data:
    """As for the gated rule, without decay."""
    q, k, v, alpha, beta, M = gdn.inputs(S, d.dk, d.dv, 1)
    return q, k, v, torch.ones_like(alpha), beta, M


def stepped(data: gdn.Data) -> tuple[torch.Tensor, torch.Tensor]:
    """One Householder step per token, no decay."""
    q, k, v, alpha, beta, M = data
    return recurrent((q, k, v, beta, alpha, M), 1, forget=False)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for width in (d.H * d.dk, d.H * d.dk, d.H * d.dv, d.H):
            linear(x, width)
        if d.gate:
            linear(x, d.H * d.dv)
        short_conv(random(step.S, channels(rule(d))), d.conv)
        heads = []
        for _ in range(d.H):
            data = inputs(d, step.S)
            heads.append((stepped(data) if step.decoding else gdn.chunked(data, d.C))[0])
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(d, 2 * d.C + 3)
    plain, expected = gdn.chunked(data, d.C), stepped(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
