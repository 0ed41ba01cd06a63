"""The tables of `plan`: the best plans, the frontier, the replays, the space, and launch commands."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from costmodel.planning.space import Count, Dimension
from costmodel.report.columns import Column, number_text, percent, shows, value_text
from costmodel.report.output import emit, print_table
from costmodel.units import format_span

Rows = Sequence[Mapping[str, Any]]
MOST_POINTS = 12
"""Points of a device's frontier that a table shows; JSON has all."""


def _latency(latency: str, key: str) -> Column:
    return Column(key, lambda row: value_text("time_s", row[f"{latency}_{key}_s"]), group=latency.upper())


BEST = (
    shows("hw", right=False),
    shows("layout", right=False),
    shows("replicas"),
    shows("gpus", "GPUs"),
    Column("weights\nKV", lambda row: f"{row['weights']}, {row['kv']}", right=False),
    shows("draft_tokens", "drafts"),
    shows("max_batched_tokens", "chunk\nbudget"),
    shows("sequences", "batch"),
    Column("TTFT", lambda row: latency_text(row["ttft_s"])),
    Column("80 %", lambda row: _interval(row, "ttft"), group="interval"),
    Column("TPOT", lambda row: value_text("time_s", row["tpot_s"])),
    Column("80 % ", lambda row: _interval(row, "tpot"), group="interval "),
    Column(
        "at most\nrequests/s", lambda row: _span(row, "capacity_low_per_s", "capacity_per_s", "capacity_high_per_s")
    ),
    shows("output_tokens_per_s_gpu", "tokens/s\nper GPU"),
    Column("GPUs\nneeded", lambda row: _ends(row["gpus_needed_low"], row["gpus_needed_high"])),
    Column("USD/h", lambda row: number_text(float(row["usd_per_hour"]))),
    Column("input", lambda row: _money(row, "input"), group="USD per million tokens"),
    Column("output", lambda row: _money(row, "output"), group="USD per million tokens"),
    shows("joules_per_output_token", "J per\noutput token"),
    shows("limited_by", "limited by", right=False),
    Column(
        "decode, prefill\nbound by", lambda row: f"{row['decode_bound'] or '–'}, {row['prefill_bound']}", right=False
    ),
)
FRONTIER = (
    shows("hw", right=False),
    shows("layout", right=False),
    Column("weights, KV", lambda row: f"{row['weights']}, {row['kv']}", right=False),
    shows("max_batched_tokens", "chunk\nbudget"),
    shows("sequences", "batch"),
    shows("output_tokens_per_s_user", "tokens/s\nper user"),
    shows("output_tokens_per_s_gpu", "tokens/s\nper GPU"),
    Column("TTFT", lambda row: latency_text(row["ttft_s"])),
    Column("TPOT", lambda row: value_text("time_s", row["tpot_s"])),
    shows("gpus", "GPUs for\nthe load"),
    shows("usd_per_million_output_tokens_alone", "USD per million\noutput tokens"),
    shows("limited_by", "limited by", right=False),
)
REPLAY = (
    shows("hw", right=False),
    shows("layout", right=False),
    shows("requests"),
    *(_latency(latency, key) for latency in ("ttft", "tpot") for key in ("mean", "p50", "p90", "p99")),
    Column("good", lambda row: "–" if row["good_share"] is None else percent(row["good_share"])),
    Column("TTFT", lambda row: _off(row["ttft_off"]), group="steady state off"),
    Column("TPOT", lambda row: _off(row["tpot_off"]), group="steady state off"),
)
SPACE = (
    shows("what", "of", right=False),
    Column("count", lambda row: f"{row['number']:,}"),
    shows("why", "", right=False),
)


def _interval(row: Mapping[str, Any], latency: str) -> str:
    low, high = row[f"{latency}_low_s"], row[f"{latency}_high_s"]
    return format_span(low, high) if high is not None and math.isfinite(high) else "–"


def _span(row: Mapping[str, Any], low: str, value: str, high: str) -> str:
    return f"{row[value]:.3g} ({row[low]:.3g} … {row[high]:.3g})"


