"""What the page knows of devices: the numbers of their profiles, and the calibrations that time kernels on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.kernel_programs import hardware_numbers
from costmodel.calibration import Calibration, read_calibration
from costmodel.energy import IDLE_SHARE
from costmodel.fit import TRANSFER_SPREAD, Fit, prior_fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel
from costmodel.report.errors_of_fits import held_out

COLUMN_DIGITS = 4
"""Significant digits of a parameter's standard deviation: they move an interval by less than a thousandth."""


def device_entry(
    hardware: Hardware,
    calibration: Calibration,
    paths: Sequence[str],
    kernels: Sequence[Kernel],
    families: Sequence[int],
    place: int | None,
) -> dict[str, Any]:
    """A device: the numbers at these paths (null where unknown), and the place of its calibration among those given.

    stretched: where the calibration is a relative's, what its fits' seconds are in this device's clock; else null.
    missed: by family, what that of another generation is expected to miss of ln(time). beyond: for each place among the
    kernels that the calibration has no fit for, the fit that others have, in this device's clock.
    """
    numbers = hardware_numbers(hardware)
    idle = hardware.power.idle
    if idle is None and hardware.power.tdp is not None:
        idle = IDLE_SHARE * hardware.power.tdp
    return {
        "name": hardware.name,
        "title": hardware.description,
        "vendor": hardware.vendor,
        "engines": sorted(hardware.compute.tensor),
        "numbers": [numbers.get(path) for path in paths],
        "capacity": hardware.memory.hbm.capacity,
        "tdp": hardware.power.tdp,
        "idle": idle,
        "calibration": place,
        "library": calibration.library,
        "missed": dict(calibration.missed),
        "stretched": None if calibration.slower is None else _stretched(calibration, kernels, families),
        **_beyond(calibration, kernels, families),
        "unverified": list(hardware.unverified),
    }


def _stretched(calibration: Calibration, kernels: Sequence[Kernel], families: Sequence[int]) -> list[list[float]]:
    """For each fit, in the order of `calibration_entry`, the values of the parameters that are seconds."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for kernel, family in zip(kernels, families, strict=True):
        fit = calibration.fit(kernel)
        if fit.flops is not None and not fit.origin:
            parameters = kernel.form.parameters
            seconds = [fit.values[parameter.name] for parameter in parameters if parameter.unit == "s"]
            found.setdefault((family, *fit.key, fit.kernel), seconds)
    return list(found.values())


def _beyond(calibration: Calibration, kernels: Sequence[Kernel], families: Sequence[int]) -> dict[str, Any]:
    """The fits of kernels that the calibration does not hold, and the place of each such kernel's among them."""
    fits: dict[tuple[Any, ...], int] = {}
    entries: list[dict[str, Any]] = []
    by_key: dict[int, int] = {}
    for index, (kernel, family) in enumerate(zip(kernels, families, strict=True)):
        fit = calibration.fit(kernel)
        if not fit.origin:
            continue
        identity = (family, *fit.key, fit.kernel, fit.origin)
        if identity not in fits:
            fits[identity] = len(entries)
            basis = "prior" if fit.flops is None else "transferred"
            own = {"spread": fit.model_spread, "missed": fit.missed, "basis": basis, "origin": fit.origin}
            entries.append({"family": family, **fit_entry(fit, kernel.form), **own})
        by_key[index] = fits[identity]
    return {"beyond": entries, "beyondByKey": by_key}


def family_entry(form: Form) -> dict[str, Any]:
    """A kernel family: its parameters with bounds, which of them are seconds, and what is known without measurement."""
    return {
        "name": form.family,
        "summary": form.summary,
        "parameters": [parameter.name for parameter in form.parameters],
        "low": [parameter.low for parameter in form.parameters],
        "high": [parameter.high for parameter in form.parameters],
        "seconds": [int(parameter.unit == "s") for parameter in form.parameters],
        "prior": fit_entry(prior_fit(form), form),
    }


def fit_entry(fit: Fit, form: Form) -> dict[str, Any]:
    """A fit: parameters in the order of the form, one column of changes for each independent direction.

    borrowed: whether it stands in for kernels that its calibration does not hold, and so counts as transferred.
    """
    names = [parameter.name for parameter in form.parameters]
    columns = [[_short(column.get(name, 0.0)) for name in names] for column in fit.columns]
    return {
        "values": [fit.values[name] for name in names],
        "columns": [column for column in columns if any(column)],
        "spread": fit.model_spread / (TRANSFER_SPREAD if fit.transferred else 1.0),
        "borrowed": int(fit.transferred),
        "missedAs": fit.key[0],
        "group": "/".join((*fit.key, fit.origin)),
        "errors": fit.key[2] or fit.key[0],
        "range": None
        if fit.flops is None or fit.hbm_bytes is None
        else [fit.flops, fit.hbm_bytes, *([] if fit.lengths is None else [fit.lengths])],
        "points": fit.points,
        "kernel": fit.kernel,
    }


def _short(value: float) -> float:
    return float(f"{value:.{COLUMN_DIGITS}g}")


def calibration_entry(place: str, kernels: Sequence[Kernel], families: Sequence[int]) -> dict[str, Any]:
    """A calibration in its own device's clock: its fits, and the place of each kernel's among them (-1: it has none).

    families: the place of each kernel's form.
    """
    calibration = read_calibration(Path(place))
    fits: dict[tuple[Any, ...], int] = {}
    entries: list[dict[str, Any]] = []
    by_key = []
    for kernel, family in zip(kernels, families, strict=True):
        fit = calibration.own_fit(kernel, strict=True)
        if fit is None:
            by_key.append(-1)
            continue
        identity = (family, *fit.key, fit.kernel)
        if identity not in fits:
            fits[identity] = len(entries)
            errors = held_out(calibration, fit)
            entries.append({"family": family, **fit_entry(fit, kernel.form), "heldOut": errors})
        by_key.append(fits[identity])
    return {
        "id": calibration.id,
        "library": calibration.library,
        "hardware": calibration.hardware,
        "fits": entries,
        "byKey": by_key,
    }
