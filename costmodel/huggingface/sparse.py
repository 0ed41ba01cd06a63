"""Families whose softmax attention leaves keys out by chunk, block or compression: Llama 4, MiniMax-M3, MiniCPM4,
DeepSeek-V4, and the formats of fla for NSA and MoBA.

Sources: transformers, models/{llama4, deepseek_v4}; vllm, models/minimax_m3; openbmb/MiniCPM4-8B and MiniCPM-SALA,
configuration files; fla, models/{nsa, moba}.
"""

from costmodel.huggingface.decoder import (
    Block,
    Blocks,
    Decoder,
    attention,
    experts,
    family,
    feed_forward,
    shared_experts,
    sparse_layers,
)
from costmodel.huggingface.fields import MAX_LAYERS, Fields, chosen
from costmodel.huggingface.hybrid import lightning
from costmodel.huggingface.linear import fla_feed_forward


@family("llama4", "llama4_text")
def llama4(f: Fields) -> Decoder:
    """Llama 4: every fourth layer is full and not rotated, the others attend inside chunks; one shared expert."""
    layers = f.layers()
    full = _unrotated(f, layers)
    bias = f.flag("attention_bias")
    block = attention(f, qkv_bias=bias, o_bias=bias)
    chunk = f.maybe("attention_chunk_size")
    mixers: Blocks = {"full_nope": block | {"rope": False}}
    if not all(full):
        mixers = {"chunked": block | ({"kind": "chunked", "chunk": chunk} if chunk else {})} | mixers
    sparse = _listed_or_interleaved(f, layers)
    ffns: Blocks = {}
    if not all(sparse):
        ffns["ffn"] = feed_forward(f, "intermediate_size_mlp", "intermediate_size")
    if any(sparse):
        ffns["moe"] = experts(f, "intermediate_size", shared=1)
    f.whole("num_local_experts", default=0, least=0)
    pairs = [
        ("full_nope" if is_full else "chunked", "moe" if has_experts else "ffn")
        for is_full, has_experts in zip(full, sparse, strict=True)
    ]
    mixers = {name: block for name, block in mixers.items() if name in {mixer for mixer, _ in pairs}}
    paths = {
        "ffn": ("feed_forward.down_proj",),
        "experts": ("feed_forward.experts.down_proj",),
        "shared_experts": ("feed_forward.shared_expert.down_proj",),
    }
    return Decoder(mixers, ffns, list(pairs), paths=paths)


def _unrotated(f: Fields, layers: int) -> list[bool]:
    """Which layers see everything: a list of words, a list of 0 (no rotation) and 1, or every n-th layer."""
    words = f.per_layer("layer_types", layers, {"chunked_attention": False, "full_attention": True})
    rotated = None if f.get("no_rope_layers")[1] == [] else f.per_layer("no_rope_layers", layers, {1: False, 0: True})
    every = f.whole("no_rope_layer_interval", default=4)
    return words or rotated or chosen(layers, lambda index: (index + 1) % every == 0)


def _listed_or_interleaved(f: Fields, layers: int) -> list[bool]:
    listed = f.positions("moe_layers", layers)
    every = f.whole("interleave_moe_layer_step", default=1, least=0)
    if f.get("moe_layers")[1] is not None:
        return chosen(layers, lambda index: index in listed)
    return chosen(layers, lambda index: every > 0 and (index + 1) % every == 0)


@family("minimax_m3", "minimax_m3_vl", "minimax_m3_text")
def minimax_m3(f: Fields) -> Decoder:
    """MiniMax-M3: block-sparse attention where the list says 1; expert width under `intermediate_size`."""
    layers = f.layers()
    config = f.section("sparse_attention_config")
    gate = f.flag("attention_output_gate")
    block = attention(f, qk_norm=f.flag("use_qk_norm"), output_gate=gate)
    selects = config.per_layer("sparse_attention_freq", layers, {0: False, 1: True}) or [True] * layers
    if not config.values or not config.flag("use_sparse_attention", True):
        selects = [False] * layers
    mixers: Blocks = {}
    if not all(selects):
        mixers["full"] = block
    if any(selects):
        mixers["msa"] = block | {
            "kind": "msa",
            "index_heads": config.whole("sparse_num_index_heads"),
            "d_index": config.whole("sparse_index_dim"),
            "block": config.whole("sparse_block_size"),
            "top_k_blocks": config.whole("sparse_topk_blocks"),
            "init_blocks": config.whole("sparse_init_block", default=0, least=0),
            "local_blocks": config.whole("sparse_local_block", default=1),
        }
    shared = f.maybe("shared_intermediate_size", least=0)
    number = f.whole("n_shared_experts", "num_shared_experts", default=int(bool(shared)), least=0)
    moe = experts(
        f, "moe_intermediate_size", "intermediate_size", shared=number, shared_d_ff=shared if number else None
    )
    sparse = sparse_layers(f, layers)
    ffns: Blocks = {} if all(sparse) else {"ffn": feed_forward(f, "dense_intermediate_size", "intermediate_size")}
    if any(sparse):
        ffns["moe"] = moe
    pairs = [
        ("msa" if is_sparse else "full", "moe" if has_experts else "ffn")
        for is_sparse, has_experts in zip(selects, sparse, strict=True)
    ]
    return Decoder(mixers, ffns, list(pairs), paths={"experts": ("block_sparse_moe.experts.0.w2",)})


