"""Scoring every visible token for selection: logits[t, s] = Σ_h w[t, h] · ReLU(q[t, h] · k[s]).

One thread block takes 128 rows (128/H queries of H heads) over tiles of 256 keys; decode splits the keys
over the device. The logits of the visible tiles go to HBM in fp32, where the top-k kernel reads them: bytes
that grow with the square of the context, like the products.

Source: arXiv:2512.02556, section 2.1, eq. 1; deepseek-ai/DeepGEMM, csrc/apis/attention.hpp (tiles, layouts).
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, half, maximum, minimum, named, nominal, where
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Terms, Work, memory_seconds, waves
from costmodel.kernels.top_k import CHUNKED, IN_CHUNKS, Selection
from costmodel.pairs import capped_compressed, causal, compressed, executed_causal, top_k

ROWS, COLUMNS = 128, 256
"""Rows (queries times heads) and keys of one tile."""

BY_PAGE = 2.0
"""Value of `reads` where a prefill reads compressed keys from their pages, as SGLang's does."""

DTYPES = ("fp8", "bf16", "mxfp4", "nvfp4")


class Indexer(NamedTuple):
    """B sequences, S queries after P cached tokens, H index heads of width d over k_heads key heads.

    k: tokens selected per query, which alone receive a gradient in training; clean_logits: masked logits are
    written as well; decoding: the paged kernel that splits the keys; ratio: tokens per key where the keys are
    compressed blocks, of which a query sees the finished ones (k counts keys then); gathered: the ragged kernel's keys
    are first copied out of their pages; packed: its tiles do not end where a sequence does; chunks: launches in which
    the queries are scored and selected one after another, the host waiting for each of them (1: all at once; None: as
    many as the library takes when it serves, by `chunked`).
    """

    B: Quantity
    S: Quantity
    P: Quantity
    H: Quantity
    d: Quantity
    k: Quantity
    k_heads: Quantity = 1
    dtype: str = "fp8"
    clean_logits: bool = False
    decoding: bool = False
    bidirectional: bool = False
    ratio: Quantity | None = None
    gathered: bool = False
    packed: bool = False
    chunks: Quantity | None = None

    @property
    def keys(self) -> Quantity:
        """Index keys of a sequence after the step."""
        return self.P + self.S if self.ratio is None else floor_div(self.P + self.S, self.ratio)

    @property
    def length(self) -> Quantity:
        """Index keys of a sequence."""
        return self.keys


def key_bytes(d: Quantity, dtype: str) -> Quantity:
    """Bytes of one cached index key: its elements and, below 16 bits, one 4-byte word of scales.

    >>> key_bytes(128, "fp8"), key_bytes(128, "mxfp4"), key_bytes(128, "bf16")
    (132, 68, 256)
    """
    if dtype in ("mxfp4", "nvfp4"):
        return half(d) + 4
    return d + 4 if dtype == "fp8" else d * element_bytes(dtype)


def queries_per_tile(H: Quantity) -> Quantity:
    """Queries whose heads fill the rows of one tile.

    >>> queries_per_tile(64), queries_per_tile(32)
    (2, 4)
    """
    return maximum(1, floor_div(ROWS, nominal(H, 64)))


def pair_count(x: Indexer) -> Quantity:
    """(query, key) pairs per sequence that are scored."""
    if x.bidirectional:
        return x.S * x.keys
    return causal(x.P, x.S) if x.ratio is None else compressed(x.P, x.S, x.ratio)


def selected_pairs(x: Indexer) -> Quantity:
    """(query, key) pairs per sequence that are selected."""
    if x.bidirectional:
        return x.S * minimum(x.keys, x.k)
    return top_k(x.P, x.S, x.k) if x.ratio is None else capped_compressed(x.P, x.S, x.ratio, x.k)


