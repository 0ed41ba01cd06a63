"""What a kernel is to every other room: its work, its grid, and the form that turns both into seconds.

Count first, price later: the mechanisms build lists of `Kernel`; time, memory and energy read the same list.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.algebra import Quantity, ceil, maximum, power, root

if TYPE_CHECKING:
    from costmodel.hardware import Hardware


class Work(NamedTuple):
    """What one launch computes and moves.

    tensor: FLOPs of the matrix engines by dtype (a multiply-add is 2); vector: fp32 FLOPs outside them;
    special: results of the special-function units (exp, tanh, …); read, written: HBM bytes that a cold
    cache cannot avoid; weights: the part of `read` that is parameters; l2: bytes that pass between L2 and
    the compute units; network: bytes that leave the device over its links.
    """

    tensor: Mapping[str, Quantity] = MappingProxyType({})
    vector: Quantity = 0
    special: Quantity = 0
    read: Quantity = 0
    written: Quantity = 0
    weights: Quantity = 0
    l2: Quantity = 0
    network: Quantity = 0

    @property
    def flops(self) -> Quantity:
        """FLOPs of matrix engines and vector lanes together."""
        return sum(self.tensor.values()) + self.vector

    @property
    def hbm_bytes(self) -> Quantity:
        """Bytes read from and written to HBM."""
        return self.read + self.written


class Grid(NamedTuple):
    """How a launch is spread: thread blocks, how many share a unit, and the longest serial chain in one.

    Kernels without one (`None`) spread evenly over the device and have no chain.
    chain_steps counts the steps that one thread block takes one after another (key blocks of an attention
    tile, chunks of a scan, tokens of a recurrence).
    """

    blocks: Quantity
    occupancy: Quantity = 1
    chain_steps: Quantity = 0


class Parameter(NamedTuple):
    """A physical parameter of a time form, with what is known of it before any measurement.

    prior is the expected value, spread the standard deviation of its logarithm, low and high its bounds. A spread of 0
    marks a choice between designs, which no fit moves; it takes the best of a form's `starts`. most: what a calibration
    may hold where this form is the narrower of two (0: high); here it counts as high.
    """

    name: str
    prior: float
    spread: float
    low: float
    high: float
    unit: str
    meaning: str
    most: float = 0.0


class Terms(NamedTuple):
    """Seconds that each limit would need alone; launch is added, the others overlap by a p-norm."""

    tensor: Quantity = 0.0
    vector: Quantity = 0.0
    special: Quantity = 0.0
    memory: Quantity = 0.0
    l2: Quantity = 0.0
    chain: Quantity = 0.0
    launch: Quantity = 0.0
    overlap: float = 4.0
    network: Quantity = 0.0

    def limits(self) -> dict[str, Quantity]:
        """The terms by the name of what they are bound by."""
        return {name: getattr(self, name) for name in BOUNDS}

    def total(self) -> Quantity:
        """Expected seconds: launch + (Σ tᵢᵖ)^(1/p) of the overlapping terms."""
        busy: Quantity = 0.0
        for term in (self.tensor, self.vector, self.special, self.memory, self.l2, self.chain, self.network):
            if not (type(term) is float and term == 0.0):
                busy = busy + power(term, self.overlap)
        return self.launch + root(busy, self.overlap)

    def serial(self) -> Quantity:
        """Seconds when nothing overlaps: the sum of all terms."""
        return sum(self.limits().values())


SHARED_BYTES_A_CLOCK = 128
"""Bytes that a unit's shared memory moves in a clock: 32 banks of 4. Source: CUDA C++ Programming Guide, compute
capability 8.x and 9.0."""

OVERLAPPING = ("tensor", "vector", "special", "memory", "l2", "chain", "network")
BOUNDS = (*OVERLAPPING, "launch")


class Form(NamedTuple):
    """A kernel family: its name, its parameters, and the function from a kernel to its time terms.

    backward gives the kernels that differentiate one forward kernel (training only).
    """

    family: str
    summary: str
    parameters: tuple[Parameter, ...]
    terms: Callable[["Kernel", "Hardware", Mapping[str, float]], Terms]
    backward: Callable[["Kernel"], tuple["Kernel", ...]]
    sources: tuple[str, ...] = ()
    model_spread: float = 0.25
    """Standard deviation of ln(measured/predicted) left when the parameters are right."""
    starts: tuple[Mapping[str, float], ...] = ()
    """Values besides the priors from which a fit tries, where kernels of different design share the form."""
    built: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    """Choices by library that its published code makes, and that no fit has to find."""
    like: "Form | None" = None
    """A family whose kernels are the same but for a mask: its fits stand in where this one was not measured."""
    by_mechanism: bool = False
    """Whether instances begin with a mechanism's name: then what one mechanism's kernels share is for no other."""
    design: Callable[[Mapping[str, float]], bool] | None = None
    """Whether measured parameters are those of a kernel built as one of a new mechanism would be (None: all are)."""
    clocked: bool = False
    """Whether the clocks between products, not a share of the engine's peak, carry over to other devices: so it is of
    kernels that a compiler schedules, not of those that hide all else behind an asynchronous engine."""
    choices_near: Callable[["Kernel", "Hardware", Mapping[str, float]], "Kernel"] | None = None
    """The kernel that chooses only between those of its library's designs that are not far from the best at these
    parameters: their errors do not reach the others, which then need not be priced for every direction of an error."""
    elsewhere: tuple[str, ...] = ()
    """Parameters that only other kernels of the family have, or that the form once had: the calibration of a relative,
    or one made before, may hold them all the same."""

    def priors(self) -> dict[str, float]:
        """The expected values of the parameters."""
        return {parameter.name: parameter.prior for parameter in self.parameters}

    def starts_of(self, library: str) -> tuple[Mapping[str, float], ...]:
        """The starts that a fit of a library tries: none that makes a choice which its published code makes already."""
        fixed = self.built.get(library, {})
        return tuple(start for start in self.starts if not start.keys() & fixed.keys())

    def adjusted(self, changes: Mapping[str, Mapping[str, float]]) -> "Form":
        """The form with other priors, spreads or bounds of some of its parameters: name → fields and their values."""
        assert changes.keys() <= self.priors().keys()
        return self._replace(
            parameters=tuple(one._replace(**changes.get(one.name, {})) for one in self.parameters)  # type: ignore[arg-type]
        )


class Kernel(NamedTuple):
    """One kernel of a step: ideal work, executed work, grid, and how often the step launches it.

    ideal counts what the formula needs (exact pairs, fused traffic), executed what the real kernel does
    (whole tiles, padding, materialised intermediates). instance names the compiled kernel that a
    calibration belongs to, such as "bf16" or "hd128-bf16". shape holds what only the family's form reads;
    gradient marks the kernels of the backward pass. module is the mixer or FFN, with the phase, that the kernel
    works for, such as "mla-prefill" ("" outside them). circulating: bytes that pass between two uses of the same
    buffers when a benchmark replays the kernel, so that what fits stays in L2; None as served, when every buffer is
    cold. returning: the same for all but weights, where only weights rotate over several sets (None: as circulating).
    hidden: share of its time that is meant to pass behind other kernels, as of communication that overlaps computation
    (`costmodel.overlap`). holds: share of the device's processors that it keeps from computation meanwhile.
    """

    name: str
    form: Form
    ideal: Work
    executed: Work
    grid: Grid | None = None
    instance: str = ""
    shape: Any = None
    count: Quantity = 1
    launches: int = 1
    group: str = ""
    implementation: str = ""
    gradient: bool = False
    module: str = ""
    circulating: Quantity | None = None
    returning: Quantity | None = None
    hidden: Quantity = 0.0
    holds: float = 0.0

    @property
    def family(self) -> str:
        """The kernel family, as in the contract of names."""
        return self.form.family

    @property
    def work(self) -> Work:
        """The ideal work."""
        return self.ideal

    @property
    def length(self) -> Quantity:
        """Tokens (entries, rows of a product) that one sequence goes through, 0 where the shape does not say: what
        tells, beside FLOPs and bytes, whether a kernel lies among measured ones."""
        return getattr(self.shape, "length", 0)

    @property
    def intensity(self) -> Quantity:
        """FLOPs per HBM byte of the ideal work."""
        return self.ideal.flops / self.ideal.hbm_bytes

    @property
    def exposed(self) -> Quantity:
        """Launches of which the step waits: those that nothing hides."""
        serial = isinstance(self.hidden, int | float) and self.hidden == 0
        return self.count if serial else self.count * (1.0 - self.hidden)

    def sharing(self, occupancy: int) -> "Kernel":
        """The same kernel with so many thread blocks in a unit at a time; as its grid says for 0."""
        if self.grid is None or not occupancy:
            return self
        return self._replace(grid=self.grid._replace(occupancy=occupancy))

    def times(self, count: Quantity) -> "Kernel":
        """The same kernel launched `count` times as often."""
        return self._replace(count=self.count * count)


def waves(blocks: Quantity, slots: Quantity, weight: float) -> Quantity:
    """How many rounds a grid needs on the device's slots: between the smooth and the whole number.

    weight 1 means that a started wave costs a whole one, 0 that the tail is free.

    >>> waves(133, 132, 1.0), waves(66, 132, 0.5)
    (2.0, 1.0)
    """
    full = maximum(blocks / slots, 1.0)
    return (1.0 - weight) * full + weight * ceil(full)


L2_SHARPNESS = 4.0
"""How abruptly replayed buffers fall out of L2 once they outgrow their share of it."""


def memory_seconds(kernel: Kernel, hardware: "Hardware", theta: Mapping[str, float], traffic: Quantity) -> Quantity:
    """Seconds for HBM bytes at the reachable bandwidth; of replayed buffers, a part comes from L2 instead.

    As served (circulating None): traffic / (bandwidth · memory_efficiency). As benchmarked: the share
    1 / (1 + (circulating / (l2_share · L2))⁴) moves l2_over_hbm times as fast.
    """
    cold = traffic / (hardware.memory.hbm.bandwidth * theta.get("memory_efficiency", 1.0))
    if kernel.circulating is None:
        return cold
    hot = replayed_share(kernel, hardware, theta)
    return cold * (1.0 - hot + hot / theta.get("l2_over_hbm", L2_OVER_HBM))


def replayed_share(kernel: Kernel, hardware: "Hardware", theta: Mapping[str, float]) -> Quantity:
    """Of what a benchmark reads again, the share that L2 still holds; 0 as served."""
    capacity = hardware.memory.l2.capacity
    if kernel.circulating is None or not capacity:
        return 0.0
    fill = kernel.circulating / (theta.get("l2_share", L2_SHARE) * capacity)
    return 1.0 / (1.0 + power(fill, theta.get("l2_sharpness", L2_SHARPNESS)))


L2_SHARE = 0.72
L2_OVER_HBM = 2.2
"""What a replay finds of L2's capacity, and L2's bandwidth over HBM's, in families that do not fit them."""


