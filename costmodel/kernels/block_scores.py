"""Scores by which blocks or entries are selected: products of queries with index keys, and no values.

Unlike the token indexer, the heads are not summed inside the product and the scores leave the kernel reduced: as the
maximum of a block, as a sum over the heads of a group, or one by one. Rows are query heads of one key head, packed
into tiles of 128; where a program takes one query, its heads alone, padded to 16.

Source: MSA, arXiv:2606.13392; InfLLM-v2, arXiv:2509.24663, and OpenBMB/infllmv2_cuda_impl (infllmv2_attn_stage1);
MoBA, arXiv:2502.13189, eq. 5 and 6; fla-org/native-sparse-attention, ops/parallel.py (parallel_nsa_kernel_topk).
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, named, where
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels import indexer
from costmodel.kernels.base import Grid, Kernel, Parameter, Terms, Work, memory_seconds, no_backward, waves
from costmodel.kernels.block_sparse import DIVIDED, FIXED, RESIDENT, ROWS, WALKS, WHOLE, fixed_shares
from costmodel.kernels.top_k import Selection, top_k
from costmodel.pairs import compressed

PACKED_ROWS = 128
"""Rows of a tile of several queries."""

COLUMNS = 128
"""Entries of a tile."""

SHARED_GRID, MOST_SHARES = 4096, 256
"""Programs of SGLang's scores in decode, and those of one sequence at most; what has no keys left returns at once."""


class Scores(NamedTuple):
    """B sequences, S queries of H heads of width d against entries of Hk key heads.

    pairs: scored (query, entry) pairs per sequence and head; computed: those of whole tiles; entries: rows read per
    sequence and key head, of entry_bytes each; results: numbers written per sequence, of result_bytes each;
    streamed: entries that pass through L2 per query and key head where queries share nothing (gathered lists), else
    None; softmax: an exp per score; packed: several queries share a tile; heads_apart: in prefill, each head has tiles
    of its own.
    learned, teacher: where the scores learn from the attention (a divergence over the selected keys), the pairs that
    do, per sequence and head, and the FLOPs of one such pair in the attention.
    """

    B: Quantity
    S: Quantity
    H: Quantity
    Hk: Quantity
    d: Quantity
    pairs: Quantity
    computed: Quantity
    entries: Quantity
    entry_bytes: Quantity
    results: Quantity
    result_bytes: Quantity = 4
    streamed: Quantity | None = None
    softmax: bool = False
    packed: bool = True
    heads_apart: bool = False
    dtype: str = "bf16"
    decoding: bool = False
    learned: Quantity = 0
    teacher: Quantity = 0

    @property
    def length(self) -> Quantity:
        """Entries of a sequence."""
        return self.entries


def tiled_pairs(P: Quantity, S: Quantity, stride: Quantity) -> Quantity:
    """The sum over queries of the entries, one per `stride` tokens, rounded up to whole tiles of columns.

    >>> tiled_pairs(0, 2048, 16) == 128 * (2048 - 15), tiled_pairs(0, 256, 1) == 128 * 128 * (1 + 2)
    (True, True)
    """
    before = stride * (COLUMNS - 1)
    return COLUMNS * compressed(P + before, S, stride * COLUMNS)


def rectangle(S: Quantity, entries: Quantity) -> Quantity:
    """Pairs when every query meets all entries, in whole tiles of columns."""
    return S * COLUMNS * ceil_div(entries, COLUMNS)


def apart_rows(x: Scores) -> Quantity:
    """Rows of a tile of one head: short sequences leave most of the 128 empty."""
    return minimum(PACKED_ROWS, ROWS * ceil_div(x.S, ROWS))


def tile_rows(x: Scores) -> Quantity:
    """Rows of all tiles of one sequence and key head."""
    if x.packed:
        rows = ROWS if x.decoding else PACKED_ROWS
        if x.heads_apart and not x.decoding:
            return apart_rows(x) * x.H * ceil_div(x.S, rows) / x.Hk
        return rows * ceil_div(x.S * x.H, x.Hk * rows)
    return x.S * ROWS * ceil_div(x.H, x.Hk * ROWS)


