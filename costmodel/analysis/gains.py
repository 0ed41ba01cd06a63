"""A model on a device: what the time of a step is made of, what a sequence keeps, and what filling memory gains."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from costmodel.analysis.crossover import step_at
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.fit import BASES, Fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.prediction import MAX_BATCH, make_step
from costmodel.step import Phase, Precision
from costmodel.timing import KernelTime, expected

USABLE = 0.9
"""Share of the memory that weights and caches may fill (vLLM's default, gpu_memory_utilization)."""

LIMITLESS = 10**9
"""How many times larger a device is taken to be where only what is serial should be left."""

PROJECTIONS = ("gemm", "grouped-gemm", "moe")
"""Families that do the same work with any mixer."""


def kernels_at(model: Architecture, phase: Phase, precision: Precision, batch: int) -> Callable[[int], list[Kernel]]:
    """The kernels of the step at any context."""
    return lambda L: model.kernels(step_at(model, phase, L, batch), precision)


class Priced(NamedTuple):
    """A model on a device: its step at any context and batch in seconds."""

    model: Architecture
    phase: Phase
    precision: Precision
    hardware: Hardware
    calibration: Calibration

    def times(self, L: int, batch: int) -> list[KernelTime]:
        """Every kernel of the step with its expected time."""
        step = make_step(self.model, self.phase, L, batch)
        return expected(self.model.kernels(step, self.precision), self.hardware, self.calibration)

    def seconds(self, L: int, batch: int) -> float:
        """Expected seconds of the step."""
        return float(sum(entry.time_s for entry in self.times(L, batch)))

    def cache_bytes(self, L: int) -> float:
        """Bytes that a sequence of L tokens keeps."""
        return 0.0 if self.model.bidirectional else float(self.model.cache_bytes(L, self.precision))


def work_of(times: Sequence[KernelTime], work: str, quantity: str) -> float:
    """The sum over all launches of a quantity (flops, hbm_bytes) of the ideal or executed work."""
    return float(sum(getattr(getattr(entry.kernel, work), quantity) * entry.kernel.count for entry in times))


def endless(hardware: Hardware) -> Hardware:
    """The device with LIMITLESS times the units, FLOP/s and bandwidths, each unit being what it was."""
    compute, memory = hardware.compute, hardware.memory
    level = memory.l2
    return hardware._replace(
        compute=compute._replace(
            units=compute.units * LIMITLESS,
            tensor={dtype: peak * LIMITLESS for dtype, peak in compute.tensor.items()},
            vector=compute.vector * LIMITLESS,
        ),
        memory=memory._replace(
            hbm=memory.hbm._replace(bandwidth=memory.hbm.bandwidth * LIMITLESS),
            l2=level._replace(bandwidth=level.bandwidth * LIMITLESS if level.bandwidth else None),
        ),
    )


def serial_seconds(times: Sequence[KernelTime], hardware: Hardware, calibration: Calibration) -> float:
    """Seconds that no further units shorten: launches, and the longest chain of one thread block of each kernel.

    Work and traffic are left out rather than divided by a large number: what a fit knows of them need not scale.
    """
    kernels = [entry.kernel for entry in times]
    entries = expected(kernels, endless(hardware), calibration)
    return float(sum((entry.terms.chain + entry.terms.launch) * entry.kernel.exposed for entry in entries))


def of_mixing(entry: KernelTime, model: Architecture) -> bool:
    """Whether a kernel is a mixer's own, its projections left out."""
    return entry.kernel.group in model.mixers and entry.kernel.family not in PROJECTIONS


CHAIN_STEP = "step_s"
"""The parameter that is one step of a chain."""
NEAR_BOUND = 0.1
"""A fit that ends this near to a bound of a parameter, as a share of it, was stopped there."""


def chain_bound(times: Sequence[KernelTime], model: Architecture) -> bool:
    """Whether the mixers' kernels, their projections left out, spend most of their time bound by a chain.

    Where the fit of a chain's step was stopped by the parameter's bound, the chain stands for time of something else
    (products of chunks that do not wait for each other grow with them alike), and is not believed.
    """
    own = [entry for entry in times if of_mixing(entry, model)]
    whole = sum(float(entry.time_s) for entry in own)
    return sum(float(entry.time_s) for entry in own if entry.bound == "chain" and not stopped(entry.fit)) > whole / 2


def stopped(fit: Fit) -> bool:
    """Whether a fit of a chain's step ended at one of its bounds."""
    if fit.flops is None or CHAIN_STEP not in fit.values:
        return False
    low, high = fit.bounds[CHAIN_STEP]
    return not low * (1 + NEAR_BOUND) < fit.values[CHAIN_STEP] < high * (1 - NEAR_BOUND)


class Kept(NamedTuple):
    """Bytes that a sequence keeps without growing further: states, and windows of tokens."""

    states: float
    windows: float

    @property
    def whole(self) -> float:
        """Both together."""
        return self.states + self.windows


def kept_bytes(model: Architecture, precision: Precision, L: int) -> Kept:
    """What a sequence of L tokens keeps that does not grow."""
    states = windows = 0.0
    for name, count in model.counts()[0].items():
        block = model.mixers[name]
        cache = block.module.cache(block.dims, precision)
        states += float(count * cache.fixed)
        if cache.limit is not None:
            windows += float(count * cache.per_token * min(L, cache.limit))
    return Kept(states, windows)


def weakest_basis(times: Sequence[KernelTime]) -> str:
    """The weakest basis of what makes up a tenth of the time."""
    whole = sum(float(entry.time_s) for entry in times)
    by_basis: dict[str, float] = {}
    for entry in times:
        by_basis[entry.basis] = by_basis.get(entry.basis, 0.0) + float(entry.time_s)
    return max((basis for basis, part in by_basis.items() if part >= 0.1 * whole), key=BASES.index)


class Room(NamedTuple):
    """What fits in memory, and what it gains.

    devices: how many share their memory; batch, batch_full: the sequences that fit beside the weights, with the
    mechanism and with full attention (None: nothing of a sequence is kept); speedup: the gain in tokens per second
    when either fills its memory, None without such a limit.
    """

    devices: int
    batch: int | None
    batch_full: int | None
    speedup: float | None

    @property
    def more(self) -> float:
        """How many times more sequences fit."""
        return self.batch / self.batch_full if self.batch and self.batch_full else 1.0


def room(mine: Priced, theirs: Priced, L: int, layers: int = 1) -> Room:
    """What fits of L tokens each, and what a batch that fills memory gains over one with full attention's caches.

    Both get the memory of the same number of devices, the smallest power of two that holds the weights and one
    sequence; a lone layer gets one of `layers` equal shares. The work of a step is taken to divide evenly over the
    devices, without communication, so that their number leaves the ratio as it is.
    """
    capacity = USABLE * mine.hardware.memory.hbm.capacity / layers
    weights = [float(priced.model.weight_bytes(priced.precision)) for priced in (mine, theirs)]
    caches = [priced.cache_bytes(L) for priced in (mine, theirs)]
    devices = 1
    while devices * capacity < max(weight + cache for weight, cache in zip(weights, caches, strict=True)):
        devices *= 2
    batches = [
        min(int((devices * capacity - weight) / cache), MAX_BATCH) if cache else None
        for weight, cache in zip(weights, caches, strict=True)
    ]
    rates = [
        batch / priced.seconds(L, batch) if batch else None
        for batch, priced in zip(batches, (mine, theirs), strict=True)
    ]
    gain = rates[0] / rates[1] if rates[0] and rates[1] else None
    return Room(devices, batches[0], batches[1], gain)
