"""What a cost model must beat: a roofline, a roofline with a rule of thumb, a table look-up, and machine learning.

Each is a function from the points that may be seen and the points that are asked for to seconds. The table holds the
utilisation (roofline over measured time) and interpolates it between measured shapes, holding its value beyond their
edge, as lookup tables of serving simulators do; the learner sees the shape and the roofline in logarithms.
"""

from collections.abc import Callable

import numpy

from costmodel.fitting.interpolation import interpolated
from costmodel.fitting.least_squares import Points
from costmodel.fitting.planner import octaves
from costmodel.fitting.series import Floats, spread_out
from costmodel.hardware import Hardware
from costmodel.timing import roofline

EFFICIENCY, LATENCY_S = 0.75, 3e-6
"""The rule of thumb: three quarters of the datasheet, and 3 µs."""


def rooflines(points: Points, hardware: Hardware) -> Floats:
    """Seconds of the ideal work at the datasheet's peaks, for each point."""
    seconds = numpy.zeros(len(points.rows))
    for part in points.series.parts(points.rows):
        total = sum(roofline(kernel, hardware) * kernel.count for kernel in part.kernels)
        seconds[part.rows] = spread_out(total, len(part.rows))
    return seconds


def bare(seen: Points, asked: Points, hardware: Hardware) -> Floats:
    """The roofline alone: max(FLOP/peak, bytes/bandwidth)."""
    return rooflines(asked, hardware)


def rule_of_thumb(seen: Points, asked: Points, hardware: Hardware) -> Floats:
    """roofline / 0.75 + 3 µs."""
    return rooflines(asked, hardware) / EFFICIENCY + LATENCY_S


def table(seen: Points, asked: Points, hardware: Hardware) -> Floats:
    """Utilisation looked up between the seen points, held at its boundary beyond them."""
    utilisation = numpy.log(rooflines(seen, hardware) / seen.seconds)
    found, _ = interpolated(octaves(seen), utilisation, ordinary=True).at(octaves(asked))
    return rooflines(asked, hardware) / numpy.exp(found)


def boosting(seen: Points, asked: Points, hardware: Hardware) -> Floats:
    """Gradient-boosted trees from shape and roofline to ln(time)."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def features(points: Points) -> Floats:
        return numpy.column_stack([octaves(points), numpy.log(rooflines(points, hardware))])

    least = max(1, min(20, len(seen.rows) // 5))
    learner = HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=least, random_state=0)
    learner.fit(features(seen), numpy.log(seen.seconds))
    return numpy.exp(learner.predict(features(asked)))


Baseline = Callable[[Points, Points, Hardware], Floats]
BASELINES: dict[str, Baseline] = {
    "roofline": bare,
    "roofline/0.75+3us": rule_of_thumb,
    "table": table,
    "boosting": boosting,
}