V4_RATIOS = {0: "swa", 4: "csa", 128: "hca"}
V4_WORDS = {
    "sliding_attention": "swa",
    "compressed_sparse_attention": "csa",
    "heavily_compressed_attention": "hca",
}


@family("deepseek_v4", "deepseek_ref")
def deepseek_v4(f: Fields) -> Decoder:
    """DeepSeek-V4: window, CSA and HCA layers, experts that the first layers look up, several residual streams."""
    layers = f.layers()
    place, ratios = f.get("compress_ratios")
    names = f.per_layer("compress_ratios", layers, V4_RATIOS) or f.per_layer("layer_types", layers, V4_WORDS)
    if names is None:
        f.problems.add(f"{place}: needed, one entry per layer (0: window, 4: CSA, 128: HCA)")
        names = ["swa"] * layers
    window: Block = {
        "kind": "dsv4_window",
        "heads": f.whole("num_attention_heads"),
        "d_head": f.whole("head_dim"),
        "d_rope": f.whole("qk_rope_head_dim", default=64),
        "q_lora": f.whole("q_lora_rank"),
        "o_groups": f.whole("o_groups"),
        "o_lora": f.whole("o_lora_rank"),
        "window": f.whole("sliding_window"),
    }
    rates = f.section("compress_rates")
    light = rates.whole("compressed_sparse_attention", default=f.whole("compress_rate_csa", default=4))
    heavy = rates.whole("heavily_compressed_attention", default=f.whole("compress_rate_hca", default=128))
    indexer = {"heads": f.whole("index_n_heads"), "d": f.whole("index_head_dim"), "top_k": f.whole("index_topk")}
    known: Blocks = {
        "swa": window,
        "csa": window | {"kind": "csa", "ratio": light, "indexer": indexer},
        "hca": window | {"kind": "hca", "ratio": heavy},
    }
    behind = ratios[layers:] if isinstance(ratios, list) else []
    predicting = V4_RATIOS.get(behind[0] if behind and isinstance(behind[0], int) else 0, "swa")
    used = {*names, predicting} if f.extra_layers() else set(names)
    moe = experts(f, shared=shared_experts(f))
    hashed = _hashed(f, layers)
    ffns: Blocks = {"moe_hash": moe | {"hash_routed": True}} if any(hashed) else {}
    if not all(hashed) or f.extra_layers():
        ffns["moe"] = moe
    f.get("n_routed_experts")
    decoder = Decoder(
        {name: block for name, block in known.items() if name in used},
        ffns,
        [(name, "moe_hash" if looked_up else "moe") for name, looked_up in zip(names, hashed, strict=True)],
        mtp=(predicting, "moe"),
        top={"kv": "fp8"},  # trained with an fp8 cache; rotated elements stay in bf16
    )
    streams = f.maybe("hc_mult")
    if streams is not None and streams > 1:
        decoder.top["hyper_connections"] = {
            "streams": streams,
            "sinkhorn_iterations": f.whole("hc_sinkhorn_iters", default=20, least=0),
        }
    attention_paths = ("attn.wq_b", "attn.wkv", "attn.wo_b")
    decoder.paths = dict.fromkeys(known, attention_paths) | {
        "experts": ("ffn.experts.0.w2",),
        "shared_experts": ("ffn.shared_experts.w2",),
    }
    return decoder


def _hashed(f: Fields, layers: int) -> list[bool]:
    """Which layers choose experts by token: a list of words, or a number of layers in front."""
    words = f.per_layer("mlp_layer_types", layers, {"hash_moe": True, "moe": False})
    front = f.whole("num_hash_layers", default=0, least=0, most=MAX_LAYERS)
    return words or chosen(layers, lambda index: index < front)


