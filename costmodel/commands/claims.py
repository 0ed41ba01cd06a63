"""`costmodel claims`."""

from typing import Annotated

import typer

from costmodel.commands.options import Format


def run(
    name: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]…", help="Claims in full: ids, the beginning of ids, or papers. [default: a table]"
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also claims that are second-hand or whose set-up is not stated.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Name the claims whose verdict is not the recorded one; exit code 1.")
    ] = False,
    record: Annotated[
        str | None, typer.Option("--record", metavar="FILE", help="Write the verdicts that `--check` compares with.")
    ] = None,
    deployments: Annotated[
        bool,
        typer.Option("--deployments", help="Published deployments: their claims, and the parts that explain them."),
    ] = False,
    form: Format = "table",
) -> None:
    """Published claims, derived again under their own set-up and a fair one: reproduced, with a condition, or not.

    costmodel claims kimi-tpot-1m
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    if deployments:
        from costmodel.report.deployments import deployments_and_print

        deployments_and_print(form, {"id": list(name or ()), "all": everything, "check": check, "record": record})
        return
    from costmodel.report.claims import claims_and_print

    claims_and_print(form, {"id": list(name or ()), "all": everything, "check": check, "record": record})
