"""How published code divides the keys of a decode step over thread blocks.

A fit sees how often a kernel splits only in the contexts that were measured; a rule that its source states holds beyond
them. `splits_by` says which rule a kernel follows; 1 fits how far splits fill the device.

Sources: sgl-project/sglang, python/sglang/srt/layers/attention/triton_backend.py (get_num_kv_splits_triton,
_mla_decode_kv_splits_cap) and triton_ops/decode_attention.py (grid of max_kv_splits);
vllm-project/vllm, vllm/v1/attention/backends/triton_attn.py and mla/triton_mla.py; NVIDIA/TensorRT-LLM,
cpp/tensorrt_llm/kernels, decoderXQAImplCommon.h (computeMultiBlockCount), decoderXQARunner.cpp (mayHavePerfGain),
decoderMaskedMultiheadAttention/decoderMaskedMultiheadAttentionLaunch.h (multi_block_grid_setup, smem_size_in_bytes) and
trtllmGenKernels/fmha/fmhaKernels.h (numCtasPerSeqKv), cpp/tensorrt_llm/common/attentionOp.cpp (getMaxNumSeqLenTile),
cpp/kernels/xqa, mha.cu and mha_sm90.cu (nbSkipLeadingTiles, nbSubSeq); flashinfer-ai/flashinfer,
include/flashinfer/trtllm/fmha/fmhaKernels.cuh (CgaSmemReduction, of values narrower than 512).
"""

from typing import Any, NamedTuple

from costmodel.algebra import Quantity, ceil, ceil_div, floor_div, log2, maximum, minimum, nominal, power, root, where
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention, visible_keys

FILLING, SGLANG_TRITON, VLLM_TRITON, TENSORRT = 1, 2, 3, 5
FLASH_TWO, FLASHINFER, TENSORRT_GEN, FLASH_THREE = 6, 7, 8, 9
"""Values of `splits_by` of decode attention."""
VLLM_MLA, VLLM_MLA_FOUR, TENSORRT_GEN_MLA, FLASHINFER_GEN_MLA, SGLANG_MLA = 2, 3, 4, 5, 6
"""Values of `splits_by` of latent attention."""


class Division(NamedTuple):
    """Thread blocks without splits, splits of each, keys that the longest streams, whether a second kernel combines
    them (0 to 1), blocks that the device holds at a time, tiles of a key head over those that its rows need, whether
    splits meet in global memory (0 to 1), and how many have no keys left to stream."""

    tiles: Quantity
    splits: Quantity
    keys: Quantity
    combined: Quantity
    slots: Quantity
    repeats: Quantity
    gathered: Quantity = 0
    empty: Quantity = 0


GROUPED_ROWS = 16
"""Query heads of a key head that a thread block of Triton's kernels holds."""
SGLANG_SPLITS, SGLANG_STEP = 8, 32
"""`triton_attention_num_kv_splits` (server_args.py), and the keys that a split is a multiple of."""


def sglang_triton(a: Attention, units: int, slots: Quantity) -> Division:
    """As many splits as fill the device, counted log2(keys / 64) times, and no more than 8.

    >>> sglang_triton(Attention(B=4, S=1, P=2047, H=32, Hkv=8, dk=128, dv=128), 132, 264).splits
    8
    >>> sglang_triton(Attention(B=32, S=1, P=2047, H=32, Hkv=8, dk=128, dv=128), 132, 264).splits
    3.0
    """
    keys = visible_keys(a)
    tiles = a.B * a.S * ceil_div(a.H, minimum(a.H / a.Hkv, GROUPED_ROWS))
    wanted = floor_div(units * maximum(log2(keys / 64), 1), 1)
    splits = minimum(ceil_div(wanted, tiles), SGLANG_SPLITS)
    streamed = SGLANG_STEP * ceil_div(ceil_div(keys, splits), SGLANG_STEP)
    return Division(tiles, splits, streamed, 1, slots, tiles / (a.B * a.S * a.Hkv))


