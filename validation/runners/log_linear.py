"""Log-linear attention over a new sequence, with Mamba-2's recurrence: a state per level of a Fenwick tree of chunks.

Tensors are q, k [B, S, 1, dk], which all heads share, v [B, S, H, dv], g = ln of the decay [B, S, H, 1] and the weights
of the levels [B, S, H, log₂C + 1 + levels]. Returned are outputs and the states of the levels that hold something.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.mixers import log_linear
from costmodel.step import Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    new_sequences,
    number,
    planned,
    precision,
    shapes,
    torch_dtype,
)
from validation.runners._linear import in_chunks, in_order

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

C = 64
"""Tokens of a chunk, as in the public kernels."""
INSIDE = C.bit_length()
"""Levels inside a chunk, whose pairs are weighed one by one."""


def dims(shape: Shape) -> log_linear.Dims:
    """The mixer's dimensions."""
    H, dk, dv, levels = (number(shape, name) for name in ("heads", "d_k", "d_v", "levels"))
    return log_linear.Dims(Hk=1, Hv=H, dk=dk, dv=dv, M=levels, C=C)


def kernels(shape: Shape) -> list[Kernel]:
    """Decays summed, the walk over the chunks with all states, and the sum of what slices of the keys put out."""
    return log_linear.scan(
        dims(shape), Step(B=number(shape, "batch"), S=number(shape, "context"), P=0), precision(shape)
    )


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Unit keys, decays by which a head forgets over tens to thousands of tokens, weights between 0 and 1."""
    import torch

    d, dtype = dims(shape), torch_dtype(str(shape["dtype"]))
    B, S = number(shape, "batch"), number(shape, "context")

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    found = {
        "q": drawn(B, S, 1, d.dk),
        "k": torch.nn.functional.normalize(drawn(B, S, 1, d.dk), dim=-1),
        "v": drawn(B, S, d.Hv, d.dv),
        "weights": torch.sigmoid(drawn(B, S, d.Hv, INSIDE + d.M)),
    }
    gate = -0.05 * torch.sigmoid(drawn(B, S, d.Hv, 1))
    return {name: x.to(dtype) for name, x in found.items()} | {"g": gate}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Token by token; scores once for all heads."""
    import torch

    from validation.references import log_linear as plain

    d, outs, states = dims(shape), [], []
    for q, k, v, g, weights in zip(*(inputs[name] for name in ("q", "k", "v", "g", "weights")), strict=True):
        heads, alpha, rows = [plain.Decayed(d, {}, 0) for _ in range(d.Hv)], g[..., 0].exp(), []
        for t in range(len(q)):
            scores = q[t] @ k[t - t % C : t + 1, 0].T
            each = (
                head.step(t, scores, q[t], k[t], v[t, h : h + 1], alpha[t, h : h + 1], weights[t, h])
                for h, head in enumerate(heads)
            )
            rows.append(torch.cat(list(each)))
        outs.append(torch.stack(rows))
        states.append([torch.stack([head.states[at] for head in heads]) for at in sorted(heads[0].states)])
    return torch.stack(outs), *(torch.stack(each) for each in zip(*states, strict=True))


def readers(shape: Shape, inputs: Inputs) -> Inputs:
    """The level of every pair of a chunk, and which chunks read a level's state: on the device before a call begins."""
    import torch

    from validation.references.log_linear import live

    d, device = dims(shape), inputs["q"].device
    token = torch.arange(C, device=device)
    reading: dict[int, list[int]] = {}
    for i in range(-(-number(shape, "context") // C)):
        for at in live(i, d):
            reading.setdefault(at, []).append(i)
    return {
        "pair_levels": torch.frexp((token[:, None] ^ token).float())[1].long(),  # the highest bit in which two differ
        "reading": {at: torch.tensor(chunks, device=device) for at, chunks in reading.items()},
    }


def chunked(shape: Shape, inputs: Inputs) -> Outputs:
    """All chunks inside at once, a walk that keeps the states, and a product per level for the chunks that read it."""
    import torch

    S, last_level = number(shape, "context"), number(shape, "levels") - 1
    q, k, v, g, weights = (in_chunks(inputs[name].float(), C) for name in ("q", "k", "v", "g", "weights"))
    upto = g.cumsum(-2)
    last = upto[..., -1:, :]
    pair = weights.gather(-1, inputs["pair_levels"].expand(*weights.shape[:3], C, C))
    out = ((q @ k.mT) * ((upto - upto.mT).exp() * pair)).tril() @ v
    written, whole = (k * (last - upto).exp()).mT @ v, last.exp()
    states: dict[int, torch.Tensor] = {}
    reads: dict[int, list[torch.Tensor]] = {}
    for i in range(q.shape[2]):
        for at, state in states.items():
            reads.setdefault(at, []).append(state)
        if (i + 1) * C <= S:
            states = {at: state * whole[:, :, i] for at, state in states.items()}
            new, at = written[:, :, i], 0
            while at in states:
                new = new + states.pop(at)
                at = min(at + 1, last_level)
            states[at] = new
    for at, read in reads.items():
        weight, decay, queries = (
            x.index_select(2, inputs["reading"][at]) for x in (weights[..., INSIDE + at, None], upto, q)
        )
        out.index_add_(2, inputs["reading"][at], weight * decay.exp() * (queries @ torch.stack(read, 2)))
    return in_order(out, S).to(inputs["v"].dtype), *(states[at] for at in sorted(states))


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Chains of chunks in few and in many heads, lengths with one and with many states."""
    columns = "batch heads context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "d_k": 64, "d_v": 64, "levels": 8}
        fit = [(1, 4, 128), (1, 4, 512), (1, 4, 2048), (1, 2, 960), (2, 4, 256)]
        held_out, sweep = [(1, 4, 1024), (1, 2, 1536)], [(1, 4, 4096)]
    else:
        common = {"dtype": "bf16", "d_k": 128, "d_v": 64, "levels": 11}
        fit = [(1, 32, 128), (1, 32, 2048), (8, 32, 512), (1, 8, 16384), (1, 32, 32768)]
        held_out = [(1, 32, 8192), (1, 32, 65536)]
        sweep = [(1, 32, 2**n) for n in (8, 10, 12, 14)] + [(1, 32, 3 * 2**15)]
        # The form in torch keeps every state that is read: of 8 heads 7 GB.
        held_out += [(1, 8, 2**18)] if effort == "full" else []
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *new_sequences(*rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Two heads; three chunks, which two levels hold, and some tokens."""
    return {**shape, "batch": 1, "heads": 2, "context": 3 * C + 3, "new_tokens": 3 * C + 3}


RUNNER = Runner(
    name="log-linear-prefill",
    family="chunk-scan",
    mechanism="log-linear",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-chunked", ("cpu", "cuda"), chunked, prepare=readers),),
    points=points,
    small=small,
)
