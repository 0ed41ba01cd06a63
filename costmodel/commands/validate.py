"""`costmodel validate`."""

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

SHAPES = "shapes"
"""The split where none is named."""


def run(
    silicon: Annotated[
        str | None, typer.Option("--silicon", metavar="DIR", help="Measured tables in aiconfigurator's layout.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Measure fresh points on this device: cpu, cuda:0, …"),
    ] = None,
    measurements: Annotated[
        str | None,
        typer.Option("--measurements", metavar="DIR", help="Stored rows of `calibrate --device`: a folder or a file."),
    ] = None,
    serving: Annotated[
        str | None, typer.Option("--serving", metavar="FILE", help="Measured serving runs: errors of TTFT and TPOT.")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="COUNTS", help="With own measurements: only contexts in this range."),
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Only these devices.")] = None,
    library: Libraries = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", metavar="NAME,…", help="Only these kernel families.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="shapes, extrapolate, all; of tables also points=N, unseen-head-dim, unseen-group, unseen-gpu=NAME.",
        ),
    ] = SHAPES,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", metavar="NAME,…", help="Only these: costmodel, costmodel+table, roofline, …"),
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Fit again instead of using shipped calibrations.")] = False,
    worst: Annotated[int, typer.Option("--worst", metavar="N", min=0, help="Also name the N worst points.")] = 0,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="DIR", help="Draw predicted over measured, and error over context.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="With --device: the points of the whole sweep.")] = False,
    within: Annotated[
        int | None,
        typer.Option(
            "--within", metavar="SECONDS", min=0, help="With --device: end the points after this; the next run goes on."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE.csv", help="With --device: keep the rows, for the same command to go on."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes. [default: one per core]")
    ] = None,
    form: Format = "table",
) -> None:
    """Errors of the predictions on measurements that no fit saw, beside four baselines.

    costmodel validate --silicon aiconfigurator/ --split extrapolate

    costmodel validate --device cuda:0 --context 4k..4M
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    one_thread_a_process()
    if device is None:
        only_with("--device", {"--full": full, "--within": within is not None, "--out": out})
    if serving is not None:
        without("--serving", {"--silicon": silicon, "--device": device, "--measurements": measurements})
        of_kernels = {"--family": family, "--refit": refit, "--plot": plot, "--split": split != SHAPES}
        only_with("--silicon, --device or --measurements", {**of_kernels, "--context": context})
        from costmodel.report.serving import validate_serving_and_print

        only = {"hw": words(hw or (), "--hw"), "library": words(library or (), "--library")}
        only["methods"] = words(methods or (), "--methods")
        count = jobs or os.cpu_count() or 1
        validate_serving_and_print(form, {"serving": serving, **only, "worst": worst, "jobs": count})
        return
    if device is not None or measurements is not None:
        from costmodel.units import parse_counts

        without("--device" if device is not None else "--measurements", {"--silicon": silicon})
        if device is not None:
            without("--device", {"--measurements": measurements})
        only_with("--silicon", {"--methods": methods, "--refit": refit, "--jobs": jobs})
        asked: dict[str, Any] = {"device": device, "measurements": measurements, "split": split, "plot": plot}
        asked |= {"library": words(library or (), "--library"), "full": full, "within": within, "out": out}
        asked |= {"worst": worst, "hw": words(hw or (), "--hw"), "family": words(family or (), "--family")}
        asked["context"] = [count for text in context or () for count in parse_counts(text)]
        on_this_machine("validate_device_and_print")(form, asked)
        return
    if silicon is None:
        from costmodel.errors import BadInput

        raise BadInput("give --silicon DIR, --serving FILE, --measurements DIR, or --device DEVICE")
    only_with("--device or --measurements", {"--context": context})
    from costmodel.report.calibrations import validate_and_print

    inputs = {
        "silicon": silicon,
        "hw": words(hw or (), "--hw"),
        "library": words(library or (), "--library"),
        "family": words(family or (), "--family"),
        "split": split,
        "methods": words(methods or (), "--methods"),
        "refit": refit,
        "worst": worst,
        "plot": plot,
        "jobs": jobs or os.cpu_count() or 1,
    }
    validate_and_print(form, inputs)
