"""Native sparse attention, row by row, selecting by the compressed branch's scores; compared with dense forms."""

import torch

from costmodel.mixers.nsa import Dims
from costmodel.step import Step
from validation.references.chunked import dense
from validation.references.dsa import best
from validation.references.gqa import attend, visible
from validation.references.moba import attend_chosen, block_mask, tokens_of
from validation.references.plain import difference, linear, random


def pooled(x: torch.Tensor, width: int, stride: int) -> torch.Tensor:
    """Means [heads, entries, n] over `width` tokens of x [heads, L, n] every `stride` tokens."""
    entries = max(0, (x.shape[1] - width) // stride + 1)
    parts = [x[:, e * stride : e * stride + width].mean(1) for e in range(entries)]
    return torch.stack(parts, 1) if parts else x[:, :0]


def complete(end: int, width: int, stride: int) -> int:
    """Pooled entries that are complete after `end` tokens."""
    return max(0, (end - width) // stride + 1)


def overlaps(entries: int, blocks: int, width: int, stride: int, b: int) -> torch.Tensor:
    """Tokens that an entry shares with a block: [entries, blocks]."""
    start = torch.arange(entries)[:, None] * stride
    block = torch.arange(blocks) * b
    shared = torch.minimum(start + width, block + b) - torch.maximum(start, block)
    return shared.clamp(min=0).double() / stride


def rate(shares: torch.Tensor, own: int, width: int, stride: int, b: int) -> torch.Tensor:
    """Importance [own + 1] of the blocks from the probabilities [heads, entries] of the entries; the own one leads."""
    shared = overlaps(shares.shape[-1], own + 1, width, stride, b)
    rated = (shares.sum(0)[:, None] * shared).sum(0)
    rated[own] = torch.inf
    return rated


def compress_and_select(
    q: torch.Tensor, ck: torch.Tensor, cv: torch.Tensor, d: Dims, P: int
) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """Output [S, H·dv] of the compressed branch, and the selected tokens of every key head and query."""
    S, group = q.shape[1], d.H // d.Hkv
    out = torch.zeros(S, d.H, d.dv, dtype=q.dtype)
    selected: list[list[torch.Tensor]] = [[] for _ in range(d.Hkv)]
    for i in range(S):
        seen, own = complete(P + i + 1, d.l, d.ds), (P + i) // d.b
        for g in range(d.Hkv):
            shares = torch.zeros(group, seen, dtype=q.dtype)
            for h in range(group if seen else 0):
                row = q[g * group + h, i : i + 1] @ ck[g, :seen].T / d.dk**0.5
                shares[h] = torch.softmax(row, -1)[0]
                out[i, g * group + h] = (shares[h : h + 1] @ cv[g, :seen])[0]
            chosen = best(rate(shares, own, d.l, d.ds, d.b), d.n)
            selected[g].append(tokens_of(chosen, d.b, P + i + 1))
    return out.flatten(1), selected


def branches(d: Dims, S: int, L: int) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Queries, and the keys and values of the three branches."""
    sets = [(random(d.Hkv, L, d.dk), random(d.Hkv, L, d.dv)) for _ in range(1 if d.shared_kv else 3)]
    return random(d.H, S, d.dk), sets * 3 if d.shared_kv else sets


def three_outputs(
    d: Dims, S: int, P: int, q: torch.Tensor, kv: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """The outputs of the branches, [3, S, H·dv], row by row."""
    (ck, cv), (sk, sv), (wk, wv) = kv
    low, selected = compress_and_select(q, pooled(ck, d.l, d.ds), pooled(cv, d.l, d.ds), d, P)
    picked = attend_chosen(q, sk, sv, d.Hkv, lambda g, i: selected[g][i])
    return torch.stack([low, picked, attend(q, wk, wv, *visible(S, P, d.w, False))])


def gated(outputs: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """The sum of the branches [3, S, H·dv] under gates [S, 3, H]."""
    S, _, H = gates.shape
    weighted = outputs.reshape(3, S, H, -1) * torch.sigmoid(gates).permute(1, 0, 2)[..., None]
    return weighted.sum(0).reshape(S, -1)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, d.H * d.dk + (1 if d.shared_kv else 3) * d.Hkv * (d.dk + d.dv) + (d.H * d.dv if d.gate else 0))
        gates = linear(x, 3 * d.H).view(step.S, 3, d.H)
        outputs = three_outputs(d, step.S, step.P, *branches(d, step.S, step.L))
        linear(gated(outputs, gates), D)


def compare(d: Dims) -> float:
    """Each branch against dense attention under its mask, the importance by einsum over all entries."""
    S, P = 17, 6
    L, blocks, group = P + S, -(-(P + S) // d.b), d.H // d.Hkv
    q, kv = branches(d, S, L)
    (ck, cv), (sk, sv), (wk, wv) = kv
    gates = random(S, 3, d.H)
    plain = gated(three_outputs(d, S, P, q, kv), gates)
    ck, cv = (x.unfold(1, d.l, d.ds).mean(-1) for x in (ck, cv))
    rows = torch.arange(P, L)[:, None]
    done = torch.arange(ck.shape[1]) * d.ds + d.l - 1 <= rows
    low = dense(q, ck, cv, done)
    scores = torch.einsum("hsd,hed->hse", q, ck.repeat_interleave(group, 0)) / d.dk**0.5
    shares = torch.softmax(scores.masked_fill(~done, -torch.inf), -1).nan_to_num(0.0)
    member = torch.zeros(ck.shape[1], L)
    for entry in range(ck.shape[1]):
        member[entry, entry * d.ds : entry * d.ds + d.l] = 1 / d.ds
    member = torch.cat([member, torch.zeros(len(member), blocks * d.b - L)], 1).reshape(-1, blocks, d.b).sum(-1)
    rated = torch.einsum("hse,eb->hsb", shares, member.double()).reshape(d.Hkv, group, S, -1).sum(1)
    number, own = torch.arange(blocks), rows // d.b
    rated = rated.masked_fill(number == own, torch.inf).masked_fill(number > own, -torch.inf)
    chosen = torch.zeros_like(rated, dtype=torch.bool).scatter_(-1, best(rated, d.n), True)
    mask = block_mask(chosen, d.b, P, L).repeat_interleave(group, 0)
    near = (torch.arange(L) <= rows) & (torch.arange(L) > rows - d.w)
    expected = gated(torch.stack([low, dense(q, sk, sv, mask), dense(q, wk, wv, near)]), gates)
    return difference(plain, expected)
