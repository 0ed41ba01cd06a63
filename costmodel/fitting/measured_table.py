"""A dense measured table at prediction time: the analytic trunk, corrected by the interpolated residual.

The residual ln(measured/trunk) of every measured point is a field over the numbers of a kernel's shape. Inside the
measured hull a prediction takes the field's value; outside, the field goes to zero, and the trunk is left. The same
numbers describe a measured kernel and a predicted one, because the same functions made both. Modules that were
measured as a whole are corrected as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from costmodel.calibration import Calibration
from costmodel.fitting.fit_order import in_order
from costmodel.fitting.interpolation import Field, interpolated
from costmodel.fitting.least_squares import Points
from costmodel.fitting.planner import octave, octaves
from costmodel.fitting.pricing import priced
from costmodel.fitting.reading import read_tables
from costmodel.fitting.series import Floats, Series, spread_out
from costmodel.fitting.silicon import hardware_of, tables
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.timing import Correction

KNOWN_BY_TABLE = 0.5
"""Share of the residual's variance below which a place counts as measured."""

Words = tuple[tuple[str, Any], ...]
"""What must be equal for a table to speak of a kernel: dtypes, flags, and which numbers it has."""


class Described(NamedTuple):
    """A kernel or module as a table sees it: what must be equal, and the numbers in between, by name."""

    words: Words
    numbers: Mapping[str, Any]


def fields(shape: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a kernel's shape, those of a shape within it by both names, and of its launches their names alone.

    >>> from costmodel.kernels.chunk_scan import Scan, Stage
    >>> dict(fields(Stage(Scan("gdn", B=1, S=64, H=2, dk=128, dv=128, C=64))))["scan.S"]
    64
    """
    for field, value in (shape._asdict() if shape is not None else {}).items():
        if isinstance(value, tuple) and value and all(isinstance(one, Kernel) for one in value):
            yield field, tuple(one.name for one in value)
        elif hasattr(value, "_asdict"):
            yield from ((f"{field}.{inner}", one) for inner, one in fields(value))
        else:
            yield field, value


def described(kernels: Sequence[Kernel], qualified: bool) -> Described:
    """The shapes of some kernels; `qualified` puts the kernel's name before each field."""
    words: list[tuple[str, Any]] = []
    numbers: dict[str, Any] = {}
    for kernel in kernels:
        for field, value in fields(kernel.shape):
            name = f"{kernel.name}.{field}" if qualified else field
            if value is None or isinstance(value, bool | str | tuple) or callable(value):
                words.append((name, value if not callable(value) else None))
            else:
                numbers[name] = value
    return Described((*words, *((name, "number") for name in sorted(numbers))), numbers)


def telling(series: Series, kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that tell one point of a series from another: its family's, or all products of a module as well."""
    families = (series.family, *series.tuned, *(("gemm",) if series.mechanism else ()))
    found = [kernel for kernel in kernels if kernel.family in families and kernel.shape is not None]
    return found or [kernel for kernel in kernels if kernel.shape is not None]


def places(points: Points) -> Floats:
    """Where points lie: log2 of the numbers of their shapes, a column for each in the order of their names."""
    rows: list[tuple[Any, Mapping[str, Any]]] = []
    for part in points.series.parts(points.rows):
        rows.append((part.rows, described(telling(points.series, part.kernels), bool(points.series.mechanism)).numbers))
    names = sorted({name for _, numbers in rows for name in numbers})
    if not names:
        return octaves(points)  # a kernel without a shape of its own, such as an elementwise pass
    found = numpy.zeros((len(points.rows), len(names)))
    for indices, numbers in rows:
        for column, name in enumerate(names):
            found[indices, column] = octave(spread_out(numbers.get(name, 0), len(indices)))
    return found


class Measured(NamedTuple):
    """The residuals of points that agree in their words: the names of their numbers, and the field over them."""

    names: tuple[str, ...]
    field: Field


class MeasuredTable:
    """The measured tables of one device and library, as corrections of a calibration's predictions."""

    def __init__(self, directory: Path, hardware: Hardware, calibration: Calibration) -> None:
        library = calibration.library if calibration.id else None
        self.hardware, self.calibration = hardware, calibration
        self.series: dict[tuple[str, str, str], list[Series]] = {}
        files = [
            file
            for file in tables(directory)
            if file.device == hardware.name and file.library == (library or file.library)
        ]
        found = [read_tables([file], hardware_of(file)).series for file in files]
        for same in in_order([one for series in found for one in series]):
            for one in same:
                # The library's default kernel comes first; a table of another one does not speak of it.
                key = (one.module, "", "") if one.module else (one.family, one.instance, "")
                kept = self.series.setdefault(key, [])
                if not kept or kept[0].source == one.source:
                    kept.append(one)
        self.fields: dict[tuple[tuple[str, str, str], Words], Measured | None] = {}

    def corrections(self, kernels: Sequence[Kernel]) -> list[Correction | None]:
        """What the tables say of each kernel of a step; None where they say nothing."""
        found: list[Correction | None] = [None] * len(kernels)
        for key, indices in self._groups(kernels):
            correction = self._correction(key, [kernels[index] for index in indices])
            for index in indices:
                found[index] = correction
        return found

    def _groups(self, kernels: Sequence[Kernel]) -> Iterator[tuple[tuple[str, str, str], list[int]]]:
        """The indices of kernels that a table speaks of together: those of a measured module, else each alone."""
        modules: dict[str, list[int]] = {}
        for index, kernel in enumerate(kernels):
            if (kernel.module, "", "") in self.series:
                modules.setdefault(kernel.module, []).append(index)
            elif (kernel.family, kernel.instance, "") in self.series:
                yield (kernel.family, kernel.instance, ""), [index]
        for module, indices in modules.items():
            yield (module, "", ""), indices

    def _correction(self, key: tuple[str, str, str], kernels: Sequence[Kernel]) -> Correction | None:
        own = telling(self.series[key][0], kernels)
        if not own:
            return None
        asked = described(own, bool(self.series[key][0].mechanism))
        if (key, asked.words) not in self.fields:
            self.fields[key, asked.words] = self._field(self.series[key], asked.words)
        measured = self.fields[key, asked.words]
        if measured is None:
            return None
        place = numpy.array([[float(octave(asked.numbers[name])) for name in measured.names]])
        residual, left = measured.field.at(place)
        share = float(left[0]) ** 2 / measured.field.variance
        return Correction(float(residual[0]), float(left[0]), share < KNOWN_BY_TABLE)

    def _field(self, series: Sequence[Series], words: Words) -> Measured | None:
        """The residuals of the points whose words are these."""
        coordinates, residuals = [], []
        names: tuple[str, ...] = ()
        for one in series:
            points = Points(one, one.used)
            trunk = priced(points, self.hardware, self.calibration, intervals=False).seconds
            for part in one.parts(points.rows):
                told = described(telling(one, part.kernels), bool(one.mechanism))
                if told.words != words:
                    continue
                names = tuple(sorted(told.numbers))
                columns = [octave(spread_out(told.numbers[name], len(part.rows))) for name in names]
                coordinates.append(numpy.stack(columns, axis=1))
                residuals.append(numpy.log(points.seconds[part.rows] / trunk[part.rows]))
        if not coordinates:
            return None
        return Measured(names, interpolated(numpy.concatenate(coordinates), numpy.concatenate(residuals)))
