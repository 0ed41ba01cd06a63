"""Seconds of one group of kernels (a block, the embedding, the head) over the grid of a search.

A layout is a sum of groups, and each depends on few of its degrees: attention on tp and cp, routed experts on ep too,
nothing on pp. So a search prices every group once for all layouts that divide it alike, and every kernel once for all
groups in which the same work turns up.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy

from costmodel.algebra import Quantity
from costmodel.calibration import Calibration, Fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.planning.deployment import quantised_products
from costmodel.planning.engine_model import Array
from costmodel.planning.kernel_kinds import KernelSource, Key, Kinds, named
from costmodel.planning.workload import Workload
from costmodel.step import Step
from costmodel.timing import roofline

POINTS = 64
"""Batch sizes of an engine, from 1 to the most that it can hold, in equal ratios."""


class Grid(NamedTuple):
    """Batch sizes n (rows) by chunk budgets (columns): tokens that a budget leaves beside the n − 1 others, iterations
    that a prompt takes, tokens of its chunk, and how many short prompts share an iteration. new_tokens: of a decoding
    sequence in an iteration."""

    n: Array
    left: Array
    chunks: Array
    size: Array
    together: Array
    new_tokens: float


def grid(work: Workload, budgets: Sequence[int], most: int, draft_tokens: int, pace: float) -> Grid:
    """The grid up to so many sequences. pace: tokens that a sequence gains in an iteration."""
    n = numpy.unique(numpy.round(numpy.geomspace(1, max(most, 1), POINTS)))
    S, budget = float(draft_tokens + 1), numpy.array(budgets, dtype=numpy.float64)
    left = budget - (n - 1.0)[:, None] * S
    chunks = numpy.ceil(work.computed / numpy.clip(left, 1.0, work.computed))
    size = work.computed / chunks
    # Short prompts share iterations: as many as arrive in one while n sequences are kept, if they fit.
    together = numpy.clip(n[:, None] * pace / max(work.output - 1.0, 1.0), 1.0, numpy.maximum(left / size, 1.0))
    return Grid(n, left, chunks, size, numpy.where(chunks > 1, 1.0, together), S)


class Prices:
    """Seconds of kernels on one device. Kernels of the same work cost the same, so each is priced once."""

    def __init__(self, hardware: Hardware, calibration: Calibration) -> None:
        self.hardware, self.calibration = hardware, calibration
        self.known: dict[tuple[Any, ...], Quantity] = {}
        self.fits: dict[tuple[str, str, str], Fit] = {}

    def seconds(self, run: Iterable[Kernel]) -> Quantity:
        """Expected seconds of all kernels together, element by element where they are of arrays."""
        total: Quantity = 0.0
        for kernel in run:
            total = total + self._launch(kernel) * kernel.exposed
        return total

    def _launch(self, kernel: Kernel) -> Quantity:
        key = (
            kernel.family,
            kernel.instance,
            kernel.module,
            kernel.launches,
            type(kernel.shape),
            _content(kernel.shape),
            _content(kernel.grid),
            _content(kernel.executed),
            None if kernel.ideal is kernel.executed else _content(kernel.ideal),
        )
        if key not in self.known:
            fit = self.fits.get(key[:3])
            if fit is None:
                fit = self.fits[key[:3]] = self.calibration.fit(kernel)
            self.known[key] = kernel.form.terms(kernel.sharing(fit.occupancy), self.hardware, fit.values).total()
        return self.known[key]


def _content(value: Any) -> Any:
    """Something that is equal for equal values, arrays included."""
    if isinstance(value, numpy.ndarray):
        return value.shape, blake2b(value.tobytes(), digest_size=16).digest()
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    if isinstance(value, Mapping):
        return tuple((key, _content(entry)) for key, entry in value.items())
    return value


class GroupTimes(NamedTuple):
    """Seconds of a group's kernels over a grid.

    shared: token-wise kernels at the tokens, and row-wise ones at the sampled positions, of three iterations one after
    another: n sequences decode, n − 1 do, and n − 1 beside a chunk. own, prompts: other kernels of n decoding sequences
    and of chunks. first, later: at the datasheet's peaks, of one decoding sequence and of its prompt's chunk by budget.
    sample: all kernels where `SAMPLE` sequences decode. products: those with quantised activations in an iteration.
    """

    shared: Array
    own: Array
    prompts: Array
    first: float
    later: Array
    sample: float
    products: int

    def plus(self, other: "GroupTimes") -> "GroupTimes":
        """Both together."""
        return GroupTimes(
            self.shared + other.shared,
            self.own + other.own,
            self.prompts + other.prompts,
            self.first + other.first,
            self.later + other.later,
            self.sample + other.sample,
            self.products + other.products,
        )


def group_times(kernels: KernelSource, kind: Kinds, at: Grid, work: Workload, prices: Prices) -> GroupTimes:
    """The times of a group. kind: which of its kernels are token-wise, row-wise, neither."""
    N, C = at.size.shape
    S, others = at.new_tokens, at.n - 1.0
    beside, least = others[:, None] * S, numpy.maximum(others, 1.0)
    tokens, rows = (
        numpy.concatenate([at.n * S, least * S, (beside + chunk).ravel(), numpy.array([SAMPLE])])
        for chunk in (at.together * at.size, at.together)
    )
    run = kernels(decode_step(tokens, 1.0, 0.0))
    products = quantised_products(run)
    found = named(run)
    shared, peak = _of_kind(found, kind, "token", prices, len(tokens))
    if "row" in kind.values():
        more, further = _of_kind(named(kernels(decode_step(rows, 1.0, 0.0))), kind, "row", prices, len(tokens))
        shared, peak = shared + more, peak + further
    own, prompts = numpy.zeros(N + 1), numpy.zeros((N, C))
    # One sequence decodes at first; one prompt alone is the first row of those beside others.
    first, later = peak[0], peak[2 * N : 2 * N + C]
    if not all(key in kind for key in found):
        step = decode_step(
            numpy.append(at.n, SAMPLE), numpy.append(numpy.full(N, S), 1.0),
            numpy.append(numpy.full(N, max(work.context - S, 0.0)), max(int(work.context) - 1, 0)),
        )  # fmt: skip
        own, of_own = _of_kind(named(kernels(step)), kind, "", prices, N + 1)
        chunk = Step(B=at.together, S=at.size, P=numpy.maximum(work.position - at.size / 2, 0.0), phase="prefill")
        prompts, of_prompts = _of_kind(named(kernels(chunk)), kind, "", prices, N, C)
        first, later = first + of_own[0], later + of_prompts[0]
    return GroupTimes(shared[:-1], own[:-1], prompts, float(first), later, float(shared[-1] + own[-1]), products)


SAMPLE = 32.0
"""Sequences that decode where the groups of a model are compared with one another."""


def _of_kind(run: Mapping[Key, Kernel], kind: Kinds, wanted: str, prices: Prices, *shape: int) -> tuple[Array, Array]:
    """Expected seconds of the kernels of one kind, and those at the datasheet's peaks."""
    chosen = [kernel for key, kernel in run.items() if kind.get(key, "") == wanted]
    peak = sum(roofline(kernel, prices.hardware) * kernel.exposed for kernel in chosen)
    expected, least = (
        numpy.array(numpy.broadcast_to(numpy.asarray(total, dtype=numpy.float64), shape))
        for total in (prices.seconds(chosen), peak)
    )
    return expected, least


def decode_step(B: Any, S: Any, P: Any) -> Step:
    """A step of arrays."""
    B, S, P = (numpy.asarray(value, dtype=numpy.float64) for value in (B, S, P))
    return Step(B=B, S=S, P=P, phase="decode")
