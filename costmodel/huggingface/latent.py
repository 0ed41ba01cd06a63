"""Families with latent attention: DeepSeek-V2 and V3, Kimi-K2, and those that select tokens (V3.2, GLM-5).

Sources: transformers, models/{deepseek_v2, deepseek_v3, glm_moe_dsa}; deepseek-ai/DeepSeek-V3.2-Exp,
inference/model.py; vllm, models/deepseek_v32 (which layers run the indexer).
"""

from costmodel.huggingface.decoder import (
    Block,
    Blocks,
    Decoder,
    dense_or_sparse,
    experts,
    family,
    shared_experts,
    sparse_layers,
)
from costmodel.huggingface.fields import Fields, chosen


def latent_attention(f: Fields, *, q_lora_may_be_absent: bool = False) -> Block:
    """Multi-head latent attention. `head_dim` and `num_key_value_heads` say nothing about it and are not read."""
    if "q_lora_rank" not in f.values and not q_lora_may_be_absent:
        f.problems.add(f"{f.where}q_lora_rank: missing; a whole number, or null for a direct projection")
    return {
        "kind": "mla",
        "heads": f.whole("num_attention_heads"),
        "q_lora": f.maybe("q_lora_rank"),
        "kv_lora": f.whole("kv_lora_rank"),
        "d_nope": f.whole("qk_nope_head_dim"),
        "d_rope": f.whole("qk_rope_head_dim"),
        "d_v": f.whole("v_head_dim"),
    }


def latent_decoder(f: Fields, mixers: Blocks, names: list[str]) -> Decoder:
    """DeepSeek's layers: dense blocks in front, experts and shared experts behind."""
    moe = experts(f, shared=shared_experts(f))
    ffns, layers = dense_or_sparse(f, names, sparse_layers(f, len(names)), moe)
    return Decoder(mixers, ffns, layers)


@family("deepseek_v2", "deepseek_v3", "kimi_k2", "kimi_k25")
def deepseek(f: Fields) -> Decoder:
    """DeepSeek-V2 and V3; a file that also has an indexer is V3.2, whatever it calls itself."""
    if f.get("index_topk")[1] is not None:
        return sparse_deepseek(f)
    return latent_decoder(f, {"attn": latent_attention(f)}, ["attn"] * f.layers())


@family("deepseek_v32", "glm_moe_dsa")
def sparse_deepseek(f: Fields) -> Decoder:
    """Latent attention over the tokens that an indexer selects, in its own layer or in an earlier one."""
    indexer = {
        "heads": f.whole("index_n_heads"),
        "d": f.whole("index_head_dim"),
        "top_k": f.whole("index_topk"),
        "dtype": "fp8",
    }
    own = latent_attention(f) | {"kind": "dsa", "indexer": indexer}
    runs = indexed_layers(f, f.layers())
    mixers = {"attn": own}
    if not all(runs):
        mixers["attn_shared_index"] = own | {"indexer": indexer | {"runs": False}}
    return latent_decoder(f, mixers, ["attn" if here else "attn_shared_index" for here in runs])


def indexed_layers(f: Fields, layers: int) -> list[bool]:
    """Which layers run the indexer: a list of words, a pattern of letters, or the first ones and every n-th."""
    words = f.per_layer("indexer_types", layers, {"full": True, "shared": False})
    if words is not None:
        return words
    place, pattern = f.get("index_topk_pattern")
    if isinstance(pattern, str):
        letters = f.translated(place, pattern[:layers], {"F": True, "S": False}) or []
        if len(letters) != layers:
            f.problems.add(f"{place}: {len(pattern)} letters for {layers} layers")
            return [True] * layers
        return letters
    every = f.whole("index_topk_freq", default=1)
    offset = f.whole("index_skip_topk_offset", default=2, least=0)
    return chosen(layers, lambda index: max(index - offset + 1, 0) % every == 0)
