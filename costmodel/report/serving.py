"""`calibrate --from-serving` and `validate --serving`: from a file of measured runs to what is printed and written."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.loading import user_folder, write_atomically
from costmodel.planning import serving_scores
from costmodel.planning.engine_constants import CONSTANTS
from costmodel.planning.serving_fit import ServingFit, constants_document, document_text, fit_rows
from costmodel.planning.serving_predictions import read_rows
from costmodel.planning.serving_rows import ServingRow
from costmodel.planning.silicon_rows import MARK
from costmodel.report.columns import Column, Row, shows, value_text
from costmodel.report.output import emit, note, print_csv, print_json, print_table
from costmodel.report.progress import Progress

Inputs = Mapping[str, Any]

NOTICE = (
    "Fitted to end-to-end runs of NVIDIA aiconfigurator's silicon database (Apache-2.0, Copyright (c) 2025-2026 "
    "NVIDIA CORPORATION & AFFILIATES); no measured row is contained."
)
SAMPLE = "NVIDIA aiconfigurator silicon database (github.com/ai-dynamo/aiconfigurator), systems/silicon_sample.csv"


def _rows(inputs: Inputs, option: str) -> list[ServingRow]:
    """The runs of a file, of the libraries and devices asked for."""
    rows = read_rows(Path(inputs[option]))
    for name, values in (("library", {row.library for row in rows}), ("hw", {row.hw for row in rows})):
        strange = [wanted for wanted in inputs[name] if wanted not in values]
        if strange:
            raise BadInput(f"--{name} {strange[0][:40]}: no such run; the file has {', '.join(sorted(values))}")
    chosen = [row for row in rows if not inputs["library"] or row.library in inputs["library"]]
    return [row for row in chosen if not inputs["hw"] or row.hw in inputs["hw"]]


def _tell(rows: Sequence[ServingRow]) -> None:
    """What a rule did to the rows, by its name and with its count."""
    whole = sum(row.merged for row in rows)
    told = [f"{whole} rows, {len(rows)} after merging equal runs"]
    reread = sum(row.merged for row in rows if row.reread)
    if reread:
        told.append(f"{reread} with their layout read again")
    for name in ("flagged", "unscored"):
        reasons = {getattr(row, name) for row in rows} - {""}
        for reason in sorted(reasons):
            count = sum(row.merged for row in rows if getattr(row, name) == reason)
            told.append(f"{count} {name}: {reason}")
    note("note: " + "; ".join(told))


def calibrate_serving_and_print(form: str, inputs: Inputs) -> None:
    """Fit the engine constants of each library in the file, write them, and print them."""
    path = Path(inputs["from_serving"])
    rows = _rows(inputs, "from_serving")
    if not any(row.scored for row in rows):
        raise BadInput(f"{path}: no run can be used for a fit")
    progress = Progress()
    fit = fit_rows(rows, inputs["jobs"], progress.at)
    progress.close()
    libraries = sorted({one.library for one in fit.responses})
    sample = MARK in path.open(encoding="utf-8-sig").readline()
    told = {
        "source": inputs["source"] or (SAMPLE if sample else f"own measurements, {path.name}"),
        "notice": NOTICE if sample else "",
        "command": "costmodel calibrate --from-serving FILE",
    }
    table = []
    for library in libraries:
        document = constants_document(fit, library, told)
        target = _target(inputs["out"], library, len(libraries))
        write_atomically(target, document_text(document).encode())
        note(f"note: wrote {target}")
        table += _constant_rows(document)
    _tell(rows)
    _refused(fit)
    if form == "json":
        print_json("calibrate", inputs, table)
    elif form == "csv":
        print_csv(table)
    else:
        title = f"engine constants from {len(fit.responses)} runs of {len({one.model for one in fit.responses})} models"
        print_table(form, title, table, FITTED, keys=2)


def _refused(fit: ServingFit) -> None:
    for reason in sorted({reason for _, reason in fit.refused}):
        count = sum(row.merged for row, other in fit.refused if other == reason)
        note(f"note: {count} not used: {reason}")


def _target(out: str | None, library: str, count: int) -> Path:
    """The user's folder, a folder of one's own, or a file for a single library."""
    if out is None:
        folder = user_folder("engines")
    elif out.endswith(".yaml"):
        if count > 1:
            raise BadInput(f"--out {out}: one file for {count} libraries; name a folder, or one --library")
        return Path(out)
    else:
        folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{library}.yaml"


def _constant_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    sets = {"any other": document["constants"], **document["devices"]}
    return [
        {
            "library": document["library"],
            "hw": hw,
            "runs": document["runs"],
            **values,
            **{f"{name}_spread": value for name, value in document.get("spread", {}).items()},
        }
        for hw, values in sets.items()
    ]


def _seconds(name: str, row: Row) -> str:
    return value_text("time_s", row[name]) if row[name] >= 0 else "−" + value_text("time_s", -row[name])


FITTED = (
    shows("library", right=False),
    shows("hw", right=False),
    shows("runs"),
    *(Column(constant.name, partial(_seconds, constant.name)) for constant in CONSTANTS),
)


def validate_serving_and_print(form: str, inputs: Inputs) -> None:
    """Errors of TTFT and TPOT on the runs of a file, by library and model, beside the baselines."""
    rows = _rows(inputs, "serving")
    methods = inputs["methods"] or list(serving_scores.METHODS)
    for name in methods:
        if name not in serving_scores.METHODS:
            from costmodel.errors import unknown

            raise unknown("method", name, serving_scores.METHODS)
    progress = Progress()
    found, rows = serving_scores.outcomes(rows, methods, inputs["jobs"], progress.at)
    progress.close()
    if not found:
        raise BadInput(f"{inputs['serving']}: no run can be scored")
    lines = serving_scores.scores(found, rows)
    summary = serving_scores.summaries(found, rows)
    worst = serving_scores.worst(found, inputs["worst"])
    _tell(rows)
    if form == "json":
        print_json("validate", inputs, lines, summary=summary, worst=worst)
        return
    if form == "csv":
        print_csv([*lines, *summary])
        return
    own = [line for line in lines if line["method"] == serving_scores.MODEL and line["n"]]
    print_table(form, "error of costmodel on models that no fit saw", own, SCORES, keys=5)
    emit("")
    print_table(form, "all runs, by library and by model", [_aimed(line) for line in summary], SUMMARY, keys=4)
    if worst:
        emit("")
        print_table(form, f"the {len(worst)} worst", worst, WORST, keys=4)


def _aimed(line: Row) -> dict[str, Any]:
    """A line with what was aimed at, where it is about all runs."""
    whole = line["library"] == line["model"] == serving_scores.ALL and line["method"] == serving_scores.MODEL
    goals = (serving_scores.FLOOR, serving_scores.STRETCH) if whole else ({}, {})
    return {**line, **{name: goal.get(line["metric"]) for name, goal in zip(("floor", "stretch"), goals, strict=True)}}


def _number(key: str, form: str, row: Row) -> str:
    return "–" if row[key] is None else format(row[key], form)


def _goal(key: str, row: Row) -> str:
    return "" if row[key] is None else f"{row[key][0]:g} / {row[key][1]:g}"


ERRORS = (
    shows("n"),
    *(
        Column(title, partial(_number, key, ".1f"), group="absolute error %")
        for key, title in (("median_ape", "median"), ("mean_ape", "mean"), ("p90_ape", "p90"))
    ),
    Column("median\n|ln|", partial(_number, "median_log_error", ".3f")),
    Column("bias %", partial(_number, "bias", "+.1f")),
    Column("in 80 %", partial(_number, "coverage80", ".0f")),
)
SCORES = (*(shows(key, right=False) for key in ("system", "library", "model", "mode", "metric")), *ERRORS)
SUMMARY = (
    *(shows(key, right=False) for key in ("library", "model", "metric", "method")),
    *ERRORS,
    Column("floor", partial(_goal, "floor")),
    Column("stretch", partial(_goal, "stretch")),
)
WORST = (
    *(shows(key, right=False) for key in ("system", "library", "model", "run", "metric")),
    shows("line"),
    shows("measured_s", "measured"),
    shows("predicted_s", "predicted"),
    Column("error %", lambda row: f"{row['error']:+.0f}"),
)
