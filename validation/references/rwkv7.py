"""RWKV-7 in chunks (diagonal plus low rank), row by row; compared with its step-by-step recurrence."""

import torch

from costmodel.mixers.rwkv7 import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower, lower, unit_inverse
from validation.references.plain import difference, linear, random

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""r, w, k, v, a, b [S, d], state M [d, d]."""


def lower_product(T: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """A unit lower times a strictly lower triangular matrix, one multiply-add per triple i > m > j."""
    out = torch.zeros_like(A)
    for i in range(len(A)):
        for j in range(i):
            between = slice(j + 1, i)
            out[i, j] = A[i, j] + (T[i : i + 1, between] @ A[between, j : j + 1])[0, 0]
    return out


def chunked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One head: y holds the rows aᵀM that the correction writes back along b."""
    r, w, k, v, a, b, M = data
    rows = []
    for first in range(0, len(r), C):
        part = slice(first, first + C)
        decay = w[part].cumprod(0)
        before, values = a[part] * decay / w[part], v[part]
        keys, corrections, queries = k[part] / decay, b[part] / decay, r[part] * decay
        T = unit_inverse(-lower(before, corrections, 0))
        u = apply_lower(lower_product(T, lower(before, keys, 0)), values, 0)
        y = u + apply_lower(T, before, 1) @ M
        read = apply_lower(lower(queries, keys, 1), values, 1) + apply_lower(lower(queries, corrections, 1), y, 1)
        rows.append(queries @ M + read)
        M = decay[-1][:, None] * M + (keys * decay[-1]).T @ values + (corrections * decay[-1]).T @ y
    return torch.cat(rows), M


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The same head, token by token."""
    r, w, k, v, a, b, M = data
    rows = []
    for t in range(len(r)):
        with vector():
            held = a[t : t + 1] @ M
            M = M * w[t][:, None]
            M = M + b[t][:, None] * held
            M = M + k[t][:, None] * v[t : t + 1]
            rows.append(r[t : t + 1] @ M)
    return torch.cat(rows), M


def inputs(d: Dims, S: int) -> Data:
    """Decays in (0.8, 1), a = −κ̂ of unit length and b = κ̂ times a rate in (0, 1): a stable transition."""
    kappa = random(S, d.d)
    kappa = kappa / kappa.norm(dim=-1, keepdim=True)
    w, rate = 0.8 + 0.2 * torch.sigmoid(random(S, d.d)), torch.sigmoid(random(S, d.d))
    return random(S, d.d), w, random(S, d.d), random(S, d.d), -kappa, kappa * rate, random(d.d, d.d)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    inner = d.H * d.d
    for _ in range(step.B):
        x = random(step.S, D)
        for _ in range(3):
            linear(x, inner)
        for rank in (d.rw, d.ra, d.rv, d.rg):
            linear(linear(x, rank), inner)
        heads = []
        for _ in range(d.H):
            data = inputs(d, step.S)
            heads.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(d, 2 * d.C + 3)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
