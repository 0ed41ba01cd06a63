"""Dense and batched matrix products: [m × k] · [k × n], one weight matrix per batch entry.

Narrow activations arrive in 16 bit and are quantised first; that pass is part of the product, as engines launch it.

Sources: tiles, waves and split-K as in NVIDIA's "Matrix multiplication background" guide; operand traffic per tile as
in CUTLASS' efficient GEMM documentation; tiles by rows as in vllm-project/vllm, csrc/quantization/w8a8/cutlass; one
thread block per row as in csrc/quantization/w8a8/fp8/common.cu.
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, where
from costmodel.dtypes import compute_dtype, element_bytes, product_name
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, memory_seconds, waves

TILE = 128
"""Rows and columns of the full output tile; one of 16 or 64 rows serves fewer rows than that."""
NARROW = 64
"""The other choice: a tile of so many columns and at most so many rows."""
MOST_SPLITS = 32
"""Parts into which k is cut at most."""
THROTTLING_S = 3e-4
"""Seconds of work at the full peak around which the power limit takes the clock down to its sustained value."""


class Gemm(NamedTuple):
    """Shape of a product: output m × n, inner k, `batch` independent ones, dtypes of both operands.

    parameters says whether the [k × n] operand is a parameter (counted as weight bytes). source is the dtype in which
    activations arrive. ragged is 1 where m is odd and the kernel was run with just so many rows, as benchmarks do;
    engines fill batches up to even numbers.
    """

    m: Quantity
    n: Quantity
    k: Quantity
    batch: Quantity = 1
    activations: str = "bf16"
    weights: str = "bf16"
    output: str = "bf16"
    parameters: bool = True
    source: str = "bf16"
    ragged: Quantity = 0

    @property
    def name(self) -> str:
        """The compiled kernel: its formats, and whether several products run in one launch."""
        several = not (type(self.batch) is int and self.batch == 1)
        return ("batched-" if several else "") + product_name(self.activations, self.weights)


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + quantisation + pnorm(waves of tiles, HBM bytes).

    A tile takes block_s and, per step along k, its FLOPs or the bytes of its operands, whichever is slower. Its rows
    follow m; of the two widths, and of splitting k or not, the faster is taken.
    """
    shape: Gemm = kernel.shape
    m, n, k = shape.m, shape.n, shape.k
    units, bandwidth = hardware.compute.units, hardware.memory.hbm.bandwidth
    dtype = compute_dtype(shape.activations, shape.weights)
    peak = hardware.tensor_peak(dtype)
    throttled = kernel.executed.tensor[dtype] / peak
    throttled = throttled / (throttled + THROTTLING_S)
    flop_s = units / (peak * theta["tensor_efficiency"] * (1.0 - (1.0 - theta["sustained"]) * throttled))
    byte_s = units / (bandwidth * theta["block_bandwidth"])
    e_rows, e_columns = element_bytes(shape.activations), element_bytes(shape.weights)

    def seconds(rows: Quantity, columns: int) -> tuple[Quantity, Quantity]:
        """Of all tiles, with the better of one part and several along k; and whether FLOPs take longer than bytes."""
        tiles = ceil_div(m, rows) * ceil_div(n, columns) * shape.batch
        rounds = waves(tiles, units, theta["wave_weight"])
        flops = 2 * columns * rows * flop_s
        feed = (e_rows * minimum(m, rows) + e_columns * minimum(n, columns)) * byte_s
        depth = maximum(flops, feed)
        fixed = theta["block_s"] / TILE**2 * columns * rows
        parts = maximum(minimum(minimum(units / tiles, MOST_SPLITS), k / theta["split_k"]), 1.0)
        along = minimum(k * depth * rounds, k / parts * depth * rounds + theta["split_s"])
        return rounds * fixed + along, flops >= feed

    full = m > NARROW
    rows = where(full, TILE, where(m > 16, NARROW, 16))
    wide, wide_computes = seconds(rows, TILE)
    narrow, narrow_computes = seconds(where(full, NARROW, rows), NARROW)
    narrow = narrow * where(full, theta["small_tile"], 1.0)
    busy = minimum(wide, narrow) * (1.0 + (theta["odd_rows"] - 1.0) * shape.ragged * where(full, 1.0, 0.0))
    computes = where(wide <= narrow, wide_computes, narrow_computes)
    return Terms(
        tensor=where(computes, busy, 0.0),
        memory=memory_seconds(kernel, hardware, theta, kernel.ideal.hbm_bytes),
        chain=where(computes, 0.0, busy),
        launch=theta["launch_s"] + _quantise_seconds(shape, hardware, theta),
        overlap=theta["overlap"],
    )


