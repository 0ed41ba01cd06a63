"""Dense and batched matrix products: [m × k] · [k × n], one weight matrix per batch entry.

Source: tiles, waves and split-K as in NVIDIA's "Matrix multiplication background" guide; operand traffic
per tile as in CUTLASS' efficient GEMM documentation.
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum, where
from costmodel.dtypes import compute_dtype, element_bytes
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, waves

TILES = ((64, 128), (128, 128), (128, 256))
"""Output tiles (rows × columns) that the form chooses from; the best for the shape is taken."""

SPLIT_K_LEAST = 512
"""A split keeps at least this much of k."""


class Gemm(NamedTuple):
    """Shape of a product: output m × n, inner k, `batch` independent ones, dtypes of both operands.

    weights says whether the [k × n] operand is a parameter (counted as weight bytes).
    """

    m: Quantity
    n: Quantity
    k: Quantity
    batch: Quantity = 1
    activations: str = "bf16"
    weights: str = "bf16"
    output: str = "bf16"
    parameters: bool = True


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(tensor over waves of tiles, HBM bytes, tile operands through one block's bandwidth).

    The tile is the one with the least time; a grid that leaves units idle is split along k, up to 8 ways,
    for an extra `split_s`.
    """
    shape: Gemm = kernel.shape
    units = hardware.compute.units
    dtype = compute_dtype(shape.activations, shape.weights)
    peak_per_unit = hardware.tensor_peak(dtype) * theta["tensor_efficiency"] / units
    bandwidth = hardware.memory.hbm.bandwidth
    block_bandwidth = bandwidth / units * theta["block_bandwidth"]
    operand = maximum(element_bytes(shape.activations), element_bytes(shape.weights))
    memory = kernel.executed.hbm_bytes / (bandwidth * theta["memory_efficiency"])
    best: Terms | None = None
    for rows, columns in TILES:
        tiles = ceil_div(shape.m, rows) * ceil_div(shape.n, columns) * shape.batch
        splits = maximum(1, minimum(minimum(floor_div(units, tiles), 8), floor_div(shape.k, SPLIT_K_LEAST)))
        depth = shape.k / splits
        rounds = waves(tiles * splits, units, theta["wave_weight"])
        compute = rounds * 2 * rows * columns * depth / peak_per_unit
        feed = rounds * (theta["block_s"] + (rows + columns) * depth * operand / block_bandwidth)
        candidate = Terms(
            tensor=compute,
            memory=memory,
            chain=feed,
            launch=theta["launch_s"] + theta["split_s"] * minimum(splits - 1, 1),
            overlap=theta["overlap"],
        )
        best = candidate if best is None else _faster(best, candidate)
    assert best is not None
    return best


def _faster(a: Terms, b: Terms) -> Terms:
    """The terms of the faster tile, element by element."""
    choose = a.total() <= b.total()
    if isinstance(choose, bool):
        return a if choose else b
    return Terms(
        tensor=where(choose, a.tensor, b.tensor),
        memory=a.memory,
        chain=where(choose, a.chain, b.chain),
        launch=where(choose, a.launch, b.launch),
        overlap=a.overlap,
    )


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dX = dY·Wᵀ and dW = Xᵀ·dY: two products of the same size."""
    s: Gemm = kernel.shape
    return (
        gemm(f"{kernel.name} dX", s._replace(n=s.k, k=s.n), count=kernel.count),
        gemm(f"{kernel.name} dW", s._replace(m=s.k, k=s.m, parameters=False), count=kernel.count),
    )


PARAMETERS = (
    Parameter("launch_s", 2.0e-6, 0.4, 0.5e-6, 3e-5, "s", "time from the end of the last kernel to useful work"),
    Parameter("block_s", 0.8e-6, 0.5, 0.1e-6, 5e-6, "s", "prologue and epilogue of one output tile"),
    Parameter("split_s", 1.9e-6, 0.5, 0.2e-6, 1e-5, "s", "reduction of a split along k"),
    Parameter("tensor_efficiency", 0.85, 0.12, 0.05, 1.0, "1", "share of the datasheet FLOP/s in the main loop"),
    Parameter("memory_efficiency", 0.83, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("block_bandwidth", 6.5, 0.4, 1.0, 40.0, "1", "bandwidth of one block over its even share of HBM"),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm over tensor, memory and feed time"),
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
    return Kernel(
        name=name,
        form=FORM,
        ideal=work,
        executed=work,
        instance=dtype,
        shape=shape,
        count=count,
        implementation="cuBLAS or CUTLASS",
    )
