"""A document of prose, tables and pictures: one HTML file, or Markdown with its pictures beside it."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from costmodel.report.columns import Column, Row
from costmodel.report.layout import clean, markdown_table


class Prose(NamedTuple):
    """A paragraph."""

    text: str


class Items(NamedTuple):
    """A list of short texts."""

    texts: Sequence[str]


class Command(NamedTuple):
    """What to type in a terminal."""

    text: str


class Table(NamedTuple):
    """Rows with the columns that show them; `code` names the columns whose texts are formulas."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    code: Sequence[str] = ()


class Picture(NamedTuple):
    """An SVG, the name of its file, and what it shows in words."""

    name: str
    svg: bytes
    description: str


Part = Prose | Items | Command | Table | Picture


class Section(NamedTuple):
    """A heading with what stands below it."""

    title: str
    parts: Sequence[Part]


class Document(NamedTuple):
    """A title and sections."""

    title: str
    sections: Sequence[Section]

    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Picture)]


def to_markdown(document: Document, folder: str) -> str:
    """The document as Markdown; pictures are files of this folder."""
    return "\n\n".join(_markdown(document, folder)) + "\n"


def _markdown(document: Document, folder: str) -> Iterator[str]:
    yield f"# {clean(document.title)}"
    for section in document.sections:
        yield f"## {clean(section.title)}"
        for part in section.parts:
            match part:
                case Prose(text):
                    yield clean(text)
                case Items(texts):
                    yield "\n".join(f"- {clean(text)}" for text in texts)
                case Command(text):
                    yield f"```\n{clean(text)}\n```"
                case Table(rows, columns, code):
                    yield markdown_table(
                        rows, [_as_code(column) if column.title in code else column for column in columns]
                    )
                case Picture(name, _, description):
                    yield f"![{clean(description)}]({folder}/{name}.svg)"


def _as_code(column: Column) -> Column:
    def text(row: Row) -> str:
        shown = column.text(row)
        return f"`{shown}`" if shown else ""

    return column._replace(text=text)


STYLE = """
:root { color-scheme: light dark; --ink: #16191d; --back: #fff; --soft: #555c66; --rule: #d5d9df; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceff3; --back: #14171b; --soft: #a8b0bb; --rule: #39414b; } }
body { margin: 0 auto; max-width: 1100px; padding: 16px; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--back); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--soft); } .right { text-align: right; } td.right { white-space: nowrap; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .82rem; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; border: 1px solid var(--rule); padding: 8px 12px; border-radius: 6px; }
figure { margin: 0; background: #fff; border-radius: 8px; } figure svg { max-width: 100%; height: auto; }
"""


def to_html(document: Document) -> str:
    """The document as one HTML file that needs nothing else."""
    title = html.escape(clean(document.title))
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title>'
    body = "\n".join(_html(document))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}\n<style>{STYLE}</style></head>\n<body><main>\n'
        f"<h1>{title}</h1>\n{body}\n</main></body></html>\n"
    )


def _html(document: Document) -> Iterator[str]:
    for section in document.sections:
        yield f"<h2>{_escaped(section.title)}</h2>"
        for part in section.parts:
            match part:
                case Prose(text):
                    yield f"<p>{_escaped(text)}</p>"
                case Items(texts):
                    yield f"<ul>{''.join(f'<li>{_escaped(text)}</li>' for text in texts)}</ul>"
                case Command(text):
                    yield f"<pre>{_escaped(text)}</pre>"
                case Table(rows, columns, code):
                    yield _html_table(rows, columns, code)
                case Picture(_, svg, description):
                    yield f'<figure role="img" aria-label="{_escaped(description)}">{_inline(svg)}</figure>'


def _escaped(text: str) -> str:
    return html.escape(clean(text))


def _html_table(rows: Sequence[Row], columns: Sequence[Column], code: Sequence[str]) -> str:
    def cell(tag: str, column: Column, text: str) -> str:
        shown = _escaped(text)
        shown = f"<code>{shown}</code>" if tag == "td" and column.title in code else shown
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{' class=right' if column.right else ''}>{shown}</{tag}>"

    head = "".join(
        cell("th", column, f"{column.group} {column.title}".replace("\n", " ").strip()) for column in columns
    )
    body = "".join(f"<tr>{''.join(cell('td', column, column.text(row)) for column in columns)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _inline(svg: bytes) -> str:
    """An SVG without what only a file of its own has at its top."""
    return re.sub(r"^.*?(?=<svg)", "", svg.decode("utf-8"), flags=re.DOTALL).strip()
