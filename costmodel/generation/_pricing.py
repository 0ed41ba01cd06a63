"""Sums over the passes of a method: exact FLOPs, and seconds and bytes from a few priced passes.

A million decode steps are not a million predictions. FLOPs are summed exactly: the one-token passes of
autoregression telescope into one step of many tokens, other progressions are polynomials in the place.
Seconds and bytes of a progression of up to 64 places are summed place by place; of a longer one, 33 places
are priced: 11 panels, narrow at the start where launch limits and splits still change, of 3 places each. The
weights of a panel's places make the sum exact for every cost that is quadratic in the place, so bytes are exact
where they are polynomial, and seconds (smooth but for tile and wave steps) come within 0.5 % of the sum.
"""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from costmodel.algebra import Quantity
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.energy import energy_joules
from costmodel.fit import BASES
from costmodel.generation import Repeated
from costmodel.hardware import Hardware
from costmodel.kernels.attention import DIFFUSION
from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.elementwise import FORM
from costmodel.layers.embedding import head_tokens
from costmodel.step import Precision, Step
from costmodel.timing import time_step

FEW = 64
"""Places that are priced one by one."""

PANELS = 11
GROWTH = 1.5
"""Panel j of n ends at (j/n)^GROWTH of the progression."""

PROBES = (0.07, 0.23, 0.41, 0.61, 0.83)
"""Where a polynomial is checked, as shares of its range."""

MOST_EVALUATIONS = 2000
"""Work on a progression that is no polynomial in pieces (a staircase) stops after this many places."""

FP64_SOFTMAX_BYTES = 2 + 8 + 8 + 8
"""Per logit: bf16 to fp64, and a softmax in fp64."""

FP64_GUMBEL_BYTES = (2 + 8) + 8 + 16 + 16 + 16 + 16 + 24 + 8
"""Per logit, a PyTorch kernel each: to fp64, noise, its log, negation, power, exp of the logits, quotient, argmax."""


class Model(NamedTuple):
    """A model as it is priced. scale multiplies all its costs (a draft given as a share of the model)."""

    architecture: Architecture
    precision: Precision
    fp64_bytes: int = 0
    scale: float = 1.0

    def kernels(self, step: Step) -> list[Kernel]:
        """The kernels of a step, the fp64 sampler of a denoising one included."""
        run = self.architecture.kernels(step, self.precision)
        if self.fp64_bytes and step.bidirectional:
            run.append(fp64_sampling(head_tokens(step) * self.architecture.V, self.fp64_bytes))
        return run


class Cost(NamedTuple):
    """Seconds (expected and interval), joules and ideal HBM bytes of passes; seconds by bound and by basis."""

    time_s: float
    low_s: float
    high_s: float
    hbm_bytes: float
    energy_j: float | None
    by_bound: Mapping[str, float]
    by_basis: Mapping[str, float]

    @property
    def bound(self) -> str:
        """What most of the time is bound by."""
        return max(self.by_bound, key=lambda name: self.by_bound[name])

    @property
    def basis(self) -> str:
        """The weakest basis of what makes up 10 % or more of the time."""
        return max((name for name, part in self.by_basis.items() if part >= 0.1 * self.time_s), key=BASES.index)


def fp64_sampling(logits: Quantity, bytes_per_logit: int) -> Kernel:
    """What LLaDA's reference sampler moves beyond one reading of the logits: passes over fp64 copies of them.

    arXiv:2409.02908 wants the Gumbel noise in fp64. It counts as executed work only: a fused sampler would
    need none of it. Its fp64 arithmetic is not priced; on devices with little of it, this is a lower bound.
    """
    written = logits * (bytes_per_logit // 2)
    work = Work(read=logits * bytes_per_logit - written, written=written)
    return Kernel(
        name="fp64 sampling", form=FORM, ideal=Work(), executed=work, group="head", implementation="PyTorch eager"
    )


def ideal_flops(kernels: Iterable[Kernel]) -> Quantity:
    """FLOPs of the ideal work of all launches."""
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)


