"""Native sparse attention as fla-core runs it: pooling, pooled attention, choice, selected attention, gates.

Source: fla-org/flash-linear-attention, fla/ops/nsa/parallel.py (fla-core 0.6).
"""

from typing import TYPE_CHECKING

from validation.runners import Implementation, Inputs, Outputs, Shape, number
from validation.runners.fla_core import fla_module

if TYPE_CHECKING:
    from validation.device import DeviceFacts

FEWEST_HEADS = 16
"""Heads of a group at least, which are the rows of a matrix instruction."""


def tokens_outside(shape: Shape, inputs: Inputs) -> Inputs:
    """fla's layouts: tokens before heads."""
    rows = {name: inputs[name].transpose(1, 2).contiguous() for name in "qkv"}
    compressed, chosen = (inputs["gates"][:, :, branch].contiguous() for branch in (0, 1))
    sizes = {"block_counts": number(shape, "k"), "block_size": number(shape, "block"), "window_size": 0}
    return {
        "function": fla_module("fla.ops.nsa").parallel_nsa,
        "arguments": {**rows, "g_cmp": compressed, "g_slc": chosen, **sizes},
    }


def run_fla(shape: Shape, inputs: Inputs) -> Outputs:
    """fla's five kernels."""
    return (inputs["function"](**inputs["arguments"]).flatten(2),)


def wide_groups(shape: Shape, facts: "DeviceFacts") -> str:
    """fla's kernels hold the heads of a group in the rows of a matrix instruction."""
    group = number(shape, "heads") // number(shape, "kv_heads")
    if group < FEWEST_HEADS or group.bit_count() != 1:
        return f"takes groups of 16, 32, … heads, not {group}"
    return ""


IMPLEMENTATIONS = {
    "nsa-prefill": (
        Implementation(
            "fla.parallel-nsa",
            ("cuda",),
            run_fla,
            requires=("fla", "triton"),
            supports=wide_groups,
            prepare=tokens_outside,
        ),
    )
}