VLLM_LEAST_GRID, VLLM_SEGMENTS, VLLM_STEP = 128, 16, 16
"""MIN_LAUNCH_GRID_SIZE_2D, NUM_PAR_SOFTMAX_SEGMENTS, and the keys of one step in decoding."""


def vllm_triton(a: Attention, units: int, slots: Quantity) -> Division:
    """16 segments of every sequence in a batch of up to 128 key heads, none in a larger one.

    >>> a = Attention(B=16, S=1, P=8191, H=32, Hkv=8, dk=128, dv=128)
    >>> vllm_triton(a, 132, 264).splits, vllm_triton(a._replace(B=17), 132, 264).splits
    (16, 1)
    """
    segmented = where(a.B <= floor_div(VLLM_LEAST_GRID, a.Hkv), 1, 0)
    steps = ceil_div(a.P + a.S, VLLM_STEP)
    segment = where(segmented > 0, ceil_div(steps, VLLM_SEGMENTS), steps)
    streamed = minimum(VLLM_STEP * segment, visible_keys(a))
    return Division(a.B * a.S * a.Hkv, ceil_div(visible_keys(a), streamed), streamed, segmented, slots, 1.0)


GEN_ROWS, GEN_STEP, GEN_LEAST = 64, 128, 256
"""Query rows of a tile, keys of a step, and keys of a split at least, of TensorRT-LLM's kernels for Blackwell."""
CLUSTER, CLUSTER_ROWS, CLUSTER_WIDTH = 16, 32, 256
"""Splits of a cluster at most, and query rows of a tile and head width up to which kernels have clusters."""


def tensorrt_gen(a: Attention, units: int, slots: Quantity) -> Division:
    """TensorRT-LLM's generated kernels: whole splits of every sequence that fit on the device's units at once.

    Up to 16 of them are a cluster, which combines what they found in its shared memory; more meet in global memory, as
    any do of tiles of 64 query rows and of heads wider than 256.

    >>> a = Attention(B=4, S=1, P=8191, H=32, Hkv=8, dk=128, dv=128)
    >>> tensorrt_gen(a, 148, 148).splits, tensorrt_gen(a._replace(P=512), 148, 148).splits
    (4.0, 3)
    >>> tensorrt_gen(a, 148, 148).gathered, tensorrt_gen(a._replace(B=1), 148, 148).gathered  # 4 and 18 splits
    (0, 1)
    """
    tiles = a.B * a.Hkv * ceil_div(a.H * a.S / a.Hkv, GEN_ROWS)
    keys = visible_keys(a)
    splits = minimum(ceil_div(keys, GEN_LEAST), maximum(floor_div(units, tiles), 1))
    streamed = GEN_STEP * ceil_div(ceil_div(keys, GEN_STEP), splits)
    several = minimum(splits - 1, 1)
    clustered = (a.H * a.S / a.Hkv <= CLUSTER_ROWS) & (nominal(a.dv, 128) <= CLUSTER_WIDTH) & (splits <= CLUSTER)
    return Division(tiles, splits, streamed, several, slots, tiles / (a.B * a.Hkv), where(clustered, 0, several))


WITHOUT_XQA = ("blackwell", "blackwell-ultra")
"""Generations for which TensorRT-LLM has kernels that fill the device instead."""
SHARING_BLOCK, SHARING_ROWS = 128, 32
"""Keys of a block by which TensorRT-LLM counts, and the most query heads that share a key head."""
XQA_WAVES, XQA_STEP, XQA_STEP_NARROW = 8, 256, 64
"""kTargetWaveFactor, and the keys of a tile: four warps of 64 each, or those of Hopper's kernel for an 8-bit cache."""