def _ends(low: Any, high: Any) -> str:
    low, high = ("–" if end is None else str(end) for end in (low, high))
    return low if low == high else f"{low} … {high}"


def _money(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"usd_per_million_{name}_tokens{ending}"] for ending in ("", "_low", "_high"))
    if value is None:
        return "–"
    if low == high or low is None or high is None:
        return f"{value:.3g}"
    return f"{value:.3g} ({low:.3g} … {high:.3g})"


def _off(value: float | None) -> str:
    return "–" if value is None else f"{value:+.0f} %"


def latency_text(value: float) -> str:
    """A latency, which a load without a steady state does not have."""
    return value_text("time_s", value) if math.isfinite(value) else "saturated"


def print_plans(form: str, title: str, rows: Rows) -> None:
    """Plans of all devices and rates of prefix hits."""
    print_table(form, title, rows, _of_rates(rows, BEST), keys=2)


def print_frontier(form: str, points: Rows) -> None:
    """Points of all devices, thinned out."""
    if not points:
        return
    emit("")
    chosen = _thinned(points)
    more = f", {len(chosen)} of {len(points)} points" if len(chosen) < len(points) else ""
    title = f"Pareto frontier of each device within the service level{more}"
    print_table(form, title, chosen, _of_rates(points, FRONTIER), keys=2)


def print_replays(form: str, checks: Rows) -> None:
    """What replays said of the plans."""
    if checks:
        emit("")
        print_table(form, "event replay of the plans", checks, _of_rates(checks, REPLAY), keys=2)


def _of_rates(rows: Rows, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """With a column of prefix hits where rows differ in them."""
    if len({row["prefix_hit"] for row in rows}) < 2:
        return columns
    return (*columns[:2], Column("prefix\nhits", lambda row: f"{row['prefix_hit']:g}"), *columns[2:])


def print_space(form: str, dimensions: Sequence[Dimension], counts: Sequence[Count]) -> None:
    """What was searched, and what became of it."""
    sizes = [
        {"what": dimension.name, "number": len(dimension.values), "why": _few(dimension.values)}
        for dimension in dimensions
    ]
    print_table(form, "search space", [*sizes, *(count._asdict() for count in counts)], SPACE)
    emit("")


def _few(values: Sequence[object]) -> str:
    if len(values) <= 12:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:4]))} … {', '.join(map(str, values[-4:]))}"


def _thinned(points: Rows) -> list[Mapping[str, Any]]:
    """So many points of each device and rate in equal steps, the ends among them."""
    found = []
    for of in dict.fromkeys((point["hw"], point["prefix_hit"]) for point in points):
        own = [point for point in points if (point["hw"], point["prefix_hit"]) == of]
        if len(own) > MOST_POINTS:
            step = (len(own) - 1) / (MOST_POINTS - 1)
            own = [own[round(place * step)] for place in range(MOST_POINTS)]
        found += own
    return found


def print_launches(form: str, starts: Rows) -> None:
    """The commands of the best plan; those of the others are in the JSON output."""
    fence = form == "markdown"
    for start in starts:
        if (start["hw"], start["prefix_hit"]) != (starts[0]["hw"], starts[0]["prefix_hit"]):
            break
        role = "" if start["role"] == "both" else f", {start['role']}"
        times = f", {start['replicas']} times" if start["replicas"] > 1 else ""
        if not start["command"]:
            emit(f"\n{start['engine']}{role}: {'; '.join(start['remarks'])}")
            continue
        emit(f"\n{start['engine']}{role} on {start['hw']}{times}:")
        _print_block(fence, "sh", "  ", start["command"])
        if start["config"]:
            _print_block(fence, "yaml", "    ", f"# CONFIG.yaml\n{start['config']}")
        for remark in start["remarks"]:
            emit(f"  ({remark})")


def _print_block(fence: bool, language: str, indent: str, text: str) -> None:
    if fence:
        emit(f"```{language}\n{text}\n```")
    else:
        emit("\n".join(f"{indent}{line}" for line in text.split("\n")))
