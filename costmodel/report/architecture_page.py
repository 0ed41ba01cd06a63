"""The page of `show` about a model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.architecture import Mixers, branches, mixer_parameters
from costmodel.coverage import told, unmeasured_in
from costmodel.dims import by_name, fields_by_name
from costmodel.model_file import load_architecture
from costmodel.report.columns import Column, shows, value_text
from costmodel.step import Precision
from costmodel.units import format_bytes, format_count

ENTRY, SYMBOL, MEANING = (shows(key, right=False) for key in ("entry", "symbol", "meaning"))


class Page(NamedTuple):
    """What `show` prints about one thing. Remarks are lines of prose below the table."""

    kind: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: tuple[Column, ...]
    remarks: Sequence[str]
    sources: Sequence[str]


def architecture_page(name: str) -> Page:
    """A model: its dimensions, the order of its layers, its weights and what a sequence keeps."""
    model = load_architecture(name)
    precision = Precision(weights=model.weights, kv=model.kv)
    rows: list[dict[str, Any]] = []

    def add(entry: str, value: Any, meaning: str = "", symbol: str = "", text: str | None = None) -> None:
        shown = value_text("", value) if text is None else text
        rows.append({"entry": entry, "value": value, "symbol": symbol, "meaning": meaning, "text": shown})

    add("layers", len(model.layers), layer_pattern(model.layers))
    add("d_model", model.D, "width of the residual stream", "D")
    add(
        "vocab_size",
        model.V,
        "tied embeddings" if model.tied_embeddings else "separate input and output embeddings",
        "V",
    )
    if model.max_context:
        add("max_context", model.max_context, "as the publisher states", text=format_count(model.max_context))
    add("generation", model.generation)
    mixers, ffns = model.counts()
    for section, blocks, counts in (("mixers", model.mixers, mixers), ("ffns", model.ffns, ffns)):
        for block_name, block in blocks.items():
            place = f"{section}.{block_name}"
            shared = f", with {block.copies} sets of weights" if block.copies else ""
            add(f"{place}.kind", block.module.NAME, f"{counts.get(block_name, 0)} layers{shared}: {block.module.TITLE}")
            meanings = fields_by_name(type(block.dims))
            for field, value in by_name(block.dims).items():
                if value is not None and value is not False:
                    add(f"{place}.{field}", value, meanings[field].metadata["meaning"], meanings[field].name)
            each = (
                mixer_parameters(block, model.D)
                if section == "mixers"
                else block.module.parameters(block.dims, model.D)
            )
            add(f"{place} parameters", each, "of one layer")
            if section == "mixers":
                cache = block.module.cache(block.dims, precision)
                upto = "" if cache.limit is None else f", at most {format_count(cache.limit)} tokens"
                if cache.per_token:
                    add(
                        f"{place} cache",
                        cache.per_token,
                        f"per token and layer{upto}",
                        text=format_bytes(cache.per_token),
                    )
                if cache.fixed:
                    add(f"{place} state", cache.fixed, "per sequence and layer", text=format_bytes(cache.fixed))
    if model.hyper_connections is not None:
        streams = model.hyper_connections.streams
        add("hyper_connections.streams", streams, "copies of the residual stream, mixed around every block")
    if model.mtp is not None:
        add("mtp.layers", model.mtp.layers, "layers that predict further tokens; not in the totals")
        add("mtp parameters", model.mtp.parameters, "of all of them")
    add("parameters", model.parameters, "all weights")
    add("active parameters", model.active_parameters, "weights that one token multiplies")
    for key, value in (model.published or {}).items():
        add(f"published {key}", value * 1e9, "as the publisher states")
    for context in (8 * 1024, 128 * 1024):
        kept = model.cache_bytes(context, precision)
        add(f"cache at {format_count(context)}", kept, f"per sequence, {precision.kv}", text=format_bytes(kept))
    weight_bytes = model.weight_bytes(precision)
    dtypes = ", ".join(f"{role} {dtype}" for role, dtype in model.weights.items())
    add("weights", weight_bytes, dtypes, text=format_bytes(weight_bytes))
    remarks = [f"source: {text}" for text in model.sources]
    remarks += [f"unverified: {text}" for text in model.unverified]
    remarks += [f"unmeasured: {text}" for text in (told(unmeasured_in(model)),) if text]
    remarks += [f"note: {text}" for text in model.notes]
    columns = (ENTRY, Column("value", lambda row: row["text"]), SYMBOL, MEANING)
    return Page("architecture", f"{model.name}: {model.title}", rows, columns, remarks, list(model.sources))


def layer_pattern(layers: Sequence[tuple[Mixers, str | None]]) -> str:
    """The order of the layers, repetitions folded.

    >>> layer_pattern([("a", "f"), ("a", "f"), ("b", "f"), ("a", "f"), ("a", "f"), ("b", "f")])
    '2 × (2 × a+f, b+f)'
    >>> layer_pattern([(("a", "b"), "f"), (None, "f")])
    'a∥b+f, f'
    """
    parts = [("∥".join(branches(mixers)), ffn or "") for mixers, ffn in layers]
    words = ["+".join(part for part in pair if part) for pair in parts]
    return ", ".join(_folded(words))


def _folded(words: list[str]) -> list[str]:
    found: list[str] = []
    place = 0
    while place < len(words):
        period, repeats = 1, 1
        for size in range(1, min(24, (len(words) - place) // 2) + 1):
            pattern, times = words[place : place + size], 1
            while words[place + times * size : place + (times + 1) * size] == pattern:
                times += 1
            if times > 1 and times * size > period * repeats:
                period, repeats = size, times
        if repeats == 1:
            found.append(words[place])
        else:
            inner = ", ".join(_folded(words[place : place + period]))
            found.append(f"{repeats} × {inner}" if period == 1 else f"{repeats} × ({inner})")
        place += period * repeats
    return found
