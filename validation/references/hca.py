"""Heavily compressed attention, row by row over window and finished entries; compared with masks over all rows."""

import torch

from costmodel.mixers.hca import Dims
from costmodel.step import Step
from validation.references import dsv4_window as window
from validation.references.plain import difference, linear, random


def pool(projected: torch.Tensor, bias: torch.Tensor, ratio: int, overlap: int) -> torch.Tensor:
    """Entries [⌊n/ratio⌋, c] from values and gates [n, 2·overlap·c], block by block.

    Series s of a token goes to the entry of the block overlap − 1 − s blocks later; bias [ratio, overlap, c].
    """
    values, gates = projected.view(len(projected), 2, overlap, -1).unbind(1)
    entries = []
    for last in range(ratio, len(projected) + 1, ratio):
        slots = []
        for s in range(overlap):
            first = last - ratio * (overlap - s)
            if first >= 0:
                part = slice(first, first + ratio)
                slots.append((values[part, s], gates[part, s] + bias[:, s]))
        v, g = (torch.cat(parts) for parts in zip(*slots, strict=True))
        entries.append((g.softmax(0) * v).sum(0))
    return torch.stack(entries) if entries else projected.new_zeros(0, values.shape[-1])


def pool_shifted(projected: torch.Tensor, bias: torch.Tensor, ratio: int, overlap: int) -> torch.Tensor:
    """The same for all blocks at once: series shifted by whole blocks, gates of what is missing at −∞."""
    n = len(projected) // ratio
    blocks = projected[: n * ratio].view(n, ratio, 2, overlap, -1)
    values = projected.new_zeros(n, overlap, ratio, blocks.shape[-1])
    gates = torch.full_like(values, -torch.inf)
    for s in range(overlap):
        late = overlap - 1 - s
        values[late:, s] = blocks[: n - late, :, 0, s]
        gates[late:, s] = blocks[: n - late, :, 1, s] + bias[:, s]
    return torch.einsum("nosc,nosc->nc", values, gates.flatten(1, 2).softmax(1).view_as(gates))


def projected_tokens(x: torch.Tensor, P: int, overlap: int, c: int) -> torch.Tensor:
    """Values and gates of all P + S tokens; those of the P cached ones are known."""
    return torch.cat([random(P, 2 * overlap * c), linear(x, 2 * overlap * c)])


def visible(kv: torch.Tensor, entries: torch.Tensor, chosen: list[torch.Tensor], P: int, w: int) -> list[torch.Tensor]:
    """Rows of each query: its window and its chosen entries."""
    ends = [P + i + 1 for i in range(len(chosen))]
    return [torch.cat([kv[max(0, end - w) : end], entries[c]]) for end, c in zip(ends, chosen, strict=True)]


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        _, q = window.queries(d, x)
        kv = window.keys(d, x, step.P)
        tokens = projected_tokens(x, step.P, d.m, d.dh)
        entries = pool(tokens, random(d.r, d.m, d.dh), d.r, d.m)
        chosen = [torch.arange((step.P + i + 1) // d.r) for i in range(step.S)]
        out = window.attend(q, visible(kv, entries, chosen, step.P, d.w), window.logits_of_sinks(d))
        window.project_out(out, random(d.g, d.H * d.dh // d.g, d.o), random(d.g * d.o, D))


def compare(d: Dims) -> float:
    """Pooling block by block against shifted series; rows against masks over the window and all entries."""
    S, P, D = 29, 6, 24
    x, sinks, bias = random(S, D), window.logits_of_sinks(d), random(d.r, d.m, d.dh)
    (_, q), kv, tokens = window.queries(d, x), window.keys(d, x, P), projected_tokens(x, P, d.m, d.dh)
    entries, expected = pool(tokens, bias, d.r, d.m), pool_shifted(tokens, bias, d.r, d.m)
    chosen = [torch.arange((P + i + 1) // d.r) for i in range(S)]
    out = window.attend(q, visible(kv, entries, chosen, P, d.w), sinks)
    finished = torch.arange(1, len(entries) + 1) * d.r <= torch.arange(P + 1, P + S + 1)[:, None]
    mask = torch.cat([window.band(S, P, d.w), finished], -1)
    dense = window.dense(q, torch.cat([kv, expected]), sinks, mask)
    return max(difference(entries, expected), difference(out, dense))
