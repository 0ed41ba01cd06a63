"""The reality check as tables: how everything grows, then what that buys at each context, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from costmodel.analysis.reality import phases_asked, reality
from costmodel.analysis.subjects import subjects
from costmodel.analysis.verdict import times
from costmodel.errors import Impossible
from costmodel.hardware import load_hardware
from costmodel.report.columns import Column, Row, percent, shows
from costmodel.report.layout import markdown_table, text_table, wrapped
from costmodel.report.output import emit, note, print_csv, print_json, terminal_width
from costmodel.report.predictions import basis_of, common_calibration, groups
from costmodel.report.progress import Progress
from costmodel.settings import split_settings

WIDTH = 160
"""Columns of a table that no terminal limits."""

EXPLAINED = (
    "Orders in the context L, as implemented. Constant: the coefficient of full attention's order (L² of the FLOPs in "
    "prefill, L of the HBM bytes in decode) over full attention's in the same shape. From: the context where that term "
    "is half of all FLOPs.",
    "Exponent: d log t / d log L of the predicted time. At most: the gain that the leading terms tend to, – without "
    "end. Ceiling: what can be gained at this context and equal batch: no more than at most, and no more than if the "
    "mixing took no time beside projections, FFNs and head. Serial: launches and chains, what no larger device "
    "shortens. Memory filled: sequences that fit beside the weights, and tokens per second over those of full "
    "attention that fills its "
    "memory.",
)


def _factor(key: str) -> Any:
    def text(row: Row) -> str:
        value = row[key]
        return "–" if value is None else times(value)

    return text


def _share(key: str) -> Any:
    def text(row: Row) -> str:
        value = row[key]
        return "–" if value is None else percent(value) if value < 10 else times(value)

    return text


def _constant(row: Row) -> str:
    value = row["coefficient_vs_full"]
    return "larger order" if value is None else f"{value:.3g}"


GROWTH = (
    shows("name", right=False),
    shows("claimed", right=False),
    shows("order_flops", "FLOPs", right=False),
    shows("order_bytes", "HBM bytes", right=False),
    shows("order_cache", "cache", right=False),
    shows("order_time", "time", right=False),
    shows("carrier", "carried by", right=False),
    Column("constant", _constant),
    Column("from", lambda row: "–" if row["quadratic_context"] is None else f"{row['quadratic_context']:,}"),
    shows("sizes_of", "sizes of", right=False),
)

GAINS = (
    shows("name", right=False),
    shows("context"),
    shows("time_s", "time"),
    Column("exponent", lambda row: f"{row['exponent']:.2f}"),
    Column("gain", _factor("speedup")),
    Column("ceiling", _factor("ceiling")),
    Column("at most", _factor("limit")),
    Column("FLOPs", _share("flops_vs_full"), group="of full attention's"),
    Column("traffic", _share("bytes_vs_full"), group="of full attention's"),
    Column("cache", _share("cache_vs_full"), group="of full attention's"),
    Column("serial", _share("serial_vs_full"), group="of full attention's"),
    Column("batch", lambda row: "–" if row["best_batch"] is None else f"{row['best_batch']:,}", group="memory filled"),
    Column("gain", _factor("capacity_speedup"), group="memory filled"),
)

VERDICT = (shows("name", right=False), shows("context"), shows("verdict", right=False))


def reality_and_print(form: str, inputs: Mapping[str, Any]) -> None:
    """`reality-check`: rows to stdout; a model that the device has no engine for is named on stderr."""
    of_model, of_hardware = split_settings(inputs["set"])
    devices = [load_hardware(name, of_hardware) for name in inputs["hw"]]
    phases = phases_asked(inputs["phase"])
    options = {name: inputs[name] for name in ("batch", "library", "weights", "kv", "activations")}
    asked = list(subjects(inputs["arch"], of_model))
    rows: list[dict[str, Any]] = []
    left_out: list[Impossible] = []
    progress = Progress(len(asked))
    for subject in asked:
        for device in devices:
            try:
                rows += reality([subject], [device], inputs["context"], phases=phases, **options)
            except Impossible as error:
                left_out.append(Impossible(f"{subject.name}: {error}"))
        progress.step()
    progress.close()
    if not rows and left_out:
        raise left_out[0]
    for reason in left_out:
        note(f"note: left out: {reason}")
    print_reality(form, inputs, rows)


def print_reality(form: str, inputs: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Rows of the reality check in the chosen format."""
    if form == "json":
        print_json("reality-check", inputs, rows, common_calibration(rows))
        return
    if form == "csv":
        print_csv(rows)
        return
    for index, ((hardware, phase), members) in enumerate(groups(rows, ("hw", "phase"))):
        if index:
            emit("")
        title = f"{phase} on {hardware} · batch {members[0]['batch']}"
        once = list({row["name"]: row for row in members}.values())
        _table(form, title, once, GROWTH, 1)
        emit("")
        _table(form, "what it buys", members, GAINS if phase == "decode" else GAINS[:-2], 2)
        emit("")
        _table(form, "verdicts", members, VERDICT, 2)
        emit("")
        _line(form, f"Times: {basis_of(members)}.")
    emit("")
    for text in EXPLAINED:
        _line(form, text)


def _line(form: str, text: str) -> None:
    emit(f"{text}\n" if form == "markdown" else wrapped(text, terminal_width() or WIDTH))


def _table(form: str, title: str, rows: Sequence[Row], columns: Sequence[Column], keys: int) -> None:
    if form == "markdown":
        emit(f"{'#' * (2 + keys)} {title}\n\n{markdown_table(rows, columns)}")
    else:
        emit(f"{title}\n\n{text_table(rows, columns, terminal_width() or WIDTH, keys)}")
