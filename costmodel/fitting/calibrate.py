"""Measured tables to a calibration file: every kernel that they hold, with what was refused and how right the rest is.

Shipped calibrations and users' own are made by the same function. 20 % of all shapes are put aside by a fixed hash and
serve only to tell how right the fit is; the rest is fitted. A run that is interrupted goes on where it stopped: what is
finished lies beside the output, one line for each kernel, and is taken only where the points and the time forms are
still the same.
"""

import hashlib
import importlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import yaml

from costmodel import kernels
from costmodel.calibration import PRIOR, Calibration, from_fits
from costmodel.calibration_entry import read_entry
from costmodel.errors import BadInput
from costmodel.fit import Fit
from costmodel.fitting.calibration_file import Header, calibration_text, entry_mapping
from costmodel.fitting.fit_order import fit_order, in_file_order, in_order
from costmodel.fitting.fitted_points import Choose, most_fitted
from costmodel.fitting.least_squares import Points
from costmodel.fitting.library import fit_kernel
from costmodel.fitting.planner import Planned, plan_library, planned_choice
from costmodel.fitting.pricing import priced
from costmodel.fitting.reading import read_tables
from costmodel.fitting.scoring import statistics
from costmodel.fitting.series import Indices, Series
from costmodel.fitting.silicon import NCCL, TableFile, hardware_of, tables_of
from costmodel.fitting.splits import shapes_split
from costmodel.hardware import Hardware
from costmodel.kernels import forms
from costmodel.kernels.base import Kernel
from costmodel.kernels.processor import for_device
from costmodel.loading import write_atomically
from costmodel.timing import Z80


class Source(NamedTuple):
    """What is to be calibrated: a device and library, its series, and what of the tables is not read."""

    hardware: Hardware
    library: str
    series: tuple[Series, ...]
    unread: tuple[str, ...] = ()


class Calibrated(NamedTuple):
    """The outcome: the file's text, one row for each kernel, the planned points, and how many kernels were resumed."""

    text: str
    rows: tuple[dict[str, Any], ...]
    planned: tuple[Planned, ...]
    resumed: int


def silicon_sources(directory: Path, system: str, libraries: Sequence[str]) -> list[Source]:
    """The tables of a system, by library. Raises BadInput for a system or library that is not there."""
    own = tables_of(directory, [system], libraries)
    return [_source(own, library) for library in (libraries or sorted({file.library for file in own} - {NCCL}))]


def _source(files: Sequence[TableFile], library: str) -> Source:
    chosen = [file for file in files if file.library in (library, NCCL)]
    hardware = hardware_of(chosen[0])
    reading = read_tables(chosen, hardware)
    return Source(hardware, library, tuple(reading.series), tuple(reading.unread))


