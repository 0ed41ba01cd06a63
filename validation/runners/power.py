"""Power attention of degree 2: over a new sequence, and of one token with the open chunk and the folded state.

Tensors are q [B, S, H, d], k and v [B, opened + S, Hkv, d], the logarithm g of the decay [B, opened + S, Hkv], and the
state [B, Hkv, D_φ, d + 1] in fp32 where an earlier chunk was folded; `opened` tokens of it were there before. The first
column of the values is one, as public kernels keep it for the normaliser. Outputs are the queries' [B, S, H, d]
and, of a token that completes a chunk, the new state; of a sequence the states show in the outputs of the next chunks.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.mixers import power
from costmodel.step import Phase, Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    precision,
    shapes,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

REMEMBERED = 32
"""Tokens of which a state is made that is given."""


def dims(shape: Shape) -> power.Dims:
    """The mixer's dimensions."""
    H, Hkv, d, C = (number(shape, name) for name in ("heads", "kv_heads", "head_dim", "chunk"))
    return power.Dims(H=H, Hkv=Hkv, dk=d, dv=d, C=C)


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """What the mixer launches between its projections and the decays."""
    S = number(shape, "new_tokens")
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    return power.scan(dims(shape), step, precision(shape))


def feature_map(x: Any) -> Any:
    """The products of two elements of a row, mixed ones times √2, in the order of an upper triangle."""
    import torch

    d = x.shape[-1]
    products = torch.cat([x[..., i : i + 1] * x[..., i:] for i in range(d)], -1)
    i, j = torch.triu_indices(d, d, device=x.device)
    return products * torch.where(i == j, 1.0, 2.0**0.5).to(x.dtype)


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, keys and values, decays by which a head forgets over tens of tokens, a state of some tokens."""
    import torch

    B, S, L = (number(shape, name) for name in ("batch", "new_tokens", "context"))
    d, dtype = dims(shape), torch_dtype(str(shape["dtype"]))
    rows = (L - S) % d.C + S

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    def values(*size: int) -> "torch.Tensor":
        return torch.cat([torch.ones(*size, 1, device=device), drawn(*size, d.dv - 1)], -1)

    found = {"q": drawn(B, S, d.H, d.dk), "k": drawn(B, rows, d.Hkv, d.dk), "v": values(B, rows, d.Hkv)}
    found = {name: each.to(dtype) for name, each in found.items()}
    found["g"] = -0.05 * torch.sigmoid(drawn(B, rows, d.Hkv))
    if L - S >= d.C:
        kept = values(B, d.Hkv, REMEMBERED)
        found["state"] = feature_map(drawn(B, d.Hkv, REMEMBERED, d.dk)).mT @ with_sums(kept)
    return found


def with_sums(v: Any) -> Any:
    """Values with a last column of ones, which adds up weights."""
    import torch

    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def completes(shape: Shape) -> bool:
    """Whether the token of a decode step is its chunk's last."""
    return number(shape, "new_tokens") == 1 and number(shape, "context") % number(shape, "chunk") == 0


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Key head by key head and token by token, as the mechanism's own reference."""
    import torch

    from validation.references import power as plain

    d, S = dims(shape), number(shape, "new_tokens")
    P = number(shape, "context") - S
    k, v, a = inputs["k"], inputs["v"], inputs["g"].exp()
    q = inputs["q"].unflatten(2, (d.Hkv, -1))
    opened, state = k.shape[1] - S, inputs.get("state")
    out, states = torch.empty_like(q), []
    for n in range(len(k)):
        for h in range(d.Hkv):
            head = plain.KeyHead(d, P)
            head.k, head.v, head.a = (each[n, :opened, h] for each in (k, v, a))
            head.state = None if state is None else state[n, h]
            out[n, :, h] = plain.run(head, P, q[n, :, h], *(each[n, opened:, h] for each in (k, v, a)))
            states += [] if head.state is None else [head.state]
    if not completes(shape):
        return (out.flatten(2, 3),)
    return out.flatten(2, 3), torch.stack(states).reshape(len(k), d.Hkv, *states[0].shape)


