"""`costmodel cite`."""

from typing import Annotated

import typer

from costmodel.commands.options import Format


def run(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Also the sources of this name.")] = None,
    form: Format = "table",
) -> None:
    """How to cite this tool, and the sources of a mechanism, architecture, device or kernel family."""
    from costmodel.report.listing import bibtex, citations
    from costmodel.report.output import checked_format, emit, print_rows

    checked_format(form)
    rows = citations(name)
    if form == "table":
        emit(bibtex(rows))
    else:
        print_rows("cite", form, {"name": name}, rows)
