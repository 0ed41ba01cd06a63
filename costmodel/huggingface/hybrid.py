"""Families that mix softmax attention with a recurrence, layer by layer or side by side: Jamba, Zamba2, Falcon-H1,
MiniMax-Text-01, Ring-linear, Jet-Nemotron.

Sources: transformers, models/{jamba, zamba2, falcon_h1, minimax}; MiniMax-AI/MiniMax-M1; sglang,
models/bailing_moe_linear.py; NVlabs/Jet-Nemotron, jetai/modeling.
"""

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
    shared_experts,
    sparse_layers,
)
from costmodel.huggingface.fields import Fields, chosen
from costmodel.huggingface.latent import latent_attention
from costmodel.huggingface.linear import times
from costmodel.huggingface.recurrent import mamba1_block, mamba2_block


@family("jamba")
def jamba(f: Fields) -> Decoder:
    """Jamba: one attention layer in a period of Mamba layers, experts in a period of their own; nothing is rotated."""
    layers = f.layers()
    period, offset = f.whole("attn_layer_period", default=8), f.whole("attn_layer_offset", default=4, least=0)
    full = chosen(layers, lambda index: index % period == offset)
    mamba = mamba1_block(
        f,
        inner=f.whole("mamba_expand", default=2) * f.whole("hidden_size"),
        state=f.whole("mamba_d_state", default=16),
        conv=f.whole("mamba_d_conv", default=4),
        rank="mamba_dt_rank",
    )
    period, offset = f.whole("expert_layer_period", default=2), f.whole("expert_layer_offset", default=1, least=0)
    number = f.whole("num_experts", default=16)
    has_experts = chosen(layers, lambda index: number > 1 and index % period == offset)
    moe = experts(f, "intermediate_size") if any(has_experts) else {}
    names = ["attn" if is_full else "mamba" for is_full in full]
    ffns, pairs = dense_or_sparse(f, names, has_experts, moe)
    known: Blocks = {"mamba": mamba, "attn": attention(f) | {"rope": False}}
    if f.get("sliding_window")[1] is not None:
        f.problems.add(f"{f.where}sliding_window: not known in this family; allowed: null")
    paths = {
        "mamba": ("mamba.in_proj", "mamba.out_proj"),
        "ffn": ("feed_forward.down_proj",),
        "experts": ("feed_forward.experts.0.down_proj",),
    }
    return Decoder({name: block for name, block in known.items() if name in names}, ffns, pairs, paths=paths)


