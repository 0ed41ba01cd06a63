"""Notes on parallel layouts: what they replicate, and what would make a step fit that does not."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from costmodel.report.columns import Row, percent
from costmodel.report.output import note
from costmodel.units import format_bytes, format_count

if TYPE_CHECKING:
    from costmodel.architecture import Architecture
    from costmodel.hardware import Hardware
    from costmodel.parallel.remedies import Remedy


def layout_notes(
    models: Sequence["Architecture"], devices: Sequence["Hardware"], inputs: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """On stderr: what each layout replicates, and for the first context that does not fit, what would help."""
    over: dict[tuple[str, str, str, str], Row] = {}
    for row in rows:
        if not row["fits"]:
            over.setdefault((row["hw"], row["arch"], row["layout"], row["phase"]), row)
    if "layout" not in inputs and not over:
        return
    for device in devices:
        for model in models:
            for layout in dict.fromkeys(row["layout"] for row in rows if row["arch"] == model.name):
                found = [
                    row for row in rows if (row["hw"], row["arch"], row["layout"]) == (device.name, model.name, layout)
                ]
                if layout != "tp1":
                    _tell_replicas(model, device, layout, inputs, found)
                for phase in dict.fromkeys(row["phase"] for row in found):
                    unfit = over.get((device.name, model.name, layout, phase))
                    if unfit is not None:
                        _tell_remedies(model, device, inputs, unfit)


def _tell_replicas(
    model: "Architecture", device: "Hardware", layout: str, inputs: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    from costmodel.parallel.layout import Disaggregated, parse_layout
    from costmodel.parallel.placement import place
    from costmodel.parallel.replicas import SMALL, replicated
    from costmodel.prediction import make_precision, make_step

    precision = make_precision(model, device, inputs["weights"], inputs["kv"], inputs["activations"])
    for phase in dict.fromkeys(row["phase"] for row in rows):
        row = next(row for row in rows if row["phase"] == phase)
        parsed = parse_layout(layout)
        workers = 1
        if isinstance(parsed, Disaggregated):
            workers, parsed = parsed.decode if phase == "decode" else parsed.prefill
        step = make_step(model, phase, row["context"], row["batch"], row["new_tokens"])
        placed = place(model, parsed, phase)
        parts = []
        for entry in replicated(placed, step, precision):
            shares = {
                name: extra / whole
                for name, (extra, whole) in (
                    ("weights", entry.weights),
                    ("cache", entry.cache_bytes),
                    ("FLOPs", entry.flops),
                )
                if whole and extra / whole >= SMALL and not (name == "cache" and phase == "train")
            }
            if shares:
                told = ", ".join(f"{name} +{percent(share)}" for name, share in shares.items())
                named = ", ".join((*entry.matrices, *(f"cached {name}" for name in entry.cached if "cache" in shares)))
                parts.append(f"{entry.block} ({told}{f'; copies of {named}' if named else ''})")
        ranks = workers * placed.ranks // placed.ways
        if ranks > 1 and phase != "train":
            # In training, ZeRO decides what ranks share out.
            spread = " but the experts" if parsed.ep > placed.ways and workers == 1 else ""
            size = format_bytes(row["replicated_weight_bytes"])
            parts.append(f"{ranks} copies of all weights{spread} ({size} of weights in all)")
        if parts:
            note(f"note: {model.name}, {phase} as {layout}: replicated beyond the whole: {'; '.join(parts)}")


def _tell_remedies(model: "Architecture", device: "Hardware", inputs: Mapping[str, Any], row: Row) -> None:
    found = [
        f"{remedy.change} ({format_bytes(remedy.memory_bytes)})" for remedy in _remedies(model, device, inputs, row)
    ]
    what = "ZeRO, recomputation, microbatch, tp, pp or cp" if row["phase"] == "train" else "tp, pp, ep or dtype"
    text = f"would fit with {', '.join(found)} per GPU" if found else f"no single change of {what} makes it fit"
    note(f"note: {model.name}, {row['phase']} at {format_count(row['context'])}: {text}")


def _remedies(model: "Architecture", device: "Hardware", inputs: Mapping[str, Any], row: Row) -> "Iterator[Remedy]":
    from costmodel.parallel.layout import Disaggregated, parse_layout
    from costmodel.parallel.options import options_of
    from costmodel.parallel.remedies import remedies
    from costmodel.prediction import make_precision, make_step

    parsed = parse_layout(row["layout"])
    if isinstance(parsed, Disaggregated):
        parsed = (parsed.decode if row["phase"] == "decode" else parsed.prefill).layout
    precision = make_precision(model, device, inputs["weights"], inputs["kv"], inputs["activations"])
    options = options_of(inputs)
    if row["phase"] == "train":
        from costmodel.parallel.training_remedies import training_remedies

        step = make_step(model, "train", row["context"], row["batch"])
        # Without a layout, the whole batch runs at once.
        now = row["batch"] if row["mfu"] is None else None
        return training_remedies(model, parsed, step, precision, device, options, now)
    step = make_step(model, row["phase"], row["context"], row["batch"], row["new_tokens"])
    return remedies(model, parsed, step, precision, device, options=options)
