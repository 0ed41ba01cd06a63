"""Readers of measured kernel tables in the layout of NVIDIA aiconfigurator's silicon database.

    systems/<system>.yaml                                                   device sheet
    systems/data/<system>/<op>/<backend>/<version>/<table>_perf.parquet     measurements

One file of this folder reads the tables of one kind of kernel: its `TABLES` maps the names of tables to the functions
that turn one into series. Readers are found by folder. What a column means: ai-dynamo/aiconfigurator, collector/, and
its roofline formulas in aic-core/rust/aiconfigurator-core/src.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas

from costmodel.errors import BadInput, unknown
from costmodel.fitting.device_sheet import device_name, system_hardware
from costmodel.fitting.series import Build, Floats, Series
from costmodel.hardware import Hardware
from costmodel.step import Phase

LIBRARIES = ("vllm", "sglang", "trtllm")
NCCL = "nccl"
"""The folder of tables that belong to every library."""
FLAG = "flag"
"""Column with the reason why a reader leaves a row out."""


class Table(NamedTuple):
    """One measured table: where it is from, and its rows as upstream wrote them, with an empty column `flag`."""

    system: str
    op: str
    library: str
    version: str
    name: str
    frame: pandas.DataFrame
    hardware: Hardware


Read = Callable[[Table], Iterable[Series]]


class UnknownFormat(BadInput):
    """Rows of a number format that no reader knows; `label` is the table's word for it."""

    def __init__(self, label: str, known: Iterable[str]) -> None:
        super().__init__(str(unknown("dtype in the table", label, known)))
        self.label = label


@functools.cache
def readers() -> dict[str, Read]:
    """Every reader of this folder by the name of its table."""
    found: dict[str, Read] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        found.update(importlib.import_module(f"{__name__}.{module_info.name}").TABLES)
    return found


class TableFile(NamedTuple):
    """A table on disk, by the parts of its path."""

    system: str
    op: str
    library: str
    version: str
    name: str
    path: Path

    @property
    def device(self) -> str:
        """The device that it was measured on, by this project's name."""
        return device_name(self.system)


def data_root(directory: Path) -> Path:
    """The folder with one folder per system, from the root of a checkout, `systems/`, or `systems/data` itself."""
    for below in ("", "data", "systems/data", "aic-core/src/aiconfigurator_core/systems/data"):
        root = directory / below
        if any(root.glob("*/*/*/*/*_perf.parquet")):
            return root
    raise BadInput(f"{directory}: no tables found; expected systems/data/<system>/<op>/<backend>/<version>/*.parquet")


def tables(directory: Path) -> list[TableFile]:
    """Every table below a directory, in the order of their paths."""
    root = data_root(directory)
    return [
        TableFile(system, op, library, version, path.name.removesuffix("_perf.parquet"), path)
        for path in sorted(root.glob("*/*/*/*/*_perf.parquet"))
        for system, op, library, version in [path.relative_to(root).parts[:4]]
    ]


def tables_of(directory: Path, devices: Sequence[str], libraries: Sequence[str]) -> list[TableFile]:
    """Every table of some devices (of all, where none is named), of any library.

    Raises BadInput for a device that has no tables, and for a library that none of these devices has tables of.
    """
    files = tables(directory)
    there = {file.device for file in files}
    for name in devices:
        if name not in there:
            raise unknown(f"system in {directory}", name, there)
    own = [file for file in files if file.device in devices or not devices]
    have = {file.library for file in own} - {NCCL}
    for name in libraries:
        if name not in have:
            raise unknown(f"library of {', '.join(devices) or 'any system'} in {directory}", name, have)
    return own


def hardware_of(file: TableFile) -> Hardware:
    """The device that a table was measured on: its profile, else the sheet beside the data folder."""
    return system_hardware(file.system, file.path.parents[5] / f"{file.system}.yaml")


def read_table(file: TableFile, hardware: Hardware) -> list[Series]:
    """The series of one table; none where no reader knows it. Raises BadInput for a table that cannot be read."""
    return series_of(file, frame_of(file), hardware) if file.name in readers() else []


