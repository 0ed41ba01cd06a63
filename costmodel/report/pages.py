"""The page of `show` about one name: a table of every number, then sources, doubts and notes."""

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from costmodel.calibration_files import libraries, relatives_calibration
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware
from costmodel.loading import available, read_mapping
from costmodel.report.architecture_page import ENTRY, MEANING, SYMBOL, Page, architecture_page
from costmodel.report.columns import Column, Row, shows, value_text
from costmodel.units import format_bytes, format_flops, parse_quantity

VALUE, MARK = shows("value", right=False), shows("mark", right=False)


def pages(name: str) -> list[Page]:
    """The pages about a name, a unique prefix or a path; more than one when a name means several things.

    Raises BadInput when nothing has this name.
    """
    device, slash, library = name.partition("/")
    if slash and library.isidentifier() and libraries(device):
        from costmodel.report.calibration_page import calibration_page

        return [calibration_page(name)]
    if "/" in name or name.endswith((".yaml", ".yml", ".json")):
        return [_page_of_file(name)]
    from costmodel import ffns, generation, kernels, mixers

    known: dict[str, Collection[str]] = {
        "hardware": list(dict.fromkeys([*available("hardware_profiles"), "cpu"])),
        "architecture": list(available("architectures")),
        "mechanism": mixers.names(),
        "ffn": [kind.replace("_", "-") for kind in ffns.names()],
        "kernel family": list(kernels.forms()),
        "method": generation.names(),
    }
    exact = [(kind, name) for kind, names in known.items() if name in names]
    near = exact or [(kind, each) for kind, names in known.items() for each in names if name and each.startswith(name)]
    if not near:
        near = _by_alias(name)
    if not near:
        raise unknown("name", name, {each for names in known.values() for each in names})
    if not exact and len({each for _, each in near}) > 1:
        raise BadInput(f"name {name[:80]!r} is ambiguous: {', '.join(sorted({each for _, each in near})[:20])}")
    return [_PAGES[kind](each) for kind, each in near]


def _by_alias(name: str) -> list[tuple[str, str]]:
    from costmodel.ffns import ffn
    from costmodel.mixers import mixer

    for kind, find in (("mechanism", mixer), ("ffn", ffn)):
        try:
            return [(kind, find(name).NAME)]
        except BadInput:
            continue
    return []


def _page_of_file(name: str) -> Page:
    path = Path(name)
    if os.path.isdir(path) or path.suffix == ".json":
        return architecture_page(name)
    raw = read_mapping(path)
    return hardware_page(name) if "compute" in raw and "memory" in raw else architecture_page(name)


def hardware_page(name: str) -> Page:
    """A device: every entry as written and in SI, with its source and whether it is verified."""
    from costmodel.hardware import load_hardware
    from costmodel.loading import find_file
    from costmodel.settings import leaf_paths

    device = load_hardware(name)
    if name == "cpu" and name not in available("hardware_profiles"):
        from costmodel.host import read_host

        raw = read_host()
    else:
        raw = read_mapping(find_file(name, "hardware_profiles", "hardware"))
    numbers = {key: raw[key] for key in ("compute", "memory", "links", "power") if key in raw}
    places = {path: str(index) for index, path in enumerate(device.sources, start=1)}
    rows = []
    for path, (holder, key) in leaf_paths(numbers).items():
        written = holder[key]
        source = max((each for each in places if _covers(each, path)), key=len, default=None)
        missing = written is None or written == "unknown"
        doubtful = any(_covers(each.partition(":")[0].strip(), path) for each in device.unverified)
        number, unit = (None, "") if missing else _si(written)
        rows.append(
            {
                "entry": path,
                "value": "unknown" if missing else _readable(str(written), number, unit),
                "si": number,
                "unit": unit,
                "mark": "unknown" if missing else "unverified" if doubtful else "",
                "source": None if source is None or missing else device.sources[source],
                "reference": None if source is None or missing else f"[{places[source]}]",
            }
        )
    sources = [f"[{places[path]}] {path}: {text}" for path, text in device.sources.items()]
    calibrated = ", ".join(f"{device.name}/{library}" for library in libraries(device.name)) or _stand_in(device)
    remarks = [*sources, *([device.notes] if device.notes else []), f"calibrations: {calibrated}"]
    columns = (ENTRY, VALUE, MARK, Column("source", lambda row: row["reference"] or "", right=False))
    return Page(
        "hardware", f"{device.name}: {device.description}", rows, columns, remarks, list(device.sources.values())
    )


def _stand_in(device: Hardware) -> str:
    """Where the parameters of a device without a calibration of its own come from."""
    relative = relatives_calibration(device, None)
    return "none; predictions use priors" if relative.id is None else f"none; predictions use those of {relative.id}"