@family("falcon_h1")
def falcon_h1(f: Fields) -> Decoder:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    if f.get("attn_layer_indices")[1] is not None:
        f.problems.add(f"{f.where}attn_layer_indices: attention in some layers only is not covered; allowed: null")
    if f.get("mamba_d_head")[1] in (None, "auto"):
        heads = f.whole("mamba_n_heads")
        inner = f.maybe("mamba_d_ssm") or f.whole("mamba_expand", default=2) * f.whole("hidden_size")
        f.values = {**f.values, "mamba_d_head": inner // heads}
    mamba = mamba2_block(
        f,
        heads="mamba_n_heads",
        head_dim="mamba_d_head",
        state="mamba_d_state",
        groups="mamba_n_groups",
        conv="mamba_d_conv",
        chunk="mamba_chunk_size",
    )
    bias = f.flag("attention_bias")
    attn = attention(f, qkv_bias=bias, o_bias=bias)
    pair: LayerPair = (("attn", "mamba"), "ffn")
    paths = {"mamba": ("mamba.in_proj", "mamba.out_proj"), "ffn": ("feed_forward.down_proj",)}
    ffn = feed_forward(f, bias=f.flag("mlp_bias"))
    return Decoder({"attn": attn, "mamba": mamba}, {"ffn": ffn}, [pair] * f.layers(), paths=paths)


ZAMBA_WORDS = {"mamba": False, "hybrid": True, "m": False, "g": True}


@family("zamba2", tied=True)
def zamba2(f: Fields) -> Decoder:
    """Zamba2: Mamba-2 layers, before some of which a shared block runs; those are the hybrid ones."""
    layers = f.layers()
    hybrid = f.per_layer("layers_block_type", layers, ZAMBA_WORDS)
    listed = f.positions("hybrid_layer_ids", layers)
    if hybrid is None:
        if not listed:
            f.problems.add(f"{f.where}layers_block_type: needed, one entry per layer (mamba, hybrid)")
        hybrid = chosen(layers, lambda index: index in listed)
    width = f.whole("hidden_size")
    heads = f.whole("n_mamba_heads")
    inner = f.whole("mamba_expand", default=2) * width
    f.values = {
        "mamba_headdim": max(inner // heads, 1),
        "mamba_d_conv": 4,
        "mamba_ngroups": 1,
        "chunk_size": 256,
        **{key: value for key, value in f.values.items() if value is not None},
    }
    mamba = mamba2_block(
        f,
        heads="n_mamba_heads",
        head_dim="mamba_headdim",
        state="mamba_d_state",
        groups="mamba_ngroups",
        conv="mamba_d_conv",
        chunk="chunk_size",
    )
    mixers: Blocks = {"mamba": mamba}
    if any(hybrid):
        # kv_channels is half of the heads' width, num_query_groups what others call key heads: neither is read.
        count = f.whole("num_attention_heads")
        mixers["shared"] = {
            "kind": "zamba2_shared",
            "heads": count,
            "head_dim": f.maybe("attention_head_dim") or max(2 * width // count, 1),
            "d_ff": f.whole("intermediate_size", "ffn_hidden_size", default=4 * width),
            "adapter_rank": f.whole("adapter_rank", "lora_rank", default=128),
            "attention_adapters": f.flag("use_shared_attention_adapter") or f.flag("use_shared_attention_lora"),
            "rope": f.flag("use_mem_rope"),
            "copies": min(f.whole("num_mem_blocks", default=1), sum(hybrid)),
        }
    pairs: list[LayerPair] = []
    for is_hybrid in hybrid:
        pairs += [("shared", None), ("mamba", None)] if is_hybrid else [("mamba", None)]
    paths = {
        "mamba": ("mamba.in_proj", "mamba.out_proj"),
        "shared": ("shared_transformer.self_attn.q_proj", "shared_transformer.feed_forward.down_proj"),
    }
    return Decoder(mixers, {}, pairs, paths=paths)


def lightning(f: Fields, heads: int, width: int) -> Block:
    """A lightning attention layer: every head has keys and values of its own, and the output a gate as wide."""
    return {"kind": "lightning", "heads": heads, "d_head": width}


@family("minimax_text_01", "minimax_m1", "minimax")
def minimax_text_01(f: Fields) -> Decoder:
    """MiniMax-Text-01 and M1: in `attn_type_list` 0 is lightning attention; experts in every layer."""
    layers = f.layers()
    softmax = f.per_layer("attn_type_list", layers, {0: False, 1: True})
    words = f.per_layer("layer_types", layers, {"linear_attention": False, "full_attention": True})
    if softmax is None and words is None:
        f.problems.add(f"{f.where}attn_type_list: needed, one entry per layer (0: lightning, 1: softmax)")
    full = softmax or words or [False] * layers
    block = attention(f)
    known: Blocks = {"lightning": lightning(f, block["heads"], block["head_dim"]), "full": block}
    names = ["full" if is_full else "lightning" for is_full in full]
    shared = f.whole("shared_intermediate_size", default=0, least=0)
    if f.get("sliding_window")[1] is not None:
        f.problems.add(f"{f.where}sliding_window: not known in this family; allowed: null")
    moe = experts(f, "intermediate_size", shared=int(shared > 0), shared_d_ff=shared)
    return Decoder(
        {name: block for name, block in known.items() if name in names},
        {"moe": moe},
        [(name, "moe") for name in names],
        paths={"experts": ("block_sparse_moe.experts.0.w2",)},
    )


@family("bailing_moe_linear", "bailing_moe_v2_5", "bailing_hybrid")
def ring_linear(f: Fields) -> Decoder:
    """Ring-linear: softmax attention in the last layer of each group, and behind the last whole group."""
    layers = f.layers()
    group = f.whole("layer_group_size")
    full = chosen(layers, lambda index: (index + 1) % group == 0 or index >= layers // group * group)
    block = attention(f, qkv_bias=f.flag("use_qkv_bias"), qk_norm=f.flag("use_qk_norm"))
    known: Blocks = {"lightning": lightning(f, block["heads"], block["head_dim"]), "full": block}
    if f.get("kv_lora_rank")[1] is not None:
        known["full"] = latent_attention(f)  # Ring-2.5
    names = ["full" if is_full else "lightning" for is_full in full]
    shared = shared_experts(f)
    moe = experts(f, shared=shared, shared_d_ff=f.maybe("moe_shared_expert_intermediate_size") if shared else None)
    ffns, pairs = dense_or_sparse(f, names, sparse_layers(f, layers), moe)
    return Decoder({name: block for name, block in known.items() if name in names}, ffns, pairs)


@family("bailing_moe", "bailing_moe_v2")
def ling(f: Fields) -> Decoder:
    """Ling and Ring without linear layers: softmax attention everywhere."""
    bias = f.flag("use_qkv_bias")
    block = attention(f, qkv_bias=bias, qk_norm=f.flag("use_qk_norm"))
    layers = f.layers()
    moe = experts(f, shared=shared_experts(f))
    ffns, pairs = dense_or_sparse(f, ["attn"] * layers, sparse_layers(f, layers), moe)
    return Decoder({"attn": block}, ffns, pairs)


JET_WORDS = {"jet": "jet", "swa": "swa", "attn": "full", "full_attention": "full"}


@family("jet_nemotron")
def jet_nemotron(f: Fields) -> Decoder:
    """Jet-Nemotron: JetBlocks, full and window layers in the order of `layer_types`; biases as in Qwen2.5."""
    layers = f.layers()
    names = f.per_layer("layer_types", layers, JET_WORDS)
    if names is None:
        f.problems.add(f"{f.where}layer_types: needed, one entry per layer (jet, swa, attn)")
        names = ["full"] * layers
    widths = f.section("efficient_attention_config")
    jet, swa = widths.section("jet"), widths.section("swa")
    block = attention(f, qkv_bias=True)
    known: Blocks = {"full": block}
    if "jet" in names:
        keys = jet.whole("head_dim")
        known["jet"] = {
            "kind": "jet",
            "heads": jet.whole("num_heads"),
            "d_k": keys,
            "d_v": times(jet, "expand_v", 2, keys),
            "conv": jet.whole("conv_size", default=4),
            "generator_ratio": jet.whole("dconv_generator_reduction", default=8),
        }
    if "swa" in names:
        known["swa"] = block | {"kind": "swa", "window": swa.whole("window_size")}
    ffn = feed_forward(f)
    return Decoder({name: known[name] for name in known if name in names}, {"ffn": ffn}, [(n, "ffn") for n in names])


LFM2_WORDS = {"conv": "conv", "full_attention": "attn"}


@family("lfm2", "lfm2_moe", tied=True)
def lfm2(f: Fields) -> Decoder:
    """LFM2: gated short convolutions and attention; the stated feed-forward width is cut to two thirds."""
    layers = f.layers()
    names = f.per_layer("layer_types", layers, LFM2_WORDS)
    listed = f.positions("full_attn_idxs", layers)
    if names is None:
        names = ["attn" if index in listed or f.get("full_attn_idxs")[1] is None else "conv" for index in range(layers)]
    known: Blocks = {
        "conv": {
            "kind": "gated_conv",
            "width": f.whole("conv_dim", "hidden_size"),
            "conv": f.whole("conv_L_cache", default=3),
            "bias": f.flag("conv_bias"),
        },
        "attn": attention(f, qk_norm=True),
    }
    width = f.whole("block_ff_dim", "intermediate_size")
    dense = f.whole("num_dense_layers", default=layers, least=0)
    number = f.whole("num_experts", default=0, least=0)
    if f.flag("block_auto_adjust_ff_dim", number == 0):
        multiple = f.whole("block_multiple_of", default=256)
        width = -(-times(f, "block_ffn_dim_multiplier", 1, int(2 * width / 3)) // multiple) * multiple
    ffns: Blocks = {"ffn": {"kind": "swiglu", "d_ff": max(width, 1)}}
    has_experts = chosen(layers, lambda index: number > 0 and index >= dense)
    if any(has_experts):
        ffns["moe"] = experts(f)
    pairs: list[LayerPair] = [
        (name, "moe" if is_sparse else "ffn") for name, is_sparse in zip(names, has_experts, strict=True)
    ]
    used = {part for pair in pairs for part in pair}
    paths = {
        "conv": ("conv.in_proj", "conv.out_proj"),
        "attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        "ffn": ("feed_forward.w2",),
        "experts": ("feed_forward.experts.0.w2",),
    }
    return Decoder(
        {name: block for name, block in known.items() if name in used},
        {name: block for name, block in ffns.items() if name in used},
        pairs,
        paths=paths,
    )
