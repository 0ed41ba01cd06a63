"""Fitted parameters as entries of a calibration file: with their uncertainty and the range that they were fitted in."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy

from costmodel.calibration import Calibration, from_fits
from costmodel.fit import Fit
from costmodel.fitting.fitted_points import MOST_FITTED, few
from costmodel.fitting.least_squares import Block, Fitted, Points
from costmodel.fitting.length_weights import ALIKE, LengthWeights, counted
from costmodel.fitting.pricing import predicted
from costmodel.fitting.series import Floats
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.timing import Z80

LARGEST_SPREAD = 3.0
MOST_LEVERAGE = 0.9
"""A point is not taken to have decided more of what is predicted there, or nothing would be left to judge by."""


class Entry(NamedTuple):
    """The fit of one kernel instance, with what a calibration file says of it.

    measured: the instance of the series that it was fitted to, which for a kernel inside a module is the module's;
    None where several share the fit, or one has a fit of its own beside it.
    """

    fit: Fit
    names: tuple[str, ...]
    covariance: Floats
    flagged: Mapping[str, int]
    measured: str | None = None


def own_kernels(points: Points) -> list[Kernel]:
    """The kernels of a series whose parameters it decides: of its own family, and of those it names."""
    series = points.series
    return [
        kernel
        for part in series.parts(points.rows)
        for kernel in part.kernels
        if kernel.family in (series.family, *series.tuned)
    ]


def described(
    pools: Sequence[Points],
    hardware: Hardware,
    blocks: Sequence[Block],
    fitted: Fitted,
    known: Calibration,
    weights: LengthWeights = ALIKE,
) -> list[Entry]:
    """The fitted blocks as entries, with a model error that makes the 80 % interval hold 80 % of the points, which
    count as they did in the fit, or where it is nothing, with a covariance that does."""
    count = sum(len(points.rows) for points in pools)
    flagged = sum((points.series.left_out for points in pools), Counter[str]())
    host_s = next((fitted.values[key]["host_s"] for key in fitted.values if key[0] == "host"), 0.0)
    kernels = [kernel for points in pools for kernel in own_kernels(points)]
    entries = []
    for one in blocks:
        names = tuple(parameter.name for parameter in one.parameters)
        covariance = fitted.covariance[one.key]
        flops, hbm_bytes, lengths = _ranges([kernel for kernel in kernels if kernel.family == one.key[0]])
        found = Fit(
            key=one.key,
            values=fitted.values[one.key],
            columns=columns_of(covariance, names),
            bounds={parameter.name: (parameter.low, parameter.high) for parameter in one.parameters},
            model_spread=0.0,
            flops=flops,
            hbm_bytes=hbm_bytes,
            lengths=lengths,
            points=count,
            kernel=pools[0].series.source,
            host_s=host_s,
            occupancy=pools[0].series.occupancy if one.key[0] == pools[0].series.family else 0,
        )
        entries.append(Entry(found, names, covariance, flagged))
    # What the data decided was not free: the residuals of new points are larger than those of the fitted ones, most of
    # all where a few points far from all others decided alone.
    optimism = (count / max(count - fitted.effective, 0.25 * count)) ** 0.5
    alone = numpy.maximum(optimism, 1.0 / (1.0 - numpy.minimum(fitted.leverage, MOST_LEVERAGE)))
    # Beyond the lengths seen, points near them are not taken for more regular than all others.
    ways = {weights, ALIKE} if weights.lean else {weights}
    judged = [residuals(pools, hardware, entries, known, alone, way) for way in ways]
    error = max(one.model_error() for one in judged)
    narrower = max(one.firmness() for one in judged)
    entries = [entry._replace(covariance=entry.covariance * narrower**2) for entry in entries]
    return [
        entry._replace(fit=entry.fit._replace(model_spread=error, columns=columns_of(entry.covariance, entry.names)))
        for entry in entries
    ]


class Residuals(NamedTuple):
    """What points miss, and what their intervals are made of: standard deviations of ln(time), one for each point.

    missed: |ln(measured/predicted)|, as large as had the point not been fitted. parameters: by what the covariance of
    the entries leaves open. others: by other kernels of a module, with their model error. share: by a model error of
    1 of the entries. counts: what a point counts. wanted: the share of the points that an interval has to hold.
    """

    missed: Floats
    parameters: Floats
    others: Floats
    share: Floats
    counts: Floats
    wanted: float

    def model_error(self) -> float:
        """The common model error with which the interval holds as many points as wanted; 0 where it always does."""
        return self._least(LARGEST_SPREAD, lambda error: numpy.hypot(self.parameters, self.share * error))

    def firmness(self) -> float:
        """By how much narrower than their covariance says the parameters are known: 1, but where the interval holds
        more points than wanted without any model error.

        A covariance of least squares takes every residual for an independent one. Of many parameters that few regimes
        show apart it leaves more open than new points miss; how many an interval holds is seen. Where other kernels'
        spread alone holds as many, nothing is seen of these parameters.
        """
        return self._least(1.0, lambda factor: factor * self.parameters) or 1.0

    def _least(self, most: float, spread: Callable[[float], Floats]) -> float:
        """The least number up to `most` with whose spread the interval holds as many points as wanted."""

        def holds(value: float) -> bool:
            inside = self.missed <= Z80 * numpy.hypot(self.others, spread(value))
            return bool(numpy.average(inside, weights=self.counts) >= self.wanted - 1e-9)

        if holds(0.0):
            return 0.0
        low, high = 0.0, most
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high


def residuals(
    pools: Sequence[Points],
    hardware: Hardware,
    entries: Sequence[Entry],
    known: Calibration,
    optimism: Floats,
    weights: LengthWeights = ALIKE,
) -> Residuals:
    """What the points of some entries miss, and what their intervals are made of.

    optimism: by how much larger the residual of each point would be had it not been fitted. weights: what points of
    different lengths count.
    """
    fits = [entry.fit for entry in entries]
    # What a model error adds to the spread does not depend on how well the parameters are known.
    firm = [fit._replace(columns=()) for fit in fits]
    around = from_fits((fit._replace(columns=()) for fit in known.read_.values()), library=known.library)
    missed, parameters, others, shares = [], [], [], []
    seen = [few(points, MOST_FITTED // 4, weights) for points in pools]
    ends = numpy.cumsum([len(points.rows) for points in pools])[:-1]
    for whole, points, factors in zip(pools, seen, numpy.split(optimism, ends), strict=True):
        base = predicted(points, hardware, fits, known)
        other = predicted(points, hardware, firm, known).spread
        none, unit = (
            predicted(points, hardware, [fit._replace(model_spread=error) for fit in firm], around).spread
            for error in (0.0, 1.0)
        )
        missed.append(
            numpy.abs(numpy.log(points.seconds / base.seconds)) * factors[numpy.isin(whole.rows, points.rows)]
        )
        parameters.append(numpy.sqrt(numpy.maximum(base.spread**2 - other**2, 0.0)))
        others.append(other)
        shares.append(numpy.sqrt(numpy.maximum(unit**2 - none**2, 1e-12)))
    # Of n residuals, the interval that holds the next point in 4 of 5 cases holds ⌈0.8·(n + 1)⌉; where they count
    # differently, 0.8 of what they and the next one count together, which is one of the longest where those are asked:
    # weighted conformal prediction, Tibshirani et al., NeurIPS 2019, lemma 3 (arXiv:1904.06019).
    counts = counted(numpy.concatenate([points.tokens for points in seen]), weights)
    coming = float(counts.max()) if weights.lean else 1.0
    return Residuals(
        missed=numpy.concatenate(missed),
        parameters=numpy.concatenate(parameters),
        others=numpy.concatenate(others),
        share=numpy.concatenate(shares),
        counts=counts,
        wanted=min(1.0, 0.8 * (1.0 + coming / len(counts))),
    )


def columns_of(covariance: Floats, names: Sequence[str]) -> tuple[dict[str, float], ...]:
    """Independent steps of one standard deviation: the columns of the covariance's factor.

    What cannot vary, such as the number of a rule, stands in none: even a rounding error would make it another.
    """
    values, vectors = numpy.linalg.eigh(covariance)
    steps = vectors * numpy.sqrt(numpy.maximum(values, 0.0))
    varied = [row for row in range(len(names)) if covariance[row, row] > 0.0]
    return tuple(
        {names[row]: float(steps[row, column]) for row in varied}
        for column in range(len(names))
        if values[column] > 0.0
    )


Range = tuple[float, float]


def _ranges(kernels: Sequence[Kernel]) -> tuple[Range, Range, Range]:
    """Smallest and largest FLOPs, bytes and lengths of some kernels."""
    if not kernels:
        # None of the points runs it: wherever it is priced, that is outside what was measured.
        return (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    counted = zip(*((kernel.ideal.flops, kernel.ideal.hbm_bytes, kernel.length) for kernel in kernels), strict=True)
    flops, hbm_bytes, lengths = (
        (float(min(map(numpy.min, values))), float(max(map(numpy.max, values)))) for values in counted
    )
    return flops, hbm_bytes, lengths