def chunked(shape: Shape, inputs: Inputs) -> Outputs:
    """Chunk after chunk: attention inside, queries over the state, and the chunk folded into it where it is whole."""
    import torch

    d, dtype, S = dims(shape), inputs["q"].dtype, number(shape, "new_tokens")
    q = inputs["q"].float().unflatten(2, (d.Hkv, -1)).permute(0, 2, 3, 1, 4)  # [B, Hkv, G, S, d]
    k, v, g = (inputs[name].float().transpose(1, 2) for name in ("k", "v", "g"))
    state = inputs.get("state")
    opened, outs = k.shape[2] - S, []
    for first in range(0, opened + S, d.C):
        part = slice(first, min(first + d.C, opened + S))
        keys, values, upto = k[:, :, part], with_sums(v[:, :, part]), g[:, :, part].cumsum(-1)
        queries = q[:, :, :, max(first - opened, 0) : part.stop - opened]
        rows = upto[:, :, None, -queries.shape[3] :, None]
        decays = (rows - upto[:, :, None, None]).tril(keys.shape[2] - queries.shape[3]).exp()
        scores = (queries.flatten(2, 3) @ keys.mT).unflatten(2, queries.shape[2:4]).square() * decays
        weights = scores.tril(keys.shape[2] - queries.shape[3])
        found = (weights.flatten(2, 3) @ values).unflatten(2, queries.shape[2:4])
        if state is not None:
            folded = feature_map(queries.flatten(2, 3)) @ state
            found = found + folded.unflatten(2, queries.shape[2:4]) * rows.exp()
        if keys.shape[2] == d.C:
            last = upto[:, :, -1:, None]
            new = feature_map(keys * ((last - upto[..., None]) / 2).exp()).mT @ values
            state = new if state is None else state * last.exp() + new
        outs.append(found[..., :-1] / found[..., -1:])
    out = torch.cat(outs, 3).permute(0, 3, 1, 2, 4).flatten(2, 3).to(dtype)
    return (out, state) if completes(shape) else (out,)


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Prefill: one chunk to many; decode: sequences, an open chunk that is half full, hardly begun, or complete."""
    columns = "batch heads kv_heads context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 32, "chunk": 128}
        fit = [(1, 2, 1, 128), (1, 2, 1, 512), (1, 2, 1, 2048), (1, 4, 2, 512), (2, 2, 1, 512)]
        held_out, sweep = [(1, 2, 1, 1024), (1, 4, 1, 768)], [(1, 2, 1, 4096)]
        # Sixteen heads of a key head fill the tiles that the formulas count, which a processor has none of.
        steps = [(1, 16, 1, 1088), (4, 16, 1, 1088), (16, 16, 1, 1088), (4, 16, 1, 1152), (12, 16, 1, 1152)]
        held_steps = [(8, 16, 1, 1088), (8, 16, 1, 1152)]
    else:
        common = {"dtype": "bf16", "head_dim": 128, "chunk": 1024}
        fit = [(1, 24, 2, 512), (1, 24, 2, 4096), (1, 24, 2, 32768), (4, 24, 2, 4096), (1, 8, 8, 16384)]
        held_out, sweep = [(1, 24, 2, 16384), (1, 24, 2, 131072)], [(1, 24, 2, 2**n) for n in (10, 11, 13, 16)]
        held_out += [(1, 24, 2, 2**18)] if effort == "full" else []
        steps = [(1, 24, 2, 8704), (8, 24, 2, 8704), (64, 24, 2, 8704), (8, 24, 2, 9216), (8, 24, 2, 600)]
        held_steps = [(32, 24, 2, 8704), (16, 24, 2, 8200)]
    if phase == "decode":
        return planned(*(shapes(common, columns, *((*row, 1) for row in rows)) for rows in (steps, held_steps)))
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *((*row, row[3]) for row in rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Two key heads and short chunks: three of a sequence and a ragged one, or an open one as full as the point's."""
    group, C = number(shape, "heads") // number(shape, "kv_heads"), number(shape, "chunk")
    L, S, few = number(shape, "context"), number(shape, "new_tokens"), 16 if shape["dtype"] == "fp32" else 64
    if S > 1:
        tokens = new = 3 * few + 3 if L > C else few - 3
    else:
        tokens, new = (2 * few if L >= C else 0) + (few if L % C == 0 else max(1, L % C * few // C)), 1
    kv_heads = min(number(shape, "kv_heads"), 2)
    heads = {"heads": group * kv_heads, "kv_heads": kv_heads}
    return {**shape, **heads, "batch": 1, "chunk": few, "context": tokens, "new_tokens": new}


PHASES: tuple[Phase, ...] = ("prefill", "decode")
RUNNERS = tuple(
    Runner(
        name=f"power-{phase}",
        family="chunk-scan",
        mechanism="power",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(
            Implementation("torch-chunked" if phase == "prefill" else "torch-step", ("cpu", "cuda"), chunked),
        ),
        points=partial(points, phase),
        small=small,
    )
    for phase in PHASES
)
