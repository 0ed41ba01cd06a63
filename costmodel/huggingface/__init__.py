"""A Hugging Face `config.json` as the mapping of an architecture file.

The decoder is found (`text_config` where it is one), its family is named by the inner model type, the outer one or the
class, and the family's reader turns fields into blocks and a list of layers. Nothing falls back to full attention: a
field about mixers that the reader did not look at is refused, and so is a mechanism that is not covered.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput, unknown
from costmodel.huggingface import hybrid, latent, linear, recurrent, searched, softmax, sparse
from costmodel.huggingface.decoder import FAMILIES, Decoder, Family
from costmodel.huggingface.fields import Fields
from costmodel.huggingface.quantization import formats
from costmodel.loading import Problems, read_mapping

__all__ = ["architecture_mapping", "hybrid", "latent", "linear", "recurrent", "searched", "softmax", "sparse"]

NOT_COVERED = {
    "zamba": ("attention blocks shared between layers, beside Mamba-1", "zamba2_shared, mamba1"),
    "gemma3n": ("keys and values shared between layers", "swa, gqa"),
    "gemma3n_text": ("keys and values shared between layers", "swa, gqa"),
    "recurrent_gemma": ("gated linear recurrence (RG-LRU)", "mamba2, swa"),
    "xlstm": ("matrix memory with exponential gates (mLSTM)", "gla, mamba2"),
    "hgrn2": ("gated linear recurrence with tied gates (HGRN2)", "gla"),
    "forgetting_transformer": ("softmax attention with a forget gate", "gqa"),
    "mesa_net": ("linear attention by conjugate gradients (MesaNet)", "deltanet, gdn"),
}
"""Model types whose mechanism is known and not modelled: (mechanism, nearest covered ones)."""

RECURRENT_KINDS = (
    "deltanet",
    "gated_conv",
    "gated_delta_product",
    "gdn",
    "gla",
    "jet",
    "kda",
    "lightning",
    "log_linear",
    "mamba1",
    "mamba2",
    "mamba3",
    "power",
    "retnet",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "ttt",
)
"""Mechanisms whose memory of the past has no longest context."""

WRAPPERS = ("text_config", "llm_config", "language_config")
LAYER_FIELDS = ("num_hidden_layers", "n_layers", "n_layer", "layers_block_type", "hybrid_override_pattern")
ENDINGS = ("forcausallm", "forconditionalgeneration", "formaskedlm", "modellm", "lmheadmodel", "model")
NUMBER_FORMAT = re.compile(r"nvfp4|mxfp4|fp8|int4|int8|awq|gptq", re.IGNORECASE)


def architecture_mapping(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The architecture file that a parsed `config.json` amounts to; `path` names it in messages.

    A ModelOpt `hf_quant_config.json` beside it is read too. Raises BadInput with every problem of the file.
    """
    problems = Problems(str(path))
    inner, where = decoder_part(config)
    reader = _family(config, inner, path)
    f = Fields(inner, problems, where)
    decoder = reader.read(f)
    _raise(problems)
    unread = f.unread()
    if unread:
        shown = ", ".join(f"{where}{name}" for name in unread)
        raise BadInput(f"{path}: {shown}: not known in a model of this type; its layers may not be what they seem")
    hidden = f.whole("hidden_size", "d_model", most=10**7)
    vocabulary = decoder.vocabulary or f.whole("vocab_size", most=10**9)
    stated = f.maybe("max_position_embeddings", "max_sequence_length", "seq_length", "context_length")
    attends = any(block["kind"] not in RECURRENT_KINDS for block in decoder.mixers.values())
    found = formats(problems, config, inner, _beside(path), decoder)
    _raise(problems)
    name = model_name(path)
    runs = [([_entry(pair[0]), pair[1]], len(list(run))) for pair, run in itertools.groupby(decoder.layers)]
    mapping: dict[str, Any] = {
        "name": name,
        "n_layers": len(decoder.layers),
        "d_model": hidden,
        "vocab_size": vocabulary,
        "tied_embeddings": _tied(problems, config, inner, reader),
        "max_context": stated if attends else None,  # a recurrence has no limit
        "mixers": decoder.mixers,
        "ffns": decoder.ffns,
        "layers": [{"repeat": repeat, "blocks": [pair]} for pair, repeat in runs],
        "mtp": _prediction(f, decoder),
        "weights": found.weights,
        "sandwich_norm": decoder.sandwich_norm,
        "generation": decoder.generation,
        "source": [f"Hugging Face config.json: {path.name}"],
        "notes": [*decoder.notes, *_remarks(f, config), *found.notes],
    }
    mapping |= decoder.top
    mapping |= {key: value for key, value in (("kv", found.kv), ("activations", found.activations)) if value}
    if list(found.weights) == ["default"] and NUMBER_FORMAT.search(name):
        mapping["notes"].append(
            "the name tells of quantised weights, the file does not; is hf_quant_config.json missing?"
        )
    _raise(problems)
    return mapping


