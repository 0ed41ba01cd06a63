"""Absorbed latent attention of few queries over the latent cache: keys split over the device.

All heads share one latent per token, so the tile of one sequence is 64 rows of heads (FlashMLA), of which few heads
leave the rest empty.

Source: deepseek-ai/FlashMLA, README and docs/20250422-new-kernel-deep-dive.md; vllm-project/vllm,
vllm/v1/attention/ops/triton_decode_attention.py (16 heads per thread block before Hopper); NVIDIA/TensorRT-LLM,
cpp/tensorrt_llm/kernels/trtllmGenKernels/fmha/fmhaKernels.h (selectMlaGenerationKernel, computeNumCtas).
"""

from collections.abc import Mapping

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum, nominal, power, where
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention, visible_keys
from costmodel.kernels.base import (
    L2_SHARPNESS,
    Form,
    Kernel,
    Parameter,
    Terms,
    memory_seconds,
    no_backward,
    waves,
)
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.key_splits import (
    BENCHMARKED_HEADS,
    CLUSTER,
    FILLING,
    FLASHINFER_GEN_MLA,
    GEN_LEAST,
    GEN_STEP,
    SGLANG_MLA,
    TENSORRT_GEN_MLA,
    VLLM_MLA,
    VLLM_MLA_FOUR,
    sglang_mla,
    tensorrt_gen_mla,
    vllm_mla,
)
from costmodel.kernels.processor import PROCESSOR

BLOCK = 64
"""Keys of one step of a thread block."""

ROWS, FEW_ROWS = 64, 16
"""Heads of one thread block: those of a warpgroup's matrix instruction, or of a warp's (Triton's kernels)."""

ONE_ROUND = 1.0 - 1e-9
"""Splits that fill the slots exactly go through them in one round, not, by a rounding of their quotient, in two."""

