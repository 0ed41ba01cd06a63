"""Attention to the last w tokens and to blocks of r tokens compressed to one entry each, all in one softmax.

Keys are the values (K = V), one head of them for all query heads. HCA sees every finished block, CSA the k best. As in
sparse attention, the heads of a query share the rows that it gathers: 64 heads × 64 rows make a tile; the window and
the entries are two lists of rows, each filled up to whole tiles.

Source: DeepSeek-V4 technical report, section 2.3; deepseek-ai/FlashMLA, sparse prefill and decode with a second cache
(the kernels that engines run for these layers); sgl-project/sglang, deepseek_v4_backend.py (c128_topk_lengths_clamp1:
one entry at least; few queries of a prefill as those of a decode step); vllm-project/vllm, models/deepseek_v4
(_forward_prefill, dequantize_and_gather_k_cache, combine_topk_swa_indices: one list of widened rows).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum, named, power, root, where
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels import attention
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Terms, Work, memory_seconds, no_backward, waves
from costmodel.kernels.compressed_rows import (
    BY_HEADS,
    CLAMPED,
    DEALT,
    LEAST_HEADS,
    MANY,
    PASS,
    WIDENED,
    CompressedAttention,
    carried,
    entry_pairs,
    gathered_rows,
    head_tiles,
    prepared,
    readers,
    sliced,
    steps_of_keys,
    walked,
    without_entries,
)
from costmodel.kernels.flashmla_schedule import schedule
from costmodel.kernels.sparse_attention import DEQUANTISE, HEADS, ROWS, padded_heads
from costmodel.pairs import window


def work(x: CompressedAttention) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·(window pairs + entry pairs)·2d. HBM bytes: Q and, where k selects, indices in, O out, each visible or
    selected row once. Executed: heads and rows in whole tiles, an index per gathered row, all of them through L2, and
    their widening to bf16.
    """
    L = x.P + x.S
    near, far = named("window_pairs", window(x.P, x.S, x.w)), named("entry_pairs", entry_pairs(x))
    s = dict(B=x.B, S=x.S, H=x.H, d=x.d, near=near, far=far, H64=padded_heads(x.H))
    s["gathered"] = named("gathered", gathered_rows(x))
    entries = floor_div(L, x.r) if x.k is None else minimum(floor_div(L, x.r), far)
    queries, rows = 2 * size("B S H d", s), x.B * (minimum(L, x.w + x.S - 1) + entries) * x.row_bytes
    ideal = Work(
        tensor={x.dtype: 2 * (dot("B H near d", s) + dot("B H far d", s))},
        read=queries + rows + (0 if x.k is None else 4 * size("B far", s)),
        written=queries,
    )
    scores, padded = size("B H64 gathered", s), 2 * size("B S H64 d", s)
    executed = Work(
        tensor={x.dtype: 2 * dot("B H64 gathered d", s)},
        vector=4 * scores + (DEQUANTISE * size("B gathered d", s) if x.quantised else 0),
        special=scores + (size("B S H", s) if x.sinks else 0),
        read=padded + rows + 4 * size("B gathered", s),
        written=padded,
        l2=size("B gathered", s) * x.row_bytes,
    )
    return ideal, executed


def grid(x: CompressedAttention) -> Grid:
    """A block per query and 64 heads, its chain the mean number of tiles, before any split over idle units."""
    tiles = ceil_div(gathered_rows(x), x.S * ROWS)
    return Grid(blocks=x.B * x.S * ceil_div(x.H, HEADS), chain_steps=tiles)


LEAST = 5
"""Tiles that a thread block takes at least before a query's rows are split, where no `schedule` deals them out."""

PARTIAL = 4
"""Bytes of an element of a partial output, which is written and read again."""

CROWDED = 4.0
"""The exponent of the p-norm of a step alone and of its wait for rows that others read at the same time."""

WITHOUT_FMA = 0.5
"""Share of the fp32 FLOP/s that other instructions reach."""


class Share(NamedTuple):
    """What the fullest thread block does: tiles, queries that it begins and those of both lists; into how many parts a
    query is split, and the seconds of combining these."""

    tiles: Quantity
    begun: Quantity
    both: Quantity
    parts: Quantity
    combining: Quantity