def _entry(mixers: str | tuple[str, ...] | None) -> str | list[str] | None:
    """The mixer entry of a layer as files write it."""
    return list(mixers) if isinstance(mixers, tuple) else mixers


def _prediction(f: Fields, decoder: Decoder) -> dict[str, Any] | None:
    """The multi-token-prediction layers: those that the family names, else the model's last mixer and FFN."""
    extra = f.extra_layers()
    if not extra:
        return None
    last = [[pair[part] for pair in decoder.layers if isinstance(pair[part], str)][-1:] for part in (0, 1)]
    mixer, ffn = decoder.mtp or (next(iter(last[0]), None), next(iter(last[1]), None))
    return {"layers": extra, "mixer": mixer, "ffn": ffn}


def _raise(problems: Problems) -> None:
    """Raise what was found, each problem once."""
    problems.found = list(dict.fromkeys(problems.found))
    problems.raise_if_any()


def decoder_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The mapping that describes the decoder, and how to name its place. A stub does not shadow the top level.

    >>> decoder_part({"text_config": {"num_hidden_layers": 2}})[1], decoder_part({"text_config": {}, "n_layer": 2})[1]
    ('text_config.', '')
    """
    for name in WRAPPERS:
        part = config.get(name)
        if isinstance(part, dict) and any(part.get(field) is not None for field in LAYER_FIELDS):
            return part, f"{name}."
    return config, ""


def _family(config: Mapping[str, Any], inner: Mapping[str, Any], path: Path) -> Family:
    """The reader, by the inner model type, the outer one, or the class."""
    classes = config.get("architectures")
    first_class = classes[:1] if isinstance(classes, list) else []
    named = [inner.get("model_type"), config.get("model_type"), *first_class]
    types = [value for value in named if isinstance(value, str) and value]
    if "ssm_cfg" in config and not types:
        types = ["mamba_ssm"]
    known = {_plain(model_type): model_type for model_type in (*NOT_COVERED, *FAMILIES)}
    for model_type in types:
        match = known.get(_plain(model_type))
        if match in NOT_COVERED:
            mechanism, nearest = NOT_COVERED[match]
            raise BadInput(f"{path}: mechanism {mechanism!r} of {match} is not covered; nearest covered: {nearest}")
        if match is not None:
            return FAMILIES[match]
    if not types:
        raise BadInput(f"{path}: model_type: missing, and so is architectures; one must name the family of the model")
    raise BadInput(f"{path}: model_type: {unknown('model type', types[0], FAMILIES)}")


def _plain(model_type: str) -> str:
    """A model type or class name without what differs between the two spellings.

    >>> _plain("Qwen3_5MoeForConditionalGeneration") == _plain("qwen3_5_moe")
    True
    """
    name = model_type.lower()
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return name.replace("_", "")


def _tied(problems: Problems, config: Mapping[str, Any], inner: Mapping[str, Any], reader: Family) -> bool:
    names = ("tie_word_embeddings", "tie_embeddings", "tie_embedding", "weight_tying")
    for values in (inner, config):
        f = Fields(values, problems)
        if f.get(*names)[1] is not None:
            return f.flag(next(name for name in names if values.get(name) is not None))
    return reader.tied


def _remarks(f: Fields, config: Mapping[str, Any]) -> list[str]:
    """What the file describes and the model leaves out."""
    towers = [name for name in ("vision_config", "audio_config") if config.get(name)]
    found = [f"{name}: only the language part is modelled" for name in towers]
    extra = f.extra_layers()
    if extra:
        found.append(f"multi-token-prediction layers ({extra}) are in no total")
    return found


def model_name(path: Path) -> str:
    """The name that the file, its folder or the cache folder of huggingface_hub gives the model.

    >>> model_name(Path("org--Model-8B_config.json")), model_name(Path("Model-8B/config.json"))
    ('Model-8B', 'Model-8B')
    >>> model_name(Path("models--org--Model-8B/snapshots/0123abcd/config.json"))
    'Model-8B'
    """
    stem = path.stem.removesuffix("config").rstrip("_-.")
    if not stem:
        cached = [part for part in path.parts if part.startswith("models--")]
        stem = cached[-1] if cached else path.resolve().parent.name
    return stem.rpartition("--")[2] or "model"


def _beside(path: Path) -> dict[str, Any] | None:
    """The ModelOpt file that belongs to this one, where there is one."""
    if not path.name.endswith("config.json"):
        return None
    other = path.with_name(path.name.removesuffix("config.json") + "hf_quant_config.json")
    return read_mapping(other) if other != path and other.is_file() else None
