"""Families of linear attention and recurrences in the formats of fla, of transformers and of their authors: GLA,
RetNet, DeltaNet, Gated DeltaNet and its products, KDA, log-linear Mamba-2, Mamba, RWKV-4 to 6, TTT.

Sources: fla, models/{gla, retnet, delta_net, gated_deltanet, gated_deltaproduct, kda, rwkv6, log_linear_mamba2};
transformers, models/{mamba, falcon_mamba, rwkv}; BlinkDL/RWKV-LM; test-time-training/ttt-lm-pytorch, ttt.py.
"""

from costmodel.huggingface.decoder import Block, Blocks, Decoder, LayerPair, activation, family
from costmodel.huggingface.fields import Fields


def fla_feed_forward(f: Fields, ratio: int = 4) -> Block:
    """fla's gated block: two thirds of hidden_ratio · width, rounded up to 256, where the file gives no width."""
    inner = f.maybe("intermediate_size")
    hidden = f.whole("hidden_size")
    place, stated = f.get("hidden_ratio")
    if stated is not None and (isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 < stated < 100):
        f.problems.add(f"{place}: {str(stated)[:60]!r} is not a number between 0 and 100")
        stated = None
    factor = ratio if stated is None else stated
    return {"kind": "swiglu", "d_ff": inner or -(-int(hidden * factor * 2 / 3) // 256) * 256} | activation(f)


def times(f: Fields, name: str, default: float, width: int) -> int:
    """A width given as a factor of another one."""
    place, value = f.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1000:
        f.problems.add(f"{place}: {str(value)[:60]!r} is not a number between 0 and 1000")
        return 1
    return max(int(width * value), 1)


def fla_decoder(f: Fields, name: str, block: Block, ratio: int = 4) -> Decoder:
    """Layers of one mechanism, some of them with softmax attention where `attn` lists them."""
    layers = f.layers()
    ffn = fla_feed_forward(f, ratio)
    listed: set[int] = set()
    mixers: Blocks = {name: block}
    if f.get("attn")[1] is not None:
        attn = f.section("attn")
        listed = attn.positions("layers", layers)
        heads = attn.whole("num_heads")
        mixers["attn"] = {
            "kind": "gqa",
            "heads": heads,
            "kv_heads": attn.whole("num_kv_heads", default=heads),
            "head_dim": max(f.whole("hidden_size") // heads, 1),
            "qkv_bias": attn.flag("qkv_bias"),
        }
        window = attn.maybe("window_size")
        if window is not None:
            mixers["attn"] |= {"kind": "swa", "window": window}
    pairs: list[LayerPair] = [("attn" if index in listed else name, "ffn") for index in range(layers)]
    used = {mixer for mixer, _ in pairs}
    return Decoder({key: value for key, value in mixers.items() if key in used}, {"ffn": ffn}, pairs)


def one_head_each(f: Fields, name: str, heads: int) -> None:
    """Refuses keys and values that heads share."""
    given = f.maybe(name)
    if given not in (None, heads) and not f.problems.found:
        f.problems.add(f"{f.where}{name}: {given} for {heads} heads is not covered; allowed: null or {heads}")


def without(f: Fields, name: str, what: str) -> None:
    """Refuses a part that the mechanism does not have."""
    if f.flag(name):
        f.problems.add(f"{f.where}{name}: {what} are not covered in a model of this type; allowed: false")


def short_convolution(f: Fields) -> int:
    """Taps of the short convolutions, without which these models are not covered."""
    if not f.flag("use_short_conv", True):
        f.problems.add(f"{f.where}use_short_conv: layers without short convolutions are not covered; allowed: true")
    return f.whole("conv_size", default=4)


@family("gated_deltanet")
def gated_deltanet(f: Fields) -> Decoder:
    """Gated DeltaNet in fla's format."""
    heads, width = f.whole("num_heads"), f.whole("head_dim", default=256)
    block: Block = {
        "kind": "gdn",
        "k_heads": heads,
        "v_heads": f.whole("num_v_heads", default=heads),
        "d_k": width,
        "d_v": times(f, "expand_v", 2, width),
        "conv": short_convolution(f),
    }
    if not f.flag("use_gate", True):
        f.problems.add(f"{f.where}use_gate: layers without an output gate are not covered; allowed: true")
    return fla_decoder(f, "gdn", block)


@family("kda")
def kda(f: Fields) -> Decoder:
    """Kimi Delta Attention in fla's format."""
    heads, width = f.whole("num_heads"), f.whole("head_dim", default=128)
    one_head_each(f, "num_v_heads", heads)
    values = times(f, "expand_v", 1, width)
    block: Block = {
        "kind": "kda",
        "heads": heads,
        "d_k": width,
        "d_v": values,
        "conv": short_convolution(f),
        "decay_rank": values,
        "gate_rank": values,
    }
    return fla_decoder(f, "kda", block)


@family("log_linear_mamba2")
def log_linear_mamba2(f: Fields) -> Decoder:
    """Mamba-2 with a state per level, in fla's format: no feed-forward, as in the Mamba-2 of the same library."""
    block: Block = {
        "kind": "log_linear",
        "base": "mamba2",
        "k_heads": f.whole("n_groups", default=1),
        "v_heads": f.whole("num_heads", default=64),
        "d_k": f.whole("state_size", default=128),
        "d_v": f.whole("head_dim", default=64),
        "conv": f.whole("conv_kernel", default=4),
        "chunk": f.whole("chunk_size", default=64),
    }
    return Decoder({"log_linear": block}, {}, [("log_linear", None)] * f.layers())


@family("gla")
def gla(f: Fields) -> Decoder:
    """Gated linear attention in fla's format; the rank of its decay has no field."""
    heads, width = f.whole("num_heads", default=4), f.whole("hidden_size")
    one_head_each(f, "num_kv_heads", heads)
    without(f, "use_short_conv", "short convolutions")
    block: Block = {
        "kind": "gla",
        "heads": heads,
        "d_k": max(times(f, "expand_k", 0.5, width) // heads, 1),
        "d_v": max(times(f, "expand_v", 1, width) // heads, 1),
    }
    return fla_decoder(f, "gla", block)


@family("retnet")
def retnet(f: Fields) -> Decoder:
    """RetNet in fla's format: values twice as wide as keys, a feed-forward of ratio 2."""
    heads, width = f.whole("num_heads", default=8), f.whole("hidden_size")
    one_head_each(f, "num_kv_heads", heads)
    without(f, "use_short_conv", "short convolutions")
    block: Block = {
        "kind": "retnet",
        "heads": heads,
        "d_k": max(times(f, "expand_k", 1, width) // heads, 1),
        "d_v": max(times(f, "expand_v", 2, width) // heads, 1),
    }
    return fla_decoder(f, "retnet", block, ratio=2)


@family("delta_net")
def delta_net(f: Fields) -> Decoder:
    """DeltaNet in fla's format."""
    heads, width = f.whole("num_heads", default=16), f.whole("hidden_size")
    block: Block = {
        "kind": "deltanet",
        "heads": heads,
        "d_k": max(times(f, "expand_k", 1, width) // heads, 1),
        "d_v": max(times(f, "expand_v", 1, width) // heads, 1),
        "conv": short_convolution(f),
        "output_gate": f.flag("use_gate"),
    }
    return fla_decoder(f, "deltanet", block)


@family("gated_deltaproduct")
def gated_deltaproduct(f: Fields) -> Decoder:
    """Gated DeltaProduct in fla's format."""
    width = f.whole("head_dim", default=256)
    block: Block = {
        "kind": "gated_delta_product",
        "heads": f.whole("num_heads", default=6),
        "d_k": width,
        "d_v": times(f, "expand_v", 2, width),
        "householder": f.whole("num_householder", default=1),
        "conv": short_convolution(f),
        "forget_gate": f.flag("use_forget_gate"),
    }
    if not f.flag("use_output_gate", True):
        f.problems.add(f"{f.where}use_output_gate: layers without an output gate are not covered; allowed: true")
    return fla_decoder(f, "gated_delta_product", block)


def rwkv_decoder(f: Fields, name: str, block: Block, ratio: float) -> Decoder:
    """Time mixes and channel mixes with receptance; the inner width is a multiple of 32 where the file gives none."""
    width = f.whole("hidden_size")
    inner = f.maybe("intermediate_size") or int(width * ratio) // 32 * 32
    ffn: Block = {"kind": "rwkv_cmix", "d_ff": max(inner, 1), "receptance": True}
    return Decoder({name: block}, {"cmix": ffn}, [(name, "cmix")] * f.layers())


@family("rwkv")
def rwkv4(f: Fields) -> Decoder:
    """RWKV-4, in the format of transformers."""
    inner = f.maybe("attention_hidden_size") or f.whole("hidden_size")
    return rwkv_decoder(f, "rwkv4", {"kind": "rwkv4", "d_inner": inner}, ratio=4)


def rwkv_heads(f: Fields) -> tuple[int, int]:
    """Number and width of the heads. `num_attention_heads` holds the width in some files and is not read."""
    width, head = f.maybe("attention_hidden_size") or f.whole("hidden_size"), f.whole("head_size", default=64)
    if width % head and not f.problems.found:
        f.problems.add(f"{f.where}head_size: the width {width} is not a multiple of {head}")
    return max(width // head, 1), head


@family("rwkv5")
def rwkv5(f: Fields) -> Decoder:
    """RWKV-5, in the format of its authors."""
    heads, width = rwkv_heads(f)
    return rwkv_decoder(f, "rwkv5", {"kind": "rwkv5", "heads": heads, "head_dim": width}, ratio=3.5)


@family("rwkv6")
def rwkv6(f: Fields) -> Decoder:
    """RWKV-6: in fla's format with heads and ranks, in its authors' format with ranks that follow from the width."""
    width = f.whole("hidden_size")
    if f.get("num_heads")[1] is None:
        heads, head = rwkv_heads(f)
        mix, decay = (64, 128) if width == 4096 else (32, 64)
    else:
        heads = f.whole("num_heads")
        keys, values = times(f, "expand_k", 0.5, width), times(f, "expand_v", 1, width)
        if (keys != width or values != width) and not f.problems.found:
            f.problems.add(f"{f.where}expand_k, expand_v: heads narrower than the model are not covered; allowed: 1")
        head = max(width // heads, 1)
        mix, decay = f.whole("proj_low_rank_dim", default=32), f.whole("gate_low_rank_dim", default=64)
    block: Block = {"kind": "rwkv6", "heads": heads, "head_dim": head, "mix_lora": mix, "decay_lora": decay}
    return rwkv_decoder(f, "rwkv6", block, ratio=3.5)


@family("ttt", tied=True)
def ttt(f: Fields) -> Decoder:
    """TTT-Linear, in the format of its authors; with a shared query and key matrix both have convolutions."""
    if f.word("ttt_layer_type", default="linear") != "linear":
        f.problems.add(f"{f.where}ttt_layer_type: a state that is not a linear model is not covered; allowed: linear")
    without(f, "pre_conv", "convolutions before the layer")
    heads, width = f.whole("num_attention_heads"), f.whole("hidden_size")
    taps = f.whole("conv_kernel", default=4)
    block: Block = {
        "kind": "ttt",
        "heads": heads,
        "head_dim": max(width // heads, 1),
        "mini_batch": f.whole("mini_batch_size", default=16),
        "conv": taps if f.flag("share_qk") else None,
        "output_gate": f.flag("use_gate"),
    }
    ffn: Block = {"kind": "swiglu", "d_ff": f.whole("intermediate_size")} | activation(f)
    return Decoder({"ttt": block}, {"ffn": ffn}, [("ttt", "ffn")] * f.layers())
