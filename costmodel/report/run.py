"""`predict` and `compare` from plain inputs to what is printed."""

from collections.abc import Mapping
from typing import Any

from costmodel.errors import BadInput
from costmodel.prediction import loaded, predict
from costmodel.report.output import note
from costmodel.report.predictions import formats_text, notes_on, print_comparison, print_generations, print_predictions
from costmodel.report.progress import Progress

Inputs = Mapping[str, Any]


def _options(inputs: Inputs) -> dict[str, Any]:
    return {name: inputs[name] for name in ("batch", "new_tokens", "weights", "kv", "activations", "library")}


def _parallel(inputs: Inputs) -> dict[str, Any]:
    """The layouts asked for, and how they run."""
    if "layout" not in inputs:
        return {}
    from costmodel.parallel.options import Training, options_of

    options = options_of(inputs).checked()
    idle = [name for name in Training._fields if name in inputs]
    if idle and not {"train", "all"} & set(inputs["phase"]):
        told = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise BadInput(f"{told}: about training, but --phase is {', '.join(inputs['phase'])}; add --phase train")
    return {"layout": inputs["layout"], "options": options}


def predict_and_print(form: str, inputs: Inputs, breakdown: bool, plot: str | None) -> None:
    """`predict`: rows to stdout, notes to stderr, and the plot where one is wanted."""
    models, devices = loaded(inputs["arch"], inputs["hw"], inputs["set"])
    rows: list[dict[str, Any]] = []
    formats = {}
    progress = Progress(len(models) * len(devices))
    corrected: set[str] = set()
    for device in devices:
        for model in models:
            formats[model.name, device.name] = formats_text(model, device, inputs)
            found = predict(
                model,
                device,
                inputs["context"],
                phase=inputs["phase"],
                caches=inputs["caches"],
                table=inputs["table"],
                **_parallel(inputs),
                **_options(inputs),
            )
            rows += [row.to_dict(breakdown) for row in found.rows]
            if any(entry.basis == "table" for row in found.rows for entry in row.breakdown):
                corrected.add(device.name)
            progress.step()
    progress.close()
    if plot is not None:
        _draw(plot, rows)
    print_predictions("predict", form, inputs, rows, breakdown, formats)
    notes_on(models, devices, rows)
    for device in devices:
        if inputs["table"] is not None and device.name not in corrected:
            note(
                f"note: --table: {device.name}: no kernel of these steps lies inside a table of this device and library"
            )
    if "layout" in inputs or not all(row["fits"] for row in rows):
        from costmodel.report.layouts import layout_notes

        layout_notes(models, devices, inputs, rows)


def compare_and_print(form: str, inputs: Inputs, plot: str | None) -> None:
    """`compare`: the architectures side by side, and where they cross."""
    from costmodel.analysis.compare import compare

    if len(inputs["arch"]) < 2:
        raise BadInput("--arch: compare needs at least two architectures, separated by commas")
    models, devices = loaded(inputs["arch"], inputs["hw"], inputs["set"])
    found = compare(models, devices, inputs["context"], phase=inputs["phase"], settings=(), **_options(inputs))
    if plot is not None:
        _draw(plot, found.rows)
    print_comparison(form, inputs, found.rows, found.crossovers)
    notes_on(models, devices, found.rows)


def generate_and_print(form: str, inputs: Inputs) -> None:
    """`generate`: one table for each model, device and prompt, with a row for each method."""
    from costmodel.generation import generate, names

    models, devices = loaded(inputs["arch"], inputs["hw"], inputs["set"])
    options = {name: value for name, value in inputs.items() if name not in ("arch", "hw", "prompt", "set")}
    if "all" in options["methods"]:
        options["methods"] = list(names())
    draft = inputs["draft"]
    if draft is not None and draft.replace(".", "", 1).isdigit():
        options["draft"] = float(draft)
    rows: list[dict[str, Any]] = []
    progress = Progress(len(models) * len(devices) * len(inputs["prompt"]))
    for device in devices:
        for model in models:
            for prompt in inputs["prompt"]:
                rows += generate(model, device, prompt=prompt, **options)
                progress.step()
    progress.close()
    print_generations(form, inputs, rows)
    for text in dict.fromkeys(f"note: {row['method']}: {row['note']}" for row in rows if row["note"]):
        note(text)
    notes_on(models, devices, [])


def _draw(path: str, rows: Any) -> None:
    from costmodel.report.plot import draw

    draw(path, rows)
    note(f"note: wrote {path}")
