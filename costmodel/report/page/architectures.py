"""What the page knows of models: their rows for each phase and number format, and the formulas of their blocks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from costmodel.analysis.kernel_programs import traced_step
from costmodel.analysis.reality import reality
from costmodel.analysis.subjects import model_subject
from costmodel.architecture import Architecture, Block
from costmodel.coverage import told, unmeasured_in
from costmodel.dims import fields_by_name
from costmodel.dtypes import ENGINES
from costmodel.hardware import Hardware
from costmodel.prediction import make_precision
from costmodel.report.page.programs import Programs
from costmodel.step import PHASES, Precision

WEIGHTS = (None, "bf16", "fp8", "int4", "nvfp4")
"""Formats of the weights to choose from; None is the model's own."""
KV = (None, "bf16", "fp8")
"""Formats of the cache to choose from; None is the model's own."""


class Formats(NamedTuple):
    """The distinct number formats of a model, and which of them a choice means on a device (None: impossible)."""

    precisions: list[Precision]
    choices: list[list[int | None]]


def formats(architecture: Architecture, devices: Sequence[Hardware]) -> Formats:
    """The formats of every choice on every device: choices[device][choice], choices in the order WEIGHTS × KV."""
    places: dict[Any, int] = {}
    precisions: list[Precision] = []

    def place(hardware: Hardware, weights: str | None, kv: str | None) -> int | None:
        # A device with every engine never refuses; a refusal looks for the devices that would not.
        able = hardware._replace(compute=hardware.compute._replace(tensor=dict.fromkeys(ENGINES.values(), 1.0)))
        if not hardware.has_engine(make_precision(architecture, able, weights, kv).activations):
            return None
        precision = make_precision(architecture, hardware, weights, kv)
        identity = precision._replace(weights=tuple(sorted(precision.weights.items())))  # type: ignore[arg-type]
        if identity not in places:
            places[identity] = len(precisions)
            precisions.append(precision)
        return places[identity]

    choices = [[place(hardware, weights, kv) for weights in WEIGHTS for kv in KV] for hardware in devices]
    return Formats(precisions, choices)


def architecture_entry(
    architecture: Architecture, devices: Sequence[Hardware], programs: Programs, progress: Any = None
) -> dict[str, Any]:
    """A model: facts, number formats, and for each phase the rows of each format."""
    chosen = formats(architecture, devices)
    # Training is offered in the model's own formats, the first choice.
    own = {choices[0] for choices in chosen.choices}
    phases = {}
    for phase in PHASES:
        lists = [
            _rows(architecture, phase, precision, programs) if phase != "train" or index in own else None
            for index, precision in enumerate(chosen.precisions)
        ]
        first = next((found for found in lists if found is not None), NOTHING)
        phases[phase] = {
            "names": first.names,
            "groups": first.groups,
            "rows": [found and found.rows for found in lists],
            "engines": [found and found.engines for found in lists],
            "cache": [found and found.cache for found in lists],
            "named": [
                None if found is None or found.names == first.names else [found.names, found.groups] for found in lists
            ],
            "gradients": first.gradients,
        }
    return {
        "name": architecture.name,
        "title": architecture.title,
        "parameters": architecture.parameters,
        "active": architecture.active_parameters,
        "longest": architecture.max_context,
        "generation": architecture.generation,
        "bidirectional": architecture.bidirectional,
        "layers": len(architecture.layers),
        "weights": [float(architecture.weight_bytes(precision)) for precision in chosen.precisions],
        "formats": [_format_text(precision) for precision in chosen.precisions],
        "choices": chosen.choices,
        "phases": phases,
        **checked(architecture, devices, chosen),
        "sources": list(architecture.sources),
        "unverified": [*architecture.unverified, *filter(None, [told(unmeasured_in(architecture))])],
    }


CHECKED_AT = 2**20
"""Context of the reality check that the page shows."""


def checked(architecture: Architecture, devices: Sequence[Hardware], chosen: Formats) -> dict[str, Any]:
    """The reality check of a model at 1M on the first device that has an engine for it, and its quadratic contexts."""
    device = next((device for device, own in zip(devices, chosen.choices, strict=True) if own[0] is not None), None)
    if device is None:
        return {"reality": {}, "quadratic": {}}
    found = reality([model_subject(architecture)], [device], [CHECKED_AT], phases=["all"])
    rows = {row["phase"]: {name: row[name] for name in CHECKED} for row in found}
    return {"reality": rows, "quadratic": {phase: row["quadratic_context"] for phase, row in rows.items()}}


CHECKED = (
    "hw",
    "context",
    "phase",
    "batch",
    "claimed",
    "claim_source",
    "full_attention",
    "order_flops",
    "order_bytes",
    "order_cache",
    "order_time",
    "carrier",
    "coefficient_vs_full",
    "quadratic_context",
    "speedup",
    "capacity_speedup",
    "limit",
    "verdict",
)


class _Rows(NamedTuple):
    names: list[str]
    groups: list[str]
    rows: list[int]
    cache: int
    gradients: int
    engines: list[str]


NOTHING = _Rows([], [], [], 0, 0, [])
"""What a phase has that no device can run in the model's own formats."""


def _rows(architecture: Architecture, phase: Any, precision: Precision, programs: Programs) -> _Rows:
    step = traced_step(architecture, phase, precision)
    return _Rows(
        names=[kernel.name for kernel in step.kernels],
        groups=[kernel.group for kernel in step.kernels],
        rows=[programs.add(kernel, step.graph) for kernel in step.kernels],
        cache=programs.add_count(step.cache, step.graph),
        gradients=sum(kernel.gradient for kernel in step.kernels),
        engines=sorted({ENGINES[dtype] for kernel in step.kernels for dtype in kernel.executed.tensor}),
    )


def _format_text(precision: Precision) -> str:
    """The formats in a few words: weights by role where they differ, activations, cache.

    >>> _format_text(Precision())
    'bf16 weights, bf16 activations, bf16 cache'
    """
    weights = dict.fromkeys(precision.weights.values())
    return f"{' + '.join(weights)} weights, {precision.activations} activations, {precision.kv} cache"


def blocks(architecture: Architecture) -> Iterator[tuple[Block, int]]:
    """The mixers and FFNs with the layers that have them."""
    for found, counts in zip((architecture.mixers, architecture.ffns), architecture.counts(), strict=True):
        for name, count in counts.items():
            yield found[name], count


def dimensions(block: Block) -> dict[str, Any]:
    """The numbers of a block by the symbols of its formulas."""
    values = {item.name: getattr(block.dims, item.name) for item in fields_by_name(type(block.dims)).values()}
    return {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}


def sizes_text(block: Block) -> str:
    """The numbers of a block as text."""
    return ", ".join(f"{name} = {value}" for name, value in dimensions(block).items())
