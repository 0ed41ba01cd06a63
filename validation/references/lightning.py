"""Lightning attention: retention with heads of equal width; compared with the sum over all earlier tokens."""

import torch

from costmodel.mixers.lightning import Dims, retention
from costmodel.step import Step
from validation.references.plain import difference, linear, random
from validation.references.retnet import chunked, heads, inputs


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, 3 * d.H * d.d)
        if d.gate == "full":
            linear(x, d.H * d.d)
        linear(heads(retention(d), step), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against o[t] = Σ λ^(t−j)·(q[t]·k[j])·v[j] + λ^(t+1)·q[t]·M."""
    q, k, v, decay, M = inputs(2 * d.C + 3, d.d, d.d)
    t = torch.arange(len(q), dtype=q.dtype)
    distance = t[:, None] - t
    weights = torch.where(distance >= 0, decay[0] ** distance.clamp(min=0), 0.0)
    expected = (weights * (q @ k.T)) @ v + decay[0] ** (t[:, None] + 1) * (q @ M)
    return difference(chunked((q, k, v, decay, M), d.C)[0], expected)
