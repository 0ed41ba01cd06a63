"""What the thread blocks of fused attention walk on a given generation of GPUs: tiles, pairs, the longest tile.

Work counts the tiles of one kernel, whatever the device. These are the device's: the large tile that the kernels of a
generation use at their best, and a small one; a fit says how much of each, and whether the query heads of a key head
share tiles.

Source: Dao-AILab/flash-attention, hopper/tile_size.h, hopper/pack_gqa.h and, before Hopper,
csrc/flash_attn/src/flash_fwd_launch_template.h; two tiles of 128 rows per block on Blackwell: NVIDIA/cutlass,
examples/77_blackwell_fmha; on a processor: pytorch/pytorch, aten/src/ATen/native/cpu/FlashAttentionKernel.cpp.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum, nominal, where
from costmodel.kernels.processor import PROCESSOR

if TYPE_CHECKING:
    from costmodel.kernels.attention import Attention

STEP = 128 * 128
"""(query, key) pairs of a tile of usual size."""
LEAST_MASKED = 1e-5
"""Below, a kernel is taken to skip all that lies outside the window."""


class Walk(NamedTuple):
    """What the thread blocks of a launch walk: their number, the (query, key) pairs that all of them and the longest
    of them compute."""

    tiles: Quantity
    pairs: Quantity
    longest: Quantity


ONE_TILE = ("ampere", "hopper")
"""Generations whose FlashAttention takes its large tile and no other, one head in each, where the sequences of a launch
have one length and their keys lie in one piece, as in training: small tiles and packed heads are for pages and for few
queries.

