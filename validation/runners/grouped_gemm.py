"""The products of a mixture of experts: the rows of each expert, side by side, times its matrix.

Tensors are x [rows, d_in], sorted by expert, w [E, d_out, d_in] and the ends of the experts' rows [E]. Rows are dealt
out evenly, so that what is measured does not hang on a draw.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.kernels.grouped_gemm import GroupedGemm
from costmodel.kernels.grouped_gemm import grouped_gemm as kernel
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    shapes,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """One grouped product."""
    tokens, E, k, d_in, d_out = (number(shape, name) for name in ("context", "experts", "k", "d_in", "d_out"))
    dtype = str(shape["dtype"])
    product = GroupedGemm(tokens, E, k, d_in, d_out, dtype, dtype, dtype, active=min(E, tokens * k), even=True)
    return [kernel("experts", product)]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal rows and matrices; the first experts get one row more where they do not divide."""
    import torch

    tokens, E, k, d_in, d_out = (number(shape, name) for name in ("context", "experts", "k", "d_in", "d_out"))
    rows, dtype = tokens * k, torch_dtype(str(shape["dtype"]))
    each = torch.full((E,), rows // E, dtype=torch.int32, device=device)
    each[: rows % E] += 1
    return {
        "x": torch.randn(rows, d_in, device=device, generator=generator).to(dtype),
        "w": (torch.randn(E, d_out, d_in, device=device, generator=generator) * d_in**-0.5).to(dtype),
        "ends": each.cumsum(0).to(torch.int32),
    }


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Expert by expert."""
    import torch

    begins = [0, *inputs["ends"].tolist()]
    x, w = inputs["x"], inputs["w"]
    return (torch.cat([x[begins[e] : begins[e + 1]] @ w[e].T for e in range(len(w))]),)


def one_by_one(shape: Shape, inputs: Inputs) -> Outputs:
    """A product per expert that has rows."""
    import torch

    x, w, begins = inputs["x"], inputs["w"], inputs["begins"]
    parts = [x[a:b] @ w[e].t() for e, (a, b) in enumerate(pairwise(begins)) if b > a]
    return (torch.cat(parts),)


def limits(shape: Shape, inputs: Inputs) -> Inputs:
    """Where each expert's rows begin, known to the host."""
    return {"begins": [0, *inputs["ends"].tolist()]}


def grouped(shape: Shape, inputs: Inputs) -> Outputs:
    """torch's grouped product."""
    import torch

    return (torch._grouped_mm(inputs["x"], inputs["w"].mT, offs=inputs["ends"]),)


def has_grouped(shape: Shape, facts: "DeviceFacts") -> str:
    """What torch._grouped_mm demands."""
    import torch

    if not hasattr(torch, "_grouped_mm"):
        return "this torch has no grouped product"
    if shape["dtype"] != "bf16":
        return "torch._grouped_mm multiplies bf16"
    if facts.vendor == "NVIDIA" and (facts.capability or (0, 0)) < (8, 0):
        return "torch._grouped_mm needs compute capability 8.0"
    return ""


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """One token (weights stream), a row per expert, many rows per expert."""
    columns = "context experts k d_in d_out"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "batch": 1}
        fit = [(1, 16, 2, 256, 128), (8, 16, 2, 256, 128), (256, 16, 2, 256, 128), (1024, 16, 2, 128, 256)]
        fit += [(64, 8, 2, 512, 256), (16, 32, 4, 256, 256)]
        held_out, sweep = (
            [(4, 16, 2, 256, 256), (128, 16, 2, 256, 128), (512, 8, 2, 256, 256)],
            [(2048, 16, 4, 256, 256)],
        )
    else:
        common = {"dtype": "bf16", "batch": 1}
        fit = [(n, 128, 8, 2048, 1536) for n in (1, 16, 128, 1024, 8192)] + [(256, 256, 8, 7168, 512)]
        held_out = [(8, 128, 8, 2048, 1536), (64, 256, 8, 7168, 512), (4096, 128, 8, 2048, 1536)]
        sweep = [(n, 64, 6, 2048, 2816) for n in (4, 256, 2048)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few tokens and narrow matrices."""
    return {**shape, "context": min(number(shape, "context"), 24), "d_in": 64, "d_out": 48}


RUNNER = Runner(
    name="grouped-gemm",
    family="moe",
    mechanism="",
    phase="",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("torch.mm-by-expert", ("cpu", "cuda"), one_by_one, prepare=limits),
        Implementation("torch._grouped_mm", ("cuda",), grouped, supports=has_grouped),
    ),
    points=points,
    small=small,
)
