"""Which points of a series a fit looks at, and what points of different lengths count."""

from collections.abc import Callable

from costmodel.fitting.least_squares import Points
from costmodel.fitting.length_weights import ALIKE, LengthWeights, drawn
from costmodel.fitting.series import Indices, Series

MOST_FITTED = 500
"""Points of one kernel instance that a fit looks at; more change nothing but the time that it takes."""
MORE_FITTED = {"gemm": 3500}
"""Families that gain from more: a product chooses among tiles and splits, each of which some points must decide.
Points inside the fitted four fifths that no fit saw, of the kernels missed most: 2,000 instead of 1,000 take their 90th
percentile from 17.8 to 17.4, 3,500 by another 0.25.
"""
FEWEST_FITTED = 5
"""With fewer points of its own an instance keeps what it shares with its siblings."""
LONG = ("dsa-", "csa-", "hca-", "msa-", "sparse-attention", "indexer", "top-k")
"""Families whose tables reach contexts of a million tokens, with few points there."""
BALANCE = 0.5
"""How far octaves of length count alike in these: between every point (0) and every octave (1). Chosen by points inside
the fitted four fifths: 0.5 costs the short contexts nothing, and the long ones gain."""

Choose = Callable[[Series], Indices]
"""The points of a series that a fit may see."""


def most_fitted(family: str) -> int:
    """Points of one kernel instance of a family that a fit looks at."""
    return MORE_FITTED.get(family, MOST_FITTED)


def weights_of(family: str) -> LengthWeights:
    """What points of different lengths count in a fit of a family."""
    return LengthWeights(BALANCE) if family.startswith(LONG) else ALIKE


def few(points: Points, most: int, weights: LengthWeights, seed: int = 0) -> Points:
    """At most so many of some points."""
    return points._replace(rows=drawn(points.rows, points.tokens, most, weights, seed))
