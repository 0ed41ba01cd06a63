"""`report`: one question answered at length, from times and crossovers to verdicts, formulas, errors and sources."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.claims import judge, load_claims
from costmodel.analysis.compare import compare
from costmodel.analysis.explain import explanation
from costmodel.analysis.explanation import Explanation
from costmodel.analysis.printing import order_text, text
from costmodel.analysis.reality import reality
from costmodel.analysis.subjects import model_subject
from costmodel.analysis.symbolic import definitions, labels
from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.coverage import told, unmeasured_in
from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.loading import write_atomically
from costmodel.prediction import loaded, make_precision, make_step, phases_of, predict, predict_step
from costmodel.report.claims import TABLE as CLAIMS
from costmodel.report.columns import CROSSOVERS, KERNELS, PREDICTION, Row, shows
from costmodel.report.document import (
    Command,
    Document,
    Items,
    Part,
    Picture,
    Prose,
    Section,
    Table,
    to_html,
    to_markdown,
)
from costmodel.report.errors_of_fits import FITS, errors_of_fits
from costmodel.report.output import note
from costmodel.report.page.architectures import sizes_text
from costmodel.report.page.claims import claim_about
from costmodel.report.plot import picture
from costmodel.report.predictions import basis_of, formats_text, groups
from costmodel.units import format_count

PICTURES = "pictures"
"""Folder beside a Markdown report."""
MOST_KERNELS = 15
FORMULAS = tuple(shows(key, right=False) for key in ("block", "kernel", "quantity", "formula", "growth"))
RATIO = shows("ratio", "time over\nthe first")
VERDICTS = (
    *(shows(key, right=False) for key in ("name", "hw", "phase", "claimed")),
    *(
        shows(f"order_{key}", title, right=False)
        for key, title in (("flops", "FLOPs"), ("bytes", "HBM bytes"), ("cache", "cache"), ("time", "time"))
    ),
    shows("carrier", "carried by", right=False),
    shows("coefficient_vs_full", "constant over\nfull attention"),
    shows("verdict", right=False),
)


def report(inputs: Mapping[str, Any]) -> None:
    """Write the report: FILE.html, FILE.md with its pictures beside it, or both into a folder.

    Raises BadInput for what cannot be understood, Impossible for what has no answer.
    """
    out = Path(inputs["out"])
    if out.suffix not in ("", ".html", ".md"):
        raise BadInput(f"--out {inputs['out'][-80:]!r}: expected FILE.html, FILE.md or a folder")
    document = answered(inputs)
    if out.suffix:
        files = [out]
    else:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "report.html", out / "report.md"]
    for file in files:
        if file.suffix == ".html":
            write_atomically(file, to_html(document).encode())
            continue
        folder = file.parent / PICTURES
        folder.mkdir(exist_ok=True)
        for each in document.pictures():
            write_atomically(folder / f"{each.name}.svg", each.svg)
        write_atomically(file, to_markdown(document, PICTURES).encode())
    note(f"note: wrote {' and '.join(map(str, files))}")


def answered(inputs: Mapping[str, Any]) -> Document:
    """The document that answers a question."""
    models, devices = loaded(inputs["arch"], inputs["hw"], inputs["set"])
    formats = {name: inputs[name] for name in ("weights", "kv", "activations")}
    found = compare(
        models,
        devices,
        inputs["context"],
        phase=inputs["phase"],
        batch=inputs["batch"],
        library=inputs["library"],
        **formats,
    )
    names = " and ".join(model.name for model in models)
    title = f"{names} on {' and '.join(device.name for device in devices)}: what a step costs"
    sections = [
        Section("The question", [Command(command_of(inputs)), Prose(READING)]),
        Section("Time over context", list(_times(models, devices, found.rows, inputs))),
        Section("Where they cross", [Table(found.crossovers, CROSSOVERS)]),
        Section("What is claimed, and how it grows as implemented", list(_verdicts(models, devices, inputs))),
        *_claims(models),
        Section("Where the time goes", list(_kernels(models, devices, inputs, formats))),
        Section("How right the calibration is", list(_errors(models, devices, inputs, formats))),
        Section("Formulas", list(_formulas(models, inputs))),
        Section("Sources", [Items(list(_sources(models, devices)))]),
    ]
    return Document(title, sections)


READING = (
    "Times are predictions. The 80 % interval holds the uncertainty of the fitted parameters and what the time forms "
    "leave unexplained; “no waiting … no overlap” are bounds that need no fit. Counts are binary (1M = 1,048,576)."
)


def command_of(inputs: Mapping[str, Any]) -> str:
    """The command that gives the same report."""
    parts = ["python", "cli.py", "report", "--arch", ",".join(inputs["arch"]), "--hw", ",".join(inputs["hw"])]
    parts += ["--context", ",".join(format_count(each) for each in inputs["context"])]
    parts += ["--phase", ",".join(inputs["phase"]), "--batch", str(inputs["batch"])]
    for name in ("weights", "kv", "activations", "library"):
        if inputs[name]:
            parts += [f"--{name}", inputs[name]]
    for setting in inputs["set"]:
        parts += ["--set", setting]
    return shlex.join([*parts, "--out", inputs["out"]])


def _times(
    models: Sequence[Architecture], devices: Sequence[Hardware], rows: Sequence[Row], inputs: Mapping[str, Any]
) -> Iterator[Part]:
    model_of, device_of = {each.name: each for each in models}, {each.name: each for each in devices}
    options = {name: inputs[name] for name in ("batch", "phase", "library", "weights", "kv", "activations")}
    for device in devices:
        own = [row._asdict() for row in predict(models, [device], doublings(inputs["context"]), **options).rows]
        what = (
            f"Time over context on {device.name}, batch {inputs['batch']}: {', '.join(model.name for model in models)}."
        )
        yield Picture(f"time-{device.name}", picture(own, "svg"), what)
    columns = (*PREDICTION[:2], *((RATIO,) if len(models) > 1 else ()), *PREDICTION[2:])
    for (hw, arch, phase), members in groups(rows):
        formats = formats_text(model_of[arch], device_of[hw], inputs)
        yield Prose(f"{arch} on {hw}, {phase}: {formats}. {basis_of(members)}.")
        yield Table(members, columns)


def doublings(contexts: Sequence[int]) -> list[int]:
    """The contexts with those between them that are twice the one before, for a curve.

    >>> doublings([1024, 5000])
    [1024, 2048, 4096, 5000]
    """
    first, last = min(contexts), max(contexts)
    between = [first * 2**n for n in range((last // first).bit_length()) if first * 2**n < last]
    return sorted({*contexts, *between})


def _verdicts(models: Sequence[Architecture], devices: Sequence[Hardware], inputs: Mapping[str, Any]) -> Iterator[Part]:
    phases = [phase for phase, _ in phases_of(inputs["phase"], None) if phase != "train"] or ["prefill"]
    formats = {name: inputs[name] for name in ("weights", "kv", "activations", "library")}
    last = max(inputs["context"])
    subjects = [model_subject(model) for model in models]
    rows = list(reality(subjects, devices[:1], [last], phases=phases, batch=inputs["batch"], **formats))
    yield Table(rows, VERDICTS)
    yield Items(
        [
            f"{row['name']}: against {row['full_attention']}. Claim: {row['claim_source']}."
            for row in rows[:: len(phases)]
        ]
    )


def _claims(models: Sequence[Architecture]) -> Iterator[Section]:
    """Published claims about these models, judged, where any are recorded."""
    asked = [claim for claim in load_claims() if claim.setup.mixer is None and claim_about(claim, models)]
    rows = [judge(claim) for claim in asked]
    if rows:
        told = [f"{row['id']}: {row['setup']}. {row['reason']}. Source: {row['source']}." for row in rows]
        yield Section("What is claimed of them elsewhere", [Table(rows, CLAIMS), Items(told)])


def _kernels(
    models: Sequence[Architecture],
    devices: Sequence[Hardware],
    inputs: Mapping[str, Any],
    formats: Mapping[str, str | None],
) -> Iterator[Part]:
    last = max(inputs["context"])
    for device in devices:
        calibration = find_calibration(device, inputs["library"])
        for model in models:
            precision = make_precision(model, device, **formats)
            for phase, _ in phases_of(inputs["phase"], None):
                step = make_step(model, phase, last, inputs["batch"])
                found = predict_step(model, device, step, precision, calibration).breakdown
                rows = sorted((kernel._asdict() for kernel in found), key=lambda row: -row["time_s"])
                left = sum(row["share"] for row in rows[MOST_KERNELS:])
                rest = f" {len(rows) - MOST_KERNELS} smaller kernels take {left:.1%}." if left else ""
                yield Prose(f"{model.name} on {device.name}, {phase} at {format_count(last)}.{rest}")
                yield Table(rows[:MOST_KERNELS], KERNELS)


def _errors(
    models: Sequence[Architecture],
    devices: Sequence[Hardware],
    inputs: Mapping[str, Any],
    formats: Mapping[str, str | None],
) -> Iterator[Part]:
    phases = [phase for phase, _ in phases_of(inputs["phase"], None)]
    steps = [
        (model, device, make_step(model, phase, max(inputs["context"]), inputs["batch"]))
        for model in models
        for device in devices
        for phase in phases
    ]
    rows = [
        {"hw": device.name, **row}
        for device in devices
        for row in errors_of_fits(
            find_calibration(device, inputs["library"]),
            [
                kernel
                for model, on, step in steps
                if on is device
                for kernel in model.kernels(step, make_precision(model, device, **formats))
            ],
        )
    ]
    yield Prose(
        "Errors of each fit that these steps use, on points that the fit never saw, as its calibration states them. A "
        "fit without such points says none; a prior rests on no measurement of its kernel."
    )
    yield Table(rows, (shows("hw", right=False), *FITS))


def _formulas(models: Sequence[Architecture], inputs: Mapping[str, Any]) -> Iterator[Part]:
    for model in models:
        for phase, _ in phases_of(inputs["phase"], None):
            found = explanation(model, phase=phase, context=max(inputs["context"]), batch=inputs["batch"])
            sizes = "; ".join(f"{block.name}: {sizes_text(block)}" for block, _ in found.blocks)
            yield Prose(f"{model.name}, {phase}, one layer of each block. D = {model.D}; {sizes}.")
            yield Table(_formula_rows(found), FORMULAS, code=("formula",))


def _formula_rows(found: Explanation) -> list[dict[str, Any]]:
    rows = []
    kept = [formula for formula in found.formulas if formula.quantity in ("tensor_flops", "hbm_bytes", "cache_bytes")]
    for formula in kept:
        names = labels(definitions(formula.expression))
        parts = "".join(f"; {label} = {text(symbol.definition, names)}" for symbol, label in names.items())
        rows.append(
            {
                "block": formula.block,
                "kernel": formula.kernel,
                "quantity": formula.label,
                "formula": f"{text(formula.expression, names)}{parts}",
                "growth": order_text(formula.leading.power, formula.leading.log_power),
            }
        )
    return rows


def _sources(models: Sequence[Architecture], devices: Sequence[Hardware]) -> Iterator[str]:
    for model in models:
        modules = dict.fromkeys(block.module for block in (*model.mixers.values(), *model.ffns.values()))
        yield f"{model.name}: {'; '.join(model.sources)}"
        for module in modules:
            yield f"{module.TITLE}: {'; '.join(module.SOURCES)}"
        doubt = told(unmeasured_in(model))
        if doubt:
            yield f"{model.name}: {doubt}"
        if model.unverified:
            yield f"{model.name}, unverified: {'; '.join(model.unverified)}"
    for device in devices:
        yield f"{device.name}: {'; '.join(dict.fromkeys(device.sources.values()))}"
        if device.unverified:
            yield f"{device.name}, unverified: {', '.join(device.unverified)}"
