"""FlashInfer's attention of one sequence, where it is installed.

Source: flashinfer-ai/flashinfer, flashinfer/prefill.py and decode.py.
"""

import importlib
from typing import TYPE_CHECKING

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import of, only_output, rows, sixteen_bits, window

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Causal attention of one sequence."""
    function = importlib.import_module("flashinfer").single_prefill_with_kv_cache
    q, k, v = (inputs[f"{name}_rows"][0] for name in "qkv")
    return only_output(function(q, k, v, causal=True, kv_layout="NHD", window_left=window(shape)[0])[None])


def decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token of one sequence."""
    function = importlib.import_module("flashinfer").single_decode_with_kv_cache
    q, k, v = (inputs[f"{name}_rows"][0] for name in "qkv")
    return only_output(function(q[0], k, v, kv_layout="NHD")[None, None])


def one_sequence(shape: Shape, facts: "DeviceFacts") -> str:
    """The functions without a plan take one sequence."""
    if number(shape, "batch") > 1:
        return "takes one sequence"
    return sixteen_bits(shape, facts)


PREFILL = of("flashinfer", "flashinfer.single", prefill, one_sequence, rows)
IMPLEMENTATIONS = {
    "prefill-attention": (PREFILL,),
    "window-attention": (PREFILL,),
    "decode-attention": (of("flashinfer", "flashinfer.single", decode, one_sequence, rows),),
}
