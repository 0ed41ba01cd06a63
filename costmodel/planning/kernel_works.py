"""The work of kernels, whatever device runs them: which do the same, and which are of one form but for its numbers."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy

from costmodel.kernels.base import Kernel
from costmodel.planning.side_by_side import Rows

NUMBERS, ARRAYS, PLAIN = {int, float}, {numpy.ndarray, Rows}, {str, bool, type(None)}


class Work(NamedTuple):
    """What times are formulas of, beside the fit.

    form: equal for kernels that may stand on top of one another. number: equal for those of the same work. numbers:
    all numbers in it. rows: of so many layouts.
    """

    form: int
    number: int
    numbers: list[Any]
    rows: int


class Works:
    """The work of kernels, each described once: devices that run the same kernels share it."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Kernel, Work]] = {}
        """By where kernels lie: each is kept beside its work, so that no other lies there."""
        self.forms: dict[Hashable, int] = {}
        self.numbered: dict[Hashable, int] = {}

    def of(self, kernel: Kernel) -> Work:
        """That of one launch."""
        found = self.known.get(id(kernel))
        if found is None:
            found = self.known[id(kernel)] = kernel, self._described(kernel)
        return found[1]

    def _described(self, kernel: Kernel) -> Work:
        form: list[Any] = []
        numbers: list[Any] = []
        _describe(_work(kernel), form, numbers)
        of_form = self.forms.setdefault(tuple(form), len(self.forms))
        number = self.numbered.setdefault((of_form, *map(_content, numbers)), len(self.numbered))
        return Work(of_form, number, numbers, max(map(_rows, numbers)))


def with_work(kernel: Kernel, numbers: Iterator[Any]) -> Kernel:
    """The kernel with other numbers in its work."""
    launches, shape, grid, executed, ideal = _filled(_work(kernel), numbers)
    ideal = executed if ideal is None else ideal
    return kernel._replace(launches=launches, shape=shape, grid=grid, executed=executed, ideal=ideal)


def _work(kernel: Kernel) -> tuple[Any, ...]:
    ideal = None if kernel.ideal is kernel.executed else kernel.ideal
    return kernel.launches, kernel.shape, kernel.grid, kernel.executed, ideal


def _describe(value: Any, form: list[Any], numbers: list[Any]) -> None:
    """Append the numbers of a value to some, and all else, with what they are numbers of, to others: of layouts, or of
    so many steps."""
    kind = type(value)
    if kind in NUMBERS:
        form.append(1)
        numbers.append(value)
    elif kind in ARRAYS:
        # That of one step alone is no number of layouts.
        form.append(value.shape[-1] if value.ndim == 2 or value.size > 1 else id(value))
        numbers.append(value)
    elif kind in PLAIN:
        form.append(value)
    elif issubclass(kind, tuple):
        form.append(kind)
        for entry in value:
            _describe(entry, form, numbers)
    elif issubclass(kind, Mapping):
        form.append(tuple(value))
        for entry in value.values():
            _describe(entry, form, numbers)
    else:
        form.append(value)


def _filled(value: Any, numbers: Iterator[Any]) -> Any:
    """The value with other numbers, in the order of `_describe`."""
    if type(value) in NUMBERS | ARRAYS:
        return next(numbers)
    if isinstance(value, tuple):
        entries = [_filled(entry, numbers) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    if isinstance(value, Mapping):
        return {key: _filled(entry, numbers) for key, entry in value.items()}
    return value


def _content(number: Any) -> Any:
    """Something that is equal for equal numbers; of arrays a 64-bit hash, of which a kernel has several that all would
    have to be equal by chance."""
    return (number.shape, hash(number.tobytes())) if type(number) in ARRAYS else number


def _rows(number: Any) -> int:
    """How many layouts a number is of."""
    return len(number) if type(number) in ARRAYS and number.ndim == 2 else 1
