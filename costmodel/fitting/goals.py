"""How right the time forms are meant to be, per family: median and 90th percentile of the error in percent.

floor: what a calibration must reach to be shipped without a remark. stretch: what the measurements' own repeatability
would allow. long: fitted up to 2,048 tokens, judged from 8,192. few: fitted on 20 points per kernel.
"""

from typing import NamedTuple

Pair = tuple[float, float]


class Goal(NamedTuple):
    """Median and 90th percentile for each way of judging; None where a family has no such test."""

    families: tuple[str, ...]
    floor: Pair
    stretch: Pair
    long: Pair | None
    few: Pair


GOALS = (
    Goal(("gemm",), (6, 16), (4, 10), (8, 20), (8, 22)),
    Goal(("prefill-attention",), (6, 18), (4, 10), (6, 14), (7, 22)),
    Goal(("window-attention",), (8, 25), (5, 12), (8, 20), (10, 28)),
    Goal(("decode-attention",), (8, 22), (5, 12), (7, 16), (8, 22)),
    Goal(("mla-prefill", "mla-decode"), (5, 13), (3, 8), (6, 13), (6, 16)),
    Goal(
        ("dsa-prefill", "dsa-decode", "csa-prefill", "csa-decode", "sparse-attention", "indexer", "top-k"),
        (8, 25),
        (5, 15),
        (8, 20),
        (11, 28),
    ),
    Goal(("hca-prefill", "hca-decode"), (4, 13), (3, 8), (6, 14), (6, 16)),
    Goal(("chunk-scan",), (5, 15), (3, 8), (5, 17), (5, 20)),
    Goal(("recurrent-step", "short-conv"), (3, 8), (1.5, 5), (4, 10), (3, 10)),
    Goal(("msa-prefill", "msa-decode"), (13, 35), (8, 20), (15, 35), (15, 35)),
    Goal(("moe",), (11, 36), (7, 20), None, (14, 40)),
    Goal(("collective",), (6, 20), (4, 12), None, (7, 24)),
)
LONGER: dict[str, tuple[int, Pair]] = {"prefill-attention": (1024, (3, 8))}
"""Tokens from which on a family's stretch goal is another, and that goal: launches are little of such a time."""
UNSEEN_SHAPE: Pair = (10, 25)
"""Head widths and group sizes that no fit has seen."""
UNSEEN_GPU: Pair = (9, 24)
"""A device that no fit has seen, with 20 points per kernel."""


def goal(family: str) -> Goal | None:
    """The goal of a family, where it has one.

    >>> goal("hca-decode").floor, goal("elementwise")
    ((4, 13), None)
    """
    return next((one for one in GOALS if family in one.families), None)


def aim(family: str, kind: str, points: int) -> tuple[Pair | None, Pair | None]:
    """What a split of this kind asks of a family: what must be reached, and what may be."""
    if kind == "unseen-gpu":
        return (UNSEEN_GPU if points else None), None
    if kind in ("unseen-head-dim", "unseen-group"):
        return UNSEEN_SHAPE, None
    wanted = goal(family)
    if wanted is None:
        return None, None
    return {"extrapolate": (wanted.long, None), "points": (wanted.few, None)}.get(kind, (wanted.floor, wanted.stretch))
