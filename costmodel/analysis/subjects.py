"""What the reality check judges: a mechanism as one layer, or a model, each with its claim and its counterpart."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from costmodel import mixers
from costmodel.analysis.full_attention import (
    Counterpart,
    counterpart_of_layer,
    flops_order,
    is_full,
    one_layer,
    with_full_attention,
)
from costmodel.analysis.lone_blocks import find_module, lone_block, typical_block
from costmodel.analysis.printing import order_text
from costmodel.architecture import Architecture
from costmodel.errors import BadInput, unknown
from costmodel.loading import available
from costmodel.model_file import load_architecture
from costmodel.step import Phase

PHASES: tuple[Phase, ...] = ("prefill", "decode")


class Subject(NamedTuple):
    """What is judged: a model of one layer (a mechanism) or of all, its counterpart, and what is claimed of it.

    layers: the layers of the model whose memory a lone layer shares, 1 for a model.
    """

    name: str
    kind: str
    model: Architecture
    full: Counterpart
    claims: Mapping[str, str]
    claim_source: str
    sizes_of: str | None
    layers: int


GROUPS = ("all", "mechanisms", "models")
"""Names that stand for every mechanism, every shipped model, or both."""


def mechanism_subject(module: Any, settings: Sequence[str] = ()) -> Subject:
    """A mechanism as one layer, with the dimensions of a well-known model that uses it, else its first example.

    Of several such blocks of the model the fastest growing is taken: attention to everything, not to a window.
    settings change its dimensions and d_model.
    """
    shown_with, dims, D = typical_block(module)
    layers = 1
    if shown_with is not None:
        model = load_architecture(shown_with)
        layers = sum(model.counts()[0].values())
        own = [block for block in model.mixers.values() if block.module is module]
        if len(own) > 1:
            dims = max(own, key=lambda block: flops_order(one_layer(block, D))).dims
    changed = lone_block(module, dims, D, settings)
    block, D = changed.mixers[module.NAME], changed.D
    claims, source = _claim(module)
    return Subject(
        name=module.NAME.replace("_", "-"),
        kind="mechanism",
        model=one_layer(block, D),
        full=counterpart_of_layer(block, D),
        claims=claims,
        claim_source=source,
        sizes_of=shown_with,
        layers=layers,
    )


def model_subject(model: Architecture) -> Subject:
    """A model with all its layers; what is claimed of it is what is claimed of its mixers, by layers."""
    counts = model.counts()[0]
    whole = sum(counts.values())
    own = {name: _claim(model.mixers[name].module) for name in counts}
    claims: dict[str, str] = {}
    for phase in PHASES:
        layers: dict[str, int] = {}
        for name, count in counts.items():
            text = own[name][0]["prefill" if model.bidirectional else phase]
            layers[text] = layers.get(text, 0) + count
        plain = {own[name][0][phase] for name in counts if is_full(model.mixers[name], model.D)}
        better = {text: count for text, count in layers.items() if text not in plain} or layers
        # Branches of one layer are mixers of their own.
        unit = "layers" if whole == sum(mixer is not None for mixer, _ in model.layers) else "mixers"
        texts = [text if count == whole else f"{text} in {count} of {whole} {unit}" for text, count in better.items()]
        each = model.bidirectional or (model.denoises and phase == "decode")
        claims[phase] = "; ".join(texts) + (" per denoising step" if each else "")
    sources = dict.fromkeys(source for _, source in own.values())
    return Subject(model.name, "model", model, with_full_attention(model), claims, "; ".join(sources), None, 1)


def _claim(module: Any) -> tuple[dict[str, str], str]:
    """What a mechanism's file says is claimed; without a claim, the order that it states."""
    claim = getattr(module, "CLAIM", None)
    if claim is not None:
        return {"prefill": claim.prefill, "decode": claim.decode}, claim.source
    order = module.ORDER
    stated = {"prefill": order.prefill_flops, "decode": order.decode_flops}
    return {phase: f"O({order_text(power, 0)})" for phase, power in stated.items()}, "ORDER in the mechanism's file"


def subjects(names: Sequence[str], settings: Sequence[str] = ()) -> Iterator[Subject]:
    """The mechanisms and models of these names.

    "mechanisms": every mixer; "models": every shipped model; "all": both. Raises BadInput for an unknown name, and for
    settings of every one at once.
    """
    for name in names:
        if name in GROUPS and settings:
            raise BadInput(f"--set {settings[0][:80]!r}: name the mechanisms or architectures to change, not {name!r}")
        if name in ("all", "mechanisms"):
            yield from (mechanism_subject(mixers.mixer(kind)) for kind in mixers.names())
        if name in ("all", "models"):
            yield from (model_subject(load_architecture(known)) for known in available("architectures"))
        if name in GROUPS:
            continue
        module = find_module(name)
        if module is not None and not hasattr(module, "cache"):
            raise BadInput(f"{name}: a feed-forward layer, whose work does not depend on the context")
        yield mechanism_subject(module, settings) if module else model_subject(_loaded(name, settings))


def _loaded(name: str, settings: Sequence[str]) -> Architecture:
    try:
        return load_architecture(name, settings)
    except BadInput as error:
        if str(error).startswith("unknown architecture"):
            known = [*GROUPS, *mixers.names(), *available("architectures")]
            raise unknown("mechanism or architecture", name, known) from None
        raise
