"""Measured points as rows of a CSV file, and as series that the time forms are fitted to.

A row is one operator call: which operator and implementation ran what shape on which device, how long it took in which
state of the caches, how far its output was from the reference, and how the device was doing. Rows of points that failed
say why. Shapes take a column for each of their names.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas

from costmodel.errors import BadInput, unknown
from costmodel.fitting.series import Part, Series
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel, replayed
from costmodel.kernels.processor import PROCESSOR, for_device
from costmodel.loading import read_text, write_atomically
from validation.canary import Reading, beside_drift
from validation.measured_profile import GENERATIONS
from validation.resources import occupancy_of
from validation.runners import ROLES, Runner, Shape, runners
from validation.stopwatch import MODES

STATUSES = ("ok", "oom", "error", "timeout", "wrong", "nan", "unsupported")
"""What became of a point: only an `ok` one has a time."""

TEXTS = ("runner", "family", "mechanism", "phase", "implementation", "mode", "role", "status")
NUMBERS = ("seconds", "p10_s", "p90_s", "samples", "error", "counted_flops", "claimed_flops", "touched_bytes")
STATE = ("sm_clock_hz", "power_w", "temperature_c", "load", "pace_s", "canary_gemm_s", "canary_copy_s", "at_s")
NOTES = ("throttle", "method", "kernels", "device", "driver", "packages", "date", "detail")
WORDS = ("dtype",)
"""Names of shapes that hold text; all others hold whole numbers."""
DRIFTED = "drift"
LIMITS = {"cuda": 0.03, "cpu": math.inf}
"""Drift of the canary beyond which rows beside it are left out. A processor's load comes and goes with other programs:
its rows are compared by their fastest tenth, and an operator's are measured together, but none is left out."""
LARGEST = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row.

    seconds, p10_s, p90_s: of one call. error: the largest relative distance of an output from the reference in float64
    on the small shape. counted_flops, claimed_flops: of the reference on that shape, and of the formulas.
    touched_bytes: of the tensors that the call is given and returns. pace_s: of a product beside the pass that counts,
    on a processor (`validation.core_pace`). canary_gemm_s, canary_copy_s: the canary's last reading before the point.
    at_s: seconds since 1970. kernels: what the profiler saw, or the parts of a whole model.
    """

    runner: str
    implementation: str
    mode: str
    role: str
    shape: Shape
    status: str = "ok"
    family: str = ""
    mechanism: str = ""
    phase: str = ""
    seconds: float | None = None
    p10_s: float | None = None
    p90_s: float | None = None
    samples: int | None = None
    error: float | None = None
    counted_flops: float | None = None
    claimed_flops: float | None = None
    touched_bytes: float | None = None
    sm_clock_hz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    load: float | None = None
    pace_s: float | None = None
    canary_gemm_s: float | None = None
    canary_copy_s: float | None = None
    at_s: float | None = None
    throttle: str = ""
    method: str = ""
    kernels: str = ""
    device: str = ""
    driver: str = ""
    packages: str = ""
    date: str = ""
    detail: str = ""
    place: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """What was to be measured: two rows with the same key are the same point."""
        return (self.runner, self.implementation, self.mode, tuple(sorted(self.shape.items())))


BEFORE, AFTER = TEXTS[:6], (*TEXTS[6:], *NUMBERS, *STATE, *NOTES)
"""Columns before and after those of the shape."""


def columns(names: Iterable[str]) -> list[str]:
    """The columns of a file whose shapes have these names."""
    return [*BEFORE, *sorted(set(names)), *AFTER]


def csv_line(values: Iterable[Any]) -> str:
    """One line of a CSV file; line breaks inside a value become spaces, so that a row is always one line."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(
        " ".join(value.split()) if isinstance(value, str) else value for value in values
    )
    return buffer.getvalue()


def to_line(row: Measurement, header: Sequence[str]) -> str:
    """A row as a line under a header."""
    values = {name: getattr(row, name) for name in (*BEFORE, *AFTER)} | dict(row.shape)
    return csv_line("" if values.get(name) is None else values[name] for name in header)


def to_csv(rows: Sequence[Measurement]) -> str:
    """A whole file."""
    header = columns(name for row in rows for name in row.shape)
    return csv_line(header) + "".join(to_line(row, header) for row in rows)


def read_measurements(path: Path, *, interrupted: bool = False) -> list[Measurement]:
    """The rows of a file. Raises BadInput with the line and column of the first cell that is wrong.

    interrupted: a last line without its end, as a killed run leaves it, is taken as not written.
    """
    text = read_text(path)
    if interrupted and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(text)))
    if not lines:
        raise BadInput(f"{path}: is empty; expected a header of columns")
    header = lines[0]
    for name in (*BEFORE, *AFTER):
        if name not in header:
            raise BadInput(f"{path}, line 1: no column {name!r}; is this a file of measurements?")
    known = runners()
    found = []
    for number, cells in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise BadInput(f"{where}: {len(cells)} cells under {len(header)} columns")
        found.append(_row(where, dict(zip(header, cells, strict=True)), known))
    return found


