"""Families whose layers are softmax attention, with or without a window.

Sources: transformers, models/{llama, mistral, qwen2, qwen3, qwen3_moe, gemma2, gemma3, gemma4, gpt_oss, mixtral,
glm4_moe, minimax_m2}; XiaomiMiMo/MiMo and MiMo-V2-Flash; stepfun-ai/Step-3.5-Flash; ML-GSAI/LLaDA; HKUNLP/Dream.
"""

from typing import Any

from costmodel.huggingface.decoder import (
    Block,
    Blocks,
    Decoder,
    LayerPair,
    attention,
    dense_or_sparse,
    experts,
    family,
    feed_forward,
    head_width,
    shared_experts,
    sliding_layers,
    sparse_layers,
    with_window,
)
from costmodel.huggingface.fields import Fields, chosen


def dense(f: Fields, block: Block, sliding: list[bool], ffn: Block | None = None) -> Decoder:
    """Layers of one attention block and one dense block each."""
    mixers, names = with_window(f, block, sliding)
    return Decoder(mixers, {"ffn": ffn or feed_forward(f)}, [(name, "ffn") for name in names])


def sparse(f: Fields, block: Block, has_experts: list[bool], moe: Block, sliding: list[bool] | None = None) -> Decoder:
    """Layers of one attention block and experts, some of them with a dense block instead."""
    mixers, names = with_window(f, block, sliding or [False] * len(has_experts))
    ffns, layers = dense_or_sparse(f, names, has_experts, moe)
    return Decoder(mixers, ffns, layers)


def late_window(f: Fields) -> list[bool]:
    """The window of the Qwen family: off unless `use_sliding_window`, and then only from `max_window_layers` on."""
    layers = f.layers()
    on, first = f.flag("use_sliding_window"), f.whole("max_window_layers", default=28, least=0)
    window = f.maybe("sliding_window")
    listed = sliding_layers(f, layers, lambda index: index >= first)
    return [on and window is not None and local for local in listed]


@family("llama", "granite")
def llama(f: Fields) -> Decoder:
    """Llama and models saved in its format; a bias covers q, k, v and o. The class has no window of its own."""
    bias = f.flag("attention_bias")
    block = attention(f, qkv_bias=bias, o_bias=bias)
    sliding = sliding_layers(f, f.layers(), lambda index: False)
    decoder = dense(f, block, sliding, feed_forward(f, bias=f.flag("mlp_bias")))
    if f.get("sliding_window")[1] is not None and not any(sliding):
        decoder.notes.append("sliding_window is set, but models of this type have no window")
    return decoder


@family("mistral")
def mistral(f: Fields) -> Decoder:
    """Mistral: a window, where there is one, holds in every layer."""
    window = f.maybe("sliding_window")
    return dense(f, attention(f), sliding_layers(f, f.layers(), lambda index: window is not None))


@family("mixtral")
def mixtral(f: Fields) -> Decoder:
    """Mixtral: every layer has experts, whose width is `intermediate_size`."""
    window, layers = f.maybe("sliding_window"), f.layers()
    moe = experts(f, "intermediate_size")
    decoder = sparse(f, attention(f), [True] * layers, moe, [window is not None] * layers)
    decoder.paths = {"experts": ("block_sparse_moe.experts.0.w2",)}
    return decoder


@family("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text")
def qwen2(f: Fields) -> Decoder:
    """Qwen2 and 2.5: biases on q, k and v without a field that says so."""
    return dense(f, attention(f, qkv_bias=True), late_window(f))


@family("dream")
def dream(f: Fields) -> Decoder:
    """Dream: Qwen2.5's fields, bidirectional, which the file does not say."""
    decoder = dense(f, attention(f, qkv_bias=True) | {"causal": False}, late_window(f))
    decoder.generation = "diffusion"
    return decoder


@family("mimo")
def mimo(f: Fields) -> Decoder:
    """MiMo-7B: Qwen2's layers with the bias under `attention_bias`."""
    return dense(f, attention(f, qkv_bias=f.flag("attention_bias", True)), late_window(f))


@family("qwen3", "qwen3_vl", "qwen3_vl_text")
def qwen3(f: Fields) -> Decoder:
    """Qwen3: norms on query and key heads, an explicit head width."""
    bias = f.flag("attention_bias")
    return dense(f, attention(f, qk_norm=True, qkv_bias=bias, o_bias=bias), late_window(f))


