"""`calibrate` and `validate` from plain inputs to what is printed."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.report.columns import Column, Row, shows
from costmodel.report.output import emit, note, print_csv, print_json, print_table
from costmodel.report.progress import Progress

Inputs = Mapping[str, Any]


def _ape(key: str) -> Column:
    return Column(
        {"median_ape": "median %", "mean_ape": "mean %", "p90_ape": "p90 %", "bias": "bias %"}[key],
        lambda row: "–" if row.get(key) is None else f"{row[key]:.1f}",
    )


def _coverage() -> Column:
    return Column("in 80 %", lambda row: "–" if row.get("coverage80") is None else f"{row['coverage80']:.0f}")


APES = tuple(_ape(key) for key in ("median_ape", "mean_ape", "p90_ape"))
FITTED = (
    shows("family", right=False),
    shows("kernel", right=False),
    shows("instance", right=False),
    shows("module", right=False),
    shows("points"),
    shows("held_out", "held out"),
    *APES,
    _coverage(),
    Column("flagged", lambda row: ", ".join(f"{count} {reason}" for reason, count in row["flagged"].items()), False),
)


CSV_LIBRARY = "csv"
"""What a calibration from a CSV file is called: `own` is what `calibrate --device` measured."""


def calibrate_and_print(form: str, inputs: Inputs) -> None:
    """`calibrate`: fit, write, and say what was fitted and what was refused."""
    from costmodel.fitting.calibrate import Source, calibrate, save, silicon_sources
    from costmodel.fitting.calibration_file import Header
    from costmodel.hardware import load_hardware
    from costmodel.loading import user_folder

    if (inputs["from_silicon"] is None) == (inputs["from_csv"] is None):
        raise BadInput("give either --from-silicon DIR or --from-csv FILE")
    sources: Sequence[Source]
    if inputs["from_csv"] is not None:
        from costmodel.fitting.own_measurements import csv_source

        device = load_hardware(inputs["hw"])
        if len(inputs["library"]) > 1:
            raise BadInput("--library: a CSV file holds the measurements of one library; give one name")
        sources = [csv_source(Path(inputs["from_csv"]), device, (inputs["library"] or [CSV_LIBRARY])[0])]
    else:
        sources = silicon_sources(
            Path(inputs["from_silicon"]), _system(inputs["hw"], Path(inputs["from_silicon"])), inputs["library"]
        )
    place = f"--out {inputs['out']}" if inputs["out"] else "the user's calibrations"
    rows: list[dict[str, Any]] = []
    planned: list[dict[str, Any]] = []
    partials: list[Path] = []
    for source in sources:
        for words in source.unread:
            note(f"note: {words}")
        path = _output(inputs["out"], source.hardware.name, source.library, len(sources), user_folder("calibrations"))
        versions = Counter(one.version for one in source.series if one.library == source.library and one.version)
        version = versions.most_common(1)[0][0] if versions else ""
        header = Header(
            id="/".join((source.hardware.name, f"{source.library}-{version}".rstrip("-"))),
            hardware=source.hardware.name,
            library=source.library,
            version=version,
            source=inputs["source"] or _where_from(inputs),
            notice=_notice(inputs),
            seed=inputs["seed"],
            command=_command(inputs, source.library),
        )
        progress = Progress()
        partial = path.with_suffix(".partial")
        begun = time.monotonic()
        calibrated = calibrate(
            source, header, points=inputs["points"], seed=inputs["seed"], partial=partial, progress=progress.at
        )
        progress.close()
        save(calibrated, path)
        partials.append(partial)
        which = {"hw": source.hardware.name, "library": source.library}
        planned += [{**which, **row} for row in planned_rows(calibrated)]
        rows += [{**which, **row} for row in calibrated.rows]
        if form == "table":
            _print_fitted(source, calibrated, inputs["points"])
        resumed = f"; {calibrated.resumed} kernels taken from the interrupted run" if calibrated.resumed else ""
        note(f"note: wrote {path} in {time.monotonic() - begun:.0f} s ({place}){resumed}")
    # Only now, so that a run that is interrupted in a later library does not fit the earlier ones again.
    for partial in partials:
        partial.unlink(missing_ok=True)
    if form == "json":
        print_json("calibrate", inputs, rows, planned=planned)
    elif form == "csv":
        print_csv(rows)
    elif form == "markdown":
        print_table(form, "", rows, (shows("library", right=False), *FITTED))
        if planned:
            emit("")
            print_table(form, _worth(planned), planned, (shows("library", right=False), *PLANNED))


def _system(hw: str, directory: Path) -> str:
    """The name of a system folder's device: what was given, or the only one, there or of all, that begins so."""
    from costmodel.fitting.device_sheet import device_name
    from costmodel.fitting.silicon import tables
    from costmodel.hardware import load_hardware

    begun = {file.device for file in tables(directory) if file.device.startswith(device_name(hw))}
    if len(begun) == 1:
        return begun.pop()
    try:
        return load_hardware(hw).name
    except BadInput:
        return device_name(hw)


