"""Kernels of packages that are used where they are installed, and never required.

Only functions whose arguments have been stable over their releases; each takes tensors with tokens before heads.

Source: Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py and hopper/flash_attn_interface.py;
flashinfer-ai/flashinfer, flashinfer/prefill.py and decode.py; state-spaces/mamba, mamba_ssm/ops/triton;
Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and csrc/causal_conv1d.cpp;
m-a-n-i-f-e-s-t/retention, retention/power_retention_maker.py;
deepseek-ai/DeepGEMM, README (fp8_gemm_nt, fp8_mqa_logits); deepseek-ai/FlashMLA, flash_mla/flash_mla_interface.py;
vllm-project/flash-attention, vllm_flash_attn/flash_attn_interface.py.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from validation.runners import Implementation, Inputs, Outputs, Shape, nothing_to_prepare, number

if TYPE_CHECKING:
    from validation.device import DeviceFacts

HOPPER, BLACKWELL = 9, 10
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


def mamba3_tokens(shape: Shape, inputs: Inputs) -> Inputs:
    """What Mamba-3's kernels of one input and output per head take: heads before tokens for what has no width, angles
    for every head, and states with N contiguous."""
    H = number(shape, "heads")
    rows = {"ADT": inputs["delta"] * inputs["rate"], "DT": inputs["delta"], "Trap": inputs["trap"]}
    last = (inputs[name].to(inputs["M"].dtype) for name in ("last_B", "last_x"))
    tokens = {
        **{name: each.mT.contiguous() for name, each in rows.items()},
        **{name: inputs[other] for name, other in (("Q", "C"), ("K", "B"), ("V", "x"), ("Z", "z"))},
        "Angles": inputs["angles"][:, :, None].expand(-1, -1, H, -1).contiguous(),
    }
    fixed = {"Q_bias": inputs["C_bias"], "K_bias": inputs["B_bias"], "D": inputs["skip"]}
    states = {"Input_States": (inputs["turn"], inputs["M"].mT.contiguous(), *last)}
    if number(shape, "new_tokens") == 1:
        tokens = {name: each[..., 0] if name in rows else each[:, 0] for name, each in tokens.items()}
    return {"arguments": {**tokens, **fixed, **states}}


def mamba3_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """The gated scan of many tokens, after the cumulative angles."""
    function = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined").mamba3_siso_combined
    y, _, M, b, _ = function(**inputs["arguments"], return_final_states=True)
    return y, M.mT, b


def mamba3_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token."""
    function = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_step").mamba3_siso_step
    y, (_, M, b, _) = function(**inputs["arguments"])
    return y[:, None], M.mT, b


def power_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Power attention of a new sequence."""
    function = importlib.import_module("retention").power_retention
    q, k, v, g = (inputs[name] for name in "qkvg")
    return (function(q, k, v, log_G=g, deg=2, chunk_size=number(shape, "chunk")),)


SCALED = 128
"""Elements of DeepGEMM's operands that share a scale; of weights, as many rows as well."""
PAGE = 64
"""Tokens of a page of FlashMLA's cache."""


