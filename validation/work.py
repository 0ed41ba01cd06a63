"""The work of measured operators beside what the formulas claim: FLOPs, bytes, and kernel launches."""

from collections.abc import Sequence
from math import log
from statistics import fmean, median
from typing import Any

from costmodel.report.columns import Column, shows
from validation.kernel_split import agrees, parts_of
from validation.measurements import Measurement
from validation.runners import Runner, runners
from validation.runners.whole_model import FAMILY

ON_HOST = ("Memset", "Memcpy")
"""What a profile lists beside kernels."""


def _ratio(key: str, title: str) -> Column:
    return Column(title, lambda row: "–" if row[key] is None else f"{row[key]:.4g}")


COLUMNS = (
    shows("operator", right=False),
    shows("implementation", right=False),
    _ratio("flops_over_claimed", "FLOPs of the reference"),
    _ratio("bytes_over_claimed", "bytes of its tensors"),
    shows("launches"),
    shows("claimed_launches", "claimed"),
    Column("split adds up %", lambda row: "–" if row["explained"] is None else f"{100 * row['explained']:.0f}"),
)


def work_rows(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One row per operator and implementation.

    flops_over_claimed: FLOPs that the reference was counted to do over those of the formulas, of the checked shape
    furthest from 1; None where the reference does other work than the formulas'. bytes_over_claimed: bytes of the
    tensors given and returned over the formulas' ideal bytes, in the median of its points: above 1 where a call is
    given what it does not touch (experts without a token), below where it touches a tensor twice. launches: kernels
    that the profiler saw in a call of the point that is furthest from what the formulas count; None on a processor.
    explained: of the points that the profiler split, the share whose kernels together take as long as the call.
    """
    found = []
    for key in dict.fromkeys((row.runner, row.implementation) for row in rows if row.status == "ok"):
        same = [row for row in rows if (row.runner, row.implementation) == key and row.status == "ok"]
        operator = runners()[key[0]]
        flops = [row.counted_flops / row.claimed_flops for row in same if row.counted_flops and row.claimed_flops]
        moved = [row.touched_bytes / claimed_bytes(operator, row) for row in same if row.touched_bytes]
        split = [row for row in same if operator.family != FAMILY and _launches(row)]
        counts = [(_launches(row), _claimed_launches(operator, row)) for row in split]
        seen, claimed = max(counts, key=lambda pair: abs(log(pair[0] / pair[1])), default=(None, None))
        explained = [agrees(parts_of(row.kernels), row.seconds) for row in split if row.seconds]
        found.append(
            {
                "operator": key[0],
                "implementation": key[1],
                "flops_over_claimed": max(flops, key=lambda ratio: abs(ratio - 1)) if flops else None,
                "bytes_over_claimed": median(moved) if moved else None,
                "launches": seen,
                "claimed_launches": claimed,
                "explained": fmean(explained) if explained else None,
            }
        )
    return found


def claimed_bytes(operator: Runner, row: Measurement) -> float:
    """The formulas' ideal bytes of a point."""
    return float(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in operator.kernels(row.shape)))


def _launches(row: Measurement) -> int:
    """Kernels that the profiler saw in a call; 0 where it saw none."""
    return round(sum(part.launches for part in parts_of(row.kernels) if not part.name.startswith(ON_HOST)))


def _claimed_launches(operator: Runner, row: Measurement) -> int:
    return int(sum(kernel.launches * kernel.count for kernel in operator.kernels(row.shape)))
