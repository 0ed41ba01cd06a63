"""DeepSeek-V4 window attention, row by row; compared with dense attention under a band mask."""

import torch

from costmodel.mixers.dsv4_window import Dims
from costmodel.step import Step
from validation.references.plain import difference, linear, random


def queries(d: Dims, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query latent [S, q_l] and queries [S, H, dh]."""
    low = linear(x, d.q_l)
    return low, linear(low, d.H * d.dh).view(len(x), d.H, d.dh)


def keys(d: Dims, x: torch.Tensor, P: int) -> torch.Tensor:
    """Keys, which are the values: [P + S, dh], the first P of them cached."""
    return torch.cat([random(P, d.dh), linear(x, d.dh)])


def logits_of_sinks(d: Dims) -> torch.Tensor:
    """One logit per head; without sinks they weigh nothing."""
    return random(d.H) if d.sinks else torch.full((d.H,), -torch.inf, dtype=torch.float64)


def attend(q: torch.Tensor, rows: list[torch.Tensor], sinks: torch.Tensor) -> torch.Tensor:
    """Each query [H, dh] over its own rows [n, dh], K = V: [S, H, dh]."""
    out = []
    for i, visible in enumerate(rows):
        scores = q[i] @ visible.T / q.shape[-1] ** 0.5
        share = torch.softmax(torch.cat([scores, sinks[:, None]], -1), -1)[:, :-1]
        out.append(share @ visible)
    return torch.stack(out)


def dense(q: torch.Tensor, kv: torch.Tensor, sinks: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same over all rows under a mask [S, n], as einsums."""
    scores = torch.einsum("shd,ld->hsl", q, kv) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.cat([scores, sinks[:, None, None].expand(-1, len(q), 1)], -1).softmax(-1)[..., :-1]
    return torch.einsum("hsl,ld->shd", weights, kv)


def band(S: int, P: int, w: int) -> torch.Tensor:
    """Which of P + S keys each of S queries sees."""
    position, column = torch.arange(P, P + S)[:, None], torch.arange(P + S)
    return (column <= position) & (column > position - w)


def project_out(out: torch.Tensor, groups: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """[S, H, dh] by one matrix per group of heads (groups [g, H·dh/g, o]), then by last [g·o, D]."""
    parts = out.reshape(len(out), len(groups), -1)
    return torch.cat([parts[:, i] @ matrix for i, matrix in enumerate(groups)], -1) @ last


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        _, q = queries(d, x)
        kv = keys(d, x, step.P)
        rows = [kv[max(0, step.P + i + 1 - d.w) : step.P + i + 1] for i in range(step.S)]
        out = attend(q, rows, logits_of_sinks(d))
        project_out(out, random(d.g, d.H * d.dh // d.g, d.o), random(d.g * d.o, D))


def compare(d: Dims) -> float:
    """Row by row against a band mask; groups of heads one by one against all at once."""
    S, P, D = 13, 5, 24
    x, sinks = random(S, D), logits_of_sinks(d)
    (_, q), kv = queries(d, x), keys(d, x, P)
    groups, last = random(d.g, d.H * d.dh // d.g, d.o), random(d.g * d.o, D)
    out = attend(q, [kv[max(0, P + i + 1 - d.w) : P + i + 1] for i in range(S)], sinks)
    expected = dense(q, kv, sinks, band(S, P, d.w)).view(S, d.g, -1)
    expected = torch.einsum("sgi,gio,god->sd", expected, groups, last.view(d.g, d.o, D))
    return difference(project_out(out, groups, last), expected)
