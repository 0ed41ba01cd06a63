"""Several architectures side by side: times with their ratio, and the contexts where their order changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.analysis.crossover import LARGEST, fewer_flops, flops_crossover, quadratic_context, time_crossover
from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.prediction import loaded, make_precision, make_step, phases_of, predict_step, several
from costmodel.units import format_count

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order device, architecture, phase, context, and the crossovers of the question.

    A row is that of a prediction with `ratio` (its time over that of the first architecture in the same step on the
    same device) and `crossover_context` (the smallest context from which on it is faster than the first, up to 100M;
    1 when always, None when never and for the first itself).

    A crossover has `kind` (quadratic_context, flops_crossover, time_crossover), `first`, `second`, `phase`, `hw`,
    `context` and `note`. `first` is the one that needs fewer FLOPs, or less time, from `context` on.
    """

    rows: list[dict[str, Any]]
    crossovers: list[dict[str, Any]]

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas data frame."""
        import pandas

        return pandas.DataFrame(self.rows)


def compare(
    architectures: Sequence[str | Architecture],
    hardware: str | Hardware | Sequence[str | Hardware],
    contexts: int | Sequence[int],
    *,
    phase: str | Sequence[str] = "decode",
    batch: int = 1,
    new_tokens: int | None = None,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
    library: str | None = None,
    settings: Sequence[str] = (),
) -> Comparison:
    """Predictions of every architecture against the first one.

    Arguments are those of `predict`. Raises BadInput for what cannot be understood, two architectures of one name
    included, and Impossible for what has no answer.

    >>> found = compare(["llama-3.1-8b", "qwen3-8b"], "h100-sxm", 8192)
    >>> [row["ratio"] > 1 for row in found.rows]
    [False, True]
    """
    models, devices = loaded(architectures, hardware, settings)
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise BadInput(f"architectures {', '.join(names)}: the same name twice")
    if not models:
        raise BadInput("architectures: none given")
    phases = phases_of(phase, new_tokens)
    lengths = several(contexts)
    formats: dict[str, Any] = {"weights": weights, "kv": kv, "activations": activations}
    rows: list[dict[str, Any]] = []
    timed: list[dict[str, Any]] = []
    first = models[0]
    # Every step is checked before the first crossover is searched.
    for model in models:
        for chosen, block in phases:
            for length in lengths:
                make_step(model, chosen, length, batch, block)
    for device in devices:
        calibration = find_calibration(device, library)
        baseline: dict[tuple[str, int], float] = {}
        for model in models:
            precision = make_precision(model, device, **formats)
            for chosen, block in phases:
                own = None
                if model is not first:
                    question: dict[str, Any] = {"phase": chosen, "batch": batch, "new_tokens": block}
                    own = time_crossover(model, first, device, calibration, **question, **formats)
                    other = None
                    if own is None:
                        other = time_crossover(first, model, device, calibration, **question, **formats)
                    timed.append(_time_row(model, first, chosen, device, own, other, block or 1))
                for length in lengths:
                    step = make_step(model, chosen, length, batch, block)
                    row = predict_step(model, device, step, precision, calibration).to_dict()
                    time = baseline.setdefault((chosen, length), row["time_s"])
                    rows.append({**row, "ratio": row["time_s"] / time, "crossover_context": own})
    counted = [_quadratic_row(model, chosen) for chosen, _ in phases for model in models]
    counted += [_flops_row(model, first, chosen, batch, block) for chosen, block in phases for model in models[1:]]
    return Comparison(rows, counted + timed)


def _quadratic_row(model: Architecture, phase: Any) -> dict[str, Any]:
    context = quadratic_context(model, phase=phase)
    growing = "part that grows with the context" if phase == "decode" and not model.bidirectional else "quadratic part"
    note = f"no {growing}" if context is None else f"from here on the {growing} is most of the FLOPs"
    return _row("quadratic_context", model.name, None, phase, None, context, note)


def _flops_row(
    model: Architecture, first: Architecture, phase: Any, batch: int, new_tokens: int | None
) -> dict[str, Any]:
    context = flops_crossover(model, first, phase, batch=batch, new_tokens=new_tokens)
    least = fewer_flops(model, first, phase, LARGEST, batch=batch, new_tokens=new_tokens)
    most = first if least is model else model
    where = "at every context" if context is None else f"from here on, up to {format_count(LARGEST)}"
    return _row("flops_crossover", least.name, most.name, phase, None, context, f"fewer FLOPs {where}")


def _time_row(
    model: Architecture,
    first: Architecture,
    phase: str,
    device: Hardware,
    own: int | None,
    other: int | None,
    least: int,
) -> dict[str, Any]:
    if own is None and other is None:
        note = f"neither is faster at {format_count(LARGEST)}"
        return _row("time_crossover", model.name, first.name, phase, device.name, None, note)
    ahead, behind, context = (model, first, own) if own is not None else (first, model, other)
    note = "faster at every context" if context == least else f"faster from here on, up to {format_count(LARGEST)}"
    return _row("time_crossover", ahead.name, behind.name, phase, device.name, context, note)


def _row(
    kind: str, first: str, second: str | None, phase: str, hw: str | None, context: int | None, note: str
) -> dict[str, Any]:
    return {"kind": kind, "first": first, "second": second, "phase": phase, "hw": hw, "context": context, "note": note}
