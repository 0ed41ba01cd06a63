"""Dense and batched matrix products: [m × k] · [k × n], one weight matrix per batch entry.

Narrow activations arrive in 16 bit and are quantised first; that pass is part of the product, as engines launch it.

Sources: tiles, waves and split-K as in NVIDIA's "Matrix multiplication background" guide; operand traffic per tile as
in CUTLASS' efficient GEMM documentation; tiles by rows as in vllm-project/vllm, csrc/quantization/w8a8/cutlass; one
thread block per row as in csrc/quantization/w8a8/fp8/common.cu; eight rows in one where there are many, as in
sgl-project/sglang, sgl-kernel/csrc/gemm/per_token_quant_fp8.cu; 16 groups of 128 elements in one as in
vllm-project/vllm, csrc/quantization/w8a8/fp8/per_token_group_quant.cu; the scale of a whole in a kernel of
its own as in NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/common/cudaFp8Utils.cu. Priors: the middle of what fits of four
devices found.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, nominal, power, root, where
from costmodel.dtypes import compute_dtype, element_bytes, product_name
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, memory_seconds, replayed_share, waves
from costmodel.kernels.gemm_tiles import (
    FLASHINFER,
    FULL,
    RANKED,
    SGLANG,
    TILES,
    TRTLLM,
    VLLM,
    Tile,
    covered_by_a_round,
    lone_round_of_widest,
    published_tile,
    sized,
    waits,
)

RAMP = 30.0
"""Side of a tile at which half the FLOP/s are reached."""
SHARED = 0.5
"""Further blocks on an SM for each time that a tile is narrower than a full one."""
MOST_SPLITS = 32
"""Parts into which k is cut at most."""
PARTIAL = 8
"""Bytes of an element of a part: its fp32 sum is written and read again."""
MANY_ROUNDS = 4.0
"""Rounds of full tiles from which loads and products of different rounds overlap more than those of one."""
QUANTISED = 2048
"""Elements that a block of the quantisation takes in one step: 256 threads of 16 bytes."""
SCALED_BY_ROWS = ("fp8", "int8")
"""Formats with one scale for a whole row, which is read twice; a group of elements with its own stays in registers."""
SCALED_BY_GROUPS = ("fp8_block",)
"""Formats whose groups of elements have a scale of their own: blocks of the quantisation take groups of any row."""
BLOCKS_A_UNIT = 8
"""Blocks of the quantisation, of 256 threads, that share an SM."""
MANY_BLOCKS = 2
"""Blocks on every SM from which blocks of several rows are used."""
OF_ROWS, OF_THE_WHOLE = 1, 2
"""Values of `scales`: activations have one scale for each row, or one for all of them."""
COPIED_FROM, COPIED_COLUMNS = 1024, 512
"""Rows from which FlashInfer's quantisation copies them by TMA, and the columns of a copy, of which k is a multiple."""
ROWS_COPIED, COPYING_BLOCKS = 16, 2
"""Rows of a block that copies them, and such blocks on an SM."""
GROUP = 128
"""Elements of a group that has a scale of its own."""
GROUPS_A_BLOCK = (2, 4, 8, 16)
"""Groups that a block of the quantisation may take: the most of them that divide all groups."""
BLOCK_OVERLAP = 4
"""Exponent by which bytes overlap with the blocks' chains, or with starting blocks of few groups."""
IN_PLACE, COPIED = 1, 2
"""Values of `joining`: outputs of several products are written where they belong, or copied there."""
NO_SPLIT_S = 1e-4
"""Cost of a reduction from which a fit of a library that cuts no k starts."""
THROTTLING_S = 3e-4
"""Seconds of work at the full peak around which the power limit takes the clock down to its sustained value."""


