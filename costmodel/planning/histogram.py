"""Distributions and courses of a run in bounded memory: a histogram of fixed logarithmic buckets, and samples that
thin themselves out.

>>> times = LogHistogram()
>>> for x in (1.0, 2.0, 3.0, 4.0):
...     times.add(x)
>>> times.mean, times.quantile(0.0), times.quantile(1.0)
(2.5, 1.0, 4.0)
"""

import math
from math import log
from typing import Any

SMALLEST = 1e-7
"""Everything shorter falls into the first bucket: a tenth of a microsecond."""

PER_E = 200
"""Buckets per factor e: neighbours differ by half a percent."""

BUCKETS = 1 + int(math.log(1e10 / SMALLEST) * PER_E)
"""Up to 10¹⁰ seconds."""

MOST_SAMPLES = 512


class LogHistogram:
    """Counts of non-negative numbers by the logarithm of their size; quantiles are right to a quarter of a percent."""

    __slots__ = ("count", "counts", "least", "most", "total")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.count, self.total = 0, 0.0
        self.least, self.most = math.inf, 0.0

    def add(self, value: float, weight: int = 1) -> None:
        """Count a number so many times."""
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value
        self.count += weight
        self.total += value * weight
        index = int(log(value / SMALLEST) * PER_E) + 1 if value > SMALLEST else 0
        self.counts[index if index < BUCKETS else BUCKETS - 1] += weight

    @property
    def mean(self) -> float | None:
        """The exact mean, None of nothing."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The number below which this share of all lies: the middle of its bucket. None of nothing."""
        if not self.count:
            return None
        rank = share * (self.count - 1)
        if rank <= 0:
            return self.least
        if rank >= self.count - 1:
            return self.most
        passed = 0
        for index, count in enumerate(self.counts):
            passed += count
            if passed > rank:
                middle = SMALLEST * math.exp((index - 0.5) / PER_E) if index else 0.0
                return min(max(middle, self.least), self.most)
        return self.most

    def summary(self) -> dict[str, float | None]:
        """Mean and percentiles by name."""
        shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
        return {"mean": self.mean, **{name: self.quantile(share) for name, share in shares.items()}}


class Course:
    """Values over time: at most 512 samples, each the mean over an interval that doubles when they are too many."""

    __slots__ = ("interval", "names", "rows", "spent", "start", "sums")

    def __init__(self, names: tuple[str, ...], interval: float = 0.01) -> None:
        self.names, self.interval = names, interval
        self.start = 0.0
        self.spent = 0.0
        self.sums = [0.0] * len(names)
        self.rows: list[list[float]] = []

    def add(self, begin: float, seconds: float, *values: float) -> None:
        """The values hold for so many seconds from `begin` on; spans must come in order."""
        if begin - self.start >= self.interval:
            self._close(begin)
        self.spent += seconds
        self.sums = [total + value * seconds for total, value in zip(self.sums, values, strict=True)]

    def _close(self, begin: float) -> None:
        if self.spent:
            self.rows.append([self.start, *(total / self.spent for total in self.sums), self.spent])
            self.sums = [0.0] * len(self.names)
            self.spent = 0.0
        self.start = begin
        if len(self.rows) >= MOST_SAMPLES:
            self.interval *= 2
            self.rows = [_joined(one, other) for one, other in zip(self.rows[::2], self.rows[1::2], strict=True)]

    def samples(self) -> list[dict[str, Any]]:
        """One row per interval: its start, the mean of each value, and the seconds that were spent in it."""
        if self.spent:
            self._close(self.start + self.spent)
        return [dict(zip(("time_s", *self.names, "spent_s"), row, strict=True)) for row in self.rows]


def _joined(one: list[float], other: list[float]) -> list[float]:
    spent = one[-1] + other[-1]
    means = ((a * one[-1] + b * other[-1]) / spent for a, b in zip(one[1:-1], other[1:-1], strict=True))
    return [one[0], *means, spent]
