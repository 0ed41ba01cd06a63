"""Attention to the last w tokens and to blocks of r tokens compressed to one entry each, all in one softmax.

Keys are the values (K = V), one head of them for all query heads. HCA sees every finished block, CSA the k best. As in
sparse attention, the heads of a query share the rows that it gathers: 64 heads × 64 rows make a tile; the window and
the entries are two lists of rows, each filled up to whole tiles.

Source: DeepSeek-V4 technical report, section 2.3; deepseek-ai/FlashMLA, sparse prefill and decode with a second cache
(the kernels that engines run for these layers).
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, minimum, named
from costmodel.einsum import dot, size
from costmodel.kernels import sparse_attention
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Work, no_backward
from costmodel.kernels.sparse_attention import DEQUANTISE, HEADS, ROWS, SPLIT
from costmodel.pairs import capped_compressed, compressed, window


class CompressedAttention(NamedTuple):
    """B sequences, S queries of H heads after P cached tokens; rows of width d are keys and values.

    w: window; r: tokens per entry; k: entries that a query selects, None for all that are finished; row_bytes: of one
    cached row; quantised: rows are widened to bf16 before the products; sinks: one more logit per head.
    """

    B: Quantity
    S: Quantity
    P: Quantity
    H: Quantity
    d: Quantity
    w: Quantity
    r: Quantity
    k: Quantity | None
    row_bytes: Quantity
    dtype: str = "bf16"
    quantised: bool = False
    sinks: bool = True
    decoding: bool = False

    @property
    def dk(self) -> Quantity:
        """Width of a key."""
        return self.d

    @property
    def dv(self) -> Quantity:
        """Width of a value, the same row."""
        return self.d


def entry_pairs(x: CompressedAttention) -> Quantity:
    """(query, entry) pairs per sequence and head: Σ ⌊j/r⌋ over positions j, at most k each."""
    return compressed(x.P, x.S, x.r) if x.k is None else capped_compressed(x.P, x.S, x.r, x.k)


def gathered_rows(x: CompressedAttention) -> Quantity:
    """Rows per sequence that the kernel goes through: Σ over queries of both lists, each in whole tiles.

    ⌈j/64⌉ = ⌊(j + 63)/64⌋ and ⌈⌊j/r⌋/64⌉ = ⌊(j + 63r)/64r⌋, so both sums are those of finished blocks.

    >>> gathered_rows(CompressedAttention(1, 1, 999, 64, 512, w=128, r=4, k=512, row_bytes=584))  # 128 + ⌈250/64⌉ · 64
    384
    """
    last = capped_compressed(x.P + ROWS - 1, x.S, ROWS, ceil_div(x.w, ROWS))
    first, tile = x.P + (ROWS - 1) * x.r, ROWS * x.r
    if x.k is None:
        return ROWS * (last + compressed(first, x.S, tile))
    return ROWS * (last + capped_compressed(first, x.S, tile, ceil_div(x.k, ROWS)))


def work(x: CompressedAttention) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·(window pairs + entry pairs)·2d. HBM bytes: Q and, where k selects, indices in, O out, each visible or
    selected row once. Executed: heads and rows in whole tiles, an index per gathered row, all of them through L2, and
    their widening to bf16.
    """
    L = x.P + x.S
    near, far = named("window_pairs", window(x.P, x.S, x.w)), named("entry_pairs", entry_pairs(x))
    s = dict(B=x.B, S=x.S, H=x.H, d=x.d, near=near, far=far, H64=HEADS * ceil_div(x.H, HEADS))
    s["gathered"] = named("gathered", gathered_rows(x))
    entries = floor_div(L, x.r) if x.k is None else minimum(floor_div(L, x.r), far)
    queries, rows = 2 * size("B S H d", s), x.B * (minimum(L, x.w + x.S - 1) + entries) * x.row_bytes
    ideal = Work(
        tensor={x.dtype: 2 * (dot("B H near d", s) + dot("B H far d", s))},
        read=queries + rows + (0 if x.k is None else 4 * size("B far", s)),
        written=queries,
    )
    scores = size("B H64 gathered", s)
    executed = Work(
        tensor={x.dtype: 2 * dot("B H64 gathered d", s)},
        vector=4 * scores + (DEQUANTISE * size("B gathered d", s) if x.quantised else 0),
        special=scores + (size("B S H", s) if x.sinks else 0),
        read=queries + rows + 4 * size("B gathered", s),
        written=queries,
        l2=size("B gathered", s) * x.row_bytes,
    )
    return ideal, executed


def grid(x: CompressedAttention) -> Grid:
    """A block per query and 64 heads, its chain the mean number of tiles; decode splits them over the device."""
    tiles = ceil_div(gathered_rows(x), x.S * ROWS)
    blocks = x.B * x.S * ceil_div(x.H, HEADS)
    if x.decoding:
        return Grid(blocks=blocks * ceil_div(tiles, SPLIT), chain_steps=minimum(tiles, SPLIT))
    return Grid(blocks=blocks, chain_steps=tiles)


# 64 heads of 512 in and out are 128 KB: 5 µs at one unit's share of the bandwidth.
BLOCK_S = Parameter("block_s", 5.0e-6, 0.5, 0.5e-6, 3e-5, "s", "prologue and epilogue of one tile of heads")

CSA_PREFILL = sparse_attention.FORM._replace(
    family="csa-prefill",
    summary="many queries to a window and their selected compressed entries",
    parameters=tuple(BLOCK_S if p.name == BLOCK_S.name else p for p in sparse_attention.FORM.parameters),
    sources=("DeepSeek-V4 technical report, section 2.3.1", "deepseek-ai/FlashMLA, README"),
)
HCA_PREFILL = CSA_PREFILL._replace(
    family="hca-prefill",
    summary="many queries to a window and all compressed entries",
    sources=("DeepSeek-V4 technical report, section 2.3.2", "deepseek-ai/FlashMLA, README"),
)
CSA_DECODE = CSA_PREFILL._replace(
    family="csa-decode",
    summary="few queries to a window and their selected compressed entries",
    backward=no_backward,
)
HCA_DECODE = HCA_PREFILL._replace(
    family="hca-decode", summary="few queries to a window and all compressed entries", backward=no_backward
)
FORMS = (CSA_PREFILL, HCA_PREFILL, CSA_DECODE, HCA_DECODE)


def form(x: CompressedAttention) -> Form:
    """The family: CSA where entries are selected, else HCA."""
    if x.k is None:
        return HCA_DECODE if x.decoding else HCA_PREFILL
    return CSA_DECODE if x.decoding else CSA_PREFILL


def compressed_attention(name: str, x: CompressedAttention) -> Kernel:
    """The gathering kernel; in decode a second one combines the splits.

    >>> x = CompressedAttention(1, 1, 1023, 64, 512, w=128, r=128, k=None, row_bytes=584)
    >>> compressed_attention("a", x).work.flops == 4 * 64 * 512 * (128 + 1024 // 128)
    True
    """
    ideal, executed = work(x)
    return Kernel(
        name=name,
        form=form(x),
        ideal=ideal,
        executed=executed,
        grid=grid(x),
        instance=f"hd{x.d}-{'fp8' if x.quantised else x.dtype}",
        shape=x,
        launches=2 if x.decoding else 1,
        implementation="FlashMLA sparse",
    )
