"""How FlashAttention 2 and 3 and FlashInfer divide the keys of a decode step over thread blocks: see `key_splits`.

Sources: vllm-project/flash-attention, csrc/flash_attn/flash_api.cpp (mha_varlen_fwd, num_splits_heuristic);
Dao-AILab/flash-attention, hopper/flash_prepare_scheduler.cu (num_splits_dynamic) and hopper/tile_size.h;
flashinfer-ai/flashinfer, include/flashinfer/attention/scheduler.cuh (PrefillBinarySearchKVChunkSize).
"""

from costmodel.algebra import Quantity, ceil, ceil_div, floor_div, maximum, minimum, nominal, where
from costmodel.kernels.attention import Attention, visible_keys
from costmodel.kernels.key_splits import Division

FLASH_ROWS, FLASH_SPLITS, FLASH_FILLED, FLASH_EFFICIENT = 64, 128, 0.8, 0.85
"""Query rows of a block, most splits, share of the slots from which nothing is split, and share of the best filling
with which the fewest splits are taken."""
FLASH_SLOTS, FLASH_ROUNDS = 2, 6
"""Blocks of a unit by which FlashAttention 2 counts, and rounds within which the best filling is sought here."""


def flash_two(a: Attention, units: int, slots: Quantity) -> Division:
    """FlashAttention 2: the fewest splits that fill whole rounds of the device to 85 % of what any number would.

    It splits where the heads of a key head share a block, which is where there are several, one query, and no window.

    >>> a = Attention(B=1, S=1, P=32_767, H=32, Hkv=8, dk=128, dv=128)
    >>> [flash_two(one, 108, 216).splits for one in (a, a._replace(H=8), a._replace(B=22))]
    [24, 1, 1]
    """
    together = (a.Hkv < a.H) & (a.S == 1) & (a.w is None or a.bidirectional)
    grouped = a.B * a.Hkv * ceil_div(a.H / a.Hkv, FLASH_ROWS)
    tiles = where(together, grouped, a.B * a.H * ceil_div(a.S, FLASH_ROWS))
    width = nominal(a.dk, 128)
    step = 256 if width <= 64 else 128 if width <= 128 else 64
    steps = ceil_div(a.P + a.S, step)
    wanted = fewest_efficient(tiles, FLASH_SLOTS * units, steps)
    splits = where(together & (tiles < FLASH_FILLED * FLASH_SLOTS * units), wanted, 1)
    streamed = step * ceil_div(ceil_div(visible_keys(a), step), splits)
    return Division(tiles, splits, streamed, minimum(splits - 1, 1), slots, tiles / (a.B * a.S * a.Hkv))


def fewest_efficient(tiles: Quantity, slots: int, steps: Quantity) -> Quantity:
    """The fewest splits that fill their rounds to 85 % of what the best number does, where none is left without a step.

    >>> fewest_efficient(132, 264, 64), fewest_efficient(8, 216, 3)  # both take whole steps
    (2, 3)
    """
    most = minimum(minimum(FLASH_SPLITS, slots), steps)
    ends: list[Quantity] = []
    best: Quantity = 0.0
    for rounds in range(1, FLASH_ROUNDS + 1):
        last = maximum(minimum(floor_div(rounds * slots, tiles), most), 1)
        last = ceil_div(steps, ceil_div(steps, last))
        filled = tiles * last / slots
        best = maximum(best, filled / ceil(filled))
        ends.append(last)
    found = ends[0]
    for rounds in range(FLASH_ROUNDS, 0, -1):
        least = maximum(ceil(FLASH_EFFICIENT * best * rounds * slots / tiles - EVEN), 1)
        # The longest split with which there are as many as that.
        taken = where(least > 1, ceil_div(steps, maximum(least - 1, 1)) - 1, steps)
        enough = ceil_div(steps, maximum(taken, 1))
        found = where(enough <= ends[rounds - 1], enough, found)
    return found


EVEN = 1e-9
"""A quotient that is a whole number but for its rounding is that number."""

HOPPER_ROWS, HOPPER_SPLITS, HOPPER_MARGIN = 128, 32, 1.1
"""Query rows of a tile, most splits, and steps that each unit is given over its share."""


def flash_three(a: Attention, units: int, slots: Quantity) -> Division:
    """FlashAttention 3: as many steps to each split as each unit would have of the whole batch, and a tenth more.

    >>> a = Attention(B=4, S=1, P=8191, H=32, Hkv=8, dk=128, dv=128)
    >>> flash_three(a, 132, 132).splits, flash_three(a, 132, 132).keys  # 64 steps, 18 at most
    (4, 2048)
    """
    width = nominal(a.dk, 128)
    step = 128 if width <= 128 else 96 if width <= 192 else 64
    tiles = a.B * a.Hkv * ceil_div(a.H * a.S / a.Hkv, HOPPER_ROWS)
    steps = ceil_div(visible_keys(a), step)
    share = ceil(HOPPER_MARGIN * tiles * steps / units)
    splits = minimum(ceil_div(steps, share), HOPPER_SPLITS)
    return Division(tiles, splits, step * ceil_div(steps, splits), minimum(splits - 1, 1), slots, tiles / (a.B * a.Hkv))


INFER_BLOCKS, INFER_LEAST, INFER_PAGE = 2, 8, 16
"""Blocks of a unit by which FlashInfer counts, pages of a split at least (128 tokens), and tokens of vLLM's pages."""
INFER_FEW, INFER_SOME, INFER_MANY = 16, 64, 128
"""Query rows of its tiles."""


def flashinfer(a: Attention, units: int, slots: Quantity) -> Division:
    """FlashInfer: the shortest splits with which the batch's are two blocks of a unit, and none of fewer than 128 keys.

    >>> a = Attention(B=4, S=1, P=8191, H=32, Hkv=8, dk=128, dv=128)  # 35 splits of a key head are left for 4 sequences
    >>> flashinfer(a, 142, 284).splits, flashinfer(a, 142, 284).keys, flashinfer(a._replace(B=36), 142, 284).splits
    (8.0, 1024.0, 1)
    """
    rows = a.H * a.S / a.Hkv
    wide = INFER_SOME if nominal(a.dk, 128) >= 256 else where(rows > INFER_SOME, INFER_MANY, INFER_SOME)
    of_sequence = ceil_div(rows, where(rows > INFER_FEW, wide, INFER_FEW))
    there = floor_div(floor_div(INFER_BLOCKS * units, a.Hkv), a.B * of_sequence)
    pages = ceil_div(visible_keys(a), INFER_PAGE)
    taken = maximum(ceil_div(pages, maximum(there, 1)), minimum(pages, INFER_LEAST))
    splits = ceil_div(pages, taken)
    tiles = a.B * a.Hkv * of_sequence
    return Division(tiles, splits, INFER_PAGE * taken, minimum(splits - 1, 1), slots, of_sequence)