def _output(out: str | None, hardware: str, library: str, count: int, user: Path) -> Path:
    """Where a calibration goes: the user's folder, a file, or a folder of one's own."""
    if out is None:
        return user / hardware / f"{library}.yaml"
    path = Path(out)
    if path.suffix == ".yaml":
        if count > 1:
            raise BadInput(f"--out {out}: one file for {count} libraries; name a folder, or one --library")
        return path
    return path / hardware / f"{library}.yaml" if count > 1 else path / "calibration.yaml"


SILICON_NOTICE = (
    "Fitted to kernel times of NVIDIA aiconfigurator's silicon database (Apache-2.0, Copyright (c) 2025-2026 "
    "NVIDIA CORPORATION & AFFILIATES); no measured row is contained."
)


def _where_from(inputs: Inputs) -> str:
    if inputs["from_csv"] is not None:
        return f"own measurements, {Path(inputs['from_csv']).name}"
    return "NVIDIA aiconfigurator silicon database (github.com/ai-dynamo/aiconfigurator), systems/data"


def _notice(inputs: Inputs) -> str:
    return SILICON_NOTICE if inputs["from_silicon"] is not None else ""


def _command(inputs: Inputs, library: str) -> str:
    given = "--from-silicon DIR" if inputs["from_silicon"] is not None else "--from-csv FILE"
    points = f" --points {inputs['points']}" if inputs["points"] else ""
    return f"costmodel calibrate {given} --hw {inputs['hw']} --library {library}{points} --seed {inputs['seed']}"


PLANNED = tuple(shows(key, right=False) for key in ("family", "kernel", "instance", "shape", "bound"))


def planned_rows(calibrated: Any) -> list[dict[str, Any]]:
    """The points that a planner chose, in the order of their worth, and what bounds each; none without a planner."""
    return [
        {
            "family": one.series.family,
            "kernel": one.series.kernel,
            "instance": one.series.instance,
            "shape": ", ".join(f"{name}={value:g}" for name, value in one.series.shapes.iloc[one.row].items()),
            "bound": one.bound,
        }
        for one in calibrated.planned
    ]


def _worth(planned: Sequence[Any]) -> str:
    return f"{len(planned)} points, in the order of their worth"


def _print_fitted(source: Any, calibrated: Any, points: int | None) -> None:
    fitted = [row for row in calibrated.rows if row["refused"] is None]
    refused = [row for row in calibrated.rows if row["refused"] is not None]
    title = f"{source.hardware.name}, {source.library}: {len(fitted)} kernel instances fitted"
    print_table("table", title, fitted, FITTED, keys=3)
    if refused:
        columns = (*FITTED[:4], shows("refused", "refused because", right=False))
        emit("")
        print_table("table", f"{len(refused)} refused", refused, columns, keys=3)
    if points is not None:
        planned = planned_rows(calibrated)
        emit("")
        print_table("table", _worth(planned), planned, PLANNED, keys=3)
    emit("")