def work(x: Scores) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·d·pairs. Bytes: queries and entries in, results out. Executed: whole tiles, two vector operations
    per score for its reduction, an exp with a softmax, and the entries through L2 once per tile of rows.
    """
    s = dict(B=x.B, S=x.S, H=x.H, Hk=x.Hk, d=x.d, pairs=named("scored_pairs", x.pairs), entries=x.entries)
    s |= dict(rows=tile_rows(x), columns=named("tiled_pairs", x.computed) / x.S)
    read = 2 * size("B S H d", s) + size("B Hk entries", s) * x.entry_bytes
    written = x.B * x.results * x.result_bytes
    scores = size("B Hk rows columns", s)
    if x.streamed is None:
        streamed = scores / (PACKED_ROWS if x.packed and not x.decoding else ROWS) / (1 if x.packed else RESIDENT)
    else:
        streamed = x.B * x.S * x.Hk * x.streamed
    ideal = Work(tensor={x.dtype: dot("B H pairs d", s)}, read=read, written=written)
    executed = Work(
        tensor={x.dtype: dot("B Hk rows columns d", s)},
        vector=2 * scores,
        special=scores if x.softmax else 0,
        read=read,
        written=written,
        l2=streamed * x.entry_bytes,
    )
    return ideal, executed


def column_tiles(x: Scores) -> Quantity:
    """Tiles of entries that a query meets, on average."""
    return maximum(1, ceil_div(x.computed, x.S * COLUMNS))


def grid(x: Scores) -> Grid:
    """A program per tile of rows, with the mean number of its column tiles as the chain; decode: per column tile."""
    columns = column_tiles(x)
    if x.heads_apart and not x.decoding:
        return Grid(blocks=x.B * x.H * ceil_div(x.S, PACKED_ROWS), occupancy=2, chain_steps=columns)
    tiles = x.B * x.Hk * ceil_div(tile_rows(x), PACKED_ROWS if x.packed else ROWS)
    if x.decoding:
        return Grid(blocks=tiles * columns, occupancy=RESIDENT, chain_steps=1)
    return Grid(blocks=tiles, occupancy=1 if x.packed else RESIDENT, chain_steps=columns)


SORTED = 64
"""Scores that a program sorts at a time with as many threads, keeping the best: of a short row, all at once."""


def best_blocks(name: str, x: Selection, *, decoding: bool) -> Kernel:
    """The selection kernel, in prefill with a small program for every row, which sorts its scores piece by piece: what
    one piece takes is about a pass of the radix selection over 4096 logits.

    Source: sgl-project/sglang, minimax_sparse_ops/prefill/flash_with_topk_idx.py (_topk_index_kernel).
    """
    if decoding:
        return top_k(name, x)
    steps = ceil_div(x.logits, x.rows * SORTED)
    return top_k(name, x._replace(threads=SORTED))._replace(
        grid=Grid(blocks=x.rows, occupancy=16, chain_steps=steps), implementation="one program per row"
    )


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dQ and dK of the scores that learn: two products over the selected keys, not over all.

    Executed: both the scores and those of the attention that teaches them are computed once more.
    Source: MiniMax-AI/MSA, README ("Sparse KL Backward": teacher and indexer Q, K in, indexer dQ, dK out).
    """
    x: Scores = kernel.shape
    s = dict(B=x.B, S=x.S, H=x.H, Hk=x.Hk, d=x.d, pairs=named("learned_pairs", x.learned), entries=x.entries)
    product, gradients = dot("B H pairs d", s), 2 * size("B S H d", s) + 2 * size("B Hk entries d", s)
    ideal = Work(tensor={x.dtype: 2 * product}, read=2 * gradients, written=gradients)
    executed = ideal._replace(
        tensor={x.dtype: 3 * product + x.teacher * size("B pairs", s)},
        vector=8 * size("B H pairs", s),
        special=2 * size("B H pairs", s),
        l2=3 * 2 * size("B Hk pairs d", s),
    )
    return (kernel._replace(name=f"{kernel.name} backward", ideal=ideal, executed=executed),)


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(FLOPs of the device, HBM bytes, chain of column tiles): the indexer's form, for shorter results.

    The tiles of a chain wait for each other; where keys are not split, a block of decode goes through all. Many waves
    take the mean number of column tiles each, a single one as long as its last rows, which see all entries.
    """
    grid, x, work = kernel.grid, kernel.shape, kernel.executed
    assert grid is not None
    units, blocks, chain_steps = hardware.compute.units, grid.blocks, grid.chain_steps
    if x.decoding:
        columns = column_tiles(x)
        programs = blocks / columns
        shares = minimum(fixed_shares(programs, SHARED_GRID, MOST_SHARES), columns)
        whole, fixed = theta["walks"] >= WHOLE, theta["walks"] >= FIXED
        blocks = where(fixed, programs * shares, where(whole, programs, blocks))
        chain_steps = where(fixed, ceil_div(columns, shares), where(whole, columns, chain_steps))
    rounds = waves(blocks, units * grid.occupancy, theta["wave_weight"])
    steps = rounds * chain_steps
    if not x.decoding:
        steps = maximum(steps, x.entries / COLUMNS)
    tensor: Quantity = 0.0
    for dtype, flops in work.tensor.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta["tensor_efficiency"])
    return Terms(
        tensor=tensor,
        special=work.special / hardware.special_peak if hardware.special_peak else 0.0,
        memory=memory_seconds(kernel, hardware, theta, work.hbm_bytes),
        chain=rounds * theta["block_s"] + steps * theta["step_s"],
        launch=theta["launch_s"] * kernel.launches,
        overlap=theta["overlap"],
    )


# Tiles reduced in registers reach less of the peak than those of the token indexer.
REDUCED = {
    "tensor_efficiency": Parameter(
        "tensor_efficiency", 0.3, 0.5, 0.05, 1.0, "1", "share of the datasheet FLOP/s of all units together"
    ),
    "step_s": Parameter("step_s", 1.5e-6, 0.5, 0.02e-6, 5e-6, "s", "one tile of entries in the chain of one program"),
}
FORM = indexer.FORM._replace(
    parameters=(
        *(REDUCED.get(one.name, one) for one in indexer.FORM.parameters if one.name != "reads"),
        WALKS,
    ),
    terms=terms,
    built=DIVIDED,
    elsewhere=("reads",),
)
SCORES = FORM._replace(backward=no_backward)
"""Scores without a gradient: the selection is piecewise constant."""

LEARNED_SCORES = FORM._replace(backward=backward)


def block_scores(name: str, x: Scores, *, learned: bool = False) -> Kernel:
    """The kernel, of the family of indexers.

    >>> x = Scores(1, 1, 4, 1, 128, pairs=1000, computed=1024, entries=1000, entry_bytes=256, results=4 * 8)
    >>> block_scores("s", x).work.flops == 2 * 4 * 128 * 1000
    True
    """
    ideal, executed = work(x)
    return Kernel(
        name=name,
        form=LEARNED_SCORES if learned else SCORES,
        ideal=ideal,
        executed=executed,
        grid=grid(x),
        # A product of one head has a single row in decode, which engines may leave to the vector lanes.
        instance=f"{'row' if type(x.H) is int and x.H == 1 else 'blocks'}-d{x.d}-{x.dtype}",
        shape=x,
        implementation="tiled products with a fused reduction",
    )
