"""What the predictions of own measurements are meant to reach, and what they reached."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.fitting.scoring import MODEL, Outcome, statistics
from costmodel.report.columns import Column, shows

Row = Mapping[str, Any]


class Goal(NamedTuple):
    """Median and 90th percentile of the error in percent on points that no fit saw, of some families (none: all).

    median: what must be reached; stretch: what may be. p90: None where nothing is asked of it.
    """

    name: str
    families: tuple[str, ...]
    median: float
    p90: float | None = None
    stretch: float | None = None


GOALS = {
    "cpu": (Goal("held-out points", (), 25.0, stretch=15.0),),
    "cuda": (
        Goal("dense prefill and decode", ("prefill-attention", "decode-attention", "window-attention"), 5.0, 12.0),
        Goal(
            "MLA and sparse",
            (
                "mla-prefill",
                "mla-decode",
                "indexer",
                "top-k",
                "sparse-attention",
                "block-sparse",
                "msa-prefill",
                "csa-prefill",
                "csa-decode",
                "hca-prefill",
                "hca-decode",
            ),
            7.0,
            18.0,
        ),
        Goal("linear scans", ("chunk-scan", "selective-scan"), 5.0, 12.0),
        Goal("recurrent decode", ("recurrent-step",), 2.0, 6.0),
        Goal("whole layers", ("whole-model",), 7.0, 15.0),
    ),
}
EXTRAPOLATION = {"cpu": GOALS["cpu"], "cuda": (Goal("extrapolation", (), 6.0, 12.0),)}
SLOPES_APART = 0.25
"""How far the measured exponent over the context may be from the predicted one."""
SAME = 1e-9

COLUMNS = (
    shows("goal", right=False),
    shows("n"),
    Column("reached", lambda row: _pair(row["reached"])),
    Column("asked", lambda row: _pair(row["asked"])),
    shows("met", right=False),
)


def _pair(pair: Sequence[float | None]) -> str:
    """Median and 90th percentile, or the one number that a goal has.

    >>> _pair((5.25, 12.0)), _pair((0.25, None)), _pair(())
    ('5.2 / 12', '0.25', '–')
    """
    return " / ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in pair if value is not None) or "–"


def goals(
    kind: str, split: str, outcomes: Sequence[Outcome], slopes: Sequence[Row], work: Sequence[Row]
) -> list[dict[str, Any]]:
    """One row for each goal of a kind of device (cuda, cpu): the errors, the slopes, and the FLOPs of the references.

    met: yes, no, stretch where more than asked for is reached, or – where nothing was measured.
    """
    found = [_errors(goal, outcomes) for goal in (EXTRAPOLATION if split == "extrapolate" else GOALS)[kind]]
    apart = [abs(row["measured"] - row["predicted"]) for row in slopes]
    if apart:
        furthest = max(apart)
        reached, asked = (furthest, None), (SLOPES_APART, None)
        met = "yes" if furthest <= SLOPES_APART else "no"
        found.append(
            {"goal": "slopes over the context", "n": len(apart), "reached": reached, "asked": asked, "met": met}
        )
    ratios = [row["flops_over_claimed"] for row in work if row["flops_over_claimed"] is not None]
    if ratios:
        most = max(abs(ratio - 1.0) for ratio in ratios)
        told = {"goal": "FLOPs of formulas and references", "n": len(ratios), "reached": (most, None)}
        found.append({**told, "asked": (0.0, None), "met": "yes" if most < SAME else "no"})
    return found


def _errors(goal: Goal, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    own = [
        one
        for one in outcomes
        if one.method == MODEL and len(one.rows) and (not goal.families or one.series.family in goal.families)
    ]
    asked = (goal.median, goal.p90)
    if not own:
        return {"goal": goal.name, "n": 0, "reached": (), "asked": asked, "met": "–"}
    told = statistics(numpy.concatenate([one.gaps for one in own]), None)
    median, p90 = (float(told[name] or 0.0) for name in ("median_ape", "p90_ape"))
    met = median <= goal.median and p90 <= (math.inf if goal.p90 is None else goal.p90)
    word = "stretch" if goal.stretch is not None and median <= goal.stretch else "yes" if met else "no"
    return {
        "goal": goal.name,
        "n": sum(len(one.rows) for one in own),
        "reached": (median, p90),
        "asked": asked,
        "met": word,
    }
