"""How FlashMLA's decode kernel deals the tiles of its queries out to thread blocks.

One block for each unit, or for each pair of them, takes whole queries and parts of one until its share is full. Each
query, and each part of one, counts as some tiles more than it has: its beginning and end. Few queries are split into
parts of a single tile, many are not split at all, and then a block has one query more than another or not.

Source: deepseek-ai/FlashMLA, get_decoding_sched_meta.cu and api/sparse_decode.h (parts and overhead of each kernel).
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil, ceil_div, floor_div, maximum, minimum, where
from costmodel.kernels.sparse_attention import HEADS

OVERHEAD, OVERHEAD_OF_PAIRS = 5, 3
"""Tiles that a query counts more than it has, in kernels of one unit, and of Blackwell's pairs."""


class Schedule(NamedTuple):
    """What the fullest thread block has, and the parts of a query.

    queries: that it begins, whole ones and parts; whole: of these, the whole ones; tiles: that it goes through;
    parts: of a query that is split, whose partial outputs are combined; split: queries that are, at most one for each
    block where some are not; blocks: that there are.
    """

    queries: Quantity
    whole: Quantity
    tiles: Quantity
    parts: Quantity
    split: Quantity
    blocks: Quantity


def schedule(queries: Quantity, tiles: Quantity, H: Quantity, units: int, generation: str) -> Schedule:
    """The fullest block's share of queries of so many tiles each, the first block's: others end below the same limit.

    >>> schedule(1, 10, 64, 148, "blackwell")  # every tile in a block of its own
    Schedule(queries=1, whole=0, tiles=1, parts=10, split=1, blocks=148)
    >>> schedule(256, 3, 64, 148, "blackwell")  # 2 · (3 + 5) of ⌈256 · (3 + 5)/148⌉ + 5, and none begins behind
    Schedule(queries=2, whole=2, tiles=6, parts=1, split=0, blocks=148)
    """
    pairs = ceil_div(H, HEADS)
    blocks = maximum(floor_div(units, pairs), 1)
    overhead = where(pairs > 1, OVERHEAD_OF_PAIRS, OVERHEAD) if generation == "blackwell" else OVERHEAD
    share = ceil(queries * (tiles + overhead) / blocks) + overhead
    whole = minimum(floor_div(share, tiles + overhead), queries)
    left = maximum(share - whole * (tiles + overhead) - overhead, 0)
    begun = where(whole < queries, where(left > 0, 1, 0), 0)
    parts = where(whole > 0, 1 + begun, ceil_div(tiles, maximum(left, 1)))
    split = where(whole > 0, begun * minimum(blocks, queries), queries)
    split = where(parts > 1, split, 0)
    return Schedule(whole + begun, whole, whole * tiles + begun * left, parts, split, blocks)
