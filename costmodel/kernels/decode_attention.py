"""Attention of a few queries over a long cache (FlashDecoding): the keys are split over the device.

Bound by reading the cache once. The G = H/Hkv query heads of a key head share a tile (PackGQA), which is
padded to the 64 rows of one matrix instruction.

Source: FlashDecoding (Dao, Haziza, Massa, Sizov 2023); Dao-AILab/flash-attention, hopper/heuristics.h; splits by rule:
`key_splits`.
"""

from collections.abc import Callable, Mapping

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, named, nominal, where
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention, key_bytes, pair_count, visible_keys
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, memory_seconds, no_backward, waves
from costmodel.kernels.flash_splits import flash_three, flash_two, flashinfer
from costmodel.kernels.key_splits import (
    FILLING,
    FLASH_THREE,
    FLASH_TWO,
    FLASHINFER,
    SGLANG_TRITON,
    TENSORRT,
    TENSORRT_GEN,
    VLLM_TRITON,
    WITHOUT_XQA,
    Division,
    sglang_triton,
    tensorrt,
    tensorrt_gen,
    vllm_triton,
)
from costmodel.kernels.processor import PROCESSOR

ROWS = 64
"""Query rows of one matrix instruction (WGMMA M = 64)."""

BLOCK = 128
"""Keys of one step of a thread block."""


def tiles(a: Attention) -> Quantity:
    """Query tiles of the whole batch: each holds up to 64 rows of one key head."""
    return a.B * a.Hkv * ceil_div(a.H * a.S, a.Hkv * ROWS)


