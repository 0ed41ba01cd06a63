"""Elementwise passes: `scale_matrix`, a cast of an (m, k) matrix from bf16 to fp8 with a scale that is known.

`computescale` is the time that a dynamic cast takes longer, a difference of two timings: its rows are read to be
counted and are never fitted.

Source: ai-dynamo/aiconfigurator, collector/*/collect_computescale.py.
"""

from collections.abc import Iterator

import pandas

from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, flag, require, series
from costmodel.kernels.base import replayed
from costmodel.kernels.elementwise import elementwise

SHAPE = ("m", "k")
WIDE, NARROW = 2, 1
"""Bytes of an element before and after the cast."""


def cast(shapes: pandas.DataFrame) -> list[Part]:
    """The one pass."""
    s = arrays(shapes)
    elements = s["m"] * s["k"]
    return whole(shapes, replayed([elementwise("cast", read=elements * WIDE, written=elements * NARROW)]))


def read_cast(table: Table) -> Iterator[Series]:
    """One series per kernel; rows that time something else than one pass are flagged."""
    require(table, (*SHAPE, "kernel_source", "latency"))
    rows = table.frame
    everything = rows["latency"].notna()
    if table.name == "computescale":
        flag(rows, everything, "difference of two timings")
    elif table.library == "sglang":
        flag(rows, everything, "expression of several kernels")
    for source, some in rows.groupby("kernel_source"):
        yield from series(
            table, some, SHAPE, cast, family="elementwise", kernel=str(source), instance="", phase="", tokens="m"
        )


TABLES = {"scale_matrix": read_cast, "computescale": read_cast}
