"""Anyone's own measurements: a CSV table with a kernel family, its shape, and seconds.

    family,kernel,seconds,m,n,k,activations,weights
    gemm,cublas,0.0000214,1024,4096,4096,bf16,bf16
    gemm,cublas,0.0000061,1,4096,4096,bf16,bf16

Every row needs `family` and `seconds`. `kernel` is the library's name of it, `hot` is 1 (the default) when the same
buffers were used again and again and 0 when caches were cold. All other columns are the fields of the family's shape,
with its names and units; a cell may stay empty where the field has a default, or where the row's family lacks it.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas

from costmodel.errors import BadInput, suggestion, unknown
from costmodel.fitting.calibrate import Source
from costmodel.fitting.csv_columns import COMMON, Maker, maker_of, makers, number
from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.hardware import Hardware
from costmodel.kernels.base import replayed
from costmodel.loading import Problems

LONGEST_S = 1e5


def csv_source(path: Path, hardware: Hardware, library: str) -> Source:
    """The measurements of a file. Raises BadInput with the line and column of every cell that is wrong."""
    columns, lines = _table(path)
    problems = Problems(str(path)[:200])
    known = [*COMMON, *dict.fromkeys(field for maker in makers().values() for field in maker.fields)]
    for name in ("family", "seconds"):
        if name not in columns:
            problems.add(f"no column {name!r}{suggestion(name, columns)}")
    for name in dict.fromkeys(columns):
        if name not in known:
            problems.add(str(unknown("column", name, known)))
        elif columns.count(name) > 1:
            problems.add(f"column {name!r} is there {columns.count(name)} times")
    problems.raise_if_any()
    if not lines:
        raise BadInput(f"{path}: holds no measurements")
    rows = [row for line, cells in lines if (row := _row(columns, line, cells, problems)) is not None]
    problems.raise_if_any()
    return Source(hardware, library, tuple(_series(rows, hardware, library)))


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns of a CSV file, and the cells of its lines by their number; what follows a # is a comment."""
    # A file as a spreadsheet saves it begins with a mark of its encoding, and commas may follow the last cell.
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(map(_uncommented, stream), skipinitialspace=True)
            found = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not CSV in UTF-8"
        raise BadInput(f"{path}: not a readable CSV file ({reason})") from None
    (_, columns), *lines = [(line, cells) for line, cells in found if any(cells)] or [(1, [])]
    while columns and not columns[-1]:
        columns.pop()
    return columns, lines


def _uncommented(line: str) -> str:
    return line if '"' in line and not line.lstrip().startswith("#") else line.partition("#")[0]


class Row(NamedTuple):
    """One measurement: its family, kernel, whether caches were hot, the fields that were given, and seconds."""

    family: str
    kernel: str
    hot: bool
    given: Mapping[str, Any]
    instance: str
    seconds: float


def _row(columns: Sequence[str], line: int, texts: Sequence[str], problems: Problems) -> Row | None:
    """The measurement in a line; None, and what is wrong with it noted, where it cannot be read."""
    found: list[str] = []

    def read(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except BadInput as error:
            found.append(str(error))
            return None

    if any(texts[len(columns) :]):
        found.append(f"{len(texts)} cells under {len(columns)} columns")
    cells = {name: text for name, text in zip(columns, texts, strict=False) if text}
    found += [f"{name} is empty" for name in ("family", "seconds") if name not in cells]
    seconds = read(lambda: number("seconds", cells.get("seconds", "1"), LONGEST_S, above_zero=True))
    hot = read(lambda: number("hot", cells.get("hot", "1")) != 0)
    maker: Maker | None = read(lambda: maker_of(cells["family"])) if "family" in cells else None
    given: dict[str, Any] = {}
    if maker is not None:
        for field in maker.fields:
            if field in cells:
                given[field] = read(partial(maker.value, field, cells[field]))
            elif field not in maker.defaults:
                found.append(f"{field} is empty; {maker.family} needs it")
        for name, text in cells.items():
            if name not in COMMON and name not in maker.fields:
                found.append(f"{name}={text[:40]} is no field of {maker.family}")
    instance = read(lambda: maker.kernel(given).instance) if maker is not None and not found else ""
    for problem in found:
        problems.add(f"line {line}: {problem}")
    if maker is None or found:
        return None
    return Row(maker.family, cells.get("kernel", "own"), hot, given, instance, seconds)


def _series(rows: Sequence[Row], hardware: Hardware, library: str) -> Iterator[Series]:
    """One series for each kernel, instance and set of formats; numbers that vary within it become arrays."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        words = tuple(sorted((name, value) for name, value in row.given.items() if isinstance(value, str | bool)))
        names = tuple(sorted(row.given))
        groups.setdefault((row.family, row.kernel, row.instance, row.hot, words, names), []).append(row)
    for (family, kernel, instance, hot, words, names), same in groups.items():
        numbers = [name for name in names if name not in dict(words)]
        frame = pandas.DataFrame([{name: row.given[name] for name in numbers} for row in same], columns=numbers)
        frame["_seconds"] = [row.seconds for row in same]
        points = frame.groupby(numbers, sort=True)["_seconds"].median()
        shapes = points.index.to_frame(index=False).astype(numpy.float64)
        fixed = {name: same[0].given[name] for name in numbers if shapes[name].nunique() == 1} | dict(words)
        yield Series(
            system=hardware.name,
            library=library,
            version="",
            family=family,
            kernel=kernel,
            instance=instance,
            phase="",
            shapes=shapes,
            seconds=points.to_numpy(),
            flags=numpy.full(len(shapes), "", dtype=object).astype(str),
            tokens=numpy.ones(len(shapes)),
            build=partial(_built, makers()[family], fixed, hot),
        )


def _built(maker: Maker, fixed: Mapping[str, Any], hot: bool, shapes: pandas.DataFrame) -> list[Part]:
    kernel = maker.kernel({**arrays(shapes), **fixed})
    return whole(shapes, replayed([kernel]) if hot else [kernel])
