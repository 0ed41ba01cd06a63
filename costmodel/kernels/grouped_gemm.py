"""Grouped products of a mixture of experts: each expert multiplies its own tokens by its own matrix.

n tokens choose k of E experts each. With balanced routing the expected number of experts that get at
least one token is E·(1 − (1 − k/E)ⁿ), and only their weights are read.

Source: expectation over independent uniform choices; tiles as in vLLM's fused_moe (Triton grouped GEMM).
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, named, where
from costmodel.dtypes import compute_dtype, element_bytes
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, waves


class GroupedGemm(NamedTuple):
    """tokens n, chosen k of E experts, each a [d_in × d_out] matrix."""

    tokens: Quantity
    E: Quantity
    k: Quantity
    d_in: Quantity
    d_out: Quantity
    activations: str = "bf16"
    weights: str = "bf16"
    output: str = "bf16"
    parameters: bool = True


COLUMNS = 128
"""Output columns of one tile."""


def active_experts(tokens: Quantity, E: Quantity, k: Quantity) -> Quantity:
    """Expected number of experts that at least one token chooses.

    >>> active_experts(1, 8, 2), round(active_experts(16, 8, 2), 3)
    (2.0, 7.92)
    """
    return E * (1 - (1 - k / E) ** tokens)


def tile_rows(tokens_per_expert: Quantity) -> Quantity:
    """Rows of one tile: the smallest of 16, 32, 64, 128 that holds an expert's tokens.

    >>> tile_rows(3), tile_rows(40), tile_rows(500)
    (16, 64, 128)
    """
    n = tokens_per_expert
    return where(n <= 16, 16, where(n <= 32, 32, where(n <= 64, 64, 128)))


def work(shape: GroupedGemm) -> tuple[Work, Work]:
    """Ideal and executed work; executed pads each active expert's tokens to whole tiles."""
    active = named("active_experts", active_experts(shape.tokens, shape.E, shape.k))
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
    """launch + pnorm(padded FLOPs over waves of tiles, active weights' bytes, routing per token)."""
    shape: GroupedGemm = kernel.shape
    units = hardware.compute.units
    dtype = compute_dtype(shape.activations, shape.weights)
    active = active_experts(shape.tokens, shape.E, shape.k)
    rows_each = shape.tokens * shape.k / active
    rows = tile_rows(rows_each)
    tiles = active * ceil_div(rows_each, rows) * ceil_div(shape.d_out, COLUMNS)
    rounds = waves(tiles, units, theta["wave_weight"])
    peak = hardware.tensor_peak(dtype) * theta["tensor_efficiency"]
    tensor = kernel.executed.tensor[dtype] / peak * (rounds * units / tiles)
    return Terms(
        tensor=tensor,
        memory=kernel.executed.hbm_bytes / (hardware.memory.hbm.bandwidth * theta["memory_efficiency"]),
        chain=rounds * theta["block_s"],
        launch=theta["launch_s"],
        overlap=theta["overlap"],
    )


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """The gradients of the input and of the active experts' matrices: two products of the same size."""
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
    Parameter("launch_s", 8.0e-6, 0.5, 1e-6, 1e-4, "s", "launch, alignment of tokens to tiles"),
    Parameter("block_s", 1.0e-6, 0.5, 0.1e-6, 1e-5, "s", "prologue and epilogue of one tile"),
    Parameter("tensor_efficiency", 0.55, 0.25, 0.05, 1.0, "1", "share of the datasheet FLOP/s on padded tiles"),
    Parameter("memory_efficiency", 0.85, 0.12, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("wave_weight", 0.3, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
)

FORM = Form(
    family="moe",
    summary="grouped products of a mixture of experts",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("vllm-project/vllm, fused_moe", "arXiv:2211.15841 (MegaBlocks), section 4"),
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
        instance=compute_dtype(shape.activations, shape.weights),
        shape=shape,
        implementation="fused MoE grouped GEMM",
    )
