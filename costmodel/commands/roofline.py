"""`costmodel roofline`."""

from typing import Annotated, Any

import typer

from costmodel.commands.options import Format, on_this_machine, words


def run(
    measurements: Annotated[
        str,
        typer.Option("--measurements", metavar="DIR", help="Stored rows of `calibrate --device`: a folder or a file."),
    ],
    hw: Annotated[
        list[str] | None,
        typer.Option("--hw", metavar="NAME", help="The device, where no profile stands beside the rows."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option("--family", metavar="NAME,…", help="Only these kernel families, mechanisms or operators."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option("--context", "-c", metavar="COUNTS", help="Only contexts in this range.")
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, help="Only the N points furthest from the roofline.")
    ] = 0,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the roofline into a .png or .svg file.")
    ] = None,
    form: Format = "table",
) -> None:
    """Measured kernels on the device's roofline: the gap to it, and what the model says is in between.

    costmodel roofline --measurements validation/measurements/h100-sxm --plot roofline.png
    """
    from costmodel.report.output import checked_format, plot_format
    from costmodel.units import parse_counts

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    asked: dict[str, Any] = {"measurements": measurements, "worst": worst, "plot": plot}
    asked |= {"hw": words(hw or (), "--hw"), "family": words(family or (), "--family")}
    asked["context"] = [count for text in context or () for count in parse_counts(text)]
    on_this_machine("roofline_and_print")(form, asked)
