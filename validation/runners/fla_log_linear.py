"""Log-linear attention over a sequence as fla-core runs it; the rows of an open chunk, which it keeps too, are dropped.

Source: fla-org/flash-linear-attention, fla/ops/log_linear_attn/chunk.py (fla-core 0.6).
"""

import warnings
from functools import cache
from typing import TYPE_CHECKING

from validation.runners import Implementation, Inputs, Outputs, Shape, number
from validation.runners.fla_core import fla_module
from validation.runners.log_linear import C

if TYPE_CHECKING:
    from validation.device import DeviceFacts

KEYS = 64
"""Widths of keys are multiples of this: a thread block's slice."""


def prepare(shape: Shape, inputs: Inputs) -> Inputs:
    """The function and its arguments; the table of levels inside a chunk, made on the host, is kept between calls."""
    module = fla_module("fla.ops.log_linear_attn.chunk")
    if not hasattr(module.level_lut, "cache_info"):
        module.level_lut = cache(module.level_lut)
    warnings.filterwarnings("ignore", message="Triton>3.2.0 detected")
    given = {name: inputs[name] for name in "qkv"}
    fixed = {"level_scales": inputs["weights"], "scale": 1.0, "output_final_state": True}
    arguments = {**given, **fixed, "g": inputs["g"][..., 0].contiguous()}
    return {"function": module.chunk_log_linear_attn, "arguments": arguments}


def run(shape: Shape, inputs: Inputs) -> Outputs:
    """Outputs, and the states of the levels that hold something: the bits of the number of whole chunks."""
    out, state = inputs["function"](**inputs["arguments"])
    chunks = number(shape, "context") // C
    return out, *(state.ht[:, at] for at in range(chunks.bit_length()) if chunks >> at & 1)


def supports(shape: Shape, facts: "DeviceFacts") -> str:
    """Slices of keys, values of a width that is a power of two, and no state that takes all older chunks."""
    if number(shape, "d_k") % KEYS or number(shape, "d_v").bit_count() != 1:
        return f"takes keys of multiples of {KEYS} and values of a power of two"
    if (number(shape, "context") // C).bit_length() > number(shape, "levels"):
        return "has a level for every bit of the number of chunks"
    return ""


IMPLEMENTATIONS = {
    "log-linear-prefill": (
        Implementation(
            "fla.chunk-log_linear_attn",
            ("cuda",),
            run,
            requires=("fla", "triton"),
            supports=supports,
            prepare=prepare,
        ),
    )
}
