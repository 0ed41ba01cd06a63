"""Everything that the page knows: programs as JavaScript, and data as JSON."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import costmodel
from costmodel.analysis.kernel_programs import OUTPUTS
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.fit import BASES, EXTRAPOLATION_SPREADS, ROUNDED, SHORT_STEP, TRANSFER_SPREAD
from costmodel.hardware import Hardware
from costmodel.kernels.base import BOUNDS
from costmodel.memory import TRAINING_BYTES_PER_PARAMETER
from costmodel.report.page.architectures import KV, WEIGHTS, architecture_entry
from costmodel.report.page.devices import calibration_entry, device_entry, family_entry
from costmodel.report.page.formulas import Formulas
from costmodel.report.page.programs import Programs
from costmodel.step import PHASES
from costmodel.timing import Z80

EXAMPLE_PRICE = 2
"""US$ per device and hour that the page shows until a price is given."""


class Content(NamedTuple):
    """The functions of a page, and its data."""

    programs: str
    data: dict[str, Any]


def content(
    architectures: Sequence[Architecture],
    devices: Sequence[tuple[Hardware, Calibration]],
    step: Callable[[], None] = lambda: None,
    claims: Sequence[Mapping[str, Any]] = (),
) -> Content:
    """What a page of these models on these devices needs. step is called after each model; claims: judged ones."""
    programs, formulas = Programs(devices), Formulas()
    hardware = [device for device, _ in devices]
    models = []
    for architecture in architectures:
        entry = architecture_entry(architecture, hardware, programs)
        models.append({**entry, "blocks": formulas.add(architecture)})
        step()
    written = programs.written()
    for model in models:
        for phase in model["phases"].values():
            phase["rows"] = [rows and [written.row_of[added] for added in rows] for rows in phase["rows"]]
            phase["cache"] = [None if added is None else written.row_of[added] for added in phase["cache"]]
    places: dict[str, int] = {}
    for _, calibration in devices:
        if calibration.place:
            places.setdefault(calibration.place, len(places))
    of = [family for family, _, _ in programs.keys]
    calibrations = [calibration_entry(place, programs.kernels, of) for place in places]
    known = [
        {
            **device_entry(
                device, calibration, programs.hardware_paths, programs.kernels, of, places.get(calibration.place)
            ),
            "variants": written.variant_of[index],
        }
        for index, (device, calibration) in enumerate(devices)
    ]
    fits = [fit for holder, name in ((calibrations, "fits"), (known, "beyond")) for one in holder for fit in one[name]]
    columns = shared_columns(fits)
    data = {
        "version": costmodel.__version__,
        "outputs": list(OUTPUTS),
        "bounds": list(BOUNDS),
        "bases": list(BASES),
        "phases": list(PHASES),
        "weights": list(WEIGHTS),
        "kv": list(KV),
        "z80": Z80,
        "trainingBytes": TRAINING_BYTES_PER_PARAMETER,
        "transferSpread": TRANSFER_SPREAD,
        "extrapolationSpreads": dict(EXTRAPOLATION_SPREADS),
        "shortStep": SHORT_STEP,
        "rounded": ROUNDED,
        "keys": [list(key) for key in programs.keys],
        "rows": [[row.template, row.key, *row.numbers] for row in written.rows],
        "formOf": written.form_of,
        "families": [family_entry(form) for form in programs.families],
        "columns": columns,
        "calibrations": calibrations,
        "devices": known,
        "architectures": models,
        "formulas": formulas.entries,
        "claims": list(claims),
        "examplePrice": EXAMPLE_PRICE,
        "pricesNote": "Prices of devices are an input: nothing is known of them here, and the first is an example.",
    }
    return Content(written.text, data)


def shared_columns(fits: Iterable[dict[str, Any]]) -> list[Any]:
    """The different columns of fits, which take the place among them instead: devices borrow the same kernels' fits."""
    found: dict[str, int] = {}
    columns: list[Any] = []
    for fit in fits:
        text = json.dumps(fit["columns"])
        if text not in found:
            found[text] = len(columns)
            columns.append(fit["columns"])
        fit["columns"] = found[text]
    return columns
