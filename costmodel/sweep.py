"""Many points at once: the same formulas and time forms, fed float64 arrays."""

from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.prediction import loaded, make_precision, make_step
from costmodel.step import Step
from costmodel.timing import total_seconds
from costmodel.units import MAX_CONTEXT

BLOCK = 16_384
"""Points evaluated at a time, so that intermediate arrays stay in the cache."""


def sweep(
    architecture: str | Architecture,
    hardware: str | Hardware,
    contexts: Any,
    batches: Any,
    *,
    phase: str = "decode",
    new_tokens: int | None = None,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
    library: str | None = None,
    settings: Sequence[str] = (),
) -> NDArray[numpy.float64]:
    """Expected seconds of a step at every (context, batch) point, without intervals.

    contexts and batches broadcast against each other as numpy arrays do: two arrays of n give n points,
    a column against a row gives the grid, for which what depends on the batch alone is computed once per
    batch. Raises BadInput for values below 1 or above 10¹².
    """
    (model,), (device,) = loaded(architecture, hardware, settings)
    calibration = find_calibration(device, library)
    precision = make_precision(model, device, weights, kv, activations)
    L = _counts("contexts", contexts)
    B = _counts("batches", batches)
    shape = numpy.broadcast_shapes(L.shape, B.shape)
    # One scalar step checks the phase and the new tokens, and says which kernels run.
    example = make_step(model, phase, int(L.min()), int(B.flat[0]), new_tokens)

    def seconds(length: NDArray[numpy.float64], batch: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        whole = new_tokens is None and not example.decoding
        S = length if whole else numpy.float64(example.S)
        step = Step(B=batch, S=S, P=length - S, phase=example.phase, bidirectional=example.bidirectional)
        return numpy.broadcast_to(
            total_seconds(model.kernels(step, precision), device, calibration),
            numpy.broadcast_shapes(length.shape, batch.shape),
        )

    if L.shape == B.shape and L.ndim == 1:
        parts = [seconds(L[i : i + BLOCK], B[i : i + BLOCK]) for i in range(0, len(L), BLOCK)]
        return numpy.concatenate(parts)
    if L.ndim == 2 and L.shape[1] == 1:
        rows = max(1, BLOCK // max(1, shape[-1]))
        return numpy.concatenate([seconds(L[i : i + rows], B) for i in range(0, shape[0], rows)])
    return numpy.array(seconds(L, B))


def _counts(name: str, values: Any) -> NDArray[numpy.float64]:
    array = numpy.asarray(values, dtype=numpy.float64)
    if array.size == 0:
        raise BadInput(f"{name}: empty")
    good = (array >= 1) & (array <= MAX_CONTEXT) & (array == numpy.floor(array))
    if not good.all():
        raise BadInput(f"{name}: {array[~good].flat[0]!r} is not a whole number from 1 to {MAX_CONTEXT}")
    return array
