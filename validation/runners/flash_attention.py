"""FlashAttention 2 and 3, and vLLM's, where they are installed.

Source: Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py and hopper/flash_attn_interface.py;
vllm-project/flash-attention, vllm_flash_attn/flash_attn_interface.py.
"""

import importlib
from functools import partial
from typing import TYPE_CHECKING

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import HOPPER, of, only_output, rows, sixteen_bits, window

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def flash(package: str, shape: Shape, inputs: Inputs) -> Outputs:
    """Causal attention; the mask is aligned to the last key."""
    function = importlib.import_module(package).flash_attn_func
    q, k, v = (inputs[f"{name}_rows"] for name in "qkv")
    return only_output(function(q, k, v, causal=True, window_size=window(shape)))


def lengths(shape: Shape, inputs: Inputs) -> Inputs:
    """The rows, and how many keys every sequence has."""
    import torch

    L = torch.full((number(shape, "batch"),), number(shape, "context"), dtype=torch.int32, device=inputs["q"].device)
    return {**rows(shape, inputs), "lengths": L}


def flash_decode(package: str, shape: Shape, inputs: Inputs) -> Outputs:
    """One token over a cache, keys split by the package's own rule."""
    function = importlib.import_module(package).flash_attn_with_kvcache
    q, k, v = (inputs[f"{name}_rows"] for name in "qkv")
    return only_output(function(q, k, v, cache_seqlens=inputs["lengths"], causal=True))


def ends_of_sequences(shape: Shape, inputs: Inputs) -> Inputs:
    """All tokens one sequence after another, and where each sequence begins."""
    import torch

    S, B = number(shape, "new_tokens"), number(shape, "batch")
    begins = torch.arange(0, (B + 1) * S, S, dtype=torch.int32, device=inputs["q"].device)
    return {**{name: x.flatten(0, 1) for name, x in rows(shape, inputs).items()}, "begins": begins}


def vllm_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Causal attention of sequences that lie one after another."""
    function = importlib.import_module("vllm.vllm_flash_attn").flash_attn_varlen_func
    q, k, v = (inputs[f"{name}_rows"] for name in "qkv")
    S, begins = number(shape, "new_tokens"), inputs["begins"]
    found = function(q, k, v, S, begins, S, begins, causal=True)
    out = found[0] if isinstance(found, tuple) else found
    return (out.unflatten(0, (-1, S)).transpose(1, 2),)


def whole_sixteen_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """Sequences that are new as a whole."""
    if shape["new_tokens"] != shape["context"]:
        return "takes sequences that are new as a whole"
    return sixteen_bits(shape, facts)


def on_hopper(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashAttention 3 was made for Hopper."""
    if facts.vendor != "NVIDIA" or facts.capability is None or facts.capability[0] != HOPPER:
        return "FlashAttention 3 runs on compute capability 9"
    return sixteen_bits(shape, facts)


FLASH2 = of("flash_attn", "flash-attn-2", partial(flash, "flash_attn"), sixteen_bits, rows)
FLASH3 = of("flash_attn_interface", "flash-attn-3", partial(flash, "flash_attn_interface"), on_hopper, rows)
IMPLEMENTATIONS = {
    "prefill-attention": (
        FLASH2,
        FLASH3,
        of("vllm", "vllm.flash-attn", vllm_prefill, whole_sixteen_bits, ends_of_sequences),
    ),
    "window-attention": (FLASH2, FLASH3),
    "mla-prefill": (FLASH3,),
    "decode-attention": (
        of("flash_attn", "flash-attn-2", partial(flash_decode, "flash_attn"), sixteen_bits, lengths),
        of("flash_attn_interface", "flash-attn-3", partial(flash_decode, "flash_attn_interface"), on_hopper, lengths),
    ),
}
