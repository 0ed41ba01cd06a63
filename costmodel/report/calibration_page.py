"""The page of `show` about a calibration: every fitted parameter beside its prior, with unit, error and meaning."""

import math
from typing import Any

from costmodel.calibration import SEPARATOR, Calibration, check_calibration, parse_calibration
from costmodel.calibration_files import calibration_path
from costmodel.fit import Fit
from costmodel.kernels import forms
from costmodel.kernels.base import Parameter
from costmodel.loading import parse_mapping, read_text
from costmodel.report.architecture_page import ENTRY, MEANING, Page
from costmodel.report.columns import Column, shows

SHARED = "all instances"


def calibration_page(name: str) -> Page:
    """A calibration, named `device/library`: one row for each parameter of each kernel."""
    device, _, library = name.partition("/")
    path = calibration_path(device, library)
    text = read_text(path)
    calibration = parse_calibration(text, path)
    check_calibration(calibration, forms())
    header = parse_mapping(text.split(SEPARATOR)[0], path)
    rows = [row for family in calibration.entries for row in _family_rows(calibration, family)]
    remarks = [f"{key}: {header[key]}" for key in ("source", "notice", "date", "version", "command") if header.get(key)]
    columns = (
        shows("family", right=False),
        shows("instance", right=False),
        shows("module", right=False),
        shows("kernel", right=False),
        ENTRY,
        Column("value", lambda row: f"{row['value']:.3g}"),
        Column("± %", lambda row: f"{row['error']:.0f}"),
        Column("prior", lambda row: "" if row["prior"] is None else f"{row['prior']:.3g}"),
        shows("unit", right=False),
        MEANING,
    )
    title = f"{calibration.id}: {len(rows)} parameters of {sum(map(len, calibration.entries.values()))} kernels"
    return Page("calibration", title, rows, columns, remarks, [str(header.get("source", ""))])


def _family_rows(calibration: Calibration, family: str) -> list[dict[str, Any]]:
    form = forms()[family]
    rows = []
    for fit in calibration.fits(form):
        told = {
            "family": family,
            "instance": fit.key[1] or SHARED,
            "module": fit.key[2] or None,
            "kernel": fit.kernel,
        }
        for parameter in form.parameters:
            rows.append({**told, **_row(parameter, fit)})
        rows.append(
            {
                **told,
                "entry": "model_spread",
                "value": fit.model_spread,
                "error": 0.0,
                "prior": form.model_spread,
                "unit": "1",
                "meaning": f"standard deviation of ln(measured/predicted) that remains, from {fit.points} points",
            }
        )
    return rows


def _row(parameter: Parameter, fit: Fit) -> dict[str, Any]:
    variance = sum(column.get(parameter.name, 0.0) ** 2 for column in fit.columns)
    return {
        "entry": parameter.name,
        "value": fit.values[parameter.name],
        "error": 100.0 * math.sqrt(variance),
        "prior": parameter.prior,
        "unit": parameter.unit,
        "meaning": parameter.meaning,
    }
