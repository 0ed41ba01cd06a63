"""The tables of `predict` and `compare`: one for each architecture, device and phase, or side by side."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.coverage import told
from costmodel.dtypes import OWN
from costmodel.report.columns import (
    BASIS,
    CROSSOVERS,
    GENERATION,
    KERNELS,
    PARALLEL,
    PREDICTION,
    TRAINING,
    Column,
    Row,
    shows,
    value_text,
)
from costmodel.report.output import emit, note, print_csv, print_json, print_table
from costmodel.units import format_bytes, format_count

if TYPE_CHECKING:
    from costmodel.architecture import Architecture
    from costmodel.hardware import Hardware

MEANING = {
    "table": "measured points with an analytic trunk",
    "fitted": "inside the measured range",
    "extrapolated": "outside the measured range",
    "transferred": "measured on a relative of this device or in another library",
    "prior": "intervals come from priors",
}


def groups(
    rows: Sequence[Row], keys: Sequence[str] = ("hw", "arch", "phase")
) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that share the keys, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    yield from found.items()


def title_of(row: Row, formats: str) -> str:
    """What all rows of a table share."""
    device = row["hw"] if row["layout"] == "tp1" else f"{row['gpus']} {row['hw']} as {row['layout']}"
    parts = [f"{row['arch']} on {device}", row["phase"], f"batch {row['batch']}"]
    if row["new_tokens"] != row["context"]:
        parts.append(f"{format_count(row['new_tokens'])} new token{'s' if row['new_tokens'] > 1 else ''}")
    return " · ".join([*parts, *([formats] if formats else [])])


def basis_of(rows: Sequence[Row]) -> str:
    """How firm the numbers of a table are."""
    bases = list(dict.fromkeys(row["basis"] for row in rows))
    calibration = rows[0]["calibration"]
    doubt = told(name for row in rows for name in row["unmeasured"])
    more = "".join(f"; {each}" for each in dict.fromkeys(each for row in rows for each in row.get("borrowed", ())))
    more += f"; {doubt}" if doubt else ""
    return f"{basis_text(bases, calibration)}{more}"


def basis_text(bases: Sequence[str], calibration: str | None) -> str:
    """What the bases of numbers mean, and whose measurements they are.

    >>> basis_text(["transferred"], "h100-sxm/vllm-0.24.0")
    'transferred: measured on a relative of this device or in another library; calibration h100-sxm/vllm-0.24.0'
    """
    if calibration is None:
        return "prior: parameters and intervals are priors, not measurements"
    return f"{', '.join(f'{basis}: {MEANING[basis]}' for basis in bases)}; calibration {calibration}"


def common_calibration(rows: Sequence[Row]) -> str | None:
    """The calibration that all rows used, None when they used several or none (each row tells its own)."""
    used = {row["calibration"] for row in rows}
    return used.pop() if len(used) == 1 else None


def print_predictions(
    command: str,
    form: str,
    inputs: Mapping[str, Any],
    rows: Sequence[Row],
    breakdown: bool,
    formats: Mapping[tuple[str, str], str],
) -> None:
    """Rows of `predict` in the chosen format. formats tells the number formats of each (architecture, device)."""
    if form == "json":
        print_json(command, inputs, rows, common_calibration(rows))
        return
    if form == "csv":
        print_csv(list(_kernel_rows(rows)) if breakdown else rows)
        return
    between = ""
    for (hardware, architecture, _, _), members in groups(rows, ("hw", "arch", "layout", "phase")):
        columns = _columns(members[0])
        columns = columns if len({row["basis"] for row in members}) == 1 else (*columns, BASIS)
        title = title_of(members[0], formats.get((architecture, hardware), ""))
        if between:
            emit(between[1:])
        between = "\n"
        print_table(form, title, members, columns, basis_of(members))
        for row in members if breakdown else ():
            emit("")
            heading = (
                f"{row['arch']} on {row['hw']} · {row['phase']} at {format_count(row['context'])}: kernels by time"
            )
            print_table(form, heading, sorted(row["breakdown"], key=lambda kernel: -kernel["time_s"]), KERNELS, keys=2)


def _columns(row: Row) -> Sequence[Column]:
    """What rows of a table have: those of a layout, of one device as well, tell more."""
    if row["layout"] == "tp1" and row["mfu"] is None and row["max_sequences"] is None:
        return PREDICTION
    return TRAINING if row["phase"] == "train" else PARALLEL


def _kernel_rows(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """One flat row for each kernel of each row."""
    shared = ("arch", "hw", "layout", "library", "phase", "batch", "context", "new_tokens")
    for row in rows:
        for kernel in row["breakdown"]:
            yield {**{key: row[key] for key in shared}, **kernel}


def print_comparison(form: str, inputs: Mapping[str, Any], rows: Sequence[Row], crossovers: Sequence[Row]) -> None:
    """Rows of `compare` side by side, then where the architectures cross."""
    if form == "json":
        print_json("compare", inputs, rows, common_calibration(rows), crossovers=crossovers)
        return
    if form == "csv":
        print_csv(rows)
        for found in crossovers:
            pair = found["first"] if found["second"] is None else f"{found['first']} and {found['second']}"
            context = "no context" if found["context"] is None else f"context {found['context']}"
            note(f"note: {found['kind']} of {pair}, {found['phase']}: {context}; {found['note']}")
        return
    for (hardware, phase), members in groups(rows, ("hw", "phase")):
        names = list(dict.fromkeys(row["arch"] for row in members))
        by_context: dict[int, dict[str, Row]] = {}
        for row in members:
            by_context.setdefault(row["context"], {})[row["arch"]] = row
        columns = [shows("context")]
        for index, name in enumerate(names):
            columns += list(_side(name, first=index == 0))
        side = [{"context": context, **sides} for context, sides in by_context.items()]
        print_table(form, f"{phase} on {hardware} · batch {members[0]['batch']}", side, columns, basis_of(members))
        emit("")
    if crossovers:
        print_table(form, "crossovers", crossovers, CROSSOVERS)


def _side(name: str, first: bool) -> Iterator[Column]:
    """The columns of one architecture in a side-by-side table."""
    for key, title in (("time_s", "time"), ("ratio", "ratio"), ("hbm_bytes", "HBM traffic"), ("cache_bytes", "cache")):
        if key != "ratio" or not first:
            yield Column(title, partial(_of_side, name, key), group=name)


def _of_side(name: str, key: str, row: Row) -> str:
    return value_text(key, row[name][key]) if name in row else "–"


def print_generations(form: str, inputs: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Rows of `generate` in the chosen format."""
    if form == "json":
        print_json("generate", inputs, rows, common_calibration(rows))
        return
    if form == "csv":
        print_csv(rows)
        return
    for index, ((hardware, architecture, prompt), members) in enumerate(groups(rows, ("hw", "arch", "prompt"))):
        if index:
            emit("")
        lengths = f"prompt {format_count(prompt)}, {format_count(members[0]['new_tokens'])} new tokens"
        title = f"{architecture} on {hardware} · {lengths} · batch {members[0]['batch']}"
        print_table(form, title, members, GENERATION, basis_of(members))
        emit("")
        for row in members:
            emit(f"{'- ' if form == 'markdown' else ''}{row['method']}: {row['order']}")


