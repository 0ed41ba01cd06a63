"""Gated DeltaNet in chunks, row by row; compared with its step-by-step recurrence. Also runs a decay per channel."""

import torch

from costmodel.mixers.gdn import Dims, channels
from costmodel.step import Step
from validation.counting import vector
from validation.references.plain import difference, linear, random, short_conv

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""One head: q, k [S, dk], v [S, dv], decay alpha [S, 1 or dk], rate beta [S, 1], state M [dk, dv]."""


def unit_inverse(A: torch.Tensor) -> torch.Tensor:
    """(I + A)⁻¹ for a strictly lower triangular A, one multiply-add per triple i > m > j."""
    n = len(A)
    T = torch.eye(n, dtype=A.dtype)
    columns = [T[:, j : j + 1] for j in range(n)]
    for i in range(1, n):
        row = A[i : i + 1, :i]
        sums = [row[:, j + 1 :] @ columns[j][j + 1 : i] for j in range(i)]
        T[i, :i] = -(row + torch.cat(sums, -1))[0]
    return T


def lower(left: torch.Tensor, right: torch.Tensor, diagonal: int) -> torch.Tensor:
    """The lower triangle of left · rightᵀ, with (1) or without (0) its diagonal, and nothing above it computed."""
    n = len(left)
    out = torch.zeros(n, n, dtype=left.dtype)
    for i in range(n):
        out[i : i + 1, : i + diagonal] = left[i : i + 1] @ right[: i + diagonal].T
    return out


def apply_lower(matrix: torch.Tensor, x: torch.Tensor, diagonal: int) -> torch.Tensor:
    """A lower triangular matrix times x, row by row."""
    return torch.cat([matrix[i : i + 1, : i + diagonal] @ x[: i + diagonal] for i in range(len(matrix))])


def chunked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state, chunk by chunk."""
    q, k, v, alpha, beta, M = data
    rows = []
    for first in range(0, len(q), C):
        part = slice(first, first + C)
        decay = alpha[part].cumprod(0)
        up, down, b = k[part] * decay, k[part] / decay, beta[part]
        T = unit_inverse(b * lower(up, down, 0))
        w, u = apply_lower(T, b * up, 1), apply_lower(T, b * v[part], 1)
        new = u - w @ M
        queries = q[part] * decay
        rows.append(queries @ M + apply_lower(lower(queries, down, 1), new, 1))
        M = decay[-1][:, None] * M + (down * decay[-1]).T @ new
    return torch.cat(rows), M


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, token by token."""
    q, k, v, alpha, beta, M = data
    rows = []
    for t in range(len(q)):
        with vector():
            M = M * alpha[t][:, None]
            held = k[t : t + 1] @ M
        new = beta[t] * (v[t : t + 1] - held)
        with vector():
            M = M + k[t][:, None] * new
            rows.append(q[t : t + 1] @ M)
    return torch.cat(rows), M


def inputs(S: int, dk: int, dv: int, gates: int) -> Data:
    """Unit keys, decays in (0.8, 1), rates in (0, 1), a random state: the stable range of trained models."""
    k = random(S, dk)
    alpha, beta = 0.8 + 0.2 * torch.sigmoid(random(S, gates)), torch.sigmoid(random(S, 1))
    return random(S, dk), k / k.norm(dim=-1, keepdim=True), random(S, dv), alpha, beta, random(dk, dv)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data; query and key heads are shared by groups of value heads."""
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, 2 * d.Hk * d.dk + 2 * d.Hv * d.dv)
        linear(x, 2 * d.Hv)
        short_conv(random(step.S, channels(d)), d.conv)
        shared = [inputs(step.S, d.dk, d.dv, 1)[:2] for _ in range(d.Hk)]
        heads = []
        for h in range(d.Hv):
            q, k = shared[h * d.Hk // d.Hv]
            data = (q, k, *inputs(step.S, d.dk, d.dv, 1)[2:])
            heads.append((recurrent(data) if step.decoding else chunked(data, d.C))[0])
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(2 * d.C + 3, d.dk, d.dv, 1)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
