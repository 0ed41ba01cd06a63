"""Attention of every query to its own selected rows of a shared latent cache (FlashMLA sparse).

The H heads of one query share the rows that it gathers, so a tile is 64 heads × 64 gathered rows; neighbouring
queries share nothing. A gathered row crosses L2 for each query that selects it, but needs HBM only once per step.

Source: arXiv:2512.02556, section 2.1, eq. 2; deepseek-ai/FlashMLA, README and
docs/20250929-hopper-fp8-sparse-deep-dive.md.
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, named
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels import attention
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Terms, Work, memory_seconds, waves

HEADS, ROWS = 64, 64
"""Heads and gathered rows of one tile."""

DEQUANTISE = 12
"""Vector operations to widen an element: about 50 clocks of 128 lanes for the 512 of a row in FlashMLA's fp8 kernel."""


def padded_heads(H: Quantity) -> Quantity:
    """Heads of the buffers of queries and outputs: a kernel takes 64 at a time, fewer are filled up."""
    return HEADS * ceil_div(H, HEADS)


class SparseAttention(NamedTuple):
    """B sequences, S queries of H heads, keys of width dk whose first dv elements are the values.

    pairs: selected (query, row) pairs per sequence; slots: rows per query that the kernel goes through; entries: rows
    in the cache of a sequence; row_bytes: of one cached row; quantised: rows are widened to bf16 before the products.
    The kernel alone goes through all k slots even where fewer tokens are visible; engines run a dense one there.
    """

    B: Quantity
    S: Quantity
    H: Quantity
    dk: Quantity
    dv: Quantity
    pairs: Quantity
    slots: Quantity
    entries: Quantity
    row_bytes: Quantity
    dtype: str = "bf16"
    quantised: bool = False
    decoding: bool = False

    @property
    def length(self) -> Quantity:
        """Rows in the cache of a sequence."""
        return self.entries


def work(x: SparseAttention) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·pairs·(dk + dv). HBM bytes: Q and indices in, O out, and the selected rows, at most the whole cache
    once. Executed: heads and slots in whole tiles, all gathered rows through L2, and their widening to bf16.
    """
    s = dict(B=x.B, S=x.S, H=x.H, dk=x.dk, dv=x.dv, pairs=named("selected_pairs", x.pairs))
    slots = ROWS * ceil_div(x.slots, ROWS)
    s |= dict(H64=padded_heads(x.H), gathered=named("gathered", x.S * slots))
    queries, output = 2 * size("B S H dk", s), 2 * size("B S H dv", s)
    rows = x.B * minimum(x.entries, s["pairs"]) * x.row_bytes
    ideal = Work(
        tensor={x.dtype: dot("B H pairs dk", s) + dot("B H pairs dv", s)},
        read=queries + rows + 4 * size("B pairs", s),
        written=output,
    )
    scores = size("B H64 gathered", s)
    executed = Work(
        tensor={x.dtype: dot("B H64 gathered dk", s) + dot("B H64 gathered dv", s)},
        vector=4 * scores + (DEQUANTISE * size("B gathered dv", s) if x.quantised else 0),
        special=scores,
        read=queries + rows + 4 * size("B gathered", s),
        written=output,
        # Slots without a token are computed, but nothing is fetched for them.
        l2=size("B S", s) * minimum(x.slots, x.entries) * x.row_bytes * ceil_div(x.H, HEADS),
    )
    return ideal, executed


def grid(x: SparseAttention) -> Grid:
    """A block per query and 64 heads, its chain the tiles of gathered rows, before any split over idle units."""
    return Grid(blocks=x.B * x.S * ceil_div(x.H, HEADS), chain_steps=ceil_div(x.slots, ROWS))


LEAST = 4
"""Tiles that a thread block of the decode kernel takes at least before the rows of a query are split."""


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(products, HBM bytes, gathered rows through L2, chain), all but the bytes by waves of blocks.

    A kernel is compiled for at least `least_heads` heads: a layer with fewer pays for as many. Where the blocks of
    decode leave units idle, the rows of a query are split over up to `splits` of them.
    """
    grid, x, work = kernel.grid, kernel.shape, kernel.executed
    assert grid is not None
    heads = maximum(x.H, theta["least_heads"]) / padded_heads(x.H)
    units = hardware.compute.units
    # Each block that the heads of one query need gathers for itself; fewer than 64 heads leave a block less to do.
    blocks, tiles = grid.blocks * maximum(heads, 1.0), grid.chain_steps
    launch = theta["launch_s"] * kernel.launches
    if x.decoding:
        splits = maximum(minimum(minimum(theta["splits"], units / blocks), tiles / LEAST), 1.0)
        blocks, tiles = blocks * splits, tiles / splits
    else:
        launch = launch + theta["sequence_s"] * x.B
    rounds = waves(blocks, units, theta["wave_weight"])
    idle = rounds * units / blocks
    tensor: Quantity = 0.0
    for dtype, flops in work.tensor.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta["tensor_efficiency"])
    bandwidth = hardware.memory.l2.bandwidth or hardware.memory.hbm.bandwidth * theta["l2_over_hbm"]
    return Terms(
        tensor=tensor * heads * idle,
        memory=memory_seconds(kernel, hardware, theta, work.hbm_bytes),
        l2=work.l2 * maximum(heads, 1.0) / bandwidth,
        chain=rounds * (theta["block_s"] + tiles * theta["step_s"]),
        launch=launch,
        overlap=theta["overlap"],
    )


