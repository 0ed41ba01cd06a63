"""One entry of a calibration file: from its text to a fit, every number checked, in the clock of the device asked."""

import math
from collections.abc import Sequence
from operator import mul
from pathlib import Path
from typing import Any

from costmodel.fit import TRANSFER_SPREAD, Fit
from costmodel.kernels.base import Form
from costmodel.loading import Problems, parse_mapping

ENTRY = (
    "family",
    "instance",
    "module",
    "kernel",
    "parameters",
    "covariance",
    "bounds",
    "model_spread",
    "points",
    "flops",
    "hbm_bytes",
    "lengths",
    "flagged",
    "held_out",
    "host_s",
    "occupancy",
)
TENSOR = "tensor_efficiency"
"""The parameter that is a share of a matrix engine's peak."""
REPEATABLE = 0.01
"""Spread of repeated measurements: doubted all the same where a covariance alone explains what a fit missed."""
LEAST_MOVED = 1e-3
"""A direction along which no parameter moves by a tenth of a percent, as in modules that fit few of them, is none."""


def read_entry(
    place: str, text: str, form: Form, slower: float | None = None, missed: float | None = None, busier: float = 1.0
) -> Fit:
    """One document of a calibration (slower, missed, busier: see `Calibration`). Raises BadInput with every problem.

    The bounds that it names are what the fit was held to; a prediction keeps to the form's.
    """
    entry = parse_mapping(text, Path(place))
    problems = Problems(place)
    where = "/".join([form.family, *(str(entry[key]) for key in ("instance", "module") if entry.get(key))])
    problems.unknown_keys(entry, ENTRY, where)
    declared = {parameter.name: parameter for parameter in form.parameters}
    clocked = TENSOR if form.clocked and busier != 1.0 else None
    given = problems.mapping(entry.get("parameters"), f"{where}.parameters")
    problems.unknown_keys(given, [*declared, *form.elsewhere], f"{where}.parameters")
    values = {name: parameter.prior for name, parameter in declared.items()}
    for name, value in given.items():
        if name in declared:
            low, high = declared[name].low, declared[name].high
            most = declared[name].most or high
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= most:
                problems.add(f"{where}.parameters.{name}: {str(value)[:40]} is outside {low:g} to {most:g}")
                continue
            stretch = slower if slower and declared[name].unit == "s" else 1.0
            moved = share_of_peak(float(value), busier) if name == clocked else float(value) * stretch
            values[name] = min(max(moved, low), high)
    factor = _cholesky(_triangle(entry.get("covariance")), len(given))
    if factor is None:
        problems.add(f"{where}.covariance: not the lower triangle of a positive {len(given)} × {len(given)} matrix")
    ranges: dict[str, tuple[float, float]] = {}
    for key in ("flops", "hbm_bytes", "lengths"):
        pair = entry.get(key)
        if key == "lengths" and pair is None:
            continue
        if not (isinstance(pair, list) and len(pair) == 2):
            problems.add(f"{where}.{key}: expected [smallest, largest] of the measured points")
            continue
        ranges[key] = (problems.number(pair[0], f"{where}.{key}"), problems.number(pair[1], f"{where}.{key}"))
    spread = entry.get("model_spread")
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < 10:
        problems.add(f"{where}.model_spread: {str(spread)[:40]!r} is not a spread of logarithms")
        spread = 0.0
    points = problems.whole_number(entry.get("points") or 0, f"{where}.points", least=0)
    host_s = problems.number(entry.get("host_s") or 0.0, f"{where}.host_s")
    occupancy = problems.whole_number(entry.get("occupancy") or 0, f"{where}.occupancy", least=0)
    problems.raise_if_any()
    assert factor is not None
    widen = 1.0 if slower is None or missed is not None else TRANSFER_SPREAD
    names = list(given)
    steps = {name: widen * (busier * values[name] / float(given[name]) if name == clocked else 1.0) for name in names}
    return Fit(
        key=(form.family, str(entry.get("instance") or ""), str(entry.get("module") or "")),
        values=values,
        columns=tuple(
            {
                names[row]: factor[row][column] * steps[names[row]]
                for row in range(column, len(names))
                if names[row] in declared
            }
            for column in range(len(names))
            if max(abs(factor[row][column]) for row in range(column, len(names))) >= LEAST_MOVED
        ),
        bounds={name: (parameter.low, parameter.high) for name, parameter in declared.items()},
        model_spread=max(float(spread), REPEATABLE) * widen,
        transferred=slower is not None,
        flops=ranges["flops"],
        hbm_bytes=ranges["hbm_bytes"],
        lengths=ranges.get("lengths"),
        points=points,
        kernel=str(entry.get("kernel") or ""),
        host_s=host_s,
        occupancy=occupancy,
        missed=missed or 0.0,
    )


def _triangle(text: Any) -> list[list[float]] | None:
    """The rows of a lower triangle written one per line."""
    try:
        rows = [[float(number) for number in line.split()] for line in str(text).strip().splitlines()]
    except ValueError:
        return None
    complete = all(len(row) == index + 1 and all(map(math.isfinite, row)) for index, row in enumerate(rows))
    return rows if complete else None


def _cholesky(triangle: Sequence[Sequence[float]] | None, size: int) -> list[list[float]] | None:
    """Lower factor of a positive semi-definite matrix given by its lower triangle, else None."""
    if triangle is None or len(triangle) != size:
        return None
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = triangle[i][j] - sum(map(mul, factor[i][:j], factor[j][:j]))
            if i == j:
                # Written digits are few: what strong correlation leaves may come out a little below zero.
                if not rest >= -1e-4 * triangle[i][i]:
                    return None
                factor[i][i] = math.sqrt(max(rest, 0.0))
            else:
                factor[i][j] = rest / factor[j][j] if factor[j][j] else 0.0
    return factor


def share_of_peak(measured: float, busier: float) -> float:
    """The share of a matrix engine's peak that a kernel reaches where the engine does `busier` times as much per clock.

    What a kernel does between its products (addresses, barriers, copies) takes clocks of its own: they are 1/share − 1
    of the products' time, and the faster the engine, the more.

    >>> round(share_of_peak(0.2, 0.25), 3), round(share_of_peak(0.2, 2.0), 3)
    (0.5, 0.111)
    """
    return 1.0 / (1.0 + (1.0 / measured - 1.0) * busier)
