"""What a column of a table shows: its heading, and the text made from a row of plain values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.units import format_bytes, format_count, format_flops, format_joules, format_seconds, format_span

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A heading (lines separated by a newline), the text of a row, the side that the texts lean to, and a
    name that stands once above neighbouring columns that share it."""

    title: str
    text: Callable[[Row], str]
    right: bool = True
    group: str = ""


def number_text(value: float) -> str:
    """A plain number with about three significant digits.

    >>> number_text(12345.6), number_text(163.4), number_text(0.51234), number_text(7)
    ('12,346', '163', '0.512', '7')
    """
    if isinstance(value, float) and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def value_text(key: str, value: Any) -> str:
    """A value as people read it; the key's name tells the unit, as everywhere in the project.

    >>> value_text("time_s", 0.0042), value_text("cache_bytes", 2**30), value_text("context", 8192)
    ('4.2 ms', '1 GiB', '8k')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(value_text("", item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_text('', item)}" for name, item in value.items())
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("tokens_per_s"):
        return number_text(value)
    for ending, text in (
        ("bytes_per_s", lambda rate: format_flops(rate, "B/s")),
        ("flop_per_s", lambda rate: format_flops(rate, "FLOP/s")),
        ("_w", lambda watts: f"{watts:g} W"),
        ("context", format_count),
        ("prompt", format_count),
        ("bytes", format_bytes),
        ("flops", format_flops),
        ("_s", format_seconds),
        ("_j", format_joules),
        ("share", percent),
    ):
        if key.endswith(ending):
            return text(value)
    return number_text(value)


def percent(share: float) -> str:
    """A share in percent.

    >>> percent(0.256)
    '25.6 %'
    """
    return f"{share * 100:.1f} %"


def shows(key: str, title: str | None = None, right: bool = True) -> Column:
    """The column of one key."""
    return Column(title or key.replace("_", " "), lambda row: value_text(key, row.get(key)), right)


PREDICTION = (
    shows("context"),
    shows("time_s", "time"),
    Column("80 % interval", lambda row: format_span(row["time_low_s"], row["time_high_s"])),
    Column("no waiting …\nno overlap", lambda row: format_span(row["roofline_s"], row["serial_s"])),
    shows("bound", right=False),
    shows("flops", "FLOPs"),
    shows("hbm_bytes", "HBM traffic"),
    shows("intensity", "FLOP/byte"),
    shows("tokens_per_s", "tokens/s"),
    shows("cache_bytes", "cache"),
    shows("memory_bytes", "memory"),
    shows("fits", right=False),
    shows("energy_j", "energy"),
)
PARALLEL = (
    *(column for column in PREDICTION if column.title not in ("memory", "fits", "FLOP/byte", "cache")),
    shows("memory_per_gpu_bytes", "memory\nper GPU"),
    shows("fits", right=False),
    shows("cache_bytes", "cache,\nall GPUs"),
    shows("max_sequences", "sequences\nthat fit"),
    shows("replicated_weight_bytes", "replicated\nweights"),
    shows("replicated_cache_bytes", "replicated\ncache"),
)
TRAINING = (
    *(column for column in PREDICTION if column.title not in ("memory", "fits", "FLOP/byte", "cache")),
    Column("MFU", lambda row: "–" if row["mfu"] is None else percent(row["mfu"])),
    shows("memory_per_gpu_bytes", "memory\nper GPU"),
    shows("fits", right=False),
)
GENERATION = (
    shows("method", right=False),
    shows("passes"),
    shows("time_s", "time"),
    Column("80 % interval", lambda row: format_span(row["time_low_s"], row["time_high_s"])),
    shows("ratio"),
    shows("prefill_s", "of it prompt"),
    shows("tokens_per_s", "tokens/s"),
    shows("tokens_per_step", "tokens/step"),
    shows("bound", right=False),
    shows("flops", "FLOPs"),
    shows("hbm_bytes", "HBM traffic"),
    shows("cache_bytes", "cache"),
    shows("energy_j", "energy"),
)
CROSSOVERS = (
    *(shows(key, right=False) for key in ("kind", "first", "second", "phase", "hw")),
    Column("context", lambda row: "–" if row["context"] is None else f"{row['context']:,}"),
    shows("note", right=False),
)
BASIS = shows("basis", right=False)

KERNELS = (
    shows("kernel", right=False),
    shows("group", right=False),
    shows("family", right=False),
    shows("count"),
    shows("time_s", "time"),
    shows("share"),
    shows("bound", right=False),
    shows("flops", "FLOPs"),
    shows("hbm_bytes", "HBM traffic"),
    shows("basis", right=False),
)


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """A column for every key of the rows, in order of appearance; texts lean left, numbers right."""
    keys = dict.fromkeys(key for row in rows for key in row if key != "breakdown")
    return tuple(shows(key, right=any(_numeric(row.get(key)) for row in rows)) for key in keys)


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
