"""`costmodel page`."""

from typing import Annotated

import typer

from costmodel.commands.options import Library, Mechanisms, Settings, words


def run(
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write it.")] = "explorer.html",
    arch: Annotated[
        list[str] | None, typer.Option("--arch", "-a", metavar="NAME,…", help="Architectures. [default: all]")
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Devices. [default: all]")] = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
) -> None:
    """Write a page in which anyone explores time, memory and cost by dragging: one HTML file that needs no network.

    costmodel page --out explorer.html --arch llama-3.1-8b,kimi-linear-48b-a3b --hw h100-sxm,b200-sxm
    """
    from costmodel.report.page.write import write_page as write

    asked = {"arch": words(arch or (), "--arch"), "hw": words(hw or (), "--hw")}
    write({**asked, "out": out, "library": library, "set": list(settings or ())})
