"""`costmodel list`."""

from typing import Annotated

import typer

from costmodel.commands.options import Format, Mechanisms


def run(
    what: Annotated[
        str, typer.Argument(metavar="KIND", help="mechanisms, architectures, hardware, kernels, ffns or methods.")
    ],
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """What the package knows: mechanisms, architectures, hardware, kernels, ffns, methods of generation."""
    from costmodel.report.listing import listed
    from costmodel.report.output import checked_format, note, print_rows

    checked_format(form)
    rows, notes = listed(what)
    print_rows("list", form, {"kind": what}, rows)
    for text in notes:
        note(f"note: left out: {text}")