def flops_per_pair(model: Model) -> Quantity:
    """FLOPs of one (query, key) pair in all layers of a sequence that tell bidirectional from causal.

    Two tokens make four pairs bidirectionally and three causally.
    """
    pairs = []
    for bidirectional in (True, False):
        kernels = model.architecture.kernels(Step(B=1, S=2, P=0, bidirectional=bidirectional), model.precision)
        pairs.append(ideal_flops(kernel for kernel in kernels if kernel.group != "head"))
    return pairs[0] - pairs[1]


def flops(model: Model, run: Repeated) -> Fraction:
    """Exact FLOPs of a progression of passes."""

    def at(step: Step) -> Fraction:
        return Fraction(ideal_flops(model.kernels(step)))

    if run.positions > FEW and _telescopes(run, at):
        total = at(run.step._replace(S=run.positions * run.step.S))
    else:
        # Expected positions that are no whole numbers carry the rounding of floats.
        tolerance = 1e-12 if isinstance(run.advance, float) else 0.0
        total = sum_exactly(lambda i: at(run.at(i)), int(run.positions), tolerance)
    extra = run.extra_pairs * run.positions * run.step.B
    if extra:
        total += Fraction(extra) * Fraction(flops_per_pair(model))
    return total * int(run.count) * Fraction(model.scale)


def _telescopes(run: Repeated, at: Callable[[Step], Fraction]) -> bool:
    """Whether the steps follow one another without a gap and cost what one step of all their tokens costs."""
    if run.step.bidirectional or run.shrink or run.advance != run.step.S or run.step.phase != "decode":
        return False
    ends = (0, run.positions - 2)
    return all(at(run.at(i)._replace(S=2 * run.step.S)) == at(run.at(i)) + at(run.at(i + 1)) for i in ends)


