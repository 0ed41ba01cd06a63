"""How right the fits are that some kernels use, as their calibration states it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from costmodel.calibration import Calibration
from costmodel.fit import Fit
from costmodel.kernels.base import Kernel
from costmodel.loading import parse_mapping
from costmodel.report.columns import Column, Row, shows


def held_out(calibration: Calibration, fit: Fit) -> dict[str, float] | None:
    """The errors of a fit on the points that it never saw, None where its calibration states none."""
    for document in calibration.entries.get(fit.key[0], ()):
        if (document.key, document.kernel) == (fit.key, fit.kernel):
            line = next((line for line in document.text.split("\n") if line.startswith("held_out: ")), None)
            return None if line is None else dict(parse_mapping(line, Path(calibration.place))["held_out"])
    return None


def errors_of_fits(calibration: Calibration, kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """One row for each fit that the kernels use, in their order."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for kernel in kernels:
        fit = calibration.fit(kernel)
        if (*fit.key, fit.kernel) not in rows:
            errors = held_out(calibration, fit) or {}
            family, instance, module = fit.key
            rows[*fit.key, fit.kernel] = {
                "family": family,
                "instance": instance,
                "module": module,
                "kernel": fit.kernel,
                "basis": "prior" if fit.flops is None else "transferred" if fit.transferred else "fitted",
                "n": errors.get("n"),
                "median_ape": errors.get("median_ape"),
                "p90_ape": errors.get("p90_ape"),
                "coverage80": errors.get("coverage80"),
            }
    return list(rows.values())


def _percent(key: str, title: str) -> Column:
    def text(row: Row) -> str:
        return "–" if row[key] is None else f"{row[key]:.1f} %"

    return Column(title, text)


FITS = (
    *(shows(key, right=False) for key in ("family", "instance", "module", "kernel", "basis")),
    shows("n", "points\nheld out"),
    _percent("median_ape", "median\nerror"),
    _percent("p90_ape", "90 % of errors\nbelow"),
    _percent("coverage80", "inside the\n80 % interval"),
)