def validate_and_print(form: str, inputs: Inputs) -> None:
    """`validate --silicon`: errors on unseen points, per kernel and per family, beside the baselines."""
    from costmodel.errors import unknown
    from costmodel.fitting import scoring
    from costmodel.fitting.splits import parse_split

    if form == "csv" and inputs["worst"]:
        raise BadInput("--worst: csv holds one table, of errors by kernel; --format json holds the worst points too")
    split = parse_split(inputs["split"])
    for name in inputs["methods"]:
        if name not in scoring.METHODS:
            raise unknown("method", name, scoring.METHODS)
    methods = tuple(inputs["methods"]) or scoring.METHODS
    directory = Path(inputs["silicon"])
    systems = [_system(name, directory) for name in inputs["hw"]]
    wanted = scoring.jobs(directory, systems, inputs["library"], inputs["family"], split, methods, inputs["refit"])
    progress = Progress()
    progress.at("reading", 0, len(wanted))
    outcomes, remarks = scoring.run(
        wanted, inputs["jobs"], lambda name, left: progress.at(name, len(wanted) - left, len(wanted))
    )
    progress.close()
    for words in remarks:
        note(f"note: {words}")
    if not any(len(outcome.rows) for outcome in outcomes):
        raise BadInput(f"{directory}: no point to score for split {split.text}")
    rows = [score._asdict() for score in scoring.scores(outcomes, split.text)]
    summary = scoring.summaries(outcomes, split)
    worst = scoring.worst(outcomes, inputs["worst"]) if inputs["worst"] else []
    if inputs["plot"] is not None:
        from costmodel.report.validation_plot import draw_validation

        for path in draw_validation(Path(inputs["plot"]), outcomes, split.text):
            note(f"note: wrote {path}")
    if form == "json":
        told = [{"remark": words} for words in remarks]
        print_json("validate", inputs, rows, families=summary, worst=worst, remarks=told)
        return
    if form == "csv":
        print_csv(rows)
        return
    own = by_kernel(rows, scoring.MODEL)
    if own:
        title = f"split {split.text}: error of costmodel by kernel"
        print_table(form, title, own, (*KERNELS, *_beside(own)), keys=5)
        emit("")
    print_table(form, f"split {split.text}: by family, weighted by points", summary, family_columns(summary), keys=1)
    if worst:
        emit("")
        print_table(form, f"the {len(worst)} worst points", worst, WORST, keys=3)


def by_kernel(rows: Sequence[Row], method: str) -> list[Row]:
    """The rows of one method, each with the median and the 90th percentile of the others on the same points."""
    beside: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["method"] != method and row["median_ape"] is not None:
            beside.setdefault(_points(row), {})[row["method"]] = (row["median_ape"], row["p90_ape"])
    return [{**row, "others": beside.get(_points(row), {})} for row in rows if row["method"] == method]


def _points(row: Row) -> tuple[str, ...]:
    """What says which points a row is about."""
    return tuple(str(row[name]) for name in ("system", "library", "version", "family", "kernel", "mechanism", "phase"))


KERNELS = (
    shows("system", right=False),
    shows("library", right=False),
    shows("version", right=False),
    shows("family", right=False),
    shows("kernel", right=False),
    shows("n"),
    shows("flagged"),
    *APES,
    _ape("bias"),
    _coverage(),
)
WORST = (
    shows("system", right=False),
    shows("library", right=False),
    shows("family", right=False),
    shows("kernel", right=False),
    shows("instance", right=False),
    shows("shape", right=False),
    shows("measured_s", "measured"),
    shows("predicted_s", "predicted"),
    Column("error %", lambda row: f"{row['error']:+.0f}"),
)


def family_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Columns of the summary: reached, floor and stretch, and each baseline's median and 90th percentile."""
    return (
        shows("family", right=False),
        shows("n"),
        shows("flagged"),
        Column("reached", lambda row: _pair(row["reached"])),
        Column("floor", lambda row: _pair(row["floor"])),
        Column("stretch", lambda row: _pair(row["stretch"])),
        Column("met", lambda row: row["met"], right=False),
        _ape("mean_ape"),
        _ape("bias"),
        _coverage(),
        *_beside(rows),
    )


def _beside(rows: Sequence[Row]) -> tuple[Column, ...]:
    """A column for each baseline: its median and 90th percentile."""
    others = list(dict.fromkeys(name for row in rows for name in row["others"]))
    return tuple(Column(name, partial(_other, name), True, "beside") for name in others)


def _other(name: str, row: Row) -> str:
    return _pair(row["others"].get(name))


def _pair(pair: Sequence[float] | None) -> str:
    """Median / 90th percentile.

    >>> _pair((4.26, 196.7)), _pair(None)
    ('4.3 / 197', '–')
    """
    return "–" if pair is None else " / ".join(f"{error:.2g}" if error < 10 else f"{error:.0f}" for error in pair)
