"""Log-linear attention token by token with a binary counter of states; compared with a weight for every pair."""

import torch

from costmodel.mixers.log_linear import Dims, base_dims, gates, module
from costmodel.step import Step
from validation.references.plain import difference, linear, random, short_conv

States = dict[int, torch.Tensor]
"""The live states of a head by level, [dk, dv]."""


def level(t: int, j: int, d: Dims) -> int:
    """The level of token j as seen from token t ≥ j."""
    if t // d.C == j // d.C:
        return (t ^ j).bit_length()
    inside = d.C.bit_length()
    return inside + min((t // d.C ^ j // d.C).bit_length() - 1, d.M - 1)


def fold(states: States, new: torch.Tensor, last: int) -> None:
    """A chunk joins the counter: full levels are carried upwards, the last one takes everything."""
    at = 0
    while at in states:
        new = new + states.pop(at)
        if at == last:
            break
        at += 1
    states[at] = new


def live(chunk: int, d: Dims) -> list[int]:
    """Levels that hold a state when the chunk with this index begins."""
    low = [at for at in range(d.M - 1) if chunk >> at & 1]
    return low + ([d.M - 1] if chunk >= 2 ** (d.M - 1) else [])


class Decayed:
    """One Mamba-2 head: rows of the open chunk, and its states."""

    def __init__(self, d: Dims, states: States, rows: int) -> None:
        self.d, self.states = d, states
        self.k, self.v, self.a = random(rows, d.dk), random(rows, d.dv), decays(rows)

    def step(
        self,
        t: int,
        scores: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        a: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """The output [1, dv] of token t; scores [1, rows] of its group, weight [gates]."""
        d = self.d
        self.k, self.v = torch.cat([self.k, k]), torch.cat([self.v, v])
        self.a = torch.cat([self.a, a])
        decay = self.a.cumprod(0)
        first = t - len(self.k) + 1
        pair = weight[[level(t, first + j, d) for j in range(len(self.k))]] * decay[-1] / decay
        out = (scores * pair) @ self.v
        for at, state in self.states.items():
            out = out + weight[d.C.bit_length() + at] * decay[-1] * (q @ state)
        if (t + 1) % d.C == 0:
            for at in self.states:
                self.states[at] = decay[-1] * self.states[at]
            fold(self.states, (self.k * (decay[-1] / decay)[:, None]).T @ self.v, d.M - 1)
            self.k, self.v, self.a = self.k[:0], self.v[:0], self.a[:0]
        return out


class Delta:
    """One head of the gated delta rule: rows of the open chunk with their inverse, and its states."""

    def __init__(self, d: Dims, states: States, rows: int) -> None:
        self.d, self.states = d, states
        self.k, self.v, self.w, self.u = (random(rows, width) for width in (d.dk, d.dv, d.dk, d.dv))
        self.a, self.T, self.up = decays(rows), random(rows, rows).tril(), random(rows, d.dk)

    def step(
        self,
        t: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        a: torch.Tensor,
        beta: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """The output [1, dv] of token t."""
        d, m = self.d, len(self.k)
        self.a = torch.cat([self.a, a])
        decay = self.a.cumprod(0)
        up = k * decay[-1]
        row = beta * (up @ (self.k / decay[:m, None]).T)
        inverse = torch.zeros(1, m + 1, dtype=k.dtype)
        inverse[0, m] = 1
        for j in range(m):
            inverse[0, j] = -(row[0, j] + (row[:, j + 1 :] @ self.T[j + 1 :, j : j + 1])[0, 0])
        self.T = torch.cat([torch.nn.functional.pad(self.T, (0, 1)), inverse])
        self.k, self.v = torch.cat([self.k, k]), torch.cat([self.v, beta * v])
        self.up = torch.cat([self.up, beta * up])
        self.w = torch.cat([self.w, inverse @ self.up])
        self.u = torch.cat([self.u, inverse @ self.v])
        query, down = q * decay[-1], self.k / decay[:, None]
        scores = query @ down.T
        source = torch.cat([scores[:, j:] @ self.T[j:, j : j + 1] for j in range(m + 1)], -1)
        first = t - m
        pair = torch.stack([weight[level(t, first + j, d)] for j in range(m + 1)])
        out = (source * pair) @ self.v
        query = query - scores @ self.w
        for at, state in self.states.items():
            out = out + weight[d.C.bit_length() + at] * (query @ state)
        if (t + 1) % d.C == 0:
            late = down * decay[-1]
            for at, state in self.states.items():
                self.states[at] = decay[-1] * state - late.T @ (self.w @ state)
            fold(self.states, late.T @ self.u, d.M - 1)
            self.k, self.v, self.w, self.u = self.k[:0], self.v[:0], self.w[:0], self.u[:0]
            self.a, self.T, self.up = self.a[:0], self.T[:0, :0], self.up[:0]
        return out


def begin(d: Dims, P: int) -> tuple[States, int]:
    """Random states of the live levels after P tokens, and the rows of the open chunk."""
    return {at: random(d.dk, d.dv) for at in live(P // d.C, d)}, P % d.C


def decays(*shape: int) -> torch.Tensor:
    """In (0.8, 1), the stable range of trained models."""
    return 0.8 + 0.2 * torch.sigmoid(random(*shape))


def run_group(d: Dims, q: torch.Tensor, k: torch.Tensor, P: int) -> list[torch.Tensor]:
    """Outputs [S, dv] of the heads of one group on random values, decays and weights, in the order of the heads."""
    S, heads = len(q), range(d.Hv // d.Hk)
    rows = [slice(i, i + 1) for i in range(S)]
    v, a = [random(S, d.dv) for _ in heads], [decays(S) for _ in heads]
    weights = [torch.sigmoid(random(S, gates(d))) for _ in heads]
    outputs: list[list[torch.Tensor]] = [[] for _ in heads]
    if d.base == "gdn":
        for h in heads:
            delta, beta = Delta(d, *begin(d, P)), torch.sigmoid(random(S, 1))
            for i, r in enumerate(rows):
                outputs[h].append(delta.step(P + i, q[r], k[r], v[h][r], a[h][r], beta[i], weights[h][i]))
    else:
        group, open_keys = [Decayed(d, *begin(d, P)) for _ in heads], random(P % d.C, d.dk)
        for i, r in enumerate(rows):
            open_keys = torch.cat([open_keys, k[r]])
            scores = q[r] @ open_keys.T  # once for the heads of a group
            for h in heads:
                outputs[h].append(group[h].step(P + i, scores, q[r], k[r], v[h][r], a[h][r], weights[h][i]))
            if (P + i + 1) % d.C == 0:
                open_keys = open_keys[:0]
    return [torch.cat(out) for out in outputs]


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    for _ in range(step.B):
        x = random(step.S, D)
        for p in module(d).projections(base_dims(d), D)[:-1]:
            linear(x, p.d_out)
        linear(x, d.Hv * gates(d))
        short_conv(random(step.S, module(d).channels(base_dims(d))), d.conv)
        outputs = []
        for _ in range(d.Hk):
            outputs += run_group(d, random(step.S, d.dk), random(step.S, d.dk), step.P)
        linear(torch.cat(outputs, -1), D)


def compare(d: Dims) -> float:
    """Over 5 chunks and a bit, against a weight per pair (Mamba-2) or a state per source token (delta rule)."""
    S = 5 * d.C + 3
    q, k, v, a = random(S, d.dk), random(S, d.dk), random(S, d.dv), decays(S)
    k, weight = k / k.norm(dim=-1, keepdim=True), torch.sigmoid(random(S, gates(d)))
    levels = torch.tensor([[level(t, j, d) if j <= t else 0 for j in range(S)] for t in range(S)])
    pair = weight.gather(1, levels)
    if d.base == "gdn":
        beta = torch.sigmoid(random(S, 1))
        head, sources, expected = Delta(d, {}, 0), torch.zeros(S, d.dk, d.dv, dtype=q.dtype), []
        found = [head.step(t, q[[t]], k[[t]], v[[t]], a[[t]], beta[t], weight[t]) for t in range(S)]
        for t in range(S):
            transition = a[t] * (torch.eye(d.dk, dtype=q.dtype) - beta[t] * torch.outer(k[t], k[t]))
            sources = torch.einsum("ab,jbv->jav", transition, sources)
            sources[t] = beta[t] * torch.outer(k[t], v[t])
            expected.append(torch.einsum("j,a,jav->v", pair[t] * (torch.arange(S) <= t), q[t], sources))
        return difference(torch.cat(found), torch.stack(expected))
    decayed = Decayed(d, {}, 0)
    found = []
    for t in range(S):
        scores = q[[t]] @ torch.cat([decayed.k, k[[t]]]).T
        found.append(decayed.step(t, scores, q[[t]], k[[t]], v[[t]], a[[t]], weight[t]))
    logs = a.log().cumsum(0)
    mask = (logs[:, None] - logs).exp().tril() * pair
    return difference(torch.cat(found), (q @ k.T * mask) @ v)
