"""DeepSeek-V4's hyper-connections: `mhc_module`, the kernels before (`pre`) and after (`post`) a block.

A row is the sum over `num_sites` sites of a layer, which run the same kernels.
"""

from collections.abc import Iterator
from typing import Any

import pandas

from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, require, series
from costmodel.kernels.base import replayed
from costmodel.layers.hyper_connections import POST, PRE, hyper_connections
from costmodel.step import Precision, Step

COLUMNS = ("op_name", "kernel_source", "num_tokens", "num_sites", "hc_mult", "hidden_size", "sinkhorn_iters", "latency")
SHAPE = ("num_tokens", "hidden_size", "hc_mult", "num_sites", "sinkhorn_iters")
INSTANCES = {"pre": PRE, "post": POST}


VECTOR = "fma"
"""In the name of a kernel that multiplies on the vector lanes, as TensorRT-LLM does for few tokens."""


def _build(instance: str, lanes: bool) -> Any:
    def build(shapes: pandas.DataFrame) -> list[Part]:
        s = arrays(shapes)
        step = Step(B=s["num_tokens"], S=1, P=0)
        run = hyper_connections(s["hidden_size"], s["hc_mult"], step, Precision(), s["sinkhorn_iters"])
        own = [kernel.times(s["num_sites"]) for kernel in run if kernel.instance == instance]
        if lanes:
            own = [
                kernel._replace(executed=kernel.executed._replace(tensor={}, vector=kernel.executed.flops))
                for kernel in own
            ]
        return whole(shapes, replayed(own))

    return build


def read_mhc(table: Table) -> Iterator[Series]:
    """One series per kernel."""
    require(table, COLUMNS)
    for (op, source), rows in table.frame.groupby(["op_name", "kernel_source"]):
        instance = INSTANCES[str(op)]
        yield from series(
            table,
            rows,
            SHAPE,
            _build(instance, VECTOR in str(source)),
            family="elementwise",
            kernel=str(source),
            instance=instance,
            phase="",
            tokens="num_tokens",
        )


TABLES = {"mhc_module": read_mhc}