def work(a: Attention) -> tuple[Work, Work]:
    """Ideal and executed work; executed pads the query rows to whole tiles."""
    pairs = named("pairs", pair_count(a))
    keys = visible_keys(a)
    s = dict(B=a.B, S=a.S, H=a.H, Hkv=a.Hkv, dk=a.dk, dv=a.dv, keys=keys, pairs=pairs, rows=tiles(a) * ROWS)
    read = size("B S H dk", s) * 2 + size("B keys Hkv", s) * key_bytes(a)
    written = size("B S H dv", s) * 2
    ideal = Work(tensor={a.dtype: dot("B H pairs dk", s) + dot("B H pairs dv", s)}, read=read, written=written)
    scores = size("rows keys", s)
    executed = Work(
        tensor={a.dtype: dot("rows keys dk", s) + dot("rows keys dv", s)},
        vector=4 * scores,
        special=scores * (2 if a.softcap else 1),
        read=read,
        written=written,
    )
    return ideal, executed


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(cache bytes, padded FLOPs, chain of the longest split) + combining the splits.

    A split costs block_s and the time in which a thread block streams its keys, in as many rounds as the device's slots
    (units times the thread blocks that one holds) need; more than one adds the combine kernel, and gather_s where a
    cluster that could combine them is too small. How many there are, `splits_by` says. Kernels that share a tile
    between few query heads need more tiles, and may read the cache again for each.
    """
    a: Attention = kernel.shape
    work = kernel.executed
    rows = a.H * a.S / a.Hkv
    _, _, cut = window_blocks(a)
    count, splits, streamed, several, slots, repeats, gathered, empty = division(a, hardware, theta)
    rounds = waves(count * splits, slots, theta["wave_weight"])
    partials = a.B * a.S * a.H * (a.dv + 1) * 8 * (splits - 1.0)
    tensor: Quantity = 0.0
    # A core has no tile to fill.
    computed = kernel.ideal.tensor if hardware.generation == PROCESSOR else work.tensor
    for dtype, flops in computed.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta["tensor_efficiency"])
    again = 1.0 + (repeats - 1.0) * theta["read_again"]
    stream_s = streamed * key_bytes(a) / theta["block_bandwidth"]
    streaming = waves(count * (splits - empty), slots, theta["wave_weight"])
    # A captured launch has a place for every split that could be needed; a larger batch is launched without.
    batch = minimum(a.B, CAPTURED)
    idle = batch * a.Hkv * CAPTURED_SPLITS / slots * (1.0 + batch / CAPTURED)
    if kernel.circulating is not None:
        idle = where(a.B <= CAPTURED, idle, 0.0)
    copied = a.B * a.S * a.H * (a.dk + a.dv) * 4 / (hardware.memory.hbm.bandwidth * COPY_S)
    grouped = minimum(a.B - 1, 1) * minimum(a.Hkv - 1, 1) * minimum(rows - 1.0, 1.0) * (1.0 + copied)
    # Half of what a thread block does at its ends is to load queries and store outputs, as wide as a head.
    width = 0.5 + (a.dk + a.dv) / (4.0 * BLOCK)
    ends = rounds * (theta["block_s"] * width + cut * theta["window_s"]) + idle * theta["idle_s"]
    exposed = theta["exposed"] * ends
    return Terms(
        tensor=tensor,
        memory=memory_seconds(kernel, hardware, theta, work.hbm_bytes * again + partials),
        chain=ends - exposed + streaming * stream_s,
        launch=theta["launch_s"]
        + several * theta["combine_s"]
        + (splits - 1.0) * theta["split_s"]
        + gathered * theta["gather_s"]
        + grouped * theta["regroup_s"]
        + exposed,
        overlap=theta["overlap"],
    )


def division(a: Attention, hardware: Hardware, theta: Mapping[str, float]) -> Division:
    """How the keys are split: by the rule of the kernel's source, or as many as fill the slots `split_rounds` times,
    each with `least_blocks` key blocks at least."""
    rule = round(nominal(theta["splits_by"], FILLING))
    units = hardware.compute.units
    slots = units * theta["occupancy"]
    if rule in BY_RULE:
        return BY_RULE[rule](a, units, slots)
    if rule == TENSORRT and hardware.generation not in WITHOUT_XQA:
        return tensorrt(a, hardware, slots)
    rows = a.H * a.S / a.Hkv
    whole = ceil_div(rows, ROWS)
    repeats = 1.0 + (rows / whole - 1.0) / theta["shared_rows"]
    tiles_of_all = a.B * a.Hkv * whole * repeats
    key_blocks, before, _ = window_blocks(a)
    divided = key_blocks + before * theta["outside"]
    longest = divided / theta["least_blocks"]
    most = longest * theta["most_splits"] / (longest + theta["most_splits"])
    filling = maximum(1.0, minimum(slots * theta["split_rounds"] / tiles_of_all, most))
    splits = 1.0 + theta["split_share"] * (filling - 1.0)
    combined = minimum(maximum(most - 1.0, 0.0) * theta["split_share"], 1.0)
    streamed = minimum(key_blocks, divided / splits) * BLOCK
    return Division(tiles_of_all, splits, streamed, combined, slots, repeats)


BY_RULE: Mapping[int, Callable[[Attention, int, Quantity], Division]] = {
    SGLANG_TRITON: sglang_triton,
    VLLM_TRITON: vllm_triton,
    FLASH_TWO: flash_two,
    FLASH_THREE: flash_three,
    FLASHINFER: flashinfer,
    TENSORRT_GEN: tensorrt_gen,
}
"""Rules that hold on every device."""


def window_blocks(a: Attention) -> tuple[Quantity, Quantity, Quantity]:
    """Key blocks that a tile visits, those before them, and whether a window cuts keys off (1 or 0).

    That a window may begin inside a block is part of window_s: libraries differ in how they mask it.
    """
    if a.c is not None:
        # Engines run a chunk as a sequence of its own: finished chunks have no blocks.
        return ceil_div(visible_keys(a), BLOCK), 0.0, 0.0
    full = ceil_div(a.P + a.S, BLOCK)
    if a.w is None or a.bidirectional:
        return full, 0.0, 0.0
    visited = minimum(full, ceil_div(a.w + a.S - 1, BLOCK))
    return visited, full - visited, minimum(maximum(a.P + a.S - a.w, 0), 1)


CAPTURED = 512
"""Largest batch whose launches a serving engine captures as a graph (vLLM, config/compilation.py)."""
CAPTURED_SPLITS = 32
"""Splits of a captured launch (vLLM, envs.py, VLLM_FLASH_ATTN_MAX_NUM_SPLITS_FOR_CUDA_GRAPH)."""
COPY_S = 3e-6
"""A small copy kernel takes about as long as its launch: the bytes that HBM moves in that time."""

PARAMETERS = (
    Parameter("launch_s", 6.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("combine_s", 3.0e-6, 0.5, 0.1e-6, 2e-5, "s", "the kernel that combines the splits"),
    Parameter("gather_s", 3.0e-6, 0.5, 0.1e-6, 2e-5, "s", "more where splits meet in memory than in a cluster"),
    Parameter("split_s", 0.04e-6, 0.7, 0.001e-6, 1e-6, "s", "one more split to combine"),
    Parameter("regroup_s", 0.1e-6, 2.5, 1e-9, 2e-5, "s", "copies that put the heads of a group together"),
    Parameter("block_s", 1.9e-6, 0.6, 0.1e-6, 3e-5, "s", "prologue and epilogue of one split, at a head width of 128"),
    Parameter("exposed", 0.3, 0.5, 0.01, 1.0, "1", "share of these that the other blocks do not hide"),
    Parameter("window_s", 0.5e-6, 1.5, 0.001e-6, 1e-5, "s", "more of it where a window cuts keys off"),
    Parameter("idle_s", 1e-8, 2.5, 1e-10, 3e-5, "s", "an empty split of a captured launch, on each unit"),
    Parameter(
        "block_bandwidth", 4.5e10, 0.5, 1e9, 1e12, "B/s", "rate at which one thread block streams keys and values"
    ),
    Parameter("occupancy", 2.0, 0.7, 1.0, 16.0, "1", "thread blocks that one unit holds at a time"),
    Parameter("split_rounds", 4.0, 1.0, 0.5, 16.0, "1", "rounds of the slots that the splits aim to fill"),
    Parameter("split_share", 0.9, 2.0, 1e-3, 1.0, "1", "splits beyond the first over those that would fill the device"),
    Parameter("least_blocks", 1.5, 0.4, 0.25, 64.0, "1", "key blocks of a split at least"),
    Parameter("most_splits", 48.0, 1.0, 0.5, 1e3, "1", "splits of one sequence at most"),
    Parameter("outside", 1e-3, 1.2, 1e-5, 1.0, "1", "share of the blocks before a window that gets splits, too"),
    Parameter("shared_rows", 64.0, 1.5, 1.0, 1e4, "1", "query rows that cost a tile as much again as its first"),
    Parameter("read_again", 0.1, 1.5, 1e-3, 1.0, "1", "share of the cache that each further tile of a key head reads"),
    Parameter("tensor_efficiency", 0.4, 0.5, 0.01, 1.0, "1", "share of the datasheet FLOP/s on padded tiles"),
    Parameter("memory_efficiency", 0.9, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_share", 0.72, 0.2, 0.1, 1.0, "1", "share of the L2 capacity in which a replay finds the cache"),
    Parameter("l2_over_hbm", 2.2, 0.4, 1.0, 12.0, "1", "L2 bandwidth over HBM bandwidth"),
    Parameter("l2_sharpness", 4.0, 0.5, 1.0, 20.0, "1", "how abruptly replayed buffers fall out of L2"),
    Parameter("wave_weight", 0.5, 0.5, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.25, 1.5, 8.0, "1", "exponent of the p-norm"),
    Parameter(
        "splits_by",
        1.0,
        0.0,
        1.0,
        9.0,
        "1",
        "splits: 1 as fitted, else by the rule of this number in `key_splits`",
    ),
)

DECODE = Form(
    family="decode-attention",
    summary="few queries over a long cache, keys split over the device",
    parameters=PARAMETERS,
    terms=terms,
    backward=no_backward,
    sources=("FlashDecoding, Stanford CRFM blog, 2023", "Dao-AILab/flash-attention, hopper/heuristics.h"),
    model_spread=0.35,
    starts=(
        {"split_share": 0.005, "block_bandwidth": 2.5e10},  # never splits
        {"split_rounds": 8.0, "least_blocks": 1.0, "most_splits": 128.0, "outside": 0.9},  # splits finely
        {"most_splits": 8.0, "block_bandwidth": 4e10},  # a fixed number of splits
    ),
)
FORMS = (DECODE,)
TRITON_RULES = {"sglang": SGLANG_TRITON, "vllm": VLLM_TRITON}
"""The rule by which the libraries' Triton kernels split."""


