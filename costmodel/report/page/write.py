"""`page`: the explorer as one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.claims import load_claims
from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.loading import available, write_atomically
from costmodel.prediction import loaded
from costmodel.report.output import note
from costmodel.report.page.build import LARGEST, page
from costmodel.report.page.claims import claim_entries
from costmodel.report.page.data import content
from costmodel.report.progress import Progress
from costmodel.units import format_bytes

FIRST_DEVICES = ("h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm", "l40s")
"""Devices that most people ask about, at the top of the list where all are wanted."""
FIRST_MODELS = ("llama-3.1-8b", "kimi-linear-48b-a3b", "deepseek-v3.2")
"""What the page shows at first where all architectures are wanted."""


def write_page(inputs: Mapping[str, Any]) -> None:
    """Write the page of these architectures and devices (empty lists: all) to a file, whole or not at all.

    Raises BadInput for what cannot be understood.
    """
    names = inputs["arch"] or sorted(available("architectures"))
    devices = inputs["hw"] or _most_asked_first(available("hardware_profiles"))
    models, hardware = loaded(names, devices, inputs["set"])
    calibrated = [(device, find_calibration(device, inputs["library"])) for device in hardware]
    progress = Progress(len(models) + len(load_claims()))
    claims = claim_entries(models, hardware, not inputs["arch"], progress.step)
    found = content(models, calibrated, progress.step, claims)
    progress.close()
    text = page(found, _start(models, inputs["arch"])).encode()
    write_atomically(Path(inputs["out"]), text)
    note(
        f"note: wrote {inputs['out']}: {len(models)} architectures, {len(hardware)} devices, {len(claims)} claims, "
        f"{format_bytes(len(text))}"
    )
    if len(text) > LARGEST:
        note(f"note: the page is larger than {LARGEST / 1e6:g} MB; fewer architectures or devices make it smaller")


def _most_asked_first(names: Mapping[str, Any]) -> list[str]:
    return [*(name for name in FIRST_DEVICES if name in names), *sorted(set(names) - set(FIRST_DEVICES))]


def _start(models: Sequence[Architecture], asked: Sequence[str]) -> list[str]:
    known = [model.name for model in models]
    return known[:3] if asked else [name for name in FIRST_MODELS if name in known] or known[:1]