def replayed(kernels: Sequence[Kernel], copies: Quantity = 1, inputs: bool = False) -> tuple[Kernel, ...]:
    """The kernels as a benchmark runs them: over the same buffers again and again.

    copies: how many sets of weights the benchmark rotates over, and of inputs where told; everything else has one set.
    """
    once = sum(kernel.executed.hbm_bytes * kernel.count for kernel in kernels)
    rotated = sum((kernel.executed.read if inputs else kernel.executed.weights) * kernel.count for kernel in kernels)
    total = once + (copies - 1) * rotated
    return tuple(kernel._replace(circulating=total, returning=None if inputs else once) for kernel in kernels)


def no_backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """For kernels that only serve inference (cache writes, samplers, decode steps)."""
    return ()


def scaled(work: Work, flops: float, traffic: float) -> Work:
    """The work with its FLOPs and its bytes multiplied."""
    return Work(
        tensor={dtype: count * flops for dtype, count in work.tensor.items()},
        vector=work.vector * flops,
        special=work.special * flops,
        read=work.read * traffic,
        written=work.written * traffic,
        weights=work.weights * traffic,
        l2=work.l2 * traffic,
        network=work.network * traffic,
    )


def unit_terms(kernel: Kernel, hardware: "Hardware", theta: Mapping[str, float]) -> Terms:
    """The time form that most families share.

    t = launch_s + pnorm(tensor, vector, special, memory, l2, chain): executed FLOPs over the share of the
    peak that a full grid reaches, HBM bytes over the reachable bandwidth, and for the chain the waves of
    thread blocks times (block_s + steps · step_s). A grid smaller than the device reaches only its share
    of the peak. Parameters a family does not have count as 1 (efficiencies) or 0 (seconds).

    Source: the forms of FlashAttention-3 (arXiv:2407.08608, section 3) and the wave and tail model of
    NVIDIA's "Matrix multiplication background" guide; overlap by p-norm instead of a hard maximum.
    """
    work, grid = kernel.executed, kernel.grid
    idle: Quantity = 1.0
    chain: Quantity = 0.0
    if grid is not None:
        slots = hardware.compute.units * grid.occupancy
        rounds = waves(grid.blocks, slots, theta.get("wave_weight", 0.0))
        # Slots without a block idle: the work takes rounds · slots / blocks times as long as on a full device.
        idle = rounds * slots / grid.blocks
        chain = rounds * (theta.get("block_s", 0.0) + grid.chain_steps * theta.get("step_s", 0.0))
    tensor: Quantity = 0.0
    for dtype, flops in work.tensor.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta.get("tensor_efficiency", 1.0))
    bandwidth = hardware.memory.hbm.bandwidth
    l2_bandwidth = hardware.memory.l2.bandwidth or bandwidth * theta.get("l2_over_hbm", 2.2)
    special_peak = hardware.special_peak
    return Terms(
        tensor=tensor * idle,
        vector=work.vector / (hardware.compute.vector * theta.get("vector_efficiency", 1.0)) * idle,
        special=work.special / (special_peak * theta.get("special_efficiency", 1.0)) * idle if special_peak else 0.0,
        memory=memory_seconds(kernel, hardware, theta, work.hbm_bytes),
        l2=work.l2 / l2_bandwidth,
        chain=chain,
        launch=theta.get("launch_s", 0.0) * kernel.launches,
        overlap=theta.get("overlap", 4.0),
    )
