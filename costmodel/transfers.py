"""How far a relative's calibration is off, as measured between the devices that have calibrations of their own.

A relative's dimensionless parameters carry over only in part: other generations run other kernels under the same name.
By how much, the calibrated devices tell of one another: each is predicted from every other, and for each family the
spread is kept with which the 80 % interval would have held 80 % of its measurements. A device that has no calibration
takes the root mean square of what the others show, each from its nearest relative. What is said of a device never
stands on its own measurements.

The file is written by `python -m validation.transfers` and never by hand.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from costmodel.errors import BadInput
from costmodel.loading import data_folder, read_mapping

FILE = "transfers.yaml"
ANY_FAMILY = ""
"""The name under which stands what to expect of families of which nothing was measured: the median of the others."""

Spreads = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Device predicted → device whose calibration was used, the nearest first → family → spread of ln(time)."""


def transfers_path() -> Path:
    """Where the spreads of measured transfers lie, beside the shipped calibrations."""
    return data_folder("hardware_profiles") / "calibrations" / FILE


def transfer_spreads(device: str, path: Path | None = None) -> dict[str, float]:
    """Family → spread of ln(measured/predicted) to expect of a relative of another generation.

    Empty where there is no such file. Raises BadInput for a file that does not hold such spreads.
    """
    place = path or transfers_path()
    return combined(_read(place), device) if place.is_file() else {}


def combined(spreads: Spreads, device: str) -> dict[str, float]:
    """The root mean square over all other devices, each predicted from its nearest relative but this one.

    >>> measured = {"b": {"a": {"gemm": 9.0}, "c": {"gemm": 0.3}}, "c": {"b": {"gemm": 0.4}}, "a": {"b": {"gemm": 9.0}}}
    >>> round(combined(measured, "a")["gemm"], 3)
    0.354
    """
    squares: dict[str, list[float]] = {}
    for target, sources in spreads.items():
        if target == device:
            continue
        # Families that the nearest relative does not have come from the next one.
        seen: dict[str, float] = {}
        for source, families in sources.items():
            if source != device:
                seen = {**families, **seen}
        for family, spread in seen.items():
            squares.setdefault(family, []).append(spread**2)
    expected = {family: math.sqrt(sum(found) / len(found)) for family, found in squares.items()}
    # Only a device without measurements comes here, and every other one would wait for the module to load.
    from statistics import median

    return {**expected, ANY_FAMILY: median(expected.values())} if expected else {}


def _read(path: Path) -> Spreads:
    raw = read_mapping(path)
    spreads = raw.get("spreads")
    if raw.get("schema") != 1 or not isinstance(spreads, dict):
        raise BadInput(f"{path}: expected schema: 1 and spreads: device → relative → family → number")
    for target, sources in spreads.items():
        for source, families in sources.items() if isinstance(sources, dict) else [("", None)]:
            numbers = families.values() if isinstance(families, dict) else [None]
            if any(isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one < 10 for one in numbers):
                raise BadInput(f"{path}: spreads.{target}.{source}: not families with spreads of logarithms")
    return spreads
