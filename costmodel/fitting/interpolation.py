"""Interpolation between measured points: ordinary and simple kriging over octaves of a shape.

Simple kriging predicts the mean, zero, far from every point: a residual interpolated so fades into the analytic trunk
outside the measured hull by itself. Ordinary kriging keeps the mean of the nearest points: a utilisation table read so
holds its boundary value outside. What a residual at the boundary says of places an octave beyond it is learnt from the
points: those of the upper end of each coordinate, predicted from the others.

Source: Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.2 and 4.2.1 (exponential
covariance); local neighbourhoods: Cressie, "Statistics for Spatial Data", 1993, section 3.2.
"""

from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.fitting.series import Floats

NEIGHBOURS = 16
REACHES = (1.0, 4.0, 16.0)
NUGGETS = (0.01, 0.1)
"""Reaches (octaves) and noise shares that are tried; the pair that predicts left-out points best is kept."""
AT_ONCE = 2000
"""Queries whose neighbourhoods are solved together; more would only fill the memory."""
TRIED = 80
"""Points on which they are tried."""
UPPER_END = 2.0
"""Octaves below a coordinate's largest value that are predicted from the rest to learn what carries over its end: as
many as at least lie between the contexts that a table holds and those that are asked."""
CARRIED = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a boundary's residual that are tried beyond it, none of it last."""
SMALLEST_MISSED = 1e-9
"""Of ln(time), what counts as nothing missed."""


class Field(NamedTuple):
    """Values known at places (rows of coordinates, scaled to octaves), and how they vary.

    reach: octaves over which values are alike; nugget: share of the variance that is noise; variance: of the values.
    carried: of every coordinate, the share of an interpolated value that is left an octave beyond its largest one.
    """

    places: Floats
    values: Floats
    scale: Floats
    reach: float
    nugget: float
    variance: float
    ordinary: bool
    carried: Floats | None = None

    def at(self, queries: Floats) -> tuple[Floats, Floats]:
        """Interpolated values, and the standard deviation that remains, at the rows of `queries`."""
        from scipy.spatial import cKDTree

        count = min(NEIGHBOURS, len(self.places))
        scaled = queries * self.scale
        _, near = cKDTree(self.places * self.scale).query(scaled, k=count)
        near = near.reshape(len(queries), count)
        parts = [
            self._kriged(scaled[first : first + AT_ONCE], near[first : first + AT_ONCE])
            for first in range(0, len(queries), AT_ONCE)
        ]
        values, left = zip(*parts, strict=True)
        found = numpy.concatenate(values)
        if self.carried is not None:
            beyond = numpy.clip(queries - self.places.max(axis=0), 0.0, 1.0)
            found = found * numpy.prod(1.0 - beyond * (1.0 - self.carried), axis=1)
        return found, numpy.concatenate(left)

    def _kriged(self, scaled: Floats, near: NDArray[numpy.intp]) -> tuple[Floats, Floats]:
        around = (self.places * self.scale)[near]
        among = numpy.linalg.norm(around[:, :, None, :] - around[:, None, :, :], axis=3)
        towards = numpy.linalg.norm(around - scaled[:, None, :], axis=2)
        smooth = 1.0 - self.nugget
        covariance = smooth * numpy.exp(-among / self.reach) + self.nugget * numpy.eye(near.shape[1])
        link = smooth * numpy.exp(-towards / self.reach)
        values = self.values[near]
        inverse = numpy.linalg.solve(covariance, numpy.stack([values, link], axis=2))
        mean = numpy.zeros(len(scaled))
        if self.ordinary:
            ones = numpy.linalg.solve(covariance, numpy.ones((*values.shape, 1)))[:, :, 0]
            mean = numpy.sum(ones * values, axis=1) / numpy.sum(ones, axis=1)
            inverse[:, :, 0] -= mean[:, None] * ones
        found = mean + numpy.einsum("ij,ij->i", link, inverse[:, :, 0])
        left = 1.0 - numpy.einsum("ij,ij->i", link, inverse[:, :, 1])
        return found, numpy.sqrt(self.variance * numpy.clip(left, 1e-9, None))


def interpolated(places: Floats, values: Floats, ordinary: bool = False) -> Field:
    """A field through known values, with the reach and noise that predict left-out points best.

    >>> import numpy
    >>> field = interpolated(numpy.array([[0.0], [1.0], [2.0]]), numpy.array([0.1, 0.2, 0.3]))
    >>> abs(float(field.at(numpy.array([[1.0]]))[0][0]) - 0.2) < 0.02
    True
    >>> abs(float(field.at(numpy.array([[500.0]]))[0][0])) < 1e-6
    True
    """
    spread = numpy.std(places, axis=0)
    # A column that never varied says nothing about where values go; a query that differs there is far away.
    scale = numpy.where(spread > 0, 1.0, 8.0)
    variance = float(numpy.mean(values**2)) if not ordinary else float(numpy.var(values))
    best = Field(places, values, scale, REACHES[1], NUGGETS[0], max(variance, 1e-12), ordinary)
    if len(values) < 4:
        return best
    from scipy.spatial import cKDTree

    tried = _tried(len(values))
    count = min(NEIGHBOURS + 1, len(values))
    scaled = places * scale
    _, near = cKDTree(scaled).query(scaled[tried], k=count)
    # A point is its own nearest neighbour, except where others lie at the same place.
    others = numpy.array(
        [[index for index in row if index != own][: count - 1] for row, own in zip(near, tried, strict=True)]
    )
    scores = {}
    for reach in REACHES:
        for nugget in NUGGETS:
            field = best._replace(reach=reach, nugget=nugget)
            found, _ = field._kriged(scaled[tried], others)
            scores[reach, nugget] = float(numpy.mean(numpy.abs(found - values[tried])))
    reach, nugget = min(scores, key=lambda pair: scores[pair])
    best = best._replace(reach=reach, nugget=nugget)
    return best if ordinary else best._replace(carried=_carried(best))


def _tried(count: int) -> NDArray[numpy.intp]:
    """At most `TRIED` of so many points, evenly spread over them."""
    return numpy.linspace(0, count - 1, min(TRIED, count)).round().astype(numpy.intp)


def _carried(field: Field) -> Floats:
    """What is left of the values an octave beyond each coordinate's end, by the points of its last octaves.

    Of the shares with which neither the median nor the 90th percentile of what is missed there gets larger, the one
    with which both together get least: a share that helps most points and makes some much worse is none.
    """
    shares = numpy.ones(field.places.shape[1])
    for column, end in enumerate(field.places.max(axis=0)):
        upper = field.places[:, column] > end - UPPER_END
        if 0 < upper.sum() < len(upper):
            below = field._replace(places=field.places[~upper], values=field.values[~upper])
            tried = numpy.flatnonzero(upper)[_tried(int(upper.sum()))]
            found, _ = below.at(field.places[tried])
            missed = [numpy.percentile(numpy.abs(share * found - field.values[tried]), (50, 90)) for share in CARRIED]
            over_none = numpy.array(missed) / numpy.maximum(missed[-1], SMALLEST_MISSED)
            harmless = numpy.all(over_none <= 1.0, axis=1)
            shares[column] = CARRIED[int(numpy.argmin(numpy.where(harmless, over_none.sum(axis=1), numpy.inf)))]
    return shares
