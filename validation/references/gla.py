"""Gated linear attention in chunks, row by row, diagonal blocks on the vector lanes; compared with its recurrence."""

import torch

from costmodel.kernels.chunk_scan import SUB_TILE
from costmodel.mixers.gla import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower
from validation.references.plain import difference, linear, random
from validation.references.retnet import Data, recurrent


def products(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The lower triangle of q · kᵀ; what lies in the row's own block of 16 is taken on the vector lanes."""
    n = len(q)
    out = torch.zeros(n, n, dtype=q.dtype)
    for i in range(n):
        block = i // SUB_TILE * SUB_TILE
        out[i : i + 1, :block] = q[i : i + 1] @ k[:block].T
        with vector():
            out[i : i + 1, block : i + 1] = q[i : i + 1] @ k[block : i + 1].T
    return out


def chunked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One head: output and final state, chunk by chunk."""
    q, k, v, alpha, M = data
    rows = []
    for first in range(0, len(q), C):
        part = slice(first, first + C)
        decay = alpha[part].cumprod(0)
        queries, keys = q[part] * decay, k[part] / decay
        rows.append(queries @ M + apply_lower(products(queries, keys), v[part], 1))
        M = decay[-1][:, None] * M + (keys * decay[-1]).T @ v[part]
    return torch.cat(rows), M


def inputs(S: int, dk: int, dv: int) -> Data:
    """Decays in (0.8, 1) per channel and token."""
    alpha = 0.8 + 0.2 * torch.sigmoid(random(S, dk))
    return random(S, dk), random(S, dk), random(S, dv), alpha, random(dk, dv)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for width in (d.H * d.dk, d.H * d.dk, d.H * d.dv, d.H * d.dv):
            linear(x, width)
        linear(linear(x, d.r), d.H * d.dk)
        heads = []
        for _ in range(d.H):
            data = inputs(step.S, d.dk, d.dv)
            heads.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(2 * d.C + 3, d.dk, d.dv)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
