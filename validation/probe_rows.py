"""What the probes of a device hand on: rows, and what can be read off them."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite, log, nan, sqrt
from typing import NamedTuple

import numpy

from validation.cuda_clock import Run
from validation.stopwatch import Timing

VISIBLE_CACHE = 1.2
"""A cache is seen where it is this much faster than the memory behind it."""


class Row(NamedTuple):
    """One probe: how much was done in what time.

    size: of the problem; the side of a product, the bytes touched, the thread blocks or the nodes of a graph. amount:
    what one call does, in FLOP, B, or 1 (exponentials, launches, cycles). seconds, p10_s, p90_s, n: of one call;
    not a number where the probe failed, for the reason in `detail`.
    """

    probe: str
    dtype: str
    size: int
    amount: float
    unit: str
    seconds: float
    p10_s: float
    p90_s: float
    n: int
    detail: str

    @property
    def rate(self) -> float:
        """Amount per second, in the median."""
        return self.amount / self.seconds if self.seconds else inf

    @property
    def peak(self) -> float:
        """Amount per second of the fastest tenth of the samples: what the device can do when nothing else runs."""
        return self.amount / self.p10_s if self.p10_s else inf


def row(probe: str, dtype: str, size: int, amount: float, unit: str, timing: Timing) -> Row:
    """The row of a probe that was timed."""
    return Row(probe, dtype, size, amount, unit, timing.median_s, timing.p10_s, timing.p90_s, timing.n, timing.method)


def attempted(
    probe: str,
    dtype: str,
    size: int,
    amount: float,
    unit: str,
    make: Callable[[], Sequence[Run]],
    time: Callable[[Sequence[Run]], Timing],
) -> Row:
    """The row of a probe that may fail: a dtype without an engine, a kernel that does not compile, too little memory.

    make: allocates, and returns the calls to be timed.
    """
    try:
        return row(probe, dtype, size, amount, unit, time(make()))
    except Exception as error:  # Whatever one probe raises, the others go on, and the row says what it was.
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        return Row(
            probe, dtype, size, amount, unit, nan, nan, nan, 0, f"failed: {type(error).__name__} {reason}".strip()
        )


def best(rows: Iterable[Row], probe: str, dtype: str | None = None, at_least: int = 0) -> float | None:
    """The highest peak of a probe, of one dtype and from one size on where asked; None where none succeeded."""
    peaks = [
        row.peak
        for row in rows
        if row.probe == probe and dtype in (None, row.dtype) and row.size >= at_least and isfinite(row.peak)
    ]
    return max(peaks, default=None)


def cache_of(footprints: Sequence[int], rates: Sequence[float]) -> tuple[float, float] | None:
    """Capacity and bandwidth of the cache that rates over growing footprints show; None where they show none.

    The bandwidth is the median over the footprints that clearly fit. The capacity is the footprint at which the rate
    passes the geometric mean of that and of the memory's rate at the largest footprint.

    >>> capacity, bandwidth = cache_of([8, 16, 32, 64, 128, 256], [6.0, 6.0, 6.0, 3.0, 3.0, 3.0])
    >>> round(capacity, 1), bandwidth
    (45.3, 6.0)
    >>> cache_of([8, 16, 32], [3.0, 3.1, 3.0]) is None
    True
    """
    pairs = sorted(pair for pair in zip(footprints, rates, strict=True) if isfinite(pair[1]))
    if len(pairs) < 3:
        return None
    behind = pairs[-1][1]
    fastest = max(rate for _, rate in pairs)
    if fastest < VISIBLE_CACHE * behind:
        return None
    # Tiny footprints are slowed by their launch; those are no part of the plateau.
    fitting = [rate for _, rate in pairs if rate > sqrt(fastest * behind)]
    bandwidth = float(numpy.median(fitting))
    middle = sqrt(bandwidth * behind)
    last = max(index for index, (_, rate) in enumerate(pairs) if rate > middle)
    (inside, fast), (outside, slow) = pairs[last], pairs[last + 1]
    share = log(fast / middle) / log(fast / slow)
    return inside * (outside / inside) ** share, bandwidth


def line_of(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fixed cost and cost per size, both at least 0, by least squares of the relative errors.

    >>> fixed, each = line_of([1, 4, 16], [11.0, 14.0, 26.0])
    >>> round(fixed, 6), round(each, 6)
    (10.0, 1.0)
    """
    x, y = numpy.asarray(sizes, dtype=float), numpy.asarray(seconds, dtype=float)
    terms = numpy.stack([1 / y, x / y], axis=1)
    fixed, each = numpy.linalg.lstsq(terms, numpy.ones_like(y), rcond=None)[0]
    if fixed < 0 or each < 0:
        # The best of the two costs alone.
        alone = [(term @ numpy.ones_like(y)) / (term @ term) for term in terms.T]
        wrong = [float(numpy.sum((term * cost - 1) ** 2)) for term, cost in zip(terms.T, alone, strict=True)]
        return (float(alone[0]), 0.0) if wrong[0] < wrong[1] else (0.0, float(alone[1]))
    return float(fixed), float(each)


def rows_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV, with their rates."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Row._fields, "rate", "peak"])
    for each in rows:
        writer.writerow([*each, each.rate, each.peak])
    return text.getvalue()
