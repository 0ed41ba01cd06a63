"""Grouped products of a mixture of experts, and the passes around them: each expert multiplies its own tokens.

n tokens choose k of E experts each. With independent routing the expected number of experts that get at least one
token is E·(1 − (1 − k/E)ⁿ), and only their weights are read. Around the products run passes over the routed rows:
top-k, sorting or permutation, activation, weighted sum; engines fuse some of them and quantise in others.

Source: expectation over independent uniform choices; tiles as in vLLM's fused_moe (Triton grouped GEMM) and CUTLASS'
grouped GEMM; one pass each as in TensorRT-LLM's fused_moe module.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, named, power, where
from costmodel.dtypes import compute_dtype, element_bytes, product_name
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, memory_seconds, scaled, waves
from costmodel.kernels.processor import PROCESSOR


class GroupedGemm(NamedTuple):
    """tokens n, chosen k of E experts, each a [d_in × d_out] matrix.

    k may be a mean, where only some of the experts that a token chooses are on this device. active: experts with at
    least one token, where routing is not independent; None: the expectation of independent choices. even: every
    active expert has the same number of tokens. idle_rows, idle_experts: rows of experts on other devices, and how many
    such experts there are, where a kernel launches their tiles only to write zeros.
    """

    tokens: Quantity
    E: Quantity
    k: Quantity
    d_in: Quantity
    d_out: Quantity
    activations: str = "bf16"
    weights: str = "bf16"
    output: str = "bf16"
    parameters: bool = True
    active: Quantity | None = None
    even: bool = False
    idle_rows: Quantity = 0
    idle_experts: Quantity = 0

    @property
    def length(self) -> Quantity:
        """Tokens of the pass."""
        return self.tokens


class RoutedPass(NamedTuple):
    """A pass over routed rows; pairs: the (token, expert) pairs that it sorts or counts, 0 for other passes."""

    pairs: Quantity = 0


TILE_ROWS = (16, 64, 128)
"""Rows of a tile that the form chooses from; the best for the shape is taken."""
COLUMNS = 128
"""Output columns of one tile."""


def active_experts(tokens: Quantity, E: Quantity, k: Quantity) -> Quantity:
    """Expected number of experts that at least one token chooses.

    >>> active_experts(1, 8, 2), round(active_experts(16, 8, 2), 3)
    (2.0, 7.92)
    """
    return E * (1 - (1 - k / E) ** tokens)


def tile_rows(tokens_per_expert: Quantity) -> Quantity:
    """Rows of one tile, as padding counts them: the smallest of 16, 32, 64, 128 that holds an expert's tokens.

    >>> tile_rows(3), tile_rows(40), tile_rows(500)
    (16, 64, 128)
    """
    n = tokens_per_expert
    return where(n <= 16, 16, where(n <= 32, 32, where(n <= 64, 64, 128)))


def tiles_of(rows_of_each: Quantity, rows: int, even: bool) -> Quantity:
    """Tiles of an expert along its rows: whole ones; of uneven loads the last is half full on average.

    >>> tiles_of(16, 16, even=True), tiles_of(16, 16, even=False)
    (1, 1.5)
    """
    return ceil_div(rows_of_each, rows) if even else maximum(rows_of_each / rows + 0.5, 1.0)


def active_of(shape: GroupedGemm) -> Quantity:
    """Experts whose weights are read."""
    return active_experts(shape.tokens, shape.E, shape.k) if shape.active is None else shape.active


def work(shape: GroupedGemm) -> tuple[Work, Work]:
    """Ideal and executed work; executed pads each active expert's tokens to whole tiles."""
    active = named("active_experts", active_of(shape))
    s = dict(rows=shape.tokens * shape.k, d_in=shape.d_in, d_out=shape.d_out, active=active, n=shape.tokens, k=shape.k)
    dtype = compute_dtype(shape.activations, shape.weights)
    weights = size("active d_in d_out", s) * element_bytes(shape.weights)
    read = weights + size("rows d_in", s) * element_bytes(shape.activations)
    written = size("rows d_out", s) * element_bytes(shape.output)
    ideal = Work(
        tensor={dtype: dot("rows d_in, d_in d_out -> rows d_out", s)}, read=read, written=written, weights=weights
    )
    # An expert's last tile is half empty on average.
    s["padded"] = s["rows"] + active * (named("tile_rows", tile_rows(s["rows"] / active)) - 1) / 2
    executed = ideal._replace(tensor={dtype: dot("padded d_in, d_in d_out -> padded d_out", s)})
    return ideal, executed


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """Of a product: launch + pnorm(tensor over waves of tiles, weights and rows from memory, tile operands through
    one block's bandwidth). Of a pass: launch + pnorm(bytes, sorting of the pairs).
    """
    if isinstance(kernel.shape, RoutedPass):
        return Terms(
            memory=memory_seconds(kernel, hardware, theta, kernel.executed.hbm_bytes * theta["pass_traffic"]),
            chain=kernel.shape.pairs * theta["pair_s"],
            launch=theta["pass_s"],
            overlap=theta["overlap"],
        )
    shape: GroupedGemm = kernel.shape
    units = hardware.compute.units
    dtype = compute_dtype(shape.activations, shape.weights)
    active = active_of(shape)
    peak_per_unit = hardware.tensor_peak(dtype) * theta["tensor_efficiency"] / units
    block_bandwidth = hardware.memory.hbm.bandwidth / units * theta["block_bandwidth"]
    columns = ceil_div(shape.d_out, COLUMNS)
    rows_of_each = shape.tokens * shape.k / active
    # Triton's default tiles are for streaming weights only while there are no more tokens than experts.
    streamed = where(shape.tokens > shape.E, theta["many_tokens_bandwidth"], 1.0)
    memory = memory_seconds(kernel, hardware, theta, kernel.executed.hbm_bytes / streamed)
    weights = COLUMNS * element_bytes(shape.weights)
    activation = element_bytes(shape.activations)
    elsewhere = not (isinstance(shape.idle_experts, int) and shape.idle_experts == 0)
    best: tuple[Quantity, ...] | None = None
    core = hardware.generation == PROCESSOR
    # A core calls one product per expert, however many rows it has, and computes no others.
    for rows in TILE_ROWS[-1:] if core else TILE_ROWS:
        tiles = active * tiles_of(rows_of_each, rows, shape.even) * columns
        rounds = waves(tiles, units, theta["wave_weight"])
        operands = (rows * activation + weights) * shape.d_in
        chain = rounds * (theta["block_s"] + operands / block_bandwidth)
        if elsewhere:
            idle = maximum(shape.idle_rows / rows + shape.idle_experts / 2, shape.idle_experts)
            chain = chain + idle * columns / units * theta["idle_block_s"]
        flops = kernel.ideal.tensor[dtype] if core else rounds * (2 * rows * COLUMNS * shape.d_in)
        tensor = flops / peak_per_unit
        # All other terms are the same of every tile.
        candidate = power(tensor, theta["overlap"]) + power(chain, theta["overlap"]), tensor, chain
        best = candidate if best is None else first_least(best, candidate)
    assert best is not None
    _, tensor, chain = best
    return Terms(tensor=tensor, memory=memory, chain=chain, launch=theta["launch_s"], overlap=theta["overlap"])