def frame_of(file: TableFile) -> pandas.DataFrame:
    """The rows of a table as they lie there. Raises BadInput for a file that is no table."""
    try:
        return pandas.read_parquet(file.path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{file.path}: not a readable parquet file ({str(error)[:120]})") from None


def series_of(file: TableFile, rows: pandas.DataFrame, hardware: Hardware) -> list[Series]:
    """The series of rows of a table that a reader knows. Raises BadInput for a column that is missing, and
    UnknownFormat."""
    if rows.empty:
        return []
    frame = rows.assign(**{FLAG: ""})
    table = Table(file.system, file.op, file.library, file.version, file.name, frame, hardware)
    try:
        return list(readers()[file.name](table))
    except KeyError as error:
        raise BadInput(f"{file.path}: column {error} is missing") from None


def require(table: Table, columns: Sequence[str]) -> None:
    """Raise BadInput that names every missing column."""
    missing = [name for name in columns if name not in table.frame.columns]
    if missing:
        raise unknown(f"column of {table.name}", missing[0], map(str, table.frame.columns))


def series(
    table: Table,
    rows: pandas.DataFrame,
    shape: Sequence[str],
    build: Build,
    *,
    family: str,
    kernel: str,
    instance: str,
    phase: str,
    tokens: str | Floats,
    mechanism: str = "",
    tuned: tuple[str, ...] = (),
    eager: bool = False,
    seconds: str = "latency",
    unit: float = 1e-3,
) -> Iterator[Series]:
    """The series of some rows of a table: repeats of a shape become one point with their median time.

    shape names the columns that make a point; a repeat with a flag flags the point. tokens: the column whose value
    decides on which side of `extrapolate` a point lies. seconds, unit: the column with the time, and its unit in
    seconds. No rows give no series.
    """
    if rows.empty:
        return
    times = rows[seconds].to_numpy(dtype=numpy.float64) * unit
    flags = rows[FLAG].where((rows[FLAG] != "") | ((times > 0) & numpy.isfinite(times)), "no time")
    frame = rows[list(shape)].copy()
    frame[FLAG], frame["_seconds"] = flags, times
    frame["_tokens"] = rows[tokens] if isinstance(tokens, str) else tokens
    points = frame.groupby(list(shape), sort=True).agg({"_seconds": "median", "_tokens": "first", FLAG: "max"})
    yield Series(
        system=device_name(table.system),
        library=table.library,
        version=table.version,
        family=family,
        kernel=kernel,
        instance=instance,
        phase=phase,
        shapes=points.index.to_frame(index=False).astype(numpy.float64),
        seconds=points["_seconds"].to_numpy(),
        flags=points[FLAG].to_numpy(dtype=str),
        tokens=points["_tokens"].to_numpy(dtype=numpy.float64),
        build=build,
        mechanism=mechanism,
        tuned=tuned,
        eager=eager,
    )


def flag(rows: pandas.DataFrame, condition: "pandas.Series[bool]", reason: str) -> None:
    """Mark the rows that fulfil a condition, where nothing marked them before."""
    rows.loc[condition & (rows[FLAG] == ""), FLAG] = reason


def flag_plateau(rows: pandas.DataFrame, plateau_s: float, reason: str = "host plateau") -> None:
    """Mark rows of an eager benchmark that are as fast as its host can launch: they say nothing of the device."""
    flag(rows, rows["latency"] * 1e-3 <= plateau_s, reason)


def flag_outdone(
    rows: pandas.DataFrame,
    factor: float,
    more: Sequence[str],
    less: Sequence[str] = (),
    within: Sequence[str] = (),
    reason: str = "slower than a larger one",
) -> None:
    """Mark rows more than `factor` times slower than one with as much work or more: what they took is not the work's.

    Such a row agrees in the columns `within`, and has at least as much in each of `more` and at most as much in each of
    `less`.
    """
    outdone = pandas.Series(False, index=rows.index)
    for _, same in rows.groupby([rows[name] for name in within] or numpy.zeros(len(rows)), sort=False):
        latency = same["latency"].to_numpy()
        larger = numpy.ones((len(same), len(same)), dtype=bool)
        for name in more:
            larger &= numpy.less_equal.outer(same[name].to_numpy(), same[name].to_numpy())
        for name in less:
            larger &= numpy.greater_equal.outer(same[name].to_numpy(), same[name].to_numpy())
        outdone[same.index] = latency > factor * numpy.where(larger, latency, numpy.inf).min(axis=1)
    flag(rows, outdone, reason)


def flag_spikes(rows: pandas.DataFrame, along: str, within: Sequence[str], factor: float = 3.0) -> None:
    """Mark isolated spikes: rows more than `factor` times slower than both neighbours along a sweep."""
    ordered = rows.sort_values([*within, along])
    latency = ordered["latency"]
    same = latency.groupby([ordered[name] for name in within] or numpy.zeros(len(ordered)), sort=False)
    before, after = same.shift(1), same.shift(-1)
    spikes = (latency > factor * before) & (latency > factor * after)
    flag(rows, spikes.reindex(rows.index), "isolated spike")


def by_phase(table: Table, rows: pandas.DataFrame, phase: Phase) -> Iterator[tuple[Phase, pandas.DataFrame]]:
    """Rows of a module by the phase whose kernels they ran, with their context: vLLM decodes chunks of one token."""
    rows = rows.assign(tokens=rows["isl"] + rows["step"])
    decoding = (rows["isl"] == 1) & (table.library == "vllm") | (phase == "decode")
    yield "decode", rows[decoding]
    yield "prefill", rows[~decoding]


def dtype_names(kind: Mapping[str, str], text: str) -> str:
    """This project's name of a dtype. Raises UnknownFormat for one that is not known."""
    if text not in kind:
        raise UnknownFormat(text, kind)
    return kind[text]