FORM = Form(
    family="sparse-attention",
    summary="attention to rows that every query gathers for itself",
    parameters=(
        Parameter("launch_s", 6.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of a kernel"),
        Parameter("sequence_s", 2e-8, 1.5, 1e-9, 1e-5, "s", "copying the rows of one sequence out of its pages"),
        Parameter("splits", 8.0, 1.0, 1.0, 200.0, "1", "thread blocks that share a query's rows where units are idle"),
        Parameter("block_s", 3.0e-6, 0.6, 0.2e-6, 3e-5, "s", "prologue and epilogue of one tile of heads"),
        Parameter("step_s", 1.0e-6, 0.6, 0.05e-6, 1e-5, "s", "64 gathered rows in the chain of one thread block"),
        Parameter("least_heads", 64.0, 0.25, 8.0, 128.0, "heads", "heads that the kernel computes at least"),
        Parameter("tensor_efficiency", 0.65, 0.2, 0.05, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
        Parameter("memory_efficiency", 0.75, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
        Parameter("l2_share", 0.72, 0.2, 0.1, 1.0, "1", "share of L2 that a replay finds filled"),
        Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's, where the profile has no figure"),
        Parameter("wave_weight", 0.6, 0.4, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
        Parameter("overlap", 3.0, 0.2, 1.5, 8.0, "1", "exponent of the p-norm"),
    ),
    terms=terms,
    # The five products of dense attention, each over the gathered rows.
    backward=attention.backward,
    sources=("arXiv:2512.02556, section 2.1", "deepseek-ai/FlashMLA, docs/20250929-hopper-fp8-sparse-deep-dive.md"),
    model_spread=0.3,
)


def sparse_attention(name: str, x: SparseAttention) -> Kernel:
    """The gathering kernel; in decode a second one combines the splits.

    >>> x = SparseAttention(B=1, S=1, H=2, dk=576, dv=512, pairs=64, slots=64, entries=900, row_bytes=1152)
    >>> sparse_attention("s", x).work.flops == 2 * 2 * 64 * (576 + 512)
    True
    """
    ideal, executed = work(x)
    return Kernel(
        name=name,
        form=FORM,
        ideal=ideal,
        executed=executed,
        grid=grid(x),
        instance=f"hd{x.dk}-{'fp8' if x.quantised else x.dtype}{'-split' if x.decoding else ''}",
        shape=x,
        launches=2 if x.decoding else 1,
        implementation="FlashMLA sparse",
    )