LARGE = ("blackwell", "blackwell-ultra")
"""Generations whose tensor memory holds 128 heads, in tiles of 128 keys."""


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(cache and query bytes, padded FLOPs, chain of a split) + combining the splits.

    A thread block holds 64 heads (128 on Blackwell), or 16 where `small_tiles` is 1. Splits fill the device, at most
    one per two key tiles and `most_splits`; the scheduler balances them, so that their number is no whole one. Where a
    kernel's source states a rule (`key_splits`), they follow it; TensorRT-LLM's generated kernels have
    `generated_terms`, and Triton's `triton_terms`.
    Where the cache is 8 bit, an engine that widens it beforehand pays `conversion` passes, and one that multiplies
    8 bits narrows the queries first.
    """
    a: Attention = kernel.shape
    rule = round(nominal(theta["splits_by"], FILLING))
    if rule in (TENSORRT_GEN_MLA, FLASHINFER_GEN_MLA):
        return generated_terms(kernel, hardware, theta, clusters=rule == TENSORRT_GEN_MLA)
    if rule in (SGLANG_MLA, VLLM_MLA, VLLM_MLA_FOUR):
        return triton_terms(kernel, hardware, theta, rule)
    work = kernel.executed
    slots = hardware.compute.units * theta["occupancy"]
    keys = visible_keys(a)
    factor = 2 if hardware.generation in LARGE else 1
    whole, groups = a.B * ceil_div(a.H * a.S, ROWS), a.B * ceil_div(a.H * a.S, FEW_ROWS)
    blocks_of_all = a.B * ceil_div(a.H * a.S, factor * ROWS)
    tiles = blocks_of_all + theta["small_tiles"] * (groups - blocks_of_all)
    rows = ROWS * whole + theta["small_tiles"] * (FEW_ROWS * groups - ROWS * whole)
    if hardware.generation == PROCESSOR:
        rows = a.B * a.H * a.S  # a core has no tile to fill
    blocks = ceil_div(keys, BLOCK)
    splits = minimum(minimum(slots / tiles, blocks / (2.0 * factor)), theta["most_splits"])
    splits = maximum(theta["least_splits"], splits)
    rounds = waves(tiles * splits * ONE_ROUND, slots, theta["wave_weight"])
    several = minimum(splits - 1.0, 1.0)
    partials = a.B * a.S * a.H * (a.dv + 1) * 8 * splits * several
    flops = 2 * rows * keys * (a.dk + a.dv)
    tensor = flops / (hardware.tensor_peak(a.dtype) * theta["tensor_efficiency"])
    ends = rounds * theta["block_s"]
    rows_bytes = a.B * a.S * a.H * (a.dk + a.dv) * 2
    in_and_out = memory_seconds(kernel, hardware, theta, rows_bytes)
    cache = work.hbm_bytes - rows_bytes
    apart = minimum(maximum(tiles / hardware.compute.units, 1.0), tiles / a.B)
    memory = memory_seconds(kernel, hardware, theta, cache * fetches(apart, cache, hardware, theta) + partials)
    # Kernels that put the heads into the columns of an instruction (up to 32 on Blackwell) lose speed when these fill.
    wide = where((a.H > 16) & (a.H <= 32), theta["wide_columns"], 1.0)
    # A single head needs no matrix instruction: Triton runs it on the vector lanes, in a kernel of its own.
    wide = wide * where(a.H * a.S <= 1, theta["lone_head"], 1.0)
    memory = memory * wide
    chain = rounds * blocks / splits * theta["step_s"] * wide + (1.0 - theta["exposed"]) * ends
    combine = several * theta["combine_s"] + (splits - 1.0) * theta["split_s"]
    launch = theta["launch_s"] + combine + theta["exposed"] * ends + in_and_out
    launch = launch + narrowed(a, hardware, theta)
    l2 = tiles / a.B * cache / (hardware.memory.hbm.bandwidth * theta["l2_over_hbm"])
    return Terms(tensor=tensor, memory=memory, l2=l2, chain=chain, launch=launch, overlap=theta["overlap"])


def triton_terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float], rule: int) -> Terms:
    """launch + beginning the blocks + pnorm(cache bytes, FLOPs, steps and their reads from L2) + combining the rows.

    SGLang's and vLLM's kernels, of 16 heads a block, in splits by their sources' rules. Every block that is launched
    takes `block_s` of a unit during which nothing streams, keys or not, and so does the combination of every head,
    which is a block of its own. Two stages are in flight, so that a step's latency and what L2 takes to answer it
    pass one after the other; HBM streams beside them.
    A single head needs no matrix instruction and has a kernel of its own on the vector lanes: others of its blocks
    begin while one runs (`lone_s`).
    """
    a: Attention = kernel.shape
    units, keys = hardware.compute.units, visible_keys(a)
    tiles = a.B * ceil_div(a.H * a.S, FEW_ROWS)
    if rule == SGLANG_MLA:
        told = a.H if kernel.circulating is None else maximum(a.H, BENCHMARKED_HEADS)
        splits, longest, started = sglang_mla(a.B * a.S, told, keys, units)
    else:
        splits = vllm_mla(keys, units, rule)
        longest, started = keys / splits, splits
    lone = a.H * a.S <= 1
    rounds = waves(tiles * splits * ONE_ROUND, units * theta["occupancy"], theta["wave_weight"])
    tensor = 2 * FEW_ROWS * tiles * keys * (a.dk + a.dv)
    tensor = tensor / (hardware.tensor_peak(a.dtype) * theta["tensor_efficiency"])
    rows_bytes = a.B * a.S * a.H * (a.dk + a.dv) * 2
    cache = kernel.executed.hbm_bytes - rows_bytes
    partials = a.B * a.S * a.H * (a.dv + 1) * 8 * splits
    # The batch counts fastest in the grid: as many tiles of a sequence run at once as units hold whole batches.
    apart = ceil_div(tiles / a.B, maximum(floor_div(units, a.B), 1))
    # Splits count slowest: between two tiles of a sequence lies one split of every sequence.
    again = fetches(apart, cache / splits, hardware, theta)
    memory = memory_seconds(kernel, hardware, theta, cache * again + partials)
    read = tiles / a.B * cache / (hardware.memory.hbm.bandwidth * theta["l2_over_hbm"])
    step = theta["step_s"] * where(lone, theta["lone_head"], 1.0)
    streamed = read * where(lone, theta["lone_l2"], 1.0) + rounds * longest / BLOCK * step
    begun = tiles * started / units * theta["block_s"]
    begun = where(lone, maximum(theta["lone_block"] * begun, theta["lone_s"]), begun)
    combine = theta["combine_s"] + (splits - 1.0) * theta["split_s"] + a.B * a.S * a.H / units * theta["row_s"]
    launch = theta["launch_s"] + begun + combine + memory_seconds(kernel, hardware, theta, rows_bytes)
    launch = launch + narrowed(a, hardware, theta)
    return Terms(tensor=tensor, memory=memory, l2=streamed, launch=launch, overlap=theta["overlap"])


def narrowed(a: Attention, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Seconds of passes that change formats: of queries to 8 bits, and of an 8-bit cache to 16."""
    seconds: Quantity = 0.0
    if a.dtype == "fp8":
        seconds = theta["narrowing"] * 3 * a.B * a.S * a.H * a.dk / hardware.memory.hbm.bandwidth
    if a.kv == "fp8":
        seconds = seconds + theta["conversion"] * 3 * a.B * visible_keys(a) * a.dk / hardware.memory.hbm.bandwidth
    return seconds


