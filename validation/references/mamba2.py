"""Mamba-2 in chunks, row by row; compared with its step-by-step recurrence."""

import torch

from costmodel.mixers.mamba2 import Dims, channels
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower, lower
from validation.references.plain import difference, linear, random, short_conv

Head = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""x [S, p], step sizes Δ [S, 1], decays a [S, 1], state [N, p]."""


def chunked(b: torch.Tensor, c: torch.Tensor, heads: list[Head], C: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One group, b and c [S, N]: C·Bᵀ is computed once and decayed for each head."""
    states = [state for *_, state in heads]
    rows: list[list[torch.Tensor]] = [[] for _ in heads]
    for first in range(0, len(b), C):
        part = slice(first, first + C)
        cb = lower(c[part], b[part], 1)
        for h, (x, delta, a, _) in enumerate(heads):
            decay = a[part].cumprod(0)
            scores = cb * decay / decay.T * delta[part].T
            rows[h].append((c[part] * decay) @ states[h] + apply_lower(scores, x[part], 1))
            written = b[part] * (decay[-1] / decay * delta[part])
            states[h] = decay[-1] * states[h] + written.T @ x[part]
    return [(torch.cat(out), state) for out, state in zip(rows, states, strict=True)]


def recurrent(b: torch.Tensor, c: torch.Tensor, heads: list[Head]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same group, token by token."""
    results = []
    for x, delta, a, state in heads:
        rows = []
        for t in range(len(b)):
            scaled = delta[t] * x[t : t + 1]
            with vector():
                state = state * a[t]
                state = state + b[t][:, None] * scaled
                rows.append(c[t : t + 1] @ state)
        results.append((torch.cat(rows), state))
    return results


def inputs(d: Dims, S: int) -> tuple[torch.Tensor, torch.Tensor, list[Head]]:
    """One group with decays in (0.8, 1)."""
    heads = [
        (random(S, d.p), torch.sigmoid(random(S, 1)), 0.8 + 0.2 * torch.sigmoid(random(S, 1)), random(d.N, d.p))
        for _ in range(d.H // d.G)
    ]
    return random(S, d.N), random(S, d.N), heads


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        linear(random(step.S, D), 2 * d.H * d.p + 2 * d.G * d.N + d.H)
        short_conv(random(step.S, channels(d)), d.conv)
        outputs = []
        for _ in range(d.G):
            data = inputs(d, step.S)
            outputs += recurrent(*data) if step.decoding else chunked(*data, d.C)
        linear(torch.cat([out for out, _ in outputs], -1), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; outputs and final states of a group."""
    data = inputs(d, 2 * d.C + 3)
    plain, expected = chunked(*data, d.C), recurrent(*data)
    return max(
        difference(found, right)
        for one, other in zip(plain, expected, strict=True)
        for found, right in zip(one, other, strict=True)
    )
