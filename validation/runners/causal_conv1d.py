"""Short and gated short convolutions by causal-conv1d, where it is installed.

Source: Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and csrc/causal_conv1d.cpp.
"""

import importlib
from typing import TYPE_CHECKING, Any

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import of

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def channels_last(shape: Shape, inputs: Inputs) -> Inputs:
    """Tokens before channels in memory, which the package asks for where earlier inputs are given, and a copy of those
    that its update overwrites."""
    rows = {f"{name}_rows": inputs[name].mT.contiguous().mT for name in ("before", "x", "behind") if name in inputs}
    return {**rows, "state": inputs["history"].mT.contiguous().mT}


def conv1d(activation: str | None, x: Any, inputs: Inputs) -> Any:
    """The package's convolution of many tokens or of one."""
    package = importlib.import_module("causal_conv1d")
    state, taps = inputs["state"], inputs["taps"]
    if x.shape[-1] == 1:
        return package.causal_conv1d_update(x, state, taps, activation=activation)
    return package.causal_conv1d_fn(x, taps, initial_states=state, activation=activation)


def short_conv(shape: Shape, inputs: Inputs) -> Outputs:
    """The convolution with SiLU."""
    return (conv1d("silu", inputs["x_rows"], inputs),)


def gated_conv(shape: Shape, inputs: Inputs) -> Outputs:
    """The convolution between two gates, without an activation."""
    return (inputs["behind_rows"] * conv1d(None, inputs["before_rows"] * inputs["x_rows"], inputs),)


def few_taps(shape: Shape, facts: "DeviceFacts") -> str:
    """causal-conv1d's vectors and unrolled taps."""
    if number(shape, "channels") % 8:
        return "takes channels in multiples of 8"
    return "" if 2 <= number(shape, "width") <= 4 else "takes two to four taps"


IMPLEMENTATIONS = {
    f"{name}-{phase}": (of("causal_conv1d", "causal-conv1d", call, few_taps, channels_last),)
    for name, call in (("short-conv", short_conv), ("gated-conv", gated_conv))
    for phase in ("prefill", "decode")
}