def _row(where: str, cells: Mapping[str, str], known: Mapping[str, Runner]) -> Measurement:
    for name, allowed in (("runner", known), ("mode", MODES), ("role", ROLES), ("status", STATUSES)):
        if cells[name] not in allowed:
            raise BadInput(f"{where}: {unknown(name, cells[name], allowed)}")
    shape: dict[str, int | str] = {}
    for name, text in cells.items():
        if name not in BEFORE and name not in AFTER and text:
            shape[name] = text if name in WORDS else _whole(where, name, text)
    for name in ("dtype", "batch", "context"):
        if name not in shape:
            raise BadInput(f"{where}: {name} is empty; every shape has it")
    numbers: dict[str, Any] = {name: _number(where, name, cells[name]) for name in (*NUMBERS, *STATE)}
    if cells["status"] == "ok" and not (numbers["seconds"] or 0.0) > 0:
        raise BadInput(f"{where}: seconds {cells['seconds'][:40]!r} is not a time, though the status is ok")
    texts: dict[str, Any] = {name: cells[name] for name in (*TEXTS, *NOTES)}
    if numbers["samples"] is not None:
        numbers["samples"] = int(numbers["samples"])
    return Measurement(shape=shape, place=where, **texts, **numbers)


def _whole(where: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise BadInput(f"{where}: {name} {text[:40]!r} is not a whole number")
    return int(text)


def _number(where: str, name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{where}: {name} {text[:40]!r} is not a number") from None
    if not math.isfinite(value) or not 0 <= value <= LARGEST:
        raise BadInput(f"{where}: {name} {text[:40]} is outside 0 to {LARGEST:g}")
    return value


class Journal:
    """A file of measurements to which every row is added at once. Rows that are there already are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Measurement] = []
        self.header: list[str] = []
        if path.exists() and path.stat().st_size:
            self.rows = read_measurements(path, interrupted=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def _write(self) -> None:
        self.header = columns(name for row in self.rows for name in row.shape)
        write_atomically(self.path, (csv_line(self.header) + "".join(self._lines())).encode())

    def _lines(self) -> Iterator[str]:
        return (to_line(row, self.header) for row in self.rows)

    def add(self, row: Measurement) -> None:
        """Write one row; where its shape has a name that the file has no column for, the file is written anew."""
        self.rows.append(row)
        if set(row.shape) <= set(self.header):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_line(row, self.header))
        else:
            self._write()

    def replace(self, rows: Sequence[Measurement]) -> None:
        """Write the file anew with these rows instead of those of the same points."""
        if rows:
            better = {row.key: row for row in rows}
            self.rows = [better.get(row.key, row) for row in self.rows]
            self._write()


def measurements_in(place: Path) -> list[Measurement]:
    """The rows of a file, or of all measurements*.csv of a folder. Raises BadInput where there are none."""
    paths = sorted(place.glob("measurements*.csv")) if place.is_dir() else [place]
    if not paths:
        raise BadInput(f"{place}: no measurements*.csv in this folder")
    rows = [row for path in paths for row in read_measurements(path, interrupted=True)]
    if not rows:
        raise BadInput(f"{place}: holds no measurements")
    return rows


class Group(NamedTuple):
    """The rows of one operator, implementation, state of caches and kernel; words: the text in their shapes."""

    runner: str
    mode: str
    words: Mapping[str, int | str]
    series: Series


def series_of(rows: Sequence[Measurement], hardware: Hardware, library: str, drift: float) -> list[Group]:
    """The measured rows as series.

    drift: rows before or after which the canary was further from its run's state are left out. Where several
    implementations ran the same operator, the fastest comes first: it is the one that a calibration prices by default.
    """
    known = runners()
    flagged = drifted(rows, drift)
    ranks = ranking(rows)
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for row in rows:
        if row.status == "ok":
            words = tuple((name, row.shape[name]) for name in WORDS)
            instance = known[row.runner].kernels(row.shape)[0].instance
            names = tuple(sorted(row.shape))
            groups.setdefault((row.runner, row.implementation, row.mode, instance, words, names), []).append(row)
    found = []
    for (name, implementation, mode, instance, text, _), same in groups.items():
        fixed = dict(text)
        series = _series(known[name], mode == "warm", fixed, instance, same, flagged, hardware, library)
        found.append(Group(name, mode, fixed, series._replace(rank=ranks[name, implementation])))
    return found


def ranking(rows: Sequence[Measurement]) -> dict[tuple[str, str], int]:
    """The place of each operator's implementations: 0 is the fastest, by its mean distance to the best of a point."""
    best: dict[tuple[Any, ...], float] = {}
    timed = [(row, row.seconds) for row in rows if row.status == "ok" and row.seconds]
    for row, seconds in timed:
        point = (row.runner, row.mode, tuple(sorted(row.shape.items())))
        best[point] = min(best.get(point, seconds), seconds)
    gaps: dict[str, dict[str, list[float]]] = {}
    for row, seconds in timed:
        point = (row.runner, row.mode, tuple(sorted(row.shape.items())))
        gaps.setdefault(row.runner, {}).setdefault(row.implementation, []).append(math.log(seconds / best[point]))
    ranks: dict[tuple[str, str], int] = {}
    for runner, told in gaps.items():
        in_order = sorted(told, key=lambda name: sum(told[name]) / len(told[name]))
        ranks |= {(runner, name): place for place, name in enumerate(in_order)}
    return ranks


def drifted(rows: Sequence[Measurement], limit: float) -> set[tuple[Any, ...]]:
    """The keys of rows whose last reading of the canary, or the next one after them, is too far from its run's."""
    seen = [
        (row.at_s or 0.0, Reading(row.canary_gemm_s, row.canary_copy_s), row.key)
        for row in rows
        if row.canary_gemm_s and row.canary_copy_s
    ]
    seen.sort(key=lambda each: each[0])
    flags = beside_drift([(at_s, reading) for at_s, reading, _ in seen], limit)
    return {key for (_, _, key), flagged in zip(seen, flags, strict=True) if flagged}


def _series(
    runner: Runner,
    warm: bool,
    words: Mapping[str, int | str],
    instance: str,
    rows: Sequence[Measurement],
    flagged: set[tuple[Any, ...]],
    hardware: Hardware,
    library: str,
) -> Series:
    numbers = sorted(name for name in rows[0].shape if name not in words)
    first: dict[tuple[Any, ...], Measurement] = {}
    for row in rows:
        first.setdefault(row.key, row)
    shapes = pandas.DataFrame([{name: row.shape[name] for name in numbers} for row in first.values()])
    return Series(
        system=hardware.name,
        library=library,
        version="",
        family=runner.family,
        kernel=rows[0].implementation,
        instance=instance,
        phase=runner.phase,
        shapes=shapes.astype(numpy.float64),
        seconds=numpy.array([seconds_of(row, hardware) for row in first.values()], dtype=numpy.float64),
        flags=numpy.array([DRIFTED if key in flagged else "" for key in first], dtype=str),
        tokens=shapes["context"].to_numpy(dtype=numpy.float64),
        build=partial(_built, runner, warm, words, hardware),
        occupancy=occupancy(runner, rows[0].implementation, hardware),
        aside=numpy.array([row.role != "fit" for row in first.values()], dtype=bool),
    )


def occupancy(runner: Runner, implementation: str, hardware: Hardware) -> int:
    """Thread blocks that share a unit as the implementation was compiled for the device; 0 where no report says."""
    compiled = next((one.compiled for one in runner.implementations if one.name == implementation), None)
    generation = hardware.vendor, hardware.generation
    capability = next((key[1] for key, name in GENERATIONS.items() if (key[0], name) == generation), None)
    return occupancy_of(compiled[0], capability, compiled[1]) if compiled else 0


def seconds_of(row: Measurement, hardware: Hardware) -> float | None:
    """The median; on a processor the fastest tenth, because other programs only ever slow a call down."""
    return row.p10_s if hardware.name == PROCESSOR and row.p10_s else row.seconds


def _built(
    runner: Runner, warm: bool, words: Mapping[str, int | str], hardware: Hardware, shapes: pandas.DataFrame
) -> list[Part]:
    """One part per point: counts that a mixer's formulas branch on are plain numbers."""
    return [
        Part(numpy.array([index]), kernels_of(runner, warm, {**words, **_integers(record)}, hardware))
        for index, record in enumerate(shapes.to_dict("records"))
    ]


def _integers(record: Mapping[Any, float]) -> dict[str, int]:
    return {str(name): int(value) for name, value in record.items()}


def kernels_of(runner: Runner, warm: bool, shape: Shape, hardware: Hardware) -> tuple[Kernel, ...]:
    """What the cost model prices for a measured call: its kernels, replayed over the same buffers where they were."""
    kernels = [kernel._replace(form=for_device(kernel.form, hardware.name)) for kernel in runner.kernels(shape)]
    return replayed(kernels) if warm and runner.replays else tuple(kernels)
