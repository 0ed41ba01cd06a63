"""How published code divides the keys of a decode step over thread blocks.

A fit sees how often a kernel splits only in the contexts that were measured; a rule that its source states holds beyond
them. `splits_by` says which rule a kernel follows; 1 fits how far splits fill the device.

Sources: sgl-project/sglang, python/sglang/srt/layers/attention/triton_backend.py (get_num_kv_splits_triton);
vllm-project/vllm, vllm/v1/attention/backends/triton_attn.py and mla/triton_mla.py; NVIDIA/TensorRT-LLM,
cpp/tensorrt_llm/kernels, decoderXQAImplCommon.h (computeMultiBlockCount), decoderXQARunner.cpp (mayHavePerfGain),
decoderMaskedMultiheadAttention/decoderMaskedMultiheadAttentionLaunch.h (multi_block_grid_setup) and
trtllmGenKernels/fmha/fmhaKernels.h (numCtasPerSeqKv); flashinfer-ai/flashinfer,
include/flashinfer/trtllm/fmha/fmhaKernels.cuh (CgaSmemReduction).
"""

from typing import Any, NamedTuple

from costmodel.algebra import Quantity, ceil, ceil_div, floor_div, log2, maximum, minimum, nominal, power, root, where
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention, visible_keys

FILLING, SGLANG_TRITON, VLLM_TRITON, TENSORRT, TENSORRT_XQA = 1, 2, 3, 4, 5
FLASH_TWO, FLASHINFER, TENSORRT_GEN, FLASH_THREE = 6, 7, 8, 9
"""Values of `splits_by` of decode attention; TensorRT-LLM's kernel that shares heads may split by its rule, or not."""
VLLM_MLA, VLLM_MLA_FOUR = 2, 3
"""Values of `splits_by` of latent attention."""


class Division(NamedTuple):
    """Thread blocks without splits, splits of each, keys that the longest streams, whether a second kernel combines
    them (0 to 1), blocks that the device holds at a time, and tiles of a key head over those that its rows need."""

    tiles: Quantity
    splits: Quantity
    keys: Quantity
    combined: Quantity
    slots: Quantity
    repeats: Quantity
    gathered: Quantity = 0


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
XQA_WAVES, XQA_BLOCKS, XQA_STEP = 8, 6000, 64
"""kTargetWaveFactor, kXQA_MAX_NUM_SUB_SEQ, and the keys of a tile."""


def shares_heads(B: Quantity, Hkv: Quantity, group: Quantity, keys: Quantity, narrow: Any, units: int) -> Any:
    """Whether TensorRT-LLM before Blackwell runs the kernel whose thread blocks hold all heads of a key head (XQA).

    It does with enough blocks of 128 keys to occupy a quarter of the device, and always on an 8-bit cache (narrow).

    >>> [bool(shares_heads(B, 1, 8, 1024, False, 132)) for B in (4, 5)]
    [False, True]
    """
    enough = B * Hkv * maximum(floor_div(keys, SHARING_BLOCK), 1) * 4 >= units
    return (group > 1) & (group <= SHARING_ROWS) & (enough | narrow)


def xqa(a: Attention, units: int, slots: Quantity) -> Division:
    """A split for 128 keys, beyond 8 of them √8 times the root of that, and no more than fill 8 waves.

    >>> xqa(Attention(B=1, S=1, P=8192, H=8, Hkv=1, dk=128, dv=128), 132, 264).splits  # √(8 · 64) = 22.6
    23.0
    """
    tiles = a.B * a.S * a.Hkv
    blocks = maximum(floor_div(a.P, SHARING_BLOCK), 1)
    few = minimum(blocks, floor_div(root(8.0 * blocks, 2.0) + 0.5, 1))
    most = minimum(floor_div(XQA_WAVES * units, tiles), floor_div(XQA_BLOCKS, tiles))
    splits = maximum(minimum(few, most), 1)
    streamed = minimum(XQA_STEP * ceil_div(ceil_div(a.P + a.S, XQA_STEP), splits), visible_keys(a))
    return Division(tiles, splits, streamed, minimum(splits - 1, 1), slots, 1.0)


LARGE_BLOCK, MIDDLE_BLOCK, SMALL_BLOCK = 1024, 512, 256
"""Threads of a block; a unit has registers for 1024 of them."""
LARGE_UP_TO, MIDDLE_UP_TO = 1.3, 4
"""Query heads of the batch on each unit up to which blocks are large and middle; the first is measured: between 1.21
and 1.35 on H100, A100 and L40S at width 128."""
CROWDED_UP_TO, CROWDED_HELD = 3, 3
"""The same on Ada where the cache is 8 bit, whose conversion takes registers: query heads on each unit up to which
blocks are of 512 threads, one at a time (measured: between 2.7 and 3.6), and small blocks that a unit then holds."""
SCORE_BYTES = 6
"""Bytes of shared memory that a key of a block takes: its logit in fp32, and in 16 bit."""
SHARED_BYTES = 100 * 1024
"""Shared memory of a unit where the profile does not say."""
UNROLLED = 8
"""Keys that the threads of a key take at a time."""


def masked_multihead(a: Attention, hardware: Hardware) -> Division:
    """TensorRT-LLM's kernel with a thread block for every query head.

    Blocks are the larger the fewer there are. Splits fill the device once, rounded up, so that a second round begins
    wherever their product does not divide; each takes one step of its threads at least. The scores of a block lie in
    shared memory, which limits how many blocks a unit holds in a long context.

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
    filling = ceil_div(units * held, blocks)
    splits = minimum(filling, ceil_div(keys + 1, floor_div(threads * UNROLLED, threads_of_key)))
    splits = maximum(splits, ceil_div(keys * SCORE_BYTES, shared))
    held = minimum(held, maximum(floor_div(shared, SCORE_BYTES * keys / splits), 1))
    return Division(blocks, splits, keys / splits, minimum(splits - 1, 1), units * held, a.H / a.Hkv)


def tensorrt(a: Attention, hardware: Hardware, sharing: Division) -> Division:
    """TensorRT-LLM's division before Blackwell: `sharing` where heads share a block, else one block for each head.

    On Ada the kernel that shares heads never splits an 8-bit cache: measured, 16 ns for each of up to 2,048 keys
    whether the batch is of 1 or of 128.
    """
    if hardware.generation == "ada" and a.kv == "fp8":
        tiles = a.B * a.S * a.Hkv
        sharing = Division(tiles, 1, XQA_STEP * ceil_div(visible_keys(a), XQA_STEP), 0, sharing.slots, 1.0)
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
