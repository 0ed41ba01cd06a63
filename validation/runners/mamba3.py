"""Mamba-3 with one input and output per head (SISO): its gated scan over many tokens, and its step for one.

Tensors are C, B [batch, T, 1, N], which the heads share, with biases [H, N]; x, z [batch, T, H, p]; angles
[batch, T, A] and trap [batch, T, H] before their activations; step sizes delta [batch, T, H], rate [H] (negative) and
skip [H]. A sequence keeps its turn [batch, H, A] in radians, the state M [batch, H, N, p], which does not turn itself,
and the last token's turned B [batch, H, N] and x [batch, H, p]. Outputs are y, M and the new last B.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.kernels.base import Kernel
from costmodel.mixers import mamba3
from costmodel.step import Phase, Step
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
    single_tokens,
    torch_dtype,
)
from validation.runners import _linear as linear

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

CHUNK = 64
"""Tokens of a chunk, as in the released kernels without MIMO."""


def dims(shape: Shape) -> mamba3.Dims:
    """The mixer's dimensions; half of B and C is rotated, as in released models."""
    H, N, p = (number(shape, name) for name in ("heads", "d_k", "d_v"))
    return mamba3.Dims(H=H, p=p, N=N, rope=N // 2, C=CHUNK)


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """What runs between the norms of B and C and the output projection, the largest first."""
    S = number(shape, "new_tokens")
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    run = mamba3.stepwise if step.decoding else mamba3.scan
    return run(dims(shape), step, precision(shape))[::-1]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """B and C as their norms leave them, step sizes from 0.001 to 0.1 and rates from −1 to −16, as in training's tests.

    Source: state-spaces/mamba, tests/ops/triton/test_mamba3_siso.py.
    """
    import torch

    batch, T = number(shape, "batch"), number(shape, "new_tokens")
    d, dtype = dims(shape), torch_dtype(str(shape["dtype"]))
    A = d.rope // 2

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    def between(low: float, high: float, *size: int) -> "torch.Tensor":
        return low + (high - low) * torch.rand(*size, device=device, generator=generator)

    tokens = {"C": drawn(batch, T, 1, d.N), "B": drawn(batch, T, 1, d.N)}
    tokens |= {"x": drawn(batch, T, d.H, d.p), "z": drawn(batch, T, d.H, d.p)}
    tokens |= {"angles": drawn(batch, T, A), "trap": drawn(batch, T, d.H)}
    tokens |= {"C_bias": drawn(d.H, d.N), "B_bias": drawn(d.H, d.N)}
    tokens |= {"last_B": drawn(batch, d.H, d.N), "last_x": drawn(batch, d.H, d.p)}
    fixed = {
        "delta": between(math.log(0.001), math.log(0.1), batch, T, d.H).exp(),
        "rate": between(-16.0, -1.0, d.H),
        "skip": drawn(d.H),
        "turn": between(0.0, 2 * math.pi, batch, d.H, A),
        "M": drawn(batch, d.H, d.N, d.p),
    }
    return {**{name: each.to(dtype) for name, each in tokens.items()}, **fixed}


class Parts(NamedTuple):
    """What the recurrence takes: turned C and B, x [batch, T, H, …], ln of the decay, and the weights of the token
    before and of the token itself [batch, T, H]."""

    C: Any
    B: Any
    x: Any
    g: Any
    before: Any
    own: Any


def parts(x: Inputs) -> Parts:
    """Biases, cumulative rotation and weights of the trapezoid, in the precision of what is given, fp32 at least."""
    import torch

    from validation.references.mamba3 import rotated

    given = {name: each if each.dtype == torch.float64 else each.float() for name, each in x.items()}
    delta, share = given["delta"], torch.sigmoid(given["trap"])
    turned = given["turn"][:, None] + (torch.tanh(given["angles"])[:, :, None] * math.pi * delta[..., None]).cumsum(1)
    return Parts(
        rotated(given["C"] + given["C_bias"], turned),
        rotated(given["B"] + given["B_bias"], turned),
        given["x"],
        delta * given["rate"],
        (1 - share) * delta,
        share * delta,
    )


def gated(y: Any, x: Inputs) -> Any:
    """The skip and the gate."""
    import torch

    return (y + x["skip"][:, None] * x["x"]) * torch.nn.functional.silu(x["z"])


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Head by head: the counted references, in chunks for many tokens and token by token for one."""
    import torch

    from validation.references import mamba3 as plain

    p, M = parts(inputs), inputs["M"].clone()
    y = torch.empty_like(p.x)
    for n in range(number(shape, "batch")):
        for h in range(number(shape, "heads")):
            b, x = (
                torch.cat([last[n, None, None, h], each[n, :, None, h]])
                for last, each in ((inputs["last_B"], p.B), (inputs["last_x"], p.x))
            )
            weights = (each[n, :, h, None, None] for each in (p.g.exp(), p.before, p.own))
            data = (p.C[n, :, None, h], b, x, *weights, M[n, h])
            out, M[n, h] = plain.recurrent(data) if len(x) == 2 else plain.chunked(data, CHUNK)
            y[n, :, h] = out[:, 0]
    return gated(y, inputs), M, p.B[:, -1]


def chunked(shape: Shape, inputs: Inputs) -> Outputs:
    """Linear attention whose keys carry their own write and their share in the next token's step.

    A token does not see that share of its own, which is taken off afterwards.
    """
    import torch

    p = parts(inputs)
    M = inputs["M"] + (p.before[:, 0, :, None] * inputs["last_B"])[..., None] * inputs["last_x"][:, :, None]
    later = torch.nn.functional.pad(p.before[:, 1:], (0, 0, 0, 1))
    y, M = linear.decayed(p.C, p.B * (p.own + later)[..., None], p.x, p.g[..., None], M, CHUNK)
    y = y - ((p.C * p.B).sum(-1) * later)[..., None] * p.x
    dtype = inputs["x"].dtype
    return gated(y, inputs).to(dtype), M, p.B[:, -1].to(dtype)


def update(shape: Shape, inputs: Inputs) -> Outputs:
    """One token."""
    p = parts(inputs)
    c, b, x, g, before, own = (each[:, 0] for each in p)
    M = inputs["M"] + (before[..., None] * inputs["last_B"])[..., None] * inputs["last_x"][:, :, None]
    M = M * g.exp()[..., None, None] + (own[..., None] * b)[..., None] * x[:, :, None]
    y = (c[..., None, :] @ M)[..., 0, :][:, None]
    dtype = inputs["x"].dtype
    return gated(y, inputs).to(dtype), M, b.to(dtype)


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Prefill: tokens and heads; decode: sequences."""
    columns = "batch heads context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "d_k": 64, "d_v": 32}
        fit = [(1, 2, 256), (1, 2, 1024), (1, 2, 4096), (1, 4, 512), (2, 2, 256)]
        held_out, sweep = [(1, 2, 2048), (2, 2, 512)], [(1, 2, 8192)]
        steps, held_steps, swept = [(1, 2), (1, 4), (8, 4), (32, 4), (128, 4)], [(4, 4), (64, 4)], [(256, 4)]
    else:
        common = {"dtype": "bf16", "d_k": 128, "d_v": 64}
        fit = [(1, 32, 64), (1, 8, 4096), (1, 64, 2048), (8, 32, 512), (1, 64, 32768)]
        held_out = [(1, 32, 16384), (4, 64, 8192), (1, 8, 2**18)]
        sweep = [(1, 64, 2**n) for n in (8, 10, 13)] + [(1, 8, 65536)]
        steps, held_steps = [(1, 64), (8, 64), (64, 64), (512, 64)], [(32, 64), (256, 64)]
        swept = [(2, 64), (16, 64), (128, 64)]
    full = effort == "full"
    if phase == "decode":
        rows = (steps, held_steps, swept if full else [])
        return planned(*(shapes(common, columns, *single_tokens(*table)) for table in rows))
    tables = (fit, held_out, sweep if full else [])
    return planned(*(shapes(common, columns, *new_sequences(*table)) for table in tables))


def small(shape: Shape) -> Shape:
    """Two heads; of many tokens a whole chunk and a ragged one."""
    tokens = min(number(shape, "new_tokens"), CHUNK + 3)
    return {**shape, "batch": min(number(shape, "batch"), 2), "heads": 2, "context": tokens, "new_tokens": tokens}


RUN: tuple[tuple[Phase, str, Callable[[Shape, Inputs], Outputs]], ...] = (
    ("prefill", "torch-chunked", chunked),
    ("decode", "torch-step", update),
)
RUNNERS = tuple(
    Runner(
        name=f"mamba3-{phase}",
        family="recurrent-step" if phase == "decode" else "chunk-scan",
        mechanism="mamba3",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation(name, ("cpu", "cuda"), run),),
        points=partial(points, phase),
        small=small,
    )
    for phase, name, run in RUN
)
