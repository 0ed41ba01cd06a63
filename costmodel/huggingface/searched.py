"""Models whose layers a search has cut one by one: Nemotron-51B, Super and Ultra (DeciLM), by `block_configs`.

Source: nvidia/Llama-3_1-Nemotron-51B-Instruct, block_config.py and modeling_decilm.py; arXiv:2411.19146 (Puzzle).
"""

from typing import Any

from costmodel.huggingface.decoder import Block, Blocks, Decoder, LayerPair, activation, family, head_width
from costmodel.huggingface.fields import Fields
from costmodel.huggingface.linear import times


@family("nemotron-nas", "decilm")
def nemotron_nas(f: Fields) -> Decoder:
    """Each entry names a layer's queries per key head and its width, or says that the part is a matrix or absent."""
    layers = f.layers()
    place, entries = f.get("block_configs")
    if not isinstance(entries, list) or len(entries) != layers:
        found = f"{len(entries)} entries" if isinstance(entries, list) else type(entries).__name__
        f.problems.add(f"{place}: expected one entry for each of {layers} layers, found {found}")
        return Decoder({}, {}, [])
    mixers: Blocks = {}
    ffns: Blocks = {}
    pairs: list[LayerPair] = []
    for index, entry in enumerate(entries):
        layer = Fields(f.problems.mapping(entry, f"{place}[{index}]"), f.problems, f"{place}[{index}].")
        mixer, replaced = _attention(f, layer.section("attention"), mixers)
        ffn = _feed_forward(f, layer.section("ffn"), ffns)
        if replaced:
            ffns["linear"] = {"kind": "linear"}
            pairs += [(None, "linear")] + ([(None, ffn)] if ffn else [])
        elif mixer or ffn:
            pairs.append((mixer, ffn))
    note = (
        f"{layers} layers; parts that the search has removed are no layers here, and matrices in place of attention are"
    )
    return Decoder(mixers, ffns, pairs, [note])


def _attention(f: Fields, part: Fields, mixers: Blocks) -> tuple[str | None, bool]:
    """The attention block of a layer by name, and whether a matrix stands in its place."""
    if part.flag("no_op"):
        return None, False
    if part.flag("replace_with_linear"):
        return None, True
    heads = f.whole("num_attention_heads")
    group = part.whole("n_heads_in_group")
    if heads % group and not f.problems.found:
        f.problems.add(f"{part.where}n_heads_in_group: {heads} heads are not a multiple of {group}")
    keys = max(heads // group, 1)
    block: Block = {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": keys,
        "head_dim": f.maybe("head_dim") or head_width(f, heads),
    }
    mixers[f"attn_kv{keys}"] = block
    return f"attn_kv{keys}", False


def _feed_forward(f: Fields, part: Fields, ffns: Blocks) -> str | None:
    """The feed-forward block of a layer by name: 2/3 · ffn_mult · width, rounded up to 256."""
    if part.flag("no_op"):
        return None
    if part.flag("replace_with_linear"):
        ffns["linear"] = {"kind": "linear"}
        return "linear"
    factor: Any = part.get("ffn_mult")[1]
    if factor is None:
        f.problems.add(f"{part.where}ffn_mult: missing; a number is needed")
    inner = -(-int(2 * times(part, "ffn_mult", 1, f.whole("hidden_size")) / 3) // 256) * 256
    ffns[f"ffn_{inner}"] = {"kind": "swiglu", "d_ff": inner} | activation(f)
    return f"ffn_{inner}"
