"""Attention of every query to the blocks of keys that were selected for it, in one of two loop orders.

Queries outside: a program takes one query token with the heads that share its selection, padded to the 16 rows of
a matrix instruction, and walks its blocks; each block crosses L2 for every query that selected it. Blocks outside:
a program takes one block of keys and gathers 128 rows of the queries that selected it, so the block is read once
per tile, but each (query, block) leaves a partial output that is written, read back and combined.

Source: NSA, arXiv:2502.11089, section 3.4, and fla-org/native-sparse-attention, ops/parallel.py (queries outside);
MSA, arXiv:2606.13392, and Flash Sparse Attention, arXiv:2508.18224 (blocks outside).
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, half, log2, maximum, minimum, named, power, where
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels import attention
from costmodel.kernels.base import OVERLAPPING, Form, Grid, Kernel, Parameter, Terms, Work, unit_terms
from costmodel.kernels.processor import PROCESSOR

ROWS = 16
"""Rows of one matrix instruction; the heads of one query are padded to a multiple."""

GATHERED_ROWS = 128
"""Query rows that the kernel with the blocks outside gathers into one tile."""

SPLIT = 4
"""Blocks that one program of the decode kernel walks when those of a query are split over the device."""

RESIDENT = 4
"""Programs that share a unit; where all walk the same entries, its first-level cache serves them together."""

TILE = 128
"""Keys of a tile at most: of a query's own block, tiles that begin after the query are skipped."""

PARTIAL_BYTES = 4
"""Bytes of an element of a partial output, which is kept in fp32 with its maximum and its sum."""


class BlockSparse(NamedTuple):
    """B sequences, S queries of H heads over Hkv key heads of width dk and dv.

    pairs: attended (query, key) pairs per sequence and head; walked: those of whole tiles; visits: (query, block)
    pairs per sequence and selecting head, blocks of b keys; selectors: heads that select for themselves, H or, where a
    group shares its selection, Hkv; entries: keys in the cache of a sequence; row_bytes: of a key with its value, per
    key head; kv: their format; most: blocks that a query may select (None: those that it visits); indexed: the blocks
    are given by indices (no: they are all the visible ones); blocks_outside: the order.
    """

    B: Quantity
    S: Quantity
    H: Quantity
    Hkv: Quantity
    dk: Quantity
    dv: Quantity
    pairs: Quantity
    walked: Quantity
    visits: Quantity
    b: Quantity
    selectors: Quantity
    entries: Quantity
    row_bytes: Quantity
    most: Quantity | None = None
    indexed: bool = True
    blocks_outside: bool = False
    softcap: bool = False
    sinks: bool = False
    dtype: str = "bf16"
    kv: str = "bf16"
    decoding: bool = False

    @property
    def length(self) -> Quantity:
        """Entries of a sequence."""
        return self.entries


def own_tile(b: Quantity) -> Quantity:
    """Keys beyond the query that whole tiles of its own block hold, on average.

    >>> own_tile(64), own_tile(4096)
    (31.5, 63.5)
    """
    return half(minimum(b, TILE) - 1)


def ragged_rows(x: BlockSparse) -> Quantity:
    """Empty query rows of one sequence with the blocks outside: half of the last tile of every block and selector."""
    return GATHERED_ROWS // 2 * ceil_div(x.entries, x.b) * x.selectors


def padded_heads(x: BlockSparse) -> Quantity:
    """Rows of a selecting head's products: its query heads, padded to whole matrix instructions."""
    return ROWS * ceil_div(x.H, ROWS * x.selectors)


