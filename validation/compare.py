"""Predictions against measured points: errors per operator, slopes over the context, and what nothing measures yet."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.calibration import Calibration
from costmodel.fitting.baselines import rooflines
from costmodel.fitting.least_squares import Points
from costmodel.fitting.pricing import Predicted, priced
from costmodel.fitting.scoring import MODEL, Outcome
from costmodel.fitting.series import Floats, Indices, Series
from costmodel.hardware import Hardware
from costmodel.mixers import names
from costmodel.timing import Z80
from validation.measurements import Measurement, kernels_of
from validation.runners import Shape, runners

ROOFLINE = "roofline"
WIDE = 4
"""A slope is taken over contexts of which the longest is so many times the shortest."""


class Compared(NamedTuple):
    """One operator, implementation and state of caches: its series, with what the calibration says of every point."""

    runner: str
    mode: str
    words: Mapping[str, int | str]
    series: Series
    said: Predicted

    @property
    def mechanism(self) -> str:
        """The mixer's kind, or the operator where it is no mixer's."""
        return runners()[self.runner].mechanism or self.runner

    def shape(self, index: int) -> Shape:
        """The shape of a point."""
        return {**self.words, **{str(name): int(value) for name, value in self.series.shapes.iloc[index].items()}}

    def asked(self, everything: bool) -> Indices:
        """The points to judge by: those that no fit saw, or all."""
        return (
            self.series.used
            if everything or self.series.aside is None
            else numpy.flatnonzero((self.series.flags == "") & self.series.aside)
        )


def compared(
    groups: Sequence[tuple[str, str, Mapping[str, int | str], Series]], hardware: Hardware, calibration: Calibration
) -> list[Compared]:
    """Every point priced."""
    return [
        Compared(
            runner, mode, words, series, priced(Points(series, numpy.arange(len(series.shapes))), hardware, calibration)
        )
        for runner, mode, words, series in groups
    ]


def outcomes(found: Sequence[Compared], hardware: Hardware, everything: bool) -> list[Outcome]:
    """What the model and the bare roofline say of the points to judge by, as `validate` scores them."""
    told = []
    for one in found:
        rows = one.asked(everything)
        if not len(rows):
            continue
        named = one.series._replace(mechanism=runners()[one.runner].mechanism)
        gaps = numpy.abs(numpy.log(one.said.seconds[rows] / one.series.seconds[rows]))
        told.append(Outcome(named, MODEL, rows, one.said.seconds[rows], gaps <= Z80 * one.said.spread[rows]))
        told.append(Outcome(named, ROOFLINE, rows, rooflines(Points(one.series, rows), hardware), None))
    return told


def point_rows(found: Sequence[Compared], everything: bool) -> list[dict[str, Any]]:
    """One row for each point to judge by: what was measured, what is predicted, and the 80 % interval."""
    rows = []
    for one in found:
        for index in one.asked(everything):
            measured, predicted = float(one.series.seconds[index]), float(one.said.seconds[index])
            wide = float(numpy.exp(Z80 * one.said.spread[index]))
            rows.append(
                {
                    "operator": one.runner,
                    "implementation": one.series.kernel,
                    "mode": one.mode,
                    "shape": " ".join(f"{name}={value}" for name, value in one.shape(int(index)).items()),
                    "measured_s": measured,
                    "predicted_s": predicted,
                    "low_s": predicted / wide,
                    "high_s": predicted * wide,
                    "error": 100.0 * (predicted / measured - 1.0),
                }
            )
    return rows


class Line(NamedTuple):
    """Points that differ in their context alone, by increasing context: indices into a series."""

    shape: Shape
    contexts: Floats
    rows: Indices


def lines(one: Compared) -> list[Line]:
    """The points of a series grouped by everything but the context (and the new tokens, where they are all of it)."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index in one.series.used:
        shape = dict(one.shape(int(index)))
        context = shape.pop("context")
        if shape.get("new_tokens") == context:
            shape["new_tokens"] = "all"
        groups.setdefault(tuple(sorted(shape.items(), key=lambda item: item[0])), []).append(int(index))
    found = []
    for key, rows in groups.items():
        order = sorted(rows, key=lambda index: one.series.tokens[index])
        found.append(Line(dict(key), one.series.tokens[numpy.array(order)], numpy.array(order, dtype=numpy.intp)))
    return found


def slope(contexts: Floats, seconds: Floats) -> float:
    """The exponent of time over context, by least squares in the logarithms.

    >>> import numpy
    >>> round(slope(numpy.array([1.0, 2.0, 4.0]), numpy.array([3.0, 12.0, 48.0])), 3)
    2.0
    """
    return float(numpy.polyfit(numpy.log(contexts), numpy.log(seconds), 1)[0])


def slopes(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """Measured and predicted exponents, for the longest line of each operator."""
    rows = []
    for one in found:
        wide = [
            line
            for line in lines(one)
            if len(line.rows) >= 3 and line.contexts[-1] >= WIDE * line.contexts[0] and line.contexts[-1] > 1
        ]
        if wide:
            line = max(wide, key=lambda each: (each.contexts[-1] / each.contexts[0], len(each.rows)))
            measured, predicted = one.series.seconds[line.rows], one.said.seconds[line.rows]
            rows.append(
                {
                    "operator": one.runner,
                    "implementation": one.series.kernel,
                    "mode": one.mode,
                    "from": int(line.contexts[0]),
                    "to": int(line.contexts[-1]),
                    "measured": slope(line.contexts, measured),
                    "predicted": slope(line.contexts, predicted),
                }
            )
    return rows


def curve(
    one: Compared,
    line: Line,
    hardware: Hardware,
    price: Callable[[Sequence[Any]], tuple[float, float]],
    count: int = 16,
) -> list[tuple[float, float, float, float]]:
    """Context, predicted seconds and both ends of the interval, along a line's contexts."""
    runner = runners()[one.runner]
    found = []
    for context in numpy.unique(numpy.geomspace(line.contexts[0], line.contexts[-1], count).round()):
        shape = {**line.shape, "context": int(context)}
        if shape.get("new_tokens") == "all":
            shape["new_tokens"] = int(context)
        seconds, spread = price(kernels_of(runner, one.mode == "warm", shape, hardware))
        wide = float(numpy.exp(Z80 * spread))
        found.append((float(context), seconds, seconds / wide, seconds * wide))
    return found


def failures(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The points without a time, by operator, implementation and reason."""
    counts: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        if row.status not in ("ok", "unsupported"):
            key = (row.runner, row.implementation, row.status, row.detail)
            counts[key] = counts.get(key, 0) + 1
    return [
        {"operator": operator, "implementation": implementation, "status": status, "points": count, "detail": detail}
        for (operator, implementation, status, detail), count in sorted(counts.items())
    ]


def unmeasured(rows: Sequence[Measurement]) -> list[str]:
    """Mechanisms that no measured row covers."""
    covered = {row.mechanism for row in rows if row.status == "ok"}
    return [name for name in names() if name not in covered]
