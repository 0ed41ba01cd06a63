"""Efficiency against capability as tables: one comparison after the other, each kind of knowledge named as such."""

from collections.abc import Mapping, Sequence
from typing import Any

from costmodel.analysis.comparisons import Comparison, load_comparison
from costmodel.analysis.tradeoff import ANSWER, BOUND_SOURCES, ranked, tradeoff
from costmodel.analysis.verdict import times
from costmodel.hardware import load_hardware
from costmodel.report.columns import Column, Row, number_text, shows
from costmodel.report.layout import markdown_table, text_table, wrapped
from costmodel.report.output import emit, note, print_csv, print_json, terminal_width
from costmodel.report.predictions import basis_of, common_calibration, groups
from costmodel.settings import split_settings

WIDTH = 160
"""Columns of a table that no terminal limits."""


def _gain(key: str) -> Any:
    return lambda row: "–" if row[key] is None else times(row[key])


def _recall(row: Row) -> str:
    if row["recall_pairs"] is not None:
        return f"≤ {number_text(row['recall_pairs'])}"
    return "cache grows" if row["cache_bytes"] else "–"


EFFICIENCY = (
    shows("model", right=False),
    shows("context"),
    shows("decode_s", "decode step"),
    Column("gain", _gain("decode_gain")),
    shows("prefill_s", "prefill"),
    Column("gain", _gain("prefill_gain")),
    shows("cache_bytes", "cache"),
    shows("state_bytes", "of it fixed"),
    Column("pairs recalled", _recall),
    shows("fits", right=False),
    shows("budget", "trained on", right=False),
)

BOUND = (
    "Times are predicted, bytes counted, capability published by others and never predicted, recall bounded: a state "
    "of s bytes holds at most 8·s / log2(V) pairs of a key with one of V words (the vocabulary); what a model has "
    f"learned to recall is far less. {'; '.join(BOUND_SOURCES)}."
)


ANSWERS = (
    "Decode is the time per token of a whole answer, its prompt included: a model that denoises commits one token per "
    f"pass over everything. Answers have {ANSWER} tokens, at most half of the context."
)


def tradeoff_and_print(form: str, inputs: Mapping[str, Any], rank: str | None, plot: str | None) -> None:
    """`tradeoff`: rows to stdout, the figure where one is wanted."""
    _, of_hardware = split_settings(inputs["set"])
    devices = [load_hardware(name, of_hardware) for name in inputs["hw"]]
    options = {name: inputs[name] for name in ("batch", "library", "weights", "kv", "activations")}
    rows = tradeoff(
        devices, inputs["context"], comparisons=inputs["comparison"], architectures=inputs["arch"], **options
    )
    if rank is not None:
        rows = ranked(rows, rank)
    if plot is not None:
        from costmodel.report.tradeoff_plot import draw_tradeoff

        drawn = draw_tradeoff(plot, rows)
        note(f"note: wrote {plot}")
        for name in dict.fromkeys(row["comparison"] for row in rows if row["comparison"] not in (*drawn, None)):
            note(f"note: no panel for {name}: no published difference between models whose times are predicted")
    print_tradeoff(form, inputs, rows, rank)


def print_tradeoff(form: str, inputs: Mapping[str, Any], rows: Sequence[Row], rank: str | None = None) -> None:
    """Rows of the trade-off in the chosen format."""
    if form == "json":
        calibrated = [row for row in rows if row["basis"]]
        print_json("tradeoff", inputs, rows, common_calibration(calibrated) if calibrated else None)
        return
    if form == "csv":
        print_csv(rows)
        return
    for index, ((name, hardware), members) in enumerate(groups(rows, ("comparison", "hw"))):
        if index:
            emit("")
        comparison = load_comparison(name) if name else None
        heading = comparison.title if comparison else "in no published comparison that is recorded here"
        _heading(form, f"{heading} · {hardware} · batch {members[0]['batch']}")
        if comparison is not None:
            _heading(form, _budget(comparison), 0)
        _table(form, members, _efficiency_columns(rank, members), 2)
        if members[0]["answer_tokens"] is not None:
            _line(form, ANSWERS)
        if comparison is not None and comparison.metrics:
            once = list(dict.fromkeys(row["model"] for row in members))
            _table(form, *score_table(comparison, once, rank), 1)
            _line(form, f"Published: {comparison.source}.")
            for text in (*([f"But: {comparison.caveat}."] if comparison.caveat else []), *comparison.notes):
                _line(form, text)
    emit("")
    _line(form, BOUND)
    calibrated = [row for row in rows if row["basis"]]
    if calibrated:
        _line(form, f"Times: {basis_of(calibrated)}.")


def _efficiency_columns(rank: str | None, members: Sequence[Row]) -> tuple[Column, ...]:
    columns = EFFICIENCY if len({row["budget"] for row in members}) > 1 else EFFICIENCY[:-1]
    return columns if rank is None else (*columns, shows("rank", f"rank by {rank}"))


def _budget(comparison: Comparison) -> str:
    if comparison.matched:
        return f"Matched: {comparison.budgets[comparison.baseline]}."
    return f"Not matched, so not ranked: {comparison.reason}."


def score_table(
    comparison: Comparison, models: Sequence[str] = (), rank: str | None = None
) -> tuple[list[dict[str, Any]], tuple[Column, ...]]:
    """One row for each published metric, one column for each model, with the difference to the baseline.

    models: only these, in this order; rank: only this metric.
    """
    shown = list(models or comparison.models)
    lines = []
    for metric in comparison.metrics:
        if rank not in (None, metric.name):
            continue
        line = {"metric": metric.name + (" (second-hand)" if metric.second_hand else "")}
        for model in shown:
            value, base = metric.values.get(model), metric.values.get(comparison.baseline)
            compared = None if model == comparison.baseline or base is None or value is None else value - base
            line[model] = "–" if value is None else f"{value:g}" + ("" if compared is None else f" ({compared:+.4g})")
        lines.append(line)
    return lines, (shows("metric", "published", right=False), *(shows(model, model) for model in shown))


def _heading(form: str, text: str, level: int = 3) -> None:
    marks = f"{'#' * level} " if level and form == "markdown" else ""
    emit(f"{marks}{text}\n")


def _line(form: str, text: str) -> None:
    emit(f"{text}\n" if form == "markdown" else wrapped(text, _width()))


def _width() -> int:
    return terminal_width() or WIDTH


def _table(form: str, rows: Sequence[Row], columns: Sequence[Column], keys: int) -> None:
    table = markdown_table(rows, columns) if form == "markdown" else text_table(rows, columns, _width(), keys)
    emit(f"{table}\n")
