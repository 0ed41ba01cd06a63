"""Reading a model: a YAML file or a Hugging Face `config.json` to an `Architecture`, strictly and with suggestions."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from costmodel.architecture import Architecture, Block, HyperConnections, Mixers, MultiTokenPrediction, branches
from costmodel.dims import fields_by_name, is_required
from costmodel.dtypes import BYTES
from costmodel.errors import BadInput, unknown
from costmodel.ffns import ffn
from costmodel.loading import Problems, find_file, read_mapping
from costmodel.mixers import mixer, names
from costmodel.settings import apply_settings

_KEYS = (
    "name",
    "hf_id",
    "family",
    "n_layers",
    "d_model",
    "vocab_size",
    "tied_embeddings",
    "max_context",
    "mixers",
    "ffns",
    "layers",
    "layer_pattern",
    "weights",
    "kv",
    "activations",
    "sandwich_norm",
    "hyper_connections",
    "mtp",
    "generation",
    "params_published_b",
    "params_from_dims_b",
    "notes",
    "unverified",
    "source",
)
_REQUIRED = ("name", "d_model", "vocab_size", "layers")
GENERATIONS = ("autoregressive", "diffusion", "block-diffusion")
ROLES = ("default", "mixer", "ffn", "experts", "shared_experts", "head", "embedding", "router")
MAX_LAYERS = 10_000


def load_architecture(text: str, settings: Sequence[str] = ()) -> Architecture:
    """The model that a name, a unique prefix, a YAML file or a Hugging Face `config.json` describes.

    settings are texts such as "mixers.kda.heads=16". Raises BadInput with every problem of the file.
    """
    path = find_file(text, "architectures", "architecture")
    if os.path.isdir(path) and (path / "config.json").is_file():
        path = path / "config.json"
    raw = read_mapping(path)
    name = path.stem
    if path.suffix == ".json":
        from costmodel.huggingface import architecture_mapping

        raw = architecture_mapping(raw, path)
        name = str(raw.get("name", name))
    if settings:
        apply_settings(raw, settings, "", text, quantity=setting_value, extra=_absent_fields)
    return architecture_from_mapping(raw, str(path), name)


def setting_value(path: str, old: Any, text: str) -> Any:
    """The new value of a `--set`: a number, true, false, null or a word; `2x` scales a number."""
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if text.endswith("x") and isinstance(old, int) and text[:-1].replace(".", "", 1).isdigit():
        scaled = old * float(text[:-1])
        return int(scaled) if scaled.is_integer() else scaled
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _absent_fields(raw: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Paths of the fields that a block has but the file does not write, so that `--set` reaches them."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for section, find in (("mixers", mixer), ("ffns", ffn)):
        for name, fields in (raw.get(section) or {}).items():
            if not isinstance(fields, dict):
                continue
            module = _module(find, section, fields)
            for field in fields_by_name(module.Dims) if module else ():
                outer, dot, inner = field.partition(".")
                if dot:
                    holder = fields.setdefault(outer, {}) if isinstance(fields.get(outer, {}), dict) else {}
                    found[f"{section}.{name}.{field}"] = (holder, inner)
                else:
                    found[f"{section}.{name}.{field}"] = (fields, field)
    for key in ("sandwich_norm", "kv"):
        if key not in raw:
            found[key] = (raw, key)
    return found


def _module(find: Any, section: str, fields: Mapping[str, Any]) -> Any:
    """The module of a block's kind, None when unknown.

    A mechanism may say that it refines another by a field (a softmax layer with a window is the
    sliding-window mechanism, however its file spells it): `REFINES = ("gqa", "window")`.
    """
    kind = fields.get("kind")
    try:
        module = find(kind) if isinstance(kind, str) else None
    except BadInput:
        return None
    if module is None or section != "mixers":
        return module
    known = {"kind", "head_dim", *(name.partition(".")[0] for name in fields_by_name(module.Dims))}
    extra = {(module.NAME, key) for key, value in fields.items() if key not in known and value is not None}
    if extra:
        for candidate in map(find, names()):
            if getattr(candidate, "REFINES", None) in extra:
                return candidate
    return module


def architecture_from_mapping(raw: Mapping[str, Any], place: str, name: str) -> Architecture:
    """A model from the mapping of its file. Raises BadInput with every problem found."""
    problems = Problems(place)
    problems.unknown_keys(raw, _KEYS)
    for key in _REQUIRED:
        if key not in raw:
            problems.add(f"{key}: missing")
    D = problems.whole_number(raw.get("d_model", 1), "d_model", most=10**7)
    V = problems.whole_number(raw.get("vocab_size", 1), "vocab_size", most=10**9)
    max_context = raw.get("max_context")
    if max_context is not None:
        max_context = problems.whole_number(max_context, "max_context")
    mixers = _blocks(problems, raw.get("mixers") or {}, "mixers", mixer)
    ffns = _blocks(problems, raw.get("ffns") or {}, "ffns", ffn)
    layers = _layers(problems, raw.get("layers") or [], mixers, ffns)
    _shared_sets(problems, layers, mixers, ffns)
    hyper = _hyper_connections(problems, raw.get("hyper_connections"))
    mtp = _mtp(problems, raw.get("mtp"), mixers, ffns, D)
    if "n_layers" in raw and raw.get("layer_pattern") is None:
        stated = problems.whole_number(raw["n_layers"], "n_layers", most=MAX_LAYERS)
        if layers and stated != len(layers):
            problems.add(f"n_layers: {stated}, but the list of layers holds {len(layers)}")
    weights = _weights(problems, raw.get("weights", "bf16"))
    for key in ("kv", "activations"):
        if raw.get(key) is not None and str(raw[key]) not in BYTES:
            problems.add(f"{key}: {unknown('dtype', str(raw[key]), BYTES)}")
    generation = raw.get("generation") or "autoregressive"
    if generation not in GENERATIONS:
        problems.add(f"generation: {unknown('generation', str(generation), GENERATIONS)}")
    totals = problems.mapping(raw.get("params_published_b") or {}, "params_published_b")
    published = {key: problems.number(value, f"params_published_b.{key}") for key, value in totals.items() if value}
    problems.raise_if_any()
    return Architecture(
        name=name,
        title=str(raw["name"]),
        D=D,
        V=V,
        tied_embeddings=bool(raw.get("tied_embeddings", False)),
        max_context=max_context,
        mixers=mixers,
        ffns=ffns,
        layers=layers,
        weights=weights,
        kv=raw.get("kv") or "bf16",
        activations=raw.get("activations"),
        sandwich_norm=bool(raw.get("sandwich_norm", False)),
        generation=generation,
        hf_id=raw.get("hf_id"),
        published=published,
        sources=_texts(raw.get("source")),
        unverified=_texts(raw.get("unverified")),
        notes=_texts(raw.get("notes")),
        hyper_connections=hyper,
        mtp=mtp,
    )


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(item) for item in value) if isinstance(value, list) else (str(value),)


def _weights(problems: Problems, value: Any) -> dict[str, str]:
    weights = {"default": value} if isinstance(value, str) else problems.mapping(value, "weights")
    problems.unknown_keys(weights, ROLES, "weights")
    for role, dtype in weights.items():
        if str(dtype) not in BYTES:
            problems.add(f"weights.{role}: {unknown('dtype', str(dtype), BYTES)}")
    return {"default": "bf16", **weights}


def _blocks(problems: Problems, raw: Any, section: str, find: Any) -> dict[str, Block]:
    blocks: dict[str, Block] = {}
    for name, fields in problems.mapping(raw, section).items():
        where = f"{section}.{name}"
        given = dict(problems.mapping(fields, where))
        kind = given.get("kind")
        module = _module(find, section, given)
        if module is None:
            try:
                find(str(kind))
            except BadInput as error:
                problems.add(f"{where}.kind: {error}")
            continue
        given.pop("kind")
        if given.get("window", 0) is None:
            given.pop("window")
        copies = given.pop("copies", None)
        if copies is not None:
            copies = problems.whole_number(copies, f"{where}.copies", most=MAX_LAYERS)
        dims = read_dims(problems, module.Dims, given, where)
        if dims is not None:
            for message in module.check(dims):
                problems.add(f"{where}: {message}")
            blocks[name] = Block(name, module, dims, copies)
    return blocks


def read_dims(problems: Problems, dims_class: Any, given: Mapping[str, Any], where: str) -> Any:
    """The dimensions of a block from the fields of a file; None when one is missing or wrong."""

    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": below for inner, below in value.items()})
        else:
            flat[key] = value
    known = fields_by_name(dims_class)
    if "head_dim" in flat and "head_dim" not in known:
        width = flat.pop("head_dim")
        for key in ("d_qk", "d_v"):
            if key in known:
                flat.setdefault(key, width)
    problems.unknown_keys(flat, known, where)
    before = len(problems.found)
    values: dict[str, Any] = {}
    for name, field in known.items():
        meta, place = field.metadata, f"{where}.{name}"
        if name not in flat:
            if is_required(field):
                problems.add(f"{place}: missing ({meta['meaning']})")
            continue
        value = flat[name]
        if meta["kind"] == "flag":
            # A soft-cap is written as its value; 0 and null switch it off.
            if value is not None and not isinstance(value, bool | int | float):
                problems.add(f"{place}: {str(value)[:60]!r} is not true or false")
            values[field.name] = bool(value)
        elif meta["kind"] == "choice":
            if value not in meta["options"]:
                problems.add(f"{place}: {unknown('value', str(value), meta['options'])}")
            values[field.name] = value
        elif value is None and meta["nullable"]:
            values[field.name] = None
        else:
            values[field.name] = problems.whole_number(value, place, least=meta["least"], most=meta["most"])
    return dims_class(**values) if len(problems.found) == before else None


def _layers(
    problems: Problems, raw: Any, mixers: Mapping[str, Block], ffns: Mapping[str, Block]
) -> tuple[tuple[Mixers, str | None], ...]:
    """The run-length list of [mixer, ffn] pairs, unrolled."""
    layers: list[tuple[Mixers, str | None]] = []
    if not isinstance(raw, list):
        problems.add("layers: expected a list of {repeat, blocks}")
        return ()
    for index, run in enumerate(raw):
        where = f"layers[{index}]"
        run = problems.mapping(run, where)
        problems.unknown_keys(run, ("repeat", "blocks"), where)
        repeat = problems.whole_number(run.get("repeat", 1), f"{where}.repeat", most=MAX_LAYERS)
        pairs: list[tuple[Mixers, str | None]] = []
        blocks = run.get("blocks")
        if not isinstance(blocks, list) or not blocks:
            problems.add(f"{where}.blocks: expected a list of [mixer, ffn] pairs")
            continue
        for pair in blocks:
            if not isinstance(pair, list) or len(pair) != 2:
                problems.add(f"{where}.blocks: {str(pair)[:60]!r} is not a [mixer, ffn] pair")
                continue
            parts = _branches(problems, pair[0], where)
            for name in branches(parts):
                _known_block(problems, name, mixers, "mixer", where)
            _known_block(problems, pair[1], ffns, "ffn", where)
            pairs.append((parts, pair[1]))
        if len(layers) + repeat * len(pairs) > MAX_LAYERS:
            problems.add(f"{where}: more than {MAX_LAYERS} layers")
            return ()
        layers += pairs * repeat
    if not layers and not problems.found:
        problems.add("layers: the list is empty")
    return tuple(layers)


def _shared_sets(
    problems: Problems,
    layers: tuple[tuple[Mixers, str | None], ...],
    mixers: Mapping[str, Block],
    ffns: Mapping[str, Block],
) -> None:
    """Shared blocks need at least as many layers as sets of weights."""
    used = [name for parts, ffn_name in layers for name in (*branches(parts), ffn_name)]
    for section, blocks in (("mixers", mixers), ("ffns", ffns)):
        for name, block in blocks.items():
            if block.copies is not None and block.copies > used.count(name):
                problems.add(f"{section}.{name}.copies: {block.copies}, but {used.count(name)} layers use the block")


def _known_block(problems: Problems, name: Any, known: Mapping[str, Block], what: str, where: str) -> None:
    if name is not None and (not isinstance(name, str) or name not in known):
        problems.add(f"{where}: {unknown(what, str(name), known)}")


def _branches(problems: Problems, entry: Any, where: str) -> Mixers:
    """The mixer entry of a pair: a name, null, or a list of names that run side by side."""
    if entry is None or isinstance(entry, str):
        return entry
    texts = isinstance(entry, list) and all(isinstance(name, str) for name in entry)
    if not texts or len(entry) < 2 or len(set(entry)) < len(entry):
        problems.add(f"{where}: {str(entry)[:60]} is not a mixer, nor a list of two or more different ones")
        return None
    return tuple(entry)


def _hyper_connections(problems: Problems, raw: Any) -> HyperConnections | None:
    """`{streams, sinkhorn_iterations}`."""
    if raw is None:
        return None
    where = "hyper_connections"
    fields = problems.mapping(raw, where)
    problems.unknown_keys(fields, HyperConnections._fields, where)
    if "streams" not in fields:
        problems.add(f"{where}.streams: missing (copies of the residual stream)")
    streams = problems.whole_number(fields.get("streams", 2), f"{where}.streams", least=2, most=64)
    iterations = fields.get("sinkhorn_iterations", 20)
    return HyperConnections(
        streams, problems.whole_number(iterations, f"{where}.sinkhorn_iterations", least=0, most=1000)
    )


def _mtp(
    problems: Problems, raw: Any, mixers: Mapping[str, Block], ffns: Mapping[str, Block], D: int
) -> MultiTokenPrediction | None:
    """`{layers, mixer, ffn}`: the blocks are named as in the list of layers, and one of them may be absent."""
    if raw is None:
        return None
    fields = problems.mapping(raw, "mtp")
    problems.unknown_keys(fields, ("layers", "mixer", "ffn"), "mtp")
    names = fields.get("mixer"), fields.get("ffn")
    if names == (None, None):
        problems.add("mtp: needs a mixer or an ffn")
    for name, known, what in ((names[0], mixers, "mixer"), (names[1], ffns, "ffn")):
        _known_block(problems, name, known, what, "mtp")
    layers = problems.whole_number(fields.get("layers", 1), "mtp.layers", most=MAX_LAYERS)
    if problems.found:
        return None
    return MultiTokenPrediction(
        layers, None if names[0] is None else mixers[names[0]], None if names[1] is None else ffns[names[1]], D
    )
