"""`whatif`: a plan beside its changes, and its assumptions by what they move."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.errors import unknown
from costmodel.loading import check_folder, write_atomically
from costmodel.planning.asked import question_of
from costmodel.planning.assess import assess
from costmodel.planning.load import Load
from costmodel.planning.plan_file import read_plan
from costmodel.planning.plan_row import plan_row
from costmodel.planning.question import load
from costmodel.planning.search import search
from costmodel.planning.whatif import Compared, bottleneck, case_of, changed, compared, sensitivity
from costmodel.report.columns import Column, shows, value_text
from costmodel.report.output import as_json, emit, note, print_csv, print_table
from costmodel.report.predictions import common_calibration
from costmodel.report.progress import Progress
from costmodel.report.remarks import note_transferred, note_unmeasured

PLAN = "plan"


def whatif_and_print(
    form: str, path: str, changes: Sequence[str], hw: str | None, replan: bool, out: str | None
) -> None:
    """The plan of a file (of several devices, the best, or that of hw) with each change, and the sensitivity table."""
    check_folder(out)
    whole = read_plan(Path(path))
    inputs = {**whole["inputs"], "price": [f"{name}={usd!r}" for name, usd in whole["inputs"]["prices"].items()]}
    row = _row(whole["rows"], hw, path)
    # A plan may answer for several rates of prefix hits; a trace has its own, and says so in each request.
    inputs["prefix_hit"] = row.get("prefix_hit", inputs["prefix_hit"]) or 0.0
    own = case_of({**inputs, "price": [text for text in inputs["price"] if text.startswith(f"{row['hw']}=")]}, row)
    plan = assess(own.loaded, own.plan)
    narrowest = bottleneck(plan)
    rows: list[dict[str, Any]] = [
        {
            "change": PLAN,
            **plan_row(own.loaded, plan),
            "problem": "",
            "bottleneck": narrowest,
            "bottleneck_moved": False,
        }
    ]
    progress = Progress(len(changes))
    for change in changes:
        new, moved, text = changed(inputs, row, change)
        new["price"] = [text for text in new["price"] if "=" not in text or text.startswith(f"{moved['hw']}=")]
        rows.append(_flat(compared(plan, own.loaded, text, new, moved), narrowest))
        if replan:
            rows.append(_replanned(text, new, moved))
        progress.step()
    table = sensitivity(own, plan, row)
    progress.close()
    # A change that cannot be has no times, and so no calibration.
    calibration = common_calibration([line for line in rows if "calibration" in line])
    shown = {"plan": path, "change": list(changes), "hw": row["hw"], "replan": replan}
    text = as_json("whatif", shown, rows, calibration, sensitivity=table)
    if out is not None:
        write_atomically(Path(out), text.encode() + b"\n")
        note(f"note: wrote {out}")
    note_transferred(rows)
    note_unmeasured(rows)
    if form == "json":
        emit(text)
        return
    if form == "csv":
        print_csv(rows)
        return
    title = f"{row['arch']} as {row['layout']} on {row['gpus']} {row['hw']}, and changes; ratios with 80 % intervals"
    print_table(form, title, rows, COLUMNS + (POOLS if narrowest else ()), keys=1)
    emit("")
    remark = "ratios to the plan; what moves the price of an output token the most comes first"
    print_table(form, "assumptions", table, SENSITIVITY, remark, keys=1)
    for line in rows:
        if line["problem"]:
            note(f"note: {line['change']}: {line['problem']}")
        if line.get("bottleneck_moved"):
            told = f"the pool that limits is {line['bottleneck']} instead of {narrowest}"
            note(f"note: {line['change']}: {told}; of requests/s and prices, errors of kernels do not cancel")


def _row(rows: Sequence[Mapping[str, Any]], hw: str | None, path: str) -> Mapping[str, Any]:
    if hw is None:
        return rows[0]
    for row in rows:
        if row["hw"] == hw:
            return row
    raise unknown(f"device of {path[:80]}", hw, [row["hw"] for row in rows])


def _flat(found: Compared, narrowest: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"change": found.change, **(found.row or {}), "problem": found.problem}
    moved = None not in (found.bottleneck, narrowest) and found.bottleneck != narrowest
    row |= {"bottleneck": found.bottleneck, "bottleneck_moved": moved}
    for name, (ratio, low, high) in found.ratios.items():
        stem = name.removesuffix("_s")
        row |= {f"{stem}_ratio": ratio, f"{stem}_ratio_low": low, f"{stem}_ratio_high": high}
    return row


def _replanned(change: str, inputs: Mapping[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    """The best plan for the changed question, searched anew."""
    fixed = {"hw": [moved["hw"]], "weights": [moved["weights"]], "kv": [moved["kv"]], "layout": []}
    own = {**inputs, **fixed, "requests": inputs["requests"] or 2_000}
    question = question_of(own, Load(own))
    found = search(question)
    name = f"{change}, planned anew"
    if not found.best:
        return {"change": name, "problem": "nothing holds the service level"}
    known = load(question)
    return {"change": name, **plan_row(known, assess(known, found.best[0])), "problem": ""}


def _with_ratio(title: str, key: str, kind: str) -> Column:
    stem = key.removesuffix("_s")

    def text(row: Mapping[str, Any]) -> str:
        if row.get(key) is None or (row.get("saturated") and kind == "time_s"):
            return "saturated" if row.get("saturated") else "–"
        value = value_text(kind, row[key]) if kind else f"{row[key]:.3g}"
        if row.get(f"{stem}_ratio") is None:
            return value
        return f"{value} ({_ratio(row, stem)})"

    return Column(title, text)


def _ratio(row: Mapping[str, Any], stem: str) -> str:
    ratio, low, high = (row[f"{stem}_ratio{ending}"] for ending in ("", "_low", "_high"))
    return f"×{ratio:.3g}" if abs(high / low - 1) < 0.005 else f"×{ratio:.3g}, {low:.3g} … {high:.3g}"


COLUMNS = (
    shows("change", right=False),
    shows("layout", right=False),
    shows("gpus", "GPUs"),
    _with_ratio("TTFT", "ttft_s", "time_s"),
    _with_ratio("TPOT", "tpot_s", "time_s"),
    _with_ratio("at most\nrequests/s", "capacity_per_s", ""),
    shows("gpus_needed", "GPUs for\nthe load"),
    Column(
        "USD per output token\nof full engines",
        lambda row: "–" if row.get("usd_per_output_token_ratio") is None else _ratio(row, "usd_per_output_token"),
    ),
    Column("J per\noutput token", lambda row: value_text("", row.get("joules_per_output_token"))),
    shows("limited_by", "limited by", right=False),
)
POOLS = (
    Column(
        "limiting\npool",
        lambda row: f"{row.get('bottleneck') or '–'}{', moved' if row.get('bottleneck_moved') else ''}",
        right=False,
    ),
)
"""Of plans with engines that only prefill or only decode."""


def _both(title: str, stem: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        ends = (row[f"{stem}_ratio_low"], row[f"{stem}_ratio_high"])
        return " … ".join("–" if end is None else f"×{end:.3g}" for end in ends)

    return Column(title, text)


SENSITIVITY = (
    shows("assumption", right=False),
    Column("moved to", lambda row: f"{row['low_value']} … {row['high_value']}", right=False),
    _both("TTFT", "ttft"),
    _both("TPOT", "tpot"),
    _both("at most\nrequests/s", "capacity_per"),
    _both("USD per output token\nof full engines", "usd_per_output_token"),
)
