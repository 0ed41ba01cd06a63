"""The last rows of large calls, computed apart: where offsets are largest, and would not fit into 32 bits.

Outputs are compared with references on small shapes, which a kernel with too narrow an offset passes. What is given
here is a runner's `tail`: of a large call's outputs the last rows, and what these must be, in fp32.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from validation.runners import Inputs, Outputs, Shape

if TYPE_CHECKING:
    import torch

ROWS = 8
"""Queries, or tokens, that are computed again."""
KEYS = 2**18
"""Keys that are in memory in fp32 at a time."""
REMEMBERED = 4096
"""Tokens after which what a recurrence held before them no longer shows in 16 bits: with the gates of its inputs it
keeps less than e^−8 of it."""


def attended(
    q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor", seen: Sequence[tuple[int, int]]
) -> "torch.Tensor":
    """Rows q [n, dk] over k [L, dk] and v [L, dv], keys block by block; row i sees keys seen[i][0] … seen[i][1] − 1."""
    import torch

    device = q.device
    first, last = (torch.tensor(ends, device=device)[:, None] for ends in zip(*seen, strict=True))
    top = torch.full((len(q), 1), -1e30, device=device)
    total, out = torch.zeros_like(top), torch.zeros(len(q), v.shape[-1], device=device)
    rows = q.float() * q.shape[-1] ** -0.5
    for begin in range(min(pair[0] for pair in seen), max(pair[1] for pair in seen), KEYS):
        part = slice(begin, min(begin + KEYS, len(k)))
        key = torch.arange(part.start, part.stop, device=device)
        scores = (rows @ k[part].float().T).masked_fill((key < first) | (key >= last), -torch.inf)
        above = torch.maximum(top, scores.amax(-1, keepdim=True))
        share, kept = (scores - above).exp(), (top - above).exp()
        total = total * kept + share.sum(-1, keepdim=True)
        out, top = out * kept + share @ v[part].float(), above
    return out / total


def last_queries(
    seen: Callable[[Shape, int], tuple[int, int]], shape: Shape, inputs: Inputs, outputs: Outputs
) -> tuple[Outputs, Outputs]:
    """Of softmax attention: the last queries of the last head in the last sequence; seen tells the keys of a query."""
    q, k, v = (inputs[name][-1, -1] for name in "qkv")
    n = min(ROWS, len(q))
    ends = [seen(shape, i) for i in range(len(q) - n, len(q))]
    return (outputs[0][-1, -1, -n:],), (attended(q[-n:], k, v, ends),)


def single_queries(shape: Shape, inputs: Inputs, outputs: Outputs) -> tuple[Outputs, Outputs]:
    """Of one new token per sequence: all heads of all sequences."""
    import torch

    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    (B, H), Hkv = q.shape[:2], k.shape[1]
    rows = [
        attended(q[b, g * H // Hkv : (g + 1) * H // Hkv, 0], k[b, g], v[b, g], [(0, k.shape[2])] * (H // Hkv))
        for b in range(B)
        for g in range(Hkv)
    ]
    return (outputs[0][:, :, 0],), (torch.cat(rows).reshape(B, H, -1),)


def last_along(
    reference: Callable[[Shape, Inputs], Outputs],
    given: Mapping[str, int | None],
    axes: Sequence[int],
    shape: Shape,
    inputs: Inputs,
    outputs: Outputs,
) -> tuple[Outputs, Outputs]:
    """Of what is independent along an axis: the last index of it, by the readable reference on the host.

    given: that axis of every input, None where it has none. axes: of every output.
    """

    def cut(x: "torch.Tensor", axis: int) -> "torch.Tensor":
        return x.narrow(axis, x.shape[axis] - 1, 1)

    part = {
        name: (inputs[name] if axis is None else cut(inputs[name], axis)).float().cpu() for name, axis in given.items()
    }
    found = tuple(cut(out, axis) for out, axis in zip(outputs, axes, strict=True))
    return found, reference(shape, part)


def last_tokens(
    run: Callable[[Shape, Inputs], Outputs],
    tokens: Mapping[str, int],
    state: str,
    shape: Shape,
    inputs: Inputs,
    outputs: Outputs,
) -> tuple[Outputs, Outputs]:
    """Of a recurrence that forgets: the last tokens and the state after them, by a plain form over the tokens that it
    still remembers.

    tokens: rows per token of every input that has them, along axis 1. state: the input that holds what was before.
    """
    import torch

    S = int(shape["new_tokens"])
    n = min(S, REMEMBERED)
    part = {name: x[:, -n * tokens[name] :] if name in tokens else x for name, x in inputs.items()}
    if n < S:
        part[state] = torch.zeros_like(inputs[state])
    out, after = run({**shape, "context": n, "new_tokens": n}, part)
    return (outputs[0][:, -ROWS:], outputs[1]), (out[:, -ROWS:], after)
