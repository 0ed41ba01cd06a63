"""Retention in chunks, row by row; compared with its step-by-step recurrence. Also runs decays that change."""

import torch

from costmodel.mixers.retnet import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower, lower
from validation.references.plain import difference, linear, random

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""One head: q, k [S, dk], v [S, dv], decay alpha [S, 1 or dk], state M [dk, dv]."""


def chunked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state, chunk by chunk."""
    q, k, v, alpha, M = data
    rows = []
    for first in range(0, len(q), C):
        part = slice(first, first + C)
        decay = alpha[part].cumprod(0)
        queries, keys = q[part] * decay, k[part] / decay
        rows.append(queries @ M + apply_lower(lower(queries, keys, 1), v[part], 1))
        M = decay[-1][:, None] * M + (keys * decay[-1]).T @ v[part]
    return torch.cat(rows), M


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, token by token."""
    q, k, v, alpha, M = data
    rows = []
    for t in range(len(q)):
        with vector():
            M = M * alpha[t][:, None]
            M = M + k[t][:, None] * v[t : t + 1]
            rows.append(q[t : t + 1] @ M)
    return torch.cat(rows), M


def inputs(S: int, dk: int, dv: int) -> Data:
    """A decay in (0.8, 1) for the whole head."""
    gamma = 0.8 + 0.2 * torch.sigmoid(random(1, 1)).expand(S, 1)
    return random(S, dk), random(S, dk), random(S, dv), gamma, random(dk, dv)


def heads(d: Dims, step: Step) -> torch.Tensor:
    """The outputs of all heads of one sequence, side by side."""
    run = []
    for _ in range(d.H):
        data = inputs(step.S, d.dk, d.dv)
        run.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
    return torch.cat(run, -1)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for width in (d.H * d.dk, d.H * d.dk, d.H * d.dv, d.H * d.dv):
            linear(x, width)
        linear(heads(d, step), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(2 * d.C + 3, d.dk, d.dv)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
