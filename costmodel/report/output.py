"""Where a command's words go: data to stdout in one of four formats, notes to stderr, never a colour."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import costmodel
from costmodel.errors import BadInput, unknown
from costmodel.report.columns import Column, Row, columns_of
from costmodel.report.layout import clean, markdown_table, text_table, wrapped

FORMATS = ("table", "json", "csv", "markdown")
SCHEMA = 1
_PLAIN = str.maketrans("µ…·×–─²�≈Θ→█░", "u-*x--2?~O>#-")


def checked_format(name: str) -> str:
    """The name of an output format. Raises BadInput for any other."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return name


def emit(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Write text and its end, with plainer signs where the stream's encoding lacks the right ones."""
    out = sys.stdout if stream is None else stream
    try:
        out.write(text + end)
    except UnicodeEncodeError:
        encoding = out.encoding or "ascii"
        out.write(text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding) + end)


def note(text: str) -> None:
    """A remark on stderr."""
    emit("\n".join(clean(line) for line in text.split("\n")), sys.stderr)


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is, None when it is a pipe or a file."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def print_json(
    command: str, inputs: Mapping[str, Any], rows: Sequence[Row], calibration: str | None = None, **more: Sequence[Row]
) -> None:
    """The one JSON object of a command; `more` adds lists beside the rows."""
    emit(as_json(command, inputs, rows, calibration, **more))


def as_json(
    command: str, inputs: Mapping[str, Any], rows: Sequence[Row], calibration: str | None = None, **more: Sequence[Row]
) -> str:
    """The text of that object."""
    import json

    whole = {
        "schema": SCHEMA,
        "command": command,
        "version": costmodel.__version__,
        "inputs": dict(inputs),
        "calibration": calibration,
        "rows": list(rows),
        **more,
    }
    return json.dumps(_plain(whole), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """The value as JSON knows it: infinities and what is not a number become null, unknown types text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV with a heading; numbers as they are, nested values as JSON."""
    import csv
    import io
    import json

    keys = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        texts = []
        for key in keys:
            value = _plain(row.get(key))
            texts.append(
                json.dumps(value)
                if isinstance(value, dict | list)
                else clean(value)
                if isinstance(value, str)
                else value
            )
        writer.writerow(texts)
    emit(buffer.getvalue().rstrip("\n"))


def print_rows(
    command: str,
    form: str,
    inputs: Mapping[str, Any],
    rows: Sequence[Row],
    columns: Sequence[Column] | None = None,
    title: str = "",
    keys: int = 1,
    calibration: str | None = None,
) -> None:
    """Rows of any command in the chosen format; `columns` choose and name what a table shows."""
    if form == "json":
        print_json(command, inputs, rows, calibration)
    elif form == "csv":
        print_csv(rows)
    else:
        print_table(form, title, rows, columns_of(rows) if columns is None else columns, keys=keys)


def print_table(
    form: str, title: str, rows: Sequence[Row], columns: Sequence[Column], remark: str = "", keys: int = 1
) -> None:
    """A titled table as text or Markdown."""
    width = terminal_width()
    if form == "markdown":
        above = [f"### {clean(title)}\n"] if title else []
        emit("\n".join([*above, *([f"{clean(remark)}\n"] if remark else []), markdown_table(rows, columns)]))
        return
    above = [wrapped(clean(line), width) for line in (title, remark) if line]
    emit("\n".join([*above, *([""] if above else []), text_table(rows, columns, width, keys)]))


def plot_format(path: str) -> str:
    """png or svg, from a file's ending. Raises BadInput for any other."""
    ending = path.rpartition(".")[2].lower() if "." in path else ""
    if ending not in ("png", "svg"):
        raise BadInput(f"--plot {path[-80:]!r}: the name must end in .png or .svg")
    return ending
