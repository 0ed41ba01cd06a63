"""What the page knows of published claims: the judged rows, what each is about, and the step that shows its kernels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from costmodel.analysis.claims import Claim, judge, load_claims
from costmodel.analysis.claims.setups import FILL
from costmodel.architecture import Architecture
from costmodel.hardware import Hardware
from costmodel.report.page.architectures import KV, WEIGHTS

SHOWN = (
    *(
        "id",
        "mechanism",
        "what",
        "source",
        "setup",
        "claimed",
        "predicted",
        "low",
        "high",
        "ratio",
        "verdict",
        "reason",
    ),
    *("unit", "at", "basis", "kind", "fair", "fair_predicted", "command"),
)
DIGITS = 4
"""Significant digits of a claim's numbers."""


def claim_entries(
    architectures: Sequence[Architecture],
    devices: Sequence[Hardware],
    everything: bool,
    step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The judged claims about these architectures, or all of them. step is called after each."""
    found = []
    for claim in load_claims():
        about = claim_about(claim, architectures)
        if about or everything:
            row = {key: _rounded(value) for key, value in judge(claim).items() if key in SHOWN}
            found.append({**row, "about": about, "asks": asked_step(claim, architectures, devices)})
        step()
    return found


def claim_about(claim: Claim, architectures: Sequence[Architecture]) -> list[str]:
    """The architectures that a claim is about: the one that it names, or all with the mechanism that it names."""
    if claim.setup.mixer is None:
        return [each.name for each in architectures if each.name == claim.setup.architecture]
    kind = claim.setup.mixer.get("kind")
    return [each.name for each in architectures if any(kind == block.module.NAME for block in each.mixers.values())]


def asked_step(
    claim: Claim, architectures: Sequence[Architecture], devices: Sequence[Hardware]
) -> dict[str, Any] | None:
    """The question that the page shows for a claim, on one device; None where it knows the model or the device not.

    Of a claim over several contexts or batches it is the last.
    """
    setup = claim.setup.changed(claim.points[-1])
    known = setup.architecture in [each.name for each in architectures]
    if setup.mixer is not None or not known or setup.hardware not in [each.name for each in devices]:
        return None
    context = setup.context or setup.prompt + setup.output
    if not context:
        return None
    return {
        "arch": setup.architecture,
        "hw": setup.hardware,
        "phase": setup.phase,
        "context": context,
        "batch": setup.batch if isinstance(setup.batch, int) else 1,
        "fill": setup.batch == FILL,
        "weights": setup.weights if setup.weights in WEIGHTS else None,
        "kv": setup.kv if setup.kv in KV else None,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
