"""Attention of every query to its own selected rows of a shared latent cache (FlashMLA sparse).

The H heads of one query share the rows that it gathers, so a tile is 64 heads × 64 gathered rows; neighbouring
queries share nothing. A gathered row crosses L2 for each query that selects it, but needs HBM only once per step.

Source: arXiv:2512.02556, section 2.1, eq. 2; deepseek-ai/FlashMLA, README and
docs/20250929-hopper-fp8-sparse-deep-dive.md.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, minimum, named
from costmodel.einsum import dot, size
from costmodel.kernels import attention
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Work, unit_terms

HEADS, ROWS = 64, 64
"""Heads and gathered rows of one tile."""

SPLIT = 4
"""Tiles that one thread block of the decode kernel takes when the rows of a query are split over the device."""

DEQUANTISE = 12
"""Vector operations to widen an element: about 50 clocks of 128 lanes for the 512 of a row in FlashMLA's fp8 kernel."""


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


def work(x: SparseAttention) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·pairs·(dk + dv). HBM bytes: Q and indices in, O out, and the selected rows, at most the whole cache
    once. Executed: heads and slots in whole tiles, all gathered rows through L2, and their widening to bf16.
    """
    s = dict(B=x.B, S=x.S, H=x.H, dk=x.dk, dv=x.dv, pairs=named("selected_pairs", x.pairs))
    slots = ROWS * ceil_div(x.slots, ROWS)
    s |= dict(H64=HEADS * ceil_div(x.H, HEADS), gathered=named("gathered", x.S * slots))
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
        l2=size("B gathered", s) * x.row_bytes,
    )
    return ideal, executed


def grid(x: SparseAttention) -> Grid:
    """A block per query and 64 heads, its chain the tiles of gathered rows; decode splits them over the device."""
    tiles = ceil_div(x.slots, ROWS)
    blocks = x.B * x.S * ceil_div(x.H, HEADS)
    if x.decoding:
        return Grid(blocks=blocks * ceil_div(tiles, SPLIT), chain_steps=minimum(tiles, SPLIT))
    return Grid(blocks=blocks, chain_steps=tiles)


FORM = Form(
    family="sparse-attention",
    summary="attention to rows that every query gathers for itself",
    parameters=(
        Parameter("launch_s", 6.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of a kernel"),
        Parameter("block_s", 2.0e-6, 0.5, 0.2e-6, 1e-5, "s", "prologue and epilogue of one tile of heads"),
        Parameter("step_s", 0.7e-6, 0.6, 0.05e-6, 1e-5, "s", "64 gathered rows in the chain of one thread block"),
        Parameter("tensor_efficiency", 0.65, 0.2, 0.05, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
        Parameter("special_efficiency", 0.85, 0.3, 0.05, 1.0, "1", "share of the exp rate"),
        Parameter("vector_efficiency", 0.5, 0.3, 0.05, 1.0, "1", "share of the fp32 FLOP/s; one without FMA is 0.5"),
        Parameter("memory_efficiency", 0.75, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
        Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's, where the profile has no figure"),
        Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
        Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
    ),
    terms=unit_terms,
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
        instance=f"hd{x.dk}-{'fp8' if x.quantised else x.dtype}",
        shape=x,
        launches=2 if x.decoding else 1,
        implementation="FlashMLA sparse",
    )
