"""How far a relative's calibration is off, as measured between the devices that have calibrations of their own.

A relative's dimensionless parameters carry over only in part: other generations run other kernels under the same name.
By how much, the calibrated devices tell of one another: each is predicted from every other, and for each family the
spread is kept with which the 80 % interval would have held 80 % of its measurements. A device that has no calibration
takes the root mean square of what the others show, each from its nearest relative. What is said of a device never
stands on its own measurements.

Nor does everything carry over on one device: another library's kernel of the same kind, or what the other kernels of a
family have in common, miss a kernel that was not measured by what they miss of those that were, each left out in turn.

The files are written by `python -m validation.transfers` and `python -m validation.siblings`, and never by hand.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.loading import data_folder, read_mapping

FILE = "transfers.yaml"
SIBLINGS_FILE = "siblings.yaml"
LIBRARIES, RELATIVES, SIBLINGS = "libraries", "relatives", "siblings"
"""Steps from a calibration that does not hold a kernel: another library, a relative, the other kernels of a family."""
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


def siblings_path() -> Path:
    """Where the spreads lie that were measured on one device: between its libraries, and between a family's kernels."""
    return data_folder("hardware_profiles") / "calibrations" / SIBLINGS_FILE


def between_libraries(path: Path | None = None) -> dict[str, float]:
    """Family → spread of ln(measured/predicted) to expect of another library's kernel of the same kind on a device."""
    return _mean_squares(LIBRARIES, path or siblings_path())


def between_siblings(path: Path | None = None) -> dict[str, float]:
    """Family → spread of ln(measured/predicted) to expect of what the other kernels of a family have in common."""
    return _mean_squares(SIBLINGS, path or siblings_path())


def worse_than_prior(step: str, path: Path | None = None) -> frozenset[str]:
    """The families of which a step was found to be no nearer than the generic prior."""
    place = path or siblings_path()
    worse = read_mapping(place).get("worse") if place.is_file() else None
    families = worse.get(step) if isinstance(worse, dict) else None
    return frozenset(map(str, families)) if isinstance(families, list) else frozenset()


def _mean_squares(step: str, place: Path) -> dict[str, float]:
    """The root mean square over the devices. Empty where there is no such file; raises BadInput for a wrong one."""
    if not place.is_file():
        return {}
    raw = read_mapping(place)
    found = raw.get(step)
    if raw.get("schema") != 1 or not isinstance(found, dict):
        raise BadInput(f"{place}: expected schema: 1 and {step}: device → family → number")
    _check({step: found}, place)
    squares: dict[str, list[float]] = {}
    for families in found.values():
        for family, spread in families.items():
            squares.setdefault(family, []).append(spread**2)
    return _with_any({family: math.sqrt(sum(each) / len(each)) for family, each in squares.items()})


def _with_any(expected: dict[str, float]) -> dict[str, float]:
    # Few predictions come here, and every other one would wait for the module to load.
    from statistics import median

    return {**expected, ANY_FAMILY: median(expected.values())} if expected else {}


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
    return _with_any(expected)


def _read(path: Path) -> Spreads:
    raw = read_mapping(path)
    spreads = raw.get("spreads")
    if raw.get("schema") != 1 or not isinstance(spreads, dict):
        raise BadInput(f"{path}: expected schema: 1 and spreads: device → relative → family → number")
    _check(spreads, path)
    return spreads


def _check(spreads: Mapping[str, Any], path: Path) -> None:
    for target, sources in spreads.items():
        for source, families in sources.items() if isinstance(sources, dict) else [("", None)]:
            numbers = families.values() if isinstance(families, dict) else [None]
            if any(isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one < 10 for one in numbers):
                raise BadInput(f"{path}: {target}.{source}: not families with spreads of logarithms")
