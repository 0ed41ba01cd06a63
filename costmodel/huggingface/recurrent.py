"""Families with a fixed-size state: GDN (Qwen3-Next, 3.5), KDA (Kimi Linear, K3), Mamba, Mamba-2, RWKV-7.

Sources: transformers, models/{qwen3_next, qwen3_5, nemotron_h, mamba, mamba2, granitemoehybrid}; vllm, nemotron_h.py;
moonshotai/Kimi-Linear; state-spaces/mamba, mamba_ssm/models/config_mamba.py; fla, layers/rwkv7.py.
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
    shared_experts,
    sparse_layers,
)
from costmodel.huggingface.fields import MAX_LAYERS, Fields, chosen
from costmodel.huggingface.latent import latent_attention
from costmodel.huggingface.softmax import stepped_experts

STATE_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16"}


def state_dtype(f: Fields, name: str) -> str:
    """The number format of the state; engines keep it in fp32 when the file does not say."""
    return STATE_TYPES[f.word(name, default="float32", known=tuple(STATE_TYPES))]


@family("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
def gated_delta(f: Fields) -> Decoder:
    """Three gated delta layers and a full one; the output gate of the full layers needs no field."""
    layers = f.layers()
    every = f.whole("full_attention_interval", default=4)
    full = f.per_layer("layer_types", layers, {"linear_attention": False, "full_attention": True})
    if full is None:
        full = chosen(layers, lambda index: (index + 1) % every == 0)
    gdn: Block = {
        "kind": "gdn",
        "k_heads": f.whole("linear_num_key_heads"),
        "v_heads": f.whole("linear_num_value_heads"),
        "d_k": f.whole("linear_key_head_dim"),
        "d_v": f.whole("linear_value_head_dim"),
        "conv": f.whole("linear_conv_kernel_dim"),
        "state_dtype": state_dtype(f, "mamba_ssm_dtype"),
    }
    bias = f.flag("attention_bias")
    gate = f.flag("attn_output_gate", True)
    softmax = attention(f, output_gate=gate, qk_norm=True, qkv_bias=bias, o_bias=bias)
    names = ["full" if is_full else "gdn" for is_full in full]
    if f.whole("num_experts", default=0, least=0):
        has_experts = stepped_experts(f, layers)
        shared = f.maybe("shared_expert_intermediate_size")
        moe = experts(f, **({"shared": 1, "shared_d_ff": shared, "shared_gate": True} if shared else {}))
    else:
        has_experts, moe = [False] * layers, {}
    ffns, pairs = dense_or_sparse(f, names, has_experts, moe)
    return Decoder(
        {"gdn": gdn, "full": softmax}, ffns, pairs, paths={"shared_experts": ("mlp.shared_expert.down_proj",)}
    )


@family("kimi_linear", "kimi_k3")
def kimi_linear(f: Fields) -> Decoder:
    """KDA and latent attention. The lists of layers count from 1."""
    layers = f.layers()
    linear = f.section("linear_attn_config")
    kda_at, full_at = (
        linear.positions("kda_layers", layers, first=1),
        linear.positions("full_attn_layers", layers, first=1),
    )
    if not f.problems.found and (kda_at & full_at or len(kda_at | full_at) != layers):
        f.problems.add(
            f"{linear.where}kda_layers and full_attn_layers: {len(kda_at)} and {len(full_at)} layers, counted from 1, "
            f"must name each of the {layers} layers once"
        )
    head_dim = linear.whole("head_dim")
    kda: Block = {
        "kind": "kda",
        "heads": linear.whole("num_heads"),
        "d_k": head_dim,
        "d_v": head_dim,
        "conv": linear.whole("short_conv_kernel_size"),
        "decay_rank": head_dim,
        "gate_rank": None if linear.flag("use_full_rank_gate") else head_dim,
    }
    mla = latent_attention(f, q_lora_may_be_absent=True)
    mla |= {"rope": not f.flag("mla_use_nope"), "output_gate": f.flag("mla_use_output_gate")}
    moe = experts(f, shared=shared_experts(f), latent=f.maybe("routed_expert_hidden_size"))
    names = ["mla" if index in full_at else "kda" for index in range(layers)]
    ffns, pairs = dense_or_sparse(f, names, sparse_layers(f, layers), moe)
    notes = []
    if f.maybe("attn_res_block_size", least=0):
        notes.append("attention residuals (attn_res_block_size) are not modelled")
    return Decoder({"kda": kda, "mla": mla}, ffns, pairs, notes)


def mamba1_block(f: Fields, *, inner: int, state: int, conv: int, rank: str) -> Block:
    """A Mamba layer; "auto" makes the rank of Δ a sixteenth of the model's width, rounded up."""
    auto = f.get(rank)[1] in (None, "auto")
    dt_rank = -(-f.whole("hidden_size", "d_model") // 16) if auto else f.whole(rank)
    return {"kind": "mamba1", "d_inner": inner, "state": state, "dt_rank": dt_rank, "conv": conv}


def mamba2_block(f: Fields, **names: str) -> Block:
    """A Mamba-2 layer. Its inner width is heads × head_dim; `expand` contradicts that in some files and is not read."""
    return {
        "kind": "mamba2",
        "heads": f.whole(names["heads"]),
        "head_dim": f.whole(names["head_dim"]),
        "state": f.whole(names["state"]),
        "groups": f.whole(names["groups"]),
        "conv": f.whole(names["conv"]),
        "chunk": f.whole(names["chunk"]),
        "state_dtype": state_dtype(f, "mamba_ssm_cache_dtype"),
    }


MAMBA_WORDS = {"mamba": "mamba", "attention": "attn", "mlp": "ffn", "moe": "moe"}
MAMBA_LETTERS = {"M": "mamba", "*": "attn", "-": "ffn", "E": "moe"}


@family("nemotron_h")
def nemotron_h(f: Fields) -> Decoder:
    """Nemotron-H and Nemotron 3: each mixer and each FFN is a layer; attention without rotary embedding."""
    kinds = _nemotron_layers(f)
    mixers: Blocks = {}
    ffns: Blocks = {}
    if "mamba" in kinds:
        mixers["mamba"] = mamba2_block(
            f,
            heads="mamba_num_heads",
            head_dim="mamba_head_dim",
            state="ssm_state_size",
            groups="n_groups",
            conv="conv_kernel",
            chunk="chunk_size",
        )
    if "attn" in kinds:
        width = f.maybe("attention_head_dim")
        bias = f.flag("attention_bias")
        mixers["attn"] = (
            attention(f, qkv_bias=bias, o_bias=bias) | {"rope": False} | ({"head_dim": width} if width else {})
        )
    plain: Block = {
        "gated": False,
        "act": f.word("mlp_hidden_act", default="relu2", known=("relu2", "relu", "silu", "gelu")),
    }
    if "ffn" in kinds:
        ffns["ffn"] = {"kind": "mlp", "d_ff": f.whole("intermediate_size"), "bias": f.flag("mlp_bias")} | plain
    if "moe" in kinds:
        shared = shared_experts(f)
        width = f.maybe("moe_shared_expert_intermediate_size") if shared else None
        ffns["moe"] = experts(f, shared=shared, shared_d_ff=width, latent=f.maybe("moe_latent_size")) | plain
    f.whole("n_routed_experts", "num_experts", default=0, least=0)
    window = f.get("sliding_window")[1]
    if window is not None:
        f.problems.add(f"{f.where}sliding_window: {str(window)[:60]} is not known in this family; allowed: null")
    pairs: list[LayerPair] = [(kind, None) if kind in ("mamba", "attn") else (None, kind) for kind in kinds]
    paths = {
        "attn": ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj"),
        "mamba": ("mixer.in_proj", "mixer.out_proj"),
        "ffn": ("mixer.down_proj",),
        "experts": ("mixer.experts.0.down_proj",),
        "shared_experts": ("mixer.shared_experts.down_proj",),
    }
    return Decoder(mixers, ffns, pairs, paths=paths, mtp=_predicting(f, kinds))


def _predicting(f: Fields, kinds: list[str]) -> LayerPair | None:
    """Mixer and FFN of the prediction module, which the file spells like the layers; None when it has none."""
    place, entries = f.get("mtp_hybrid_override_pattern", "mtp_layers_block_type")
    if not isinstance(entries, str | list) or not entries:
        return None
    known = MAMBA_LETTERS if isinstance(entries, str) else MAMBA_WORDS
    found = [kind for kind in f.translated(place, entries, known) or [] if kind in kinds]
    mixers = [kind for kind in found if kind in ("mamba", "attn")]
    return next(iter(mixers), None), next((kind for kind in found if kind not in mixers), None)


def _nemotron_layers(f: Fields) -> list[str]:
    """One kind per layer, from the text of letters or the list of words."""
    place, pattern = f.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        kinds = f.translated(place, pattern, MAMBA_LETTERS)
    else:
        place, words = f.get("layers_block_type")
        if not isinstance(words, list):
            f.problems.add(
                f"{f.where}hybrid_override_pattern: missing, and so is layers_block_type; one must list the layers"
            )
            return []
        kinds = f.translated(place, words, MAMBA_WORDS)
    if kinds is not None and not 0 < len(kinds) <= MAX_LAYERS:
        f.problems.add(f"{place}: {len(kinds)} entries; allowed: 1 to {MAX_LAYERS}")
        return []
    if f.get("num_hidden_layers")[1] is not None and kinds is not None and len(kinds) != f.layers():
        f.problems.add(f"{place}: {len(kinds)} entries for num_hidden_layers {f.layers()}")
    return kinds or []


@family("granitemoehybrid")
def granite_hybrid(f: Fields) -> Decoder:
    """Granite 4: Mamba-2 and attention layers, each followed by experts and a shared block."""
    layers = f.layers()
    kinds = f.per_layer("layer_types", layers, {"mamba": "mamba", "attention": "attn"})
    if kinds is None:
        f.problems.add(f"{f.where}layer_types: needed, one entry per layer (mamba, attention)")
        kinds = ["attn"] * layers
    if f.get("mamba_d_head")[1] == "auto":
        inner = f.whole("mamba_expand", default=2) * f.whole("hidden_size")
        f.values = {**f.values, "mamba_d_head": inner // f.whole("mamba_n_heads")}
    mixers: Blocks = {}
    if "mamba" in kinds:
        mixers["mamba"] = mamba2_block(
            f,
            heads="mamba_n_heads",
            head_dim="mamba_d_head",
            state="mamba_d_state",
            groups="mamba_n_groups",
            conv="mamba_d_conv",
            chunk="mamba_chunk_size",
        )
    else:
        f.get("mamba_n_heads", "mamba_d_state")  # stated, but without a layer that has them
    if "attn" in kinds:
        rope = f.word("position_embedding_type", default="rope", known=("rope", "nope")) == "rope"
        bias = f.flag("attention_bias")
        mixers["attn"] = attention(f, qkv_bias=bias, o_bias=bias) | ({} if rope else {"rope": False})
    shared = f.whole("shared_intermediate_size", default=0, least=0)
    if f.whole("num_local_experts", default=0, least=0):
        ffns = {"moe": experts(f, "intermediate_size", shared=int(shared > 0), shared_d_ff=shared)}
    else:
        ffns = {"ffn": feed_forward(f, "shared_intermediate_size")}
    paths = {
        "mamba": ("mamba.in_proj", "mamba.out_proj"),
        "experts": ("block_sparse_moe.output_linear",),
        "shared_experts": ("shared_mlp.output_linear",),
        "ffn": ("shared_mlp.output_linear",),
    }
    return Decoder(mixers, ffns, [(kind, next(iter(ffns))) for kind in kinds], paths=paths)


@family("mamba", "falcon_mamba", tied=True)
def mamba(f: Fields) -> Decoder:
    """Mamba and Falcon-Mamba, in the format of transformers. Where the inner width is stated it wins over `expand`."""
    inner = f.maybe("intermediate_size") or f.whole("expand", default=2) * f.whole("hidden_size")
    state, conv = f.whole("state_size", default=16), f.whole("conv_kernel", default=4)
    block = mamba1_block(f, inner=inner, state=state, conv=conv, rank="time_step_rank")
    return Decoder({"mamba": block}, {}, [("mamba", None)] * f.layers())


@family("mamba2")
def mamba2(f: Fields) -> Decoder:
    """Mamba-2 without attention or FFN, in the format of transformers."""
    names = {"heads": "num_heads", "head_dim": "head_dim", "state": "state_size", "groups": "n_groups"}
    block = mamba2_block(f, **names, conv="conv_kernel", chunk="chunk_size")
    return Decoder({"mamba": block}, {}, [("mamba", None)] * f.layers())


@family("mamba_ssm", tied=True)
def state_spaces(f: Fields) -> Decoder:
    """The format of state-spaces/mamba, without a model type; `ssm_cfg` leaves out what equals the layer's defaults."""
    ssm = f.section("ssm_cfg")
    layer = ssm.word("layer", default="Mamba1", known=("Mamba1", "Mamba2"))
    if f.get("attn_layer_idx")[1]:
        f.problems.add(
            f"{f.where}attn_layer_idx: attention with a short convolution is not covered; allowed: an empty list"
        )
    width = f.whole("d_model", "hidden_size")
    inner_width = ssm.whole("expand", default=2) * width
    if layer == "Mamba1":
        ssm.values = {"d_model": width, **ssm.values}
        state, conv = ssm.whole("d_state", default=16), ssm.whole("d_conv", default=4)
        block = mamba1_block(ssm, inner=inner_width, state=state, conv=conv, rank="dt_rank")
    else:
        block = _mamba2_of_ssm(ssm, inner_width)
    inner = f.whole("d_intermediate", default=0, least=0)
    ffns: Blocks = {"ffn": {"kind": "swiglu", "d_ff": inner}} if inner else {}
    multiple = f.whole("pad_vocab_size_multiple", default=8)
    rows = -(-f.whole("vocab_size") // multiple) * multiple
    pair: LayerPair = ("mamba", "ffn" if inner else None)
    return Decoder({"mamba": block}, ffns, [pair] * f.layers(), vocabulary=rows)


def _mamba2_of_ssm(ssm: Fields, inner: int) -> Block:
    head_dim = ssm.whole("headdim", default=64)
    if inner % head_dim:
        ssm.problems.add(f"{ssm.where}headdim: the inner width {inner} is not a multiple of {head_dim}")
    return {
        "kind": "mamba2",
        "heads": max(inner // head_dim, 1),
        "head_dim": head_dim,
        "state": ssm.whole("d_state", default=128),
        "groups": ssm.whole("ngroups", default=1),
        "conv": ssm.whole("d_conv", default=4),
        "chunk": ssm.whole("chunk_size", default=256),
    }


@family("rwkv7")
def rwkv7(f: Fields) -> Decoder:
    """RWKV-7 in the format of fla; low ranks that are null follow the rule of its layer."""
    width = f.whole("hidden_size")
    head_dim = f.whole("head_dim", "head_size", default=64)
    if f.get("attn")[1] is not None:
        f.problems.add(f"{f.where}attn: softmax layers between the RWKV-7 layers are not covered; allowed: null")
    ranks = {
        "w": f.maybe("decay_low_rank_dim"),
        "a": f.maybe("a_low_rank_dim"),
        "v": f.maybe("v_low_rank_dim"),
        "g": f.maybe("gate_low_rank_dim"),
    }
    factors = {"w": 2.5 * head_dim / 64, "a": 2.5 * head_dim / 64, "v": 1.7 * head_dim / 64, "g": 5.0}
    rule = {name: max(32, round(factor * width**0.5 / 32) * 32) for name, factor in factors.items()}
    absent = [name for name, rank in ranks.items() if rank is None]
    mixer: dict[str, Any] = {
        "kind": "rwkv7",
        "heads": max(width // head_dim, 1),
        "head_dim": head_dim,
        "lora": {name: rule[name] if rank is None else rank for name, rank in ranks.items()},
    }
    if width % head_dim and not f.problems.found:
        f.problems.add(f"{f.where}hidden_size: {width} is not a multiple of head_dim {head_dim}")
    inner = f.maybe("intermediate_size") or f.whole("hidden_ratio", default=4) * width
    decoder = Decoder(
        {"rwkv7": mixer}, {"cmix": {"kind": "rwkv_cmix", "d_ff": inner}}, [("rwkv7", "cmix")] * f.layers()
    )
    if absent:
        decoder.notes.append(f"low ranks of {', '.join(absent)} are absent: the rule of fla's layer was used")
    return decoder