def generated_terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float], clusters: bool) -> Terms:
    """launch + pnorm(cache bytes, padded FLOPs, what each unit passes on) + combining the splits.

    TensorRT-LLM's generated kernels, whose source says tiles, splits and the share of the values that a block writes,
    by which it takes longer to end (row_tiles where heads are rows). A block takes keys in steps of 256 (128 where
    heads are rows), each in full however few are left: a step passes through shared memory, written once, read for the
    scores and, as far as the block writes values, for these. What that reaches is `stream_share`; rows take
    `row_step_s` more. The first step and the end of a block show (`exposed`), since nothing streams beside them;
    between rounds they pass beside the loads of others.
    HBM answers the first of the tiles that read a sequence and L2 the others, at its own bandwidth, and a unit draws
    no more than `unit_share` of its share of HBM's while others idle.
    clusters: up to 16 splits of columns combine themselves, of which some wait for a round; else, as FlashInfer
    launches these kernels, all meet in memory, which takes the longer the more of the values each has. Those of rows
    have a kernel of their own. Contexts of 2,048 keys show few splits that meet in memory, so that the priors are what
    decode attention's kernels of the same code took, of values a fourth as wide.
    """
    a: Attention = kernel.shape
    units, keys, bandwidth = hardware.compute.units, visible_keys(a), hardware.memory.hbm.bandwidth
    d = tensorrt_gen_mla(a.B, a.H * a.S, keys, units)
    columns = d.width > 0
    blocks = d.tiles * d.splits
    rounds = waves(blocks * ONE_ROUND, units, theta["wave_weight"]) + (d.late if clusters else 0)
    several = minimum(d.splits - 1.0, 1.0)
    tensor = 2 * a.B * d.rows * keys * (a.dk + a.dv) / (hardware.tensor_peak(a.dtype) * theta["tensor_efficiency"])
    cache = kernel.executed.hbm_bytes - a.B * a.S * a.H * (a.dk + a.dv) * 2
    again = (d.tiles / (a.B * d.pair) - 1.0) * cache
    partials = a.B * a.S * a.H * (a.dv + 1) * 8 * d.splits * several
    memory = memory_seconds(kernel, hardware, theta, kernel.executed.hbm_bytes + partials)
    memory = memory + again / (bandwidth * theta["memory_efficiency"] * theta["l2_over_hbm"])
    # A unit keeps so many bytes in flight: in a last round, or a grid that does not fill the device, others leave some.
    memory = memory * maximum(1.0, rounds * units / (blocks * theta["unit_share"]))
    keys_of_step = where(columns, GEN_LEAST, GEN_STEP)
    passes = where(columns, (2 * a.dk + a.dv * d.width) / (2 * a.dk + a.dv), 1.0)
    of_step = passes * keys_of_step * cache / (a.B * keys)
    step = of_step * units / (bandwidth * theta["stream_share"])
    step = (step + where(columns, 0.0, keys_of_step / BLOCK * theta["row_step_s"])) / d.pair
    end = where(columns, d.width, theta["row_tiles"]) * theta["block_s"]
    shown = theta["exposed"] * (end + step)
    streamed = rounds * (end + ceil_div(ceil_div(keys, d.splits), keys_of_step) * step) - shown
    met = (d.splits - 1.0) * theta["met_split_s"]
    if clusters:
        alone = (d.splits - 1.0) * theta["split_s"]
        of_columns = theta["cluster_s"] + where(d.splits <= CLUSTER, alone, theta["gather_s"] + met)
    else:
        of_columns = theta["cluster_s"] + met * d.width
    combine = several * where(columns, of_columns, theta["combine_s"] + met)
    launch = theta["launch_s"] + combine + shown + narrowed(a, hardware, theta)
    return Terms(tensor=tensor, memory=memory, l2=streamed, launch=launch, overlap=theta["overlap"])


