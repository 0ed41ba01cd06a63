"""Where costs meet: three different questions with three names.

quadratic_context: one model, the context where the FLOPs of its quadratic part equal all its other FLOPs (in a
decode step: of the part that grows with the context). flops_crossover: two models, the context where their FLOPs
meet. time_crossover: two models on a device, the smallest context from which on the first is faster up to 100M.
"""

from collections.abc import Callable
from typing import Any

from costmodel.algebra import Quantity
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.hardware import Hardware
from costmodel.prediction import make_precision
from costmodel.step import Phase, Precision, Step
from costmodel.timing import total_seconds
from costmodel.units import MAX_CONTEXT

LARGEST = 100 * 1024**2
"""Contexts are searched up to 100M tokens."""

PER_OCTAVE = 64
"""Contexts per doubling at which two models are compared before the crossing is bracketed."""


def step_at(
    architecture: Architecture, phase: Phase, L: Quantity, batch: Quantity = 1, new_tokens: int | None = None
) -> Step:
    """The step at a context that may be a number, an array or a symbol.

    >>> from costmodel.model_file import load_architecture
    >>> step_at(load_architecture("llama-3.1-8b"), "decode", 8192).P
    8191
    """
    whole = phase == "train" or (new_tokens is None and (phase == "prefill" or architecture.bidirectional))
    S = L if whole else 1 if new_tokens is None else new_tokens
    return Step(B=batch, S=S, P=0 if whole else L - S, phase=phase, bidirectional=architecture.bidirectional)


def model_precision(architecture: Architecture) -> Precision:
    """The model's own number formats, for counts that need no device."""
    return Precision(
        activations=architecture.activations or "bf16",
        weights=architecture.weights,
        kv=architecture.kv,
        attention="fp8" if architecture.kv == "fp8" else "bf16",
    )


def flops(architecture: Architecture, step: Step, precision: Precision) -> Quantity:
    """Ideal FLOPs of a step."""
    total: Quantity = 0
    for kernel in architecture.kernels(step, precision):
        total = total + kernel.ideal.flops * kernel.count
    return total


def quadratic_context(
    architecture: Architecture, precision: Precision | None = None, phase: Phase = "prefill"
) -> int | None:
    """The smallest context where the FLOPs of the quadratic part are at least all the others; None without one.

    The quadratic part is the L² term of the formula; in a decode step, whose FLOPs grow with L at most, its L term.
    """
    from costmodel.analysis.leading import growth, leading_of
    from costmodel.analysis.symbolic import Size, evaluate

    chosen = precision or model_precision(architecture)
    L = Size("L", 8192)
    step = step_at(architecture, phase, L)
    power = 1 if step.P != 0 else 2
    memo: dict[Any, Any] = {}
    coefficient = 0.0
    for kernel in architecture.kernels(step, chosen):
        terms = growth(kernel.ideal.flops * kernel.count, L, memo)
        if leading_of(terms).power > power:
            return None
        coefficient += evaluate(terms.get((power, 0), 0))
    return meeting_context(architecture, chosen, phase, coefficient, power)


def meeting_context(
    architecture: Architecture, precision: Precision, phase: Phase, coefficient: float, power: int
) -> int | None:
    """The smallest context where coefficient · L^power is at least half of all FLOPs."""
    if not coefficient > 0:
        return None

    def dominates(L: int) -> bool:
        return 2 * coefficient * L**power >= flops(architecture, step_at(architecture, phase, L), precision)

    return _smallest(dominates, MAX_CONTEXT)


def _smallest(holds: Callable[[int], bool], largest: int) -> int | None:
    """The smallest whole number from which on a condition holds that, once true, stays true; None if never."""
    high = 1
    while not holds(high):
        if high >= largest:
            return None
        high = min(2 * high, largest)
    return _bisect(holds, high // 2, high)


def _bisect(holds: Callable[[int], Any], low: int, high: int) -> int:
    """The context in (low, high] where a condition begins to hold that fails at low and holds at high."""
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def contexts(least: int = 1) -> Any:
    """Whole contexts from `least` to 100M, evenly spaced in the logarithm, as float64."""
    import numpy

    octaves = numpy.log2(LARGEST / least)
    spaced = numpy.geomspace(least, LARGEST, max(2, int(octaves * PER_OCTAVE)))
    return numpy.unique(numpy.round(spaced))


def _last_change(holds: Any, points: Any, exactly: Callable[[int], Any]) -> int | None:
    """The smallest context from which on a condition holds at all points; None when it fails at the last one."""
    import numpy

    holds = numpy.broadcast_to(holds, points.shape)
    failing = numpy.flatnonzero(~holds)
    if failing.size == 0:
        return int(points[0])
    last = int(failing[-1])
    if last == len(points) - 1:
        return None
    return _bisect(exactly, int(points[last]), int(points[last + 1]))


def flops_crossover(
    a: Architecture,
    b: Architecture,
    phase: Phase = "decode",
    *,
    batch: int = 1,
    new_tokens: int | None = None,
) -> int | None:
    """The context where the FLOPs of two models meet for the last time: from there on the other one needs fewer.

    None when the same one needs fewer at every context up to 100M.
    """
    points = contexts(new_tokens or 1)
    least = fewer_flops(a, b, phase, LARGEST, batch=batch, new_tokens=new_tokens)
    most = b if least is a else a

    def fewer(L: Quantity) -> Any:
        return _flops_at(least, phase, L, batch, new_tokens) < _flops_at(most, phase, L, batch, new_tokens)

    changed = _last_change(fewer(points), points, fewer)
    return None if changed is None or changed <= points[0] else changed


def fewer_flops(
    a: Architecture, b: Architecture, phase: Phase, L: int, *, batch: int = 1, new_tokens: int | None = None
) -> Architecture:
    """The model that needs fewer FLOPs at a context; the first when both need the same."""
    return b if _flops_at(b, phase, L, batch, new_tokens) < _flops_at(a, phase, L, batch, new_tokens) else a


def _flops_at(model: Architecture, phase: Phase, L: Quantity, batch: int, new_tokens: int | None) -> Quantity:
    return flops(model, step_at(model, phase, L, batch, new_tokens), model_precision(model))


def time_crossover(
    a: Architecture,
    b: Architecture,
    hardware: Hardware,
    calibration: Calibration | None = None,
    *,
    phase: Phase = "decode",
    batch: int = 1,
    new_tokens: int | None = None,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
) -> int | None:
    """The smallest context from which on `a` is predicted faster than `b` up to 100M; 1 when always, None when never.

    Expected times are compared at 64 contexts per doubling, and the last change of order is bisected. Without a
    calibration, the one that `predict` would take is used.
    """
    formats = [make_precision(model, hardware, weights, kv, activations) for model in (a, b)]
    chosen = calibration or find_calibration(hardware, None)
    points = contexts(new_tokens or 1)

    def faster(L: Quantity) -> Any:
        first, second = (
            total_seconds(model.kernels(step_at(model, phase, L, batch, new_tokens), precision), hardware, chosen)
            for model, precision in zip((a, b), formats, strict=True)
        )
        return first < second

    return _last_change(faster(points), points, faster)