def executed_pairs(x: Indexer) -> Quantity:
    """(query, key) pairs per sequence that whole tiles score."""
    columns = COLUMNS * ceil_div(x.keys, COLUMNS)
    if x.decoding:
        return x.S * columns
    rows = queries_per_tile(x.H)
    if x.bidirectional:
        return rows * ceil_div(x.S, rows) * columns
    if x.ratio is not None:
        # Columns up to the last key that the tile's last query sees: ⌈⌊j/ratio⌋/256⌉ = ⌊(j + 255·ratio)/(256·ratio)⌋.
        first = x.P + (COLUMNS - 1) * x.ratio + rows - 1
        return COLUMNS * compressed(first, rows * ceil_div(x.S, rows), COLUMNS * x.ratio)
    return executed_causal(x.P, x.S, rows, COLUMNS)


def work(x: Indexer) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·d·pairs. Bytes: queries, head weights and index keys in, 4 bytes per logit out. Executed: whole
    tiles, a ReLU and a multiply-add per head and pair on the vector lanes, and the keys through L2 once per tile
    of queries.
    """
    pairs, computed = named("pairs", pair_count(x)), named("computed_pairs", executed_pairs(x))
    s = dict(B=x.B, S=x.S, L=x.keys, H=x.H, Hk=x.k_heads, d=x.d, pairs=pairs, computed=computed)
    key = key_bytes(x.d, x.dtype)
    read = size("B S H d", s) * element_bytes(x.dtype) + 4 * size("B S H", s) + size("B L Hk", s) * key
    logits, stored, rectangle = size("B pairs", s), size("B computed", s), size("B S L", s)
    # Each tile of queries streams the keys that it sees; in decode one tile holds all queries of a sequence.
    streamed = stored / (x.S if x.decoding else queries_per_tile(x.H))
    ideal = Work(
        tensor={x.dtype: dot("B H pairs d", s)},
        read=read,
        written=4 * (rectangle if x.clean_logits else logits),
    )
    executed = Work(
        tensor={x.dtype: dot("B H computed d", s)},
        vector=2 * size("B H computed", s),
        read=read,
        written=4 * (maximum(stored, rectangle) if x.clean_logits else stored),
        l2=streamed * x.k_heads * key,
    )
    return ideal, executed


def grid(x: Indexer) -> Grid:
    """A block per tile of queries, with the mean number of key tiles as its chain; decode: a block per key tile.

    Packed sequences follow each other without a gap: a tile of four queries of four sequences goes through the keys of
    all.
    """
    if x.decoding:
        return Grid(blocks=x.B * x.S * maximum(ceil_div(x.keys, COLUMNS), 1), chain_steps=1)
    rows = queries_per_tile(x.H)
    tiles = ceil_div(x.B * x.S, rows) if x.packed else x.B * ceil_div(x.S, rows)
    chain = ceil_div(x.B * executed_pairs(x), tiles * rows * COLUMNS)
    if x.packed:
        chain = minimum(chain, ceil_div(minimum(x.B, ceil_div(rows, x.S)) * x.keys, COLUMNS))
    return Grid(blocks=tiles, chain_steps=chain)


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(FLOPs of the device, HBM bytes, stores that wait for addresses, the chain of one block).

    The tiles of a chain wait for each other (product, ReLU, store), so that a unit alone stays below its peak; many
    together share the engine's power and the keys' way from L2. A row of logits is as long as the keys of all
    sequences: where the blocks at work store over more memory than address translation holds, each row of a tile
    waits page_s for its turn there.

    Where SGLang scores in chunks, each fills the device for itself, and its selection asks for a length that only the
    device knows (`torch.repeat_interleave`): the host launches what follows once that is there (chunk_s), and has no
    lead left over the device after the last of them (behind_s).
    """
    grid, x, work = kernel.grid, kernel.shape, kernel.executed
    assert grid is not None
    units, weight = hardware.compute.units, theta["wave_weight"]
    rounds, stores, launch = waves(grid.blocks, units, weight), 0.0, theta["launch_s"] * kernel.launches
    again: Quantity = 0.0
    chain = rounds * (theta["block_s"] + grid.chain_steps * theta["step_s"])
    if isinstance(x, Indexer) and x.decoding:
        chain = by_page(x, grid.blocks, units, theta)
    elif isinstance(x, Indexer):
        rows = queries_per_tile(x.H)
        chunks = chunks_of(x, hardware, theta)
        blocks = ceil_div(grid.blocks, chunks)
        chain = chunks * waves(blocks, units, weight) * (theta["block_s"] + grid.chain_steps * theta["step_s"])
        waited = theta["behind_s"] + chunks * theta["chunk_s"]
        launch = launch * chunks + where(chunks > 1, waited, 0.0)
        crowding = minimum(blocks, units) * rows * 4 * x.B * x.keys / theta["page_reach"]
        thrashing = crowding * crowding / (1.0 + crowding * crowding)
        stores = grid.blocks * grid.chain_steps * rows * theta["page_s"] * thrashing
        if x.gathered:
            copied = 2 * x.B * x.keys * x.k_heads * key_bytes(x.d, x.dtype)
            launch = launch + copied / (hardware.memory.hbm.bandwidth * theta["gather_efficiency"])
        if x.ratio is not None:
            paged = theta["reads"] >= BY_PAGE
            segments = maximum(x.B * executed_pairs(x) / COLUMNS, x.B * x.S)
            chain = where(paged, by_page(x, segments, units, theta), chain)
            stores = where(paged, 0.0, stores)
            again = where(paged, read_again(x, hardware, theta), 0.0)
    tensor: Quantity = 0.0
    for dtype, flops in work.tensor.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta["tensor_efficiency"])
    return Terms(
        tensor=tensor,
        memory=memory_seconds(kernel, hardware, theta, work.hbm_bytes + again),
        l2=stores,
        chain=chain,
        launch=launch,
        overlap=theta["overlap"],
    )