def shares_heads(B: Quantity, Hkv: Quantity, group: Quantity, keys: Quantity, narrow: Any, units: int) -> Any:
    """Whether TensorRT-LLM before Blackwell runs the kernel whose thread blocks hold all heads of a key head (XQA).

    It does with enough blocks of 128 keys to occupy a quarter of the device, and always on an 8-bit cache (narrow).

    >>> [bool(shares_heads(B, 1, 8, 1024, False, 132)) for B in (4, 5)]
    [False, True]
    """
    enough = B * Hkv * maximum(floor_div(keys, SHARING_BLOCK), 1) * 4 >= units
    return (group > 1) & (group <= SHARING_ROWS) & (enough | narrow)


def xqa(a: Attention, hardware: Hardware, slots: Quantity) -> Division:
    """A split for 128 keys, beyond 8 of them √8 times the root of that, and no more than fill 8 waves.

    They are counted over the whole context and take tiles in turn, so that those for which a window leaves none begin
    and end all the same; only Hopper's kernel for an 8-bit cache drops them. A unit holds one block of the others:
    measured, at widths of 64 to 256 each further block on a unit of H100, A100 and L40S takes as long as the first.

    >>> from costmodel.hardware import load_hardware
    >>> h100, a = load_hardware("h100-sxm"), Attention(B=1, S=1, P=8191, H=8, Hkv=1, dk=128, dv=128)
    >>> xqa(a, h100, 264).splits  # √(8 · 64) = 22.6
    23.0
    >>> [xqa(a._replace(w=128, kv=kv), h100, 264)[1:3] for kv in ("bf16", "fp8")]
    [(23.0, 256.0), (2, 64)]
    """
    units, keys = hardware.compute.units, visible_keys(a)
    tiles = a.B * a.S * a.Hkv
    blocks = maximum(floor_div(a.P + a.S, SHARING_BLOCK), 1)
    few = minimum(blocks, floor_div(root(8.0 * blocks, 2.0) + 0.5, 1))
    splits = maximum(minimum(few, floor_div(XQA_WAVES * units, tiles)), 1)
    narrow = hardware.generation == "hopper" and a.kv == "fp8"
    step = XQA_STEP_NARROW if narrow else XQA_STEP
    steps = ceil_div(keys, step)
    busy = minimum(splits, steps)
    splits = busy if narrow else splits
    streamed = step * ceil_div(steps, splits)
    held = slots if narrow else units
    return Division(tiles, splits, streamed, minimum(splits - 1, 1), held, 1.0, empty=splits - busy)


LARGE_BLOCK, MIDDLE_BLOCK, SMALL_BLOCK = 1024, 512, 256
"""Threads of a block; a unit has registers for 1024 of them."""
LARGE_UP_TO, MIDDLE_UP_TO = 4 / 3, 4
"""Query heads of the batch on each unit up to which blocks are large and middle, where registers leave room for four
small ones."""
CROWDED_UP_TO, CROWDED_HELD = 3, 3
"""The same on Ada where the cache is 8 bit, whose conversion takes registers: query heads on each unit up to which
blocks are of 512 threads, one at a time (measured: between 2.7 and 3.6), and small blocks that a unit then holds."""
SCORE_BYTES = 6
"""Bytes of shared memory that a key of a block takes: its logit in fp32, and in 16 bit."""
RESERVED_BYTES, KEPT_BYTES = 1024, 2048
"""Bytes of shared memory that CUDA reserves in each block, and that TensorRT-LLM keeps free of scores."""
SHARED_BYTES = 100 * 1024
"""Shared memory of a unit where the profile does not say."""
UNROLLED = 8
"""Keys that the threads of a key take at a time."""