def first_least(a: Sequence[Quantity], b: Sequence[Quantity]) -> tuple[Quantity, ...]:
    """The one of two whose first number is the least, element by element.

    >>> first_least((3, "a"), (2, "b"))
    (2, 'b')
    """
    choose = a[0] <= b[0]
    return tuple(where(choose, *terms) for terms in zip(a, b, strict=True))


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """The gradients of the input and of the active experts' matrices: two products of the same size.

    The gradient of a pass reads the saved input and the incoming gradient: twice the traffic at most.
    """
    if isinstance(kernel.shape, RoutedPass):
        ideal, executed = scaled(kernel.ideal, 2, 2), scaled(kernel.executed, 2, 2)
        return (kernel._replace(name=f"{kernel.name} backward", ideal=ideal, executed=executed),)
    s: GroupedGemm = kernel.shape
    gradient = kernel.ideal._replace(weights=0)
    return (
        grouped_gemm(f"{kernel.name} dX", s._replace(d_in=s.d_out, d_out=s.d_in))._replace(count=kernel.count),
        kernel._replace(
            name=f"{kernel.name} dW",
            ideal=gradient,
            executed=kernel.executed._replace(weights=0),
            shape=s._replace(parameters=False),
        ),
    )


PARAMETERS = (
    Parameter("launch_s", 6.0e-6, 0.5, 1e-6, 1e-4, "s", "launch of a grouped product, with what prepares its operands"),
    Parameter("pass_s", 3.0e-6, 0.5, 0.2e-6, 5e-5, "s", "launch of one pass over the routed rows"),
    Parameter("pass_traffic", 1.5, 0.6, 0.05, 10.0, "1", "bytes of the passes over the least that they need"),
    Parameter("pair_s", 1.0e-10, 1.0, 1e-13, 1e-8, "s", "sorting or counting of one (token, expert) pair"),
    Parameter("block_s", 1.0e-6, 0.5, 0.05e-6, 1e-5, "s", "prologue and epilogue of one tile"),
    Parameter("idle_block_s", 0.4e-6, 0.6, 0.02e-6, 5e-6, "s", "a tile of an expert elsewhere, which writes zeros"),
    Parameter("tensor_efficiency", 0.55, 0.25, 0.02, 1.0, "1", "share of the datasheet FLOP/s on padded tiles"),
    Parameter("memory_efficiency", 0.85, 0.12, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("many_tokens_bandwidth", 0.93, 0.15, 0.3, 1.0, "1", "HBM bandwidth left with more tokens than experts"),
    Parameter("block_bandwidth", 6.5, 0.4, 0.5, 40.0, "1", "bandwidth of one block over its even share of HBM"),
    Parameter("wave_weight", 0.3, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
    Parameter("l2_share", 0.72, 0.3, 0.05, 1.5, "1", "share of L2 that replayed buffers find"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 6.0, "1", "L2 bandwidth over HBM bandwidth"),
)

FORM = Form(
    family="moe",
    summary="grouped products of a mixture of experts and the passes around them",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=(
        "vllm-project/vllm, fused_moe",
        "NVIDIA/TensorRT-LLM, fused_moe",
        "arXiv:2211.15841 (MegaBlocks), section 4",
    ),
    model_spread=0.35,
)


def grouped_gemm(name: str, shape: GroupedGemm) -> Kernel:
    """The kernel of one grouped product.

    >>> grouped_gemm("up", GroupedGemm(tokens=1, E=8, k=2, d_in=3, d_out=5)).work.flops
    60
    """
    ideal, executed = work(shape)
    return Kernel(
        name=name,
        form=FORM,
        ideal=ideal,
        executed=executed,
        instance=product_name(shape.activations, shape.weights),
        shape=shape,
        implementation="fused MoE grouped GEMM",
    )


def routed_pass(
    name: str,
    instance: str,
    *,
    read: Quantity,
    written: Quantity,
    pairs: Quantity = 0,
    vector: Quantity = 0,
    special: Quantity = 0,
) -> Kernel:
    """One pass over routed rows, of the mixture whose products have this instance.

    >>> routed_pass("combine", "bf16", read=8, written=4).work.hbm_bytes
    12
    """
    traffic = Work(read=read, written=written)
    return Kernel(
        name=name,
        form=FORM,
        ideal=traffic,
        executed=traffic._replace(vector=vector, special=special),
        instance=instance,
        shape=RoutedPass(pairs),
        implementation="pass of the fused MoE",
    )
