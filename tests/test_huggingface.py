"""Reading a Hugging Face `config.json`: every family, every trap of its field names, and files that strangers broke."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from costmodel.architecture import Architecture, branches
from costmodel.errors import BadInput
from costmodel.huggingface import NOT_COVERED
from costmodel.huggingface.decoder import FAMILIES
from costmodel.model_file import load_architecture

BASE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 200,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
LLAMA = {**BASE, "model_type": "llama"}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
INDEX = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
GDN = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
NEMOTRON = {
    **BASE,
    "model_type": "nemotron_h",
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "ssm_state_size": 32,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 128,
    "expand": 2,
    "mlp_hidden_act": "relu2",
    "hybrid_override_pattern": "M-*-",
}
KIMI = {
    **BASE,
    **LATENT,
    **MOE,
    "model_type": "kimi_linear",
    "q_lora_rank": None,
    "head_dim": 72,
    "first_k_dense_replace": 1,
    "num_shared_experts": 1,
    "mla_use_nope": True,
    "linear_attn_config": {
        "kda_layers": [1, 2, 3],
        "full_attn_layers": [4],
        "num_heads": 4,
        "head_dim": 16,
        "short_conv_kernel_size": 4,
    },
}
DEEPSEEK = {**BASE, **LATENT, **ROUTED, "model_type": "deepseek_v3", "first_k_dense_replace": 1}
QWEN3_NEXT = {**BASE, **GDN, **MOE, "model_type": "qwen3_next", "head_dim": 32, "shared_expert_intermediate_size": 20}
MIMO_V2 = {
    **BASE,
    **ROUTED,
    "model_type": "mimo_v2_flash",
    "n_shared_experts": None,
    "head_dim": 24,
    "v_head_dim": 16,
    "swa_num_key_value_heads": 4,
    "sliding_window": 128,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1],
    "add_swa_attention_sink_bias": True,
}
RWKV7 = {
    "model_type": "rwkv7",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 64,
    "vocab_size": 300,
    "hidden_ratio": 4.0,
    "decay_low_rank_dim": 32,
    "a_low_rank_dim": 32,
    "v_low_rank_dim": 16,
    "gate_low_rank_dim": 64,
}
STATE_SPACES = {
    "d_model": 128,
    "n_layer": 3,
    "vocab_size": 301,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "pad_vocab_size_multiple": 16,
}
MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "num_heads": 8,
    "head_dim": 16,
    "state_size": 32,
    "n_groups": 1,
    "conv_kernel": 4,
    "chunk_size": 64,
}
GRANITE = {
    **BASE,
    "model_type": "granitemoehybrid",
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 40,
    "mamba_n_heads": 8,
    "mamba_d_head": "auto",
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 256,
    "mamba_expand": 2,
    "position_embedding_type": "nope",
}
STEP = {
    **BASE,
    "model_type": "step3p5",
    "num_attention_groups": 2,
    "head_dim": 16,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 64,
    "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 2, "head_dim": 16},
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "moe_intermediate_size": 16,
    "share_expert_dim": 16,
    "moe_layers_enum": "2,3",
}
LLADA = {
    "model_type": "llada",
    "d_model": 64,
    "n_heads": 4,
    "n_kv_heads": None,
    "n_layers": 2,
    "mlp_hidden_size": 96,
    "vocab_size": 190,
    "embedding_size": 200,
    "weight_tying": False,
    "max_sequence_length": 512,
}
GEMMA4 = {
    **BASE,
    **MOE,
    "model_type": "gemma4_text",
    "num_experts_per_tok": None,
    "top_k_experts": 2,
    "enable_moe_block": True,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": 64,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
LLAMA4 = {
    **BASE,
    "model_type": "llama4_text",
    "head_dim": 16,
    "attention_chunk_size": 128,
    "no_rope_layers": [],
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 160,
    "num_local_experts": 8,
    "num_experts_per_tok": 1,
}
MINIMAX_M3 = {
    **BASE,
    "model_type": "minimax_m3",
    "head_dim": 16,
    "hidden_act": "swigluoai",
    "dense_intermediate_size": 160,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "shared_intermediate_size": 40,
    "moe_layer_freq": [0, 1, 1, 1],
    "use_qk_norm": True,
    "num_mtp_modules": 7,
    "num_nextn_predict_layers": 1,
    "sparse_attention_config": {
        "sparse_attention_freq": [0, 1, 1, 1],
        "sparse_num_index_heads": 2,
        "sparse_index_dim": 8,
        "sparse_block_size": 128,
        "sparse_topk_blocks": 16,
        "sparse_init_block": 0,
        "sparse_local_block": 1,
    },
}
DEEPSEEK_V4 = {
    **BASE,
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 16,
    "sliding_window": 128,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "num_hash_layers": 1,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "num_nextn_predict_layers": 1,
    "compress_ratios": [0, 128, 4, 128, 0],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}
SPARSE_CONFIG = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "topk": 64,
    "window_size": 2048,
    "init_blocks": 1,
    "dense_len": 8192,
}
MINICPM = {**BASE, "model_type": "minicpm", "sparse_config": SPARSE_CONFIG}
SALA = {
    **BASE,
    "model_type": "minicpm_sala",
    "head_dim": 16,
    "mixer_types": ["minicpm4", "lightning-attn", "lightning-attn", "minicpm4"],
    "sparse_config": SPARSE_CONFIG,
    "attn_use_output_gate": True,
    "attn_use_rope": False,
    "lightning_nh": 4,
    "lightning_nkv": 4,
    "lightning_head_dim": 16,
}
MAMBA1 = {
    "model_type": "mamba",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "intermediate_size": 128,
    "time_step_rank": "auto",
}
JAMBA = {
    **BASE,
    "model_type": "jamba",
    "num_hidden_layers": 8,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 8,
}
FALCON_H1 = {
    **BASE,
    "model_type": "falcon_h1",
    "head_dim": 16,
    "attn_layer_indices": None,
    "mamba_n_heads": 4,
    "mamba_d_head": 24,
    "mamba_d_ssm": 96,
    "mamba_d_state": 32,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 128,
    "mamba_expand": 2,
}
ZAMBA2 = {
    **BASE,
    "model_type": "zamba2",
    "num_hidden_layers": 5,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
    "hybrid_layer_ids": [1, 3, 4],
    "num_mem_blocks": 2,
    "kv_channels": 16,
    "num_query_groups": 4,
    "adapter_rank": 8,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_ngroups": 1,
    "n_mamba_heads": 8,
    "chunk_size": 256,
    "hidden_act": "gelu",
}
MINIMAX_01 = {
    **BASE,
    "model_type": "minimax_text_01",
    "head_dim": 16,
    "attn_type_list": [0, 0, 0, 1],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 0,
}
RING = {
    **BASE,
    **MOE,
    "model_type": "bailing_moe_linear",
    "num_hidden_layers": 5,
    "head_dim": 16,
    "layer_group_size": 2,
    "first_k_dense_replace": 1,
    "num_shared_experts": 1,
    "use_qk_norm": True,
}
RWKV_OLD = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
    "head_size": 64,
    "intermediate_size": None,
    "vocab_size": 300,
}
JET = {
    **BASE,
    "model_type": "jet_nemotron",
    "layer_types": ["jet", "attn", "swa", "jet"],
    "max_window_layers": 4,
    "efficient_attention_config": {
        "jet": {
            "num_heads": 3,
            "head_dim": 12,
            "expand_v": 2.6666666667,
            "conv_size": 4,
            "dconv_generator_reduction": 8,
        },
        "swa": {"window_size": 64},
    },
}
LFM2 = {
    **BASE,
    "model_type": "lfm2",
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "block_ff_dim": 900,
    "block_multiple_of": 64,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "tie_embedding": True,
}
NEMOTRON_NAS = {
    **BASE,
    "model_type": "nemotron-nas",
    "num_key_value_heads": None,
    "intermediate_size": None,
    "block_configs": [
        {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.625}},
        {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 5.25}},
        {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"replace_with_linear": True}},
        {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True, "ffn_mult": None}},
    ],
}
FLA = {"hidden_size": 96, "num_hidden_layers": 3, "num_heads": 3, "vocab_size": 200, "max_position_embeddings": 512}
GPT_OSS = {
    **BASE,
    "model_type": "gpt_oss",
    "head_dim": 24,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 128,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
}


def load(folder: Path, config: Any, name: str = "Tiny-1B", beside: Any = None) -> Architecture:
    place = folder / name
    place.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (place / "config.json").write_text(text)
    if beside is not None:
        (place / "hf_quant_config.json").write_text(json.dumps(beside))
    return load_architecture(str(place / "config.json"))


def refused(folder: Path, config: Any) -> str:
    with pytest.raises(BadInput) as caught:
        load(folder, config)
    message = str(caught.value)
    assert "config.json" in message
    return message


def kinds(model: Architecture) -> list[str]:
    """The mechanism of each layer."""
    return ["+".join(model.mixers[name].module.NAME for name in branches(names)) for names, _ in model.layers]


def dims(model: Architecture, block: str) -> Any:
    return {**model.mixers, **model.ffns}[block].dims


# --- one file per family: mechanisms of the layers, and the parameters counted by hand ------------------------------

FAMILY_FILES = {
    "llama": (LLAMA, ["gqa"] * 4),
    "granite": ({**LLAMA, "model_type": "granite"}, ["gqa"] * 4),
    "mistral": ({**LLAMA, "model_type": "mistral", "sliding_window": 128}, ["swa"] * 4),
    "mixtral": (
        {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
        ["gqa"] * 4,
    ),
    "qwen2": ({**LLAMA, "model_type": "qwen2"}, ["gqa"] * 4),
    "qwen2_moe": (
        {**LLAMA, **MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 20},
        ["gqa"] * 4,
    ),
    "qwen3": ({**LLAMA, "model_type": "qwen3", "head_dim": 32}, ["gqa"] * 4),
    "qwen3_moe": ({**LLAMA, **MOE, "model_type": "qwen3_moe"}, ["gqa"] * 4),
    "mimo": ({**LLAMA, "model_type": "mimo", "attention_bias": True}, ["gqa"] * 4),
    "mimo_v2": (MIMO_V2, ["gqa", "swa", "swa", "gqa"]),
    "dream": ({**LLAMA, "model_type": "Dream"}, ["gqa"] * 4),
    "llada": (LLADA, ["gqa"] * 2),
    "glm4_moe": ({**LLAMA, **ROUTED, "model_type": "glm4_moe", "first_k_dense_replace": 1}, ["gqa"] * 4),
    "minimax_m2": (
        {**LLAMA, "model_type": "minimax_m2", "num_local_experts": 8, "num_experts_per_tok": 2},
        ["gqa"] * 4,
    ),
    "gpt_oss": (GPT_OSS, ["swa", "gqa", "swa", "gqa"]),
    "gemma2": ({**LLAMA, "model_type": "gemma2", "sliding_window": 64}, ["swa", "gqa", "swa", "gqa"]),
    "gemma3": (
        {**LLAMA, "model_type": "gemma3_text", "sliding_window": 64, "sliding_window_pattern": 2},
        ["swa", "gqa", "swa", "gqa"],
    ),
    "gemma4": (GEMMA4, ["swa", "swa", "swa", "gqa"]),
    "step3p5": (STEP, ["gqa", "swa", "swa", "gqa"]),
    "deepseek_v3": (DEEPSEEK, ["mla"] * 4),
    "deepseek_v32": ({**DEEPSEEK, **INDEX, "model_type": "deepseek_v32"}, ["dsa"] * 4),
    "glm_moe_dsa": ({**DEEPSEEK, **INDEX, "model_type": "glm_moe_dsa"}, ["dsa"] * 4),
    "kimi_k2": ({**DEEPSEEK, "model_type": "kimi_k2"}, ["mla"] * 4),
    "kimi_linear": (KIMI, ["kda", "kda", "kda", "mla"]),
    "qwen3_next": (QWEN3_NEXT, ["gdn", "gdn", "gdn", "gqa"]),
    "qwen3_5": ({**BASE, **GDN, "model_type": "qwen3_5_text"}, ["gdn", "gdn", "gdn", "gqa"]),
    "nemotron_h": (NEMOTRON, ["mamba2", "", "gqa", ""]),
    "mamba2": (MAMBA2, ["mamba2"] * 3),
    "state-spaces": (STATE_SPACES, ["mamba2"] * 3),
    "granitemoehybrid": (GRANITE, ["mamba2", "gqa", "mamba2", "mamba2"]),
    "rwkv7": (RWKV7, ["rwkv7"] * 2),
    "llama4": (LLAMA4, ["chunked", "chunked", "chunked", "gqa"]),
    "minimax_m3": (MINIMAX_M3, ["gqa", "msa", "msa", "msa"]),
    "deepseek_v4": (DEEPSEEK_V4, ["dsv4_window", "hca", "csa", "hca"]),
    "minicpm": (MINICPM, ["infllm2"] * 4),
    "minicpm_sala": (SALA, ["infllm2", "lightning", "lightning", "infllm2"]),
    "mamba": (MAMBA1, ["mamba1"] * 3),
    "jamba": (JAMBA, ["mamba1"] * 4 + ["gqa"] + ["mamba1"] * 3),
    "falcon_h1": (FALCON_H1, ["gqa+mamba2"] * 4),
    "zamba2": (
        ZAMBA2,
        ["mamba2", "zamba2_shared", "mamba2", "mamba2", "zamba2_shared", "mamba2", "zamba2_shared", "mamba2"],
    ),
    "minimax_text_01": (MINIMAX_01, ["lightning"] * 3 + ["gqa"]),
    "bailing_moe_linear": (RING, ["lightning", "gqa", "lightning", "gqa", "gqa"]),
    "bailing_moe": ({**RING, "model_type": "bailing_moe_v2", "layer_group_size": None}, ["gqa"] * 5),
    "nsa": ({**FLA, "model_type": "nsa", "num_kv_heads": 1, "head_dim": 32}, ["nsa"] * 3),
    "moba": ({**FLA, "model_type": "moba", "moba_chunk_size": 64, "moba_topk": 3}, ["moba"] * 3),
    "gated_deltanet": ({**FLA, "model_type": "gated_deltanet", "head_dim": 32}, ["gdn"] * 3),
    "kda": ({**FLA, "model_type": "kda", "head_dim": 32}, ["kda"] * 3),
    "gla": ({**FLA, "model_type": "gla", "attn": {"layers": [1], "num_heads": 3}}, ["gla", "gqa", "gla"]),
    "retnet": ({**FLA, "model_type": "retnet"}, ["retnet"] * 3),
    "delta_net": ({**FLA, "model_type": "delta_net"}, ["deltanet"] * 3),
    "gated_deltaproduct": (
        {**FLA, "model_type": "gated_deltaproduct", "head_dim": 16, "num_householder": 2, "use_forget_gate": True},
        ["gated_delta_product"] * 3,
    ),
    "rwkv4": ({**RWKV_OLD, "model_type": "rwkv"}, ["rwkv4"] * 2),
    "rwkv5": ({**RWKV_OLD, "model_type": "rwkv5"}, ["rwkv5"] * 2),
    "rwkv6": ({**RWKV_OLD, "model_type": "rwkv6"}, ["rwkv6"] * 2),
    "ttt": ({**BASE, "model_type": "ttt", "share_qk": True, "use_gate": True}, ["ttt"] * 4),
    "lfm2": (LFM2, ["gated_conv", "gated_conv", "gqa", "gated_conv"]),
    "nemotron_nas": (NEMOTRON_NAS, ["gqa", "gqa", "", ""]),
    "jet_nemotron": (JET, ["jet", "gqa", "swa", "jet"]),
    "log_linear": (
        {**FLA, "model_type": "log_linear_mamba2", "num_heads": 4, "head_dim": 16, "state_size": 32},
        ["log_linear"] * 3,
    ),
}


@pytest.mark.parametrize("name", FAMILY_FILES)
def test_each_family_gives_its_mechanisms_layer_by_layer(name: str, tmp_path: Path) -> None:
    config, expected = FAMILY_FILES[name]
    model = load(tmp_path, config)
    assert kinds(model) == expected
    assert model.parameters > 0


def test_every_model_type_that_is_read_has_a_test() -> None:
    aliases = {"qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl", "qwen3_vl_text"}
    aliases |= {"qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "gemma3", "gemma4"}
    aliases |= {
        "mimo_v2",
        "deepseek_v2",
        "kimi_k25",
        "kimi_k3",
        "mamba_ssm",
        "llama4",
        "minimax_m3_vl",
        "minimax_m3_text",
    }
    aliases |= {"deepseek_ref", "minimax", "minimax_m1", "bailing_moe", "bailing_moe_v2_5", "bailing_hybrid"}
    aliases |= {"falcon_mamba", "lfm2_moe", "decilm"}
    tested = {str(config.get("model_type")).lower() for config, _ in FAMILY_FILES.values()}
    assert set(FAMILIES) - aliases == tested - {"none"}


def test_llama_parameters_by_hand(tmp_path: Path) -> None:
    model = load(tmp_path, LLAMA)
    # q 64·64, k and v 64·32 each, o 64·64; three matrices of 64·96; two norms of 64; 4 layers
    assert model.parameters == 4 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64 + 2 * 200 * 64
    assert not model.tied_embeddings
    assert model.max_context == 512


def test_mla_parameters_by_hand(tmp_path: Path) -> None:
    model = load(tmp_path, {**DEEPSEEK, "num_hidden_layers": 1, "first_k_dense_replace": 1})
    queries = 64 * 24 + 24 + 24 * 4 * (16 + 8)  # down, norm, up to 4 heads
    keys = 64 * (32 + 8) + 32 + 32 * 4 * (16 + 12)  # down with the shared rope part, norm, up
    assert model.parameters == queries + keys + 4 * 12 * 64 + 3 * 64 * 96 + 3 * 64 + 2 * 200 * 64


# --- head widths ----------------------------------------------------------------------------------------------------


def test_head_dim_is_derived_only_when_absent(tmp_path: Path) -> None:
    assert dims(load(tmp_path, LLAMA), "attn").dk == 64 // 4
    assert dims(load(tmp_path, {**LLAMA, "head_dim": None}), "attn").dk == 64 // 4
    assert dims(load(tmp_path, {**LLAMA, "head_dim": 40}), "attn").dk == 40


def test_absent_key_heads_mean_one_per_query_head(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert dims(load(tmp_path, config), "attn").Hkv == 4
    assert dims(load(tmp_path, {**LLAMA, "num_key_value_heads": None}), "attn").Hkv == 4


@pytest.mark.parametrize("misleading", [64, 192, 72])
def test_head_dim_of_a_latent_model_is_ignored(misleading: int, tmp_path: Path) -> None:
    with_it = load(tmp_path, {**DEEPSEEK, "head_dim": misleading, "num_key_value_heads": 4})
    assert with_it.parameters == load(tmp_path, DEEPSEEK).parameters


def test_latent_cache_is_the_latent_and_the_rope_part(tmp_path: Path) -> None:
    from costmodel.step import Precision

    model = load(tmp_path, DEEPSEEK)
    assert model.cache_bytes(1, Precision()) == 4 * (32 + 8) * 2  # 4 layers, bf16


def test_null_query_rank_projects_directly_and_an_absent_one_is_asked_for(tmp_path: Path) -> None:
    assert dims(load(tmp_path, {**DEEPSEEK, "q_lora_rank": None}), "attn").q_l is None
    without = {key: value for key, value in DEEPSEEK.items() if key != "q_lora_rank"}
    assert "q_lora_rank: missing" in refused(tmp_path, without)


def test_values_may_be_narrower_than_keys_and_sliding_layers_have_more_key_heads(tmp_path: Path) -> None:
    model = load(tmp_path, MIMO_V2)
    full, local = dims(model, "full"), dims(model, "swa")
    assert (full.Hkv, full.dk, full.dv, full.sinks) == (2, 24, 16, False)
    assert (local.Hkv, local.dk, local.dv, local.sinks, local.w) == (4, 24, 16, True, 128)


def test_sliding_layers_of_step_have_heads_of_their_own(tmp_path: Path) -> None:
    model = load(tmp_path, STEP)
    assert (dims(model, "full").H, dims(model, "swa").H) == (4, 6)
    incomplete = load(tmp_path, {key: value for key, value in STEP.items() if key != "attention_other_setting"})
    assert any("attention_other_setting is absent" in note for note in incomplete.notes)


def test_global_layers_of_gemma4_have_other_heads_and_no_value_projection(tmp_path: Path) -> None:
    model = load(tmp_path, GEMMA4)
    full, local = dims(model, "full"), dims(model, "swa")
    assert (full.Hkv, full.dk, full.k_eq_v) == (1, 32, True)
    assert (local.Hkv, local.dk, local.k_eq_v) == (2, 16, False)
    moe = dims(model, "moe")
    assert (moe.E, moe.k, moe.F, moe.F_dense, moe.act) == (8, 2, 16, 96, "geglu")
    common = load(tmp_path, {**GEMMA4, "global_head_dim": None, "num_global_key_value_heads": None})
    assert (dims(common, "full").Hkv, dims(common, "full").dk) == (2, 16)


def test_late_layers_of_gemma4_read_the_cache_of_earlier_ones(tmp_path: Path) -> None:
    from costmodel.step import Precision

    dense = {key: value for key, value in GEMMA4.items() if key not in (*MOE, "enable_moe_block", "top_k_experts")}
    small = {**dense, "num_hidden_layers": 8, "num_kv_shared_layers": 4, "use_double_wide_mlp": True}
    small |= {"layer_types": GEMMA4["layer_types"] * 2, "attention_k_eq_v": False, "num_global_key_value_heads": None}
    model = load(tmp_path, small)
    assert kinds(model) == ["swa"] * 3 + ["gqa"] + ["shared_kv"] * 4
    assert [ffn for _, ffn in model.layers] == ["ffn"] * 4 + ["ffn_wide"] * 4
    assert (dims(model, "ffn").F, dims(model, "ffn_wide").F) == (96, 192)
    assert (dims(model, "swa_shared").w, dims(model, "full_shared").w) == (64, None)
    grown = model.cache_bytes(1001, Precision()) - model.cache_bytes(1000, Precision())
    assert grown == 2 * 2 * 32 * 2  # one global layer: keys and values of 2 heads of 32
    assert "num_kv_shared_layers: 9 is outside" in refused(tmp_path, {**small, "num_kv_shared_layers": 9})


def test_inputs_of_every_layer_are_weights_that_few_tokens_read(tmp_path: Path) -> None:
    model = load(tmp_path, {**GEMMA4, "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 200})
    plain = load(tmp_path, GEMMA4)
    assert len(model.layers) == 2 * len(plain.layers)
    matrices, table, norms = 3 * 64 * 12 + 12, 200 * 12, 2 * 64
    assert model.parameters - plain.parameters == 4 * (matrices + table + norms)
    assert model.active_parameters - plain.active_parameters == 4 * (matrices + norms)


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,expected",
    [
        ({"sliding_window": 128}, ["gqa"] * 4),  # use_sliding_window absent: off
        ({"sliding_window": 128, "use_sliding_window": False}, ["gqa"] * 4),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 3}, ["gqa"] * 3 + ["swa"]),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 4}, ["gqa"] * 4),
        ({"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, ["gqa"] * 4),
        (
            {"sliding_window": 128, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 4},
            ["gqa"] * 4,
        ),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mimo"])
def test_a_window_that_is_set_may_be_off(
    model_type: str, fields: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    assert kinds(load(tmp_path, {**LLAMA, "model_type": model_type, **fields})) == expected


def test_mistral_window_holds_in_every_layer_or_in_none(tmp_path: Path) -> None:
    model = load(tmp_path, {**LLAMA, "model_type": "mistral", "sliding_window": 96})
    assert dims(model, "attn").w == 96
    assert kinds(load(tmp_path, {**LLAMA, "model_type": "mistral", "sliding_window": None})) == ["gqa"] * 4


def test_llama_says_that_it_has_no_window(tmp_path: Path) -> None:
    model = load(tmp_path, {**LLAMA, "sliding_window": 96})
    assert kinds(model) == ["gqa"] * 4
    assert any("sliding_window" in note for note in model.notes)


def test_layer_types_decide_over_the_family_rule(tmp_path: Path) -> None:
    words = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert kinds(load(tmp_path, {**GPT_OSS, "layer_types": words})) == ["gqa", "swa", "gqa", "swa"]


def test_hybrid_layer_pattern_counts_one_as_sliding(tmp_path: Path) -> None:
    model = load(tmp_path, {**MIMO_V2, "hybrid_layer_pattern": [1, 0, 0, 0]})
    assert kinds(model) == ["swa", "gqa", "gqa", "gqa"]


def test_gemma3_needs_only_what_differs_from_the_class_defaults(tmp_path: Path) -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "sliding_window": 32,
    }
    model = load(tmp_path, {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}})
    assert kinds(model) == ["swa"] * 5 + ["gqa", "swa"]
    assert (model.V, dims(model, "full").H, dims(model, "full").Hkv, dims(model, "full").dk) == (262208, 8, 4, 256)
    assert model.tied_embeddings
    assert model.sandwich_norm
    assert any("vocab_size is absent" in note for note in model.notes)
    assert any("only the language part" in note for note in model.notes)


# --- layers and MTP -------------------------------------------------------------------------------------------------


def test_entries_of_mtp_layers_are_cut_off_a_list(tmp_path: Path) -> None:
    words = STEP["layer_types"] + ["full_attention"] * 3
    model = load(tmp_path, {**STEP, "layer_types": words, "num_nextn_predict_layers": 3})
    assert len(model.layers) == 4
    assert any("multi-token-prediction layers (3)" in note for note in model.notes)


@pytest.mark.parametrize("length", [3, 5, 6, 8])
def test_a_list_of_another_length_is_refused(length: int, tmp_path: Path) -> None:
    words = ["full_attention"] * length
    message = refused(tmp_path, {**STEP, "layer_types": words, "num_nextn_predict_layers": 3})
    assert f"layer_types: {length} entries for 4 layers and 3 multi-token-prediction layers" in message


def test_mtp_modules_are_counted_apart(tmp_path: Path) -> None:
    config = {**FAMILY_FILES["minimax_m2"][0], "num_mtp_modules": 3, "mtp_transformer_layers": 1}
    model = load(tmp_path, config)
    assert model.parameters == load(tmp_path, FAMILY_FILES["minimax_m2"][0]).parameters
    assert any("multi-token-prediction layers (3)" in note for note in model.notes)


def test_kimi_layers_are_counted_from_one(tmp_path: Path) -> None:
    assert kinds(load(tmp_path, KIMI))[3] == "mla"
    zero = {**KIMI["linear_attn_config"], "kda_layers": [0, 1, 2], "full_attn_layers": [3]}
    assert "kda_layers: 0 is outside 1 to 4" in refused(tmp_path, {**KIMI, "linear_attn_config": zero})
    gap = {**KIMI["linear_attn_config"], "kda_layers": [1, 2]}
    assert "must name each of the 4 layers once" in refused(tmp_path, {**KIMI, "linear_attn_config": gap})


def test_kimi_gate_rank_follows_use_full_rank_gate(tmp_path: Path) -> None:
    kda = dims(load(tmp_path, KIMI), "kda")
    assert (kda.r, kda.rg) == (16, 16)
    full = {**KIMI["linear_attn_config"], "use_full_rank_gate": True}
    assert dims(load(tmp_path, {**KIMI, "linear_attn_config": full}), "kda").rg is None


def test_kimi_k3_is_found_by_its_text_config(tmp_path: Path) -> None:
    text = {**KIMI, "routed_expert_hidden_size": 24, "mla_use_output_gate": True, "attn_res_block_size": 2, "top_k": 50}
    model = load(tmp_path, {"model_type": "kimi_k3", "text_config": text, "tie_word_embeddings": False})
    assert dims(model, "moe").latent == 24
    assert dims(model, "moe").k == 2  # not the sampling value top_k
    assert dims(model, "mla").gate
    assert not dims(model, "mla").rope
    assert any("attn_res_block_size" in note for note in model.notes)


def test_letters_of_nemotron_are_mixers_or_ffns(tmp_path: Path) -> None:
    model = load(tmp_path, {**NEMOTRON, **ROUTED, "hybrid_override_pattern": "ME*-"})
    assert list(model.layers) == [("mamba", None), (None, "moe"), ("attn", None), (None, "ffn")]
    assert "'X' is not known; allowed: M, *, -, E" in refused(tmp_path, {**NEMOTRON, "hybrid_override_pattern": "MX*-"})
    short = refused(tmp_path, {**NEMOTRON, "hybrid_override_pattern": "M-*"})
    assert "hybrid_override_pattern: 3 entries for num_hidden_layers 4" in short


def test_words_of_nemotron_count_the_layers_when_no_number_does(tmp_path: Path) -> None:
    config = {
        key: value for key, value in NEMOTRON.items() if key not in ("num_hidden_layers", "hybrid_override_pattern")
    }
    config["layers_block_type"] = ["mamba", "mlp", "attention", "mlp", "mamba"]
    model = load(tmp_path, config)
    assert kinds(model) == ["mamba2", "", "gqa", "", "mamba2"]
    neither = {key: value for key, value in config.items() if key != "layers_block_type"}
    assert "hybrid_override_pattern: missing" in refused(tmp_path, neither)


def test_nemotron_width_is_heads_times_head_dim_and_not_expand(tmp_path: Path) -> None:
    mamba = dims(load(tmp_path, NEMOTRON), "mamba")
    assert mamba.H * mamba.p == 96  # expand 2 would give 128
    assert mamba.G == 2


def test_nemotron_blocks_are_ungated_and_its_attention_is_not_rotated(tmp_path: Path) -> None:
    model = load(tmp_path, {**NEMOTRON, "rope_theta": 10000, "attention_head_dim": 24})
    assert (dims(model, "ffn").gated, dims(model, "ffn").act) == (False, "relu2")
    assert (dims(model, "attn").rope, dims(model, "attn").dk) == (False, 24)


def test_nemotron_latent_experts_leave_the_shared_ones_wide(tmp_path: Path) -> None:
    latent = {**ROUTED, "moe_latent_size": 24, "moe_shared_expert_intermediate_size": 40}
    model = load(tmp_path, {**NEMOTRON, **latent, "hybrid_override_pattern": "ME*E", "n_group": 1})
    moe = dims(model, "moe")
    assert (moe.latent, moe.F_shared, moe.gated) == (24, 40, False)
    # router; 8 experts of two 24·16 matrices; two of 64·24 around them; the shared one at full width
    assert model.ffns["moe"].module.parameters(moe, 64) == 64 * 8 + 8 * 2 * 24 * 16 + 2 * 64 * 24 + 2 * 64 * 40


def test_interval_counts_the_last_layer_of_a_group_as_full(tmp_path: Path) -> None:
    config = {**QWEN3_NEXT, "num_hidden_layers": 6, "full_attention_interval": 3}
    assert kinds(load(tmp_path, config)) == ["gdn", "gdn", "gqa"] * 2


def test_qwen3_next_gates_its_output_without_a_field(tmp_path: Path) -> None:
    model = load(tmp_path, QWEN3_NEXT)
    assert dims(model, "full").gate
    assert (dims(model, "moe").F_shared, dims(model, "moe").shared_gate) == (20, True)
    assert not dims(load(tmp_path, {**QWEN3_NEXT, "attn_output_gate": False}), "full").gate


def test_shared_indexer_layers_follow_the_list_the_letters_or_the_frequency(tmp_path: Path) -> None:
    config = {**DEEPSEEK, **INDEX, "model_type": "glm_moe_dsa", "num_hidden_layers": 8}
    expected = [True, True, True, False, False, False, True, False]
    words = ["full" if runs else "shared" for runs in expected]
    spellings: list[dict[str, Any]] = [
        {"indexer_types": words},
        {"index_topk_pattern": "FFFSSSFS"},
        {"index_topk_freq": 4, "index_skip_topk_offset": 3},
    ]
    for fields in spellings:
        model = load(tmp_path, {**config, **fields})
        assert [model.mixers[str(name)].dims.runs for name, _ in model.layers] == expected
    assert all(model.mixers[str(name)].dims.runs for name, _ in load(tmp_path, config).layers)


def test_a_file_with_an_indexer_is_sparse_whatever_its_type(tmp_path: Path) -> None:
    assert kinds(load(tmp_path, {**DEEPSEEK, **INDEX})) == ["dsa"] * 4


# --- experts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "minimax_m2", "granitemoehybrid"])
def test_intermediate_size_is_the_expert_width_in_some_families(name: str, tmp_path: Path) -> None:
    assert dims(load(tmp_path, FAMILY_FILES[name][0]), "moe").F == 96


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_next", "glm4_moe", "deepseek_v3", "mimo_v2", "kimi_linear"])
def test_intermediate_size_is_the_dense_width_in_others(name: str, tmp_path: Path) -> None:
    model = load(tmp_path, FAMILY_FILES[name][0])
    assert dims(model, "moe").F == 16
    if "ffn" in model.ffns:
        assert dims(model, "ffn").F == 96


def test_null_shared_experts_are_none(tmp_path: Path) -> None:
    assert dims(load(tmp_path, MIMO_V2), "moe").shared == 0
    assert dims(load(tmp_path, {**DEEPSEEK, "n_shared_experts": None}), "moe").shared == 0
    assert dims(load(tmp_path, {**DEEPSEEK, "n_shared_experts": 2}), "moe").shared == 2


@pytest.mark.parametrize(
    "fields,sparse",
    [
        ({}, [0, 1, 1, 1]),
        ({"first_k_dense_replace": 0}, [1, 1, 1, 1]),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, [0, 0, 1, 0]),
        ({"moe_layer_freq": [1, 0, 0, 1]}, [1, 0, 0, 1]),
        ({"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}, [0, 0, 1, 1]),
    ],
)
def test_dense_layers_in_every_spelling(fields: dict[str, Any], sparse: list[int], tmp_path: Path) -> None:
    model = load(tmp_path, {**DEEPSEEK, **fields})
    assert [int(ffn == "moe") for _, ffn in model.layers] == sparse


def test_dense_layers_of_qwen_and_step(tmp_path: Path) -> None:
    qwen = load(tmp_path, {**LLAMA, **MOE, "model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert [ffn for _, ffn in qwen.layers] == ["ffn", "moe", "ffn", "ffn"]
    assert [ffn for _, ffn in load(tmp_path, STEP).layers] == ["ffn", "ffn", "moe", "moe"]


def test_granite_without_experts_keeps_only_the_shared_block(tmp_path: Path) -> None:
    model = load(tmp_path, {**GRANITE, "num_local_experts": 0})
    assert dims(model, "ffn").F == 40
    assert dims(model, "mamba").p == 16  # "auto": 2 · 64 / 8 heads
    assert not dims(model, "attn").rope


# --- embeddings, context, biases, dtypes ----------------------------------------------------------------------------


def test_tied_embeddings_may_stand_outside_and_default_by_family(tmp_path: Path) -> None:
    text = {key: value for key, value in QWEN3_NEXT.items() if key != "model_type"} | {"model_type": "qwen3_5_moe_text"}
    nested = {"model_type": "qwen3_5_moe", "text_config": text, "tie_word_embeddings": True}
    assert load(tmp_path, nested).tied_embeddings
    assert not load(tmp_path, {**nested, "tie_word_embeddings": False}).tied_embeddings
    assert load(tmp_path, FAMILY_FILES["gemma2"][0]).tied_embeddings
    assert load(tmp_path, STATE_SPACES).tied_embeddings
    assert load(tmp_path, {**LLADA, "weight_tying": True}).tied_embeddings


def test_state_spaces_vocabulary_is_padded(tmp_path: Path) -> None:
    model = load(tmp_path, STATE_SPACES)
    assert model.V == 304  # 301 rounded up to a multiple of 16
    assert (dims(model, "mamba").H, dims(model, "mamba").p, dims(model, "mamba").N) == (4, 64, 128)
    assert "ssm_cfg.layer" in refused(tmp_path, {**STATE_SPACES, "ssm_cfg": {"layer": "Mamba3x"}})
    assert "attn_layer_idx" in refused(tmp_path, {**STATE_SPACES, "attn_layer_idx": [1]})


def test_state_spaces_mean_the_first_mamba_when_no_layer_is_named(tmp_path: Path) -> None:
    model = load(tmp_path, {**STATE_SPACES, "ssm_cfg": {}})
    mamba = dims(model, "mamba")
    assert kinds(model) == ["mamba1"] * 3
    assert (mamba.inner, mamba.N, mamba.rank, mamba.conv) == (256, 16, 8, 4)  # twice 128; 128 / 16


def test_inner_width_of_mamba_wins_over_expand(tmp_path: Path) -> None:
    falcon = load(tmp_path, {**MAMBA1, "model_type": "falcon_mamba", "expand": 16, "time_step_rank": 5})
    assert (dims(falcon, "mamba").inner, dims(falcon, "mamba").rank) == (128, 5)
    derived = load(tmp_path, {**MAMBA1, "intermediate_size": None})
    assert (dims(derived, "mamba").inner, dims(derived, "mamba").rank) == (128, 4)  # twice 64; "auto": 64 / 16


def test_llada_takes_the_rows_of_its_embedding_and_is_bidirectional(tmp_path: Path) -> None:
    model = load(tmp_path, LLADA)
    assert (model.V, model.bidirectional, dims(model, "attn").Hkv) == (200, True, 4)


@pytest.mark.parametrize("name", ["rwkv7", "mamba2"])
def test_a_recurrence_has_no_longest_context(name: str, tmp_path: Path) -> None:
    assert load(tmp_path, {**FAMILY_FILES[name][0], "max_position_embeddings": 2048}).max_context is None


def test_low_ranks_of_rwkv7_follow_the_rule_of_fla_when_null(tmp_path: Path) -> None:
    config = {key: value for key, value in RWKV7.items() if not key.endswith("low_rank_dim")} | {"hidden_size": 4096}
    model = load(tmp_path, config)
    d = dims(model, "rwkv7")
    assert (d.rw, d.ra, d.rv, d.rg) == (160, 160, 96, 320)  # 2.5, 2.5, 1.7 and 5 times √4096, in steps of 32
    assert any("low ranks of w, a, v, g" in note for note in model.notes)


def test_qwen2_has_biases_without_a_field_and_gpt_oss_has_them_everywhere(tmp_path: Path) -> None:
    qwen = dims(load(tmp_path, FAMILY_FILES["qwen2"][0]), "attn")
    assert (qwen.bias, qwen.o_bias) == (True, False)
    oss = load(tmp_path, GPT_OSS)
    assert (dims(oss, "full").bias, dims(oss, "full").o_bias, dims(oss, "full").sinks) == (True, True, True)
    assert dims(oss, "moe").bias
    glm = dims(load(tmp_path, {**FAMILY_FILES["glm4_moe"][0], "attention_bias": True}), "attn")
    assert (glm.bias, glm.o_bias) == (True, False)
    llama = dims(load(tmp_path, {**LLAMA, "attention_bias": True}), "attn")
    assert (llama.bias, llama.o_bias) == (True, True)


@pytest.mark.parametrize(
    "fields,dtype",
    [
        ({"torch_dtype": "float16"}, "fp16"),
        ({"torch_dtype": None, "dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": None}, "bf16"),
        ({"torch_dtype": "float32"}, "bf16"),
        ({"torch_dtype": "torch.float16"}, "fp16"),
    ],
)
def test_weights_have_the_dtype_of_the_file(fields: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    assert load(tmp_path, {**LLAMA, **fields}).weights["default"] == dtype


# --- finding the decoder and the family -----------------------------------------------------------------------------


def test_nested_text_config_is_read_and_a_stub_is_not(tmp_path: Path) -> None:
    text = {**LLAMA, "model_type": "qwen3_vl_text"}
    nested = load(tmp_path, {"model_type": "qwen3_vl", "text_config": text, "vision_config": {"depth": 2}})
    assert (nested.D, kinds(nested)) == (64, ["gqa"] * 4)
    assert dims(nested, "attn").qk_norm
    assert load(tmp_path, {**LLAMA, "text_config": {"model_type": "llama"}}).D == 64


def test_family_by_inner_then_outer_type_then_class(tmp_path: Path) -> None:
    text = {key: value for key, value in LLAMA.items() if key != "model_type"}
    outer = load(tmp_path, {"model_type": "qwen3_vl", "text_config": text})
    assert dims(outer, "attn").qk_norm
    by_class = load(tmp_path, {**text, "architectures": ["Qwen2ForCausalLM"]})
    assert dims(by_class, "attn").bias
    inner = load(tmp_path, {"model_type": "kimi_k25", "text_config": {**DEEPSEEK, "model_type": "deepseek_v3"}})
    assert kinds(inner) == ["mla"] * 4


@pytest.mark.parametrize("model_type", NOT_COVERED)
def test_a_mechanism_that_is_not_covered_is_refused_by_name(model_type: str, tmp_path: Path) -> None:
    message = refused(tmp_path, {**LLAMA, "model_type": model_type})
    assert NOT_COVERED[model_type][0] in message
    assert model_type in message
    assert "nearest covered: " in message


def test_an_unknown_type_gets_the_nearest_known_one(tmp_path: Path) -> None:
    assert "did you mean 'llama'?" in refused(tmp_path, {**LLAMA, "model_type": "lama"})
    assert "model_type: missing" in refused(tmp_path, BASE)
    assert "model_type: missing" in refused(tmp_path, {**BASE, "model_type": ["llama"], "architectures": "x"})


@pytest.mark.parametrize(
    "field,value",
    [
        ("sparse_attention_config", {"sparse_block_size": 128}),
        ("attn_type_list", [0, 1]),
        ("mixer_types", ["minicpm4"]),
        ("linear_attn_config", {"kda_layers": [1]}),
        ("compress_ratios", [0, 4]),
        ("kv_lora_rank", 512),
        ("num_local_experts", 8),
        ("attention_chunk_size", 8192),
        ("mamba_d_state", 16),
        ("block_configs", [{"attention": {"no_op": True}}]),
    ],
)
def test_a_mixer_field_that_the_reader_does_not_know_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    assert f"{field}: not known in a model of this type" in refused(tmp_path, {**LLAMA, field: value})


def test_a_mixer_field_that_is_switched_off_does_no_harm(tmp_path: Path) -> None:
    off = {"num_local_experts": 0, "attn_layer_indices": None, "sliding_window": None, "layer_group_size": 0}
    assert load(tmp_path, {**LLAMA, **off}).parameters == load(tmp_path, LLAMA).parameters


def test_unknown_words_in_a_list_of_layers_are_refused(tmp_path: Path) -> None:
    words = ["full_attention", "chunked_attention", "full_attention", "full_attention"]
    assert "'chunked_attention' is not known; allowed: " in refused(tmp_path, {**LLAMA, "layer_types": words})
    assert "attn_type_list: '0' is not known" in refused(
        tmp_path, {**FAMILY_FILES["minimax_m2"][0], "attn_type_list": [1, 0, 1, 1]}
    )


# --- families of the second kind: traps of their fields --------------------------------------------------------------


def test_every_fourth_layer_of_llama_4_is_full_and_not_rotated(tmp_path: Path) -> None:
    model = load(tmp_path, LLAMA4)
    assert (dims(model, "chunked").c, dims(model, "chunked").rope, dims(model, "full_nope").rope) == (128, True, False)
    listed = load(tmp_path, {**LLAMA4, "no_rope_layers": [1, 0, 1, 1]})
    assert kinds(listed) == ["chunked", "gqa", "chunked", "chunked"]
    other = load(tmp_path, {**LLAMA4, "no_rope_layer_interval": 2})
    assert kinds(other) == ["chunked", "gqa"] * 2
    assert kinds(load(tmp_path, {**LLAMA4, "attention_chunk_size": None})) == ["gqa"] * 4


def test_experts_of_llama_4_interleave_with_wider_dense_blocks(tmp_path: Path) -> None:
    model = load(tmp_path, LLAMA4)
    assert [ffn for _, ffn in model.layers] == ["ffn", "moe", "ffn", "moe"]
    moe = dims(model, "moe")
    assert (dims(model, "ffn").F, moe.F, moe.shared) == (160, 96, 1)
    assert [ffn for _, ffn in load(tmp_path, {**LLAMA4, "moe_layers": [0]}).layers] == ["moe", "ffn", "ffn", "ffn"]


def test_minimax_m3_flat_and_nested_are_the_same_model(tmp_path: Path) -> None:
    flat = load(tmp_path, MINIMAX_M3)
    text = {key: value for key, value in MINIMAX_M3.items() if key not in ("model_type", "n_shared_experts")}
    nested = load(tmp_path, {"model_type": "minimax_m3_vl", "text_config": text, "vision_config": {"depth": 2}})
    assert nested.parameters == flat.parameters
    assert kinds(nested) == kinds(flat)
    msa, moe = dims(flat, "msa"), dims(flat, "moe")
    assert (msa.HI, msa.dI, msa.b, msa.k, msa.init_blocks, msa.local_blocks, msa.qk_norm) == (2, 8, 128, 16, 0, 1, True)
    assert (dims(flat, "ffn").F, moe.F, moe.F_shared, moe.act) == (160, 96, 40, "swigluoai")
    assert flat.mtp is not None
    assert flat.mtp.layers == 1  # num_nextn_predict_layers, not the seven trained modules
    dense = {**MINIMAX_M3["sparse_attention_config"], "use_sparse_attention": False}
    assert kinds(load(tmp_path, {**MINIMAX_M3, "sparse_attention_config": dense})) == ["gqa"] * 4


def test_ratios_of_deepseek_v4_name_the_layers_and_the_prediction_layer(tmp_path: Path) -> None:
    model = load(tmp_path, DEEPSEEK_V4)
    assert [ffn for _, ffn in model.layers] == ["moe_hash", "moe", "moe", "moe"]
    assert (dims(model, "moe_hash").hashed, dims(model, "moe").hashed) == (True, False)
    assert (dims(model, "csa").r, dims(model, "csa").k, dims(model, "hca").r) == (4, 8, 128)
    assert model.hyper_connections == (4, 20)
    assert model.mtp is not None
    assert model.mtp.mixer is not None
    assert model.mtp.mixer.name == "swa"  # the ratio behind the layers is 0
    assert model.kv == "fp8"
    words = ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"] * 2
    newer = {key: value for key, value in DEEPSEEK_V4.items() if key not in ("compress_ratios", "num_hash_layers")}
    newer |= {"layer_types": words[:4], "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"]}
    assert kinds(load(tmp_path, newer)) == ["dsv4_window", "hca", "csa", "dsv4_window"]
    assert [ffn for _, ffn in load(tmp_path, newer).layers] == ["moe_hash", "moe", "moe", "moe"]
    assert "compress_ratios: '64' is not known" in refused(
        tmp_path, {**DEEPSEEK_V4, "compress_ratios": [0, 64, 4, 128]}
    )
    alone = {"num_nextn_predict_layers": 0, "compress_ratios": [0, 128, 4, 128]}
    plain = load(tmp_path, {**DEEPSEEK_V4, **alone, "hc_mult": 1})
    assert (plain.hyper_connections, plain.mtp) == (None, None)


def test_minicpm_is_dense_without_a_sparse_config(tmp_path: Path) -> None:
    dense = load(tmp_path, {key: value for key, value in MINICPM.items() if key != "sparse_config"})
    assert kinds(dense) == ["gqa"] * 4
    assert dense.tied_embeddings
    assert kinds(load(tmp_path, {**MINICPM, "sparse_config": None})) == ["gqa"] * 4
    sparse = dims(load(tmp_path, MINICPM), "attn")
    assert (sparse.l, sparse.r, sparse.b, sparse.k, sparse.w, sparse.dense_len) == (32, 16, 64, 64, 2048, 8192)


def test_sala_gates_its_sparse_layers_and_does_not_rotate_them(tmp_path: Path) -> None:
    model = load(tmp_path, SALA)
    assert (dims(model, "infllm2").gate, dims(model, "infllm2").rope) == (True, False)
    assert "lightning_nkv: 2 for 4 heads" in refused(tmp_path, {**SALA, "lightning_nkv": 2})
    assert "mixer_types: 'sparse' is not known" in refused(tmp_path, {**SALA, "mixer_types": ["sparse"] * 4})


def test_lightning_layers_have_their_own_keys_whatever_the_softmax_layers_share(tmp_path: Path) -> None:
    for config in (MINIMAX_01, RING):
        model = load(tmp_path, config)
        assert (dims(model, "lightning").H, dims(model, "full").Hkv) == (4, 2)
    words = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    newer = {key: value for key, value in MINIMAX_01.items() if key != "attn_type_list"} | {"layer_types": words}
    assert kinds(load(tmp_path, {**newer, "model_type": "minimax"})) == ["lightning", "lightning", "gqa", "lightning"]
    assert "attn_type_list: needed" in refused(tmp_path, {**newer, "layer_types": None})


def test_groups_of_ring_end_in_a_full_layer(tmp_path: Path) -> None:
    model = load(tmp_path, {**RING, "num_hidden_layers": 10, "layer_group_size": 5})
    assert [index for index, kind in enumerate(kinds(model)) if kind == "gqa"] == [4, 9]
    assert [ffn for _, ffn in model.layers] == ["ffn"] + ["moe"] * 9
    latent = load(tmp_path, {**RING, **LATENT, "model_type": "bailing_moe_v2_5"})
    assert kinds(latent) == ["lightning", "mla", "lightning", "mla", "mla"]


def test_jamba_takes_periods_and_offsets(tmp_path: Path) -> None:
    model = load(tmp_path, JAMBA)
    assert [ffn for _, ffn in model.layers] == ["ffn", "moe"] * 4
    assert (dims(model, "mamba").inner, dims(model, "mamba").rank, dims(model, "attn").rope) == (128, 8, False)
    assert dims(load(tmp_path, {**JAMBA, "mamba_dt_rank": "auto"}), "mamba").rank == 4  # 64 / 16
    assert {ffn for _, ffn in load(tmp_path, {**JAMBA, "num_experts": 1}).layers} == {"ffn"}


def test_falcon_h1_has_a_cache_and_a_state_in_every_layer(tmp_path: Path) -> None:
    from costmodel.step import Precision

    model = load(tmp_path, FALCON_H1)
    assert model.layers == ((("attn", "mamba"), "ffn"),) * 4
    mamba = dims(model, "mamba")
    assert mamba.H * mamba.p == 96  # mamba_d_ssm; expand 2 would give 128
    grown = model.cache_bytes(11, Precision()) - model.cache_bytes(10, Precision())
    assert grown == 4 * 2 * 2 * 16 * 2
    assert dims(load(tmp_path, {**FALCON_H1, "mamba_d_head": "auto"}), "mamba").p == 24
    assert "attn_layer_indices" in refused(tmp_path, {**FALCON_H1, "attn_layer_indices": [0, 2]})


def test_shared_blocks_of_zamba2_are_twice_as_wide_as_kv_channels_says(tmp_path: Path) -> None:
    model = load(tmp_path, ZAMBA2)
    shared = dims(model, "shared")
    assert (shared.H, shared.d, shared.F, shared.r) == (4, 32, 96, 8)  # 2 · 64 / 4 heads; kv_channels says 16
    assert model.mixers["shared"].copies == 2
    assert model.counts()[0] == {"mamba": 5, "shared": 3}
    by_number = {key: value for key, value in ZAMBA2.items() if key != "layers_block_type"}
    assert load(tmp_path, by_number).layers == model.layers
    assert load(tmp_path, {**ZAMBA2, "num_mem_blocks": 7}).mixers["shared"].copies == 3  # no more than there are calls
    adapted = load(tmp_path, {**ZAMBA2, "use_shared_attention_adapter": True, "use_mem_rope": True})
    assert (dims(adapted, "shared").attention_adapters, dims(adapted, "shared").rope) == (True, True)


def test_widths_of_jet_blocks_stand_apart(tmp_path: Path) -> None:
    model = load(tmp_path, JET)
    jet = dims(model, "jet")
    assert (jet.H, jet.dk, jet.dv, jet.ratio) == (3, 12, 32, 8)  # 12 · 2.6666666667
    assert (dims(model, "swa").w, dims(model, "full").bias) == (64, True)


def test_layers_of_a_searched_model_differ_one_by_one(tmp_path: Path) -> None:
    model = load(tmp_path, NEMOTRON_NAS)
    assert list(model.layers) == [
        ("attn_kv2", "ffn_256"),  # 2/3 · 2.625 · 64 = 112, rounded up to 256
        ("attn_kv1", "ffn_256"),
        (None, "linear"),
        (None, "linear"),
    ]
    attention = {1: 64 * (64 + 2 * 16) + 64 * 64, 2: 64 * (64 + 4 * 16) + 64 * 64}
    blocks = attention[1] + attention[2] + 2 * 3 * 64 * 256 + 2 * 64 * 64
    assert model.parameters == blocks + (2 * 2 + 2) * 64 + 64 + 2 * 200 * 64
    short = refused(tmp_path, {**NEMOTRON_NAS, "block_configs": NEMOTRON_NAS["block_configs"][:2]})
    assert "block_configs: expected one entry for each of 4 layers, found 2 entries" in short
    lacking = [{"attention": {"n_heads_in_group": 2}, "ffn": {}}] * 4
    assert "block_configs[0].ffn.ffn_mult: missing" in refused(tmp_path, {**NEMOTRON_NAS, "block_configs": lacking})


def test_feed_forward_of_lfm2_is_cut_to_two_thirds(tmp_path: Path) -> None:
    model = load(tmp_path, LFM2)
    assert dims(model, "ffn").F == 640  # 2/3 · 900 = 600, rounded up to 64
    assert (dims(model, "conv").W, dims(model, "conv").conv, dims(model, "attn").qk_norm) == (64, 3, True)
    assert model.tied_embeddings
    assert dims(load(tmp_path, {**LFM2, "block_auto_adjust_ff_dim": False}), "ffn").F == 900
    by_number = {key: value for key, value in LFM2.items() if key != "layer_types"} | {"full_attn_idxs": [1]}
    assert kinds(load(tmp_path, by_number)) == ["gated_conv", "gqa", "gated_conv", "gated_conv"]
    sparse = load(tmp_path, {**LFM2, **MOE, "model_type": "lfm2_moe", "num_dense_layers": 1})
    assert [ffn for _, ffn in sparse.layers] == ["ffn", "moe", "moe", "moe"]


def test_low_ranks_of_rwkv6_follow_the_width(tmp_path: Path) -> None:
    small = dims(load(tmp_path, {**RWKV_OLD, "model_type": "rwkv6"}), "rwkv6")
    assert (small.H, small.d, small.rm, small.rw) == (2, 64, 32, 64)
    wide = dims(load(tmp_path, {**RWKV_OLD, "model_type": "rwkv6", "hidden_size": 4096}), "rwkv6")
    assert (wide.H, wide.rm, wide.rw) == (64, 64, 128)
    fla = {**FLA, "model_type": "rwkv6", "expand_k": 1.0, "proj_low_rank_dim": 8, "gate_low_rank_dim": 16}
    ours = dims(load(tmp_path, fla), "rwkv6")
    assert (ours.H, ours.d, ours.rm, ours.rw) == (3, 32, 8, 16)
    assert "expand_k" in refused(tmp_path, {**FLA, "model_type": "rwkv6"})  # half the width by default
    assert dims(load(tmp_path, {**RWKV_OLD, "model_type": "rwkv5"}), "cmix").F == 448  # 3.5 · 128
    assert dims(load(tmp_path, {**RWKV_OLD, "model_type": "rwkv"}), "cmix").F == 512


def test_feed_forward_of_fla_is_rounded_up_to_256(tmp_path: Path) -> None:
    model = load(tmp_path, {**FLA, "model_type": "gla", "hidden_size": 2048, "num_heads": 4})
    assert dims(model, "ffn").F == 5632  # 2048 · 4 · 2/3 = 5461
    assert (dims(model, "gla").dk, dims(model, "gla").dv) == (256, 512)
    assert dims(load(tmp_path, {**FLA, "model_type": "gla", "intermediate_size": 100}), "ffn").F == 100
    retnet = load(tmp_path, {**FLA, "model_type": "retnet", "hidden_size": 2048, "num_heads": 8})
    assert (dims(retnet, "ffn").F, dims(retnet, "retnet").dk, dims(retnet, "retnet").dv) == (2816, 256, 512)


@pytest.mark.parametrize(
    "config,named",
    [
        ({**FLA, "model_type": "gla", "use_short_conv": True}, "use_short_conv"),
        ({**FLA, "model_type": "gla", "num_kv_heads": 1}, "num_kv_heads: 1 for 3 heads"),
        ({**FLA, "model_type": "retnet", "expand_v": "wide"}, "expand_v"),
        ({**FLA, "model_type": "gla", "hidden_ratio": -1}, "hidden_ratio"),
        ({**FLA, "model_type": "delta_net", "use_short_conv": False}, "use_short_conv"),
        ({**FLA, "model_type": "gated_deltanet", "use_gate": False}, "use_gate"),
        ({**FLA, "model_type": "moba", "window_size": 64}, "window_size"),
        ({**BASE, "model_type": "ttt", "ttt_layer_type": "mlp"}, "ttt_layer_type"),
    ],
)
def test_variants_that_are_not_covered_are_refused_by_field(config: Any, named: str, tmp_path: Path) -> None:
    assert named in refused(tmp_path, config)


def test_nvfp4_experts_on_an_fp8_file_leave_the_rest_fp8(tmp_path: Path) -> None:
    quantization = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "quant_algo": "MIXED_PRECISION",
        "moe_quant_algo": "NVFP4",
        "ignore": ["*.attn.*", "*.ffn.shared_experts.*", "head"],
        "quantized_layers": {f"layers.{index}.ffn.experts": {"quant_algo": "NVFP4"} for index in range(4)},
    }
    model = load(tmp_path, {**DEEPSEEK_V4, "expert_dtype": "fp4", "quantization_config": quantization})
    assert dict(model.weights) == {
        "default": "bf16",
        "mixer": "fp8_block",
        "experts": "nvfp4",
        "shared_experts": "fp8_block",
    }
    plain = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    released = load(tmp_path, {**DEEPSEEK_V4, "expert_dtype": "fp4", "quantization_config": plain})
    assert (released.weights["experts"], released.weights["mixer"]) == ("mxfp4", "fp8_block")
    assert released.activations == "fp8_block"


# --- quantization ---------------------------------------------------------------------------------------------------

ALL_FP8 = {"default": "bf16", "mixer": "fp8", "ffn": "fp8", "experts": "fp8", "shared_experts": "fp8"}


def test_fp8_leaves_head_embedding_and_router_in_16_bit(tmp_path: Path) -> None:
    model = load(tmp_path, {**DEEPSEEK, "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}})
    assert dict(model.weights) == ALL_FP8
    assert model.activations == "fp8"


def test_a_block_size_makes_fp8_the_format_with_a_scale_per_block(tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    model = load(tmp_path, {**DEEPSEEK, "quantization_config": quantization})
    assert dict(model.weights) == {role: "fp8_block" if dtype == "fp8" else dtype for role, dtype in ALL_FP8.items()}
    assert model.activations == "fp8_block"


def test_mxfp4_of_gpt_oss_reaches_the_experts_only(tmp_path: Path) -> None:
    model = load(tmp_path, GPT_OSS)
    assert dict(model.weights) == {"default": "bf16", "experts": "mxfp4"}
    assert model.activations == "bf16"


@pytest.mark.parametrize(
    "entries,mixer",
    [
        (["gate", "lm_head"], "fp8"),  # the gate of the router, not gate_proj
        ([f"model.layers.{index}.input_layernorm" for index in range(4)], "fp8"),
        (["self_attn"], "bf16"),
        (["model.layers.*.self_attn"], "bf16"),
        ([f"model.layers.{index}.self_attn*" for index in range(4)], "bf16"),
        ([f"model.language_model.layers.{index}.self_attn*" for index in range(4)], "bf16"),
        ([f"model.layers.{index}.self_attn.o_proj" for index in range(4)], "fp8"),  # one matrix of several
        (["re:.*self_attn.*"], "bf16"),
        ([f"mtp.layers.{index}.self_attn*" for index in range(4)], "fp8"),  # not the decoder's layers
    ],
)
def test_lists_of_modules_decide_the_role(entries: list[str], mixer: str, tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "modules_to_not_convert": entries}
    model = load(tmp_path, {**DEEPSEEK, "quantization_config": quantization})
    assert model.weights.get("mixer", "bf16") == mixer
    assert model.weights["experts"] == "fp8"


def test_compressed_tensors_ignore_attention_and_shared_experts(tmp_path: Path) -> None:
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "weights": {"num_bits": 4, "type": "int", "group_size": 32},
            }
        },
        "ignore": ["re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|down)_proj.*", "lm_head"],
    }
    model = load(tmp_path, {"model_type": "kimi_k25", "text_config": {**DEEPSEEK, "quantization_config": quantization}})
    assert dict(model.weights) == {"default": "bf16", "experts": "int4"}
    assert model.activations == "bf16"


def test_a_head_that_is_not_ignored_is_quantised_in_formats_that_take_every_linear_layer(tmp_path: Path) -> None:
    quantization: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": []}
    assert load(tmp_path, {**LLAMA, "quantization_config": quantization}).weights["head"] == "nvfp4"
    quantization["ignore"] = ["lm_head"]
    assert "head" not in load(tmp_path, {**LLAMA, "quantization_config": quantization}).weights


def test_nvfp4_of_gemma4_leaves_the_dense_block_and_states_the_cache(tmp_path: Path) -> None:
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
        "ignore": ["lm_head"]
        + [f"model.language_model.layers.{i}.{part}*" for i in range(4) for part in ("mlp", "router", "self_attn")],
    }
    model = load(tmp_path, {"model_type": "gemma4", "text_config": GEMMA4, "quantization_config": quantization})
    assert dict(model.weights) == {"default": "bf16", "experts": "nvfp4"}
    assert (model.activations, model.kv) == ("nvfp4", "fp8")


def test_mixed_precision_is_read_module_by_module(tmp_path: Path) -> None:
    layers: dict[str, Any] = {"lm_head": {"quant_algo": "FP8"}}
    for index in range(4):
        layers[f"model.layers.{index}.mlp.down_proj"] = {"quant_algo": "W4A16_NVFP4"}
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            layers[f"model.layers.{index}.self_attn.{name}"] = {"quant_algo": "FP8"}
    quantization = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    model = load(tmp_path, {**LLAMA, "quantization_config": quantization})
    assert dict(model.weights) == {"default": "bf16", "mixer": "fp8", "ffn": "nvfp4", "head": "fp8"}
    assert model.activations == "bf16"
    assert any("activations are bf16, fp8" in note for note in model.notes)


def test_roles_that_differ_by_layer_take_the_larger_part_and_say_so(tmp_path: Path) -> None:
    ignore = ["lm_head", "model.layers.0.mlp*"]
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ignore}
    model = load(tmp_path, {**LLAMA, "quantization_config": quantization})
    assert model.weights["ffn"] == "fp8"
    assert any("1 of 4 ffn matrices are not fp8" in note for note in model.notes)


def test_hf_quant_config_beside_a_file_that_says_nothing(tmp_path: Path) -> None:
    beside = {
        "producer": {"name": "modelopt"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head", "model.layers.*.self_attn*"],
        },
    }
    model = load(tmp_path, LLAMA, "Tiny-FP8", beside)
    assert dict(model.weights) == {"default": "bf16", "ffn": "fp8"}
    assert (model.kv, model.activations) == ("fp8", "fp8")


def test_hf_quant_config_adds_the_cache_to_what_the_file_says(tmp_path: Path) -> None:
    beside = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    model = load(tmp_path, {**LLAMA, "quantization_config": {"quant_method": "fp8"}}, "Tiny", beside)
    assert (model.weights["mixer"], model.kv) == ("fp8", "fp8")


def test_a_name_that_tells_of_a_missing_quantization_is_pointed_out(tmp_path: Path) -> None:
    assert any("hf_quant_config.json" in note for note in load(tmp_path, LLAMA, "Tiny-NVFP4").notes)
    assert not any("hf_quant_config.json" in note for note in load(tmp_path, LLAMA, "Tiny").notes)


@pytest.mark.parametrize(
    "quantization,named",
    [
        ({"quant_method": "quark"}, "quant_method"),
        ({"quant_method": None}, "quant_method"),
        ({"quant_method": "modelopt", "quant_algo": "FP3"}, "quant_algo"),
        ({"quant_method": "awq", "bits": 3}, "bits"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 2, "type": "int"}}}},
            "2 bits",
        ),
        ({"quant_method": "fp8", "modules_to_not_convert": [7]}, "'7' is not a module name"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:("]}, "not a regular expression"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:(a+)+$"]}, "too intricate"),
        ({"quant_method": "fp8", "kv_cache_quant_algo": "FP3"}, "kv_cache_quant_algo"),
        ("fp8", "quantization_config"),
    ],
)
def test_a_quantization_that_is_not_understood_is_refused(quantization: Any, named: str, tmp_path: Path) -> None:
    assert named in refused(tmp_path, {**LLAMA, "quantization_config": quantization})


@pytest.mark.parametrize("method,dtype", [("awq", "int4"), ("gptq", "int4")])
def test_weight_only_formats_keep_16_bit_activations(method: str, dtype: str, tmp_path: Path) -> None:
    model = load(tmp_path, {**LLAMA, "quantization_config": {"quant_method": method, "bits": 4}})
    assert (model.weights["mixer"], model.activations, "head" in model.weights) == (dtype, "bf16", False)


# --- files that are wrong -------------------------------------------------------------------------------------------


def test_infinity_is_harmless_where_no_dimension_is_read(tmp_path: Path) -> None:
    text = json.dumps(NEMOTRON)[:-1] + ', "time_step_limit": [0.0, Infinity], "time_step_max": NaN}'
    assert load(tmp_path, text).parameters == load(tmp_path, NEMOTRON).parameters


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", '"64"', "true", "NaN", "Infinity", "[]", "{}", "1e300", "1e18"])
def test_a_dimension_of_the_wrong_kind_is_refused_by_name(field: str, value: str, tmp_path: Path) -> None:
    text = json.dumps({key: entry for key, entry in LLAMA.items() if key != field})[:-1] + f', "{field}": {value}}}'
    assert f"{field}: " in refused(tmp_path, text)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_a_missing_dimension_is_named_with_its_place(field: str, tmp_path: Path) -> None:
    text = {key: value for key, value in LLAMA.items() if key != field}
    assert f"{field}: missing" in refused(tmp_path, text)
    if field != "num_hidden_layers":
        nested = {"model_type": "qwen3_vl", "text_config": text}
        assert f"text_config.{field}: missing" in refused(tmp_path, nested)


def test_every_problem_of_a_file_is_told_once(tmp_path: Path) -> None:
    message = refused(tmp_path, {**LLAMA, "num_hidden_layers": 0, "intermediate_size": None, "attention_bias": "no"})
    lines = message.splitlines()
    assert len(lines) == len(set(lines)) == 3
    assert all("config.json" in line for line in lines)


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "llama"', "[]", "null", "3", '"llama"', "[" * 100_000])
def test_a_broken_file_is_one_message(text: str, tmp_path: Path) -> None:
    refused(tmp_path, text)


@pytest.mark.parametrize(
    "fields,named",
    [
        ({"layer_types": "full_attention"}, "layer_types: expected a list"),
        ({"layer_types": [["full_attention"]] * 4}, "layer_types"),
        ({"layer_types": [True] * 4}, "layer_types"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"torch_dtype": "float12"}, "dtype"),
        ({"torch_dtype": {}}, "dtype"),
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of 5 heads"),
        ({"num_key_value_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert named in refused(tmp_path, {**LLAMA, **fields})


def test_numbers_without_end_are_refused_quickly(tmp_path: Path) -> None:
    started = time.monotonic()
    text = json.dumps({**LLAMA, "num_hidden_layers": 0})[:-1].replace('"num_hidden_layers": 0', '"num_hidden_layers": ')
    refused(tmp_path, text + "9" * 5000 + "}")
    assert "num_hidden_layers" in refused(tmp_path, {**LLAMA, "num_hidden_layers": 10**9})
    hostile = ["re:.*a.*b.*c"] * 64 + ["*a*b*c*d*e*f*g"] * 200
    quantization = {"quant_method": "fp8", "modules_to_not_convert": hostile}
    load(tmp_path, {**LLAMA, "num_hidden_layers": 100, "quantization_config": quantization})
    assert time.monotonic() - started < 20


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (mapping or list, key) below a tree."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


@pytest.mark.parametrize("name", FAMILY_FILES)
def test_a_file_with_any_entry_spoiled_is_read_or_is_one_message(name: str, tmp_path: Path) -> None:
    spoilers = ["null", "0", "-1", "1.5", "true", '"x"', "[]", "{}", "[null]", '[["x"]]', "NaN", "Infinity", "1e30"]
    text = json.dumps(FAMILY_FILES[name][0])
    outcomes = set()
    for number in range(len(places(json.loads(text)))):
        for spoiler in spoilers:
            config = json.loads(text)
            holder, key = places(config)[number]
            holder[key] = json.loads(spoiler)
            try:
                load(tmp_path, config)
                outcomes.add("read")
            except BadInput as error:
                outcomes.add("refused" if "config.json: " in str(error) else str(error))
    assert "refused" in outcomes
    assert outcomes <= {"read", "refused"}


# --- real files, where a folder of them is given --------------------------------------------------------------------

FOLDER = os.environ.get("COSTMODEL_HF_CONFIGS")
REAL = sorted(Path(FOLDER).rglob("*config.json")) if FOLDER else []
REAL = [path for path in REAL if not path.name.endswith("hf_quant_config.json")]


@pytest.mark.skipif(not FOLDER, reason="COSTMODEL_HF_CONFIGS is not set")
def test_every_real_file_is_read_or_refused_by_mechanism() -> None:
    assert REAL
    wrong = []
    for path in REAL:
        try:
            if load_architecture(str(path)).parameters < 10**8:
                wrong.append(f"{path.name}: too small")
        except BadInput as error:
            if "is not covered; nearest covered: " not in str(error):
                wrong.append(str(error))
    assert wrong == []


SIZES = {
    "MiniMax-M3": 426.2,
    "DeepSeek-V4-Flash": 284.3,
    "DeepSeek-V4-Pro": 1573.0,
    "MiniMax-M2.5": 228.7,
    "Qwen3-235B-A22B": 235.1,
    "Qwen3-30B-A3B": 30.53,
    "Qwen3-32B": 32.76,
    "Qwen3-8B": 8.19,
    "Qwen3-VL-8B": 8.19,
    "Qwen3.5-27B": 26.9,
    "MiMo-7B": 7.62,
    "DeepSeek-R1": 671.0,
    "gemma-4-26B": 25.2,
    "Llama-3.1-405B": 405.9,
    "Llama-3.1-8B": 8.03,
    "Kimi-K2-Instruct": 1026.4,
    "Kimi-K3": 2779.5,
    "GLM-5": 743.9,
    "Llama-3.1-70B": 70.55,
    "Nemotron-3-Nano": 31.58,
    "Nemotron-3-Super": 120.7,
    "Nemotron-3-Ultra": 549.3,
    "Qwen3.5-122B": 122.1,
    "gpt-oss-20b": 20.91,
}
"""Billions of parameters of released checkpoints, multi-token-prediction layers and vision towers left out."""


@pytest.mark.skipif(not FOLDER, reason="COSTMODEL_HF_CONFIGS is not set")
@pytest.mark.parametrize("part", SIZES)
def test_totals_of_real_files_are_those_of_the_checkpoints(part: str) -> None:
    paths = [path for path in REAL if part in path.name]
    if not paths:
        pytest.skip(f"no file of {part} in the folder")
    for path in paths:
        assert load_architecture(str(path)).parameters / 1e9 == pytest.approx(SIZES[part], rel=5e-3), path.name
