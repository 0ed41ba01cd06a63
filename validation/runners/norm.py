"""RMSNorm with the residual addition before it, and RMSNorm of a mixer's output times the SiLU of a gate."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.layers.norm import gated_norm, norm
from costmodel.step import Step
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
from validation.runners._tails import last_along

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

SMALL = 1e-6
"""What is added to the mean square."""


def kernels(gated: bool, shape: Shape) -> list[Kernel]:
    """One pass."""
    step = Step(B=1, S=number(shape, "context"), P=0)
    if gated:
        return [gated_norm("norm", number(shape, "width"), step, precision(shape))]
    return [norm("norm", number(shape, "width"), step, precision(shape))]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal numbers: x, and the residual or the gate."""
    import torch

    rows, width, dtype = number(shape, "context"), number(shape, "width"), torch_dtype(str(shape["dtype"]))
    sizes = {"x": (rows, width), "other": (rows, width), "scale": (width,)}
    return {name: torch.randn(*size, device=device, generator=generator).to(dtype) for name, size in sizes.items()}


def scaled(x: Any, scale: Any) -> Any:
    """x over its root mean square, times a scale per channel."""
    return x / (x.square().mean(-1, keepdim=True) + SMALL).sqrt() * scale


def reference(gated: bool, shape: Shape, inputs: Inputs) -> Outputs:
    """x over its root mean square, arXiv:1910.07467, equation 4."""
    import torch

    x, other, scale = inputs["x"], inputs["other"], inputs["scale"]
    if gated:
        return (scaled(x, scale) * other * torch.sigmoid(other),)
    return x + other, scaled(x + other, scale)


def plain(gated: bool, shape: Shape, inputs: Inputs) -> Outputs:
    """torch's RMSNorm, and what stands around it."""
    import torch

    x, other, scale = inputs["x"], inputs["other"], inputs["scale"]
    width = (x.shape[-1],)
    if gated:
        return (torch.nn.functional.rms_norm(x, width, scale, SMALL) * torch.nn.functional.silu(other),)
    total = x + other
    return total, torch.nn.functional.rms_norm(total, width, scale, SMALL)


COMPILED: dict[bool, Callable[[Shape, Inputs], Outputs]] = {}
"""The fused passes of this process."""


def fused(gated: bool, shape: Shape, inputs: Inputs) -> Outputs:
    """The same, compiled into one pass."""
    if gated not in COMPILED:
        import torch

        COMPILED[gated] = torch.compile(partial(plain, gated), dynamic=False)
    return COMPILED[gated](shape, inputs)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From one row to more than any cache holds."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "batch": 1}
        fit = [(1, 1024), (16, 1024), (256, 1024), (1024, 1024), (4096, 1024), (64, 256)]
        held_out, sweep = [(64, 1024), (512, 2048), (2048, 1024)], [(16384, 1024)]
    else:
        common = {"dtype": "bf16", "batch": 1}
        fit = [(1, 4096), (64, 4096), (1024, 4096), (8192, 4096), (65536, 4096), (512, 8192)]
        held_out, sweep = [(256, 4096), (16384, 8192)], [(2**20, 2048)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, "context width", *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few rows, as many as a point has: what is compiled for the check is then what is timed there."""
    return {**shape, "context": min(number(shape, "context"), 64), "width": min(number(shape, "width"), 4096)}


RUNNERS = tuple(
    Runner(
        name=name,
        family="elementwise",
        mechanism="",
        phase="",
        kernels=partial(kernels, gated),
        inputs=inputs,
        reference=partial(reference, gated),
        implementations=(
            Implementation("torch.rms_norm", ("cpu",), partial(plain, gated)),
            Implementation("torch.compile", ("cuda",), partial(fused, gated), requires=("triton",), per_shape=True),
        ),
        points=points,
        small=small,
        tail=partial(
            last_along, partial(reference, gated), {"x": 0, "other": 0, "scale": None}, (0,) if gated else (0, 0)
        ),
    )
    for name, gated in (("norm", False), ("gated-norm", True))
)
