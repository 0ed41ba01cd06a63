"""Remarks that plans and replays share: what is assumed of engines where a model or a question leaves it open."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.coverage import told as doubt_of
from costmodel.hardware import Hardware
from costmodel.planning.load import Load
from costmodel.planning.snapshots import at_ends, recurrent, snapshot_tokens
from costmodel.report.output import note
from costmodel.report.predictions import basis_text


def calibration_of(device: Hardware, library: str | None) -> dict[str, str | None]:
    """Where a device's parameters come from, as the entries of a row: the calibration, and the best basis it gives."""
    found = find_calibration(device, library)
    basis = "prior" if found.id is None else "fitted" if found.hardware == device.name else "transferred"
    return {"basis": basis, "calibration": found.id}


def note_transferred(rows: Iterable[Mapping[str, Any]]) -> None:
    """Say of which devices the times rest on another's measurements, or on none."""
    for hw, basis, name in dict.fromkeys(
        (row["hw"], row["basis"], row["calibration"]) for row in rows if "basis" in row
    ):
        if basis in ("transferred", "prior"):
            note(f"note: {hw}: {basis_text([basis], name)}")


def note_unmeasured(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say which mechanisms of the plans' models no measurement covers."""
    for name, doubt in dict.fromkeys((row["arch"], doubt_of(row["unmeasured"])) for row in rows if "unmeasured" in row):
        if doubt:
            note(f"note: {name}: {doubt}")


def note_drafter(model: Architecture) -> None:
    """Say what drafts where the model has no prediction layer."""
    if model.mtp is None:
        note(
            f"note: {model.name} has no layers that predict further tokens: drafts cost what its last layer takes, "
            "as if a drafter of one layer were trained for it; --accepted is an assumption"
        )


def note_snapshots(model: Architecture, load: Load, told: int | None, library: str | None) -> None:
    """Say where copies of recurrent states are taken to be, unless the question says it."""
    if told is not None or not load.has_prefixes or not recurrent(model):
        return
    tokens = snapshot_tokens(model, library)
    if at_ends(library):
        note(
            f"note: {model.name}: cached prefixes count in full, for SGLang keeps recurrent states where requests "
            "ended; where requests only begin alike it finds none; --snapshot-tokens says otherwise"
        )
        return
    note(
        f"note: {model.name}: prefixes are found at multiples of {tokens:,} tokens, where vLLM keeps recurrent states; "
        "--snapshot-tokens changes it"
        if tokens is not None
        else f"note: {model.name}: cached prefixes count in full, and copies of recurrent states take no memory; "
        "--snapshot-tokens says where they are kept and counts them"
    )
