"""The fit: bounded physical parameters with priors, to the logarithms of measured times.

Minimised is Σ ρ((ln t̂ᵢ − ln tᵢ)/σ) + Σ ((ln θⱼ − ln θ⁰ⱼ)/sⱼ)², the posterior mode under log-normal priors, with the
pseudo-Huber loss ρ (large residuals count by their absolute value) and every θ inside its bounds. σ is what the
residuals show. As errors of a form are not independent from point to point, points beyond `MOST_POINTS` count against
the priors only where there are more than twice as many, and then as half.

Source of the loss: Charbonnier et al., "Deterministic edge-preserving regularization", IEEE TIP 6(2), 1997.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.fit import Fit, prior_fit
from costmodel.fitting.length_weights import ALIKE, LengthWeights, counted
from costmodel.fitting.series import Floats, Indices, Series, spread_out
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter

Key = tuple[str, str, str]
"""Family, instance, module: what one set of parameters is for."""

Theta = Mapping[Key, Mapping[str, float]]
"""The parameters of every block."""

HOST = Parameter("host_s", 2e-4, 1.0, 1e-6, 1e-2, "s", "host time of an eager benchmark's launches")
HOST_OVERLAP = 6.0
"""Exponent by which host and device time of an eager run overlap: whichever is slower is seen."""

MOST_POINTS = 400
LEAST_SHARE = 0.5
"""Points that count against the priors, and the share of them that counts in any case."""
FIRST_SPREAD = 0.1
"""The spread that the first round of a fit takes the residuals to have."""
SMALLEST_SPREAD = 0.01
"""A spread below the repeatability of the measurements themselves is not believed."""
MOST_STEPS = 40
STEP = 1e-3
"""Change of a logarithm for a finite difference."""


class Block(NamedTuple):
    """One set of parameters to be fitted: where it starts, how firm that is, and its bounds."""

    key: Key
    parameters: tuple[Parameter, ...]
    start: Mapping[str, float]
    spread: Mapping[str, float]
    others: tuple[Mapping[str, float], ...] = ()


def block(
    form: Form, key: Key, start: Mapping[str, float] | None = None, firmness: float = 1.0, library: str = ""
) -> Block:
    """A block that starts at the form's priors, or at given values with the priors' spreads times `firmness`.

    A fit also tries the form's other starts, of which `library` leaves out those that its published code decides.
    """
    return Block(
        key,
        form.parameters,
        {**form.priors(), **(start or {})},
        {parameter.name: parameter.spread * firmness for parameter in form.parameters},
        form.starts_of(library),
    )


class Points(NamedTuple):
    """Points of a series for a fit or a score."""

    series: Series
    rows: Indices

    @property
    def seconds(self) -> Floats:
        """Their measured times."""
        return self.series.seconds[self.rows]

    @property
    def tokens(self) -> Floats:
        """Their lengths."""
        return self.series.tokens[self.rows]


class Fitted(NamedTuple):
    """What a fit found: values and covariance of logarithms per block, and the spread of the residuals.

    sigma: the scale that the fit ended with. residuals: ln(measured/predicted) of the points, in order.
    effective: parameters that the data, not the priors, decided. objective: minus the logarithm of the posterior, by
    which fits that started from different priors compare. leverage: how much of each point's residual the point itself
    took away, from 0 to 1.
    """

    values: dict[Key, dict[str, float]]
    covariance: dict[Key, Floats]
    sigma: float
    residuals: Floats
    effective: float
    objective: float
    leverage: Floats


Lookup = Callable[[Kernel], Fit]
"""What is known of a kernel whose parameters are not being fitted."""


class Timer:
    """Times of fixed points as a function of the parameters of some blocks; all else is evaluated once."""

    def __init__(
        self, points: Sequence[Points], hardware: Hardware, blocks: Sequence[Block], lookup: Lookup, key: "KeyOf"
    ) -> None:
        self.hardware = hardware
        self.blocks = {block.key: block for block in blocks}
        self.length = sum(len(group.rows) for group in points)
        self.fixed = numpy.zeros(self.length)
        self.free: list[tuple[Indices, Kernel, Key]] = []
        self.hosts: list[tuple[Indices, Key]] = []
        self.last: tuple[Theta, list[Floats]] = {}, []
        before = 0
        for group in points:
            for part in group.series.parts(group.rows):
                rows = part.rows + before
                for kernel in part.kernels:
                    owned = key(group.series, kernel)
                    if owned in self.blocks:
                        self.free.append((rows, kernel, owned))
                    else:
                        values = lookup(kernel).values
                        self.fixed[rows] += self._seconds(kernel, values, len(rows))
            host = host_key(group.series)
            if host in self.blocks:
                self.hosts.append((numpy.arange(before, before + len(group.rows)), host))
            before += len(group.rows)

    def _seconds(self, kernel: Kernel, values: Mapping[str, Any], length: int) -> Floats:
        with numpy.errstate(all="ignore"):
            total = kernel.form.terms(kernel, self.hardware, values).total() * kernel.count
        return spread_out(total, length)

    def _each(self, theta: Theta) -> list[Floats]:
        """The seconds of every free kernel, kept for the last values: slopes are taken where the times were."""
        if self.last[0] != theta:
            self.last = theta, [self._seconds(kernel, theta[key], len(rows)) for rows, kernel, key in self.free]
        return self.last[1]

    def _on_device(self, theta: Theta) -> Floats:
        total = self.fixed.copy()
        for (rows, _, _), seconds in zip(self.free, self._each(theta), strict=True):
            total[rows] += seconds
        return total

    def seconds(self, theta: Theta) -> Floats:
        """Predicted seconds of every point."""
        total = self._on_device(theta)
        for rows, key in self.hosts:
            total[rows] = beside_host(total[rows], theta[key]["host_s"])
        return total

    def moved(self, theta: Theta, moves: Sequence[tuple[Key, str, float]]) -> Floats:
        """Predicted seconds of every point, a row for each parameter that is given another value.

        Of a block all parameters are moved in one call of the form, whose parameters are then columns.
        """
        here = self._on_device(theta)
        total = numpy.tile(here, (len(moves), 1))
        of_block: dict[Key, list[int]] = {}
        for index, (key, _, _) in enumerate(moves):
            of_block.setdefault(key, []).append(index)
        columns: dict[Key, dict[str, Any]] = {}
        for key, mine in of_block.items():
            columns[key] = dict(theta[key])
            for place, index in enumerate(mine):
                _, name, value = moves[index]
                columns[key][name] = numpy.full((len(mine), 1), theta[key][name])
                columns[key][name][place] = value
        for (rows, kernel, key), before in zip(self.free, self._each(theta), strict=True):
            if key in of_block:
                after = self._seconds(kernel, columns[key], len(rows))
                total[numpy.array(of_block[key])[:, None], rows] += after - before
        for rows, key in self.hosts:
            host = numpy.full((len(moves), 1), theta[key]["host_s"])
            for index in of_block.get(key, ()):
                host[index] = moves[index][2]
            total[:, rows] = beside_host(total[:, rows], host)
        return total


def beside_host(device: Floats, host: Any) -> Floats:
    """Seconds of an eager run: the device's beside the host's, of which the longer shows."""
    return numpy.asarray((device**HOST_OVERLAP + host**HOST_OVERLAP) ** (1.0 / HOST_OVERLAP), numpy.float64)


KeyOf = Callable[[Series, Kernel], Key]


def own_key(series: Series, kernel: Kernel) -> Key:
    """The block of a kernel: its instance, inside the measured module."""
    return (kernel.family, kernel.instance, series.module)


def pooled_key(series: Series, kernel: Kernel) -> Key:
    """The block that all instances of a family share."""
    return (kernel.family, "", series.module)


def host_key(series: Series) -> Key:
    """The block of the host time of an eager series; empty names for one that is not."""
    return ("host", series.library, series.kernel) if series.eager else ("", "", "")


def fit(
    points: Sequence[Points],
    hardware: Hardware,
    blocks: Sequence[Block],
    lookup: Lookup | None = None,
    key: KeyOf = own_key,
    rounds: int = 2,
    weights: LengthWeights = ALIKE,
) -> Fitted:
    """The parameters of some blocks that explain the points.

    lookup answers for kernels outside the blocks (default: their priors); key says which block a kernel belongs to;
    weights what points of different lengths count.
    """
    from scipy.optimize import least_squares

    timer = Timer(points, hardware, blocks, lookup or (lambda kernel: prior_fit(kernel.form)), key)
    measured = numpy.log(numpy.concatenate([group.seconds for group in points]))
    names = [(block.key, parameter) for block in blocks for parameter in block.parameters]
    start = numpy.log([block.start[parameter.name] for block in blocks for parameter in block.parameters])
    firmness = numpy.array([block.spread[parameter.name] for block in blocks for parameter in block.parameters])
    low = numpy.log([parameter.low for _, parameter in names])
    high = numpy.log([parameter.high for _, parameter in names])
    centre = numpy.clip(start, low, high)
    count = len(measured)
    tokens = numpy.concatenate([group.tokens for group in points])
    counting = min(count, max(MOST_POINTS, LEAST_SHARE * count))
    weight = numpy.sqrt(counting / count * counted(tokens, weights))
    free = numpy.flatnonzero(firmness > 0.0)  # what has no spread is a choice that a start makes

    def theta(logs: Floats) -> dict[Key, dict[str, float]]:
        values: dict[Key, dict[str, float]] = {block.key: {} for block in blocks}
        for (owner, parameter), log in zip(names, numpy.exp(logs), strict=True):
            values[owner][parameter.name] = float(log) if parameter.spread else float(round(log))
        return values

    def gap(logs: Floats) -> Floats:
        return numpy.log(timer.seconds(theta(logs))) - measured

    def slopes(logs: Floats) -> Floats:
        here = gap(logs)
        steps = numpy.where(logs + STEP <= high, STEP, -STEP)[free]
        moves = [
            (names[index][0], names[index][1].name, math.exp(logs[index] + step))
            for index, step in zip(free, steps, strict=True)
        ]
        moved = numpy.log(timer.moved(theta(logs), moves)) - measured
        return numpy.asarray((moved - here).T / steps, numpy.float64)

    def loss(squares: Floats) -> Floats:
        """Pseudo-Huber for the points, plain squares for the priors."""
        rho = numpy.stack([squares, numpy.ones_like(squares), numpy.zeros_like(squares)])
        # The weight is inside the residuals; the bend of the loss is where one point's gap equals sigma.
        z = squares[:count] / weight**2
        bent = numpy.sqrt(1.0 + z)
        rho[:, :count] = 2.0 * (bent - 1.0) * weight**2, 1.0 / bent, -0.5 / (bent**3 * weight**2)
        return rho

    def scaled(logs: Floats, sigma: float) -> Floats:
        return numpy.concatenate([gap(logs) * (weight / sigma), (logs - centre)[free] / firmness[free]])

    def solved(logs: Floats, sigma: float) -> Floats:
        def whole(x: Floats) -> Floats:
            every = logs.copy()
            every[free] = x
            return every

        found = least_squares(
            lambda x: scaled(whole(x), sigma),
            logs[free],
            jac=lambda x: numpy.vstack(
                [slopes(whole(x)) * (weight / sigma)[:, None], numpy.diag(1.0 / firmness[free])]
            ),
            bounds=(low[free] - 1e-12, high[free] + 1e-12),
            loss=loss,
            max_nfev=MOST_STEPS,
            xtol=1e-5,
            ftol=1e-5,
        )
        return whole(found.x)

    def cost(logs: Floats, sigma: float) -> float:
        return float(loss(scaled(logs, sigma) ** 2)[0].sum())

    def begins() -> list[Floats]:
        """Where the fit sets out from: the centre, and each of the blocks' other starts."""
        found = []
        for turn in range(-1, max(len(one.others) for one in blocks)):
            others = {one.key: one.others[turn] if 0 <= turn < len(one.others) else {} for one in blocks}
            given = [others[owner].get(parameter.name) for owner, parameter in names]
            logs = [middle if value is None else math.log(value) for middle, value in zip(centre, given, strict=True)]
            found.append(numpy.clip(logs, low + 1e-9, high - 1e-9))
        return found

    def settled(logs: Floats) -> tuple[float, Floats, float]:
        """What is found from one start: the objective, the logarithms of the parameters, and the spread."""
        sigma = FIRST_SPREAD
        for _ in range(rounds):
            logs = solved(logs, sigma)
            sigma = max(SMALLEST_SPREAD, float(1.4826 * numpy.median(numpy.abs(gap(logs)))))
        return counting * math.log(sigma) + 0.5 * cost(logs, sigma), logs, sigma

    objective, logs, sigma = min(map(settled, begins()), key=lambda found: found[0])
    jacobian = slopes(logs) * (weight / sigma)[:, None]
    information = jacobian.T @ jacobian
    inverse = numpy.linalg.inv(information + numpy.diag(firmness[free] ** -2.0))
    effective = float(numpy.trace(inverse @ information))
    leverage = numpy.clip(numpy.einsum("pi,ij,pj->p", jacobian, inverse, jacobian), 0.0, 1.0)
    posterior = numpy.zeros((len(names), len(names)))
    posterior[numpy.ix_(free, free)] = inverse
    covariance: dict[Key, Floats] = {}
    before = 0
    for one in blocks:
        size = len(one.parameters)
        covariance[one.key] = numpy.asarray(posterior[before : before + size, before : before + size], numpy.float64)
        before += size
    return Fitted(theta(numpy.clip(logs, low, high)), covariance, sigma, -gap(logs), effective, objective, leverage)
