"""Engine constants from measured serving runs, and what they are worth on models that a fit never saw.

Besides the fit to all runs there is one without each model, which is what `validate --serving` scores that model with.
How far predictions are off is measured in the same way, one level down: of all fits without two models, the errors on
the second one say what to expect of the first.
"""

import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import yaml

from costmodel.errors import BadInput, Impossible
from costmodel.fitting.engine_fit import Fitted, Response, fit_constants, predicted
from costmodel.planning.serving_predictions import NAMES, bounds, each, response
from costmodel.planning.serving_rows import ServingRow
from costmodel.timing import Z80

FEWEST_RUNS = 2
MOST_RUNS, MOST_CLIENTS = 30, 128
FEWEST_ERRORS = 40
"""Errors of a library on unseen models from which it has a spread of its own."""

Spread = dict[str, float]


class Error(NamedTuple):
    """ln(predicted/measured) of a run's latencies, NaN where one was not measured."""

    library: str
    ttft: float
    tpot: float


class ServingFit(NamedTuple):
    """The fit to all runs, those without each model, and how far each is off on unseen models, by library."""

    responses: tuple[Response, ...]
    refused: tuple[tuple[ServingRow, str], ...]
    whole: Fitted
    without: Mapping[str, Fitted]
    spreads: Mapping[str, Mapping[str, Spread]]


def fit_rows(
    rows: Sequence[ServingRow], jobs: int = 1, progress: Callable[[str, int, int], None] | None = None
) -> ServingFit:
    """Replay the runs and fit. Raises BadInput where too few can be used."""
    usable = chosen(rows)
    found, refused = list[Response](), list[tuple[ServingRow, str]]()
    for index, (row, answer) in enumerate(zip(usable, each(response, usable, jobs), strict=True)):
        if isinstance(answer, Impossible):
            refused.append((row, str(answer)))
        else:
            found.append(answer)
        if progress is not None:
            progress(row.name, index + 1, len(usable))
    if len(found) < FEWEST_RUNS:
        reasons = "; ".join(reason for _, reason in refused[:3])
        raise BadInput(f"{len(found)} runs can be used, too few for a fit{'; ' if reasons else ''}{reasons}")
    return fit_responses(found, refused)


def chosen(rows: Sequence[ServingRow]) -> list[ServingRow]:
    """The runs that a fit looks at: of each library, device and model at most `MOST_RUNS`, evenly over their order by
    layout and clients, up to `MOST_CLIENTS` of these. More runs of a model say the same, and larger ones take long."""
    groups: dict[tuple[str, str, str], list[ServingRow]] = {}
    for row in rows:
        if row.scored and row.clients <= MOST_CLIENTS:
            groups.setdefault((row.library, row.hw, row.arch), []).append(row)
    found = []
    for group in groups.values():
        ordered = sorted(group, key=lambda row: (str(row.layout), row.clients, row.line))
        step = max(len(ordered) / MOST_RUNS, 1.0)
        found += [ordered[int(index * step)] for index in range(min(MOST_RUNS, len(ordered)))]
    return found


def fit_responses(found: Sequence[Response], refused: Iterable[tuple[ServingRow, str]] = ()) -> ServingFit:
    """The fits, from what replays said of each run."""
    models = sorted({one.model for one in found})
    fits: dict[frozenset[str], Fitted] = {frozenset(): fit_constants(found, bounds())}
    for left_out in [(model,) for model in models] + list(itertools.combinations(models, 2)):
        rest = [one for one in found if one.model not in left_out]
        if len(rest) >= FEWEST_RUNS:
            fits[frozenset(left_out)] = fit_constants(rest, bounds())

    def unseen(model: str, without: frozenset[str]) -> list[Error]:
        return _errors(fits[without], found, model) if without in fits else []

    spreads = {"": _spreads(error for model in models for error in unseen(model, frozenset({model})))}
    for model in models:
        others = [other for other in models if other != model]
        spreads[model] = _spreads(error for other in others for error in unseen(other, frozenset({model, other})))
    without = {model: fits[frozenset({model})] for model in models if frozenset({model}) in fits}
    return ServingFit(tuple(found), tuple(refused), fits[frozenset()], without, spreads)


def _errors(fit: Fitted, found: Sequence[Response], model: str) -> list[Error]:
    rows = []
    for one in found:
        if one.model == model:
            seconds = predicted(one, fit.constants(one.library, one.hardware), fit.bounds.start(one.library))
            gaps = numpy.log(seconds) - numpy.log(numpy.array(one.measured))
            rows.append(Error(one.library, float(gaps[0]), float(gaps[1])))
    return rows


def _spreads(errors: Iterable[Error]) -> dict[str, Spread]:
    """Standard deviations whose 80 % interval holds 80 % of the errors: of all, and of libraries with enough."""
    rows = list(errors)
    groups = {"": rows} | {name: [row for row in rows if row.library == name] for name in {row.library for row in rows}}
    found: dict[str, Spread] = {}
    for name, group in groups.items():
        if name and len(group) < FEWEST_ERRORS:
            continue
        for metric, gaps in (("ttft", [row.ttft for row in group]), ("tpot", [row.tpot for row in group])):
            known = [abs(gap) for gap in gaps if not math.isnan(gap)]
            if known:
                found.setdefault(name, {})[metric] = float(numpy.quantile(known, 0.8)) / Z80
    return found


def constants_document(fit: ServingFit, library: str, told: Mapping[str, str]) -> dict[str, Any]:
    """The file of a library. told: source, notice and command, for its head."""
    of_library = [one for one in fit.responses if one.library == library]
    counts: dict[str, int] = {}
    for one in of_library:
        counts[one.model] = counts.get(one.model, 0) + 1
    head = {"schema": 1, "id": f"engines/{library}", "library": library, "date": datetime.date.today().isoformat()}
    whole = _constants(fit.whole, fit.spreads[""], library, of_library)
    without = {
        model: _constants(found, fit.spreads[model], library, [one for one in of_library if one.model != model])
        for model, found in fit.without.items()
    }
    return {
        **head,
        **{name: text for name, text in told.items() if text},
        "runs": len(of_library),
        "models": dict(sorted(counts.items())),
        **whole,
        "without": without,
    }


def _constants(fit: Fitted, spreads: Mapping[str, Spread], library: str, runs: Iterable[Response]) -> dict[str, Any]:
    devices = sorted(key[1] for key in fit.values if key[0] == "device")
    spread = spreads.get(library, spreads.get(""))
    return {
        "constants": _named(fit, library, ""),
        "devices": {device: _named(fit, library, device) for device in devices},
        **({"spread": {name: float(f"{value:.3g}") for name, value in spread.items()}} if spread else {}),
    }


def _named(fit: Fitted, library: str, hardware: str) -> dict[str, float]:
    values = zip(NAMES, fit.constants(library, hardware), strict=True)
    return {name: float(f"{value:.3g}") for name, value in values}


def document_text(document: Mapping[str, Any]) -> str:
    """The YAML text: one line for each set of constants."""
    return str(yaml.safe_dump(dict(document), sort_keys=False, default_flow_style=None, width=200))
