"""What a calibration says of measured points."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from costmodel.calibration import PRIOR, Calibration, from_fits
from costmodel.fit import Fit
from costmodel.fitting.least_squares import HOST_OVERLAP, Points
from costmodel.fitting.series import Floats, spread_out
from costmodel.hardware import Hardware
from costmodel.timing import expected, spread


class Predicted(NamedTuple):
    """Expected seconds of points, and the standard deviation of their logarithm."""

    seconds: Floats
    spread: Floats


def predicted(
    points: Points, hardware: Hardware, fits: Sequence[Fit], known: Calibration = PRIOR, intervals: bool = True
) -> Predicted:
    """What fits (and, for the kernels that they lack, a calibration) say of measured points."""
    both = from_fits([*fits, *known.read_.values()], library=known.library)
    return priced(points, hardware, both, intervals)


def priced(points: Points, hardware: Hardware, calibration: Calibration, intervals: bool = True) -> Predicted:
    """What a calibration says of measured points, host time included where it was seen."""
    series = points.series
    seconds, deviation = numpy.zeros(len(points.rows)), numpy.zeros(len(points.rows))
    calibration = calibration._replace(source=series.source)
    for part in series.parts(points.rows):
        size = len(part.rows)
        kernels = [kernel._replace(module=series.module) for kernel in part.kernels]
        with numpy.errstate(all="ignore"):
            times = expected(kernels, hardware, calibration)
            total = spread_out(sum(entry.time_s for entry in times), size)
            if intervals:
                deviation[part.rows] = spread_out(spread(times, hardware), size)
        host = max((entry.fit.host_s for entry in times), default=0.0) if series.eager else 0.0
        seconds[part.rows] = (total**HOST_OVERLAP + host**HOST_OVERLAP) ** (1.0 / HOST_OVERLAP)
    return Predicted(seconds, deviation)
