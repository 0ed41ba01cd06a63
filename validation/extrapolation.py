"""Whether short contexts foretell long ones: operators are fitted anew on short points and judged by long ones."""

from collections.abc import Sequence
from pathlib import Path

from costmodel.calibration import Calibration, parse_calibration
from costmodel.errors import BadInput
from costmodel.fitting.calibrate import Source, calibrate
from costmodel.fitting.calibration_file import Header
from costmodel.hardware import Hardware
from validation import compare
from validation.calibrate import LIBRARY
from validation.measurements import LIMITS, Group, Measurement, series_of
from validation.runners import runners
from validation.runners.whole_model import FAMILY

NEAR_AND_FAR = {"cuda": (64 * 1024, 256 * 1024), "cpu": (1024, 4096)}
"""Tokens up to which is fitted, and from which on is judged."""


def extrapolated(
    rows: Sequence[Measurement], hardware: Hardware, kind: str
) -> tuple[list[compare.Compared], Calibration]:
    """The operators over tokens with their long points put aside, and what a fit of the short ones says of them.

    kind: cuda or cpu. Points between short and long are neither fitted nor judged. Whole models have no parameters of
    their own and are left out. Raises BadInput where no operator has points of both kinds.
    """
    near, far = NEAR_AND_FAR[kind]
    both = [
        group
        for group in series_of(rows, hardware, LIBRARY, LIMITS[kind])
        if runners()[group.runner].phase and group.series.family != FAMILY and _spans(group, near, far)
    ]
    if not both:
        raise BadInput(f"--split extrapolate: no operator was measured both up to {near} and from {far} tokens on")
    short = tuple(group.series._replace(aside=group.series.tokens > near) for group in both)
    header = Header(f"{hardware.name}/extrapolated", hardware.name, LIBRARY, "", "own measurements")
    calibration = parse_calibration(calibrate(Source(hardware, LIBRARY, short), header).text, Path("extrapolated"))
    long = [group._replace(series=group.series._replace(aside=group.series.tokens >= far)) for group in both]
    return compare.compared(long, hardware, calibration), calibration


def _spans(group: Group, near: int, far: int) -> bool:
    tokens = group.series.tokens
    return bool((tokens <= near).any() and (tokens >= far).any())
