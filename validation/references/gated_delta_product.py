"""Gated DeltaProduct in chunks, row by row; compared with its recurrence, one Householder step after another."""

import torch

from costmodel.mixers.gated_delta_product import Dims, channels
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower, lower, unit_inverse
from validation.references.plain import difference, linear, random, short_conv

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""One head: q [S, dk]; k [n·S, dk], v [n·S, dv], rates beta [n·S, 1]; decay alpha [S, 1], state M [dk, dv]."""


def chunked(data: Data, C: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state: pairs are written in chunks of C, tokens read in chunks of C, which hold n·C pairs."""
    q, k, v, beta, alpha, M = data
    every = torch.ones(len(k), 1, dtype=k.dtype)
    every[::n] = alpha  # a token's state decays at the first of its pairs
    rows = []
    for first in range(0, len(q), C):
        before, new = M, []
        pairs = slice(first * n, min((first + C) * n, len(k)))
        for start in range(pairs.start, pairs.stop, C):
            part = slice(start, min(start + C, pairs.stop))
            decay = every[part].cumprod(0)
            up, down, b = k[part] * decay, k[part] / decay, beta[part]
            T = unit_inverse(b * lower(up, down, 0))
            w, u = apply_lower(T, b * up, 1), apply_lower(T, b * v[part], 1)
            new.append(u - w @ M)
            M = decay[-1] * M + (down * decay[-1]).T @ new[-1]
        decay = every[pairs].cumprod(0)
        keys, written = k[pairs] / decay, torch.cat(new)
        queries = q[first : first + C] * decay[n - 1 :: n]
        out = queries @ before
        for i in range(len(queries)):
            seen = slice(0, (i + 1) * n)
            out[i : i + 1] += (queries[i : i + 1] @ keys[seen].T) @ written[seen]
        rows.append(out)
    return torch.cat(rows), M


def recurrent(data: Data, n: int, forget: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, pair by pair."""
    q, k, v, beta, alpha, M = data
    rows = []
    for t in range(len(q)):
        if forget:
            with vector():
                M = M * alpha[t]
        for j in range(n * t, n * t + n):
            with vector():
                held = k[j : j + 1] @ M
            new = beta[j] * (v[j : j + 1] - held)
            with vector():
                M = M + k[j][:, None] * new
        with vector():
            rows.append(q[t : t + 1] @ M)
    return torch.cat(rows), M


def inputs(d: Dims, S: int) -> Data:
    """Unit keys, rates in (0, 2), decays in (0.8, 1) or none, a random state."""
    k = random(d.n * S, d.dk)
    k = k / k.norm(dim=-1, keepdim=True)
    beta = 2 * torch.sigmoid(random(d.n * S, 1))
    alpha = 0.8 + 0.2 * torch.sigmoid(random(S, 1)) if d.forget else torch.ones(S, 1, dtype=k.dtype)
    return random(S, d.dk), k, random(d.n * S, d.dv), beta, alpha, random(d.dk, d.dv)


def heads(d: Dims, step: Step) -> torch.Tensor:
    """The outputs of all heads of one sequence, side by side."""
    run = []
    for _ in range(d.H):
        data = inputs(d, step.S)
        run.append((recurrent(data, d.n, d.forget) if step.decoding else chunked(data, d.C, d.n))[0])
    return torch.cat(run, -1)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for width in (d.H * d.dk, d.n * d.H * d.dk, d.n * d.H * d.dv, d.n * d.H, d.H * d.dv):
            linear(x, width)
        if d.forget:
            linear(x, d.H)
        short_conv(random(step.S, channels(d)), d.conv)
        linear(heads(d, step), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(d, 2 * d.C + 3)
    plain, expected = chunked(data, d.C, d.n), recurrent(data, d.n)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
