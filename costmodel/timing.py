"""Kernels and a device to seconds: expected, both bounds, and an interval.

Expected time: each kernel's form with its expected parameters. Lower bound `roofline_s`: every kernel at
the datasheet's peaks with perfect overlap inside it. Upper bound `serial_s`: nothing overlaps. Interval
(80 %): the parameters' standard deviations and each family's own model error, both carried through the
sum to first order; parameters are shared by all kernels of an instance, so their errors do not average out.

Kernels run one after another, but for communication that is meant to hide behind computation (`costmodel.overlap`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.algebra import Quantity, maximum, root
from costmodel.calibration import Calibration
from costmodel.calibration_entry import LEAST_MOVED
from costmodel.fit import BASES, Fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import BOUNDS, Kernel, Terms
from costmodel.overlap import NOTHING, is_meant_to_hide, shown_share, split

Z80 = 1.2815515655446004
"""Standard deviations from the centre to either end of an 80 % interval."""


class Correction(NamedTuple):
    """What a measured table adds: the residual of ln(time), the standard deviation that it leaves, and whether the
    kernel lies among the measured ones."""

    residual: float
    spread: float
    inside: bool


class KernelTime(NamedTuple):
    """A kernel with its terms (one launch), its seconds over all launches, and what bounds it."""

    kernel: Kernel
    fit: Fit
    terms: Terms
    time_s: Quantity
    correction: Correction | None = None

    @property
    def bound(self) -> str:
        """The limit with the largest term."""
        limits = self.terms.limits()
        return max(BOUNDS, key=lambda name: limits[name])

    @property
    def basis(self) -> str:
        """How firm the time is: from a measured table, or as firm as the parameters."""
        return "table" if self.correction is not None and self.correction.inside else self.fit.basis(self.kernel)


class StepTime(NamedTuple):
    """Seconds of a whole step, and of each kernel."""

    kernels: tuple[KernelTime, ...]
    time_s: float
    low_s: float
    high_s: float
    roofline_s: float
    serial_s: float
    bound: str
    basis: str


def roofline(kernel: Kernel, hardware: Hardware) -> Quantity:
    """Seconds of one launch's ideal work at the datasheet's peaks, all units, memory and links overlapping.

    Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
    """
    work = kernel.ideal
    seconds = work.hbm_bytes / hardware.memory.hbm.bandwidth
    tensor: Quantity = 0.0
    for dtype, flops in work.tensor.items():
        tensor = tensor + flops / hardware.tensor_peak(dtype)
    seconds = maximum(seconds, tensor)
    if not (type(work.network) is int and work.network == 0):
        seconds = maximum(seconds, work.network / hardware.fastest_link)
    return maximum(seconds, work.vector / hardware.compute.vector)


def expected(
    kernels: Sequence[Kernel],
    hardware: Hardware,
    calibration: Calibration,
    corrections: Sequence[Correction | None] | None = None,
) -> list[KernelTime]:
    """Every kernel with its expected time, corrected where a measured table speaks of it.

    The share that hides of a kernel is what does: of what is meant to, the part that computation leaves exposed is not.
    """
    times = []
    for index, kernel in enumerate(kernels):
        fit = calibration.fit(kernel)
        kernel = kernel.sharing(fit.occupancy)
        terms = kernel.form.terms(kernel, hardware, fit.values)
        correction = corrections[index] if corrections else None
        factor = math.exp(correction.residual) if correction else 1.0
        times.append(KernelTime(kernel, fit, terms, terms.total() * kernel.count * factor, correction))
    if not any(is_meant_to_hide(kernel) for kernel in kernels):
        return times
    hides = 1.0 - shown_share([(entry.kernel, entry.time_s) for entry in times])
    return [_partly_hidden(entry, hides) if is_meant_to_hide(entry.kernel) else entry for entry in times]


def _partly_hidden(entry: KernelTime, hides: Quantity) -> KernelTime:
    """The kernel with the share of what is meant to hide that does."""
    hidden = entry.kernel.hidden * hides
    return entry._replace(kernel=entry.kernel._replace(hidden=hidden), time_s=entry.time_s * (1.0 - hidden))


def total_seconds(kernels: Sequence[Kernel], hardware: Hardware, calibration: Calibration) -> Quantity:
    """Expected seconds of the step alone, for sweeps: no interval, no bounds."""
    total: Quantity = 0.0
    parts = NOTHING
    overlaps = any(is_meant_to_hide(kernel) for kernel in kernels)
    for kernel in kernels:
        fit = calibration.fit(kernel)
        terms = kernel.form.terms(kernel.sharing(fit.occupancy), hardware, fit.values)
        seconds = terms.total() * kernel.count
        if overlaps:
            parts = parts.plus(split(kernel, seconds))
        else:
            total = total + seconds
    return parts.total() if overlaps else total


def spread(times: Sequence[KernelTime], hardware: Hardware) -> Quantity:
    """Standard deviation of ln(time) of the sum, to first order."""
    return root(sum(part**2 for part in errors(times, hardware).values()), 2.0)


def errors(times: Sequence[KernelTime], hardware: Hardware) -> dict[tuple[Any, ...], Quantity]:
    """What each independent source of error does to ln(time) of the sum, at one standard deviation and to first order.

    Parameters belong to all kernels of an instance, so their errors add up before they are squared. So do the errors
    of the forms within a family and within a module that was measured as a whole. Keys name the source: two steps that
    share one move together, and in their ratio it cancels as far as they feel it alike.
    """
    total = sum(entry.time_s for entry in times)
    by_fit: dict[tuple[str, ...], list[KernelTime]] = {}
    found: dict[tuple[Any, ...], Quantity] = {}
    for entry in times:
        key = entry.fit.key
        if entry.correction is None:
            by_fit.setdefault((*key, entry.fit.origin), []).append(entry)
            error = entry.time_s * entry.fit.spread_for(entry.kernel)
        else:
            error = entry.time_s * entry.correction.spread
        form = ("form", key[2] or key[0])
        found[form] = found.get(form, 0.0) + error / total
    for source, group in by_fit.items():
        fit = group[0].fit
        middle = sum(entry.time_s for entry in group)
        # A part of the step that cannot move the interval by a tenth of a percent is not differentiated.
        if _all_below(middle / total, 1e-3):
            continue
        kernels = _equal_once(group)
        near = kernels[0][0].form.choices_near
        # Work over many contexts at once has no single best choice.
        if near is not None and isinstance(middle, float):
            kernels = [(near(kernel, hardware, fit.values), exposed) for kernel, exposed in kernels]
        felt = _Felt(fit.values)
        _seconds(kernels, hardware, felt)
        for index, whole in enumerate(fit.columns):
            column = {name: step for name, step in whole.items() if name in felt.read}
            if all(abs(step) < LEAST_MOVED for step in column.values()):
                continue
            side = fit.straight_side(column)
            if side:
                change = side * (_seconds(kernels, hardware, fit.shifted(column, side)) - middle)
            else:
                above, below = (_seconds(kernels, hardware, fit.shifted(column, sign)) for sign in (1, -1))
                change = 0.5 * (above - below)
            found[(*source, index)] = change / total
    return found


class _Felt(Mapping[str, float]):
    """Parameters that note which of them a time form reads: products of wide operands have no quantisation to move."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values_ = values
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def _seconds(kernels: Sequence[tuple[Kernel, Quantity]], hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    total: Quantity = 0.0
    for kernel, exposed in kernels:
        total = total + kernel.form.terms(kernel, hardware, theta).total() * exposed
    return total


def _equal_once(times: Sequence[KernelTime]) -> list[tuple[Kernel, Quantity]]:
    """Kernels with the launches that the step waits for, those of the same work as one: layers repeat each other."""
    found: list[tuple[Kernel, Quantity]] = []
    for entry in times:
        kernel, exposed = entry.kernel._replace(name="", group="", count=1, hidden=0.0), entry.kernel.exposed
        # Work over many contexts at once has no single answer to being equal.
        same = [at for at, (other, _) in enumerate(found) if isinstance(entry.time_s, float) and other == kernel]
        if same:
            found[same[0]] = kernel, found[same[0]][1] + exposed
        else:
            found.append((kernel, exposed))
    return found


def _all_below(value: Quantity, limit: float) -> bool:
    below = value < limit
    return below if isinstance(below, bool) else bool(below.all())


def _least_seconds(kernels: Sequence[Kernel], hardware: Hardware) -> float:
    """Seconds at the datasheet's peaks, where what is meant to hide does as far as there is computation."""
    times = [(kernel._replace(holds=0.0), roofline(kernel, hardware) * kernel.count) for kernel in kernels]
    hides = 1.0 - shown_share(times)
    return float(sum(seconds * (1.0 - kernel.hidden * hides) for kernel, seconds in times))


def time_step(
    kernels: Sequence[Kernel],
    hardware: Hardware,
    calibration: Calibration,
    corrections: Sequence[Correction | None] | None = None,
) -> StepTime:
    """The time of a step with interval, bounds, what limits it, and how firm the parameters are."""
    times = expected(kernels, hardware, calibration, corrections)
    total = float(sum(entry.time_s for entry in times))
    sigma = float(spread(times, hardware))
    by_bound: dict[str, float] = {}
    by_basis: dict[str, float] = {}
    for entry in times:
        by_bound[entry.bound] = by_bound.get(entry.bound, 0.0) + entry.time_s
        basis = entry.basis
        by_basis[basis] = by_basis.get(basis, 0.0) + entry.time_s
    lower = _least_seconds(kernels, hardware)
    return StepTime(
        kernels=tuple(times),
        time_s=total,
        # Peaks that a probe measured may be beaten: then the bound is no end of the interval.
        low_s=max(total * math.exp(-Z80 * sigma), min(lower, total)),
        high_s=total * math.exp(Z80 * sigma),
        roofline_s=lower,
        serial_s=float(sum(entry.terms.serial() * entry.kernel.count for entry in times)),
        bound=max(by_bound, key=lambda name: by_bound[name]),
        basis=max((name for name, part in by_basis.items() if part >= 0.1 * total), key=BASES.index),
    )