def chunks_of(x: Indexer, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Launches that score the queries: the rows of a chunk have room for the keys of all sequences, 4 bytes each."""
    if x.chunks is not None:
        return x.chunks
    if x.ratio is not None:  # read from their pages, whatever their number
        return 1
    side_by_side = Selection(x.B * x.S, 0, x.k, width=x.B * x.keys, logits_share=None)
    return side_by_side.chunks(hardware.memory.hbm.capacity, theta["chunked"]).count


def by_page(x: Indexer, segments: Quantity, units: int, theta: Mapping[str, float]) -> Quantity:
    """Seconds of the paged kernel's chain, to which every query is a row of its own.

    The segments of all rows are dealt out evenly. A unit begins each of its rows with a prologue, and finds it, in
    kernels for rows of any length, by a walk over all of them.
    """
    rows, weight = x.B * x.S, theta["wave_weight"]
    begun = waves(rows, units, weight) * (theta["block_s"] + rows * theta["walk_s"])
    return begun + waves(segments, units, weight) * theta["step_s"]


def read_again(x: Indexer, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Bytes of keys that the paged kernel reads from HBM for the rows of a sequence after its first.

    The units are dealt rows of all sequences and stand at other keys of them at any time: what L2 does not hold of all
    these is read by every row.
    """
    keys = x.keys * x.k_heads * key_bytes(x.d, x.dtype)
    if not hardware.memory.l2.capacity:
        return x.B * (x.S - 1) * keys
    at_work = maximum(minimum(x.B, hardware.compute.units) * keys, 1.0)
    missed = 1.0 - minimum(theta["l2_share"] * hardware.memory.l2.capacity / at_work, 1.0)
    return x.B * (x.S - 1) * keys * missed


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dQ = dI·K and dK = dIᵀ·Q in bf16: two products for the one of the forward pass.

    The indexer learns from a divergence over the selected tokens only (arXiv:2512.02556, eq. 4), so its gradient
    is not quadratic: see `selected_pairs`. With k ≥ L that is the dense warm-up, twice the forward FLOPs.
    Executed: the scores of these pairs are computed once more, for the mask of the ReLU.
    """
    x: Indexer = kernel.shape
    pairs = named("selected_pairs", selected_pairs(x))
    s = dict(B=x.B, S=x.S, L=x.keys, H=x.H, Hk=x.k_heads, d=x.d, pairs=pairs)
    inputs = 2 * size("B S H d", s) + 4 * size("B S H", s) + 2 * size("B L Hk d", s)
    product, gradient = dot("B H pairs d", s), 4 * size("B pairs", s)
    ideal = Work(tensor={"bf16": 2 * product}, read=inputs + gradient, written=inputs)
    executed = ideal._replace(
        tensor={"bf16": 3 * product}, vector=4 * size("B H pairs", s), l2=3 * 2 * size("B pairs Hk d", s)
    )
    return (kernel._replace(name=f"{kernel.name} backward", ideal=ideal, executed=executed, instance="bf16"),)


FORM = Form(
    family="indexer",
    summary="scores of every visible token for token selection",
    parameters=(
        Parameter("launch_s", 3.5e-6, 0.3, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
        Parameter("block_s", 0.6e-6, 0.5, 0.05e-6, 1e-5, "s", "prologue and epilogue of one tile of queries"),
        Parameter("step_s", 0.8e-6, 0.4, 0.02e-6, 5e-6, "s", "one key tile in the chain of one thread block"),
        Parameter(
            "tensor_efficiency", 0.5, 0.25, 0.05, 1.0, "1", "share of the datasheet FLOP/s of all units together"
        ),
        Parameter("memory_efficiency", 0.8, 0.15, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
        Parameter(
            "page_reach", 6e9, 0.5, 5e8, 1e12, "B", "memory over which blocks store without waiting for addresses"
        ),
        Parameter("page_s", 4e-9, 0.4, 1e-10, 1e-7, "s", "a logit row's wait for its address beyond that reach"),
        Parameter("walk_s", 3e-11, 1.0, 1e-12, 1e-8, "s", "walk of the paged kernel past one row to find the next"),
        Parameter("gather_efficiency", 0.2, 0.8, 0.01, 1.0, "1", "share of HBM bandwidth when keys leave their pages"),
        Parameter(
            "reads", 1.0, 0.0, 1.0, 2.0, "1", "compressed keys in prefill: 1 by tiles of queries, 2 as in decode"
        ),
        Parameter(
            "chunk_s", 1.1e-4, 0.3, 1e-6, 1e-3, "s", "launches of a chunk's selection, for which the device waits"
        ),
        Parameter("behind_s", 3.5e-4, 0.4, 1e-6, 3e-3, "s", "launches of the module after its last chunk of queries"),
        CHUNKED,
        Parameter("l2_share", 0.72, 0.2, 0.1, 1.0, "1", "share of L2 that a replay finds filled"),
        Parameter("l2_over_hbm", 2.2, 0.2, 1.0, 8.0, "1", "L2 bandwidth over HBM's"),
        Parameter("wave_weight", 0.6, 0.4, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
        Parameter("overlap", 3.0, 0.2, 1.5, 8.0, "1", "exponent of the p-norm"),
    ),
    terms=terms,
    backward=backward,
    sources=("arXiv:2512.02556, section 2.1", "deepseek-ai/DeepGEMM, csrc/apis/attention.hpp"),
    model_spread=0.3,
    # sgl-project/sglang, layers/attention/dsv4/indexer.py: fp8_paged_mqa_logits, in prefill as well; where keys are not
    # compressed, layers/attention/dsa/dsa_indexer.py (`_get_topk_ragged`) scores queries in chunks.
    built={"sglang": {"reads": BY_PAGE, "chunked": IN_CHUNKS}},
    elsewhere=("walks",),
)


def indexer(name: str, x: Indexer) -> Kernel:
    """The logits kernel.

    >>> indexer("i", Indexer(B=1, S=1, P=1023, H=64, d=128, k=2048)).work.flops == 1024 * 16_384  # 2 · 64 · 128
    True
    """
    ideal, executed = work(x)
    return Kernel(
        name=name,
        form=FORM,
        ideal=ideal,
        executed=executed,
        grid=grid(x),
        instance=f"h{x.H}-d{x.d}-{x.dtype}",
        shape=x,
        implementation="DeepGEMM paged_mqa_logits" if x.decoding else "DeepGEMM mqa_logits",
    )
