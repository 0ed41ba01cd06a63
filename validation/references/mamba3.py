"""Mamba-3 in chunks, row by row; compared with its recurrence, whose state itself rotates."""

import torch

from costmodel.mixers.mamba3 import Dims, angles, rank
from costmodel.step import Step
from validation.counting import vector
from validation.references.plain import difference, linear, random

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""One head: c, b [S, R, N] (rotated), x [S, R, p]; alpha, beta, gamma [S, 1, 1]; state M [N, p].

beta weighs the previous token, whose b and x stand in the first row of two tensors one row longer: b, x [S + 1, R, …].
"""


def chunked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [S, R, p] and final state; a token's write and its share in the next token's step are one."""
    c, b, x, alpha, beta, gamma, M = data
    S, _, N = c.shape
    M = M + beta[0] * (b[0][:, :, None] * x[0][:, None]).sum(0)
    b, x = b[1:], x[1:]
    both = gamma.clone()
    both[:-1] += beta[1:]
    rows = []
    for first in range(0, S, C):
        part = slice(first, min(first + C, S))
        decay = alpha[part].cumprod(0)
        queries, keys, values = c[part] * decay, b[part] / decay, x[part]
        strict, own = keys * both[part], keys * gamma[part]
        for i in range(len(queries)):
            seen = torch.cat([strict[:i], own[i : i + 1]]).reshape(-1, N)
            inside = (queries[i] @ seen.T) @ values[: i + 1].reshape(seen.shape[0], -1)
            rows.append(queries[i] @ M + inside)
        M = decay[-1] * (M + strict.reshape(-1, N).T @ values.reshape(-1, values.shape[-1]))
    return torch.stack(rows), M


def recurrent(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, token by token: the previous token's write, decay, the token's own write, read."""
    c, b, x, alpha, beta, gamma, M = data
    rows = []
    for t in range(len(c)):
        before, own = beta[t] * x[t], gamma[t] * x[t + 1]
        with vector():
            M = torch.addmm(M, b[t].T, before)
            M = M * alpha[t]
            M = torch.addmm(M, b[t + 1].T, own)
            rows.append(c[t] @ M)
    return torch.stack(rows), M


def rotated(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """The first 2·A of the last axis turned by the angles theta [..., A], two elements per angle."""
    A = theta.shape[-1]
    even, odd = x[..., : 2 * A : 2], x[..., 1 : 2 * A : 2]
    turned = torch.stack([even * theta.cos() - odd * theta.sin(), even * theta.sin() + odd * theta.cos()], -1)
    return torch.cat([turned.flatten(-2), x[..., 2 * A :]], -1)


def inputs(d: Dims, S: int) -> Data:
    """Decays in (0.8, 1), weights of the trapezoid in (0, 1)."""
    R = rank(d)
    alpha = 0.8 + 0.2 * torch.sigmoid(random(S, 1, 1))
    beta, gamma = torch.sigmoid(random(S, 1, 1)), torch.sigmoid(random(S, 1, 1))
    b, x = random(S + 1, R, d.N), random(S + 1, R, d.p)
    return random(S, R, d.N), b, x, alpha, beta, gamma, random(d.N, d.p)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    width = 2 * d.H * d.p + 2 * d.G * d.N * rank(d) + 3 * d.H + angles(d)
    for _ in range(step.B):
        linear(random(step.S, D), width)
        heads = []
        for _ in range(d.H):
            data = inputs(d, step.S)
            heads.append((recurrent(data) if step.decoding else chunked(data, d.C))[0].sum(1))
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Chunks of rotated b and c against a recurrence that turns the state; also against the one that is counted."""
    S = 2 * d.C + 3
    c, b, x, alpha, beta, gamma, M = inputs(d, S)
    theta = random(S, angles(d))
    state, rows = M, []
    for t in range(S):
        state = state + beta[t] * b[t].T @ x[t]
        state = alpha[t] * rotated(state.T, theta[t]).T
        state = state + gamma[t] * b[t + 1].T @ x[t + 1]
        rows.append(c[t] @ state)
    # The rotation since the start of the sequence, undone: b and c turn back by it.
    back = -torch.cat([torch.zeros_like(theta[:1]), theta]).cumsum(0)[:, None]
    data = rotated(c, back[1:]), rotated(b, back), x, alpha, beta, gamma, M
    out, last = chunked(data, d.C)
    stepped, final = recurrent(data)
    unturned = rotated(state.T, back[-1]).T
    pairs = [(out, torch.stack(rows)), (stepped, torch.stack(rows)), (last, unturned), (final, unturned)]
    return max(difference(found, expected) for found, expected in pairs)
