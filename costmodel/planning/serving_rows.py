"""Measured serving runs as rows: what was served how, under which load, and the TTFT and TPOT that clients saw.

A closed loop at a concurrency, one value of each latency per run (a mean). Two readers make them: `own_rows` here, of
a CSV file with named columns, and `costmodel.planning.silicon_rows` of aiconfigurator's end-to-end sample.
"""

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from costmodel.errors import BadInput, suggestion
from costmodel.loading import Problems
from costmodel.parallel.layout import Disaggregated, Layout, parse_layout
from costmodel.planning.deployment import Settings
from costmodel.planning.engine_settings import SETTINGS, changed, library_settings, setting_value
from costmodel.planning.traffic import Lengths
from costmodel.units import parse_count

REQUIRED = ("library", "arch", "hw", "concurrency", "input", "output")
MEASURED = ("ttft_s", "tpot_s")
OPTIONAL = ("version", "layout", "weights", "kv", "activations", "requests_per_client", "kernel")
COLUMNS = (*REQUIRED, *MEASURED, *OPTIONAL, *SETTINGS)
MOST_CLIENTS = 100_000


class Formats(NamedTuple):
    """Number formats of a run, None for the model's own; roles: weights that differ, by their role."""

    weights: str | None = None
    kv: str | None = None
    activations: str | None = None
    roles: tuple[tuple[str, str], ...] = ()


class ServingRow(NamedTuple):
    """One measured run.

    line: where it stands in the file. clients: requests in flight in the whole deployment. settings: what the engine
    was told, where that is known to differ from its library's defaults. ttft_s, tpot_s: None where not measured.
    kernel: the library's kernel to prefer where it has several.

    flagged: why it is left out of fits and scores; unscored: what is missing to predict it; reread: whether a rule
    corrected its layout; merged: how many equal runs it stands for.
    """

    line: int
    library: str
    version: str
    arch: str
    hw: str
    mode: str
    layout: Layout | Disaggregated | None
    formats: Formats
    clients: int
    inputs: Lengths
    outputs: Lengths
    per_client: int
    settings: Settings
    ttft_s: float | None
    tpot_s: float | None
    kernel: str = ""
    flagged: str = ""
    unscored: str = ""
    reread: bool = False
    merged: int = 1

    @property
    def scored(self) -> bool:
        """Whether it can be predicted and believed."""
        return not self.flagged and not self.unscored

    @property
    def name(self) -> str:
        """The run in a few words."""
        load = f"{self.clients} × {int(self.inputs.b or self.inputs.a)}+{int(self.outputs.b or self.outputs.a)}"
        weights = f" {self.formats.weights}" if self.formats.weights else ""
        return f"{self.layout or 'unknown layout'}{weights}, {load}"


def merged(rows: Iterable[ServingRow]) -> list[ServingRow]:
    """Runs with equal settings as one: the median of each latency. Lines that repeat a run's numbers count once.

    Equal is what a prediction sees, and the library's version.
    """
    groups: dict[tuple[Any, ...], list[ServingRow]] = {}
    alone = []
    for row in rows:
        if row.unscored:
            alone.append(row)
            continue
        groups.setdefault((*row[1:13], row.kernel, row.flagged, row.unscored), []).append(row)
    found = alone
    for same in groups.values():
        distinct = {(row.ttft_s, row.tpot_s): row for row in same}.values()
        ttft_s = _median(row.ttft_s for row in distinct)
        tpot_s = _median(row.tpot_s for row in distinct)
        reread = any(row.reread for row in same)
        found.append(same[0]._replace(ttft_s=ttft_s, tpot_s=tpot_s, reread=reread, merged=len(same)))
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file, and its lines by their number. Raises BadInput where it cannot be read."""
    shown = str(path)[:200]
    if not path.is_file():
        raise BadInput(f"{shown}: no such file" if not path.exists() else f"{shown}: not a regular file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or ()]
            lines = [(reader.line_num, {k: (v or "").strip() for k, v in entry.items() if k}) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not CSV in UTF-8"
        raise BadInput(f"{shown}: cannot be read ({reason})") from None
    if not lines:
        raise BadInput(f"{shown}: holds no line of measurements")
    return columns, lines


def own_rows(path: Path, columns: list[str], lines: Iterable[tuple[int, Mapping[str, str]]]) -> list[ServingRow]:
    """The rows of a file with the columns that `COLUMNS` names. Raises BadInput with every problem found."""
    missing = [name for name in REQUIRED if name not in columns]
    strange = [name for name in columns if name not in COLUMNS]
    told = [f"missing column {name!r}" for name in missing]
    told += [f"unknown column {name[:60]!r}{suggestion(name, COLUMNS)}" for name in strange]
    if not any(name in columns for name in MEASURED):
        told.append("neither ttft_s nor tpot_s is a column")
    if told:
        raise BadInput(f"{str(path)[:200]}: line 1: {'; '.join(told)}")
    return each_row(path, lines, _own_row)


def each_row(
    path: Path, lines: Iterable[tuple[int, Mapping[str, str]]], read: Callable[[int, Mapping[str, str]], ServingRow]
) -> list[ServingRow]:
    """What `read` makes of every line. Raises BadInput with every line that cannot be read."""
    problems, found = Problems(str(path)[:200]), []
    for line, entry in lines:
        try:
            found.append(read(line, entry))
        except BadInput as error:
            problems.add(f"line {line}: {error}")
    problems.raise_if_any()
    return found


def _own_row(line: int, entry: Mapping[str, str]) -> ServingRow:
    for name in REQUIRED:
        if not entry.get(name):
            raise BadInput(f"{name} is missing")
    layout = parse_layout(entry.get("layout") or "tp1")
    measured = {name: _seconds(entry.get(name), name) for name in MEASURED}
    if not any(measured.values()):
        raise BadInput("neither ttft_s nor tpot_s is given")
    given = {name: setting_value(name, entry[name]) for name in SETTINGS if entry.get(name)}
    return ServingRow(
        line=line,
        library=entry["library"],
        version=entry.get("version", ""),
        arch=entry["arch"],
        hw=entry["hw"],
        mode="disagg" if isinstance(layout, Disaggregated) else "agg",
        layout=layout,
        formats=Formats(entry.get("weights") or None, entry.get("kv") or None, entry.get("activations") or None),
        clients=parse_count(entry["concurrency"], "concurrency", MOST_CLIENTS),
        inputs=Lengths.parse(entry["input"], "input"),
        outputs=Lengths.parse(entry["output"], "output"),
        per_client=parse_count(entry.get("requests_per_client") or "10", "requests_per_client", 10_000),
        settings=changed(library_settings(entry["library"]), given),
        ttft_s=measured["ttft_s"],
        tpot_s=measured["tpot_s"],
        kernel=entry.get("kernel", ""),
    )


def _seconds(text: str | None, name: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{name} {text[:40]!r} is not a number of seconds") from None
    if not 0 < value < 1e6:
        raise BadInput(f"{name} {text[:40]} is outside 0 to 1e+06 seconds")
    return value
