"""RWKV-5 in chunks, row by row, with the bonus on the diagonal; compared with its step-by-step recurrence."""

from typing import Any

import torch

from costmodel.kernels.chunk_scan import SUB_TILE
from costmodel.mixers.rwkv5 import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower
from validation.references.plain import difference, linear, random

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""One head: r, k, v and decay w [S, d], bonus u [d], state M [d, d]."""


def products(r: torch.Tensor, k: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """r · kᵀ below the diagonal and r · ownᵀ on it; a row's own block of 16 is taken on the vector lanes."""
    n = len(r)
    out = torch.zeros(n, n, dtype=r.dtype)
    for i in range(n):
        block = i // SUB_TILE * SUB_TILE
        out[i : i + 1, :block] = r[i : i + 1] @ k[:block].T
        with vector():
            out[i : i + 1, block : i + 1] = r[i : i + 1] @ torch.cat([k[block:i], own[i : i + 1]]).T
    return out


def chunked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state, chunk by chunk."""
    r, k, v, w, u, M = data
    rows = []
    for first in range(0, len(r), C):
        part = slice(first, first + C)
        decay = w[part].cumprod(0)
        before = decay / w[part]
        queries, keys = r[part] * before, k[part] / decay
        scores = products(queries, keys, k[part] * u / before)
        rows.append(queries @ M + apply_lower(scores, v[part], 1))
        M = decay[-1][:, None] * M + (keys * decay[-1]).T @ v[part]
    return torch.cat(rows), M


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, token by token."""
    r, k, v, w, u, M = data
    rows = []
    for t in range(len(r)):
        own = (u * k[t])[:, None]
        with vector():
            bonus = r[t : t + 1] @ own
            rows.append(r[t : t + 1] @ M)
            M = M * w[t][:, None]
            M = M + k[t][:, None] * v[t : t + 1]
            rows[-1] = rows[-1] + bonus * v[t : t + 1]
    return torch.cat(rows), M


def inputs(d: Any, S: int, streamed: bool = False) -> Data:
    """Decays in (0.8, 1), of every channel and, if streamed, of every token."""
    w = 0.8 + 0.2 * torch.sigmoid(random(S if streamed else 1, d.d)).expand(S, d.d)
    return random(S, d.d), random(S, d.d), random(S, d.d), w, random(d.d), random(d.d, d.d)


def heads(d: Any, step: Step, streamed: bool = False) -> torch.Tensor:
    """The outputs of all heads of one sequence, side by side."""
    run = []
    for _ in range(d.H):
        data = inputs(d, step.S, streamed)
        run.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
    return torch.cat(run, -1)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for _ in range(4):
            linear(x, d.H * d.d)
        linear(heads(d, step), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(d, 2 * d.C + 3)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
