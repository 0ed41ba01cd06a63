"""Kernels of packages that are used where they are installed, and never required.

Only functions whose arguments have been stable over their releases; each takes tensors with tokens before heads.

Source: Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py and hopper/flash_attn_interface.py;
flashinfer-ai/flashinfer, flashinfer/prefill.py and decode.py; state-spaces/mamba, mamba_ssm/ops/triton.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from validation.runners import Implementation, Inputs, Outputs, Shape, number

if TYPE_CHECKING:
    from validation.device import DeviceFacts

HOPPER = 9
CHUNK = 256
"""Tokens of a chunk of Mamba-2."""


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


def flashinfer_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Causal attention of one sequence."""
    function = importlib.import_module("flashinfer").single_prefill_with_kv_cache
    q, k, v = (inputs[f"{name}_rows"][0] for name in "qkv")
    return only_output(function(q, k, v, causal=True, kv_layout="NHD", window_left=window(shape)[0])[None])


def flashinfer_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token of one sequence."""
    function = importlib.import_module("flashinfer").single_decode_with_kv_cache
    q, k, v = (inputs[f"{name}_rows"][0] for name in "qkv")
    return only_output(function(q[0], k, v, kv_layout="NHD")[None, None])


def mamba1_token(shape: Shape, inputs: Inputs) -> Inputs:
    """States that the package overwrites."""
    return {"state": inputs["h"].clone()}


def mamba1_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token; step sizes are given as they are."""
    function = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    x, delta, z, B, C = (inputs[name][:, 0] for name in ("x", "delta", "z", "B", "C"))
    y = function(inputs["state"], x, delta, inputs["A"], B, C, D=inputs["skip"], z=z)
    return y[:, None], inputs["state"]


def mamba2_states(shape: Shape, inputs: Inputs) -> Inputs:
    """States with N contiguous."""
    return {"state": inputs["M"].mT.contiguous()}


def mamba2_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token; step sizes and rates are repeated without copies, which the package recognises."""
    function = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    state = inputs["state"]
    x, B, C = (inputs[name][:, 0] for name in ("v", "k", "q"))
    A = inputs["rate"][:, None, None].expand(state.shape[1:])
    y = function(state, x, inputs["delta"][:, 0].expand_as(x), A, B, C)
    return y[:, None], state.mT


def mamba2_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Chunks of the sequence; heads share B and C in memory."""
    function = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    out, state = function(
        inputs["v"],
        inputs["delta"][..., 0],
        inputs["rate"],
        inputs["k"],
        inputs["q"],
        chunk_size=CHUNK,
        initial_states=inputs["state"],
        return_final_states=True,
    )
    return out, state.mT


def sixteen_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashAttention and FlashInfer take bf16 and fp16, heads up to 256."""
    if shape["dtype"] not in ("bf16", "fp16"):
        return f"takes bf16 or fp16, not {shape['dtype']}"
    return "" if number(shape, "head_dim") <= 256 else "takes heads up to 256"


def on_hopper(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashAttention 3 was made for Hopper."""
    if facts.capability is None or facts.capability[0] != HOPPER:
        return "FlashAttention 3 runs on compute capability 9"
    return sixteen_bits(shape, facts)


def one_sequence(shape: Shape, facts: "DeviceFacts") -> str:
    """The functions without a plan take one sequence."""
    if number(shape, "batch") > 1:
        return "takes one sequence"
    return sixteen_bits(shape, facts)


def anything(shape: Shape, facts: "DeviceFacts") -> str:
    """All shapes."""
    return ""


def of(
    package: str,
    name: str,
    run: Callable[[Shape, Inputs], Outputs],
    prepare: Callable[[Shape, Inputs], Inputs],
    supports: Callable[[Shape, "DeviceFacts"], str],
) -> Implementation:
    """An implementation by a package, on a GPU."""
    return Implementation(name, ("cuda",), run, requires=(package,), prepare=prepare, supports=supports)


FLASH2 = of("flash_attn", "flash-attn-2", partial(flash, "flash_attn"), rows, sixteen_bits)
FLASH3 = of("flash_attn_interface", "flash-attn-3", partial(flash, "flash_attn_interface"), rows, on_hopper)
IMPLEMENTATIONS = {
    **{
        f"{name}-attention": (
            FLASH2,
            FLASH3,
            of("flashinfer", "flashinfer.single", flashinfer_prefill, rows, one_sequence),
        )
        for name in ("prefill", "window")
    },
    "mla-prefill": (FLASH3,),
    "decode-attention": (
        of("flash_attn", "flash-attn-2", partial(flash_decode, "flash_attn"), lengths, sixteen_bits),
        of("flash_attn_interface", "flash-attn-3", partial(flash_decode, "flash_attn_interface"), lengths, on_hopper),
        of("flashinfer", "flashinfer.single", flashinfer_decode, rows, one_sequence),
    ),
    "mamba1-decode": (of("mamba_ssm", "mamba-ssm.update", mamba1_decode, mamba1_token, anything),),
    "mamba2-decode": (of("mamba_ssm", "mamba-ssm.update", mamba2_decode, mamba2_states, anything),),
    "mamba2-prefill": (of("mamba_ssm", "mamba-ssm.chunk-scan", mamba2_prefill, mamba2_states, anything),),
}