def by_rule(rule: int, *others: Mapping[str, float]) -> Form:
    """The form for fits of a kernel whose source says how it splits; a fit tries `others`, too."""
    return DECODE.adjusted({"splits_by": {"prior": float(rule)}})._replace(starts=others)


TENSORRT_DECODE = by_rule(TENSORRT, {"block_bandwidth": 1.5e10})
"""For fits of TensorRT-LLM's kernels before Blackwell; where a block converts an 8-bit cache, it streams slowly."""


def instance(head_dim: Quantity, kv: str, group: Quantity, windowed: bool) -> str:
    """The compiled kernel: head width, dtype of the cache, query heads that share a key head, window.

    Libraries compile kernels by how many query rows a tile must hold: one without sharing, or up to 16, 32 and 64.

    >>> instance(128, "bf16", 8, False), instance(64, "fp8", 1, True)
    ('hd128-bf16', 'hd64-fp8-mha-window')
    """
    heads = nominal(group, 8)
    tile = "-mha" if heads == 1 else "" if heads <= 16 else "-rows32" if heads <= 32 else "-rows64"
    return f"hd{head_dim}-{kv}{tile}" + ("-window" if windowed else "")


def decode_attention(name: str, a: Attention, *, form: Form = DECODE) -> Kernel:
    """The split-key kernel.

    >>> decode_attention("a", Attention(B=1, S=1, P=1023, H=2, Hkv=1, dk=64, dv=64)).work.flops
    524288
    """
    ideal, executed = work(a)
    return Kernel(
        name=name,
        form=form,
        ideal=ideal,
        executed=executed,
        instance=instance(a.dk, a.kv, a.H / a.Hkv if form is DECODE else 8, a.w is not None),
        shape=a,
        implementation="FlashDecoding (FlashAttention-3, FlashInfer)",
    )
