"""What is Zamba2's own in its shared block: attention of heads that are wide and share nothing, and adapted products.

A call's up-projection is a matrix that all calls have in common, and beside it a low-rank adapter of this call, as
transformers runs them (models/zamba2/modeling_zamba2.py, Zamba2MLP). Tensors of it are x [tokens, D], W [D, 2·F],
A [D, r] and B [r, 2·F]. The block's other matrices are products as everywhere, its other passes elementwise.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.coverage import COMMON
from costmodel.kernels.base import Kernel
from costmodel.mixers import zamba2_shared
from costmodel.step import Phase, Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    decode_attention,
    normal,
    number,
    planned,
    precision,
    prefill_attention,
    shapes,
    torch_dtype,
)
from validation.runners import _attention as shared

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

ADAPTED = ("gate_up_proj", "up_adapter_down", "up_adapter_up", "up_adapter sum")
"""The kernels of an up-projection with its adapter."""


def attention(phase: Phase, shape: Shape) -> list[Kernel]:
    """The block's kernels without projections and elementwise passes."""
    S, H, d = (number(shape, name) for name in ("new_tokens", "heads", "head_dim"))
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    block = zamba2_shared.kernels(zamba2_shared.Dims(H=H, d=d, F=1, r=1), H * d // 2, step, precision(shape))
    return [kernel for kernel in block if kernel.family not in COMMON]


def adapted(shape: Shape) -> list[Kernel]:
    """The large product, the two small ones, and their sum."""
    F, r, formats = number(shape, "d_ff"), number(shape, "rank"), precision(shape)
    step = Step(B=number(shape, "batch"), S=number(shape, "context"), P=0)
    block = zamba2_shared.kernels(zamba2_shared.Dims(H=1, d=1, F=F, r=r), number(shape, "width"), step, formats)
    return [kernel for name in ADAPTED for kernel in block if kernel.name == name]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal tokens; weights by which numbers keep their size."""
    dtype = torch_dtype(str(shape["dtype"]))
    T, D, F, r = (number(shape, name) for name in ("context", "width", "d_ff", "rank"))
    sizes = {"x": (number(shape, "batch") * T, D), "W": (D, 2 * F), "A": (D, r), "B": (r, 2 * F)}
    drawn = {name: normal(size, dtype, device, generator) for name, size in sizes.items()}
    return {name: each if name == "x" else each * len(each) ** -0.5 for name, each in drawn.items()}


def beside(shape: Shape, inputs: Inputs) -> Outputs:
    """The adapter's product is made, and then added."""
    x, W, A, B = (inputs[name] for name in ("x", "W", "A", "B"))
    return (x @ W + (x @ A) @ B,)


def token_by_token(shape: Shape, inputs: Inputs) -> Outputs:
    """Token by token."""
    import torch

    W, A, B = (inputs[name] for name in ("W", "A", "B"))
    return (torch.cat([row @ W + row @ A @ B for row in inputs["x"].split(1)]),)


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Whole sequences, and one token over a cache that no other head reads again."""
    common: Shape
    if facts.kind == "cpu":
        common = {"dtype": "fp32", "head_dim": 160}
        fit = [(1, 2, 2, 64), (1, 2, 2, 256), (1, 2, 2, 512), (2, 2, 2, 128), (1, 4, 4, 128)]
        held_out, sweep = [(1, 2, 2, 384), (1, 4, 4, 256)], [(1, 2, 2, 2048)]
        if phase == "decode":
            fit = [(1, 2, 2, 256), (1, 2, 2, 1024), (1, 2, 2, 4096), (2, 4, 4, 512), (4, 2, 2, 512)]
            held_out, sweep = [(1, 2, 2, 2048), (2, 2, 2, 1024)], [(1, 2, 2, 32768)]
    else:
        common = {"dtype": "bf16", "head_dim": 160}
        fit = [(1, 32, 32, 512), (1, 32, 32, 4096), (4, 32, 32, 2048), (1, 32, 32, 16384)]
        held_out, sweep = [(1, 32, 32, 8192), (2, 32, 32, 1024)], [(1, 32, 32, 65536)]
        held_out += [(1, 4, 4, 2**18)] if effort == "full" else []
        if phase == "decode":
            fit = [(1, 32, 32, 1024), (1, 32, 32, 65536), (16, 32, 32, 4096), (64, 32, 32, 1024)]
            held_out, sweep = [(4, 32, 32, 16384), (1, 32, 32, 2**18)], [(1, 32, 32, 8192)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    new = decode_attention.one_token if phase == "decode" else prefill_attention.square
    return planned(*(shapes(common, shared.COLUMNS, *new(*rows)) for rows in tables))


def adapted_points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From few tokens, whose time is that of the matrix, to many."""
    columns = "batch context width d_ff rank"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32"}
        fit = [(1, 16, 256, 512, 64), (1, 64, 256, 512, 64), (1, 256, 256, 512, 64), (1, 64, 512, 512, 32)]
        fit += [(1, 128, 128, 1024, 64)]
        held_out, sweep = [(1, 128, 256, 512, 64), (1, 96, 384, 512, 32)], [(1, 1024, 256, 512, 64)]
    else:
        common = {"dtype": "bf16"}
        fit = [(1, 1, 2560, 10240, 128), (1, 256, 2560, 10240, 128), (1, 4096, 2560, 10240, 128)]
        fit += [(1, 8192, 3584, 14336, 128)]
        held_out, sweep = [(1, 1024, 2560, 10240, 128), (1, 2048, 3584, 14336, 128)], [(1, 32768, 3584, 14336, 128)]
    return planned(*(shapes(common, columns, *rows) for rows in (fit, held_out, sweep if effort == "full" else [])))


def small(shape: Shape) -> Shape:
    """Few heads and tokens."""
    heads, context = min(number(shape, "heads"), 2), min(number(shape, "context"), 40)
    new = 1 if shape["new_tokens"] == 1 else context
    return {**shape, "batch": 1, "heads": heads, "kv_heads": heads, "context": context, "new_tokens": new}


def adapted_small(shape: Shape) -> Shape:
    """Few tokens and narrow matrices."""
    return {**shape, "context": 12, "width": 48, "d_ff": 40, "rank": 8}


PHASES: tuple[Phase, ...] = ("prefill", "decode")
BASE = {"prefill": prefill_attention.RUNNER, "decode": decode_attention.RUNNER}
RUNNERS = (
    *(
        BASE[phase]._replace(
            name=f"zamba2-shared-{phase}",
            mechanism="zamba2-shared",
            kernels=partial(attention, phase),
            # What torch compiles for every shape is measured with the operators that these are cases of.
            implementations=tuple(each for each in BASE[phase].implementations if not each.per_shape),
            points=partial(points, phase),
            small=small,
        )
        for phase in PHASES
    ),
    Runner(
        name="zamba2-shared-adapter",
        family="gemm",
        mechanism="zamba2-shared",
        phase="",
        kernels=adapted,
        inputs=inputs,
        reference=token_by_token,
        implementations=(Implementation("torch.mm-adapted", ("cpu", "cuda"), beside),),
        points=adapted_points,
        small=adapted_small,
    ),
)