def _covers(prefix: str, path: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")


def _si(written: Any) -> tuple[float | None, str]:
    if isinstance(written, int | float):
        return float(written), ""
    for unit in ("FLOP/s", "B/s", "B", "Hz", "W"):
        try:
            return parse_quantity(str(written), unit), unit
        except BadInput:
            continue
    return None, ""


def _readable(written: str, number: float | None, unit: str) -> str:
    """The entry as its file writes it; numbers that a program measured are rounded."""
    if number is None or len(written) <= 14:
        return written
    return format_bytes(number) if unit == "B" else format_flops(number, unit)


def mechanism_page(name: str) -> Page:
    """A mechanism: its dimensions and how its costs grow."""
    from costmodel.coverage import doubt
    from costmodel.mixers import mixer

    module = mixer(name)
    order = module.ORDER
    growth = (
        f"growth with the context L: FLOPs of prefill L^{order.prefill_flops}, of a decode step "
        f"L^{order.decode_flops}; bytes of a decode step L^{order.decode_bytes}; cache of a sequence L^{order.cache}"
    )
    doubts = [f"unverified: {text}" for text in getattr(module, "UNVERIFIED", ())]
    doubts += [f"unmeasured: {text}" for text in (doubt(module.NAME),) if text]
    return _block_page("mechanism", module, [growth, f"formulas: costmodel explain {module.NAME}", *doubts])


def ffn_page(name: str) -> Page:
    """A kind of feed-forward block."""
    from costmodel.ffns import ffn

    return _block_page("ffn", ffn(name.replace("-", "_")), [])


def _block_page(kind: str, module: Any, remarks: list[str]) -> Page:
    from costmodel.dims import fields_by_name, is_required

    rows: list[dict[str, Any]] = []
    for field in fields_by_name(module.Dims).values():
        meta = field.metadata
        default = "" if is_required(field) else value_text("", field.default)
        allowed = ", ".join(meta["options"]) if "options" in meta else "yes, no" if meta["kind"] == "flag" else ""
        if meta["kind"] == "dim":
            allowed = f"{meta['least']} to {meta['most']}"
        rows.append(
            {
                "entry": meta["name"],
                "symbol": field.name,
                "default": default,
                "allowed": allowed,
                "meaning": meta["meaning"],
            }
        )
    aliases = [f"also called: {', '.join(module.ALIASES)}"] if module.ALIASES else []
    columns = (ENTRY, SYMBOL, shows("default"), shows("allowed", right=False), MEANING)
    sources = [f"source: {text}" for text in module.SOURCES]
    split = getattr(module, "TENSOR_PARALLEL", None)
    shared = [f"tensor parallel: {split}"] if split else []
    title = f"{module.NAME}: {module.TITLE}. {module.SUMMARY}"
    return Page(kind, title, rows, columns, [*aliases, *remarks, *shared, *sources], list(module.SOURCES))


def kernel_page(name: str) -> Page:
    """A kernel family: the parameters of its time form, with priors and bounds, and how a CSV file tells its shapes."""
    from costmodel.fitting.csv_columns import columns_of
    from costmodel.kernels import forms

    form = forms()[name]
    rows = [
        {
            "entry": parameter.name,
            "prior": parameter.prior,
            "spread": parameter.spread,
            "low": parameter.low,
            "high": parameter.high,
            "unit": parameter.unit,
            "meaning": parameter.meaning,
        }
        for parameter in form.parameters
    ]
    small = (Column(key, partial(_four_digits, key)) for key in ("prior", "spread", "low", "high"))
    remarks = [
        "spread is the standard deviation of the logarithm; low and high bound what a calibration may find",
        f"model spread {form.model_spread:g}: what remains of ln(measured/predicted) when the parameters are right",
        f"columns of calibrate --from-csv: {columns_of(name) or 'none, it takes no kernels of this family'}",
        *(f"source: {text}" for text in form.sources),
    ]
    columns = (ENTRY, *small, shows("unit", right=False), MEANING)
    return Page("kernel family", f"{form.family}: {form.summary}", rows, columns, remarks, list(form.sources))


def _four_digits(key: str, row: Row) -> str:
    return f"{row[key]:.4g}"


def method_page(name: str) -> Page:
    """A way of generating text."""
    from costmodel.generation import method

    module = method(name)
    rows = [
        {"entry": "order", "value": module.ORDER},
        {"entry": "passes denoise", "value": "yes" if module.DENOISES else "no"},
        {"entry": "also called", "value": ", ".join(module.ALIASES)},
    ]
    remarks = [f"source: {text}" for text in module.SOURCES]
    return Page(
        "method",
        f"{module.NAME}: {module.TITLE}. {module.SUMMARY}",
        rows,
        (ENTRY, VALUE),
        remarks,
        list(module.SOURCES),
    )


_PAGES: dict[str, Callable[[str], Page]] = {
    "hardware": hardware_page,
    "architecture": architecture_page,
    "mechanism": mechanism_page,
    "ffn": ffn_page,
    "kernel family": kernel_page,
    "method": method_page,
}


def print_pages(name: str, form: str) -> None:
    """`show`: the pages about a name in the chosen format."""
    from costmodel.report.layout import clean, wrapped
    from costmodel.report.output import emit, note, print_csv, print_json, print_table, terminal_width

    found = pages(name)
    rows = [{"kind": page.kind, "name": page.title.partition(":")[0], **row} for page in found for row in page.rows]
    if form == "csv":
        print_csv(rows)
        for page in found:
            for remark in page.remarks:
                note(f"note: {remark}")
        return
    if form == "json":
        print_json("show", {"name": name}, rows, remarks=[{"text": text} for page in found for text in page.remarks])
        return
    for index, page in enumerate(found):
        if index:
            emit("")
        print_table(form, page.title, page.rows, page.columns)
        emit("")
        for remark in page.remarks:
            emit(f"- {clean(remark)}" if form == "markdown" else wrapped(clean(remark), terminal_width()))
