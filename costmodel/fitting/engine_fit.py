"""Engine constants from measured serving runs: bounded least squares on what replays say of each run.

Around a starting point, TTFT and TPOT of a run are nearly linear in the seconds that the host adds. A replay at that
point and one for each direction give a `Response`; the fit then needs no further replay. Constants of a library on a
device are a shared value plus a deviation of the library, one of the device, and one of both, each of which is drawn
to zero, so that a library or device with few runs borrows from the others. What no accelerator takes part in has no
deviation of a device.

Minimised is Σ ρ(ln(t̂/t)/σ) + Σ (deviation/s)², with the pseudo-Huber loss ρ of `least_squares`: a run that was
disturbed counts by its absolute error.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]

SIGMA = (0.35, 0.1)
"""Usual size of ln(measured/predicted) of TTFT and TPOT where a run was not disturbed."""

SHARED, LIBRARY, DEVICE, BOTH = 1.0, 0.7, 1.0, 1.0
"""How far the shared value, and deviations of a library, a device, and both, may go, in usual deviations."""

MOST_RUNS = 30
"""Runs of one model on one device and library that count fully; of more, each counts less."""

SMALLEST = 0.2
"""Share of the starting point's prediction below which no straight line is believed."""


class Response(NamedTuple):
    """What replays say of a run.

    base: TTFT and TPOT at the starting constants. slope: their change per second of each constant, [2, constants].
    measured: NaN where it was not.
    """

    library: str
    hardware: str
    model: str
    base: Floats
    slope: Floats
    measured: tuple[float, float]


class Bounds(NamedTuple):
    """Priors, usual deviations and bounds of the constants; start: where slopes were taken; of_device: 1 for those that
    may differ between devices, else 0; of_library: share of what is usual by which libraries may differ."""

    names: tuple[str, ...]
    prior: Callable[[str], Floats]
    deviation: Floats
    low: Floats
    high: Floats
    start: Callable[[str], Floats]
    of_device: Floats
    of_library: float = 1.0


class Fitted(NamedTuple):
    """Constants by library and device; a device or library that no run came from takes what is shared."""

    bounds: Bounds
    values: Mapping[tuple[str, ...], Floats]

    def constants(self, library: str, hardware: str = "") -> Floats:
        """The constants of a library on a device."""
        found = self.bounds.prior(library).copy()
        for key, scale in _keys(library, hardware, self.bounds):
            if key in self.values:
                found += scale * self.values[key] * self.bounds.deviation
        return numpy.clip(found, self.bounds.low, self.bounds.high)


def _keys(library: str, hardware: str, bounds: Bounds) -> list[tuple[tuple[str, ...], Floats]]:
    everything = numpy.ones_like(bounds.of_device)
    return [
        (("shared",), SHARED * everything),
        (("library", library), LIBRARY * bounds.of_library * everything),
        (("device", hardware), DEVICE * bounds.of_device),
        (("both", library, hardware), BOTH * bounds.of_library * bounds.of_device),
    ]


def predicted(response: Response, constants: Floats, start: Floats) -> Floats:
    """TTFT and TPOT of a run with these constants, by the straight line through its replays."""
    seconds: Floats = numpy.maximum(response.base + response.slope @ (constants - start), SMALLEST * response.base)
    return seconds


def _robust(gaps: Floats) -> Floats:
    """Residuals whose squares are the pseudo-Huber loss of these."""
    found: Floats = numpy.sign(gaps) * numpy.sqrt(2.0 * (numpy.sqrt(1.0 + gaps**2) - 1.0))
    return found


def fit_constants(responses: Sequence[Response], bounds: Bounds) -> Fitted:
    """The constants that explain the runs best."""
    from scipy.optimize import least_squares

    pairs = [(one.library, one.hardware) for one in responses]
    keys = sorted({key for pair in pairs for key, _ in _keys(*pair, bounds)})
    place = {key: index for index, key in enumerate(keys)}
    counts: dict[tuple[str, str, str], int] = {}
    for one in responses:
        group = one.library, one.hardware, one.model
        counts[group] = counts.get(group, 0) + 1
    weight = numpy.array(
        [min(1.0, MOST_RUNS / counts[one.library, one.hardware, one.model]) ** 0.5 for one in responses]
    )
    mix = numpy.zeros((len(responses), len(keys), len(bounds.names)))
    for row, pair in enumerate(pairs):
        for key, scale in _keys(*pair, bounds):
            mix[row, place[key]] = scale
    base = numpy.array([one.base for one in responses])
    slope = numpy.array([one.slope for one in responses])
    logs = numpy.log(numpy.array([one.measured for one in responses]))
    prior = numpy.array([bounds.prior(library) for library, _ in pairs])
    start = numpy.array([bounds.start(library) for library, _ in pairs])
    size = len(bounds.names)

    unknown = numpy.isnan(logs)
    scale = weight[:, None] / numpy.array(SIGMA)
    least = SMALLEST * base

    def parts(flat: Floats) -> tuple[Floats, Floats]:
        """Each run's ln(predicted/measured) in units of what is usual, and its change with each constant."""
        wanted = prior + numpy.einsum("rqk,qk->rk", mix, flat.reshape(len(keys), size)) * bounds.deviation
        constants = numpy.clip(wanted, bounds.low, bounds.high)
        seconds = base + numpy.einsum("rmk,rk->rm", slope, constants - start)
        held = numpy.maximum(seconds, least)
        gaps = numpy.where(unknown, 0.0, (numpy.log(held) - logs) * scale)
        free = ((wanted > bounds.low) & (wanted < bounds.high))[:, None, :]
        change = slope / held[:, :, None] * free * (scale * (seconds > least) * ~unknown)[:, :, None]
        return gaps, change

    def residuals(flat: Floats) -> Floats:
        gaps = parts(flat)[0].ravel()
        return numpy.concatenate([_robust(gaps), flat])

    def jacobian(flat: Floats) -> Floats:
        gaps, change = parts(flat)
        root = numpy.sqrt(1.0 + gaps**2)
        found = _robust(gaps)
        # d/dg of ±√(2(√(1 + g²) − 1)) = g/(√(1 + g²)·|ρ|), which is 1 at 0.
        tangent = numpy.where(numpy.abs(gaps) < 1e-6, 1.0, gaps / (root * numpy.where(found == 0, 1.0, found)))
        by_key = numpy.einsum("rmk,rqk,k->rmqk", change * tangent[:, :, None], mix, bounds.deviation)
        return numpy.concatenate([by_key.reshape(-1, len(keys) * size), numpy.eye(len(keys) * size)])

    found = least_squares(residuals, numpy.zeros(len(keys) * size), jac=jacobian, max_nfev=100)
    table = found.x.reshape(len(keys), size)
    return Fitted(bounds, {key: table[index] for key, index in place.items()})