Source: Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h (run_mha_fwd_hdim64 and the like),
hopper/flash_fwd_launch_template.h (the report's version)."""
SMALL_TILE = 64, 64
BLACKWELL_SMALL_TILE = 128, 128


CORE_ROWS, CORE_KEYS = 32, 512
"""Tiles of a core's kernel, of which the keys beyond the last are not computed."""

Tile = tuple[Quantity, Quantity]


def device_tiles(a: "Attention", generation: str) -> tuple[Tile, Tile]:
    """The large and the small tile (query rows × keys) of the kernels of a GPU generation.

    >>> from costmodel.kernels.attention import Attention
    >>> a = Attention(B=1, S=1, P=0, H=1, Hkv=1, dk=128, dv=128)
    >>> [device_tiles(a, name)[0] for name in ("ampere", "hopper", "blackwell")]
    [(128, 64), (128, 128), (256, 128)]
    """
    if generation == PROCESSOR:
        core: Tile = CORE_ROWS, CORE_ROWS
        if not a.bidirectional:
            # Windows are run slice by slice: as many queries as keys of a window, masked at both ends.
            core = (CORE_ROWS, minimum(CORE_KEYS, a.P + a.S)) if a.w is None else (minimum(a.w, a.S), CORE_ROWS)
        return core, core
    width = nominal(a.dk, 128)
    if width > 256:
        return (64, 64), SMALL_TILE
    if generation == "blackwell":
        return ((256, 128) if width <= 128 else (128, 128)), (BLACKWELL_SMALL_TILE if width <= 128 else SMALL_TILE)
    if generation == "hopper":
        if width <= 64:
            return (192, 192 if a.bidirectional else 128), SMALL_TILE
        if width <= 96:
            return (192, 144 if a.bidirectional else 128), SMALL_TILE
        if width <= 128:
            return (128, 176 if a.bidirectional else 128), SMALL_TILE
        return (128, 112 if width <= 192 else 80), SMALL_TILE
    if width <= 64:
        return (128, 128), SMALL_TILE
    return (128 if width <= 192 else 64, 64), SMALL_TILE


GENERATION, EXTEND, UNIFIED = 1, 2, 3
"""Values of `tiles`: what the kernels of a generation use, SGLang's Triton kernel, vLLM's."""


def extend_tile(a: "Attention", generation: str) -> Tile:
    """Query rows × keys of SGLang's Triton kernel, which packs no heads.

    Source: sgl-project/sglang, python/sglang/srt/layers/attention/triton_ops/extend_attention.py; without a mask
    prefill_attention.py.

    >>> from costmodel.kernels.attention import Attention
    >>> a = Attention(B=1, S=1, P=0, H=1, Hkv=1, dk=64, dv=64)
    >>> [extend_tile(a._replace(dk=width), "ada") for width in (64, 192, 512)]
    [(64, 128), (64, 64), (32, 32)]
    """
    width = nominal(a.dk, 128)
    if a.bidirectional:
        return (64, 64) if generation in ("ampere", "ada") else (128, 128)
    if 128 < width <= 256:
        return 64, 64
    if generation == "ada":
        return (64, 128) if width <= 128 else (32, 32)
    if generation == "ampere":
        return (128, 128) if width <= 128 else (32, 64)
    return (128, 64) if width <= 128 else (32 if generation == "hopper" else 16, 64)


def unified_tile(a: "Attention") -> Tile:
    """Query rows × keys of vLLM's Triton kernel: of 16 rows, or as many as a key head has query heads, those are used
    that hold all query heads of a position.

    Source: vllm-project/vllm, vllm/v1/attention/ops/triton_unified_attention.py.

    >>> from costmodel.kernels.attention import Attention
    >>> a = Attention(B=1, S=1, P=0, H=6, Hkv=2, dk=64, dv=64)
    >>> unified_tile(a), unified_tile(a._replace(H=64, Hkv=2))
    ((15.0, 32), (32.0, 32))
    """
    group = a.H / a.Hkv
    return floor_div(maximum(16, group), group) * group, 32


def ragged_end(rows: Quantity, columns: Quantity, share: Quantity) -> Quantity:
    """The part of a tile of keys that lies beyond the diagonal, on average over tiles of `share` query heads, which end
    rows / share keys after one another.

    Tiles of one head end at all multiples of the greatest common divisor of their sides, which makes it exact.

    >>> ragged_end(128, 128, 1), ragged_end(192, 128, 1), ragged_end(64, 128, 1), ragged_end(128, 128, 4)
    (0.0, 0.25, 0.25, 0.375)
    """
    if isinstance(share, int) and share == 1 and isinstance(rows, int) and isinstance(columns, int):
        return 0.5 * (1.0 - math.gcd(rows, columns) / columns)
    return 0.5 * maximum(1.0 - rows / share / columns, 0.0)


def walk_of_a_head(a: "Attention", rows: Quantity, columns: Quantity, share: Quantity, edge: Quantity = 0.0) -> Walk:
    """The walk over one sequence of `share` query heads whose rows lie side by side in the tiles.

    A tile then holds rows / share positions, and ends on the diagonal that many keys after the one before it; what the
    last tile of keys holds beyond (`ragged_end`) is computed in vain (both ends of a window: twice as much).
    """
    P, S = a.P, a.S
    step = rows / share
    tiles = ceil_div(S * share, rows)
    before = tiles - 1
    last = ceil_div(P + S, columns)
    if a.bidirectional:
        steps = tiles * last
    else:
        ragged = ragged_end(rows, columns, share)
        if a.w is None:
            steps = before * (ragged + P / columns) + 0.5 * step / columns * before * tiles + last
        else:
            reach = a.w - 1 + step
            growing = minimum(maximum(floor_div(reach - P, step), 0), before)
            whole = before - growing
            cut = edge * minimum(maximum(P + S - reach, 0.0) / columns, 1.0)
            last = minimum(last, (reach + cut) / columns + 2.0 * ragged)
            seen = growing * P + 0.5 * step * growing * (growing + 1) + whole * (reach + edge)
            steps = seen / columns + (growing + 2.0 * whole) * ragged + last
        steps = maximum(steps, tiles)
    return Walk(tiles, steps * (rows * columns), last * (rows * columns))


def walk(a: "Attention", generation: str, theta: Mapping[str, float]) -> Walk:
    """The walk of the whole launch, between large and small tiles and between packed and single heads.

    Windows and chunks: `masked` of what lies outside is walked all the same.
    """
    everything = a._replace(w=None, c=None)
    limited = not a.bidirectional and (a.w is not None or a.c is not None)
    if a.c is not None and not a.bidirectional:
        # Chunks are sequences of their own.
        chunk = minimum(a.S, a.c)
        cached = minimum(a.P - a.c * floor_div(a.P, a.c), a.c - chunk)
        a = a._replace(B=a.B * maximum(a.S / a.c, 1.0), S=chunk, P=cached, c=None)
    tiling = round(nominal(theta.get("tiles", GENERATION), GENERATION))
    large, small = device_tiles(a, generation)
    tall, packing = theta["large_tiles"], theta["packing"]
    if tiling != GENERATION:
        large = extend_tile(a, generation) if tiling == EXTEND else unified_tile(a)
        tall, packing = 1.0, 0.0 if tiling == EXTEND else 1.0
    elif not a.appends and generation in ONE_TILE:
        tall, packing = 1.0, 0.0
    group = a.H / a.Hkv
    tiles: Quantity = 0.0
    pairs: Quantity = 0.0
    longest: Quantity = 0.0
    for (rows, columns), size_weight in ((large, tall), (small, 1.0 - tall)):
        for share, heads, pack_weight in ((1, a.H, 1.0 - packing), (group, a.Hkv, packing)):
            weight = size_weight * pack_weight
            if isinstance(weight, float) and weight == 0.0:
                continue
            one = walk_of_a_head(a, rows, columns, share, theta.get("edge", 0.0))
            tiles = tiles + weight * a.B * heads * one.tiles
            pairs = pairs + weight * a.B * heads * one.pairs
            longest = longest + weight * one.longest
    masked: Quantity = theta.get("masked", 0.0)
    masked = where(masked < LEAST_MASKED, 0.0, masked)
    if not limited or (isinstance(masked, float) and masked == 0.0):
        return Walk(tiles, pairs, longest)
    full = walk(everything, generation, theta)
    return Walk(
        tiles,
        pairs + masked * maximum(full.pairs - pairs, 0.0),
        longest + masked * maximum(full.longest - longest, 0.0),
    )
