"""Efficiency against capability: what is predicted here, what others published, and what theory bounds.

Efficiency is predicted: the time of a decode step and of a prefill, and the bytes that a sequence keeps. Beside a model
that denoises, whose step says nothing of a token, whole answers are priced instead: prompt and all passes, per token.
Capability is published and never predicted. Between them stands a bound: what a state of so many bytes can recall at
most.

>>> round(recall_bound(162 * 2**20, 50288))  # Mamba2-2.7B's states, one of 50,288 words per pair
87012478
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from costmodel.analysis.comparisons import Comparison, comparison_names, load_comparison
from costmodel.analysis.gains import kept_bytes
from costmodel.architecture import Architecture
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware
from costmodel.model_file import load_architecture
from costmodel.prediction import make_precision, predict

EVIDENCE = {"decode_s": "predicted", "prefill_s": "predicted", "cache_bytes": "counted", "capability": "published"}
EVIDENCE |= {"recall_pairs": "bounded"}
"""What kind of knowledge each part of a row is."""

ANSWER = 256
"""New tokens of an answer that is priced whole; at most half of the context."""

BOUND_SOURCES = ("arXiv:2402.01032, section 2 (copying)", "arXiv:2402.18668 (recall against size of the state)")


def recall_bound(state_bytes: float, words: int) -> float:
    """Key-value pairs that a state can hold at most, each value being one of `words`: 8·bytes / log2(words).

    To answer for any of n keys with one of V words each, a state must tell V^n cases apart, which takes n·log2 V bits;
    the key comes with the question and need not be kept. A model's learned recall is far below the bound.

    Source: counting, as in arXiv:2402.01032, section 2, where a string of n words is copied.
    """
    return 8 * state_bytes / math.log2(words)


def tradeoff(
    hardware: Sequence[Hardware],
    contexts: Sequence[int],
    *,
    comparisons: Sequence[str] = (),
    architectures: Sequence[str] = (),
    batch: int = 1,
    library: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of `tradeoff`: every model of the comparisons, on every device, at every context.

    answer_tokens of a row: None where decode_s is a decode step, else the tokens of the answers whose time per token it
    is.

    comparisons: names of papers, all by default. architectures: only these models and, of those in no comparison, rows
    without a capability. Raises BadInput for an unknown name.
    """
    chosen = [load_comparison(name) for name in comparisons or comparison_names()]
    wanted = [load_architecture(name) for name in architectures]
    formats = {"library": library, "weights": weights, "kv": kv, "activations": activations}
    rows: list[dict[str, Any]] = []
    for comparison in chosen:
        shown = [model for model in comparison.models if not wanted or _among(comparison.models[model], wanted)]
        if not shown:
            continue
        # The baseline is told with whatever is compared with it.
        asked = [model for model in comparison.models if model in shown or model == comparison.baseline]
        for device in hardware:
            for L in contexts:
                of_comparison = {
                    model: _row(comparison, model, comparison.models[model], device, L, batch, formats)
                    for model in asked
                }
                rows += _relative(of_comparison, comparison.baseline)
    known = {row["arch"] for row in rows}
    for model in wanted:
        if model.name not in known:
            rows += [_row(None, model.name, model, device, L, batch, formats) for device in hardware for L in contexts]
    return rows


def _among(model: Architecture | None, wanted: Sequence[Architecture]) -> bool:
    return model is not None and any(model.name == other.name for other in wanted)


def _row(
    comparison: Comparison | None,
    name: str,
    model: Architecture | None,
    device: Hardware,
    L: int,
    batch: int,
    formats: dict[str, str | None],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "comparison": comparison.name if comparison else None,
        "model": name,
        "arch": model.name if model else None,
        "hw": device.name,
        "context": L,
        "batch": batch,
        "answer_tokens": answer_tokens(comparison, model, L),
        "decode_s": None,
        "prefill_s": None,
        "decode_gain": None,
        "prefill_gain": None,
        "cache_bytes": None,
        "state_bytes": None,
        "bits_per_pair": None,
        "recall_pairs": None,
        "fits": None,
        "matched": comparison.matched if comparison else None,
        "budget": comparison.budgets[name] if comparison else None,
        "baseline": comparison.baseline if comparison else None,
        "capability": {},
        "source": comparison.source if comparison else None,
        "evidence": EVIDENCE,
        "calibration": None,
        "basis": None,
        "unmeasured": (),
    }
    if comparison:
        for metric in comparison.metrics:
            value, base = metric.values.get(name), metric.values.get(comparison.baseline)
            if value is not None:
                row["capability"][metric.name] = {
                    "value": value,
                    "delta": None if base is None else round(value - base, 6),
                    "unit": metric.unit,
                    "second_hand": metric.second_hand,
                }
    if model is not None:
        row |= _efficiency(model, device, L, batch, formats)
        if row["answer_tokens"] is not None:
            row["decode_s"] = _per_token(model, device, L, batch, formats)
    return row