class Gemm(NamedTuple):
    """Shape of a product: output m × n, inner k, `batch` independent ones, dtypes of both operands.

    parameters says whether the [k × n] operand is a parameter (counted as weight bytes). source is the dtype in which
    activations arrive. joined: the outputs of all products stand side by side in the rows of the next one.
    block_per_tile: each tile, all of one size, has a thread block of its own, so that a started
    round of them is a whole one. tiles: those that a library chooses between where it ranks them.
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
    joined: bool = False
    block_per_tile: bool = False
    tiles: tuple[Tile, ...] = TILES

    @property
    def length(self) -> Quantity:
        """Rows, which are the tokens of a layer."""
        return self.m

    @property
    def several(self) -> bool:
        """Whether several products run in one launch."""
        return not (type(self.batch) is int and self.batch == 1)

    @property
    def name(self) -> str:
        """The compiled kernel: its formats, and whether several products run in one launch."""
        return ("batched-" if self.several else "") + product_name(self.activations, self.weights)


class Pace(NamedTuple):
    """Of one product on a device: seconds of a FLOP and of a byte in one thread block, of a byte of HBM for all blocks
    together, and bytes of an element of either operand."""

    flop_s: Quantity
    byte_s: Quantity
    hbm_byte_s: float
    row_bytes: float
    column_bytes: float


def _pace(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Pace:
    """Long work runs at the clock that the power limit leaves."""
    shape: Gemm = kernel.shape
    dtype = compute_dtype(shape.activations, shape.weights)
    peak = hardware.tensor_peak(dtype)
    throttled = kernel.executed.tensor[dtype] / peak
    throttled = throttled / (throttled + THROTTLING_S)
    units, bandwidth = hardware.compute.units, hardware.memory.hbm.bandwidth
    return Pace(
        units / (peak * theta["tensor_efficiency"] * (1.0 - (1.0 - theta["sustained"]) * throttled)),
        units / (bandwidth * theta["block_bandwidth"]),
        1.0 / bandwidth,
        element_bytes(shape.activations),
        element_bytes(shape.weights),
    )


class Laid(NamedTuple):
    """A tile over a product: how many there are (whole clusters of them), rows that they ask for beyond the matrix over
    all columns, blocks that share a unit, FLOPs of a block, and elements that it reads of either operand.
    """

    tile: Tile
    tiles: Quantity
    beyond: Quantity
    resident: Quantity
    flops: Quantity
    row_elements: Quantity
    column_elements: Quantity


def lay(shape: Gemm, tile: Tile) -> Laid:
    """A tile over a product. Small tiles share an SM; every one asks for its rows beyond the matrix too.

    >>> over = lay(Gemm(m=100, n=4096, k=512), Tile(64, 128))
    >>> over.tiles, over.beyond
    (64, 896)
    """
    m, n, k = shape.m, shape.n, shape.k
    rows, columns = tile.rows, tile.columns
    area = rows * columns
    down, across = ceil_div(m, rows), ceil_div(n, columns)
    beyond = across * (down * rows - m) * shape.batch
    if not (type(tile.cluster_rows) is int and tile.cluster_rows == 1):
        down = ceil_div(down, tile.cluster_rows) * tile.cluster_rows
    if not (type(tile.cluster_columns) is int and tile.cluster_columns == 1):
        across = ceil_div(across, tile.cluster_columns) * tile.cluster_columns
    return Laid(
        tile,
        tiles=down * across * shape.batch,
        beyond=beyond,
        resident=maximum(1.0 + SHARED * (2 * FULL / (rows + columns) - 1.0), 1.0),
        flops=k * 2 * area * (1.0 + RAMP / root(area, 2)),
        row_elements=k * minimum(m, rows),
        column_elements=k * minimum(n, columns),
    )


class Launch(NamedTuple):
    """What of a product's launch no parameter moves: the tiles that may run, whether k may be cut, whether tiles wait
    for operands that L2 lost, where they may be a lone round of DeepGEMM's widest (None: never), and of either operand
    the bytes and how often rounds of tiles pass through them."""

    choices: tuple[Laid, ...]
    splits: bool
    waits: bool
    lone: Quantity | None
    passes: tuple[tuple[Quantity, Quantity], ...]


def _launch(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Launch:
    """A published table fixes the tile and never cuts k."""
    shape: Gemm = kernel.shape
    units, generation, dispatch = hardware.compute.units, hardware.generation, _dispatch(theta)
    published = published_tile(shape, generation, dispatch, units)
    lone: Quantity | None = None
    if (generation, dispatch) == ("hopper", SGLANG) and shape.activations in SCALED_BY_GROUPS:
        lone = lone_round_of_widest(shape.m, shape.n, shape.k, units)
    rows, columns = covered_by_a_round(shape, generation, dispatch, units)
    return Launch(
        choices=tuple(lay(shape, tile) for tile in (shape.tiles if published is None else (published,))),
        splits=published is None,
        waits=waits(published, generation),
        lone=lone,
        passes=(
            (shape.m * shape.k * element_bytes(shape.activations), shape.n / columns),
            (shape.n * shape.k * element_bytes(shape.weights), shape.m / rows),
        ),
    )


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + quantisation + pnorm(rounds of tiles, HBM bytes).

    Of the tiles that a library ranks, and of cutting k or not, the fastest is taken. Operands that L2 lost are read
    beside the products, or waited for. A lone round of DeepGEMM's widest tiles on Hopper, in no cluster then, takes
    longer in SGLang.
    """
    return _launched(_launch(kernel, hardware, theta), kernel, hardware, theta)


