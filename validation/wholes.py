"""Whole models: whether the predicted sum of kernels explains the step, and which parts make the difference."""

from collections.abc import Sequence
from typing import Any

from costmodel.calibration import Calibration
from costmodel.hardware import Hardware
from costmodel.report.columns import Column, shows
from costmodel.timing import KernelTime, expected
from costmodel.units import format_seconds
from validation.kernel_split import parts_of
from validation.measurements import Measurement, kernels_of, seconds_of
from validation.runners import runners
from validation.runners.whole_model import FAMILY

IN_ONE = {"chunk-scan": "chunk scan"}
"""Families whose kernels torch runs in one call, and the name of that part."""
NAMED, ENOUGH = 3, 0.8
"""At most so many parts are named, fewer where they make up this share of all differences."""
BETWEEN = "between the parts"
"""What is neither in one part nor in another: the whole call less its parts timed apart."""

COLUMNS = (
    shows("operator", right=False),
    shows("implementation", right=False),
    shows("context"),
    shows("batch"),
    shows("measured_s", "measured"),
    shows("parts_s", "its parts"),
    shows("predicted_s", "predicted"),
    Column("error %", lambda row: f"{row['error']:+.0f}"),
    Column("measured − predicted, by part", lambda row: _named(row["parts"]), False),
)


def wholes(rows: Sequence[Measurement], hardware: Hardware, calibration: Calibration) -> list[dict[str, Any]]:
    """One row per measured step: the whole, the sum of its parts, the predicted sum, and both for each part."""
    found = []
    for row in rows:
        if row.family != FAMILY or row.status != "ok" or not row.seconds:
            continue
        kernels = kernels_of(runners()[row.runner], row.mode == "warm", row.shape, hardware)
        seconds = seconds_of(row, hardware) or row.seconds
        parts = _parts(row, seconds, expected(kernels, hardware, calibration))
        predicted = sum(part["predicted_s"] for part in parts)
        measured = sum(part["measured_s"] for part in parts if part["part"] != BETWEEN)
        found.append(
            {
                "operator": row.runner,
                "implementation": row.implementation,
                "phase": row.phase,
                "context": row.shape["context"],
                "batch": row.shape["batch"],
                "measured_s": seconds,
                "parts_s": measured,
                "predicted_s": predicted,
                "error": 100.0 * (predicted / seconds - 1.0),
                "parts": parts,
            }
        )
    return found


def _parts(row: Measurement, seconds: float, times: Sequence[KernelTime]) -> list[dict[str, Any]]:
    """Every part by name, measured and predicted, with what is between them; those of one side alone have 0 on the
    other."""
    predicted: dict[str, float] = {}
    for entry in times:
        name = IN_ONE.get(entry.kernel.family, entry.kernel.name)
        predicted[name] = predicted.get(name, 0.0) + float(entry.time_s)
    measured = {part.name: part.seconds for part in parts_of(row.kernels)}
    if measured:
        measured[BETWEEN] = seconds - sum(measured.values())
    return [
        {"part": name, "measured_s": measured.get(name, 0.0), "predicted_s": predicted.get(name, 0.0)}
        for name in dict.fromkeys([*measured, *predicted])
    ]


def _named(parts: Sequence[dict[str, Any]]) -> str:
    """The parts that make most of the difference between measured and predicted.

    >>> _named([{"part": "a", "measured_s": 3e-3, "predicted_s": 1e-3}])
    'a +2 ms'
    """
    gaps = sorted(
        ((part["measured_s"] - part["predicted_s"], part["part"]) for part in parts), key=lambda gap: -abs(gap[0])
    )
    whole = sum(abs(gap) for gap, _ in gaps)
    told, sum_s = [], 0.0
    for gap, name in gaps[:NAMED]:
        if sum_s >= ENOUGH * whole:
            break
        sum_s += abs(gap)
        told.append(f"{name} {'+' if gap >= 0 else '−'}{format_seconds(abs(gap))}")
    return ", ".join(told)
