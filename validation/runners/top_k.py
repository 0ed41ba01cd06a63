"""The k largest logits of every query."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.kernels.top_k import Selection
from costmodel.kernels.top_k import top_k as kernel
from validation.runners import Implementation, Inputs, Outputs, Planned, Runner, Shape, number, planned, shapes
from validation.runners._tails import last_along

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """The selection kernel."""
    rows = number(shape, "batch")
    return [kernel("top-k", Selection(rows, rows * number(shape, "context"), number(shape, "k")))]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal fp32 logits, a row per query."""
    import torch

    rows, candidates = number(shape, "batch"), number(shape, "context")
    return {"logits": torch.randn(rows, candidates, device=device, generator=generator)}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """The head of the sorted row."""
    import torch

    return (torch.sort(inputs["logits"], descending=True).values[:, : number(shape, "k")],)


def select(shape: Shape, inputs: Inputs) -> Outputs:
    """torch's selection, sorted."""
    import torch

    return (torch.topk(inputs["logits"], number(shape, "k")).values,)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Few and many rows, short and long ones."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "k": 256}
        # Of few logits that are sorted again and again a core learns the branches.
        fit = [(128, 512), (64, 4096), (256, 1024), (32, 4096), (128, 2048), (16, 16384)]
        held_out, sweep = [(64, 2048), (128, 1024), (32, 8192)], [(1024, 4096)]
    else:
        common = {"dtype": "fp32", "k": 2048}
        fit = [(64, 4096), (2048, 8192), (64, 131072), (1, 8192), (256, 32768)]
        held_out, sweep = [(1024, 65536), (1024, 2**20)], [(2048, 32768), (2048, 2**18), (1, 2**20)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, "batch context", *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few rows."""
    return {**shape, "batch": min(number(shape, "batch"), 8)}


RUNNER = Runner(
    name="top-k",
    family="top-k",
    mechanism="dsa",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch.topk", ("cpu", "cuda"), select),),
    points=points,
    small=small,
    tail=partial(last_along, reference, {"logits": 0}, (0,)),
)
