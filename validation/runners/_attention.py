"""Softmax attention as torch runs it, for the operators of this folder that differ in their mask.

Tensors are q [B, H, S, dk], k [B, Hkv, L, dk] and v [B, Hkv, L, dv]; query i is token P + i, P = L − S.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from costmodel.kernels.attention import Attention
from validation.runners import Implementation, Inputs, Outputs, Shape, normal, number, torch_dtype

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def attention_of(shape: Shape, **more: Any) -> Attention:
    """The cost model's attention of a shape."""
    S, dtype = number(shape, "new_tokens"), str(shape["dtype"])
    head = number(shape, "head_dim")
    return Attention(
        B=number(shape, "batch"),
        S=S,
        P=number(shape, "context") - S,
        H=number(shape, "heads"),
        Hkv=number(shape, "kv_heads"),
        dk=head,
        dv=int(shape.get("v_head_dim", head)),
        dtype=dtype,
        kv=dtype,
        **more,
    )


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, keys and values."""
    a, dtype = attention_of(shape), torch_dtype(str(shape["dtype"]))
    sizes = {"q": (a.B, a.H, a.S, a.dk), "k": (a.B, a.Hkv, a.P + a.S, a.dk), "v": (a.B, a.Hkv, a.P + a.S, a.dv)}
    return {name: normal(size, dtype, device, generator) for name, size in sizes.items()}


def attend(shape: Shape, inputs: Inputs, first: list[int], last: list[int]) -> Outputs:
    """Row by row: query i of every sequence sees the keys first[i] … last[i] − 1."""
    import torch

    from validation.references import gqa

    rows = [gqa.attend(q, k, v, first, last) for q, k, v in zip(inputs["q"], inputs["k"], inputs["v"], strict=True)]
    out = torch.stack(rows)  # [B, S, H·dv]
    return (out.reshape(*out.shape[:2], number(shape, "heads"), -1).transpose(1, 2),)


def sdpa(q: Any, k: Any, v: Any, **options: Any) -> Any:
    """torch's attention, heads shared in groups where there are fewer key heads."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)


def causal(shape: Shape, inputs: Inputs) -> Outputs:
    """Causal attention of a whole sequence."""
    return (sdpa(inputs["q"], inputs["k"], inputs["v"], is_causal=True),)


def bidirectional(shape: Shape, inputs: Inputs) -> Outputs:
    """Every query sees every key."""
    return (sdpa(inputs["q"], inputs["k"], inputs["v"]),)


BACKENDS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
"""Kernels behind torch's attention, each of which is an implementation of its own: none is the fastest everywhere."""


def with_backend(name: str, run: Callable[[Shape, Inputs], Outputs]) -> Callable[[Shape, Inputs], Outputs]:
    """The call with one backend and no other."""

    def only(shape: Shape, inputs: Inputs) -> Outputs:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of why the other backends were not taken
            with sdpa_kernel(getattr(SDPBackend, BACKENDS[name])):
                return run(shape, inputs)

    return only


Support = Callable[[Shape, "DeviceFacts"], str]


def any_length(shape: Shape, facts: "DeviceFacts") -> str:
    """Without a mask torch takes every shape."""
    return ""


def one_width(shape: Shape, facts: "DeviceFacts") -> str:
    """What FlashAttention 2 demands."""
    head = number(shape, "head_dim")
    if int(shape.get("v_head_dim", head)) != head or head > 256:
        return "the flash backend needs keys and values of one width, at most 256"
    return ""


def ungrouped(shape: Shape, facts: "DeviceFacts") -> str:
    """The memory-efficient backend shares no key heads."""
    return "" if shape["heads"] == shape["kv_heads"] else "the efficient backend shares no key heads"


def whole_sequence(shape: Shape, facts: "DeviceFacts") -> str:
    """torch's causal mask is aligned to the first key, ours to the last."""
    if number(shape, "new_tokens") == number(shape, "context"):
        return ""
    return "torch masks the last tokens of a longer sequence only with a mask of its own"


def implementations(run: Callable[[Shape, Inputs], Outputs], length: Support) -> tuple[Implementation, ...]:
    """torch's attention on a CPU, and its three kernels on a GPU; length says which tokens the call can mask."""
    return (Implementation("torch.sdpa", ("cpu",), run, supports=length), *backends(run, length))


def backends(run: Callable[[Shape, Inputs], Outputs], length: Support) -> tuple[Implementation, ...]:
    """torch's three kernels on a GPU."""

    def both(other: Support) -> Support:
        return lambda shape, facts: length(shape, facts) or other(shape, facts)

    support = {"cudnn": length, "flash": both(one_width), "efficient": both(ungrouped)}
    return tuple(
        Implementation(f"torch.sdpa-{name}", ("cuda",), with_backend(name, run), supports=support[name])
        for name in BACKENDS
    )


Mask = Callable[[Any, Any, Any, Any], Any]
"""(sequence, head, query, key) to whether the query sees the key, as FlexAttention takes it."""

COMPILED: dict[str, Any] = {}
"""The compiled FlexAttention of this process: one program serves all masks."""


def flex(shape: Shape, inputs: Inputs) -> Outputs:
    """FlexAttention with the prepared block mask."""
    if "flex" not in COMPILED:
        import torch
        from torch.nn.attention.flex_attention import flex_attention

        COMPILED["flex"] = torch.compile(flex_attention, dynamic=False)
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    shared = q.shape[1] != k.shape[1]
    return (COMPILED["flex"](q, k, v, block_mask=inputs["mask"], enable_gqa=shared),)


def flex_mask(visible: Callable[[Shape], Mask]) -> Callable[[Shape, Inputs], Inputs]:
    """What FlexAttention needs beforehand: which blocks of the mask hold anything."""

    def prepare(shape: Shape, inputs: Inputs) -> Inputs:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask

        L, S = number(shape, "context"), number(shape, "new_tokens")
        # Compiled, the mask is never materialised: at 128k tokens it would fill the memory.
        build = torch.compile(create_block_mask) if L * S > FEW_PAIRS else create_block_mask
        return {"mask": build(visible(shape), None, None, S, L, device=inputs["q"].device)}

    return prepare


FEW_PAIRS = 2**28
"""Pairs of a mask that fit into memory as bytes."""


def flex_implementation(visible: Callable[[Shape], Mask]) -> Implementation:
    """FlexAttention with a mask; of dynamic shapes it would choose its splits of the keys for the first one."""
    return Implementation("torch.flex", ("cuda",), flex, prepare=flex_mask(visible), per_shape=True)


def small(shape: Shape) -> Shape:
    """One sequence of few tokens; head counts and widths as they are, up to 8 heads."""
    group = number(shape, "heads") // number(shape, "kv_heads")
    context = min(number(shape, "context"), 96)
    S = number(shape, "new_tokens")
    kv_heads = min(number(shape, "kv_heads"), max(1, 8 // group))
    tokens = context if S == number(shape, "context") else min(S, context)
    return {
        **shape,
        "batch": min(number(shape, "batch"), 2),
        "context": context,
        "new_tokens": tokens,
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
    }


COLUMNS = "batch heads kv_heads context new_tokens"
