"""What `calibrate --device` and `validate --device` or `--measurements` print and draw."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from costmodel.calibration import Calibration, read_calibration
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput
from costmodel.fitting.scoring import MODEL, scores, statistics, worst
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.base import Kernel
from costmodel.kernels.processor import PROCESSOR
from costmodel.loading import available
from costmodel.report.columns import Column, shows, value_text
from costmodel.report.output import emit, note, print_csv, print_json, print_table
from costmodel.timing import expected, spread
from validation import compare, wholes
from validation.asked_facts import at_a_terminal, by_prompt
from validation.calibrate import LIBRARY, calibrate_device, chosen, parse_part, stored
from validation.device import DeviceFacts, facts
from validation.extrapolation import extrapolated
from validation.goals import COLUMNS as GOALS
from validation.goals import goals
from validation.measurements import LIMITS, Measurement, series_of
from validation.work import COLUMNS as WORK
from validation.work import work_rows

Inputs = Mapping[str, Any]

POINTS = (
    shows("operator", right=False),
    shows("implementation", right=False),
    shows("mode", right=False),
    shows("shape", right=False),
    shows("measured_s", "measured"),
    shows("predicted_s", "predicted"),
    Column("error %", lambda row: f"{row['error']:+.0f}"),
)
KERNELS = (
    shows("family", right=False),
    shows("mechanism", right=False),
    shows("phase", right=False),
    shows("kernel", right=False),
    shows("method", right=False),
    shows("n"),
    Column("median %", lambda row: f"{row['median_ape']:.1f}"),
    Column("p90 %", lambda row: f"{row['p90_ape']:.1f}"),
    Column("bias %", lambda row: f"{row['bias']:+.1f}"),
    Column("in 80 %", lambda row: "–" if row["coverage80"] is None else f"{row['coverage80']:.0f}"),
)
SLOPES = (
    shows("operator", right=False),
    shows("implementation", right=False),
    shows("from"),
    shows("to"),
    Column("measured", lambda row: f"{row['measured']:.2f}"),
    Column("predicted", lambda row: f"{row['predicted']:.2f}"),
)
FAILED = tuple(
    shows(name, right=name == "points") for name in ("operator", "implementation", "status", "points", "detail")
)


def calibrate_device_and_print(form: str, inputs: Inputs) -> None:
    """`calibrate --device`: measure, fit, write, and say how right the predictions of the held-out points are."""
    begun = time.monotonic()
    effort = "full" if inputs["full"] else "quick"
    found = calibrate_device(
        inputs["device"],
        effort=effort,
        families=inputs["families"],
        out=inputs["out"],
        part=parse_part(inputs["part"]),
        command=f"costmodel calibrate --device {inputs['device']} --{effort}",
        within_s=inputs["within"],
        ask=by_prompt if at_a_terminal() and not inputs["no_input"] else None,
    )
    calibration = read_calibration(found.place.calibration)
    compared = compare.compared(found.groups, found.hardware, calibration)
    told = _print(form, "calibrate", inputs, compared, found.rows, found.hardware, calibration, everything=False)
    for path in (found.place.profile, found.place.calibration, found.place.measurements):
        note(f"note: wrote {path}")
    if inputs["out"] is not None:
        note(f"note: it is used by: costmodel predict --hw {found.place.profile} --library {found.place.calibration} …")
    ok = sum(row.status == "ok" for row in found.rows)
    if found.left:
        note(f"note: {found.left} points are left; the same command goes on with them")
    note(f"note: {ok} points of {found.stated.name} in {time.monotonic() - begun:.0f} s; {told}")


SPLITS = ("shapes", "extrapolate", "all")
"""Points put aside; long contexts by a fit of short ones; every point."""


def validate_device_and_print(form: str, inputs: Inputs) -> None:
    """`validate --device` or `--measurements`: errors of fresh or stored points, slopes, and what is not measured."""
    split = inputs["split"]
    everything = split == "all"
    if form == "csv" and inputs["worst"]:
        raise BadInput("--worst: csv holds one table, of errors by kernel; --format json holds the worst points too")
    if split not in SPLITS:
        raise BadInput(f"--split {split[:40]!r}: own measurements know {', '.join(SPLITS)}")
    if inputs["measurements"] is not None:
        rows, profile, file = stored(Path(inputs["measurements"]))
        hardware = _hardware(Path(inputs["measurements"]), profile, inputs["hw"], rows)
        named = _library(inputs)
        calibration = read_calibration(file) if file and not named else find_calibration(hardware, named)
        kind = "cpu" if hardware.name == "cpu" else "cuda"
    else:
        stated = facts(inputs["device"])
        hardware, kind = _device(stated, inputs["hw"]), stated.kind
        calibration, everything = find_calibration(hardware, _library(inputs)), True
        rows = _fresh(stated, inputs)
    rows = _asked(rows, inputs)
    if split == "extrapolate":
        compared, calibration = extrapolated(rows, hardware, kind)
    else:
        compared = compare.compared(series_of(rows, hardware, LIBRARY, LIMITS[kind]), hardware, calibration)
    if not any(len(one.asked(everything)) for one in compared):
        raise BadInput("no measured point to score; --split all scores those that were fitted, too")
    if inputs["plot"] is not None:
        _draw(Path(inputs["plot"]), compared, hardware, calibration)
    told = _print(form, "validate", inputs, compared, rows, hardware, calibration, everything, inputs["worst"])
    note(f"note: {told}")
    missing = compare.unmeasured(rows)
    if missing and not inputs["family"]:
        note(f"note: no measured row covers {', '.join(missing)}")


ROOFLINE = (
    shows("operator", right=False),
    shows("implementation", right=False),
    shows("mode", right=False),
    shows("shape", right=False),
    shows("intensity", "FLOP/byte"),
    shows("measured_s", "measured"),
    Column("reached", lambda row: _reached(row)),
    shows("roofline_s", "roofline"),
    shows("under", right=False),
    shows("share", "of roofline"),
    shows("cause", "in between", right=False),
)


def _reached(row: Mapping[str, Any]) -> str:
    """FLOP per second; bytes per second of what multiplies nothing."""
    key = "reached_flop_per_s" if row["flops"] else "reached_bytes_per_s"
    return value_text(key, row[key])


def roofline_and_print(form: str, inputs: Inputs) -> None:
    """`roofline --measurements`: measured points on the device's roofline, and what keeps them from it."""
    from validation.roofline import roofline_rows

    stored_rows, profile, file = stored(Path(inputs["measurements"]))
    hardware = _hardware(Path(inputs["measurements"]), profile, inputs["hw"], stored_rows)
    calibration = read_calibration(file) if file else find_calibration(hardware, None)
    measured = _asked(stored_rows, inputs)
    rows = roofline_rows(measured, hardware, calibration)
    if not rows:
        raise BadInput("no measured point to show: none of these families and contexts has a time")
    if inputs["plot"] is not None:
        from costmodel.report.roofline_plot import draw_roofline

        formats = {str(row.shape["dtype"]) for row in measured}
        dtypes = sorted(formats & set(hardware.compute.tensor))
        draw_roofline(Path(inputs["plot"]), hardware, dtypes, rows)
        note(f"note: wrote {inputs['plot']}")
    if inputs["worst"]:
        rows = sorted(rows, key=lambda row: row["share"])[: inputs["worst"]]
    if form == "json":
        print_json("roofline", inputs, rows, calibration.id)
    elif form == "csv":
        print_csv(rows)
    else:
        title = f"{hardware.name}: {len(rows)} measured points under the roofline of its profile's peaks"
        print_table(form, title, rows, ROOFLINE, keys=2)