def work(x: BlockSparse) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·pairs·(dk + dv). HBM bytes: Q and indices in, O out, and the selected rows, at most the whole cache
    once. Executed: whole blocks, padded rows, one exp per computed score, the rows through L2, and partial outputs.
    """
    s = dict(B=x.B, S=x.S, H=x.H, dk=x.dk, dv=x.dv, b=x.b, selectors=x.selectors)
    s |= dict(pairs=named("pairs", x.pairs), visits=named("visits", x.visits), walked=named("walked", x.walked))
    s["keys"] = minimum(x.Hkv * x.entries, x.selectors * s["pairs"])
    queries, output = 2 * size("B S H dk", s), 2 * size("B S H dv", s)
    indices = 4 * size("B selectors visits", s) if x.indexed else 0
    read = queries + size("B keys", s) * x.row_bytes + indices
    ideal = Work(tensor={x.dtype: dot("B H pairs dk", s) + dot("B H pairs dv", s)}, read=read, written=output)
    if x.blocks_outside:
        s["computed"] = named("computed_pairs", x.H * s["walked"] + ragged_rows(x) * x.b)
        streamed = size("B computed", s) / GATHERED_ROWS
        partial = PARTIAL_BYTES * (x.dv + 2) * size("B H visits", s)
    else:
        s["computed"] = padded_heads(x) * size("selectors walked", s)
        streamed, partial = size("B selectors walked", s) / (1 if x.indexed else RESIDENT), 0
    scores = size("B computed", s)
    executed = Work(
        tensor={x.dtype: dot("B computed dk", s) + dot("B computed dv", s)},
        vector=4 * scores + partial / PARTIAL_BYTES,
        special=scores * (2 if x.softcap else 1) + (size("B S H", s) if x.sinks else 0),
        read=read + partial,
        written=output + partial,
        l2=streamed * x.row_bytes,
    )
    return ideal, executed


def grid(x: BlockSparse) -> Grid:
    """A program per query and selector with its blocks as the chain, split in decode; or per tile of gathered rows."""
    if x.blocks_outside:
        tiles = ceil_div(x.visits * x.H + ragged_rows(x), GATHERED_ROWS)
        return Grid(blocks=x.B * tiles, chain_steps=ceil_div(x.b, TILE))
    programs, steps = x.B * x.S * x.selectors, maximum(1, ceil_div(x.visits, x.S))
    if x.decoding:
        return Grid(blocks=programs * ceil_div(steps, SPLIT), occupancy=RESIDENT, chain_steps=minimum(steps, SPLIT))
    return Grid(blocks=programs, occupancy=RESIDENT, chain_steps=steps)


PARAMETERS = (
    Parameter("launch_s", 6.0e-6, 0.5, 1e-6, 1e-3, "s", "launch, scheduling and the tail of a kernel"),
    Parameter("block_s", 1.0e-6, 0.5, 0.1e-6, 1e-5, "s", "prologue and epilogue of one program"),
    Parameter("step_s", 0.4e-6, 0.5, 0.02e-6, 5e-6, "s", "one block of keys in the chain of one program"),
    Parameter("tensor_efficiency", 0.45, 0.35, 0.05, 1.0, "1", "share of the datasheet FLOP/s on padded rows"),
    Parameter("special_efficiency", 0.7, 0.3, 0.05, 1.0, "1", "share of the exp rate"),
    Parameter("vector_efficiency", 0.5, 0.3, 0.05, 1.0, "1", "share of the fp32 FLOP/s for the softmax"),
    Parameter("memory_efficiency", 0.8, 0.15, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's, where the profile has no figure"),
    Parameter("l2_share", 0.7, 0.3, 0.1, 1.0, "1", "share of L2 in which replayed buffers stay"),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
)


def unpadded(kernel: Kernel, hardware: Hardware) -> Kernel:
    """On a processor, the kernel with the scores of its heads alone: a core has no tile of rows to fill."""
    x: BlockSparse = kernel.shape
    if hardware.generation != PROCESSOR or x.blocks_outside:
        return kernel
    share = x.H / (x.selectors * padded_heads(x))
    executed = kernel.executed
    return kernel._replace(
        executed=executed._replace(
            tensor={dtype: flops * share for dtype, flops in executed.tensor.items()},
            vector=executed.vector * share,
            special=executed.special * share,
        )
    )


def by_query(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """The common form of a program per query and selecting head."""
    return unit_terms(unpadded(kernel, hardware), hardware, theta)


BLOCK_SPARSE = Form(
    family="block-sparse",
    summary="attention to blocks of keys selected by query",
    parameters=PARAMETERS,
    terms=by_query,
    # The five products of dense attention, each over the selected blocks.
    backward=attention.backward,
    sources=("arXiv:2502.11089, section 3.4", "arXiv:2508.18224"),
    model_spread=0.35,
    # Frameworks copy a block of keys for every query that selected it, which takes longer than its products.
    starts=({"step_s": 4e-6},),
)


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """The common form, with what only some engines do.

    One that gathers the queries of a block (as MSA's own kernel) writes and reads a partial output per visit: the
    share of them that leaves the chip is partial_share, 0 for a program per query. Its tiles hold the heads of many
    queries, so that few heads are not padded to a matrix instruction (`gathers`). Where a program searches its sequence
    among those of the batch, it walks past each in walk_s. In decode a query's blocks are split over the device, or one
    program walks them all, or as many share them as the batch leaves room for, each of which waits for its pages one
    after the other (`walks`).
    """
    x: BlockSparse = kernel.shape
    assert kernel.grid is not None
    if x.decoding:
        steps, programs = maximum(1, ceil_div(x.visits, x.S)), x.B * x.S * x.selectors
        most = steps if x.most is None else x.most
        share = minimum(ceil_div(most, fixed_shares(programs, SHARED_GRID, most)), steps)
        whole, fixed = theta["walks"] >= WHOLE, theta["walks"] >= FIXED
        blocks = where(fixed, programs * ceil_div(steps, share), where(whole, programs, kernel.grid.blocks))
        chain_steps = where(fixed, share, where(whole, steps, kernel.grid.chain_steps))
        occupancy = where(fixed, FIXED_RESIDENT, kernel.grid.occupancy)
        step_s = where(fixed, theta["page_s"], theta["step_s"])
        launched = kernel.grid._replace(blocks=blocks, occupancy=occupancy, chain_steps=chain_steps)
        return unit_terms(kernel._replace(grid=launched), hardware, {**theta, "step_s": step_s})
    common = by_query(kernel, hardware, theta)
    if hardware.generation == "blackwell":
        outside = x._replace(blocks_outside=True)
        # Partial outputs, and what of them leaves the chip, are counted below.
        gathered = work(outside)[1]._replace(read=kernel.executed.read, written=kernel.executed.written)
        other = unit_terms(kernel._replace(executed=gathered, grid=grid(outside)), hardware, theta)
        by_block = theta["gathers"] >= GATHERED
        common = common._replace(
            **{name: where(by_block, getattr(other, name), getattr(common, name)) for name in OVERLAPPING}
        )
    partial = 2 * PARTIAL_BYTES * (x.dv + 2) * x.B * x.H * x.visits
    bandwidth = hardware.memory.hbm.bandwidth * theta["memory_efficiency"]
    rounds = maximum(kernel.grid.blocks / (hardware.compute.units * kernel.grid.occupancy), 1.0)
    return common._replace(
        memory=common.memory + theta["partial_share"] * partial / bandwidth,
        chain=common.chain + rounds * x.B * theta["walk_s"],
    )


# A program alone waits for a whole page of 128 keys and 128 values; a query has rows for a quarter of an instruction.
PAGE = Parameter("step_s", 3.0e-6, 0.7, 0.05e-6, 5e-5, "s", "one page of keys and values in the chain of one program")
PADDED = Parameter("tensor_efficiency", 0.4, 0.5, 0.02, 1.0, "1", "share of the datasheet FLOP/s on padded rows")
BY_PAGE = {PAGE.name: PAGE, PADDED.name: PADDED}
WAITED = PAGE._replace(name="page_s", meaning="one page of keys and values where programs share them by the batch")
SHARE = Parameter("partial_share", 0.03, 2.0, 1e-4, 1.0, "1", "share of partial outputs that pass through HBM")
WALK = Parameter("walk_s", 1e-9, 2.0, 1e-12, 1e-6, "s", "a program's step past one sequence to find its own")

WHOLE = 2.0
"""Value of `walks` where one program of decode goes through all keys of a query."""
FIXED = 3.0
"""Value of `walks` where the keys of a query are shared by as many programs as the batch leaves room for."""
WALKS = Parameter(
    "walks", 1.0, 0.0, 1.0, 3.0, "1", "keys of a query in decode: 1 split over the device, 2 not, 3 by the batch"
)
DIVIDED = {"trtllm": {"walks": WHOLE}, "sglang": {"walks": FIXED}}
"""TensorRT-LLM plans the scores and the attention of a step without splits (num_kv_splits=1). SGLang's grids are those
of a captured graph, which knows the batch and not its lengths.

Source: NVIDIA/TensorRT-LLM, _torch/attention_backend/sparse/minimax_m3 (_build_step_plans); sgl-project/sglang,
python/sglang/srt/layers/attention/minimax_sparse_ops/decode, flash_with_topk_idx.py (TARGET_GRID, MAX_NUM_KV_CHUNKS)
and topk_sparse.py (TARGET_GRID).
"""
SHARED_GRID, FIXED_RESIDENT = 256, 2
"""Programs of SGLang's attention over the selected blocks, where a query selects enough, and how many of them a unit
holds: two pages of keys and values each, of 32 KiB."""


def fixed_shares(programs: Quantity, grid: int, most: Quantity) -> Quantity:
    """Programs that share the keys of one: as many as fill a grid of so many, at most `most`, down to a power of two.

    >>> [fixed_shares(programs, 256, 16) for programs in (1, 32, 300)]
    [16, 8, 1]
    """
    return power(2, floor_div(log2(maximum(minimum(floor_div(grid, programs), most), 1)), 1))


GATHERED = 2.0
"""Value of `gathers` where a program takes a block of keys and the queries that selected it."""
GATHERS = Parameter("gathers", 1.0, 0.0, 1.0, 2.0, "1", "a prefill's programs on Blackwell: 1 per query, 2 per block")
BY_BLOCK = {"vllm": {"gathers": GATHERED}, "trtllm": {"gathers": GATHERED}}
"""vLLM and TensorRT-LLM run MSA's own kernel on Blackwell, which sorts queries by the blocks that they selected.

Source: MiniMax-AI/MSA, inference/msa_v1/attention/prefill (prepare_k2q_csr.py, atten_fwd_sm100.py).
"""

MSA_PREFILL = BLOCK_SPARSE._replace(
    family="msa-prefill",
    parameters=(*(BY_PAGE.get(parameter.name, parameter) for parameter in PARAMETERS), SHARE, WALK, GATHERS),
    terms=terms,
    built=BY_BLOCK,
    starts=(),
    summary="block-sparse attention of MSA, a program per query",
    sources=("arXiv:2606.13392", "vllm-project/vllm, models/minimax_m3/common/ops/sparse_attn.py"),
)
MSA_DECODE = BLOCK_SPARSE._replace(
    family="msa-decode",
    parameters=(*PARAMETERS, WAITED, WALKS),
    terms=terms,
    built=DIVIDED,
    starts=(),
    summary="block-sparse attention of MSA over few queries, blocks split",
    sources=("arXiv:2606.13392", "MiniMax-AI/MSA, inference/msa_v1/attention/decode"),
)
FORMS = (BLOCK_SPARSE, MSA_PREFILL, MSA_DECODE)


def block_sparse(name: str, x: BlockSparse, *, form: Form = BLOCK_SPARSE) -> Kernel:
    """The kernel; with the blocks outside, and in decode, a second one combines the partial outputs.

    >>> x = BlockSparse(1, 1, 8, 1, 64, 64, 96, walked=128, visits=2, b=64, selectors=1, entries=999, row_bytes=256)
    >>> k = block_sparse("a", x)
    >>> k.work.flops == 2 * 8 * 96 * 128, k.executed.tensor["bf16"] == 2 * 16 * 128 * 128
    (True, True)
    """
    ideal, executed = work(x)
    return Kernel(
        name=name,
        form=form,
        ideal=ideal,
        executed=executed,
        grid=grid(x),
        instance=f"hd{x.dk}-{x.kv}",
        shape=x,
        launches=2 if x.decoding or x.blocks_outside else 1,
        implementation="one program per block of keys" if x.blocks_outside else "one program per query",
    )
