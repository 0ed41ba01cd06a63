"""`costmodel whatif`."""

from typing import Annotated

import typer

from costmodel.commands.options import Format


def run(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN", help="A file that `plan --out` wrote.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--change",
            metavar="NAME=VALUE,…",
            help="hw=b200-sxm, layout=tp4, kv=fp8, context=1M, rate=20/s, hw.memory.hbm.bandwidth=2x, … Repeatable.",
        ),
    ] = None,
    hw: Annotated[
        str | None, typer.Option("--hw", metavar="NAME", help="Whose plan, of several. [default: the best]")
    ] = None,
    replan: Annotated[bool, typer.Option("--replan", help="Also search anew for each change.")] = False,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE.json", help="Write the answer as JSON.")] = None,
    form: Format = "table",
) -> None:
    """The same plan with each change beside it, and which of its assumptions matters most.

    costmodel whatif plan.json --change hw=b200-sxm --change kv=fp8,context=1M
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    from costmodel.report.whatif import whatif_and_print

    whatif_and_print(form, plan_file, list(change or ()), hw, replan, out)
