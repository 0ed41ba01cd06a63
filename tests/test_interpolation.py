"""Interpolated residuals: what they say between measured points and beyond the last of them."""

import numpy

from costmodel.fitting.interpolation import interpolated

OCTAVES = numpy.arange(12.0)[:, None]
"""Lengths of 1 to 2,048 tokens."""
BEYOND = numpy.array([[12.0]])


def test_a_residual_that_holds_to_the_end_is_carried_beyond_it() -> None:
    field = interpolated(OCTAVES, numpy.full(12, 0.3))
    assert 0.15 < field.at(BEYOND)[0][0] <= 0.3


def test_a_residual_that_the_last_octave_does_not_show_is_not_carried_beyond_it() -> None:
    turning = numpy.where(OCTAVES[:, 0] % 2 == 0, 0.3, -0.3)
    field = interpolated(OCTAVES, turning)
    assert field.at(BEYOND)[0][0] == 0.0


def test_a_residual_that_helps_most_points_and_harms_some_is_not_carried_beyond_the_end() -> None:
    far_apart = 100.0 * numpy.arange(20.0)
    places = numpy.array([(length, other) for length in OCTAVES[:, 0] for other in far_apart])
    turns = (places[:, 0] > 9.0) & (places[:, 1] >= far_apart[17])
    field = interpolated(places, numpy.where(turns, -0.6, 0.3))
    assert field.carried is not None
    assert field.carried[0] == 0.0
    assert interpolated(places, numpy.full(len(places), 0.3)).carried[0] == 1.0  # type: ignore[index]


def test_a_residual_beyond_the_end_joins_what_it_is_there() -> None:
    field = interpolated(OCTAVES, numpy.linspace(0.0, 0.3, 12))
    at, just_beyond = field.at(numpy.array([[11.0], [11.001]]))[0]
    assert abs(just_beyond - at) < 1e-3
