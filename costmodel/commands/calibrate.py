"""`costmodel calibrate`."""

import os
from typing import Annotated, Any

import typer

from costmodel.commands.options import (
    Format,
    Libraries,
    on_this_machine,
    one_thread_a_process,
    only_with,
    without,
    words,
)

WHOLE = "1/1"
"""The one part of a sweep that is not divided."""


def run(
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Measure this device of the machine: cpu, cuda:0, …"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --device: what a calibration needs, as without --full.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --device: the whole sweep.")] = False,
    families: Annotated[
        list[str] | None,
        typer.Option("--families", metavar="NAME,…", help="With --device: only these families, mechanisms, operators."),
    ] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="I/N", help="With --device: the I-th of N parts of the operators.")
    ] = WHOLE,
    within: Annotated[
        int | None,
        typer.Option(
            "--within", metavar="SECONDS", min=0, help="With --device: end the points after this; the next run goes on."
        ),
    ] = None,
    no_input: Annotated[
        bool, typer.Option("--no-input", help="With --device: ask for no facts of the device, on a terminal either.")
    ] = False,
    hw: Annotated[
        str | None, typer.Option("--hw", metavar="NAME", help="The device that the tables were measured on.")
    ] = None,
    from_silicon: Annotated[
        str | None,
        typer.Option("--from-silicon", metavar="DIR", help="Measured tables in aiconfigurator's layout."),
    ] = None,
    from_csv: Annotated[
        str | None,
        typer.Option("--from-csv", metavar="FILE", help="Own measurements: family, shape columns, seconds."),
    ] = None,
    from_serving: Annotated[
        str | None,
        typer.Option("--from-serving", metavar="FILE", help="Measured serving runs: fits the engine's host times."),
    ] = None,
    library: Libraries = None,
    points: Annotated[
        int | None,
        typer.Option("--points", metavar="N", min=1, help="Fit only N points per kernel, and print which are chosen."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Which points a large table is thinned to.")
    ] = 0,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR|FILE.yaml", help="Where to write. [default: the user's data folder]"),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="TEXT", help="Where the measurements come from, for the file.")
    ] = None,
    form: Format = "table",
) -> None:
    """Fit the time forms to measured kernels, write a calibration, and say how right it is on points put aside.

    costmodel calibrate --device cuda:0

    costmodel calibrate --from-silicon aiconfigurator/ --hw h100-sxm --library vllm
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    one_thread_a_process()
    if quick:
        without("--quick", {"--full": full or None})
    if device is not None:
        others: dict[str, Any] = {"--from-silicon": from_silicon, "--from-csv": from_csv}
        others |= {"--from-serving": from_serving}
        others |= {"--library": library, "--points": points, "--source": source, "--seed": seed or None}
        without("--device", {"--hw": hw, **others})
        asked: dict[str, Any] = {"device": device, "full": full, "part": part, "out": out, "within": within}
        asked |= {"families": words(families or (), "--families"), "no_input": no_input}
        on_this_machine("calibrate_device_and_print")(form, asked)
        return
    measuring = {
        "--quick": quick,
        "--full": full,
        "--families": families,
        "--part": part != WHOLE,
        "--within": within is not None,
    }
    only_with("--device", {**measuring, "--no-input": no_input})
    if from_serving is not None:
        others = {"--from-silicon": from_silicon, "--from-csv": from_csv, "--points": points, "--seed": seed or None}
        without("--from-serving", others)
        from costmodel.report.serving import calibrate_serving_and_print

        asked = {"from_serving": from_serving, "hw": words([hw] if hw else (), "--hw")}
        asked |= {"library": words(library or (), "--library"), "out": out, "source": source}
        calibrate_serving_and_print(form, {**asked, "jobs": os.cpu_count() or 1})
        return
    if hw is None:
        from costmodel.errors import BadInput

        raise BadInput("name a device of this machine with --device, or with --hw the one that tables were measured on")
    from costmodel.report.calibrations import calibrate_and_print

    inputs = {
        "hw": hw,
        "from_silicon": from_silicon,
        "from_csv": from_csv,
        "library": words(library or (), "--library"),
        "points": points,
        "seed": seed,
        "out": out,
        "source": source,
    }
    calibrate_and_print(form, inputs)
