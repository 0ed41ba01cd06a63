"""`costmodel reality-check`."""

from typing import Annotated

import typer

from costmodel.commands.options import Activations, Batch, Format, Kv, Library, Mechanisms, Settings, Weights, question


def run(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            "-a",
            metavar="NAME,…",
            help="Mechanisms and architectures; mechanisms, models or all for every one. [default: mechanisms]",
        ),
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Devices. [default: h100-sxm]")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="COUNTS", help="Tokens after the step. [default: 128k,1M,10M]"),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option("--phase", "-p", metavar="PHASE,…", help="prefill, decode, or all. [default: prefill]"),
    ] = None,
    batch: Batch = "1",
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """What each mechanism and model claims, how it grows as implemented, and what that buys over full attention.

    costmodel reality-check --arch kimi-linear-48b-a3b,dsa --hw h200-sxm --phase all
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    models, devices, lengths = arch or ["mechanisms"], hw or ["h100-sxm"], context or ["128k,1M,10M"]
    inputs = question(models, devices, lengths, phase or ["prefill"], batch, None, settings, **formats)
    from costmodel.report.reality import reality_and_print

    reality_and_print(form, inputs)
