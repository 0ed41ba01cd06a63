"""Implementations by packages that are used where they are installed, and never required.

Only functions whose arguments have been stable over their releases; each takes tensors with tokens before heads.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from validation.runners import Implementation, Inputs, Outputs, Shape, nothing_to_prepare, number, runs

if TYPE_CHECKING:
    from validation.device import DeviceFacts

HOPPER, BLACKWELL = 9, 10


def of(
    package: str,
    name: str,
    run: Callable[[Shape, Inputs], Outputs],
    supports: Callable[[Shape, "DeviceFacts"], str] = runs,
    prepare: Callable[[Shape, Inputs], Inputs] = nothing_to_prepare,
) -> Implementation:
    """An implementation by a package, on a GPU."""
    return Implementation(name, ("cuda",), run, requires=(package,), prepare=prepare, supports=supports)


def rows(shape: Shape, inputs: Inputs) -> Inputs:
    """Queries, keys and values with tokens before heads."""
    return {f"{name}_rows": inputs[name].transpose(1, 2).contiguous() for name in "qkv"}


def window(shape: Shape) -> tuple[int, int]:
    """Keys to the left and right of a query that it sees; −1 where there is no bound."""
    return (number(shape, "window") - 1, 0) if "window" in shape else (-1, -1)


def only_output(found: Any) -> Outputs:
    """The output with heads before tokens; some releases return the log-sum-exp beside it."""
    out = found[0] if isinstance(found, tuple) else found
    return (out.transpose(1, 2),)


def from_hopper(facts: "DeviceFacts") -> str:
    """What these kernels were written for: data-centre parts, whose matrix instructions others lack."""
    major = facts.capability[0] if facts.vendor == "NVIDIA" and facts.capability else 0
    return "" if major in (HOPPER, BLACKWELL) else "runs on NVIDIA's compute capabilities 9 and 10"


def sixteen_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashAttention, FlashInfer and retention take bf16 and fp16, heads up to 256."""
    if shape["dtype"] not in ("bf16", "fp16"):
        return f"takes bf16 or fp16, not {shape['dtype']}"
    return "" if number(shape, "head_dim") <= 256 else "takes heads up to 256"
