"""Remarks that plans and replays share: what is assumed of engines where a model or a question leaves it open."""

from costmodel.architecture import Architecture
from costmodel.report.output import note


def note_drafter(model: Architecture) -> None:
    """Say what drafts where the model has no prediction layer."""
    if model.mtp is None:
        note(
            f"note: {model.name} has no layers that predict further tokens: drafts cost what its last layer takes, "
            "as if a drafter of one layer were trained for it; --accepted is an assumption"
        )
