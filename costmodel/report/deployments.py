"""Published deployments as tables, and the tables of docs/published-serving.md.

`python -m costmodel.report.deployments` writes the page's tables anew in a checkout; `--check` writes nothing and fails
when they are stale.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.deployments import DEPLOYMENTS, deployment_rows, part_rows
from costmodel.errors import BadInput, unknown
from costmodel.loading import write_atomically
from costmodel.report.claims import TABLE, WIDTH
from costmodel.report.columns import Column, Row, number_text, shows
from costmodel.report.layout import markdown_table, text_table, wrapped
from costmodel.report.output import emit, print_csv, print_json, terminal_width

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published-serving.md"
BLOCK = re.compile(r"<!-- deployment (\S+): .*? -->\n.*?<!-- end -->", re.DOTALL)
HEAD = "written by `python -m costmodel.report.deployments`"


def _number(key: str) -> Any:
    return lambda row: "–" if row[key] is None else number_text(float(row[key]))


PARTS = (
    shows("what", right=False),
    shows("of", right=False),
    Column("published", _number("published")),
    Column("here", _number("here")),
    shows("unit", right=False),
    Column("here / published", lambda row: "–" if row["ratio"] is None else f"{row['ratio']:.2f}"),
)


def deployments_and_print(form: str, inputs: Mapping[str, Any]) -> None:
    """`claims --deployments`: for each deployment its claims and its parts (JSON: rows, and parts beside them).

    Raises BadInput for options of `claims` that mean nothing here.
    """
    given = [name for name in ("all", "check", "record") if inputs[name]]
    if given:
        raise BadInput(f"--deployments: --{given[0]} is about all claims; leave one of the two out")
    names = list(inputs["id"]) or [one.name for one in DEPLOYMENTS]
    for name in names:
        if name not in (known := [one.name for one in DEPLOYMENTS]):
            raise unknown("deployment", name, known)
    claims = deployment_rows(names)
    parts = part_rows(names)
    if form == "json":
        print_json("claims", inputs, claims, None, parts=parts)
    elif form == "csv":
        print_csv(parts)
    else:
        for index, one in enumerate(one for one in DEPLOYMENTS if one.name in names):
            if index:
                emit("")
            emit(f"## {one.title}\n" if form == "markdown" else f"{one.title}\n")
            emit(_tables(form, one.name, claims, parts))


def _tables(form: str, name: str, claims: Sequence[Row], parts: Sequence[Row], reasons: bool = True) -> str:
    """The claims of a deployment, the reasons of those that are not reproduced, and its parts."""
    own = [row for row in claims if row["deployment"] == name]
    found = [row for row in parts if row["deployment"] == name]
    told = [f"{row['id']}: {row['reason']}." for row in own if reasons and row["verdict"] != "reproduced"]
    if form == "markdown":
        blocks = [markdown_table(own, TABLE), "\n".join(f"- {text}" for text in told), markdown_table(found, PARTS)]
    else:
        width = terminal_width() or WIDTH
        lines = "\n".join(wrapped(text, width) for text in told)
        blocks = [text_table(own, TABLE, width), lines, text_table(found, PARTS, width)]
    return "\n\n".join(block for block in blocks if block)


def page(text: str) -> str:
    """The page with its tables as they are computed now."""
    names = [one.name for one in DEPLOYMENTS]
    claims, parts = deployment_rows(names), part_rows(names)

    def block(found: re.Match[str]) -> str:
        name = found[1]
        if name not in names:
            raise unknown("deployment", name, names)
        tables = _tables("markdown", name, claims, parts, reasons=False)
        return f"<!-- deployment {name}: {HEAD} -->\n\n{tables}\n\n<!-- end -->"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with `--check` say whether it is stale."""
    before = PAGE.read_text(encoding="utf-8")
    text = page(before)
    if list(arguments) == ["--check"]:
        if text != before:
            print(f"docs/{PAGE.name} is stale; run python -m costmodel.report.deployments", file=sys.stderr)
        return 0 if text == before else 1
    if text != before:
        write_atomically(PAGE, text.encode())
        print(f"docs/{PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