def _asked(rows: Sequence[Measurement], inputs: Inputs) -> list[Measurement]:
    """The rows of the families and contexts that were asked for."""
    mine = {runner.name for runner in chosen(inputs["family"])}
    contexts = inputs["context"]
    return [
        row
        for row in rows
        if row.runner in mine and (not contexts or min(contexts) <= int(row.shape["context"]) <= max(contexts))
    ]


def _hardware(folder: Path, profile: Path | None, names: Sequence[str], rows: Sequence[Measurement]) -> Hardware:
    """The device that was named, or whose profile stands beside the rows, or whose name their folder has."""
    if len(names) > 1:
        raise BadInput("--hw: the measurements of a folder are of one device; give one name")
    if names:
        return load_hardware(names[0])
    if profile is not None:
        return load_hardware(str(profile))
    if folder.name in available("hardware_profiles"):
        return load_hardware(folder.name)
    raise BadInput(f"no profile.yaml beside the measurements of {rows[0].device}; name the device with --hw")


def _library(inputs: Inputs) -> str | None:
    """The calibration that was asked for. Raises BadInput for several."""
    names = inputs["library"]
    if len(names) > 1:
        raise BadInput("--library: own measurements are judged by one calibration; give one name or file")
    return names[0] if names else None


def _device(stated: DeviceFacts, names: Sequence[str]) -> Hardware:
    """The profile of a device of this machine, or the one that was named. Raises BadInput for several."""
    from validation.measured_profile import profile_name

    if len(names) > 1:
        raise BadInput("--hw: fresh points are of one device; give one name")
    return load_hardware(names[0] if names else stated.profile or profile_name(stated.name))


