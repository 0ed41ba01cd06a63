"""`costmodel show`."""

from typing import Annotated

import typer

from costmodel.commands.options import Format, Mechanisms


def run(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A device, architecture, mechanism or kernel family, or a path.")
    ],
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """Every number behind a name, with unit, source and doubts."""
    from costmodel.report.output import checked_format
    from costmodel.report.pages import print_pages

    checked_format(form)
    print_pages(name, form)
