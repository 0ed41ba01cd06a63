"""Operations among devices: `nccl`, the engines' own `custom_allreduce`, and DeepEP's dispatch and combine."""

from collections.abc import Iterator

import pandas

from costmodel.dtypes import token_bytes
from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, dtype_names, flag, flag_spikes, require, series
from costmodel.kernels.collective import Collective, collective

DTYPES = {"half": "bf16", "bfloat16": "bf16", "int8": "int8"}
"""NCCL's sums of either 16-bit format take the same time."""
BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
NODE = 8
"""Devices of the one node on which DeepEP was measured, each with its own experts."""


def read_nccl(table: Table) -> Iterator[Series]:
    """One series per operation and width; message sizes are in elements of the whole buffer."""
    require(table, ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency", "kernel_source", "version"))
    flag_spikes(table.frame, "message_size", ["op_name", "nccl_dtype", "num_gpus"])
    keys = ["version", "kernel_source", "op_name", "nccl_dtype"]
    for (version, source, op, dtype), rows in table.frame.groupby(keys):
        rows = rows.assign(bytes=rows["message_size"] * BYTES[str(dtype)])
        name = dtype_names(DTYPES, str(dtype))

        def build(shapes: pandas.DataFrame, op: str = str(op), name: str = name) -> list[Part]:
            s = arrays(shapes)
            return whole(shapes, [collective(op, Collective(op, s["num_gpus"], s["bytes"], name))])

        yield from series(
            table._replace(version=str(version)),
            rows,
            ("num_gpus", "bytes"),
            build,
            family="collective",
            kernel=str(source),
            instance=collective(str(op), Collective(str(op), 2, 1, name)).instance,
            phase="",
            tokens="bytes",
        )


def read_custom_allreduce(table: Table) -> Iterator[Series]:
    """One series per kernel, of the rows captured in a graph; the older tables do not say that theirs are.

    Rows that were launched one by one show the host. The rows' own version counts:
    some tables are copies of older ones.
    """
    require(table, ("allreduce_dtype", "num_gpus", "message_size", "latency", "kernel_source", "version"))
    flag(table.frame, table.frame["kernel_source"].str.endswith("_eager"), "launched one by one")
    flag_spikes(table.frame, "message_size", ["kernel_source", "allreduce_dtype", "num_gpus"])
    for (version, source, dtype), rows in table.frame.groupby(["version", "kernel_source", "allreduce_dtype"]):
        rows = rows.assign(bytes=rows["message_size"] * BYTES[str(dtype)])
        name = dtype_names(DTYPES, str(dtype))

        def build(shapes: pandas.DataFrame, name: str = name) -> list[Part]:
            s = arrays(shapes)
            reduced = Collective("all_reduce", s["num_gpus"], s["bytes"], name, own=True)
            return whole(shapes, [collective("all_reduce", reduced)])

        yield from series(
            table._replace(version=str(version)),
            rows,
            ("num_gpus", "bytes"),
            build,
            family="collective",
            kernel=str(source),
            instance="all_reduce-own",
            phase="",
            tokens="bytes",
        )


def read_deepep(table: Table) -> Iterator[Series]:
    """DeepEP on one node: dispatch in fp8 and combine in 16 bit, each with its own time in microseconds.

    The low-latency kernels send a copy for each expert, the normal ones one for each device that has some.
    """
    low_latency = table.name.endswith("_ll")
    times = ("{}_avg_t_us", "{}_transmit_us")[not low_latency]
    shape = ("num_token", "hidden_size", "num_topk", "num_experts")
    require(table, ("node_num", "kernel_source", *shape, times.format("dispatch"), times.format("combine")))
    flag(table.frame, table.frame["node_num"] != 1, "several nodes")
    for op, width in (("dispatch", token_bytes("fp8_block")), ("combine", 2)):
        columns = shape if low_latency else (*shape, f"{op}_sms")

        def build(shapes: pandas.DataFrame, op: str = op, width: float = width) -> list[Part]:
            s = arrays(shapes)
            k = s["num_topk"]
            copies = k * (NODE - 1) / NODE if low_latency else (NODE - 1) * (1 - (1 - 1 / NODE) ** k)
            bytes_ = s["num_token"] * s["hidden_size"] * width
            units = None if low_latency else s[f"{op}_sms"]
            sent = Collective(op, NODE, bytes_, copies=copies, tokens=s["num_token"], units=units)
            return whole(shapes, [collective(op, sent)])

        yield from series(
            table,
            table.frame,
            columns,
            build,
            family="collective",
            kernel="deepep-low-latency" if low_latency else "deepep-normal",
            instance=op,
            phase="",
            tokens="num_token",
            seconds=times.format(op),
            unit=1e-6,
        )


TABLES = {
    "nccl": read_nccl,
    "custom_allreduce": read_custom_allreduce,
    "wideep_deepep_ll": read_deepep,
    "wideep_deepep_normal": read_deepep,
}