def stepped_experts(f: Fields, layers: int) -> list[bool]:
    """Qwen's rule: every `decoder_sparse_step`-th layer has experts, but for those of `mlp_only_layers`."""
    step = f.whole("decoder_sparse_step", default=1)
    plain = f.positions("mlp_only_layers", layers)
    return chosen(layers, lambda index: index not in plain and (index + 1) % step == 0)


@family("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text")
def qwen3_moe(f: Fields) -> Decoder:
    """Qwen3 with experts; `intermediate_size` is unused when every layer has them."""
    bias = f.flag("attention_bias")
    block = attention(f, qk_norm=True, qkv_bias=bias, o_bias=bias)
    return sparse(f, block, stepped_experts(f, f.layers()), experts(f), late_window(f))


@family("qwen2_moe")
def qwen2_moe(f: Fields) -> Decoder:
    """Qwen2 with experts and one gated shared expert."""
    shared = f.whole("shared_expert_intermediate_size")
    moe = experts(f, shared=1, shared_d_ff=shared, shared_gate=True)
    decoder = sparse(f, attention(f, qkv_bias=True), stepped_experts(f, f.layers()), moe, late_window(f))
    decoder.paths = {"shared_experts": ("mlp.shared_expert.down_proj",)}
    return decoder


@family("glm4_moe")
def glm4_moe(f: Fields) -> Decoder:
    """GLM-4.5 to 4.7: a bias on q, k and v; norms on query and key heads where the file says so."""
    block = attention(f, qkv_bias=f.flag("attention_bias"), qk_norm=f.flag("use_qk_norm"))
    return sparse(f, block, sparse_layers(f, f.layers()), experts(f, shared=shared_experts(f)))


@family("minimax_m2")
def minimax_m2(f: Fields) -> Decoder:
    """MiniMax-M2 and 2.5: softmax attention in every layer, expert width under `intermediate_size`."""
    layers = f.layers()
    f.per_layer("attn_type_list", layers, {1: "softmax"})
    shared = f.whole("shared_intermediate_size", default=0, least=0)
    moe = experts(f, "intermediate_size", shared=int(shared > 0), shared_d_ff=shared)
    window = f.maybe("sliding_window")
    block = attention(f, qk_norm=f.flag("use_qk_norm"))
    decoder = sparse(f, block, [True] * layers, moe, [window is not None] * layers)
    decoder.paths = {"experts": ("block_sparse_moe.experts.0.w2",)}
    return decoder


@family("gpt_oss")
def gpt_oss(f: Fields) -> Decoder:
    """gpt-oss: sinks and biases everywhere; windows alternate, local first, unless `layer_types` says otherwise."""
    layers = f.layers()
    bias = f.flag("attention_bias", True)
    block = attention(f, sinks=True, qkv_bias=bias, o_bias=bias)
    moe = experts(f, "intermediate_size", bias=True) | {"act": "swigluoai"}
    decoder = sparse(f, block, [True] * layers, moe, sliding_layers(f, layers, lambda index: index % 2 == 0))
    return decoder


GEMMA_ACTIVATION = {"hidden_activation": "gelu_pytorch_tanh"}


