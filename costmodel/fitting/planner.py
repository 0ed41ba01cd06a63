"""Which few points to measure so that all the others are predicted well.

The points are chosen before anything is measured, from what the form and its priors say. What is not known of ln(time)
is a Gaussian field over the points that could be measured: the parameters, through their sensitivities, and what the
form leaves out, which is alike at shapes a few octaves apart. Greedily, each next point is the one that takes most of
the summed variance away. A point tells little that repeats a regime already covered, so launch floor, waves,
bandwidth, compute and chains all get theirs, in proportion to how much of the table lies there.

Source: Krause, Singh, Guestrin, "Near-optimal sensor placements in Gaussian processes", JMLR 9, 2008, for the greedy
choice; the criterion is the I-optimal one of Chaloner, Verdinelli, Statistical Science 10(3), 1995, section 2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.calibration import PRIOR, Calibration
from costmodel.fitting.entries import own_kernels
from costmodel.fitting.fitted_points import Choose
from costmodel.fitting.least_squares import STEP, Block, Points, Timer, block, own_key
from costmodel.fitting.length_weights import thinned
from costmodel.fitting.series import Floats, Series
from costmodel.hardware import Hardware
from costmodel.timing import expected

MOST_CANDIDATES = 800
NOISE = 0.05
"""Assumed repeatability of ln(time), with what a form misses from one shape to the next."""
MISSED, REACH = 0.15, 3.0
"""What a form is assumed to miss of ln(time), and over how many octaves of the shape alike."""


class Planned(NamedTuple):
    """A point to measure: its series, its row, and what bounds it there by the priors."""

    series: Series
    row: int
    bound: str


def plan(
    same: Sequence[Series], hardware: Hardware, count: int, allowed: Choose, start: Calibration = PRIOR
) -> list[Planned]:
    """Up to `count` points among the allowed ones of the series of one kernel instance."""
    pools = [Points(one, thinned(allowed(one), MOST_CANDIDATES // len(same))) for one in same]
    pools = [points for points in pools if len(points.rows)]
    if not pools:
        return []
    slopes = sensitivities(pools, hardware, start)
    each = [octaves(points) for points in pools]
    widest = max(part.shape[1] for part in each)
    # Tables of one kernel may describe its shapes by more or fewer columns; what is not told counts as zero.
    places = numpy.concatenate([numpy.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in each])
    chosen = spread_design(slopes, places, count)
    owners = numpy.concatenate([numpy.full(len(points.rows), index) for index, points in enumerate(pools)])
    rows = numpy.concatenate([points.rows for points in pools])
    found = []
    for index in chosen:
        series, row = pools[owners[index]].series, int(rows[index])
        found.append(Planned(series, row, bound_of(series, row, hardware, start)))
    return found


def sensitivities(pools: Sequence[Points], hardware: Hardware, start: Calibration) -> Floats:
    """d ln(time)/d ln(θ) times the prior spread of θ: what each point says of each parameter, in prior units."""
    kernels = {own_key(points.series, kernel): kernel for points in pools for kernel in own_kernels(points)}
    blocks: list[Block] = [block(kernel.form, key, start.fit(kernel).values) for key, kernel in kernels.items()]
    timer = Timer(pools, hardware, blocks, start.fit, own_key)
    values = {one.key: dict(one.start) for one in blocks}
    moves = [
        (one.key, parameter.name, one.start[parameter.name] * (1 + STEP))
        for one in blocks
        for parameter in one.parameters
    ]
    spreads = numpy.array([one.spread[parameter.name] for one in blocks for parameter in one.parameters])
    changes = numpy.log(timer.moved(values, moves)) - numpy.log(timer.seconds(values))
    return numpy.nan_to_num(changes.T / STEP * spreads)


def octaves(points: Points) -> Floats:
    """Where points lie: log2 of their shape columns."""
    shapes = points.series.shapes.iloc[points.rows].to_numpy(dtype=numpy.float64)
    return octave(shapes)


def octave(value: Any) -> Any:
    """log2 of a size, or of an array of them, zero staying zero.

    >>> float(octave(7.0)), float(octave(0))
    (3.0, 0.0)
    """
    return numpy.log2(1.0 + numpy.maximum(value, 0.0))


def spread_design(slopes: Floats, places: Floats, count: int) -> list[int]:
    """Indices of the chosen candidates, in the order of their choice; all of them where there are no more than asked.

    slopes: (candidates, parameters) sensitivities in prior units; places: (candidates, dimensions) in octaves.

    >>> import numpy
    >>> spread_design(numpy.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.5]]), numpy.zeros((3, 1)), 2)
    [0, 2]
    """
    total = len(slopes)
    if count >= total:
        return list(range(total))
    apart = numpy.linalg.norm(places[:, None, :] - places[None, :, :], axis=2)
    field = slopes @ slopes.T + MISSED**2 * numpy.exp(-apart / REACH)
    chosen: list[int] = []
    free = numpy.ones(total, dtype=bool)
    for _ in range(count):
        gain = numpy.sum(field**2, axis=0) / (numpy.diag(field) + NOISE**2)
        index = int(numpy.argmax(numpy.where(free, gain, -1.0)))
        chosen.append(index)
        free[index] = False
        column = field[:, index]
        field = field - numpy.outer(column, column) / (field[index, index] + NOISE**2)
    return chosen


def bound_of(series: Series, row: int, hardware: Hardware, calibration: Calibration) -> str:
    """What limits one point, by what is known so far."""
    times = [
        entry for part in series.parts(numpy.array([row])) for entry in expected(part.kernels, hardware, calibration)
    ]
    longest = max(times, key=lambda entry: float(numpy.max(entry.time_s)))
    limits = longest.terms.limits()
    return max(limits, key=lambda name: float(numpy.max(limits[name])))


def plan_library(
    series: Sequence[Series], hardware: Hardware, count: int, allowed: Choose, start: Calibration = PRIOR
) -> list[Planned]:
    """Up to `count` points of each kernel instance of a library."""
    groups: dict[tuple[str, str, str, str], list[Series]] = {}
    for one in series:
        groups.setdefault((one.family, one.source, one.instance, one.module), []).append(one)
    return [point for same in groups.values() for point in plan(same, hardware, count, allowed, start)]


def planned_choice(planned: Sequence[Planned]) -> Choose:
    """The planned points of each series."""
    rows: dict[int, list[int]] = {}
    for point in planned:
        rows.setdefault(id(point.series), []).append(point.row)
    return lambda one: numpy.array(sorted(rows.get(id(one), [])), dtype=numpy.intp)
