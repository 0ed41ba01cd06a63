"""Causal depthwise convolutions of a few taps with SiLU: over a sequence, and of one new token with its history.

Tensors are x [B, channels, S], taps [channels, width] and the history [B, channels, width − 1].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.short_conv import ShortConv
from costmodel.kernels.short_conv import short_conv as kernel
from costmodel.step import Phase
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
    shapes,
    single_tokens,
    torch_dtype,
)
from validation.runners._tails import last_along

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """One launch."""
    B, S, channels, width = (number(shape, name) for name in ("batch", "new_tokens", "channels", "width"))
    c = ShortConv(B, S, channels, width, element_bytes(str(shape["dtype"])))
    return [kernel("short conv", c, update=phase == "decode")]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal numbers."""
    import torch

    B, S, channels, width = (number(shape, name) for name in ("batch", "new_tokens", "channels", "width"))
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = {"x": (B, channels, S), "taps": (channels, width), "history": (B, channels, width - 1)}
    return {name: torch.randn(*size, device=device, generator=generator).to(dtype) for name, size in sizes.items()}


def weighed(x: Any, taps: Any, history: Any) -> Any:
    """Position by position: the product of the taps with what they lie on."""
    import torch

    from validation.counting import vector

    width = taps.shape[1]
    seen = torch.cat([history, x], -1).unfold(-1, width, 1)  # [B, channels, S, width]
    every = taps[None, :, None].expand_as(seen)
    with vector():
        out = torch.bmm(seen.reshape(-1, 1, width), every.reshape(-1, width, 1))
    return out.reshape(x.shape)


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """What the taps give, through SiLU."""
    import torch

    return (torch.nn.functional.silu(weighed(inputs["x"], inputs["taps"], inputs["history"])),)


def convolve(shape: Shape, inputs: Inputs) -> Outputs:
    """torch's grouped convolution over the history and the new tokens."""
    import torch

    whole = torch.cat([inputs["history"], inputs["x"]], -1)
    out = torch.nn.functional.conv1d(whole, inputs["taps"][:, None], groups=whole.shape[1])
    return (torch.nn.functional.silu(out),)


def update(shape: Shape, inputs: Inputs) -> Outputs:
    """The history moved by one token, times the taps."""
    import torch

    whole = torch.cat([inputs["history"], inputs["x"]], -1)
    return (torch.nn.functional.silu((whole * inputs["taps"]).sum(-1, keepdim=True)),)


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Tokens and channels; of one token, sequences."""
    columns = "batch channels context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "width": 4}
        fit = [(1, 256, 256), (1, 256, 4096), (1, 1024, 1024), (4, 512, 256), (1, 64, 512), (1, 1024, 4096)]
        held_out, sweep = [(1, 512, 2048), (1, 1024, 512), (2, 256, 2048)], [(1, 1024, 16384)]
        steps, held_steps = [(1, 256), (1, 2048), (16, 512), (64, 1024), (256, 1024)], [(4, 1024), (64, 512)]
    else:
        common = {"dtype": "bf16", "width": 4}
        fit = [(1, 8192, 1024), (1, 8192, 32768), (1, 8192, 128), (8, 4096, 4096), (1, 1024, 65536)]
        held_out, sweep = [(1, 8192, 2**18), (1, 8192, 8192)], [(1, 8192, 2**20)]
        steps, held_steps = [(1, 8192), (16, 8192), (128, 8192), (512, 8192), (1, 2048)], [(64, 8192), (256, 8192)]
    if phase == "decode":
        return planned(*(shapes(common, columns, *single_tokens(*rows)) for rows in (steps, held_steps)))
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *new_sequences(*rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few tokens, and few channels, in eights as causal-conv1d takes them."""
    tokens = min(number(shape, "new_tokens"), 21)
    return {**shape, "batch": 2, "channels": 16, "new_tokens": tokens, "context": tokens}


RUN: tuple[tuple[Phase, str, Callable[[Shape, Inputs], Outputs]], ...] = (
    ("prefill", "torch.conv1d", convolve),
    ("decode", "torch-update", update),
)
RUNNERS = tuple(
    Runner(
        name=f"short-conv-{phase}",
        family="short-conv",
        mechanism="",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation(name, ("cpu", "cuda"), run),),
        points=partial(points, phase),
        small=small,
        tail=partial(last_along, reference, {"x": 1, "taps": 0, "history": 1}, (1,)),
    )
    for phase, name, run in RUN
)