def sum_exactly(f: Callable[[int], Fraction], n: int, tolerance: float = 0.0) -> Fraction:
    """f(0) + f(1) + … + f(n − 1) for an f that is a polynomial of degree 2 at most in a few pieces.

    A parabola through both ends and the middle that also meets the probes is summed in closed form;
    one that does not is cut in half. A staircase, which no cut makes a parabola, is cut until
    MOST_EVALUATIONS places are known, and the remaining pieces are summed by their parabolas.

    >>> int(sum_exactly(lambda i: Fraction(max(i, 700) ** 2), 1000)) == sum(max(i, 700) ** 2 for i in range(1000))
    True
    """
    known: dict[int, Fraction] = {}

    def value(i: int) -> Fraction:
        if i not in known:
            known[i] = f(i)
        return known[i]

    total, pieces = Fraction(0), [(0, n)]
    while pieces:
        start, end = pieces.pop(0)
        length = end - start
        if length <= 8:
            total += sum(value(i) for i in range(start, end))
            continue
        places = (0, length // 2, length - 1)
        values = [value(start + x) for x in places]
        probes = [int(length * share) for share in PROBES]
        fits = all(_meets(_parabola(places, values, x), value(start + x), tolerance) for x in probes)
        if fits or len(known) > MOST_EVALUATIONS:
            total += sum(w * v for w, v in zip(weights(places, length), values, strict=True))
        else:
            pieces += [(start, start + length // 2), (start + length // 2, end)]
    return total


def _meets(a: Fraction, b: Fraction, tolerance: float) -> bool:
    return a == b or abs(float(a - b)) <= tolerance * abs(float(b))


def _parabola(places: tuple[int, int, int], values: list[Fraction], x: int) -> Fraction:
    """The parabola through three points, at x (Lagrange)."""
    total = Fraction(0)
    for j, value in enumerate(values):
        k, m = (place for other, place in enumerate(places) if other != j)
        total += value * Fraction((x - k) * (x - m), (places[j] - k) * (places[j] - m))
    return total


def weights(places: tuple[int, int, int], n: int) -> list[Fraction]:
    """Weights with which the values at three places give the sum over 0 … n − 1 of any parabola.

    >>> [int(w) for w in weights((0, 1, 2), 3)]
    [1, 1, 1]
    """
    first, second = Fraction(n * (n - 1), 2), Fraction(n * (n - 1) * (2 * n - 1), 6)
    found = []
    for j, x in enumerate(places):
        k, m = (place for other, place in enumerate(places) if other != j)
        found.append((second - (k + m) * first + k * m * n) / ((x - k) * (x - m)))
    return found


def priced_places(n: int) -> list[tuple[int, float]]:
    """Places 0 … n − 1 that are priced, with their weights, which add up to n.

    The three places of a panel are near those of Gauss and Legendre, symmetric in it.
    """
    if n <= FEW:
        return [(i, 1.0) for i in range(n)]
    chosen: list[tuple[int, float]] = []
    start = 0
    for panel in range(1, PANELS + 1):
        end = n if panel == PANELS else max(int(n * (panel / PANELS) ** GROWTH), start + 3)
        length = end - start
        outer = max(round((length - 1) / 2 - length * 0.15**0.5), 0)  # √(3/5)/2 of the length from the centre
        places = (outer, length // 2, length - 1 - outer)
        chosen += [(start + x, float(w)) for x, w in zip(places, weights(places, length), strict=True)]
        start = end
    return chosen


def price(model: Model, run: Repeated, hardware: Hardware, calibration: Calibration, known: dict[object, Cost]) -> Cost:
    """A progression of passes. known keeps the steps that were priced before."""
    parts = []
    for place, weight in priced_places(int(run.positions)):
        step = run.at(place)
        key = (id(model.architecture), model.fp64_bytes, step)
        if key not in known:
            known[key] = _price_step(model, step, hardware, calibration)
        parts.append((weight * int(run.count) * model.scale, known[key]))
    return weighted(parts)


def with_split_keys(kernel: Kernel, hardware: Hardware, calibration: Calibration) -> Kernel:
    """A bidirectional attention kernel with its keys split over the device, where that is the faster one.

    A block of few queries over a long cache leaves most of the device idle unless its keys are split, which
    engines do when the query tiles fill less than 0.8 of it (Dao-AILab/flash-attention, hopper/heuristics.h).
    """
    if kernel.form is not DIFFUSION or kernel.grid is None:
        return kernel
    if kernel.grid.blocks >= 0.8 * hardware.compute.units:
        return kernel
    split = decode_attention(kernel.name, kernel.shape)._replace(group=kernel.group, count=kernel.count)
    one, other = (entry.form.terms(entry, hardware, calibration.fit(entry).values).total() for entry in (kernel, split))
    return kernel if one <= other else split


def _price_step(model: Model, step: Step, hardware: Hardware, calibration: Calibration) -> Cost:
    kernels = [with_split_keys(kernel, hardware, calibration) for kernel in model.kernels(step)]
    time = time_step(kernels, hardware, calibration)
    return Cost(
        time_s=time.time_s,
        low_s=time.low_s,
        high_s=time.high_s,
        hbm_bytes=float(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in kernels)),
        energy_j=energy_joules(hardware, time.time_s, time.roofline_s),
        by_bound={time.bound: time.time_s},
        by_basis={time.basis: time.time_s},
    )


def weighted(parts: Iterable[tuple[float, Cost]]) -> Cost:
    """Passes together. Their errors are the same parameters' errors, so both ends of the interval add up."""
    parts = list(parts)
    by_bound: dict[str, float] = {}
    by_basis: dict[str, float] = {}
    for weight, cost in parts:
        for total, part in ((by_bound, cost.by_bound), (by_basis, cost.by_basis)):
            for name, seconds in part.items():
                total[name] = total.get(name, 0.0) + weight * seconds
    joules = [(weight, cost.energy_j) for weight, cost in parts]
    return Cost(
        time_s=sum(weight * cost.time_s for weight, cost in parts),
        low_s=sum(weight * cost.low_s for weight, cost in parts),
        high_s=sum(weight * cost.high_s for weight, cost in parts),
        hbm_bytes=sum(weight * cost.hbm_bytes for weight, cost in parts),
        energy_j=None if any(value is None for _, value in joules) else sum(w * value for w, value in joules if value),
        by_bound=by_bound,
        by_basis=by_basis,
    )