def calibrate(
    source: Source,
    header: Header,
    *,
    points: int | None = None,
    seed: int = 0,
    partial: Path | None = None,
    start: Calibration = PRIOR,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Calibrated:
    """Fit every kernel of a source.

    points: measure only so many planner-chosen points per kernel instance. partial: where finished kernels are kept
    until the whole is done. progress is told the kernel at work, and how many of how many are done.
    """
    planned: list[Planned] = []
    choose: Choose = _all_but_aside
    if points is not None:
        planned = plan_library(source.series, source.hardware, points, _all_but_aside, start)
        choose = planned_choice(planned)
    groups = in_order(source.series)
    finished = _finished(partial)
    documents: dict[int, list[dict[str, Any]]] = {}
    fits: dict[int, list[Fit]] = {}
    rows: dict[int, list[dict[str, Any]]] = {}
    resumed = 0
    for done, index in enumerate(fit_order(groups)):
        same = groups[index]
        progress(f"{same[0].family} {same[0].kernel}", done, len(groups))
        digest = _digest(same, choose, in_file_order(documents), seed)
        kept = finished.get(digest)
        if kept is not None:
            mine, told, resumed = kept["documents"], kept["rows"], resumed + 1
        else:
            mine, told = _one_kernel(same, source.hardware, choose, from_fits(in_file_order(fits)), start, seed)
            if partial is not None:
                _keep(partial, digest, mine, told)
        documents[index], rows[index] = mine, told
        fits[index] = _read_back(mine, source.hardware.name)
    text = calibration_text(header, in_file_order(documents))
    return Calibrated(text, tuple(in_file_order(rows)), tuple(planned), resumed)


def _all_but_aside(series: Series) -> Indices:
    return shapes_split(series)[0]


def _one_kernel(
    same: Sequence[Series], hardware: Hardware, choose: Choose, known: Calibration, start: Calibration, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The documents of one kernel, and what the report says of its instances."""
    entries = fit_kernel(same, hardware, choose, known, start, seed)
    together = from_fits([entry.fit for entry in entries] + list(known.read_.values()))
    told: dict[str, dict[str, Any]] = {}
    for instance in dict.fromkeys(one.instance for one in same):
        own = [one for one in same if one.instance == instance]
        told[instance] = _row(own, hardware, choose, together)
    documents = [
        entry_mapping(entry, None if entry.measured is None else _held_out(told[entry.measured])) for entry in entries
    ]
    return documents, list(told.values())


def _row(own: Sequence[Series], hardware: Hardware, choose: Choose, calibration: Calibration) -> dict[str, Any]:
    """One line of the report: the points of an instance, and the errors on those put aside."""
    first = own[0]
    flags = dict(sum((one.left_out for one in own), Counter[str]()))
    gaps, inside = [], []
    for one in own:
        aside = shapes_split(one)[1]
        if len(aside) and len(choose(one)):
            said = priced(Points(one, aside), hardware, calibration)
            gap = numpy.log(said.seconds / one.seconds[aside])
            gaps.append(gap)
            inside.append(numpy.abs(gap) <= Z80 * said.spread)
    fitted = sum(len(choose(one)) for one in own)
    row: dict[str, Any] = {
        "family": first.family,
        "kernel": first.kernel,
        "version": first.version,
        "instance": first.instance,
        "module": first.module or None,
        "points": min(fitted, most_fitted(first.family) * len(own)),
        "held_out": 0,
        "median_ape": None,
        "mean_ape": None,
        "p90_ape": None,
        "bias": None,
        "coverage80": None,
        "flagged": flags,
        "refused": None if fitted else "; ".join(flags) or "no points",
    }
    if gaps:
        row.update(held_out=sum(map(len, gaps)), **statistics(numpy.concatenate(gaps), numpy.concatenate(inside)))
    return row


def _held_out(row: Mapping[str, Any]) -> dict[str, Any] | None:
    if not row["held_out"]:
        return None
    return {"n": row["held_out"], **{name: row[name] for name in ("median_ape", "mean_ape", "p90_ape", "coverage80")}}


IMPORT = re.compile(rf"^from {re.escape(kernels.__name__)}(?:\.(\w+))? import (.+)$", re.MULTILINE)
"""A file of kernels that takes something from another one."""


def code_of(run: Collection[Kernel]) -> str:
    """A hash of what the times of some kernels are computed by: the source of the files of their families, and of all
    the files of kernels that these import."""
    sources: dict[str, str] = {}
    known = {name: form for name, form in forms().items() if name in {kernel.family for kernel in run}}
    waiting = sorted({form.terms.__module__ for form in (*known.values(), *(kernel.form for kernel in run))})
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = inspect.getsource(importlib.import_module(name))
            for inner, imported in IMPORT.findall(sources[name]) if name.startswith(kernels.__name__) else ():
                names = [inner] if inner else [one.strip() for one in imported.split(",")]
                waiting += [f"{kernels.__name__}.{each}" for each in names]
    return hashlib.sha256("".join(sources[name] for name in sorted(sources)).encode()).hexdigest()


def _digest(same: Sequence[Series], choose: Choose, before: Sequence[Mapping[str, Any]], seed: int) -> str:
    """What the fit of a kernel depends on: its points, and of its own family and all that its modules hold, the time
    forms and the fits that were made before."""
    chosen = [(one, choose(one)) for one in same]
    run = [kernel for one, rows in chosen if len(rows) for part in one.parts(rows) for kernel in part.kernels]
    families = {kernel.family for kernel in run}
    state = hashlib.sha256(f"{seed} {same[0].name} {same[0].source} {code_of(run)}".encode())
    for one, rows in chosen:
        state.update(one.instance.encode() + one.shapes.iloc[rows].to_numpy().tobytes() + one.seconds[rows].tobytes())
    standing_on = [document for document in before if document["family"] in families]
    state.update(json.dumps(standing_on, sort_keys=True).encode())
    return state.hexdigest()[:24]


def _finished(partial: Path | None) -> dict[str, Any]:
    if partial is None or not partial.is_file():
        return {}
    found = {}
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            kept = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of an interrupted run
        found[kept["digest"]] = kept
    return found


def _keep(
    partial: Path, digest: str, documents: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"digest": digest, "documents": list(documents), "rows": list(rows)}) + "\n")


def _read_back(documents: Iterable[Mapping[str, Any]], device: str) -> list[Fit]:
    """The fits as a reader of the file will see them, so that what stands on them is fitted to the same numbers, and is
    as sure of them: a covariance counts its parameters in the order of the entry."""
    known = forms()
    return [
        read_entry(
            "calibration",
            yaml.safe_dump(dict(document), sort_keys=False),
            for_device(known[document["family"]], device),
        )
        for document in documents
    ]


def save(calibrated: Calibrated, path: Path) -> None:
    """Write the calibration, whole or not at all."""
    if not calibrated.rows:
        raise BadInput(f"{path}: nothing to calibrate: no table was read")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, calibrated.text.encode())
