"""`costmodel explain`."""

from typing import Annotated

import typer

from costmodel.commands.options import Batch, Format, Mechanisms, Settings


def run(
    target: Annotated[str, typer.Argument(metavar="MECHANISM|ARCH", help="A mechanism or an architecture.")],
    phase: Annotated[str, typer.Option("--phase", "-p", metavar="PHASE", help="prefill, decode or train.")] = "decode",
    context: Annotated[
        str, typer.Option("--context", "-c", metavar="COUNT", help="Where formulas are evaluated.")
    ] = "8k",
    batch: Batch = "1",
    hw: Annotated[
        str | None, typer.Option("--hw", metavar="NAME", help="Also say what bounds each kernel on this device.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Formulas as LaTeX.")] = False,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """The formulas behind the numbers: FLOPs, bytes and cache, with their order of growth."""
    from costmodel.report.output import checked_format, emit, print_rows
    from costmodel.units import parse_count

    checked_format(form)
    length, sequences = parse_count(context), parse_count(batch, "batch")
    from costmodel.analysis.explain import explanation

    found = explanation(
        target, phase=phase, context=length, batch=sequences, settings=tuple(settings or ()), hardware=hw
    )
    where: dict[str, str | None] = {}
    if hw is not None:
        from costmodel.hardware import load_hardware
        from costmodel.report.remarks import calibration_of, note_transferred

        device = load_hardware(hw)
        where = calibration_of(device, None)
        note_transferred([{"hw": device.name, **where}])
    if form == "table":
        emit(found.to_text(latex=latex))
        return
    inputs = {
        "target": target,
        "phase": phase,
        "context": length,
        "batch": sequences,
        "hw": hw,
        "set": list(settings or ()),
    }
    print_rows("explain", form, inputs, found.rows(), calibration=where.get("calibration"))
