"""A model: named blocks and the list of layers, read from a YAML file or a Hugging Face `config.json`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.algebra import Quantity
from costmodel.dims import fields_by_name, is_required
from costmodel.dtypes import BYTES, element_bytes
from costmodel.errors import BadInput, unknown
from costmodel.ffns import FeedForward, ffn
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.embedding import embedding, head
from costmodel.layers.norm import norm
from costmodel.layers.projection import total_parameters
from costmodel.loading import Problems, find_file, read_mapping
from costmodel.mixers import Mixer, mixer, names
from costmodel.settings import apply_settings
from costmodel.step import Precision, Step


class Block(NamedTuple):
    """A named mixer or FFN of a model: its module and its dimensions.

    copies: sets of weights that all its layers share; None: each layer has its own.
    """

    name: str
    module: Any
    dims: Any
    copies: int | None = None

    def sets(self, layers: int) -> int:
        """Sets of weights that so many layers of this block have."""
        return layers if self.copies is None else min(self.copies, layers)


class HyperConnections(NamedTuple):
    """The residual stream kept `streams` times over, mixed at every mixer and FFN: `layers.hyper_connections`."""

    streams: int
    sinkhorn_iterations: int = 20


class MultiTokenPrediction(NamedTuple):
    """Layers behind the model that predict further tokens, with its embedding and head; width D.

    Source: arXiv:2412.19437, section 2.2, equations 21 to 23.
    """

    layers: int
    mixer: Block | None
    ffn: Block | None
    D: Quantity

    @property
    def parameters(self) -> Quantity:
        """Weights of all of them: block, its norms, the 2D → D matrix with a norm for each half, and a final norm."""
        each: Quantity = 2 * self.D * self.D + 3 * self.D
        if self.mixer is not None:
            each += mixer_parameters(self.mixer, self.D) + self.D
        if self.ffn is not None:
            each += self.ffn.module.parameters(self.ffn.dims, self.D) + self.D
        return self.layers * each


Mixers = str | tuple[str, ...] | None
"""The mixer of a layer; several names run side by side on one input, and their outputs are summed."""


def branches(mixers: Mixers) -> tuple[str, ...]:
    """The names of a layer's mixers.

    >>> branches("attn"), branches(("attn", "mamba")), branches(None)
    (('attn',), ('attn', 'mamba'), ())
    """
    if mixers is None:
        return ()
    return (mixers,) if isinstance(mixers, str) else mixers


class Architecture(NamedTuple):
    """A decoder-only model of width D with V words; `layers` lists (mixer, ffn) names, either may be None.

    weights: dtype by role, see `Precision`. Totals that the publisher states are kept beside the computed ones.
    mtp is no part of the totals or of the kernels of a step.
    """

    name: str
    title: str
    D: int
    V: int
    tied_embeddings: bool
    max_context: int | None
    mixers: Mapping[str, Block]
    ffns: Mapping[str, Block]
    layers: tuple[tuple[Mixers, str | None], ...]
    weights: Mapping[str, str]
    kv: str = "bf16"
    activations: str | None = None
    sandwich_norm: bool = False
    generation: str = "autoregressive"
    hf_id: str | None = None
    published: Mapping[str, float] | None = None
    sources: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hyper_connections: HyperConnections | None = None
    mtp: MultiTokenPrediction | None = None

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many layers use each mixer, and each FFN."""
        mixers: dict[str, int] = {}
        ffns: dict[str, int] = {}
        for names_of_layer, ffn_name in self.layers:
            for mixer_name in branches(names_of_layer):
                mixers[mixer_name] = mixers.get(mixer_name, 0) + 1
            if ffn_name is not None:
                ffns[ffn_name] = ffns.get(ffn_name, 0) + 1
        return mixers, ffns

    def sites(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many norms stand before each mixer, and each FFN: parallel branches share that of the first."""
        first: dict[str, int] = {}
        for names_of_layer, _ in self.layers:
            for mixer_name in branches(names_of_layer)[:1]:
                first[mixer_name] = first.get(mixer_name, 0) + 1
        return first, self.counts()[1]

    @property
    def bidirectional(self) -> bool:
        """Whether the model denoises whole sequences instead of predicting the next token."""
        return self.generation == "diffusion"

    @property
    def norms(self) -> int:
        """Norms of width D: one before each mixer and FFN (two with sandwich norms), and the final one."""
        mixers, ffns = self.sites()
        parts = sum(self.mixers[name].sets(count) for name, count in mixers.items())
        parts += sum(self.ffns[name].sets(count) for name, count in ffns.items())
        return parts * (2 if self.sandwich_norm else 1) + 1

    def _weights_of(self, active: bool) -> Quantity:
        mixers, ffns = self.counts()
        total: Quantity = self.norms * self.D + self._hyper_parameters()
        for name, count in mixers.items():
            block = self.mixers[name]
            total += count * mixer_parameters(block, self.D) if active else sum(mixer_weights(block, self.D, count))
        for name, count in ffns.items():
            block = self.ffns[name]
            if active:
                total += count * block.module.active_parameters(block.dims, self.D)
            else:
                total += block.sets(count) * block.module.parameters(block.dims, self.D)
        return total

    @property
    def parameters(self) -> Quantity:
        """All weights; a tied embedding counts once."""
        return self._weights_of(active=False) + self.V * self.D * (1 if self.tied_embeddings else 2)

    @property
    def active_parameters(self) -> Quantity:
        """Weights that one token multiplies: chosen experts, shared blocks per call, the head, not the embedding."""
        return self._weights_of(active=True) + self.V * self.D

    def weight_bytes(self, precision: Precision) -> Quantity:
        """Bytes of all weights in their dtypes."""
        mixers, ffns = self.counts()
        hidden = precision.hidden_bytes
        total: Quantity = (self.norms * self.D + self._hyper_parameters()) * hidden
        for name, count in mixers.items():
            matrices, rest = mixer_weights(self.mixers[name], self.D, count)
            total += matrices * element_bytes(precision.weight("mixer")) + rest * hidden
        for name, count in ffns.items():
            block = self.ffns[name]
            total += block.sets(count) * _ffn_bytes(block, self.D, precision)
        total += self.V * self.D * element_bytes(precision.weight("head"))
        if not self.tied_embeddings:
            total += self.V * self.D * element_bytes(precision.weight("embedding"))
        return total

    def cache_bytes(self, L: Quantity, precision: Precision) -> Quantity:
        """Bytes of cache and state of one sequence of L tokens."""
        total: Quantity = 0
        for name, count in self.counts()[0].items():
            block = self.mixers[name]
            total = total + count * block.module.cache(block.dims, precision).bytes(L)
        return total

    def kernels(self, step: Step, precision: Precision) -> list[Kernel]:
        """Every kernel of a step, equal layers as one entry with a count; training adds the backward kernels."""
        run = [embedding(self.D, step, precision)._replace(group="embedding")]
        per_part = 2 if self.sandwich_norm else 1
        parts = zip((self.mixers, self.ffns), self.counts(), self.sites(), strict=True)
        for blocks, counts, sites in parts:
            for name, count in counts.items():
                block, before = blocks[name], sites.get(name, 0)
                if before:
                    around = norm("norm", self.D, step, precision)
                    run.append(around._replace(group=name, count=before * per_part))
                for kernel in block.module.kernels(block.dims, self.D, step, precision):
                    run.append(kernel._replace(group=name, count=kernel.count * count))
                if count > before:
                    run.append(_sum_of_branches(self.D, step, precision)._replace(group=name, count=count - before))
        run += self._hyper_kernels(step, precision)
        run.append(norm("final norm", self.D, step, precision)._replace(group="head"))
        run += [kernel._replace(group="head") for kernel in head(self.D, self.V, step, precision)]
        if step.phase == "train":
            run += [
                gradient._replace(group=kernel.group, count=kernel.count, gradient=True)
                for kernel in reversed(run)
                for gradient in kernel.form.backward(kernel)
            ]
        return run

    def _hyper_sites(self) -> int:
        return sum(sum(counts.values()) for counts in self.sites())

    def _hyper_parameters(self) -> Quantity:
        if self.hyper_connections is None:
            return 0
        from costmodel.layers import hyper_connections as hyper

        streams = self.hyper_connections.streams
        sites = self._hyper_sites() * hyper.parameters(self.D, streams)
        return sites + hyper.collapse_parameters(self.D, streams)

    def _hyper_kernels(self, step: Step, precision: Precision) -> list[Kernel]:
        """The mixing of the residual streams around every mixer and FFN."""
        if self.hyper_connections is None:
            return []
        from costmodel.layers import hyper_connections as hyper

        streams, iterations = self.hyper_connections
        run = hyper.hyper_connections(self.D, streams, step, precision, iterations)
        sites = self._hyper_sites()
        return [kernel._replace(group="hyper-connections", count=kernel.count * sites) for kernel in run]


def _sum_of_branches(D: Quantity, step: Step, precision: Precision) -> Kernel:
    """Adds the output of a branch to that of the branches before it."""
    moved = step.tokens * D * precision.hidden_bytes
    return elementwise("sum of branches", read=2 * moved, written=moved, vector=step.tokens * D)


def mixer_parameters(block: Block, D: Quantity) -> Quantity:
    """Weights of one mixer layer."""
    module: Mixer = block.module
    return total_parameters(module.projections(block.dims, D)) + module.extra_parameters(block.dims, D)


def mixer_weights(block: Block, D: Quantity, layers: int) -> tuple[Quantity, Quantity]:
    """Weights of so many layers, in matrices and elsewhere.

    A module whose weights are shared may name the projections that each layer has for itself: `own_projections`.
    """
    module: Mixer = block.module
    matrices = total_parameters(module.projections(block.dims, D))
    sets = block.sets(layers)
    if sets < layers and hasattr(module, "own_projections"):
        own = total_parameters(module.own_projections(block.dims, D))
    else:
        own = 0
    return sets * (matrices - own) + layers * own, sets * module.extra_parameters(block.dims, D)


def _ffn_bytes(block: Block, D: Quantity, precision: Precision) -> Quantity:
    """Bytes of one FFN layer; routed experts have a role of their own."""
    module: FeedForward = block.module
    everything = module.parameters(block.dims, D)
    experts = getattr(module, "routed_parameters", None)
    if experts is None:
        return everything * element_bytes(precision.weight("ffn"))
    routed = experts(block.dims, D)
    shared = element_bytes(precision.weight("shared_experts"))
    return routed * element_bytes(precision.weight("experts")) + (everything - routed) * shared


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
GENERATIONS = ("autoregressive", "diffusion")
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
