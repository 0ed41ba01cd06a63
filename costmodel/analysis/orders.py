"""How a list of kernels grows with the context: FLOPs, executed bytes and cache exactly, time from its form.

FLOPs, bytes and cache are read with a symbol for the context (`analysis.leading`). Time forms hold tables, waves and
roots, so they are fed numbers instead: at a context of 2⁹⁶ tokens every term but the leading one is smaller than the
last digit of a float, and the slope from there to 2¹⁹² is the exponent, a logarithm's trace included.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.algebra import Quantity
from costmodel.analysis.leading import growth, leading_of
from costmodel.analysis.printing import order_text
from costmodel.analysis.symbolic import Size, evaluate
from costmodel.calibration import Calibration
from costmodel.hardware import Hardware
from costmodel.kernels.base import OVERLAPPING, Kernel, Terms
from costmodel.units import MAX_CONTEXT

FAR, FARTHER = 2**96, 2**192
"""Contexts, in tokens, where only leading terms are left."""

OCTAVES = math.log2(FARTHER / FAR)

LOGARITHM = math.log2(math.log(FARTHER) / math.log(FAR)) / OCTAVES
"""Slope between them that one factor of ln L adds."""

HALF_STEP = 2**0.25
"""Contexts on either side of the asked one whose times give the local exponent, as a factor."""

Place = tuple[str, str]
"""A kernel's block and its name."""


class Term(NamedTuple):
    """coefficient · L^power · (ln L)^log_power, and the kernels that carry it with their parts of the coefficient."""

    power: float
    log_power: float
    coefficient: float
    parts: Mapping[Place, float]

    @property
    def key(self) -> tuple[float, float]:
        """The exponents of L and ln L: larger grows faster."""
        return self.power, self.log_power

    @property
    def text(self) -> str:
        """The order as text, such as O(L²)."""
        return f"O({order_text(_plain(self.power), _plain(self.log_power))})"

    @property
    def carrier(self) -> Place:
        """The kernel with the largest part of the coefficient."""
        return max(self.parts, key=lambda place: self.parts[place], default=("", ""))


CONSTANT = Term(0, 0, 0.0, {})


def _plain(exponent: float) -> float | int:
    return int(exponent) if float(exponent).is_integer() else exponent


def _leading(found: Iterable[tuple[Place, tuple[float, float], float]]) -> Term:
    """The fastest of the terms of several kernels, those that grow alike added up."""
    entries = [entry for entry in found if entry[2] > 0]
    if not entries:
        return CONSTANT
    key = max(entry[1] for entry in entries)
    parts: dict[Place, float] = {}
    for place, own, coefficient in entries:
        if own == key:
            parts[place] = parts.get(place, 0.0) + coefficient
    return Term(*key, sum(parts.values()), parts)


def counted_order(
    kernels: Sequence[Kernel], L: Size, count: Callable[[Kernel], Quantity], memo: dict[Any, Any] | None = None
) -> Term:
    """The leading term of a count of one launch, summed over the launches of all kernels, which were built with L."""
    known: dict[Any, Any] = {} if memo is None else memo

    def terms() -> Iterable[tuple[Place, tuple[float, float], float]]:
        for kernel in kernels:
            top = leading_of(growth(count(kernel) * kernel.count, L, known))
            key = (float(top.power), float(top.log_power))
            yield (kernel.group, kernel.name), key, float(evaluate(top.coefficient))

    return _leading(terms())


def quantity_order(value: Quantity, L: Size) -> Term:
    """The leading term of one quantity."""
    top = leading_of(growth(value, L))
    return _leading([(("", ""), (float(top.power), float(top.log_power)), float(evaluate(top.coefficient)))])


def slope_order(near: float, far: float) -> tuple[float, float]:
    """Exponents of L and ln L from a positive quantity at FAR and at FARTHER.

    What rises a little faster than a whole power has a logarithm, maybe beside a large term without one.

    >>> slope_order(5.0 * FAR**2, 5.0 * FARTHER**2), slope_order(FAR * math.log(FAR), FARTHER * math.log(FARTHER))
    ((2.0, 0.0), (1.0, 1.0))
    """
    slope = math.log2(far / near) / OCTAVES
    above = slope - round(slope)
    if abs(above) < 1e-9:
        return float(round(slope)), 0.0
    if 0 < above < 3.5 * LOGARITHM:
        return float(round(slope)), float(max(1, round(above / LOGARITHM)))
    return round(slope, 3), 0.0


def far_coefficient(near: float, far: float, key: tuple[float, float]) -> float:
    """The coefficient of the leading term from a quantity at FAR and at FARTHER.

    >>> round(far_coefficient(FAR * (7 + 3 * math.log(FAR)), FARTHER * (7 + 3 * math.log(FARTHER)), (1, 1)), 6)
    3.0
    """
    power, logs = key
    if logs == 1:
        return (far / FARTHER**power - near / FAR**power) / math.log(FARTHER / FAR)
    return near / (FAR**power * math.log(FAR) ** logs)


def time_order(kernels_at: Callable[[int], Sequence[Kernel]], hardware: Hardware, calibration: Calibration) -> Term:
    """The leading term of the expected seconds: of each kernel, the p-norm of the terms that grow fastest.

    kernels_at gives the kernels of the step at a context.
    """
    found = []
    for near, far in zip(kernels_at(FAR), kernels_at(FARTHER), strict=True):
        first, second = (_seconds(kernel, hardware, calibration) for kernel in (near, far))
        orders = {name: slope_order(first[name], second[name]) for name in first if first[name] > 0}
        if not orders:
            continue
        key = max(orders.values())
        top = [far_coefficient(first[name], second[name], key) for name, order in orders.items() if order == key]
        overlap = near.form.terms(near, hardware, calibration.fit(near).values).overlap
        found.append(((near.group, near.name), key, sum(part**overlap for part in top) ** (1 / overlap)))
    return _leading(found)


def _seconds(kernel: Kernel, hardware: Hardware, calibration: Calibration) -> dict[str, float]:
    fit = calibration.fit(kernel)
    terms: Terms = kernel.form.terms(kernel.sharing(fit.occupancy), hardware, fit.values)
    return {name: float(getattr(terms, name) * kernel.count) for name in (*OVERLAPPING, "launch")}


def local_exponent(seconds: Callable[[int], float], L: int) -> float:
    """d log t / d log L at a context, as a central difference over a factor of about √2 in the context.

    Both contexts are whole multiples of a power of two, L/32 to L/16: a shorter one would tell how full the last tile
    or chunk is, not how the time grows.

    >>> round(local_exponent(lambda L: 3e-9 * L**2, 131072), 4), local_exponent(lambda L: 0.5, 131072)
    (2.0, 0.0)
    """
    unit = max(1, 2 ** (L.bit_length() - 1) // 16)
    low, high = (unit * max(1, round(L * factor / unit)) for factor in (1 / HALF_STEP, HALF_STEP))
    low, high = (low, min(high, MAX_CONTEXT)) if low < high else (L, L + 1)
    return math.log(seconds(high) / seconds(low)) / math.log(high / low)