def with_defaults(f: Fields, defaults: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the class of the model would; returns what was absent."""
    absent = {name: value for name, value in defaults.items() if f.get(name)[1] is None}
    f.values = {**f.values, **absent}
    return absent


@family("gemma2", tied=True)
def gemma2(f: Fields) -> Decoder:
    """Gemma 2: windows alternate, local first; scores pass through a soft-cap; norms before and after each block."""
    with_defaults(f, GEMMA_ACTIVATION)
    softcap = f.get("attn_logit_softcapping")[1] is not None
    decoder = dense(f, attention(f, softcap=softcap), sliding_layers(f, f.layers(), lambda index: index % 2 == 0))
    decoder.sandwich_norm = True
    return decoder


GEMMA3_DEFAULTS = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
"""transformers, Gemma3TextConfig: released multimodal files leave out what equals the class default."""


@family("gemma3", "gemma3_text", tied=True)
def gemma3(f: Fields) -> Decoder:
    """Gemma 3: five local layers, then a global one (the pattern's length may differ)."""
    with_defaults(f, GEMMA_ACTIVATION)
    absent = with_defaults(f, GEMMA3_DEFAULTS)
    every = f.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    block = attention(f, qk_norm=True, softcap=f.get("attn_logit_softcapping")[1] is not None)
    decoder = dense(f, block, sliding_layers(f, f.layers(), lambda index: (index + 1) % every != 0))
    decoder.sandwich_norm = True
    decoder.notes += [f"{f.where}{name} is absent: {value}, the class default" for name, value in absent.items()]
    return decoder


@family("gemma4", "gemma4_text", tied=True)
def gemma4(f: Fields) -> Decoder:
    """Gemma 4: global layers with heads of their own; where the file says so, no value projection, experts beside a
    dense block, late layers that read the cache of earlier ones, and an input of every layer's own."""
    with_defaults(f, GEMMA_ACTIVATION)
    layers = f.layers()
    local = attention(f, qk_norm=True)
    width = f.whole("global_head_dim", default=local["head_dim"])
    keys = f.whole("num_global_key_value_heads", default=local["kv_heads"])
    full = local | {"kv_heads": keys, "head_dim": width} | ({"k_eq_v": True} if f.flag("attention_k_eq_v") else {})
    sliding = sliding_layers(f, layers, lambda index: (index + 1) % 6 != 0)
    mixers: Blocks = {"swa": local | {"kind": "swa", "window": f.whole("sliding_window")}, "full": full}
    ffn = "moe" if f.flag("enable_moe_block") else "ffn"
    blocks = {ffn: experts(f, dense_d_ff=f.whole("intermediate_size")) if ffn == "moe" else feed_forward(f)}
    shared = f.whole("num_kv_shared_layers", default=0, least=0, most=layers)
    pairs: list[LayerPair] = [("swa" if is_local else "full", ffn) for is_local in sliding]
    if shared:
        pairs = _reading_earlier_layers(f, mixers, blocks, pairs, layers - shared)
    inputs = f.whole("hidden_size_per_layer_input", default=0, least=0)
    if inputs:
        rows = f.whole("vocab_size_per_layer_input", "vocab_size")
        blocks["input"] = {"kind": "per_layer_input", "width": inputs, "vocabulary": rows}
        pairs = [part for pair in pairs for part in (pair, (None, "input"))]
    used = {part for pair in pairs for part in pair}
    mixers = {name: block for name, block in mixers.items() if name in used}
    decoder = Decoder(mixers, {n: b for n, b in blocks.items() if n in used}, pairs, sandwich_norm=True)
    if ffn == "moe":
        decoder.paths = {"experts": ("experts.0.down_proj",), "shared_experts": ("mlp.down_proj",)}
    return decoder


def _reading_earlier_layers(
    f: Fields, mixers: Blocks, blocks: Blocks, pairs: list[LayerPair], first: int
) -> list[LayerPair]:
    """From `first` on, attention over the cache of the last earlier layer of the same type; a wider dense block."""
    for name in ("swa", "full"):
        block = {key: value for key, value in mixers[name].items() if key != "k_eq_v"}
        mixers[f"{name}_shared"] = block | {"kind": "shared_kv"}
    wide = f.flag("use_double_wide_mlp") and "ffn" in blocks
    if wide:
        blocks["ffn_wide"] = blocks["ffn"] | {"d_ff": 2 * blocks["ffn"]["d_ff"]}
    late: list[LayerPair] = [(f"{mixer}_shared", "ffn_wide" if wide else ffn) for mixer, ffn in pairs[first:]]
    return pairs[:first] + late


@family("mimo_v2", "mimo_v2_flash")
def mimo_v2(f: Fields) -> Decoder:
    """MiMo-V2: in `hybrid_layer_pattern` 1 is a sliding layer; those have more key heads, and sinks."""
    layers = f.layers()
    f.get("attention_chunk_size")  # equals the window; no chunks
    sliding = f.per_layer("hybrid_layer_pattern", layers, {0: False, 1: True})
    if sliding is None:
        f.problems.add(f"{f.where}hybrid_layer_pattern: needed, one entry per layer (0: full, 1: sliding)")
        sliding = [False] * layers
    bias = f.flag("attention_bias")
    full = _two_widths(f, "", qkv_bias=bias, sinks=f.flag("add_full_attention_sink_bias"))
    local = _two_widths(f, "swa_", qkv_bias=bias, sinks=f.flag("add_swa_attention_sink_bias"))
    local |= {"kind": "swa", "window": f.whole("sliding_window", "sliding_window_size")}
    names = ["swa" if is_local else "full" for is_local in sliding]
    ffns, pairs = dense_or_sparse(f, names, sparse_layers(f, layers), experts(f, shared=shared_experts(f)))
    return Decoder({"full": full, "swa": local}, ffns, pairs)


def _two_widths(f: Fields, prefix: str, **properties: bool) -> Block:
    """A layer whose values are narrower than its keys; fields without the prefix stand in for absent ones."""
    heads = f.whole(prefix + "num_attention_heads", "num_attention_heads")
    keys = f.whole(prefix + "num_key_value_heads", "num_key_value_heads", default=heads)
    width = f.maybe(prefix + "head_dim", "head_dim") or head_width(f, heads)
    values = f.whole(prefix + "v_head_dim", "v_head_dim", default=width)
    block: Block = {"kind": "gqa", "heads": heads, "kv_heads": keys, "d_qk": width, "d_v": values}
    return block | {name: True for name, value in properties.items() if value}


@family("step3p5")
def step3p5(f: Fields) -> Decoder:
    """Step-3.5 and 3.7: sliding layers have heads of their own, in `attention_other_setting`."""
    layers = f.layers()
    sliding = sliding_layers(f, layers, lambda index: False)
    other = f.section("attention_other_setting")
    full = _step_heads(f, f)
    local = _step_heads(other, f) | {"kind": "swa", "window": f.whole("sliding_window")}
    moe = experts(f, shared=1, shared_d_ff=f.whole("share_expert_dim"))
    names = ["swa" if is_local else "full" for is_local in sliding]
    ffns, pairs = dense_or_sparse(f, names, _listed_experts(f, layers), moe)
    notes = []
    if f.flag("use_head_wise_attn_gate"):
        notes.append("the sigmoid gate per head (use_head_wise_attn_gate) is not modelled")
    if not other.values:
        notes.append("attention_other_setting is absent: sliding layers are taken to have the heads of the full ones")
    return Decoder({"full": full, "swa": local}, ffns, pairs, notes)


def _step_heads(own: Fields, common: Fields) -> Block:
    heads = own.maybe("num_attention_heads") or common.whole("num_attention_heads")
    groups = ("num_attention_groups", "num_key_value_heads")
    keys = own.maybe(*groups) or common.whole(*groups, default=heads)
    width = own.maybe("head_dim") or common.maybe("head_dim") or head_width(common, heads)
    return {"kind": "gqa", "heads": heads, "kv_heads": keys, "head_dim": width, "qk_norm": True}


def _listed_experts(f: Fields, layers: int) -> list[bool]:
    """Layers with experts as a text of numbers, "3,4,5"."""
    words = [word.strip() for word in f.word("moe_layers_enum").split(",") if word.strip()]
    if not words or not all(word.isdecimal() and len(word) < 6 for word in words):
        f.problems.add(f"{f.where}moe_layers_enum: expected layer numbers, such as 3,4,5")
        return [True] * layers
    listed = {int(word) for word in words}
    return chosen(layers, lambda index: index in listed)


@family("llada")
def llada(f: Fields) -> Decoder:
    """LLaDA: OLMo's field names, bidirectional, which the file does not say."""
    bias = f.flag("include_bias")
    block = attention(f, qkv_bias=f.flag("include_qkv_bias", bias), o_bias=bias) | {"causal": False}
    if f.flag("multi_query_attention") and f.get("n_kv_heads")[1] is None:
        block["kv_heads"] = 1
    width = f.maybe("mlp_hidden_size", "intermediate_size")
    if width is None:
        width = f.whole("mlp_ratio") * f.whole("d_model", "hidden_size")
    ffn: Block = {"kind": "swiglu", "d_ff": width} | ({"bias": True} if bias else {})
    decoder = dense(f, block, [False] * f.layers(), ffn)
    decoder.generation = "diffusion"
    decoder.vocabulary = f.maybe("embedding_size")
    return decoder
