"""A series: measurements of one kernel or module of one library on one device, as kernels with measured seconds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import pandas
from numpy.typing import NDArray

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel

Floats = NDArray[numpy.float64]
Indices = NDArray[numpy.intp]


class Part(NamedTuple):
    """Rows of a series that run the same list of kernels; the kernels' sizes are arrays over these rows."""

    rows: Indices
    kernels: tuple[Kernel, ...]


Build = Callable[[pandas.DataFrame], Sequence[Part]]


class Series(NamedTuple):
    """Points of one kernel.

    kernel is the library's own name for it, instance the compiled variant that a fit belongs to, mechanism the mixer
    or FFN whose whole module was measured ("" for a bare kernel), phase prefill, decode or "".
    shapes holds one row of numbers per point, seconds the measured time of each (the median of repeats), flags the
    reason why a point is left out of fits and scores ("" for the points that are used). build turns rows of shapes
    into the kernels whose times add up. tokens is the length by which `extrapolate` splits. tuned names further
    families whose parameters inside this module are fitted from the module. eager: launched one by one, so that
    the host's time shows where the device is faster. Columns named head_dim and group (query heads per key head), where
    there are any, serve the splits that leave one of their values out. aside: which points were measured to judge by
    and are never fitted; None puts aside what a hash of the shape says. rank: of several kernels for the same work, 0
    is what runs by default; where all are 0, the one with the most points. occupancy: thread blocks of the compiled
    kernel that share a unit, 0 where the grids that are priced say so.
    """

    system: str
    library: str
    version: str
    family: str
    kernel: str
    instance: str
    phase: str
    shapes: pandas.DataFrame
    seconds: Floats
    flags: NDArray[numpy.str_]
    tokens: Floats
    build: Build
    mechanism: str = ""
    tuned: tuple[str, ...] = ()
    eager: bool = False
    aside: NDArray[numpy.bool_] | None = None
    rank: int = 0
    occupancy: int = 0

    @property
    def module(self) -> str:
        """The measured module, such as mla-prefill; "" for a bare kernel."""
        return f"{self.mechanism}-{self.phase}" if self.mechanism else ""

    @property
    def source(self) -> str:
        """The kernel with the version of its library, which one calibration may hold several of."""
        return f"{self.kernel} {self.version}".strip()

    @property
    def name(self) -> str:
        """What a report calls it."""
        return "/".join(part for part in (self.system, self.library, self.family, self.kernel, self.instance) if part)

    @property
    def used(self) -> Indices:
        """The points without a flag."""
        return numpy.flatnonzero(self.flags == "")

    @property
    def families(self) -> set[str]:
        """Of the kernels that the used points run."""
        return {kernel.family for part in self.parts(self.used) for kernel in part.kernels}

    @property
    def left_out(self) -> Counter[str]:
        """How many points each reason leaves out."""
        return Counter(str(reason) for reason in self.flags if reason)

    def parts(self, rows: Indices) -> Sequence[Part]:
        """The kernels of some points; the rows of a part count within `rows`."""
        parts = self.build(self.shapes.iloc[rows].reset_index(drop=True))
        return [part._replace(kernels=tuple(map(self._compiled, part.kernels))) for part in parts]

    def _compiled(self, kernel: Kernel) -> Kernel:
        return kernel.sharing(self.occupancy) if kernel.family == self.family else kernel


def whole(shapes: pandas.DataFrame, kernels: Sequence[Kernel]) -> list[Part]:
    """The one part of a series in which every row runs the same kernels."""
    return [Part(numpy.arange(len(shapes)), tuple(kernels))]


def by_columns(
    shapes: pandas.DataFrame,
    columns: Sequence[str],
    kernels: Callable[[Mapping[str, Any], Mapping[str, Floats]], Sequence[Kernel]],
) -> list[Part]:
    """One part for each combination of values of some columns (heads, widths, …), which reach `kernels` as numbers.

    The second argument of `kernels` holds every column as an array.
    """
    parts = []
    for values, rows in shapes.groupby(list(columns), sort=True).indices.items():
        fixed = dict(zip(columns, values if isinstance(values, tuple) else (values,), strict=True))
        numbers = {name: value.item() if hasattr(value, "item") else value for name, value in fixed.items()}
        parts.append(Part(numpy.asarray(rows), tuple(kernels(numbers, arrays(shapes.iloc[rows])))))
    return parts


def arrays(shapes: pandas.DataFrame) -> dict[str, Floats]:
    """The columns as float64 arrays, as formulas take them."""
    return {str(name): shapes[name].to_numpy(dtype=numpy.float64) for name in shapes.columns}


def spread_out(value: Quantity, length: int) -> Floats:
    """A quantity as an array of one number per row; of a column of them, one array for each of its entries."""
    given = numpy.asarray(value, dtype=numpy.float64)
    return numpy.broadcast_to(given, (length,) if given.ndim < 2 else (len(given), length))
