"""Seconds of kernels on one device: those of the same work priced once, those of one form all at once.

Formulas of times take arrays as they take numbers, and kernels of layouts that were told apart while they were built
are seldom told apart by their times: on top of one another they are as many rows of one kernel.
"""

from collections.abc import Hashable, Iterable, Sequence
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
from costmodel.planning.kernel_works import Work, Works, with_work
from costmodel.planning.side_by_side import Apart, Rows, different_rows, some_rows
from costmodel.timing import roofline


class Price(NamedTuple):
    """Seconds of one launch: expected, and at the datasheet's peaks."""

    expected: Quantity
    peak: Quantity


class Prices:
    """Seconds of kernels on one device. Kernels of the same work cost the same, so each is priced once. hides: whether
    some of them are meant to pass behind others."""

    def __init__(self, hardware: Hardware, calibration: Calibration, hides: bool, works: Works) -> None:
        self.hardware, self.calibration, self.hides, self.works = hardware, calibration, hides, works
        self.known: dict[Hashable, Price] = {}
        self.fits: dict[tuple[str, str, str], Fit] = {}

    def of(self, kernel: Kernel) -> Price:
        """Of one launch, element by element where the kernel is of arrays."""
        key = self._key(kernel, self.works.of(kernel).number)
        if key not in self.known:
            self.known[key] = self._price(kernel)
        return self.known[key]

    def learn(self, kernels: Iterable[Kernel]) -> None:
        """Price many, those of one form on top of one another."""
        alike: dict[Hashable, dict[Hashable, tuple[Kernel, Work]]] = {}
        for kernel in kernels:
            work = self.works.of(kernel)
            key = self._key(kernel, work.number)
            if key not in self.known:
                alike.setdefault(self._key(kernel, work.form), {})[key] = kernel, work
        for of_form in alike.values():
            like, _ = next(iter(of_form.values()))
            rows = [work.rows for _, work in of_form.values()]
            columns = zip(*(work.numbers for _, work in of_form.values()), strict=True)
            try:
                price = self._price(with_work(like, (_on_top(column, rows) for column in columns)))
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

    def _key(self, kernel: Kernel, number: int) -> Hashable:
        """What tells apart, beside the number of their work or its form, kernels that cost differently."""
        return kernel.family, id(self._fit(kernel)), number


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