def _fresh(stated: DeviceFacts, inputs: Inputs) -> list[Measurement]:
    """Held-out points, measured now; in a file of choice, those that it holds are not measured again."""
    import tempfile

    from validation.calibrate import Progress, of_this_device
    from validation.measurements import Journal
    from validation.sweep import jobs, sweep

    effort = "full" if inputs["full"] else "quick"
    wanted = [job for job in jobs(chosen(inputs["family"]), stated, effort) if job.planned.role != "fit"]
    contexts = inputs["context"]
    if contexts:
        wanted = [job for job in wanted if min(contexts) <= int(job.planned.shape["context"]) <= max(contexts)]
    if not wanted:
        raise BadInput("no planned point has such a context")
    told, until = Progress(), None if inputs["within"] is None else time.monotonic() + inputs["within"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(inputs["out"] or f"{folder}/fresh.csv")
        if path.suffix != ".csv":
            raise BadInput(f"--out {str(path)[:80]}: expected the name of a .csv file")
        journal = of_this_device(Journal(path), stated)
        try:
            rows = sweep(wanted, stated, journal, effort=effort, progress=told, until=until)
        finally:
            told.close()
    if inputs["out"]:
        left = len(wanted) - len(rows)
        rest = f"{left} points are left; the same command goes on with them" if left else "without it all are new"
        note(f"note: the rows are in {path}; {rest}")
    return rows


def _print(
    form: str,
    command: str,
    inputs: Inputs,
    compared: Sequence[compare.Compared],
    rows: Sequence[Measurement],
    hardware: Hardware,
    calibration: Calibration,
    everything: bool,
    worst_count: int = 0,
) -> str:
    """Print errors per operator, slopes, points and failures; the one line that sums them up."""
    outcomes = compare.outcomes(compared, hardware, everything)
    split = "all" if everything else "extrapolate" if inputs.get("split") == "extrapolate" else "held-out"
    kind = "cpu" if hardware.name == PROCESSOR else "cuda"
    work = work_rows(rows)
    scored = [score._asdict() for score in scores(outcomes, split)]
    points = compare.point_rows(compared, everything)
    slopes = compare.slopes(compared)
    failed = compare.failures(rows)
    whole = wholes.wholes(rows, hardware, calibration)
    bad = worst(outcomes, worst_count) if worst_count else []
    if form == "json":
        print_json(
            command,
            inputs,
            scored,
            calibration.id,
            points=points,
            slopes=slopes,
            failures=failed,
            worst=bad,
            wholes=whole,
            work=work,
            unmeasured=[{"mechanism": name} for name in compare.unmeasured(rows)],
            goals=goals(kind, split, outcomes, slopes, work),
        )
    elif form == "csv":
        print_csv(scored)
    else:
        print_table(form, f"{hardware.name}: predicted against measured", points, POINTS, keys=2)
        emit("")
        own = [row for row in scored if row["method"] == MODEL]
        print_table(form, f"error by operator, {split} points", own, KERNELS, keys=3)
        if slopes:
            emit("")
            print_table(form, "exponent of time over context", slopes, SLOPES, keys=1)
        if work:
            emit("")
            print_table(form, "work seen, over what the formulas claim, and kernels launched", work, WORK, keys=1)
        if whole:
            emit("")
            print_table(form, "whole models: the sum of their kernels beside the step", whole, wholes.COLUMNS, keys=2)
        if failed:
            emit("")
            print_table(form, "points without a time", failed, FAILED, keys=2)
        if bad:
            emit("")
            print_table(form, f"the {len(bad)} worst points", bad, WORST, keys=2)
        emit("")
        print_table(form, "goals", goals(kind, split, outcomes, slopes, work), GOALS, keys=1)
    return _summary(outcomes)


WORST = (
    shows("family", right=False),
    shows("kernel", right=False),
    shows("shape", right=False),
    shows("measured_s", "measured"),
    shows("predicted_s", "predicted"),
    Column("error %", lambda row: f"{row['error']:+.0f}"),
)


def _summary(outcomes: Sequence[Any]) -> str:
    import numpy

    own = [one for one in outcomes if one.method == MODEL and len(one.rows)]
    if not own:
        return "no point that is held out has been measured yet; the same command goes on"
    told = statistics(numpy.concatenate([one.gaps for one in own]), numpy.concatenate([one.inside for one in own]))
    count = sum(len(one.rows) for one in own)
    return (
        f"{count} points: median error {told['median_ape']:.1f} %, 90th percentile {told['p90_ape']:.1f} %, "
        f"{told['coverage80']:.0f} % inside the 80 % interval"
    )


def _draw(folder: Path, compared: Sequence[compare.Compared], hardware: Hardware, calibration: Calibration) -> None:
    """One figure with a panel for each operator, and its points on the predicted curves."""
    from costmodel.report.measured_plot import Curve, Panel, draw_measured

    def seconds(kernels: Sequence[Kernel], source: str) -> tuple[float, float]:
        times = expected(kernels, hardware, calibration._replace(source=source))
        return float(sum(entry.time_s for entry in times)), float(spread(times, hardware))

    panels: dict[str, list[Curve]] = {}
    for one in compared:
        for line in compare.lines(one):
            if len(line.rows) < 2 or line.contexts[0] == line.contexts[-1]:
                continue
            curve = Curve(
                fields={
                    "": one.series.kernel,
                    "mode": one.mode,
                    **{name: str(value) for name, value in line.shape.items()},
                },
                points=compare.curve(one, line, hardware, partial(seconds, source=one.series.source)),
                contexts=[float(value) for value in line.contexts],
                seconds=[float(one.series.seconds[index]) for index in line.rows],
                held_out=[bool(one.series.aside is not None and one.series.aside[index]) for index in line.rows],
            )
            panels.setdefault(one.runner, []).append(curve)
    if not panels:
        raise BadInput("--plot: no operator was measured at two contexts that differ in nothing else")
    path = draw_measured(folder, hardware.name, [Panel(name, curves) for name, curves in panels.items()])
    note(f"note: wrote {path}")