def _launched(launch: Launch, kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """The terms of a product whose launch is known."""
    shape: Gemm = kernel.shape
    copied = shape.joined and round(nominal(theta["joining"], IN_PLACE)) == COPIED
    units, pace = hardware.compute.units, _pace(kernel, hardware, theta)
    first, *others = (_tiles_seconds(shape, units, pace, theta, each, launch.splits) for each in launch.choices)
    busy, computes = first
    for other, other_computes in others:
        computes = where(other < busy, other_computes, computes)
        busy = minimum(busy, other)
    if launch.lone is not None:
        busy = busy * (1.0 + (theta["lone_round"] - 1.0) * launch.lone)
    memory, again = _memory_seconds(kernel, hardware, theta), _reread_seconds(shape, hardware, theta, launch)
    if launch.waits:
        computes = where(again < busy, computes, 0.0)
        busy = busy + again
    else:
        memory = memory + again
    return Terms(
        tensor=busy * computes,
        memory=memory,
        chain=busy * (1.0 - computes),
        launch=theta["launch_s"]
        + _quantise_seconds(kernel, hardware, theta)
        + (_joining_seconds(kernel, hardware, theta) if copied else 0.0),
        overlap=_overlap(shape, units, theta),
    )


NEAR = 2.0
"""A tile that takes so many times as long as the fastest is far from being chosen."""


def choices_near(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Kernel:
    """The product with its launch laid out once and, where no table says which tile runs, with those that take less
    than `NEAR` times as long as the fastest."""
    launch = _launch(kernel, hardware, theta)
    if len(launch.choices) > 1:
        pace, units = _pace(kernel, hardware, theta), hardware.compute.units
        busy = [_tiles_seconds(kernel.shape, units, pace, theta, each, launch.splits)[0] for each in launch.choices]
        limit = NEAR * min(busy)
        near = (each for each, seconds in zip(launch.choices, busy, strict=True) if seconds < limit)
        launch = launch._replace(choices=tuple(near))
    return kernel._replace(form=kernel.form._replace(terms=partial(_launched, launch)))


def _dispatch(theta: Mapping[str, float]) -> int:
    """By whose table a product's tile is chosen."""
    return round(nominal(theta["dispatch"], RANKED))


def _overlap(shape: Gemm, units: int, theta: Mapping[str, float]) -> Quantity:
    """The exponent of the p-norm: blocks of one round wait for their first bytes together, those of many do not."""
    rounds = maximum(shape.m, FULL) * maximum(shape.n, FULL) * shape.batch / (FULL**2 * units)
    return theta["overlap"] + (theta["overlap_many"] - theta["overlap"]) * rounds / (rounds + MANY_ROUNDS)


def _tiles_seconds(
    shape: Gemm, units: int, pace: Pace, theta: Mapping[str, float], laid: Laid, splits: bool
) -> tuple[Quantity, Quantity]:
    """Of all tiles, with the better of one part and several along k; and 1 where FLOPs take longer than bytes, else 0.

    Small tiles share an SM, which hides the latency of their bytes but not their FLOPs. What of a prologue and epilogue
    does not hide behind another tile adds to the FLOPs. The fuller the device, the longer a block's steps and its ends
    take: its clock falls, and L2 serves more of them. The sums of the parts of k, whole tiles of them, pass through
    memory.
    """
    tile, tiles = laid.tile, laid.tiles
    slots = units * laid.resident
    weight = 1.0 if shape.block_per_tile else theta["wave_weight"]
    alone = waves(tiles, units, weight)
    shared = waves(tiles, slots, weight)
    crowded = 1.0 + theta["crowding"] * minimum(tiles / units, 1.0)
    step = sized(tile, theta, "step") * crowded
    flops = laid.flops * pace.flop_s * step
    feed = (pace.row_bytes * laid.row_elements + pace.column_bytes * laid.column_elements) * pace.byte_s * step
    fixed = theta["block_s"] * sized(tile, theta, "block") * crowded
    apart = theta["apart"] * fixed * alone
    padding = theta["padding"] * laid.beyond * shape.k * pace.row_bytes * pace.hbm_byte_s
    whole = maximum(shared * (fixed + feed), apart + alone * flops) + padding
    computes = where(flops * alone >= feed * shared, 1.0, 0.0)
    if not splits:
        return whole, computes
    parts = maximum(minimum(minimum(slots / tiles, MOST_SPLITS), shape.k / theta["split_k"]), 1.0)
    even = maximum(tiles / units, 1.0 / parts)
    cut = maximum(shared * fixed + maximum(tiles / slots, 1.0 / parts) * feed, apart + even * flops)
    area = tile.rows * tile.columns
    sums = theta["split_bytes"] * PARTIAL * parts * tiles * area * pace.hbm_byte_s / theta["memory_efficiency"]
    return minimum(whole, cut + padding + sums + theta["split_s"]), computes


def _returning(kernel: Kernel) -> Kernel:
    """The kernel to those of its operands that are used again before all sets of weights are."""
    if kernel.circulating is None or kernel.returning is None:
        return kernel
    return kernel._replace(circulating=kernel.returning)


def _memory_seconds(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """HBM bytes of the matrix, and of activations and outputs."""
    total, matrix = kernel.ideal.hbm_bytes, kernel.ideal.weights
    if kernel.returning is None:
        return memory_seconds(kernel, hardware, theta, total)
    others = memory_seconds(_returning(kernel), hardware, theta, total - matrix)
    return memory_seconds(kernel, hardware, theta, matrix) + others


def _reread_seconds(shape: Gemm, hardware: Hardware, theta: Mapping[str, float], launch: Launch) -> Quantity:
    """Operands that L2 does not hold, read again by later rounds of tiles: activations for further columns, the matrix
    for further rows.
    """
    capacity = hardware.memory.l2.capacity
    if capacity is None:
        return 0.0
    kept = theta["l2_share"] * capacity
    again: Quantity = 0.0
    for held, passes in launch.passes:
        fill = power(held / kept, 4)
        again = again + fill / (1.0 + fill) * held * maximum(passes - 1.0, 0.0)
    return theta["l2_misses"] * again * shape.batch / hardware.memory.hbm.bandwidth


def _quantise_seconds(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Reading wide activations, finding the scales, writing narrow ones: launches, bytes, and blocks of one row, or of
    2,048 elements where each group of them has a scale of its own.

    The second reading of a row comes from L2 where that holds the rows at work, and what they become: all rows where
    one kernel finds the scale of the whole and another one applies it. A library whose blocks take several rows, a warp
    for each, where there are enough to fill the device, has fewer blocks and longer chains there.
    """
    shape: Gemm = kernel.shape
    if not quantises(shape):
        return 0.0
    units, l2 = hardware.compute.units, hardware.memory.l2.capacity
    rows = shape.m * shape.batch
    together = nominal(theta["rows_a_block"], 1) if shape.activations in SCALED_BY_ROWS else 1
    if together != 1:
        together = where(rows >= MANY_BLOCKS * together * units, together, 1.0)
    wide, narrow = element_bytes(shape.source), element_bytes(shape.activations)
    traffic = rows * shape.k * (wide + narrow)
    if l2 is not None and shape.activations in SCALED_BY_ROWS:
        whole = round(nominal(theta["scales"], OF_ROWS)) == OF_THE_WHOLE
        at_work = (rows if whole else minimum(rows, BLOCKS_A_UNIT * together * units)) * shape.k * (wide + narrow)
        fill = power(at_work / (theta["l2_share"] * l2), 4)
        traffic = traffic + fill / (1.0 + fill) * rows * shape.k * wide
    moving = _quantised_bytes_seconds(kernel, hardware, theta, traffic)
    dispatch, steps = _dispatch(theta), ceil_div(shape.k, QUANTISED)
    in_groups = shape.activations in SCALED_BY_GROUPS
    by_divisors = in_groups and dispatch in (VLLM, SGLANG)
    blocks = _blocks_of_groups(rows, shape.k) if by_divisors else rows * steps if in_groups else rows / together
    started = theta["row_s"] * maximum(blocks / units, 1.0)
    seconds = _overlapped(moving, started) if by_divisors else moving + started
    seconds = seconds + theta["element_s"] * (1 if in_groups else together * steps) * QUANTISED
    if (hardware.generation, shape.activations) == FLASHINFER and dispatch == SGLANG:
        copied = _copied_seconds(rows, shape.k, units, moving, theta)
        many = where(rows >= COPIED_FROM, copied, seconds)
        seconds = where(ceil_div(shape.k, COPIED_COLUMNS) * COPIED_COLUMNS <= shape.k, many, seconds)
    return theta["quantise_s"] + seconds


def _blocks_of_groups(rows: Quantity, k: Quantity) -> Quantity:
    """Blocks that quantise groups of elements in vLLM and SGLang: the fewer, the higher the power of two in the number
    of groups, so that an odd number of rows may ask for sixteen times as many.

    Source: vllm-project/vllm, csrc/quantization/w8a8/fp8/per_token_group_quant.cu (GetGroupsPerBlock);
    sgl-project/sglang, python/sglang/jit_kernel/csrc/gemm/per_token_group_quant_8bit_v2.cuh (NaiveScheduler).
    """
    groups = rows * ceil_div(k, GROUP)
    together: Quantity = 1
    for several in GROUPS_A_BLOCK:
        together = where(ceil_div(groups, several) * several <= groups, several, together)
    return groups / together


def _copied_seconds(
    rows: Quantity, k: Quantity, units: Quantity, moving: Quantity, theta: Mapping[str, float]
) -> Quantity:
    """FlashInfer's quantisation of many rows: a warp copies the next columns of a block's rows by TMA while others
    scale the last ones, so that bytes and the blocks' chains overlap; rows beyond all places wait for a whole chain.

    Source: flashinfer-ai/flashinfer, csrc/nv_internal/cpp/kernels/quantization.cu (launchFP4QuantizationTma).
    """
    chains = ceil_div(rows, ROWS_COPIED * COPYING_BLOCKS * units) * theta["element_s"] * ROWS_COPIED * k
    return _overlapped(moving, chains)


def _overlapped(moving: Quantity, blocks: Quantity) -> Quantity:
    """Bytes beside the blocks that they wait for."""
    return root(power(moving, BLOCK_OVERLAP) + power(blocks, BLOCK_OVERLAP), BLOCK_OVERLAP)


def _quantised_bytes_seconds(
    kernel: Kernel, hardware: Hardware, theta: Mapping[str, float], traffic: Quantity
) -> Quantity:
    """Bytes of the quantisation. What L2 still holds of them may pass faster than HBM delivers it, what HBM moves does
    not: a stream from HBM reaches its usual share of the datasheet's bandwidth, however fast it was on rows in L2.
    """
    moved = _returning(kernel)
    over = theta["quantise_bandwidth"]
    through = memory_seconds(moved, hardware, theta, traffic)
    missed = traffic * (1.0 - replayed_share(moved, hardware, theta))
    cold = missed / (hardware.memory.hbm.bandwidth * theta["memory_efficiency"])
    streamed = minimum(over * theta["memory_efficiency"], theta["quantise_hbm"])
    return (through - cold) / over + missed / (hardware.memory.hbm.bandwidth * streamed)


def _joining_seconds(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """A pass over outputs that lie product by product, into rows; a single row or product lies right already. Where
    operands are narrow it is their scales that are laid out anew, for as long in decode.

    Source: sgl-project/sglang, python/sglang/srt/models/deepseek_v4.py (einsum "tgd,grd->tgr", then flatten).
    """
    shape: Gemm = kernel.shape
    moved = 2 * shape.m * shape.batch * shape.n * element_bytes(shape.output)
    seconds = theta["join_s"] + memory_seconds(_returning(kernel), hardware, theta, moved)
    return where(shape.m > 1, where(shape.batch > 1, seconds, 0.0), 0.0)


def quantises(shape: Gemm) -> bool:
    """Whether activations arrive wider than they are multiplied."""
    return element_bytes(shape.activations) < element_bytes(shape.source)


def without_quantisation(kernel: Kernel) -> Kernel:
    """The same kernel for activations that arrive narrow, as benchmarks of a product alone have them."""
    shape = kernel.shape
    if not isinstance(shape, Gemm) or not quantises(shape):
        return kernel
    return kernel._replace(executed=kernel.ideal, shape=shape._replace(source=shape.activations))


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dX = dY·Wᵀ and dW = Xᵀ·dY: two products of the same size."""
    s: Gemm = kernel.shape
    return (
        gemm(f"{kernel.name} dX", s._replace(n=s.k, k=s.n), count=kernel.count),
        gemm(f"{kernel.name} dW", s._replace(m=s.k, k=s.m, parameters=False), count=kernel.count),
    )


PARAMETERS = (
    Parameter("launch_s", 2.2e-6, 0.4, 0.5e-6, 3e-5, "s", "time from the end of the last kernel to useful work"),
    Parameter("block_s", 1.6e-6, 0.5, 1e-8, 3e-5, "s", "prologue and epilogue of a tile of 128 × 128"),
    Parameter(
        "split_s", 2.4e-6, 0.8, 0.2e-6, 1e-3, "s", "reduction of the parts of k; large where a library cuts none"
    ),
    Parameter("split_bytes", 1.5, 0.8, 0.02, 10.0, "1", "time of the sums of the parts over that of so many HBM bytes"),
    Parameter("split_k", 500.0, 0.5, 64.0, 65536.0, "1", "length of k from which cutting it in two is possible"),
    Parameter("tensor_efficiency", 0.93, 0.12, 0.05, 1.0, "1", "share of the datasheet FLOP/s in the main loop"),
    Parameter("sustained", 0.89, 0.1, 0.5, 1.0, "1", "FLOP/s of long work over those of short: the power limit"),
    Parameter("memory_efficiency", 0.82, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("block_bandwidth", 8.0, 0.4, 1.0, 40.0, "1", "bandwidth of one block over its even share of HBM"),
    Parameter("wave_weight", 0.5, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 2.1, 0.3, 1.0, 8.0, "1", "exponent by which tiles and HBM overlap in one round of tiles"),
    Parameter("overlap_many", 4.8, 0.5, 1.0, 12.0, "1", "the same in many rounds"),
    Parameter("l2_share", 0.67, 0.3, 0.1, 1.5, "1", "share of L2 that a replay finds its operands in"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 12.0, "1", "bandwidth of L2 over that of HBM"),
    Parameter("l2_sharpness", 13.0, 0.5, 1.0, 40.0, "1", "exponent by which replayed operands fall out of L2"),
    Parameter("quantise_s", 2.1e-6, 0.5, 0.1e-6, 2e-5, "s", "launches of the quantisation of narrow activations"),
    Parameter(
        "quantise_bandwidth",
        0.9,
        0.5,
        0.03,
        6.0,
        "1",
        "L2's bandwidth of the quantisation over products'; HBM's up to quantise_hbm",
    ),
    Parameter(
        "quantise_hbm", 0.88, 0.05, 0.5, 1.0, "1", "share of the datasheet HBM bandwidth that the quantisation reaches"
    ),
    Parameter("row_s", 1e-7, 1.2, 1e-9, 5e-6, "s", "a block of the quantisation, which scales a row or groups"),
    Parameter("element_s", 6e-11, 1.0, 1e-12, 5e-9, "s", "an element in the chain of such a block"),
    Parameter(
        "dispatch", 1.0, 0.0, 1.0, 4.0, "1", "tile: 1 the fastest, by the table of: 2 vLLM, 3 SGLang, 4 TensorRT-LLM"
    ),
    Parameter("rows_a_block", 1.0, 0.0, 1.0, 8.0, "1", "rows that a block of the quantisation takes of many"),
    Parameter("scales", 1.0, 0.0, 1.0, 2.0, "1", "of quantised activations: 1 one for each row, 2 one for the whole"),
    Parameter("joining", 1.0, 0.0, 1.0, 2.0, "1", "outputs of several products: 1 written into rows, 2 copied there"),
    Parameter("join_s", 3e-6, 0.4, 0.5e-6, 1e-5, "s", "launch of the copy of outputs of several products into rows"),
    Parameter("apart", 0.55, 0.8, 0.01, 1.0, "1", "share of block_s that hides behind no other tile's products"),
    Parameter("few_step", 2.0, 0.4, 0.2, 8.0, "1", "time of a step of k of a tile of 16 rows, over what size implies"),
    Parameter("few_block", 0.2, 0.5, 0.05, 5.0, "1", "block_s of a tile of 16 rows over that of a full one"),
    Parameter("small_step", 1.0, 0.4, 0.2, 8.0, "1", "as few_step, of a tile of 64 × 64"),
    Parameter("small_block", 0.4, 0.5, 0.05, 10.0, "1", "as few_block, of a tile of 64 × 64"),
    Parameter("half_step", 0.88, 0.4, 0.2, 8.0, "1", "as few_step, of half a full tile"),
    Parameter("half_block", 0.9, 0.5, 0.05, 10.0, "1", "as few_block, of half a full tile"),
    Parameter("wide_step", 0.88, 0.3, 0.3, 4.0, "1", "as few_step, of a tile wider than a full one"),
    Parameter("wide_block", 2.2, 0.5, 0.1, 20.0, "1", "as few_block, of a tile wider than a full one"),
    Parameter("crowding", 0.12, 0.8, 0.001, 1.0, "1", "by how much a block takes longer where all units are busy"),
    Parameter(
        "lone_round", 3.5, 0.3, 1.0, 8.0, "1", "time of a lone round of DeepGEMM's widest tiles over what size implies"
    ),
    Parameter("padding", 0.05, 1.0, 0.001, 5.0, "1", "time of the bytes of rows beyond the matrix over that from HBM"),
    Parameter(
        "l2_misses", 0.6, 0.5, 0.05, 1.0, "1", "share of operands larger than L2 that later rounds of tiles miss"
    ),
)

FORM = Form(
    family="gemm",
    summary="dense and batched matrix products",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("NVIDIA, Matrix Multiplication Background User's Guide", "CUTLASS, Efficient GEMM in CUDA"),
    model_spread=0.18,
    built={
        "sglang": {"dispatch": float(SGLANG), "rows_a_block": 8.0, "joining": 2.0},
        "vllm": {"dispatch": float(VLLM)},
        "trtllm": {"dispatch": float(TRTLLM), "scales": float(OF_THE_WHOLE)},
    },
    choices_near=choices_near,
    starts=({"split_s": NO_SPLIT_S}, {"dispatch": float(VLLM)}, {"dispatch": float(SGLANG)}),
    elsewhere=("area_share", "reread"),
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