def infllm2(f: Fields, block: Block) -> Block:
    """The attention block with InfLLM-v2's selection, whose fields stand in `sparse_config`."""
    config = f.section("sparse_config")
    return block | {
        "kind": "infllm2",
        "kernel_size": config.whole("kernel_size", default=32),
        "kernel_stride": config.whole("kernel_stride", default=16),
        "block": config.whole("block_size", default=64),
        "top_k_blocks": config.whole("topk", default=64),
        "window": config.whole("window_size", default=2048),
        "init_blocks": config.whole("init_blocks", default=1, least=0),
        "dense_len": config.whole("dense_len", default=8192, least=0),
    }


@family("minicpm", tied=True)
def minicpm(f: Fields) -> Decoder:
    """MiniCPM: dense attention, or InfLLM-v2 in a file with `sparse_config` (MiniCPM4)."""
    bias = f.flag("attention_bias")
    block = attention(f, qkv_bias=bias, o_bias=bias)
    if f.get("sparse_config")[1] is not None:
        block = infllm2(f, block)
    return Decoder({"attn": block}, {"ffn": feed_forward(f)}, [("attn", "ffn")] * f.layers())


SALA_WORDS = {
    "minicpm4": "infllm2",
    "lightning-attn": "lightning",
    "lightning_attn": "lightning",
    "lightning": "lightning",
}


@family("minicpm_sala")
def minicpm_sala(f: Fields) -> Decoder:
    """MiniCPM-SALA: InfLLM-v2 without rotation and lightning attention, in the order of `mixer_types`."""
    layers = f.layers()
    names = f.per_layer("mixer_types", layers, SALA_WORDS)
    if names is None:
        f.problems.add(f"{f.where}mixer_types: needed, one entry per layer (minicpm4, lightning-attn)")
        names = ["infllm2"] * layers
    rope = f.flag("attn_use_rope", True)
    block = attention(f, output_gate=f.flag("attn_use_output_gate")) | ({} if rope else {"rope": False})
    heads = f.whole("lightning_nh", "num_attention_heads")
    known: Blocks = {
        "infllm2": infllm2(f, block),
        "lightning": lightning(f, heads, f.whole("lightning_head_dim", "head_dim")),
    }
    keys = f.whole("lightning_nkv", default=heads)
    if keys != heads and not f.problems.found:
        f.problems.add(f"{f.where}lightning_nkv: {keys} for {heads} heads is not covered; allowed: one for each head")
    mixers = {name: block for name, block in known.items() if name in names}
    return Decoder(mixers, {"ffn": feed_forward(f)}, [(name, "ffn") for name in names])


def fla_attention(f: Fields, width: int) -> Block:
    """The softmax heads of fla's models, whose width is a share of the model's where the file gives none."""
    heads = f.whole("num_heads")
    keys = f.whole("num_kv_heads", default=heads)
    head_dim = f.maybe("head_dim") or max(width // heads, 1)
    block: Block = {"kind": "gqa", "heads": heads, "kv_heads": keys, "head_dim": head_dim}
    return block | ({"qkv_bias": True} if f.flag("qkv_bias") else {})


@family("nsa")
def nsa(f: Fields) -> Decoder:
    """Native sparse attention in fla's format: blocks of one size, pooled by their mean, one set of keys."""
    size = f.whole("block_size", default=64)
    block = fla_attention(f, f.whole("hidden_size")) | {
        "kind": "nsa",
        "compress_block": size,
        "compress_stride": size,
        "block": size,
        "top_k_blocks": f.whole("block_counts", default=16),
        "window": f.whole("window_size", default=512),
        "shared_kv": True,
    }
    return Decoder({"nsa": block}, {"ffn": fla_feed_forward(f)}, [("nsa", "ffn")] * f.layers())


@family("moba")
def moba(f: Fields) -> Decoder:
    """Mixture of block attention in fla's format."""
    block = fla_attention(f, f.whole("hidden_size")) | {
        "kind": "moba",
        "block": f.whole("moba_chunk_size", default=256),
        "top_k_blocks": f.whole("moba_topk", default=4),
        "qk_norm": f.flag("qk_norm"),
        "output_gate": f.flag("use_output_gate", True),
    }
    if f.get("window_size")[1] is not None:
        f.problems.add(f"{f.where}window_size: a window beside the blocks is not covered; allowed: null")
    return Decoder({"moba": block}, {"ffn": fla_feed_forward(f)}, [("moba", "ffn")] * f.layers())