def _fullest_block(
    kernel: Kernel, hardware: Hardware, theta: Mapping[str, float], blocks: Quantity, tiles: Quantity, by_heads: Any
) -> Share:
    """Waves of so many blocks with the tiles of a query each, or what FlashMLA's decode kernel deals to one.

    Parts of a query are written as fp32 and read again, and what combines them awaits one after the other.
    """
    x, units = kernel.shape, hardware.compute.units
    split = maximum(minimum(minimum(theta["splits"], units / blocks), tiles / LEAST), 1.0)
    parts = split if x.decoding else where(theta["rows"] >= WIDENED, 1.0, split)
    rounds = waves(blocks * parts, units, theta["wave_weight"])
    waved = Share(rounds * tiles / parts, rounds, rounds, parts, (parts - 1.0) * theta["split_s"])
    by_decode = True if x.decoding else where(theta["dealt"] >= DEALT, x.B * x.S <= MANY, False)
    by_decode = where(by_heads, False, by_decode)
    if by_decode is False:
        return waved
    assert kernel.grid is not None
    counted = kernel.grid.chain_steps + where(theta["entries"] >= CLAMPED, where(without_entries(x) > 0, 1, 0), 0)
    dealt = schedule(x.B * x.S, counted, x.H, units, hardware.generation)
    both = where(dealt.whole > 0, dealt.whole, where(dealt.tiles > ceil_div(x.w, ROWS), 1, 0))
    partial = 2 * PARTIAL * dealt.split * dealt.parts * padded_heads(x.H) * x.d
    l2 = hardware.memory.l2.bandwidth or hardware.memory.hbm.bandwidth * theta["l2_over_hbm"]
    combining = where(dealt.split > 0, theta["combine_s"] + partial / l2, 0.0) + (dealt.parts - 1) * theta["split_s"]
    own = Share(dealt.tiles * tiles / counted, dealt.queries, both, dealt.parts, combining)
    return Share(*(where(by_decode, mine, other) for mine, other in zip(own, waved, strict=True)))


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + requests + prologues + splits + pnorm(FLOPs, bytes, and each tile's latency, over waves of blocks).

    A thread block fills its unit, so loading Q and storing O overlap with nothing, and the first rows of the entries
    are awaited once the window is through: a first entry costs more than one tile. FlashMLA's decode deals tiles
    out to a block for each unit (`schedule`); in other kernels that leave units idle the rows of a query are split
    over up to `splits` of them. The partial outputs are combined. vLLM widens all rows that the queries of a few
    requests see to bf16 (`gather`, and `row_s` for each that a worker goes through), joins window and entries to
    one list, and launches a prefill kernel for these, which splits no query (PREFILL_CHUNK_SIZE: request_s;
    `rows`). SGLang's prefill runs the decode kernel over the cache for few queries (`dealt`); for many it widens
    all rows that they see to bf16 once (`gather`), and its prefill kernel takes `many` of the time for a tile.
    Blackwell's kernels of 128 heads are other code, whose units share the rows that they widen (`pair_step`,
    `pair_block`). SGLang also asks for one entry at least (`entries`): a query before the first finished one then
    walks a tile of nothing (`empty`), as it does not in vLLM. TensorRT-LLM on Blackwell has tiles for fewer heads,
    which multiply 8-bit rows as they are (`tiles`) and go through one list of rows in prefill (`steps_of_keys`);
    where all queries at work see the same window, its rows are waited for (`crowding`). Decode keeps two lists:
    with one, its measured times were met no better. Before the kernel, queries and lists are prepared (`prepared`),
    and TensorRT-LLM's compressor walks an entry's tokens one by one (`entry_s`). On Blackwell, where it multiplies
    the groups of outputs in 8 bits, SGLang copies those of few heads first (`sliced`).
    """
    x: CompressedAttention = kernel.shape
    assert kernel.grid is not None
    more = 1.0 + theta["empty"] * ROWS * without_entries(x) / gathered_rows(x)
    units, blocks, tiles = hardware.compute.units, kernel.grid.blocks, kernel.grid.chain_steps * more
    vector, traffic, computed = kernel.executed.vector, kernel.executed.hbm_bytes, 1.0
    step_s, block_s = theta["step_s"], theta["block_s"]
    widened = False if x.decoding else theta["rows"] >= WIDENED
    vector = where(widened, 4 * x.B * padded_heads(x.H) * gathered_rows(x), vector)
    by_heads: Quantity = False
    paired: Quantity = 1.0
    if hardware.generation == "blackwell":
        by_heads = theta["tiles"] >= BY_HEADS
        pairs = where(by_heads, False, x.H > HEADS)
        block_s, paired = where(pairs, theta["pair_block"], 1.0) * block_s, where(pairs, theta["pair_step"], 1.0)
        padded = padded_heads(x.H)
        of_query, step, edges = head_tiles(x, units)
        blocks = where(by_heads, x.B * x.S * of_query, blocks)
        step_s, block_s = where(by_heads, step, 1.0) * step_s, where(by_heads, edges, 1.0) * block_s
        faster = hardware.tensor_peak("fp8") / hardware.tensor_peak(x.dtype) if x.quantised else 1.0
        computed = where(by_heads, maximum(x.H, LEAST_HEADS) / (padded * faster), 1.0)
        in_steps = gathered_rows(x) if x.decoding else steps_of_keys(x)
        tiles = tiles if x.decoding else where(by_heads, in_steps / (x.S * ROWS), tiles)
        computed = computed * where(by_heads, in_steps / gathered_rows(x), 1.0)
        vector = where(by_heads, 4 * x.B * x.H * in_steps, vector)
        narrow = x.H if x.quantised else 0
        traffic = traffic - where(by_heads, x.B * x.S * (4 * (padded - x.H) + narrow) * x.d, 0)
    share = _fullest_block(kernel, hardware, theta, blocks, tiles, by_heads)
    idle = paired * share.tiles * units / (blocks * tiles)
    tensor: Quantity = 0.0
    for dtype, flops in kernel.executed.tensor.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta["tensor_efficiency"])
    one_list = False if x.decoding else by_heads
    at_work = minimum(x.B * x.S, units * x.B * x.S / blocks)
    crowded = root(1.0 + power(theta["crowding"] * readers(x, at_work), CROWDED), CROWDED)
    waited = where(one_list, (crowded - 1.0) * ceil_div(x.w, ROWS) / share.parts, 0.0)
    lists = where(one_list, 0.0, where(widened, 0.0, 1.0)) * (1.0 - (1.0 - theta["empty"]) * without_entries(x) / x.S)
    launch = theta["launch_s"] * kernel.launches + share.begun * block_s + share.both * lists * theta["list_s"]
    launch = launch + share.combining + memory_seconds(kernel, hardware, PASS, prepared(x, by_heads))
    copied = where(theta["dealt"] >= DEALT, sliced(x), 0) if hardware.generation == "blackwell" else 0
    launch = launch + copied * theta["copy"] / (hardware.compute.vector * WITHOUT_FMA)
    slower: Quantity = 1.0
    if not x.decoding:
        many = where(widened, 0, where(by_heads, 0, x.B * x.S)) > MANY
        slower = where(many, theta["many"], 1.0)
        rows = x.B * (minimum(x.length, x.w + x.S - 1) + floor_div(x.length, x.r)) * (x.row_bytes + 2 * x.d)
        launch = launch + theta["request_s"] * (x.B - 1) + where(by_heads, walked(x), 0) * theta["entry_s"]
        passes = where(widened, theta["gather"], where(many, theta["gather"], 0.0))
        launch = launch + passes * rows / hardware.memory.hbm.bandwidth
        launch = launch + where(widened, carried(x, units), 0) * theta["row_s"]
    return Terms(
        tensor=tensor * computed * idle * slower * more,
        vector=vector / (hardware.compute.vector * theta["vector_efficiency"]) * idle * slower * more,
        memory=memory_seconds(kernel, hardware, theta, traffic),
        chain=(paired * share.tiles + share.both * waited) * step_s * slower,
        launch=launch,
        overlap=theta["overlap"],
    )


PARAMETERS = (
    Parameter("launch_s", 6.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of a kernel"),
    Parameter("request_s", 0.5e-6, 1.5, 1e-9, 2e-5, "s", "each further request of a prefill, where an engine loops"),
    Parameter("many", 1.0, 0.3, 0.2, 2.0, "1", "time of a tile in a prefill of many queries over that of few"),
    Parameter("gather", 1.0, 1.0, 0.01, 20.0, "1", "traffic of widening the rows of many queries, over one pass"),
    Parameter("row_s", 1.2e-6, 0.3, 1e-9, 1e-5, "s", "a row that a worker of vLLM's gathering goes through"),
    Parameter("empty", 0.3, 1.0, 0.01, 1.0, "1", "tile that a query walks where no entry is finished: 1 whole, 0 none"),
    Parameter("entries", 1.0, 0.0, 1.0, 2.0, "1", "list before the first entry: 1 empty, 2 of one that is none"),
    Parameter("dealt", 1.0, 0.0, 1.0, 2.0, "1", "kernel of a prefill of few queries: 1 its own, 2 decode's"),
    Parameter("copy", 40.0, 0.5, 4.0, 400.0, "1", "instructions of an element whose place a strided copy computes"),
    Parameter("rows", 1.0, 0.0, 1.0, 2.0, "1", "rows of a prefill: 1 as they are cached, 2 widened to bf16 before"),
    Parameter("tiles", 1.0, 0.0, 1.0, 2.0, "1", "heads of a tile: 1 whole 64, 2 those that a rank has"),
    Parameter("splits", 8.0, 1.0, 1.0, 200.0, "1", "thread blocks that share a query's rows where units are idle"),
    Parameter("split_s", 0.5e-6, 0.7, 1e-9, 1e-5, "s", "combining one more partial output"),
    Parameter("combine_s", 2e-6, 0.7, 1e-9, 1e-5, "s", "combining the parts of queries that are split, however many"),
    Parameter("pair_step", 1.0, 0.3, 0.3, 3.0, "1", "time of a tile in a kernel of 128 heads over that of 64"),
    Parameter("pair_block", 1.0, 0.3, 0.2, 5.0, "1", "block_s of a kernel of 128 heads over that of 64"),
    Parameter("block_s", 2.0e-6, 0.5, 0.2e-6, 3e-5, "s", "prologue and epilogue of one tile of heads"),
    Parameter("list_s", 1.0e-6, 1.0, 1e-9, 1e-5, "s", "beginning the list of entries after that of the window"),
    Parameter("entry_s", 0.15e-6, 0.5, 1e-9, 1e-6, "s", "a token that a thread block of the compressor walks"),
    Parameter("step_s", 1.0e-6, 0.6, 0.05e-6, 1e-5, "s", "latency of 64 gathered rows in one thread block"),
    Parameter(
        "crowding", 0.012, 0.7, 1e-4, 0.1, "1", "a step's wait for L2 per query at work that reads the same rows"
    ),
    Parameter("tensor_efficiency", 0.55, 0.25, 0.05, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
    Parameter("vector_efficiency", 0.5, 0.4, 0.05, 1.0, "1", "share of the fp32 FLOP/s; one without FMA is 0.5"),
    Parameter("memory_efficiency", 0.7, 0.3, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's"),
    Parameter("l2_share", 0.7, 0.3, 0.1, 1.0, "1", "share of L2 in which replayed buffers stay"),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 3.0, 0.25, 1.5, 8.0, "1", "exponent of the p-norm"),
)

CSA_PREFILL = Form(
    family="csa-prefill",
    summary="many queries to a window and their selected compressed entries",
    parameters=PARAMETERS,
    terms=terms,
    # The five products of dense attention, each over the gathered rows.
    backward=attention.backward,
    model_spread=0.3,
    built={"trtllm": {"tiles": BY_HEADS}, "sglang": {"entries": CLAMPED, "dealt": DEALT}, "vllm": {"rows": WIDENED}},
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
