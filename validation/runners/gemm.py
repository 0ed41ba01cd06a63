"""Dense products [m × k] · [k × n], by the library that torch was built with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.kernels.gemm import Gemm
from costmodel.kernels.gemm import gemm as kernel
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    has_fp8,
    number,
    planned,
    shapes,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """One product; of 8-bit operands the quantisation is not timed, so that they arrive as they are."""
    dtype = str(shape["dtype"])
    output = "bf16" if dtype == "fp8" else dtype
    m, n, k = (number(shape, name) for name in ("context", "n", "k"))
    batch = number(shape, "batch")
    return [kernel("product", Gemm(m, n, k, batch, dtype, dtype, output, source=dtype))]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Activations [batch, m, k] and weights [batch, n, k], as linear layers keep them."""
    import torch

    from validation.runners import torch_dtype

    dtype = torch_dtype(str(shape["dtype"]))
    batch, m, n, k = (number(shape, name) for name in ("batch", "context", "n", "k"))
    drawn = {
        "x": torch.randn(batch, m, k, device=device, generator=generator),
        "w": torch.randn(batch, n, k, device=device, generator=generator) * k**-0.5,
    }
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """x · wᵀ."""
    return (inputs["x"] @ inputs["w"].transpose(1, 2),)


def multiply(shape: Shape, inputs: Inputs) -> Outputs:
    """One product, or a batch of them."""
    import torch

    x, w = inputs["x"], inputs["w"]
    if len(x) == 1:
        return (torch.mm(x[0], w[0].t())[None],)
    return (torch.bmm(x, w.transpose(1, 2)),)


def multiply_8_bit(shape: Shape, inputs: Inputs) -> Outputs:
    """One 8-bit product with one scale per operand."""
    import torch

    one = inputs["one"]
    return (torch._scaled_mm(inputs["x"][0], inputs["w"][0].t(), one, one, out_dtype=torch.bfloat16)[None],)


def scale(shape: Shape, inputs: Inputs) -> Inputs:
    """The scale of operands that need none."""
    import torch

    return {"one": torch.ones((), device=inputs["x"].device)}


def has_16_or_32_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """torch.mm takes no 8-bit operands."""
    return "8-bit operands need torch._scaled_mm" if shape["dtype"] == "fp8" else ""


def has_8_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """What torch._scaled_mm demands."""
    if shape["dtype"] != "fp8":
        return "operands are not 8-bit"
    if number(shape, "batch") != 1 or number(shape, "n") % 16 or number(shape, "k") % 16:
        return "torch._scaled_mm takes one product with n and k in multiples of 16"
    return ""


COLUMNS = "batch context n k"


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Few rows (weights stream), many rows, deep and shallow k, batches."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32"}
        return planned(
            shapes(
                common,
                COLUMNS,
                (1, 256, 256, 256),
                (1, 512, 512, 512),
                (1, 1, 1024, 1024),
                (1, 16, 512, 1024),
                (1, 64, 64, 64),
                (1, 1024, 256, 512),
                (1, 32, 64, 512),
                (1, 1, 256, 256),
                (1, 768, 768, 768),
                (8, 64, 128, 64),
                (8, 256, 64, 128),
                (16, 16, 64, 64),
            ),
            shapes(common, COLUMNS, (1, 384, 512, 256), (1, 4, 512, 1024), (1, 128, 1024, 512), (8, 128, 128, 64)),
            shapes(common, COLUMNS, (1, 1024, 1024, 1024), (1, 2048, 512, 512)) if effort == "full" else (),
        )
    fit = [(1, m, n, k) for n, k in ((4096, 4096), (14336, 4096), (4096, 14336)) for m in (1, 16, 64, 256, 2048, 8192)]
    held_out = [(1, m, n, k) for n, k in ((6144, 4096), (4096, 7168)) for m in (1, 8, 32, 128, 1024, 4096, 16384)]
    sweep = [(1, m, 2048, 7168) for m in (2, 24, 96, 512, 3072)] if effort == "full" else []
    found: list[Planned] = []
    for dtype in ("bf16", "fp8"):
        if dtype != "fp8" or has_fp8(facts):
            tables = (shapes({"dtype": dtype}, COLUMNS, *rows) for rows in (fit, held_out, sweep))
            found += planned(*tables)
    return found


def small(shape: Shape) -> Shape:
    """The same formats, at most 128 wide."""
    return {
        name: value if isinstance(value, str) or name == "batch" else min(value, 128) for name, value in shape.items()
    }


RUNNER = Runner(
    name="gemm",
    family="gemm",
    mechanism="",
    phase="",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(
        Implementation("torch.mm", ("cpu", "cuda"), multiply, supports=has_16_or_32_bits),
        Implementation("torch._scaled_mm", ("cuda",), multiply_8_bit, supports=has_8_bits, prepare=scale),
    ),
    points=points,
    small=small,
)
