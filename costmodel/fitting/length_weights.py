"""What points of different lengths count in a fit, and which of them are drawn where there are too many.

Tables have many short points and few long ones: drawn without regard to length, most of the long ones are lost.
"""

from typing import NamedTuple

import numpy

from costmodel.fitting.series import Floats, Indices

LONGEST = 2048
"""Tokens from which a longer point no longer counts more: what was seen of longer ones are a few anchors."""
SHARE = 4
"""One point in so many is dealt out to the octaves of length evenly."""


class LengthWeights(NamedTuple):
    """How points count by their length.

    balance: how far octaves count alike however many points they have, between every point (0) and every octave (1).
    lean: the power of the length, up to LONGEST, with which points count more.
    """

    balance: float = 0.0
    lean: float = 0.0


ALIKE = LengthWeights()


def octaves(tokens: Floats) -> Floats:
    """The octave of each length.

    >>> octaves(numpy.array([0.0, 1.0, 2.0, 60.0])).tolist()
    [0.0, 0.0, 1.0, 6.0]
    """
    return numpy.asarray(numpy.round(numpy.log2(numpy.maximum(tokens, 1.0))), numpy.float64)


def counted(tokens: Floats, weights: LengthWeights) -> Floats:
    """What each point counts, on average 1.

    >>> counted(numpy.array([1.0, 1.0, 4.0]), LengthWeights(balance=1.0)).tolist()
    [0.75, 0.75, 1.5]
    >>> counted(numpy.array([1.0, 4.0, 9.0]), LengthWeights(lean=0.5)).tolist()
    [0.5, 1.0, 1.5]
    """
    _, place, many = numpy.unique(octaves(tokens), return_inverse=True, return_counts=True)
    found = numpy.asarray(many, numpy.float64)[place] ** -weights.balance
    found = found * numpy.clip(tokens, 1.0, LONGEST) ** weights.lean
    return numpy.asarray(found / numpy.mean(found), numpy.float64)


def thinned(rows: Indices, most: int, seed: int = 0) -> Indices:
    """At most so many of the points, drawn without regard to their order; the same ones for the same seed."""
    if len(rows) <= most:
        return rows
    return numpy.sort(numpy.random.default_rng(seed).choice(rows, most, replace=False))


def of_every_octave(rows: Indices, tokens: Floats, most: int, seed: int = 0) -> Indices:
    """At most so many of the points, of these lengths: of every octave first its share of a quarter of them, the rest
    without regard to length.

    >>> rows = numpy.arange(1000)
    >>> 999 in of_every_octave(rows, numpy.where(rows < 999, 1.0, 4096.0), 10)
    True
    """
    if len(rows) <= most:
        return rows
    order = numpy.random.default_rng(seed).permutation(len(rows))
    place = octaves(tokens)[order]
    kinds = numpy.unique(place)
    # How many points of the same octave come before each.
    before = numpy.zeros(len(order), dtype=numpy.intp)
    for kind in kinds:
        before[place == kind] = numpy.arange(numpy.count_nonzero(place == kind))
    first = before < max(1, most // (SHARE * len(kinds)))
    return numpy.sort(rows[numpy.concatenate([order[first], order[~first]])[:most]])


def drawn(rows: Indices, tokens: Floats, most: int, weights: LengthWeights, seed: int = 0) -> Indices:
    """At most so many of the points; of every octave where octaves count alike."""
    return of_every_octave(rows, tokens, most, seed) if weights.balance else thinned(rows, most, seed)