def _efficiency(
    model: Architecture, device: Hardware, L: int, batch: int, formats: dict[str, str | None]
) -> dict[str, Any]:
    """Predicted times, what a sequence keeps, and the bound on what its state recalls."""
    options: dict[str, Any] = {"batch": batch, **formats}
    decode, prefill = (predict(model, device, L, phase=phase, **options).row for phase in ("decode", "prefill"))
    precision = make_precision(model, device, formats["weights"], formats["kv"], formats["activations"])
    state = 0.0 if model.bidirectional else kept_bytes(model, precision, L).whole
    cache = 0.0 if model.bidirectional else float(model.cache_bytes(L, precision))
    # A cache that keeps every token recalls it: only what is kept whatever the context is bounded.
    bounded = 0 < cache <= state
    return {
        "decode_s": decode.time_s,
        "prefill_s": prefill.time_s,
        "cache_bytes": cache,
        "state_bytes": state,
        "bits_per_pair": math.log2(model.V),
        "recall_pairs": recall_bound(state, model.V) if bounded else None,
        "fits": decode.fits,
        "calibration": decode.calibration,
        "basis": decode.basis,
        "unmeasured": tuple(dict.fromkeys((*prefill.unmeasured, *decode.unmeasured))),
    }


def answer_tokens(comparison: Comparison | None, model: Architecture | None, L: int) -> int | None:
    """Tokens of the answers that are priced, where a model denoises or is compared with one that does; else None.

    >>> [answer_tokens(None, load_architecture(name), 8192) for name in ("llada-8b", "qwen3-8b")]
    [256, None]
    """
    models = comparison.models.values() if comparison else (model,)
    denoises = any(each.denoises for each in models if each is not None)
    return min(ANSWER, max(1, L // 2)) if denoises and L > 1 else None


def _per_token(model: Architecture, device: Hardware, L: int, batch: int, formats: dict[str, str | None]) -> float:
    """Seconds of an answer at the end of the context over its tokens; a diffusion model commits one token per pass."""
    from costmodel.generation import generate

    new = min(ANSWER, max(1, L // 2))
    method = "full" if model.bidirectional else "block" if model.denoises else "autoregressive"
    options: dict[str, Any] = {"batch": batch, **formats}
    [row] = generate(model, device, prompt=L - new, new_tokens=new, methods=(method,), **options)
    return float(row["time_s"]) / new


def _relative(rows: dict[str, dict[str, Any]], baseline: str) -> Iterator[dict[str, Any]]:
    """The rows with their gains in time over the baseline, where both have a time."""
    base = rows[baseline]
    for row in rows.values():
        for phase in ("decode", "prefill"):
            own, other = row[f"{phase}_s"], base[f"{phase}_s"]
            row[f"{phase}_gain"] = other / own if own and other else None
        yield row


def ranked(rows: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The rows that have a metric, the best first, with `rank`; equal values share one.

    Raises BadInput where the rows are of several comparisons or of one whose training budgets differ: then a better
    score may come from the training, and a rank would say what nobody measured.
    """
    known = sorted({name for row in rows for name in row["capability"]})
    if metric not in known:
        raise unknown("metric", metric, known)
    scored = [row for row in rows if metric in row["capability"]]
    names = sorted({row["comparison"] for row in scored})
    if len(names) > 1:
        raise BadInput(f"rank by {metric}: scores of {', '.join(names)} were trained on unmatched budgets; choose one")
    if not scored[0]["matched"]:
        comparison = load_comparison(names[0])
        raise BadInput(f"rank by {metric}: {names[0]} has unmatched budgets: {comparison.reason}")
    values = sorted({row["capability"][metric]["value"] for row in scored}, reverse=True)
    places = {value: 1 + sum(other > value for other in values) for value in values}
    ordered = sorted(scored, key=lambda row: places[row["capability"][metric]["value"]])
    return [{**row, "rank": places[row["capability"][metric]["value"]]} for row in ordered]
