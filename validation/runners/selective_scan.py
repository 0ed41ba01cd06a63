"""Mamba-1's selective scan over many tokens, and its state update for one.

Tensors are x, delta, z [B, T, D], A [D, N] (negative), B, C [B, T, N], skip [D] and the state h [B, D, N].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.mixers import mamba1
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
from validation.runners._tails import last_tokens

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

CHUNK = 16
"""Tokens whose states are in memory at a time; decays over so many stay inside fp32."""


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """The gated scan, or the update of the states."""
    S = number(shape, "new_tokens")
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    d = mamba1.Dims(inner=number(shape, "channels"), N=number(shape, "state"), rank=1)
    if step.decoding:
        # One kernel for any number of channels.
        return [mamba1.stepwise(d, step, precision(shape))._replace(instance="mamba1")]
    return [mamba1.scan(d, step, precision(shape))]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Step sizes between 0.001 and 0.1 and A from −1 to −N, as models are initialised."""
    import torch

    batch, T, D, N = (number(shape, name) for name in ("batch", "new_tokens", "channels", "state"))
    dtype = torch_dtype(str(shape["dtype"]))

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    tokens = {"x": drawn(batch, T, D), "z": drawn(batch, T, D), "B": drawn(batch, T, N), "C": drawn(batch, T, N)}
    tokens["delta"] = 0.001 + 0.099 * torch.sigmoid(drawn(batch, T, D))
    fixed = {
        "A": -torch.arange(1, N + 1, device=device).float().expand(D, N).contiguous(),
        "skip": drawn(D),
        "h": drawn(batch, D, N),
    }
    return {**{name: x.to(dtype) for name, x in tokens.items()}, **fixed}


def gated(y: Any, x: Inputs) -> Any:
    """The skip and the gate."""
    import torch

    return (y + x["x"] * x["skip"]) * torch.nn.functional.silu(x["z"])


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Token by token."""
    import torch

    from validation.references import mamba1 as plain

    outs, states = [], []
    for b in range(number(shape, "batch")):
        delta = inputs["delta"][b]
        decays = (delta[..., None] * inputs["A"]).exp()
        y, h = plain.recurrent((delta * inputs["x"][b], decays, inputs["B"][b], inputs["C"][b], inputs["h"][b]))
        outs.append(y)
        states.append(h)
    return gated(torch.stack(outs), inputs), torch.stack(states)


def chunked(shape: Shape, inputs: Inputs) -> Outputs:
    """Chunk by chunk: inside one, states are running sums of what was written, undone by the decays until then."""
    import torch

    x, delta, B, C = (inputs[name].float() for name in ("x", "delta", "B", "C"))
    h, out = inputs["h"], []
    for first in range(0, x.shape[1], CHUNK):
        part = slice(first, first + CHUNK)
        upto = (delta[:, part, :, None] * inputs["A"]).cumsum(1)
        written = (delta[:, part] * x[:, part])[..., None] * B[:, part, None]
        states = ((written * (-upto).exp()).cumsum(1) + h[:, None]) * upto.exp()
        out.append((states @ C[:, part, :, None])[..., 0])
        h = states[:, -1]
    return gated(torch.cat(out, 1), inputs).to(inputs["x"].dtype), h


def update(shape: Shape, inputs: Inputs) -> Outputs:
    """One token."""
    x, delta, B, C = (inputs[name][:, 0].float() for name in ("x", "delta", "B", "C"))
    h = inputs["h"] * (delta[..., None] * inputs["A"]).exp() + (delta * x)[..., None] * B[:, None]
    y = (h @ C[..., None])[..., 0][:, None]
    return gated(y, inputs).to(inputs["x"].dtype), h


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Prefill: tokens and channels; decode: sequences."""
    columns = "batch channels context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "state": 16}
        fit = [(1, 128, 256), (1, 128, 1024), (1, 128, 4096), (1, 256, 512), (4, 64, 256), (1, 512, 256)]
        held_out, sweep = [(1, 128, 2048), (2, 128, 512), (1, 256, 1024)], [(1, 128, 8192)]
        steps = [(1, 256), (1, 2048), (8, 1024), (64, 256), (64, 1024), (256, 1024)]
        held_steps, swept = [(4, 512), (16, 1024), (128, 1024)], [(512, 1024)]
    else:
        common = {"dtype": "bf16", "state": 16}
        fit = [(1, 8192, 64), (1, 1024, 4096), (1, 8192, 4096), (8, 8192, 512), (1, 8192, 32768)]
        held_out, sweep = [(1, 4096, 131072), (1, 2048, 2**20)], [(1, 8192, 1024), (1, 8192, 16384), (1, 2048, 2**19)]
        steps = [(1, 8192), (8, 8192), (64, 8192), (512, 8192)]
        held_steps, swept = [(32, 8192), (256, 8192)], [(2, 8192), (16, 8192), (128, 8192), (1024, 8192)]
    if phase == "decode":
        tables = (steps, held_steps, swept if effort == "full" else [])
        return planned(*(shapes(common, columns, *single_tokens(*rows)) for rows in tables))
    sequences = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *new_sequences(*rows)) for rows in sequences))


def small(shape: Shape) -> Shape:
    """Few channels and tokens."""
    tokens = min(number(shape, "new_tokens"), 2 * CHUNK + 3)
    return {**shape, "batch": 2, "channels": 24, "new_tokens": tokens, "context": tokens}


RUN: tuple[tuple[Phase, str, Callable[[Shape, Inputs], Outputs]], ...] = (
    ("prefill", "torch-chunked", chunked),
    ("decode", "torch-step", update),
)
RUNNERS = tuple(
    Runner(
        name=f"mamba1-{phase}",
        family="recurrent-step" if phase == "decode" else "selective-scan",
        mechanism="mamba1",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation(name, ("cpu", "cuda"), run),),
        points=partial(points, phase),
        small=small,
        tail=partial(last_tokens, chunked, dict.fromkeys(("x", "z", "delta", "B", "C"), 1), "h"),
    )
    for phase, name, run in RUN
)
