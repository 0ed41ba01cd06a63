"""Attention of one new token over the cache: `generation_attention`."""

from collections.abc import Iterator
from typing import cast

import numpy
import pandas

from costmodel.dtypes import element_bytes
from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, dtype_names, flag, flag_spikes, require, series
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Form, replayed
from costmodel.kernels.decode_attention import (
    DECODE,
    TENSORRT_DECODE,
    TRITON_RULES,
    by_rule,
    decode_attention,
    instance,
)
from costmodel.kernels.key_splits import (
    FLASH_THREE,
    FLASH_TWO,
    FLASHINFER,
    SHARING_ROWS,
    TENSORRT_GEN,
    WITHOUT_XQA,
    shares_heads,
)

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "fp8_e4m3": "fp8"}
COLUMNS = (
    "batch_size",
    "step",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "kernel_source",
    "kv_cache_dtype",
    "latency",
)
SHAPE = ("batch_size", "context", "num_heads", "num_key_value_heads", "head_dim", "window_size", "group")
SWEEP = ("batch_size", "num_heads", "num_key_value_heads")
"""What stays the same along a sweep over the context."""
VALUE_WIDTHS = {("sglang", 192): 128}
"""Widths of a value where they differ from those of a key (MiMo-V2)."""
ALIASED = 1.25
"""Rate over the datasheet's HBM bandwidth that only sharing explains."""
LARGEST = (1, 16, 32, 64)
"""Query heads per key head that such a kernel holds."""
UNMASKED_FROM = 4
"""Windows that a context must hold before their rows are compared with full attention."""
SAME = 0.9
"""Time over that of full attention above which a window was not applied."""
TILES = (2, 17, 33)
"""Query heads per key head from which another kernel is compiled."""


def read_generation(table: Table) -> Iterator[Series]:
    """One series per kernel, head width, window and dtype of the cache; `step` counts the cached tokens."""
    require(table, COLUMNS)
    frame = table.frame.assign(
        group=table.frame["num_heads"] // table.frame["num_key_value_heads"], context=table.frame["step"] + 1
    )
    if "window_size" not in frame:
        frame["window_size"] = 0
    frame["rows"] = numpy.digitize(frame["group"], TILES)
    unshared = masked_multihead(table, frame)
    frame.loc[unshared, "rows"] = 0
    keys = ["kernel_source", "kv_cache_dtype", "head_dim", "window_size", "rows"]
    without = full_windows(frame)
    for key, some in frame.groupby(keys):
        source, kv, width, window, tile = cast(tuple[str, str, int, int, int], key)
        rows = some.copy()
        flag_spikes(rows, "context", SWEEP)
        flag_aliased(rows, int(width), str(kv), table.hardware)
        dtype = dtype_names(DTYPES, str(kv))
        if (source, kv, width, window) in without:
            window = 0
            rows["window_size"] = 0
        compiled = instance(int(width), dtype, LARGEST[int(tile)], bool(window))
        values = VALUE_WIDTHS.get((table.library, int(width)), int(width))
        name = str(source)
        if name == "torch_flow":
            name += other_kernel(older_tensorrt(table), LARGEST[int(tile)])
        form = form_of(table, name)

        def build(
            shapes: pandas.DataFrame,
            width: int = int(width),
            values: int = values,
            window: int = int(window),
            kv: str = dtype,
            compiled: str = compiled,
            form: Form = form,
        ) -> list[Part]:
            s = arrays(shapes)
            a = Attention(
                B=s["batch_size"],
                S=1,
                P=s["context"] - 1,
                H=s["num_heads"],
                Hkv=s["num_key_value_heads"],
                dk=width,
                dv=values,
                w=window or None,
                kv=kv,
            )
            kernel = decode_attention("attention", a)._replace(form=form, instance=compiled)
            return whole(shapes, replayed([kernel]))

        yield from series(
            table,
            rows,
            SHAPE,
            build,
            family="decode-attention",
            kernel=name,
            instance=compiled,
            phase="decode",
            tokens="context",
        )