def fetches(apart: Quantity, between: Quantity, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Times that the cache comes from HBM.

    The tiles of heads of a sequence read the same cache. Where the batch counts faster than the tiles in the grid, as
    in Triton's kernel, those of a sequence run in one wave only while all blocks fit in one; in a later wave the cache
    has left L2, unless what is read in between fits there.
    apart: waves that the tiles of a sequence are in. between: bytes that are read between two of them.
    """
    capacity = hardware.memory.l2.capacity
    if capacity:
        fill = power(between / (theta["l2_share"] * capacity), L2_SHARPNESS)
        apart = 1.0 + (apart - 1.0) * fill / (1.0 + fill)
    return 1.0 + theta["refetch"] * (apart - 1.0)


PARAMETERS = (
    Parameter("launch_s", 9.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("combine_s", 3.0e-6, 0.4, 0.3e-6, 2e-5, "s", "the kernel that combines the splits"),
    Parameter("block_s", 3.0e-6, 0.5, 0.2e-6, 3e-5, "s", "prologue and epilogue of one split"),
    Parameter(
        "cluster_s", 1.0e-6, 0.5, 0.1e-6, 2e-5, "s", "the same where the splits combine themselves, as a cluster"
    ),
    Parameter("gather_s", 3.1e-6, 0.2, 0.1e-6, 2e-5, "s", "more where too many of them for a cluster meet in memory"),
    Parameter("met_split_s", 0.12e-6, 0.3, 0.001e-6, 1e-6, "s", "one more split that meets others in memory"),
    Parameter("unit_share", 1.1, 0.2, 1.0, 4.0, "1", "HBM bandwidth of a unit while others idle, over its share"),
    Parameter("stream_share", 1.15, 0.1, 0.5, 4.0, "1", "bytes that a unit streams, over its share of HBM's bandwidth"),
    Parameter("narrowing", 0.5, 1.0, 0.01, 8.0, "1", "traffic of narrowing queries to 8 bits, over one pass"),
    Parameter("row_tiles", 0.7, 0.5, 0.1, 5.0, "1", "block_s where heads are rows of an instruction over columns"),
    Parameter("exposed", 0.5, 0.4, 0.02, 1.0, "1", "share of block_s during which nothing of the cache streams"),
    Parameter("split_s", 0.04e-6, 0.7, 0.001e-6, 1e-6, "s", "one more split to combine"),
    Parameter("wide_columns", 1.0, 0.2, 0.8, 3.0, "1", "time of a key block for 17 to 32 heads over that for fewer"),
    Parameter("lone_head", 1.0, 0.2, 0.8, 3.0, "1", "time of a key block for a single head over that for more"),
    Parameter("row_s", 1.5e-6, 0.5, 0.05e-6, 2e-5, "s", "combining the splits of one head, on one of the units"),
    Parameter("lone_block", 0.5, 0.5, 0.05, 3.0, "1", "block_s of a single head over that of more"),
    Parameter("lone_l2", 2.0, 0.5, 0.5, 8.0, "1", "time of a single head's reads from L2 over that of more"),
    Parameter("lone_s", 10e-6, 0.5, 0.3e-6, 1e-4, "s", "latency of a single head's block, while others begin"),
    Parameter("step_s", 1.5e-6, 0.6, 0.05e-6, 2e-5, "s", "64 keys in the chain of one thread block"),
    Parameter("row_step_s", 1.0e-6, 0.5, 0.05e-6, 2e-5, "s", "64 keys more, where heads are rows of an instruction"),
    Parameter("occupancy", 1.1, 0.3, 1.0, 8.0, "1", "thread blocks that share a unit"),
    Parameter("most_splits", 32.0, 1.0, 1.0, 256.0, "1", "splits of one sequence at most"),
    Parameter("least_splits", 1.05, 0.5, 1.0, 32.0, "1", "splits that are launched however short the sequence"),
    Parameter(
        "small_tiles", 0.03, 1.5, 0.001, 1.0, "1", "share of the groups of 16 heads that are blocks of their own"
    ),
    Parameter("tensor_efficiency", 0.65, 0.2, 0.05, 1.0, "1", "share of the datasheet FLOP/s on padded tiles"),
    Parameter("memory_efficiency", 0.90, 0.06, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_share", 0.72, 0.3, 0.1, 1.5, "1", "share of L2 that keeps replayed buffers"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's"),
    Parameter("l2_sharpness", 4.0, 0.0, 1.0, 20.0, "1", "how abruptly replayed buffers fall out of L2"),
    Parameter("refetch", 0.1, 1.5, 0.001, 1.0, "1", "share of a later wave's cache reads that L2 does not answer"),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter(
        "conversion", 0.03, 1.0, 0.001, 8.0, "1", "traffic of widening an 8-bit cache, over one pass at full bandwidth"
    ),
    Parameter(
        "splits_by", 1.0, 0.0, 1.0, 6.0, "1", "splits: 1 as fitted, else by the rule of this number in `key_splits`"
    ),
    Parameter("overlap", 4.0, 0.3, 1.5, 8.0, "1", "exponent of the p-norm"),
)

MLA_DECODE = Form(
    family="mla-decode",
    summary="absorbed MLA over the latent cache, keys split",
    parameters=PARAMETERS,
    terms=terms,
    backward=no_backward,
    sources=("deepseek-ai/FlashMLA, README and docs/20250422-new-kernel-deep-dive.md",),
    model_spread=0.3,
    starts=(
        {"most_splits": 1.0, "least_splits": 1.0},  # TensorRT-LLM before Hopper never splits
        {"small_tiles": 1.0, "refetch": 1.0, "step_s": 3e-6},  # Triton's kernels
    ),
)
FORMS = (MLA_DECODE,)
TRITON: Mapping[str, Mapping[str, float]] = {
    "refetch": {"prior": 1.0},
    "step_s": {"prior": 4.4e-6},
    "overlap": {"prior": 7.0},
    "wave_weight": {"prior": 0.9, "spread": 0.2},
    "l2_sharpness": {"prior": 10.0, "spread": 0.5},
}
"""Where fits of Triton's kernels begin. Replayed in turn, keys that L2 cannot hold drop out of it altogether.
All blocks of a launch are of one length, so that a round of few takes as long as one of many.

A step is what vLLM's newer kernel takes on L40S for the 512 keys of a split more than for none: 35 µs.
"""


def vllm_triton(by_length: bool) -> Form:
    """The form for fits of vLLM's Triton kernel: splits by the length of the context, or four.

    A single head's steps take longer there, which no prior says by how much. Where launches one by one hide what short
    contexts take, steps are known from the newer version's: the kernel is the same.
    """
    rule = {"splits_by": {"prior": float(VLLM_MLA if by_length else VLLM_MLA_FOUR)}}
    steps = {"lone_head": {"spread": 0.7, "high": 8.0}, "step_s": {**TRITON["step_s"], "spread": 0.2}}
    return MLA_DECODE.adjusted({**TRITON, **rule, **steps})._replace(starts=())


SGLANG_TRITON_MLA = MLA_DECODE.adjusted(
    {**TRITON, "splits_by": {"prior": float(SGLANG_MLA)}, "lone_head": {"spread": 0.0}, "block_s": {"prior": 0.4e-6}}
)._replace(starts=())
"""For fits of SGLang's Triton kernel, of which more splits are launched than have keys.

A single head reads slower from L2, but a few blocks of it take as long for a step as those of more heads.
"""
FLASH = MLA_DECODE.adjusted({"most_splits": {"prior": 256.0, "spread": 0.0}})._replace(starts=())
"""For fits of FlashMLA, whose scheduler gives every unit a part of the batch, however many a sequence then has."""
ONE_BLOCK = FLASH.adjusted(
    {name: {"prior": 1.0, "spread": 0.0} for name in ("wide_columns", "lone_head", "occupancy", "least_splits")}
    | {name: {"prior": 0.002, "spread": 0.05} for name in ("small_tiles", "conversion")}
    | {"tensor_efficiency": {"prior": 0.95, "spread": 0.05}, "overlap": {"prior": 7.9, "spread": 0.05}}
    | {"step_s": {"spread": 0.05}}
)
"""For fits of FlashMLA as vLLM launches it since 0.24: one block on a unit, of 64 rows however few the heads.

Its steps are the tensor cores' pace as well: 660 TFLOP/s of 16 bits (FlashMLA's README) are 1.8 µs a step on 132 units,
and 8 bits, not widened, save less than half, since the block transposes values. Short contexts hardly show it.
"""
FLASHINFER_GENERATED = MLA_DECODE.adjusted(
    {
        "splits_by": {"prior": float(FLASHINFER_GEN_MLA)},
        "conversion": {"prior": 0.002},
        "l2_sharpness": {"prior": 10.0, "spread": 0.5},
        "l2_over_hbm": {"prior": 4.0},
        "stream_share": {"prior": 1.3},
        "block_s": {"prior": 1.8e-6, "spread": 0.4},
        "row_tiles": {"prior": 2.4, "spread": 0.4},
        "row_step_s": {"prior": 0.3e-6},
        "wave_weight": {"prior": 0.9, "spread": 0.2},
        "exposed": {"prior": 0.8},
        "cluster_s": {"prior": 1.5e-6, "spread": 0.4},
        "tensor_efficiency": {"prior": 0.85, "spread": 0.1},
    }
)._replace(starts=())
"""For fits of TensorRT-LLM's generated kernels for Blackwell as FlashInfer launches them, for vLLM and SGLang."""
GENERATED = FLASHINFER_GENERATED.adjusted(
    {"splits_by": {"prior": float(TENSORRT_GEN_MLA)}, "split_s": {"prior": 0.02e-6, "spread": 0.3}}
)
"""For fits of the same kernels as TensorRT-LLM launches them, in clusters."""


def mla_decode(name: str, a: Attention) -> Kernel:
    """The split-key kernel.

    >>> mla_decode("a", Attention(B=1, S=1, P=0, H=128, Hkv=1, dk=576, dv=512, shared_kv=True)).work.flops
    278528
    """
    return decode_attention(name, a, form=MLA_DECODE)
