"""Published claims and what becomes of them, as tables; one claim in full; and the tally."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.claims import VERDICTS, judged, load_claims, tally, tally_by_basis
from costmodel.analysis.claims.record import changes, record_text, recorded
from costmodel.analysis.claims.setups import calibration_of
from costmodel.analysis.claims.steps import kernels_of
from costmodel.analysis.claims.wording import COUNTS, span
from costmodel.errors import BadInput, Impossible
from costmodel.loading import write_atomically
from costmodel.report.columns import Column, Row, number_text, percent, shows
from costmodel.report.errors_of_fits import FITS, errors_of_fits
from costmodel.report.layout import markdown_table, text_table, wrapped
from costmodel.report.output import emit, note, print_csv, print_json, terminal_width
from costmodel.report.progress import Progress

WIDTH = 160
"""Columns of a table that no terminal limits."""


def _numbers(value: Any) -> list[float]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _ends(key: str) -> Any:
    """The first and the last of several numbers, with their unit."""

    def text(row: Row) -> str:
        numbers = _numbers(row[key])
        if not numbers:
            return "–"
        ends = [number_text(number) for number in (numbers[0], numbers[-1])]
        return f"{ends[0] if len(numbers) == 1 else ' … '.join(ends)} {row['unit']}".rstrip()

    return text


def _ratio(key: str) -> Any:
    return lambda row: span(_numbers(row[key])) if _numbers(row[key]) else "–"


TABLE = (
    shows("id", "claim", right=False),
    shows("what", right=False),
    Column("claimed", _ends("claimed")),
    Column("predicted", _ends("predicted")),
    Column("ratio", _ratio("ratio")),
    Column("within", lambda row: f"{row['points_within']} of {row['points']}"),
    shows("verdict", right=False),
)
POINTS = (
    shows("at", "point", right=False),
    shows("claimed"),
    shows("predicted"),
    Column("80 % interval", lambda row: f"{number_text(row['low'])} … {number_text(row['high'])}"),
    Column("ratio", lambda row: f"{row['ratio']:.2f}"),
    Column("with the condition", lambda row: _plain(row["condition"])),
    Column("fair", lambda row: _plain(row["fair"])),
)


BY_BASIS = (
    shows("basis", right=False),
    shows("stated_and_certain", "claims"),
    *(shows(verdict.replace("-", "_"), verdict) for verdict in VERDICTS[:3]),
    shows("points", "numbers"),
    shows("points_within", "within"),
)


def _plain(value: float | None) -> str:
    return "–" if value is None else number_text(value)


def claims_and_print(form: str, inputs: Mapping[str, Any]) -> None:
    """`claims`: rows to stdout, the tally below them (JSON: beside them).

    Raises Impossible where `check` finds a verdict that is not the recorded one.
    """
    names = inputs["id"]
    whole = bool(names or inputs["all"] or inputs["check"] or inputs["record"])
    if names and inputs["record"]:
        raise BadInput("--record writes the verdicts of all claims; give it without names")
    progress = Progress()

    def step(total: int) -> None:
        progress.total = total
        progress.step()

    rows = judged(names, whole, step)
    progress.close()
    if inputs["record"]:
        write_atomically(Path(inputs["record"]), record_text(rows).encode())
        note(f"note: wrote {inputs['record']}")
    if inputs["check"]:
        changed = changes(rows, recorded())
        if changed:
            raise Impossible("\n".join(["verdicts are not those that are recorded:", *changed]))
        note(f"note: {len(rows)} verdicts are those that are recorded")
        return
    found = tally(rows)
    if form == "json":
        print_json("claims", inputs, rows, None, tally=[found])
    elif form == "csv":
        print_csv(rows)
    elif names:
        for index, row in enumerate(rows):
            if index:
                emit("")
            _in_full(form, row)
    else:
        _tables(form, rows)
        emit("")
        _line(form, tally_text(found))
        if form == "table":
            emit("")
        _table(form, tally_by_basis(rows), BY_BASIS)


def tally_text(found: Mapping[str, Any]) -> str:
    """The tally in words."""
    n = found["stated_and_certain"]
    parts = []
    for verdict in VERDICTS[:3]:
        key = verdict.replace("-", "_")
        share = found[f"{key}_share"]
        parts.append(f"{found[key]} {verdict}" + ("" if share is None else f" ({percent(share)})"))
    told = (
        f"Of {n} claims that are certain and state their set-up: {', '.join(parts)}. They hold {found['points']} "
        f"numbers, of which {found['points_within']} are within the tolerance as stated and "
        f"{found['points_within_or_if']} under that or the condition; of the contradicted claims, "
        f"{found['median_within']} have their median number within it. Of the {found['points_timed']} numbers that are "
        f"timed and not counted, {found['points_in_interval']} lie in their 80 % interval."
    )
    if found["claims"] == n:
        return told
    return (
        f"{told} Besides: {found['setup_unstated']} claims without a stated set-up, of which "
        f"{found['setup_unstated_within']} come out under the one that is taken instead, and {found['uncertain']} "
        "uncertain ones."
    )


def _tables(form: str, rows: Sequence[Row]) -> None:
    papers = list(dict.fromkeys(row["paper"] for row in rows))
    for index, paper in enumerate(papers):
        if index:
            emit("")
        members = [row for row in rows if row["paper"] == paper]
        emit(f"### {paper}\n" if form == "markdown" else f"{paper}\n")
        _table(form, members, TABLE)
        others = [row for row in members if row["verdict"] != VERDICTS[0]]
        if others:
            emit("")
        for row in others:
            _line(form, f"{row['id']}: {row['reason']}.")


def _in_full(form: str, row: Row) -> None:
    emit(
        f"### {row['id']}: {row['what']}\n"
        if form == "markdown"
        else f"{row['id']}: {row['what']} ({row['mechanism']})\n"
    )
    certain = (
        "second-hand or known to be flawed" if row["uncertain"] else "stated" if row["kind"] == "text" else "figure"
    )
    told = [
        f"Verdict: {row['verdict']}. {row['reason'][:1].upper()}{row['reason'][1:]}.",
        f"Source: {row['source']} ({certain}).",
        f"Set-up: {row['setup']}.",
    ]
    if row["condition"]:
        told.append(f"Condition: {row['condition']}.")
    if row["fair"]:
        told.append(f"Fair: {row['fair']}.")
    told += [f"Behind the last number: {text}" for text in row["commands"]]
    for text in told:
        _line(form, text)
    emit("")
    columns = [
        column
        for column in POINTS
        if not (column.title == "with the condition" and row["condition_predicted"] is None)
        and not (column.title == "fair" and row["fair_predicted"] is None)
    ]
    _table(form, _points(row), columns)
    fits = _fits(row)
    if fits:
        emit("")
        _line(form, "The fits behind the last number, on points that they never saw:")
        emit("")
        _table(form, fits, FITS)


def _fits(row: Row) -> list[dict[str, Any]]:
    """The errors of the fits that the claim's last number rests on; none of counts, of several devices, of answers."""
    [claim] = [one for one in load_claims([row["id"]]) if one.id == row["id"]]
    setup = claim.setup.changed(claim.points[-1])
    if claim.quantity in COUNTS or not (setup.hardware and setup.context) or setup.gpus > 1:
        return []
    return errors_of_fits(calibration_of(setup), kernels_of(setup))


def _points(row: Row) -> list[dict[str, Any]]:
    """One row for each number of a claim."""
    keys = {"claimed": "claimed", "predicted": "predicted", "low": "low", "high": "high", "ratio": "ratio"}
    keys |= {"condition": "condition_predicted", "fair": "fair_predicted"}
    lists = {name: _numbers(row[key]) for name, key in keys.items()}
    places = row["at"] or [row["unit"] or "number"]
    if row["at"] and row["unit"]:
        places = [f"{place} ({row['unit']})" for place in places]
    return [
        {"at": place, **{name: values[index] if values else None for name, values in lists.items()}}
        for index, place in enumerate(places)
        if lists["predicted"]
    ]


def _line(form: str, text: str) -> None:
    emit(f"{text}\n" if form == "markdown" else wrapped(text, terminal_width() or WIDTH))


def _table(form: str, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    emit(markdown_table(rows, columns) if form == "markdown" else text_table(rows, columns, terminal_width() or WIDTH))
