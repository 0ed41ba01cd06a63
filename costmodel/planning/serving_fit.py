"""Engine constants from measured serving runs, and what they are worth on models that a fit never saw.

Besides the fit to all runs there is one without each model, which is what `validate --serving` scores that model with.
How far predictions are off is measured in the same way, one level down: of all fits without two models, the errors on
the second one say what to expect of the first. So is how far libraries may differ, and front ends leave their prior: as
far as fits without one more model meet it best.
"""

import datetime
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
SHARES = (1.0, 0.5, 0.25, 0.0)
"""Of what is usual, that fits may use: of deviations of a library, and of the front end from its prior."""

Spread = dict[str, float]


class Error(NamedTuple):
    """ln(predicted/measured) of a run's latencies, NaN where one was not measured."""

    ttft: float
    tpot: float


class ServingFit(NamedTuple):
    """The fit to all runs, those without each model, and how far each is off on unseen models."""

    responses: tuple[Response, ...]
    refused: tuple[tuple[ServingRow, str], ...]
    whole: Fitted
    without: Mapping[str, Fitted]
    spreads: Mapping[str, Spread]


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
    fits = _Fits(found)
    models = fits.models

    def unseen(model: str, without: frozenset[str]) -> list[Error]:
        return _errors(fits.best(without), found, model) if fits.enough(without) else []

    spreads = {"": _spreads(unseen(model, frozenset({model})) for model in models)}
    for model in models:
        others = [other for other in models if other != model]
        spreads[model] = _spreads(unseen(other, frozenset({model, other})) for other in others)
    without = {model: fits.best(frozenset({model})) for model in models if fits.enough(frozenset({model}))}
    return ServingFit(tuple(found), tuple(refused), fits.best(frozenset()), without, spreads)


class Kept(NamedTuple):
    """Shares of usual deviations that a fit may use."""

    library: float = 1.0
    front_end: float = 0.0


class _Fits:
    """Fits without some models, with deviations kept to a share of what is usual, made when asked for."""

    def __init__(self, found: Sequence[Response]) -> None:
        self.found, self.models = found, sorted({one.model for one in found})
        self.known: dict[tuple[frozenset[str], Kept], Fitted] = {}

    def rest(self, without: frozenset[str]) -> list[Response]:
        """The runs of other models."""
        return [one for one in self.found if one.model not in without]

    def enough(self, without: frozenset[str]) -> bool:
        """Whether there is something to fit."""
        return len(self.rest(without)) >= FEWEST_RUNS

    def best(self, without: frozenset[str]) -> Fitted:
        """The fit with the shares that meet models best which it has not seen, of those it may see: TPOT for
        libraries, then TTFT for the front end."""
        shares = [Kept(library=share) for share in SHARES]
        kept = min(shares, key=lambda kept: self._off(without, kept)[1])
        fronts = [kept._replace(front_end=share) for share in SHARES]
        return self.at(without, min(fronts, key=lambda kept: self._off(without, kept)[0]))

    def at(self, without: frozenset[str], kept: Kept) -> Fitted:
        """The fit with these shares."""
        key = without, kept
        if key not in self.known:
            usual = bounds()
            narrowed = numpy.array([kept.front_end if name == "front_end_s" else 1.0 for name in NAMES])
            own = usual._replace(deviation=usual.deviation * narrowed, of_library=kept.library)
            self.known[key] = fit_constants(self.rest(without), own)
        return self.known[key]

    def _off(self, without: frozenset[str], kept: Kept) -> tuple[float, float]:
        """Mean |ln(predicted/measured)| of TTFT and TPOT on models left out once more; 0 where none can be."""
        unseen = [
            error
            for model in self.models
            if model not in without and self.enough(without | {model})
            for error in _errors(self.at(without | {model}, kept), self.found, model)
        ]
        return _mean(error.ttft for error in unseen), _mean(error.tpot for error in unseen)


def _mean(gaps: Iterable[float]) -> float:
    known = [abs(gap) for gap in gaps if not math.isnan(gap)]
    return sum(known) / max(len(known), 1)


def _errors(fit: Fitted, found: Sequence[Response], model: str) -> list[Error]:
    rows = []
    for one in found:
        if one.model == model:
            seconds = predicted(one, fit.constants(one.library, one.hardware), fit.bounds.start(one.library))
            gaps = numpy.log(seconds) - numpy.log(numpy.array(one.measured))
            rows.append(Error(float(gaps[0]), float(gaps[1])))
    return rows


def _spreads(errors: Iterable[Sequence[Error]]) -> Spread:
    """Standard deviations whose 80 % interval holds 80 % of the errors, given by model: each weighs the same, as the
    next one will be another draw of a model, however many runs the known ones have."""
    groups = [rows for rows in errors if rows]
    found: Spread = {}
    for index, metric in ((0, "ttft"), (1, "tpot")):
        known = [[abs(row[index]) for row in rows if not math.isnan(row[index])] for rows in groups]
        gaps = sorted((gap, 1.0 / len(rows)) for rows in known for gap in rows)
        if gaps:
            shares = numpy.cumsum([weight for _, weight in gaps])
            found[metric] = gaps[int(numpy.searchsorted(shares, 0.8 * shares[-1]))][0] / Z80
    return found


def constants_document(fit: ServingFit, library: str, told: Mapping[str, str]) -> dict[str, Any]:
    """The file of a library. told: source, notice and command, for its head."""
    of_library = [one for one in fit.responses if one.library == library]
    counts: dict[str, int] = {}
    for one in of_library:
        counts[one.model] = counts.get(one.model, 0) + 1
    head = {"schema": 1, "id": f"engines/{library}", "library": library, "date": datetime.date.today().isoformat()}
    whole = _constants(fit.whole, fit.spreads[""], library)
    without = {model: _constants(found, fit.spreads[model], library) for model, found in fit.without.items()}
    return {
        **head,
        **{name: text for name, text in told.items() if text},
        "runs": len(of_library),
        "models": dict(sorted(counts.items())),
        **whole,
        "without": without,
    }


def _constants(fit: Fitted, spread: Spread, library: str) -> dict[str, Any]:
    devices = sorted(key[1] for key in fit.values if key[0] == "device")
    return {
        "constants": _named(fit, library, ""),
        "devices": {device: _named(fit, library, device) for device in devices},
        **({"spread": {name: float(f"{value:.3g}") for name, value in spread.items()}} if spread else {}),
    }


def _named(fit: Fitted, library: str, hardware: str) -> dict[str, float]:
    values = zip(NAMES, fit.constants(library, hardware), strict=True)
    return {name: told_seconds(value) for name, value in values}


def told_seconds(value: float) -> float:
    """Three digits, none of them below a picosecond: what no run moves stays where it was, but for rounding.

    >>> told_seconds(7.1894e-6), told_seconds(-9.4e-23)
    (7.19e-06, 0.0)
    """
    return round(float(f"{value:.3g}"), 12) + 0.0


def document_text(document: Mapping[str, Any]) -> str:
    """The YAML text: one line for each set of constants."""
    return str(yaml.safe_dump(dict(document), sort_keys=False, default_flow_style=None, width=200))
