"""How right predictions of whole serving runs are, on models that no fit saw, beside baselines on the same runs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.errors import Impossible
from costmodel.fitting.scoring import statistics
from costmodel.planning.engine_constants import engine_constants
from costmodel.planning.serving_predictions import each, with_fitted, with_priors, with_rooflines
from costmodel.planning.serving_rows import ServingRow
from costmodel.prediction import loaded
from costmodel.timing import Z80

Prediction = tuple[float, float]

MODEL = "costmodel"
METHODS: Mapping[str, Callable[[ServingRow], Prediction]] = {
    MODEL: with_fitted,
    "generic constants": with_priors,
    "roofline": with_rooflines,
}
"""With the engine constants of the library, with the same priors for all, and the bare sum of rooflines."""

METRICS = ("ttft", "tpot")
FLOOR = {"ttft": (30.0, 80.0), "tpot": (12.0, 38.0)}
STRETCH = {"ttft": (15.0, 45.0), "tpot": (7.0, 20.0)}
"""Median and 90th percentile of the absolute error in percent that were aimed at, on unseen models."""

ALL = "all"


class Outcome(NamedTuple):
    """What a method said of a run: TTFT and TPOT, and the 80 % interval's half width in logarithms, None without."""

    row: ServingRow
    method: str
    seconds: Prediction
    spread: tuple[float, float] | None


def outcomes(
    rows: Sequence[ServingRow],
    methods: Iterable[str] = tuple(METHODS),
    jobs: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Outcome], list[ServingRow]]:
    """Every method on every run that can be scored, and all rows; those that cannot be served say why."""
    rows = list(rows)
    found: list[Outcome] = []
    names = list(methods)
    for number, method in enumerate(names):
        usable = [index for index, row in enumerate(rows) if row.scored]
        answers = each(METHODS[method], [rows[index] for index in usable], jobs)
        for done, (index, answer) in enumerate(zip(usable, answers, strict=True), 1):
            if isinstance(answer, Impossible):
                rows[index] = rows[index]._replace(unscored=str(answer))
                continue
            spread = _spread(rows[index]) if method == MODEL else None
            found.append(Outcome(rows[index], method, answer, spread))
            if progress is not None:
                progress(f"{method}: {rows[index].name}", number * len(usable) + done, len(names) * len(usable))
    return [outcome for outcome in found if rows[rows.index(outcome.row)].scored], rows


def _spread(row: ServingRow) -> tuple[float, float]:
    (device,) = loaded(row.arch, row.hw)[1]
    found = engine_constants(row.library, device, without=row.arch).spread
    return Z80 * found["ttft"], Z80 * found["tpot"]


def scores(found: Sequence[Outcome], rows: Sequence[ServingRow]) -> list[dict[str, Any]]:
    """One row for each system, library, model, mode, metric and method: the contract's keys."""
    groups = sorted({(row.hw, row.library, row.arch, row.mode) for row in rows})
    return [line for group in groups for line in _lines(group, found, rows)]


def summaries(found: Sequence[Outcome], rows: Sequence[ServingRow]) -> list[dict[str, Any]]:
    """The same over all runs, of each library, and of each model."""
    libraries = sorted({row.library for row in rows})
    models = sorted({row.arch for row in rows})
    groups = [(ALL, ALL, ALL, ALL), *((ALL, name, ALL, ALL) for name in libraries)]
    groups += [(ALL, ALL, name, ALL) for name in models]
    return [line for group in groups for line in _lines(group, found, rows)]


def _lines(
    group: tuple[str, str, str, str], found: Sequence[Outcome], rows: Sequence[ServingRow]
) -> Iterable[dict[str, Any]]:
    def belongs(row: ServingRow) -> bool:
        of_row = (row.hw, row.library, row.arch, row.mode)
        return all(wanted in (ALL, has) for wanted, has in zip(group, of_row, strict=True))

    mine = [row for row in rows if belongs(row)]
    names = dict(zip(("system", "library", "model", "mode"), group, strict=True))
    counts = {
        "flagged": sum(row.merged for row in mine if row.flagged),
        "unscored": sum(row.merged for row in mine if row.unscored),
    }
    for index, metric in enumerate(METRICS):
        for method in dict.fromkeys(outcome.method for outcome in found):
            same = [outcome for outcome in found if outcome.method == method and belongs(outcome.row)]
            gaps, inside = _gaps(same, index)
            errors = statistics(gaps, inside)
            yield {
                **names,
                "metric": metric,
                "method": method,
                "n": len(gaps),
                **counts,
                "median_ape": errors["median_ape"],
                "mean_ape": errors["mean_ape"],
                "p90_ape": errors["p90_ape"],
                "median_log_error": round(float(numpy.median(numpy.abs(gaps))), 4) if len(gaps) else None,
                "bias": errors["bias"],
                "coverage80": errors["coverage80"],
            }


def _gaps(same: Sequence[Outcome], index: int) -> tuple[Any, Any]:
    """ln(predicted/measured) of one metric, and whether each lies inside its interval."""
    gaps, inside = [], []
    for outcome in same:
        measured = (outcome.row.ttft_s, outcome.row.tpot_s)[index]
        if measured is None:
            continue
        gaps.append(math.log(outcome.seconds[index] / measured))
        if outcome.spread is not None:
            inside.append(abs(gaps[-1]) <= outcome.spread[index])
    return numpy.array(gaps), numpy.array(inside) if inside else None


def worst(found: Sequence[Outcome], count: int) -> list[dict[str, Any]]:
    """The runs that the model is furthest off on, by the logarithm of the error."""
    rows = []
    for outcome in found:
        if outcome.method != MODEL:
            continue
        for index, metric in enumerate(METRICS):
            measured = (outcome.row.ttft_s, outcome.row.tpot_s)[index]
            if measured is not None:
                rows.append((abs(math.log(outcome.seconds[index] / measured)), metric, measured, outcome, index))
    rows.sort(key=lambda entry: -entry[0])
    return [
        {
            "system": outcome.row.hw,
            "library": outcome.row.library,
            "model": outcome.row.arch,
            "run": outcome.row.name,
            "line": outcome.row.line,
            "metric": metric,
            "measured_s": measured,
            "predicted_s": outcome.seconds[index],
            "error": 100.0 * (outcome.seconds[index] / measured - 1.0),
        }
        for _, metric, measured, outcome, index in rows[:count]
    ]
