"""The rows of `list` and `cite`."""

import re
from collections.abc import Iterator
from typing import Any

import costmodel
from costmodel.errors import BadInput, unknown
from costmodel.loading import available

KINDS = ("mechanisms", "architectures", "hardware", "kernels", "ffns", "methods")


def listed(kind: str) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each thing of a kind, and notes on files that could not be read.

    Raises BadInput for an unknown kind.
    """
    rows_of = {
        "mechanisms": _mechanisms,
        "architectures": _architectures,
        "hardware": _hardware,
        "kernels": _kernels,
        "ffns": _ffns,
        "methods": _methods,
    }
    wanted = kind if kind in rows_of else f"{kind}s"
    if wanted not in rows_of:
        raise unknown("list", kind, KINDS)
    notes: list[str] = []
    return list(rows_of[wanted](notes)), notes


def _grows(exponent: int) -> str:
    return {0: "constant", 1: "L"}.get(exponent, f"L^{exponent}")


def _mechanisms(notes: list[str]) -> Iterator[dict[str, Any]]:
    from costmodel.coverage import measured_phases
    from costmodel.extensions import installed_names
    from costmodel.mixers import mixer, names

    for name in (*names(), *installed_names()):
        module = mixer(name)
        order = module.ORDER
        yield {
            "name": module.NAME,
            "summary": f"{module.TITLE}: {module.SUMMARY}",
            "prefill_flops": _grows(order.prefill_flops),
            "decode_flops": _grows(order.decode_flops),
            "decode_bytes": _grows(order.decode_bytes),
            "cache": _grows(order.cache),
            "measured": list(measured_phases(name)),
            "aliases": list(module.ALIASES),
        }


def _ffns(notes: list[str]) -> Iterator[dict[str, Any]]:
    from costmodel.ffns import ffn, names

    for name in names():
        module = ffn(name)
        yield {"name": module.NAME, "summary": f"{module.TITLE}: {module.SUMMARY}", "aliases": list(module.ALIASES)}


def _methods(notes: list[str]) -> Iterator[dict[str, Any]]:
    from costmodel.generation import method, names

    for name in names():
        module = method(name)
        yield {
            "name": module.NAME,
            "summary": f"{module.TITLE}: {module.SUMMARY}",
            "order": module.ORDER,
            "aliases": list(module.ALIASES),
        }


def _architectures(notes: list[str]) -> Iterator[dict[str, Any]]:
    from costmodel.model_file import load_architecture

    for name, path in available("architectures").items():
        try:
            model = load_architecture(str(path))
        except BadInput as error:
            notes.append(str(error))
            continue
        mixers, _ = model.counts()
        kinds: dict[str, int] = {}
        for block, count in mixers.items():
            kind = model.mixers[block].module.NAME
            kinds[kind] = kinds.get(kind, 0) + count
        yield {
            "name": name,
            "summary": f"{model.title}: {', '.join(f'{count} × {kind}' for kind, count in kinds.items())}",
            "layers": len(model.layers),
            "parameters": int(model.parameters),
            "active_parameters": int(model.active_parameters),
            "max_context": model.max_context,
        }


def _hardware(notes: list[str]) -> Iterator[dict[str, Any]]:
    from costmodel.calibration_files import libraries
    from costmodel.hardware import load_hardware

    for name, path in available("hardware_profiles").items():
        try:
            device = load_hardware(str(path))
        except BadInput as error:
            notes.append(str(error))
            continue
        yield {
            "name": name,
            "summary": device.description,
            "bf16_flop_per_s": device.compute.tensor.get("bf16"),
            "hbm_capacity_bytes": device.memory.hbm.capacity,
            "hbm_bytes_per_s": device.memory.hbm.bandwidth,
            "tdp_w": device.power.tdp,
            "unverified": len(device.unverified),
            "calibrations": libraries(name),
        }
    if "cpu" not in available("hardware_profiles"):
        yield {
            "name": "cpu",
            "summary": "this machine's processor, measured when it is used",
            "calibrations": libraries("cpu"),
        }


def _kernels(notes: list[str]) -> Iterator[dict[str, Any]]:
    from costmodel.kernels import forms

    for family, form in sorted(forms().items()):
        yield {
            "name": family,
            "summary": form.summary,
            "parameters": len(form.parameters),
            "model_spread": form.model_spread,
        }


_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})", re.IGNORECASE)


def citations(name: str | None) -> list[dict[str, Any]]:
    """How to cite this tool and, with a name, the sources of that mechanism, model, device or kernel family."""
    rows: list[dict[str, Any]] = [
        {
            "key": "costmodel",
            "type": "software",
            "text": "Costmodel: an analytical cost-model simulator of sequence-mixing mechanisms",
            "version": costmodel.__version__,
            "url": None,
        }
    ]
    if name is None:
        return rows
    from costmodel.report.pages import pages

    for page in pages(name):
        for index, source in enumerate(page.sources, start=1):
            found = _ARXIV.search(source)
            url = f"https://arxiv.org/abs/{found[1]}" if found else None
            key = f"arXiv:{found[1]}" if found else f"{name}-{index}"
            rows.append({"key": key, "type": "source", "text": source, "version": None, "url": url})
    return rows


def bibtex(rows: list[dict[str, Any]]) -> str:
    """The citations as BibTeX."""
    entries = []
    for row in rows:
        fields = {"title": row["text"]} if row["type"] == "software" else {"note": row["text"]}
        if row["type"] == "software":
            fields = {"author": "{The Costmodel authors}", **fields, "version": row["version"]}
        if row["url"]:
            fields |= {"eprint": row["key"].partition(":")[2], "archivePrefix": "arXiv", "url": row["url"]}
        inner = "".join(
            f",\n  {field} = {{{text if field == 'url' else _escaped(text)}}}" for field, text in fields.items()
        )
        entries.append(f"@{'software' if row['type'] == 'software' else 'misc'}{{{row['key']}{inner}\n}}")
    return "\n\n".join(entries)


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_])", r"\\\1", text)