def formats_text(architecture: "Architecture", hardware: "Hardware", inputs: Mapping[str, Any]) -> str:
    """The number formats of a run, for a title."""
    from costmodel.prediction import make_precision

    precision = make_precision(architecture, hardware, inputs["weights"], inputs["kv"], inputs["activations"])
    asked = None if inputs["weights"] == OWN else inputs["weights"]
    default = asked or precision.weights["default"]
    others = () if asked else precision.weights.items()
    named = "".join(f", {role} {dtype}" for role, dtype in others if dtype != default)
    return f"weights {default}{named} · activations {precision.activations} · KV {precision.kv}"


def notes_on(architectures: Sequence["Architecture"], devices: Sequence["Hardware"], rows: Sequence[Row]) -> None:
    """Tell on stderr what a reader of the numbers should know: what does not fit, and unverified facts."""
    for (hardware, architecture, layout, phase), members in groups(rows, ("hw", "arch", "layout", "phase")):
        over = [row for row in members if not row["fits"]]
        if over:
            capacity = format_bytes(over[0]["memory_capacity_bytes"] / over[0]["gpus"])
            one = f"one {hardware}" + ("" if layout == "tp1" else f" as {layout}")
            note(f"note: {architecture}, {phase}: does not fit in the {capacity} of {one}: {_excess(over)}")
    for model in architectures:
        longest = max((row["context"] for row in rows), default=0)
        if model.max_context is not None and longest > model.max_context:
            stated = format_count(model.max_context)
            note(f"note: {model.name}: contexts above {stated} are longer than its publisher states")
        _unverified(model.name, model.unverified)
    if any(row["hw"] == "cpu" and row.get("basis") == "transferred" for row in rows):
        note("note: cpu: measured in fp32, one thread, one head width; others take the same shares of their peaks")
    for device in devices:
        _unverified(device.name, device.unverified)


def _excess(rows: Sequence[Row]) -> str:
    """By how much each context exceeds the memory; of many, the first and the last."""
    texts = [
        f"{format_count(row['context'])} by "
        f"{format_bytes(row['memory_per_gpu_bytes'] - row['memory_capacity_bytes'] / row['gpus'])}"
        for row in rows
    ]
    return ", ".join(texts) if len(texts) <= 3 else f"{len(texts)} contexts, from {texts[0]} to {texts[-1]}"


def _unverified(name: str, entries: Sequence[str]) -> None:
    if entries:
        shown = "; ".join(entries[:6]) + (f"; … {len(entries) - 6} more" if len(entries) > 6 else "")
        note(f"note: {name}: unverified: {shown} (see: costmodel show {name})")