def _quantise_seconds(shape: Gemm, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Reading wide activations, finding the scales, writing narrow ones: launches, bytes, and blocks of one row."""
    if not quantises(shape):
        return 0.0
    elements = shape.m * shape.k * shape.batch
    traffic = elements * (element_bytes(shape.source) + element_bytes(shape.activations))
    return (
        theta["quantise_s"]
        + traffic / (hardware.memory.hbm.bandwidth * theta["quantise_bandwidth"])
        + theta["row_s"] * maximum(shape.m * shape.batch / hardware.compute.units, 1.0)
        + theta["element_s"] * shape.k
    )


def quantises(shape: Gemm) -> bool:
    """Whether activations arrive wider than they are multiplied."""
    return element_bytes(shape.activations) < element_bytes(shape.source)


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dX = dY·Wᵀ and dW = Xᵀ·dY: two products of the same size."""
    s: Gemm = kernel.shape
    return (
        gemm(f"{kernel.name} dX", s._replace(n=s.k, k=s.n), count=kernel.count),
        gemm(f"{kernel.name} dW", s._replace(m=s.k, k=s.m, parameters=False), count=kernel.count),
    )


PARAMETERS = (
    Parameter("launch_s", 2.2e-6, 0.4, 0.5e-6, 3e-5, "s", "time from the end of the last kernel to useful work"),
    Parameter("block_s", 0.8e-6, 0.5, 1e-8, 1e-5, "s", "prologue and epilogue of a tile of 128 × 128"),
    Parameter(
        "split_s", 2.0e-6, 0.8, 0.2e-6, 1e-3, "s", "reduction of the parts of k; large where a library cuts none"
    ),
    Parameter("split_k", 1000.0, 0.5, 64.0, 65536.0, "1", "length of k from which cutting it in two is possible"),
    Parameter("tensor_efficiency", 0.87, 0.12, 0.05, 1.0, "1", "share of the datasheet FLOP/s in the main loop"),
    Parameter("sustained", 0.88, 0.1, 0.5, 1.0, "1", "FLOP/s of long work over those of short: the power limit"),
    Parameter("memory_efficiency", 0.85, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("block_bandwidth", 7.5, 0.4, 1.0, 40.0, "1", "bandwidth of one block over its even share of HBM"),
    Parameter("wave_weight", 0.3, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("small_tile", 1.3, 0.3, 1.0, 10.0, "1", "time of four tiles of 64 × 64 over that of one of 128 × 128"),
    Parameter("overlap", 2.4, 0.3, 1.0, 8.0, "1", "exponent by which tiles and HBM overlap"),
    Parameter("l2_share", 0.6, 0.3, 0.1, 1.5, "1", "share of L2 that a replay finds its operands in"),
    Parameter("l2_over_hbm", 2.0, 0.3, 1.0, 6.0, "1", "bandwidth of L2 over that of HBM"),
    Parameter("quantise_s", 2.0e-6, 0.5, 0.1e-6, 2e-5, "s", "launches of the quantisation of narrow activations"),
    Parameter("quantise_bandwidth", 0.5, 0.5, 0.03, 6.0, "1", "bandwidth of the quantisation over that of HBM"),
    Parameter("row_s", 3e-7, 0.8, 1e-9, 5e-6, "s", "a block of the quantisation, which scales one row"),
    Parameter("element_s", 1e-10, 1.0, 1e-12, 5e-9, "s", "an element in the chain of such a block"),
    Parameter("odd_rows", 1.03, 0.1, 1.0, 2.0, "1", "time of an odd number of rows above 64 over that of an even one"),
)

FORM = Form(
    family="gemm",
    summary="dense and batched matrix products",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("NVIDIA, Matrix Multiplication Background User's Guide", "CUTLASS, Efficient GEMM in CUDA"),
    model_spread=0.18,
)


def gemm(name: str, shape: Gemm, *, count: Quantity = 1) -> Kernel:
    """The kernel of one product.

    >>> gemm("q_proj", Gemm(m=3, n=5, k=7)).work.flops
    210
    """
    s = dict(m=shape.m, n=shape.n, k=shape.k, b=shape.batch)
    dtype = compute_dtype(shape.activations, shape.weights)
    flops = dot("b m k, b k n -> b m n", s)
    matrix = size("b k n", s) * element_bytes(shape.weights)
    work = Work(
        tensor={dtype: flops},
        read=matrix + size("b m k", s) * element_bytes(shape.activations),
        written=size("b m n", s) * element_bytes(shape.output),
        weights=matrix if shape.parameters else 0,
    )
    executed = work
    if quantises(shape):
        wide, narrow = (size("b m k", s) * element_bytes(dtype) for dtype in (shape.source, shape.activations))
        executed = work._replace(read=work.read + wide, written=work.written + narrow)
    return Kernel(
        name=name,
        form=FORM,
        ideal=work,
        executed=executed,
        instance=shape.name,
        shape=shape,
        count=count,
        implementation="cuBLAS or CUTLASS",
    )
