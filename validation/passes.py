"""Several passes over the points of an operator on a processor, which other programs slow down for seconds at a time.

A sample's spread shows what comes and goes within a pass of some tens of milliseconds; a second pass, after the other
points of the operator, shows what lasts for seconds; and a product of known work around each pass shows what lasts for
as long as the operator's passes do (`validation.core_pace`).
"""

import math
from collections.abc import Sequence

from validation.core_pace import is_calm
from validation.stopwatch import Timing

MOST_PASSES = 4
APART = 0.05
"""How far two passes, or the samples of one, may be apart to show a call's time, and not the machine's state."""


def settled(passes: Sequence[Timing], fastest_pace_s: float = math.inf) -> bool:
    """Whether no further pass is needed: two agree and the fastest was calm, or there are four.

    Two agree whose fastest tenths are within 5 %, and a pass was calm whose median is within 5 % of its fastest tenth,
    beside which the core was as fast as it was at its fastest in this run (fastest_pace_s): two passes can fall into
    one slow time, but then their samples spread, or the product beside them is slow as well.

    >>> from validation.stopwatch import timing_of
    >>> calm, restless = (timing_of([1.0, end], "warm", "") for end in (1.01, 1.3))
    >>> settled([calm]), settled([calm, calm]), settled([restless, restless]), settled([restless, restless, calm])
    (False, True, False, True)
    >>> settled([calm._replace(pace_s=1.3e-4)] * 2, 1e-4), settled([calm._replace(pace_s=1.05e-4)] * 2, 1e-4)
    (False, True)
    """
    if len(passes) >= MOST_PASSES:
        return True
    fastest = min(passes, key=lambda each: each.p10_s)
    calm = fastest.median_s <= (1 + APART) * fastest.p10_s and is_calm(fastest.pace_s, fastest_pace_s)
    return len(passes) > 1 and _apart(passes) <= APART and calm


def _apart(passes: Sequence[Timing]) -> float:
    """How far the two fastest passes are from each other, as a share."""
    first, second = sorted(each.p10_s for each in passes)[:2]
    return second / first - 1


def joined(passes: Sequence[Timing]) -> Timing:
    """One timing of several passes over the same calls: that of the fastest, with the slowest tenth of them all.

    Other programs only ever slow a call down, and do it for longer than a pass takes: samples of a slow pass say
    nothing of the call, however many there are.

    >>> from validation.stopwatch import timing_of
    >>> slow, calm = timing_of([1.5, 1.6], "warm", "CPU time"), timing_of([1.0, 1.02], "warm", "CPU time")
    >>> found = joined([slow, calm])
    >>> found.median_s, found.p90_s, found.n, found.method
    (1.01, 1.59, 4, 'CPU time, the fastest of 2 passes, the next 51 % behind')
    """
    fastest = min(passes, key=lambda each: each.p10_s)
    if len(passes) == 1:
        return fastest
    told = f"the fastest of {len(passes)} passes, the next {100 * _apart(passes):.0f} % behind"
    return fastest._replace(
        p90_s=max(each.p90_s for each in passes),
        n=sum(each.n for each in passes),
        method=f"{fastest.method}, {told}",
    )
