"""Seconds of kernels on one device: those of the same work priced once, those of one form all at once.

Formulas of times take arrays as they take numbers, and kernels of layouts that were told apart while they were built
are seldom told apart by their times: on top of one another they are as many rows of one kernel.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.algebra import Quantity
from costmodel.calibration import Calibration
from costmodel.fit import Fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.kernels.gemm import Gemm
from costmodel.kernels.grouped_gemm import GroupedGemm
from costmodel.overlap import in_parts
from costmodel.planning.side_by_side import Apart, Rows, different_rows, some_rows
from costmodel.timing import roofline

NUMBERS, ARRAYS, PLAIN = {int, float}, {numpy.ndarray, Rows}, {str, bool, type(None)}
NOT_LEARNT = None, None


class Price(NamedTuple):
    """Seconds of one launch: expected, and at the datasheet's peaks."""

    expected: Quantity
    peak: Quantity


class Prices:
    """Seconds of kernels on one device. Kernels of the same work cost the same, so each is priced once. hides: whether
    some of them are meant to pass behind others."""

    def __init__(self, hardware: Hardware, calibration: Calibration, hides: bool) -> None:
        self.hardware, self.calibration, self.hides = hardware, calibration, hides
        self.known: dict[Hashable, Price] = {}
        self.keys: dict[int, tuple[Kernel, Hashable]] = {}
        """Of kernels that were learnt, by where they lie: each is kept beside its key, so that no other lies there."""
        self.fits: dict[tuple[str, str, str], Fit] = {}

    def of(self, kernel: Kernel) -> Price:
        """Of one launch, element by element where the kernel is of arrays."""
        _, key = self.keys.get(id(kernel), NOT_LEARNT)
        if key is None:
            _, key, _ = self._described(kernel)
        if key not in self.known:
            self.known[key] = self._price(kernel)
        return self.known[key]

    def learn(self, kernels: Iterable[Kernel]) -> None:
        """Price many, those of one form on top of one another."""
        alike: dict[Hashable, dict[Hashable, tuple[Kernel, list[Any]]]] = {}
        for kernel in kernels:
            form, key, numbers = self._described(kernel)
            self.keys[id(kernel)] = kernel, key
            if key not in self.known:
                alike.setdefault(form, {})[key] = kernel, numbers
        for of_form in alike.values():
            like, _ = next(iter(of_form.values()))
            rows = [max(map(_rows, numbers)) for _, numbers in of_form.values()]
            columns = zip(*(numbers for _, numbers in of_form.values()), strict=True)
            try:
                price = self._price(_with_work(like, (_on_top(column, rows) for column in columns)))
            except Apart:
                # Formulas ask more of the layouts than whoever built the kernels did: each kernel is priced alone.
                continue
            ends = numpy.cumsum(rows).tolist()
            for key, start, end in zip(of_form, [0, *ends], ends, strict=False):
                self.known[key] = Price(*(some_rows(values, slice(start, end), ends[-1]) for values in price))

    def _price(self, kernel: Kernel) -> Price:
        if isinstance(kernel.shape, Gemm | GroupedGemm):
            # The shape of a product says all of it, and many layouts have the same.
            different = different_rows(kernel.shape)
            if different is not None:
                row, first = different
                few = self._price(some_rows(kernel, first, len(row)))
                return Price(*(some_rows(values, row, len(first)) for values in few))
        fit = self._fit(kernel)
        terms = kernel.form.terms(kernel.sharing(fit.occupancy), self.hardware, fit.values)
        return Price(terms.total(), roofline(kernel, self.hardware))

    def seconds(self, run: Sequence[Kernel]) -> Quantity:
        """Expected seconds of kernels, one after another, but for what hides."""
        return in_parts(run, lambda some: sum(self.of(kernel).expected * kernel.exposed for kernel in some)).total()

    def _fit(self, kernel: Kernel) -> Fit:
        key = (kernel.family, kernel.instance, kernel.module)
        if key not in self.fits:
            self.fits[key] = self.calibration.fit(kernel)
        return self.fits[key]

    def _described(self, kernel: Kernel) -> tuple[Hashable, Hashable, list[Any]]:
        """Something that is equal for kernels that may stand on top of one another, something that is equal for those
        of the same work, and the numbers of that."""
        form: list[Any] = [kernel.family, id(self._fit(kernel))]
        numbers: list[Any] = []
        _describe(_work(kernel), form, numbers)
        alike = tuple(form)
        return alike, (alike, *map(_content, numbers)), numbers


def _work(kernel: Kernel) -> tuple[Any, ...]:
    """What times are formulas of, beside the fit."""
    ideal = None if kernel.ideal is kernel.executed else kernel.ideal
    return kernel.launches, kernel.shape, kernel.grid, kernel.executed, ideal


def _with_work(kernel: Kernel, numbers: Iterator[Any]) -> Kernel:
    """The kernel with other numbers in its work."""
    launches, shape, grid, executed, ideal = _filled(_work(kernel), numbers)
    ideal = executed if ideal is None else ideal
    return kernel._replace(launches=launches, shape=shape, grid=grid, executed=executed, ideal=ideal)


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


def _on_top(numbers: Sequence[Any], rows: Sequence[int]) -> Any:
    """The same number of kernels on top of one another, with so many rows each."""
    first = numbers[0]
    if numpy.ndim(first) < 2 and all(number is first for number in numbers):
        return first
    if not any(isinstance(number, numpy.ndarray) for number in numbers) and len(set(numbers)) == 1:
        return first
    size = numpy.shape(first)[-1] if numpy.ndim(first) else 1
    found = numpy.empty((sum(rows), size))
    start = 0
    for number, count in zip(numbers, rows, strict=True):
        found[start : start + count] = number
        start += count
    return found.view(Rows)