def masked_multihead(table: Table, frame: pandas.DataFrame) -> "pandas.Series[bool]":
    """Rows that TensorRT-LLM runs with one thread block per query head, although heads share keys: `shares_heads`."""
    shared = shares_heads(
        frame["batch_size"],
        frame["num_key_value_heads"],
        frame["group"],
        frame["context"],
        frame["kv_cache_dtype"] == "fp8",
        table.hardware.compute.units,
    )
    return frame["group"].between(TILES[0], TILES[2] - 1) & ~shared & older_tensorrt(table)


def older_tensorrt(table: Table) -> bool:
    """Whether a table is TensorRT-LLM's on a device before Blackwell, for which it has other kernels."""
    return table.library == "trtllm" and table.hardware.generation not in WITHOUT_XQA


FILLS_WHOLLY = ("vllm_flashinfer_trtllmdecode", "trtllm_mha", "torch_flow")
"""vLLM's and SGLang's names of TensorRT-LLM's generated kernels, and that of TensorRT-LLM on Blackwell."""


def other_kernel(older: bool, heads: int) -> str:
    """What is added to TensorRT-LLM's one name for its kernels, where so many heads of a key head run another one.

    older: before Blackwell, where thread blocks hold up to 32 heads or, being another kernel, one. On Blackwell, times
    beyond 32 heads grow with the context as those of a kernel that splits little.
    """
    if older:
        return "" if 1 < heads <= SHARING_ROWS else " with a block for each head"
    return f" beyond {SHARING_ROWS} heads of a key head" if heads > SHARING_ROWS else ""


def form_of(table: Table, source: str) -> Form:
    """The form of a kernel, with the rule by which its library splits the keys, where that is known."""
    if "triton" in source and table.library in TRITON_RULES:
        return by_rule(TRITON_RULES[table.library])
    if source == "vllm_flash_attn_fa2" or (source == "vllm_flash_attn" and table.hardware.generation != "hopper"):
        return by_rule(FLASH_TWO)  # an older version's name for 2, and for Hopper's 3
    if source in ("fa3", "vllm_flash_attn_fa3"):
        return by_rule(FLASH_THREE)
    if source == "vllm_flashinfer_fidecode":
        return by_rule(FLASHINFER)
    if older_tensorrt(table):
        return TENSORRT_DECODE
    return by_rule(TENSORRT_GEN) if source in FILLS_WHOLLY else DECODE


def flag_aliased(rows: pandas.DataFrame, width: int, kv: str, hardware: Hardware) -> None:
    """Mark rows whose keys and values share pages, where that shows: a cache beyond L2 read faster than HBM can.

    As it shows only in the largest rows of a kernel, all of its rows with a cache beyond half of L2 go.
    """
    keys = rows["context"].where(
        (rows["window_size"] == 0) | (rows["context"] < rows["window_size"]), rows["window_size"]
    )
    cache = rows["batch_size"] * rows["num_key_value_heads"] * keys * 2 * width * element_bytes(DTYPES[kv])
    l2 = hardware.memory.l2.capacity or 0.0
    beyond = cache > 2 * l2
    rate = cache / (rows["latency"] * 1e-3)
    if (beyond & (rate > ALIASED * hardware.memory.hbm.bandwidth)).any():
        flag(rows, cache > 0.5 * l2, "keys and values share pages")


def full_windows(frame: pandas.DataFrame) -> set[tuple[str, str, int, int]]:
    """Kernels whose rows with a window took as long as those without one, where most of the context lies before it.

    That is so where an engine hands the label on, but not the window.
    """
    kind = ["kernel_source", "kv_cache_dtype", "head_dim"]
    windowed = frame[(frame["window_size"] > 0) & (frame["context"] >= UNMASKED_FROM * frame["window_size"])]
    pairs = windowed.merge(frame[frame["window_size"] == 0], on=[*kind, *SWEEP, "context"], suffixes=("", "_full"))
    ratio = (
        (pairs["latency"] / pairs["latency_full"]).groupby([pairs[name] for name in [*kind, "window_size"]]).median()
    )
    return set(ratio[ratio > SAME].index)


TABLES = {"generation_attention": read_generation}