def unit_scales(shape: Shape, inputs: Inputs) -> Inputs:
    """Scales of one for operands that need none, and room for the product."""
    import torch

    (x,), (w,) = inputs["x"], inputs["w"]
    ones = {"device": x.device, "dtype": torch.float32}
    deep = x.shape[1] // SCALED
    return {
        "x_scales": torch.ones(len(x), deep, **ones),
        "w_scales": torch.ones(len(w) // SCALED, deep, **ones),
        "product": torch.empty(len(x), len(w), device=x.device, dtype=torch.bfloat16 if x.itemsize == 1 else x.dtype),
    }


def deep_gemm(shape: Shape, inputs: Inputs) -> Outputs:
    """One 8-bit product with a scale for every 128 elements."""
    function = importlib.import_module("deep_gemm").fp8_gemm_nt
    x, w, out = inputs["x"][0], inputs["w"][0], inputs["product"]
    function((x, inputs["x_scales"]), (w, inputs["w_scales"]), out)
    return (out[None],)


def ranges_of_keys(shape: Shape, inputs: Inputs) -> Inputs:
    """The first key of every query and the one after its last, and scales of one."""
    import torch

    S, L = number(shape, "new_tokens"), number(shape, "context")
    device = inputs["q"].device
    last = torch.arange(L - S + 1, L + 1, dtype=torch.int32, device=device)
    return {"first": torch.zeros_like(last), "last": last, "k_scales": torch.ones(L, device=device)}


def deep_gemm_logits(shape: Shape, inputs: Inputs) -> Outputs:
    """Index scores of one sequence; what a query does not see is left as it is, and hidden here."""
    function = importlib.import_module("deep_gemm").fp8_mqa_logits
    keys = inputs["k"][0], inputs["k_scales"]
    logits = function(inputs["q"][0], keys, inputs["w"][0], inputs["first"], inputs["last"], clean_logits=False)
    S, L = number(shape, "new_tokens"), number(shape, "context")
    return (logits[None, :, :L].tril(L - S),)


def pages(shape: Shape, inputs: Inputs) -> Inputs:
    """The latents in pages, one after another, and the plan of the kernel."""
    import torch

    q, latents = inputs["q"], inputs["latents"]
    B, L, width = latents.shape
    padded = torch.nn.functional.pad(latents, (0, 0, 0, -L % PAGE))
    count = padded.shape[1] // PAGE
    table = torch.arange(B * count, dtype=torch.int32, device=q.device).reshape(B, count)
    lengths = torch.full((B,), L, dtype=torch.int32, device=q.device)
    plan, splits = importlib.import_module("flash_mla").get_mla_metadata(lengths, q.shape[1], 1)
    cache = padded.reshape(-1, PAGE, 1, width)
    return {"cache": cache, "table": table, "lengths": lengths, "plan": plan, "plan_splits": splits}


def flash_mla_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token over a paged cache of latents."""
    function = importlib.import_module("flash_mla").flash_mla_with_kvcache
    paged = (inputs[name] for name in ("cache", "table", "lengths"))
    plan = inputs["plan"], inputs["plan_splits"]
    out, _ = function(inputs["q"][:, None], *paged, number(shape, "latent"), *plan)
    return (out[:, 0],)


def flash_mla_sparse(shape: Shape, inputs: Inputs) -> Outputs:
    """Selected latents of one sequence."""
    function = importlib.import_module("flash_mla").flash_mla_sparse_fwd
    q, latents = inputs["q"][0], inputs["latents"][0]
    out, *_ = function(q, latents[:, None], inputs["rows"], q.shape[-1] ** -0.5, number(shape, "latent"))
    return (out.flatten(1)[None],)


def rows_of_sequence(shape: Shape, inputs: Inputs) -> Inputs:
    """Indices in 32 bits, with an axis for the one head that selects."""
    import torch

    return {"rows": inputs["indices"][0, :, None].to(torch.int32).contiguous()}


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


def scaled_eight_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """DeepGEMM's product: fp8 with scales by the block, from Hopper on."""
    if shape["dtype"] != "fp8":
        return "DeepGEMM's scaled product takes fp8"
    if number(shape, "batch") != 1 or number(shape, "n") % SCALED or number(shape, "k") % SCALED:
        return "takes one product with n and k in multiples of 128"
    return from_hopper(facts)


def eight_bit_keys(shape: Shape, facts: "DeviceFacts") -> str:
    """DeepGEMM's logits: one sequence in fp8, from Hopper on."""
    if shape["dtype"] != "fp8":
        return "DeepGEMM's logits take fp8"
    return "takes one sequence" if number(shape, "batch") > 1 else from_hopper(facts)


def latents_of(most: int, shape: Shape, facts: "DeviceFacts") -> str:
    """FlashMLA: bf16 latents of 512 + 64 elements, of so many sequences at most, from Hopper on."""
    if shape["dtype"] != "bf16" or (number(shape, "latent"), number(shape, "rope")) != (512, 64):
        return "FlashMLA takes bf16 latents of 512 + 64 elements"
    return f"takes {most} sequence" if number(shape, "batch") > most else from_hopper(facts)


def from_hopper(facts: "DeviceFacts") -> str:
    """What these kernels were written for: data-centre parts, whose matrix instructions others lack."""
    major = facts.capability[0] if facts.vendor == "NVIDIA" and facts.capability else 0
    return "" if major in (HOPPER, BLACKWELL) else "runs on NVIDIA's compute capabilities 9 and 10"


def whole_sixteen_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """Sequences that are new as a whole."""
    if shape["new_tokens"] != shape["context"]:
        return "takes sequences that are new as a whole"
    return sixteen_bits(shape, facts)


def sixteen_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashAttention, FlashInfer and retention take bf16 and fp16, heads up to 256."""
    if shape["dtype"] not in ("bf16", "fp16"):
        return f"takes bf16 or fp16, not {shape['dtype']}"
    return "" if number(shape, "head_dim") <= 256 else "takes heads up to 256"


def on_hopper(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashAttention 3 was made for Hopper."""
    if facts.vendor != "NVIDIA" or facts.capability is None or facts.capability[0] != HOPPER:
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
FLASHINFER = of("flashinfer", "flashinfer.single", flashinfer_prefill, rows, one_sequence)
VLLM = of("vllm", "vllm.flash-attn", vllm_prefill, ends_of_sequences, whole_sixteen_bits)
SEQUENCES = 2**20
IMPLEMENTATIONS = {
    "prefill-attention": (FLASH2, FLASH3, FLASHINFER, VLLM),
    "window-attention": (FLASH2, FLASH3, FLASHINFER),
    "gemm": (of("deep_gemm", "deep-gemm.fp8", deep_gemm, unit_scales, scaled_eight_bits),),
    "indexer": (of("deep_gemm", "deep-gemm.mqa-logits", deep_gemm_logits, ranges_of_keys, eight_bit_keys),),
    "mla-decode": (of("flash_mla", "flash-mla", flash_mla_decode, pages, partial(latents_of, SEQUENCES)),),
    "sparse-attention": (
        of("flash_mla", "flash-mla.sparse", flash_mla_sparse, rows_of_sequence, partial(latents_of, 1)),
    ),
    "mla-prefill": (FLASH3,),
    "decode-attention": (
        of("flash_attn", "flash-attn-2", partial(flash_decode, "flash_attn"), lengths, sixteen_bits),
        of("flash_attn_interface", "flash-attn-3", partial(flash_decode, "flash_attn_interface"), lengths, on_hopper),
        of("flashinfer", "flashinfer.single", flashinfer_decode, rows, one_sequence),
    ),
    **{
        f"{name}-{phase}": (of("causal_conv1d", "causal-conv1d", call, channels_last, few_taps),)
        for name, call in (("short-conv", short_conv), ("gated-conv", gated_conv))
        for phase in ("prefill", "decode")
    },
    "mamba1-decode": (of("mamba_ssm", "mamba-ssm.update", mamba1_decode, mamba1_token, anything),),
    "mamba2-decode": (of("mamba_ssm", "mamba-ssm.update", mamba2_decode, mamba2_states, anything),),
    "mamba2-prefill": (of("mamba_ssm", "mamba-ssm.chunk-scan", mamba2_prefill, mamba2_states, anything),),
    "mamba3-decode": (of("mamba_ssm", "mamba-ssm.siso-step", mamba3_decode, mamba3_tokens, anything),),
    "mamba3-prefill": (of("mamba_ssm", "mamba-ssm.siso-scan", mamba3_prefill, mamba3_tokens, anything),),
    "power-prefill": (of("retention", "retention.power", power_prefill, nothing_to_prepare, sixteen_bits),),
}
