"""Anyone's own measurements: a CSV table with a kernel family, its shape, and seconds.

    family,kernel,seconds,m,n,k,activations,weights
    gemm,cublas,0.0000214,1024,4096,4096,bf16,bf16
    gemm,cublas,0.0000061,1,4096,4096,bf16,bf16

Every row needs `family` and `seconds`. `kernel` is the library's name of it, `hot` is 1 (the default) when the same
buffers were used again and again and 0 when caches were cold. All other columns are the fields of the family's shape,
with its names and units; a cell may stay empty where the field has a default, or where the row's family lacks it.
"""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas

import costmodel.kernels
from costmodel.errors import BadInput, suggestion, unknown
from costmodel.fitting.calibrate import Source
from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, replayed

COMMON = ("family", "kernel", "seconds", "hot")
LONGEST_S = 1e5


class Maker(NamedTuple):
    """How a family's kernel is made from its shape: the class of the shape, and the function."""

    shape: Any
    make: Callable[[Any], Kernel]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The defaults of those fields that have one."""
        return self.shape._field_defaults

    def is_text(self, field: str) -> bool:
        """Whether a field holds a name, not a number."""
        return typing.get_type_hints(self.shape)[field] is str


@cache
def makers() -> dict[str, Maker]:
    """Every family whose kernel is a function of a name and one shape, which bears the name of its file."""
    found = {}
    for module_info in pkgutil.iter_modules(costmodel.kernels.__path__):
        module = importlib.import_module(f"costmodel.kernels.{module_info.name}")
        function = getattr(module, module_info.name, None)
        if function is None:
            continue
        shape = list(typing.get_type_hints(function).values())[1]
        if not hasattr(shape, "_fields"):
            continue
        forms: Sequence[Form] = getattr(module, "FORMS", (module.FORM,) if hasattr(module, "FORM") else ())
        takes_form = "form" in inspect.signature(function).parameters
        for form in forms:
            make = partial(_make, function, form if takes_form else None)
            found[form.family] = Maker(shape, make)
    return found


def _make(function: Callable[..., Kernel], form: Form | None, shape: Any) -> Kernel:
    return function("measured", shape) if form is None else function("measured", shape, form=form)


def csv_source(path: Path, hardware: Hardware, library: str) -> Source:
    """The measurements of a file. Raises BadInput with the line and column of the first cell that is wrong."""
    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False, comment="#", skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable CSV file ({str(error).splitlines()[0][:120]})") from None
    for name in ("family", "seconds"):
        if name not in frame:
            raise BadInput(f"{path}: no column {name!r}{suggestion(name, frame.columns)}")
    if frame.empty:
        raise BadInput(f"{path}: holds no measurements")
    known = makers()
    fields = {field for maker in known.values() for field in maker.shape._fields}
    for name in frame.columns:
        if name not in COMMON and name not in fields:
            raise unknown(f"column in {path}", str(name), [*COMMON, *fields])
    rows = [_row(path, line + 2, cells) for line, cells in enumerate(frame.to_dict("records"))]
    return Source(hardware, library, tuple(_series(rows, hardware, library)))


class Row(NamedTuple):
    """One measurement: its family, kernel, whether caches were hot, the fields that were given, and seconds."""

    family: str
    kernel: str
    hot: bool
    given: Mapping[str, Any]
    instance: str
    seconds: float


def _row(path: Path, line: int, cells: Mapping[Any, str]) -> Row:
    where = f"{path}, line {line}"
    family = cells["family"].strip()
    maker = makers().get(family)
    if maker is None:
        raise BadInput(f"{where}: {unknown('family', family, makers())}")
    given: dict[str, Any] = {}
    for field in maker.shape._fields:
        text = cells.get(field, "").strip()
        default = maker.defaults.get(field)
        if text:
            if isinstance(default, bool):
                given[field] = _number(where, field, text) != 0
            else:
                given[field] = text if maker.is_text(field) else _number(where, field, text)
        elif field not in maker.defaults:
            raise BadInput(f"{where}: {field} is empty; {family} needs it")
    for name, text in cells.items():
        if text.strip() and name not in COMMON and name not in maker.shape._fields:
            raise BadInput(f"{where}: {name}={text[:40]} is no field of {family}")
    seconds = _number(where, "seconds", cells["seconds"].strip() or "nothing")
    if not 0 < seconds < LONGEST_S:
        raise BadInput(f"{where}: seconds {seconds:g} is outside 0 to {LONGEST_S:g}")
    hot = _number(where, "hot", cells.get("hot", "").strip() or "1") != 0
    instance = maker.make(maker.shape(**given)).instance
    return Row(family, cells.get("kernel", "").strip() or "own", hot, given, instance, seconds)


def _number(where: str, field: str, text: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{where}: {field} {text[:40]!r} is not a number") from None
    if not 0 <= value < 1e15:
        raise BadInput(f"{where}: {field} {value:g} is outside 0 to 1e15")
    return int(value) if value.is_integer() else value


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
    kernel = maker.make(maker.shape(**{**arrays(shapes), **fixed}))
    return whole(shapes, replayed([kernel]) if hot else [kernel])
