"""What a family's reader returns, the table of readers, and the blocks that many families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodel.huggingface.fields import MAX_LAYERS, Fields, chosen

Block = dict[str, Any]
Blocks = dict[str, Block]
LayerPair = tuple[str | tuple[str, ...] | None, str | None]
"""A mixer (or several side by side) and an FFN."""


@dataclass(slots=True)
class Decoder:
    """Named blocks and the list of layers, as in an architecture file.

    paths: the linear layers that stand for a role in the lists of a quantization, where they are not the usual ones.
    vocabulary: rows of the embedding, where that is not `vocab_size`.
    mtp: mixer and FFN of the multi-token-prediction layers, where they are not those of the last layer.
    top: further entries of the architecture file.
    """

    mixers: Blocks
    ffns: Blocks
    layers: list[LayerPair]
    notes: list[str] = field(default_factory=list)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sandwich_norm: bool = False
    generation: str = "autoregressive"
    vocabulary: int | None = None
    mtp: LayerPair | None = None
    top: dict[str, Any] = field(default_factory=dict)


Reader = Callable[[Fields], Decoder]


@dataclass(frozen=True, slots=True)
class Family:
    """The reader of some model types, and whether their class ties the embeddings when the file does not say."""

    read: Reader
    tied: bool


FAMILIES: dict[str, Family] = {}


def family(*model_types: str, tied: bool = False) -> Callable[[Reader], Reader]:
    """Enter a reader under these model types."""

    def enter(read: Reader) -> Reader:
        for model_type in model_types:
            FAMILIES[model_type] = Family(read, tied)
        return read

    return enter


def attention(f: Fields, **properties: bool) -> Block:
    """A softmax layer; properties that are false are left out."""
    heads = f.whole("num_attention_heads", "n_heads")
    width = f.maybe("head_dim") or head_width(f, heads)
    block: Block = {"kind": "gqa", "heads": heads, "kv_heads": kv_heads(f, heads), "head_dim": width}
    return block | {name: True for name, value in properties.items() if value}


def kv_heads(f: Fields, heads: int) -> int:
    """Key heads; without the field every query head has its own."""
    return f.whole("num_key_value_heads", "n_kv_heads", default=heads)


def head_width(f: Fields, heads: int) -> int:
    """hidden_size / heads, which holds only where the file gives no width."""
    hidden = f.whole("hidden_size", "d_model")
    if hidden % heads and not f.problems.found:
        f.problems.add(f"{f.where}head_dim: missing, and hidden_size {hidden} is not a multiple of {heads} heads")
    return max(hidden // heads, 1)


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "geglu",
    "gelu_new": "geglu",
    "gelu_pytorch_tanh": "geglu",
    "relu": "relu",
    "relu2": "relu2",
    "situ": "situ",
    "swigluoai": "swigluoai",
}


def activation(f: Fields) -> Block:
    """The activation of a gated block, left out where it is SiLU."""
    word = f.word("hidden_activation", "hidden_act", default="silu", known=tuple(ACTIVATIONS))
    act = ACTIVATIONS[word]
    return {} if act == "silu" else {"act": act}


def feed_forward(f: Fields, *widths: str, bias: bool = False) -> Block:
    """A gated dense block whose width stands under one of these names (`intermediate_size`)."""
    block: Block = {"kind": "swiglu", "d_ff": f.whole(*(widths or ("intermediate_size",)))}
    return block | activation(f) | ({"bias": True} if bias else {})


EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_top_k")


def experts(f: Fields, *widths: str, **properties: Any) -> Block:
    """A mixture of experts; the expert width stands under one of these names (`moe_intermediate_size`)."""
    block: Block = {
        "kind": "moe",
        "experts": f.whole(*EXPERTS),
        "top_k": f.whole(*PER_TOKEN),
        "d_ff": f.whole(*(widths or ("moe_intermediate_size",))),
    }
    groups = f.whole("n_group", "num_expert_group", default=1)
    if groups > 1:
        block |= {"expert_groups": groups, "top_expert_groups": f.whole("topk_group", default=groups)}
    return block | activation(f) | {name: value for name, value in properties.items() if value}


def shared_experts(f: Fields) -> int:
    """How many shared experts of the routed ones' width; null means none."""
    return f.whole("n_shared_experts", "num_shared_experts", default=0, least=0)


def sparse_layers(f: Fields, layers: int) -> list[bool]:
    """Which layers have experts: a list of words or of 0 and 1, a number of dense layers in front, every n-th layer."""
    words = f.per_layer("mlp_layer_types", layers, {"dense": False, "sparse": True})
    if words is not None:
        return words
    if isinstance(f.get("moe_layer_freq")[1], list):
        return f.per_layer("moe_layer_freq", layers, {0: False, 1: True}) or [True] * layers
    dense = f.whole("first_k_dense_replace", default=0, least=0, most=MAX_LAYERS)
    every = f.whole("moe_layer_freq", default=1)
    return chosen(layers, lambda index: index >= dense and index % every == 0)


def dense_or_sparse(
    f: Fields, mixers: Sequence[str], sparse: Sequence[bool], moe: Block
) -> tuple[Blocks, list[LayerPair]]:
    """The FFN blocks that occur, and the layers: each mixer with experts or a dense block."""
    ffns: Blocks = {}
    if not all(sparse):
        ffns["ffn"] = feed_forward(f)
    if any(sparse):
        ffns["moe"] = moe
    return ffns, [(name, "moe" if has_experts else "ffn") for name, has_experts in zip(mixers, sparse, strict=True)]


def with_window(f: Fields, block: Block, sliding: Sequence[bool]) -> tuple[Blocks, list[str]]:
    """Full and sliding-window layers of the same dimensions: the blocks that occur, and the name for each layer."""
    if not any(sliding):
        return {"attn": block}, ["attn"] * len(sliding)
    local = {**block, "kind": "swa", "window": f.whole("sliding_window", "sliding_window_size")}
    if all(sliding):
        return {"attn": local}, ["attn"] * len(sliding)
    return {"swa": local, "full": block}, ["swa" if is_local else "full" for is_local in sliding]


ATTENTION_WORDS = {"sliding_attention": True, "swa": True, "full_attention": False, "attention": False, "attn": False}


def sliding_layers(f: Fields, layers: int, rule: Callable[[int], bool]) -> list[bool]:
    """Which layers have a window: `layer_types` where the file has it, else the family's rule."""
    words = f.per_layer("layer_types", layers, ATTENTION_WORDS)
    return chosen(layers, rule) if words is None else words