def masked_multihead(a: Attention, hardware: Hardware) -> Division:
    """TensorRT-LLM's kernel with a thread block for every query head.

    Blocks are the larger the fewer there are. Splits fill the device once with one block of each unit, rounded up, so
    that a second round begins wherever their product does not divide; each takes one step of its threads at least. The
    scores of a block lie in shared memory, which limits how many blocks a unit holds in a long context. A block streams
    as many keys at a time as it has threads for: the keys are given as those of a large block.

    >>> a = Attention(B=1, S=1, P=2047, H=24, Hkv=24, dk=128, dv=128)
    >>> from costmodel.hardware import load_hardware
    >>> masked_multihead(a, load_hardware("h100-sxm")).splits  # 2048 keys and the new one, 512 at a time
    5
    """
    units, keys = hardware.compute.units, visible_keys(a)
    blocks = a.B * a.S * a.H
    if a.kv == "fp8" and hardware.generation == "ada":
        large = blocks <= CROWDED_UP_TO * units
        threads, held = where(large, MIDDLE_BLOCK, SMALL_BLOCK), where(large, 1, CROWDED_HELD)
    else:
        small = where(blocks < MIDDLE_UP_TO * units, MIDDLE_BLOCK, SMALL_BLOCK)
        threads = where(blocks <= LARGE_UP_TO * units, LARGE_BLOCK, small)
        held = floor_div(LARGE_BLOCK, threads)
    width = nominal(a.dk, 128)
    # 16 bytes of a 16-bit key belong to a thread.
    threads_of_key = 8 if width <= 64 else 16 if width <= 128 else 32
    shared = hardware.memory.shared_per_unit or SHARED_BYTES
    # The steps are counted over the whole context, even where a window leaves few keys of it.
    steps = ceil_div(a.P + a.S + 1, floor_div(threads * UNROLLED, threads_of_key))
    splits = minimum(ceil_div(units, blocks), steps)
    splits = maximum(splits, ceil_div(keys * SCORE_BYTES, shared - RESERVED_BYTES - KEPT_BYTES))
    taken = SCORE_BYTES * keys / splits + RESERVED_BYTES + 4 * width
    held = minimum(held, maximum(floor_div(shared, taken), 1))
    streamed = keys / splits * (LARGE_BLOCK / threads)
    return Division(blocks, splits, streamed, minimum(splits - 1, 1), units * held, a.H / a.Hkv)


def tensorrt(a: Attention, hardware: Hardware, slots: Quantity) -> Division:
    """TensorRT-LLM's division before Blackwell: `xqa` where heads share a block, else one block for each head.

    On Ada the kernel that shares heads never splits an 8-bit cache: measured, 16 ns for each of up to 2,048 keys
    whether the batch is of 1 or of 128.
    """
    sharing = xqa(a, hardware, slots)
    if hardware.generation == "ada" and a.kv == "fp8":
        sharing = Division(
            sharing.tiles, 1, XQA_STEP_NARROW * ceil_div(visible_keys(a), XQA_STEP_NARROW), 0, sharing.slots, 1
        )
    shared = shares_heads(a.B, a.Hkv, a.H / a.Hkv, a.P + a.S, a.kv == "fp8", hardware.compute.units)
    alone = masked_multihead(a, hardware)
    return Division(*(where(shared, one, other) for one, other in zip(sharing, alone, strict=True)))


VLLM_MLA_KEYS = 512
"""Keys of a split at least, before their number is rounded up to a power of two (`min_work_per_split`)."""


def vllm_mla(keys: Quantity, units: int, rule: int) -> Quantity:
    """Splits of a sequence in vLLM's Triton kernel for latents: 4, in newer versions by the length of the context.

    >>> vllm_mla(8192, 142, VLLM_MLA), vllm_mla(8192, 142, VLLM_MLA_FOUR)
    (16.0, 4)
    """
    if rule == VLLM_MLA_FOUR:
        return minimum(4, keys)
    wanted = power(2.0, ceil(log2(maximum(floor_div(keys, VLLM_MLA_KEYS), 1))))
    return minimum(wanted, 2.0 * units)


BENCHMARKED_HEADS = 64
"""Heads of a model by which SGLang's backend counts at least when its kernel for latents is benchmarked, however few
are left on the device: the collector gives it the heads of the whole model.

Source: ai-dynamo/aiconfigurator, collector/sglang/collect_mla.py (`num_attention_heads`, beside attn_tp_size 1)."""


class StartedSplits(NamedTuple):
    """Splits of each sequence that have keys, keys of the longest, and splits that are launched."""

    busy: Quantity
    keys: Quantity
    started: Quantity


