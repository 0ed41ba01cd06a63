"""`costmodel tradeoff`."""

from typing import Annotated

import typer

from costmodel.commands.options import (
    Activations,
    Batch,
    Format,
    Kv,
    Library,
    Mechanisms,
    Settings,
    Weights,
    question,
    words,
)


def run(
    comparison: Annotated[
        list[str] | None,
        typer.Option("--comparison", metavar="NAME,…", help="Published comparisons. [default: all that are recorded]"),
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", "-a", metavar="NAME,…", help="Only these architectures.")
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Devices. [default: h200-sxm]")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="COUNTS", help="Tokens after the step. [default: 128k]"),
    ] = None,
    batch: Batch = "1",
    rank: Annotated[
        str | None,
        typer.Option("--rank", metavar="METRIC", help="Order by a published score, where the budgets are matched."),
    ] = None,
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw gain against score into a .png or .svg file.")
    ] = None,
    form: Format = "table",
) -> None:
    """Efficiency, predicted, against capability, published, with what a state can recall at most.

    costmodel tradeoff --comparison kimi-linear --context 128k,1M
    """
    from costmodel.report.output import checked_format, plot_format

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    inputs = question(arch or [], hw or ["h200-sxm"], context or ["128k"], None, batch, None, settings, **formats)
    inputs = {"comparison": words(comparison or (), "--comparison"), **inputs, "rank": rank}
    del inputs["phase"], inputs["new_tokens"]
    from costmodel.report.tradeoff import tradeoff_and_print

    tradeoff_and_print(form, inputs, rank, plot)
