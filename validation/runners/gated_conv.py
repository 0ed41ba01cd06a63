"""Gated short convolutions of LFM2: a gate, a causal depthwise convolution of a few taps, and a gate behind it.

Tensors are before, behind and x [B, channels, S], taps [channels, width] and the history [B, channels, width − 1] of
what was convolved: inputs that have passed the first gate. There is no activation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.mixers import gated_conv
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
from validation.runners._tails import last_along
from validation.runners.short_conv import small, weighed

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """The convolution and both gates: the mixer without its projections."""
    S, channels = number(shape, "new_tokens"), number(shape, "channels")
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    d = gated_conv.Dims(W=channels, conv=number(shape, "width"))
    _, before, convolution, behind, _ = gated_conv.kernels(d, channels, step, precision(shape))
    return [convolution, before, behind]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal numbers: the gates are products of the input, without a sigmoid."""
    import torch

    B, S, channels, width = (number(shape, name) for name in ("batch", "new_tokens", "channels", "width"))
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = [("taps", (channels, width)), ("history", (B, channels, width - 1))]
    sizes += [(name, (B, channels, S)) for name in ("before", "x", "behind")]
    return {name: torch.randn(*size, device=device, generator=generator).to(dtype) for name, size in sizes}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Position by position."""
    return (inputs["behind"] * weighed(inputs["before"] * inputs["x"], inputs["taps"], inputs["history"]),)


def convolve(shape: Shape, inputs: Inputs) -> Outputs:
    """Product, torch's grouped convolution, product, as LFM2's own code without a package.

    Source: transformers, models/lfm2/modeling_lfm2.py (Lfm2ShortConv.slow_forward).
    """
    import torch

    seen = torch.cat([inputs["history"], inputs["before"] * inputs["x"]], -1)
    return (inputs["behind"] * torch.nn.functional.conv1d(seen, inputs["taps"][:, None], groups=seen.shape[1]),)


def update(shape: Shape, inputs: Inputs) -> Outputs:
    """The same of one token: what is kept and the new one, times the taps."""
    import torch

    seen = torch.cat([inputs["history"], inputs["before"] * inputs["x"]], -1)
    return (inputs["behind"] * (seen * inputs["taps"]).sum(-1, keepdim=True),)


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Tokens and channels; of one token, sequences."""
    columns = "batch channels context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "width": 3}
        # Passes over more than the caches hold are the norm's to measure.
        fit = [(1, 64, 256), (1, 64, 512), (1, 64, 1024), (1, 128, 512), (4, 64, 256)]
        held_out, sweep = [(1, 64, 768), (2, 64, 512)], [(1, 64, 16384)]
        steps, held_steps = [(1, 256), (1, 1024), (16, 512), (64, 1024), (256, 1024)], [(4, 1024), (64, 512)]
    else:
        common = {"dtype": "bf16", "width": 3}
        fit = [(1, 2048, 1024), (1, 2048, 32768), (1, 2048, 128), (8, 2048, 4096), (1, 1024, 65536)]
        held_out, sweep = [(1, 2048, 2**18), (1, 2048, 8192)], [(1, 2048, 2**20)]
        steps, held_steps = [(1, 2048), (16, 2048), (128, 2048), (512, 2048)], [(64, 2048), (256, 2048)]
    if phase == "decode":
        return planned(*(shapes(common, columns, *single_tokens(*rows)) for rows in (steps, held_steps)))
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *new_sequences(*rows)) for rows in tables))


RUN: tuple[tuple[Phase, str, Callable[[Shape, Inputs], Outputs]], ...] = (
    ("prefill", "torch-gated-conv", convolve),
    ("decode", "torch-gated-update", update),
)
RUNNERS = tuple(
    Runner(
        name=f"gated-conv-{phase}",
        family="short-conv",
        mechanism="gated-conv",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation(name, ("cpu", "cuda"), run),),
        points=partial(points, phase),
        small=small,
        tail=partial(last_along, reference, {"before": 1, "x": 1, "behind": 1, "taps": 0, "history": 1}, (1,)),
    )
    for phase, name, run in RUN
)