def sglang_mla(B: Quantity, heads: Quantity, keys: Quantity, units: int) -> StartedSplits:
    """SGLang's Triton kernel for latents: `sglang_triton`'s count, up to as many as the device has units.

    That limit, rounded up to a power of two, is launched whichever splits have keys (contexts that the server allows
    of fewer than 32 keys a unit lower it). heads: those that the backend was told.

    >>> sglang_mla(1, 64, 2048, 142), sglang_mla(64, 64, 2048, 142)
    (StartedSplits(busy=64.0, keys=32.0, started=256.0), StartedSplits(busy=3.0, keys=704.0, started=256.0))
    """
    started = power(2.0, ceil(log2(float(units))))
    wanted = floor_div(units * maximum(log2(keys / 64), 1), 1)
    splits = minimum(ceil_div(wanted, B * ceil_div(heads, GROUPED_ROWS)), started)
    streamed = SGLANG_STEP * ceil_div(ceil_div(keys, splits), SGLANG_STEP)
    return StartedSplits(ceil_div(keys, streamed), streamed, started)


FEW_HEADS, MIDDLE_HEADS, MANY_HEADS, PAIR_HEADS = 16, 32, 64, 128
"""Heads of a tile whose heads are the columns of an instruction, up to how many always are, of one that has them as
rows, and of two blocks that run an instruction together."""
SHORT_KEYS = 1024
"""Keys of a split up to which more heads are columns as well."""
LARGEST_AT_ONCE = 7
"""Clusters of 16 blocks that a B200 holds at a time: measured, an eighth takes a round more, unless blocks write a
quarter of the values and share units."""


class LatentDivision(NamedTuple):
    """Thread blocks without splits, rows that their tiles hold of one sequence, splits of each, blocks that load a key
    between them, share of the values that each writes (0 where heads are rows), and rounds that clusters of splits wait
    (0 or 1)."""

    tiles: Quantity
    rows: Quantity
    splits: Quantity
    pair: Quantity
    width: Quantity
    late: Quantity


def tensorrt_gen_mla(B: Quantity, heads: Quantity, keys: Quantity, units: int) -> LatentDivision:
    """TensorRT-LLM's generated kernels for latents.

    Up to 32 heads, and more in splits of up to 1,024 keys that fit on the units at once, are tiles of 16 heads, whose
    values are divided over two or four thread blocks where these would leave half of the units idle (or any, of a
    single sequence); else tiles are of 64 heads. Splits fill the units once, with 256 keys each at least. Up to 16 of
    tiles of 16 heads are a cluster in TensorRT-LLM, and none in FlashInfer, which launches these kernels for vLLM and
    SGLang.

    >>> tensorrt_gen_mla(1, 128, 4096, 148)[:3], tensorrt_gen_mla(16, 128, 8192, 148)[:4]
    ((16, 128, 9), (32, 128, 4, 2))
    """
    groups = ceil_div(heads, FEW_HEADS)
    longest = ceil_div(keys, GEN_LEAST)
    several = minimum(longest, maximum(floor_div(units, B * groups), 1))
    columns = (heads <= MIDDLE_HEADS) | ((ceil_div(keys, several) <= SHORT_KEYS) & (B * groups <= units))
    busy = B * groups * several * where(B <= 1, 1, 2)
    parts = where(busy * 2 <= units, 4, where(busy <= units, 2, 1))
    wide = ceil_div(heads, MANY_HEADS)
    tiles = B * where(columns, groups * parts, wide)
    splits = minimum(longest, maximum(floor_div(units, tiles), 1))
    pair = where(columns, 1, where(heads >= PAIR_HEADS, 2, 1))
    rows, width = where(columns, FEW_HEADS * groups, MANY_HEADS * wide), where(columns, 1 / parts, 0.0)
    late = where(columns & (splits == CLUSTER) & (tiles > LARGEST_AT_ONCE) & (parts < 4), 1, 0)
    return LatentDivision(tiles, rows, splits, pair, width, late)
