"""How right predictions are on points that no fit saw, beside the baselines on the same points."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas
from numpy.typing import NDArray

from costmodel.calibration import PRIOR, Calibration, from_fits
from costmodel.calibration_files import own_calibration, relatives_calibration
from costmodel.errors import BadInput, unknown
from costmodel.fitting.baselines import BASELINES
from costmodel.fitting.fitted_points import LONG
from costmodel.fitting.goals import GOALS, LONGER, Pair, aim
from costmodel.fitting.inside_modules import BEGUN_FROM
from costmodel.fitting.interpolation import interpolated
from costmodel.fitting.least_squares import Points
from costmodel.fitting.length_weights import thinned
from costmodel.fitting.library import fit_library
from costmodel.fitting.measured_table import places
from costmodel.fitting.pricing import priced
from costmodel.fitting.reading import read_tables
from costmodel.fitting.series import Floats, Part, Series
from costmodel.fitting.silicon import NCCL, TableFile, hardware_of, tables_of
from costmodel.fitting.splits import LEFT_OUT, Fold, Split, folds
from costmodel.hardware import Hardware
from costmodel.timing import Z80
from costmodel.units import format_count

MODEL, WITH_TABLE = "costmodel", "costmodel+table"
FAMILIES = (*(family for goal in GOALS for family in goal.families), "elementwise")
METHODS = (MODEL, WITH_TABLE, *BASELINES)
MOST_SCORED = 500
"""Points of one series that are scored, drawn with a fixed seed; `shapes` scores every point it puts aside."""
MOST_SEEN = 20_000
"""Points of one series that a table or a learner sees; a fit needs far fewer."""
FEWEST_SEEN = 5
"""Seen points below which a method that learns from them has no answer."""
VERY_LONG = 131_072


class Outcome(NamedTuple):
    """What one method said of the scored points of one series."""

    series: Series
    method: str
    rows: NDArray[numpy.intp]
    seconds: Floats
    inside: NDArray[numpy.bool_] | None

    @property
    def gaps(self) -> Floats:
        """ln(predicted/measured) of each point."""
        return numpy.log(self.seconds / self.series.seconds[self.rows])


class Score(NamedTuple):
    """One row of `validate`; errors in percent, bias the median signed error, coverage80 of the 80 % interval.

    n is 0, and the errors are None, for a kernel of which every point is flagged, or which the split does not ask for.
    """

    system: str
    library: str
    version: str
    family: str
    kernel: str
    mechanism: str | None
    phase: str
    split: str
    method: str
    n: int
    flagged: int
    median_ape: float | None
    mean_ape: float | None
    p90_ape: float | None
    bias: float | None
    coverage80: float | None


def statistics(gaps: Floats, inside: NDArray[numpy.bool_] | None) -> dict[str, float | None]:
    """Median, mean and 90th percentile of the absolute percentage error, its signed median, and the coverage.

    >>> import numpy
    >>> statistics(numpy.log(numpy.array([1.1, 0.9, 1.0])), None)["median_ape"]
    10.0
    >>> statistics(numpy.array([]), None)["median_ape"] is None
    True
    """
    if not len(gaps):
        return dict.fromkeys(("median_ape", "mean_ape", "p90_ape", "bias", "coverage80"))
    errors = 100.0 * numpy.expm1(gaps)
    apes = numpy.abs(errors)
    return {
        "median_ape": round(float(numpy.median(apes)), 3),
        "mean_ape": round(float(numpy.mean(apes)), 3),
        "p90_ape": round(float(numpy.percentile(apes, 90)), 3),
        "bias": round(float(numpy.median(errors)), 3),
        "coverage80": None if inside is None else round(100.0 * float(numpy.mean(inside)), 2),
    }


def scores(outcomes: Iterable[Outcome], split: str) -> list[Score]:
    """One row for each kernel and method, over all its instances."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        one = outcome.series
        key = (one.system, one.library, one.version, one.family, one.kernel, one.mechanism, one.phase, outcome.method)
        groups.setdefault(key, []).append(outcome)
    rows = []
    for (system, library, version, family, kernel, mechanism, phase, method), same in sorted(groups.items()):
        flagged = sum(outcome.series.left_out.total() for outcome in _once(same))
        gaps = numpy.concatenate([outcome.gaps for outcome in same])
        rows.append(
            Score(
                system,
                library,
                version,
                family,
                kernel,
                mechanism or None,
                phase,
                split,
                method,
                len(gaps),
                flagged,
                **statistics(gaps, _together(same)),
            )
        )
    return rows


def summaries(outcomes: Sequence[Outcome], split: Split) -> list[dict[str, Any]]:
    """One row for each family: what was reached over all its kernels, what was aimed at, and the other methods.

    Families with long contexts have a second row, for the points of 128k tokens and more, and so has one whose stretch
    goal is another from some length on.
    """
    families = sorted({outcome.series.family for outcome in outcomes})
    rows = [_summary(family, family, outcomes, split, 0) for family in families]
    for family in families:
        least, stretch = LONGER.get(family, (0, None))
        if least and split.kind == "shapes":
            rows.append(_summary(f"{family}, ≥ {format_count(least)} tokens", family, outcomes, split, least, stretch))
    rows += [
        _summary(f"{family}, ≥ 128k tokens", family, outcomes, split, VERY_LONG)
        for family in families
        if family.startswith(LONG)
    ]
    return [row for row in rows if row is not None]


def _summary(
    title: str, family: str, outcomes: Sequence[Outcome], split: Split, least: int, longer: Pair | None = None
) -> dict[str, Any] | None:
    """One row, of the points of at least so many tokens. longer: the stretch goal of these points."""
    errors: dict[str, tuple[Floats, NDArray[numpy.bool_] | None]] = {}
    mine = [outcome for outcome in outcomes if outcome.series.family == family]
    for method in dict.fromkeys(outcome.method for outcome in mine):
        same = [outcome for outcome in mine if outcome.method == method]
        long = [outcome.series.tokens[outcome.rows] >= least for outcome in same]
        gaps = numpy.concatenate([outcome.gaps[chosen] for outcome, chosen in zip(same, long, strict=True)])
        inside = _together(same)
        if len(gaps) or not least:
            errors[method] = gaps, None if inside is None else inside[numpy.concatenate(long)]
    if not errors:
        return None
    main = MODEL if MODEL in errors else next(iter(errors))
    told = {method: statistics(*error) for method, error in errors.items()}
    floor, stretch = aim(family, split.kind, split.points)
    pairs = {method: _pair(row) for method, row in told.items()}
    reached = pairs[main]
    # A floor speaks of a family's kernels as a whole, not of its longest contexts alone.
    floor, stretch = (None, longer) if least else (floor, stretch)
    return {
        "family": title,
        "split": split.text,
        "n": len(errors[main][0]),
        "flagged": 0 if least else sum(one.series.left_out.total() for one in _once(mine)),
        "reached": reached,
        "floor": floor,
        "stretch": stretch,
        "met": _met(reached, floor, stretch),
        **{name: told[main][name] for name in ("mean_ape", "bias", "coverage80")},
        "others": {name: pair for name, pair in pairs.items() if name != main and pair is not None},
    }


def _pair(told: Mapping[str, float | None]) -> Pair | None:
    """Median and 90th percentile of the errors, None where nothing was scored."""
    median, p90 = told["median_ape"], told["p90_ape"]
    return None if median is None or p90 is None else (median, p90)


def _met(reached: Pair | None, floor: Pair | None, stretch: Pair | None) -> str:
    """What a family reached, in a word."""
    for name, wanted in (("stretch", stretch), ("floor", floor)):
        if reached is not None and wanted is not None and reached[0] <= wanted[0] and reached[1] <= wanted[1]:
            return name
    return "–" if floor is None or reached is None else "missed"


def worst(outcomes: Iterable[Outcome], count: int) -> list[dict[str, Any]]:
    """The points with the largest error of the model, over all kernels."""
    found: list[tuple[float, Outcome, int]] = []
    for outcome in outcomes:
        if outcome.method == MODEL:
            gaps = outcome.gaps
            found += [(float(gaps[index]), outcome, int(index)) for index in numpy.argsort(-numpy.abs(gaps))[:count]]
    rows = []
    for gap, outcome, index in sorted(found, key=lambda item: -abs(item[0]))[:count]:
        one, row = outcome.series, outcome.rows[index]
        rows.append(
            {
                "system": one.system,
                "library": one.library,
                "family": one.family,
                "kernel": one.kernel,
                "instance": one.instance,
                "shape": ", ".join(f"{name}={value:g}" for name, value in one.shapes.iloc[row].items()),
                "measured_s": float(one.seconds[row]),
                "predicted_s": float(outcome.seconds[index]),
                "error": float(100.0 * numpy.expm1(gap)),
            }
        )
    return rows


def _once(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Each series once, where folds score it several times."""
    seen: set[int] = set()
    for outcome in outcomes:
        if id(outcome.series.seconds) not in seen:
            seen.add(id(outcome.series.seconds))
            yield outcome


def _together(same: Sequence[Outcome]) -> NDArray[numpy.bool_] | None:
    parts = [outcome.inside for outcome in same if outcome.inside is not None]
    return numpy.concatenate(parts) if len(parts) == len(same) else None


class Scored(NamedTuple):
    """What every method said of some tables; in words, what of the tables is not read, and whose parameters priced."""

    outcomes: list[Outcome]
    remarks: list[str]


class Job(NamedTuple):
    """The tables of one library on one system, to be fitted and scored in a process of its own."""

    files: tuple[TableFile, ...]
    families: tuple[str, ...]
    split: Split
    methods: tuple[str, ...]
    refit: bool


def jobs(
    directory: Path,
    systems: Sequence[str],
    libraries: Sequence[str],
    families: Sequence[str],
    split: Split,
    methods: Sequence[str],
    refit: bool = False,
) -> list[Job]:
    """One job for each system and library below a directory. Raises BadInput for names that are not there."""
    wanted = [split.system] if split.system else list(systems)
    files = tables_of(directory, wanted, libraries)
    for name in families:
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
    if split.system and systems and split.system not in systems:
        raise BadInput(f"--hw {', '.join(systems)}: split {split.text} is about {split.system}")
    if refit and split.kind in ("all", "unseen-gpu") and not split.points:
        raise BadInput(f"--refit: split {split.text} fits nothing")
    found = []
    for system in wanted or sorted({file.device for file in files}):
        own = [file for file in files if file.device == system]
        for library in sorted({file.library for file in own}):
            if library in libraries or not libraries:
                chosen = tuple(file for file in own if file.library == library)
                found.append(Job(chosen, tuple(families), split, tuple(methods), refit))
    return found


def run(wanted: Sequence[Job], processes: int, progress: Callable[[str, int], None]) -> Scored:
    """The outcomes of all jobs; progress is told the name of each that is done and how many are left."""
    scored = Scored([], [])

    def done(file: TableFile, left: int, found: Scored) -> None:
        scored.outcomes.extend(found.outcomes)
        scored.remarks.extend(words for words in found.remarks if words not in scored.remarks)
        progress(f"{file.system} {file.library}", left)

    if processes <= 1 or len(wanted) <= 1:
        for index, job in enumerate(wanted):
            done(job.files[0], len(wanted) - index - 1, run_job(job))
        return scored
    with ProcessPoolExecutor(processes) as pool:
        # The largest first, so that no process is left alone with a long one at the end.
        order = sorted(wanted, key=lambda job: -sum(file.path.stat().st_size for file in job.files))
        pending = {job.files[0]: pool.submit(run_job, job) for job in order}
        for index, (file, future) in enumerate(pending.items()):
            done(file, len(wanted) - index - 1, future.result())
    return scored


def run_job(job: Job) -> Scored:
    """Fit and score one library on one system."""
    hardware = hardware_of(job.files[0])
    series, unread = read_tables(job.files, hardware)
    series = needed(series, job.families, LEFT_OUT.get(job.split.kind))
    library = job.files[0].library
    known = known_before(job, hardware)
    start = nearest(hardware, library) if job.split.kind in ("unseen-gpu", "all") else PRIOR
    outcomes: list[Outcome] = []
    for fold in folds(job.split, series, hardware, start):
        if known is not None:
            calibration = known
        else:
            asked = [one for one in series if len(fold.scored(one))] if job.split.kind in LEFT_OUT else series
            entries = fit_library(series, hardware, fold.fitted, start, asked=asked, weights=fold.weights)
            calibration = from_fits(entry.fit for entry in entries)
        for one in series:
            if not job.families or one.family in job.families:
                outcomes += outcomes_of(one, fold, hardware, calibration, job)
    light = {id(outcome.series): outcome.series._replace(build=no_parts) for outcome in outcomes}
    return Scored(
        [outcome._replace(series=light[id(outcome.series)]) for outcome in outcomes], [*unread, priced_by(job, known)]
    )


def known_before(job: Job, hardware: Hardware) -> Calibration | None:
    """The calibration that a split judges: the device's own, or its relative's where it has none or shall not use it.

    None where the split fits: with --refit, and where it says itself which points a fit sees.
    """
    kind, library = job.split.kind, job.files[0].library
    if kind not in ("shapes", "all", "unseen-gpu") or job.split.points or job.refit:
        return None
    # Collectives of NCCL stand in the calibrations of all libraries.
    own = own_calibration(hardware, None if library == NCCL else library) if kind != "unseen-gpu" else None
    if own is not None:
        return own
    return nearest(hardware, library)


def nearest(hardware: Hardware, library: str) -> Calibration:
    """A relative's calibration of this library, else of any, in which NCCL's collectives stand as well."""
    found = relatives_calibration(hardware, library)
    return found if found.id else relatives_calibration(hardware, None)


def priced_by(job: Job, known: Calibration | None) -> str:
    """Whose parameters a job's predictions have, in words."""
    where = f"{job.files[0].device} {job.files[0].library}"
    if known is None:
        return f"{where}: fitted in this run, to the points that the split lets a fit see"
    if not known.id:
        return f"{where}: priors, for no relative is calibrated"
    own = known.hardware == job.files[0].device
    return f"{where}: calibration {known.id}" if own else f"{where}: transferred from {known.id}"


def no_parts(shapes: pandas.DataFrame) -> list[Part]:
    """What a scored series runs: it has been priced, and its kernels stay in the process that built them."""
    return []


def needed(series: Sequence[Series], families: Sequence[str], column: str | None = None) -> list[Series]:
    """The series of the asked families that have a column (None: any), those that begin where another family's fit
    ends with that family's, and those on which their modules stand."""
    asked = [
        one
        for one in series
        if (not families or one.family in families) and (column is None or column in one.shapes.columns)
    ]
    begun = {BEGUN_FROM[one.module] for one in asked if one.module in BEGUN_FROM}
    asked += [one for one in series if one.module in begun and families and one.family not in families]
    inside = {family for one in asked if one.mechanism for family in one.families}
    chosen = {id(one.seconds) for one in asked}
    return [one for one in series if id(one.seconds) in chosen or (not one.mechanism and one.family in inside)]


def unscored(series: Series, methods: Sequence[str]) -> list[Outcome]:
    """A series of which no point is scored: what is flagged of it is told all the same."""
    nothing = numpy.zeros(0)
    told = [name for name in METHODS if name in methods or (name == MODEL and WITH_TABLE in methods)]
    return [
        Outcome(series, name, nothing.astype(numpy.intp), nothing, nothing > 0 if name in (MODEL, WITH_TABLE) else None)
        for name in told
    ]


def outcomes_of(series: Series, fold: Fold, hardware: Hardware, calibration: Calibration, job: Job) -> list[Outcome]:
    """What each method says of the scored points of one series."""
    rows = fold.scored(series)
    if job.split.kind != "shapes":
        rows = thinned(rows, MOST_SCORED)
    if not len(rows):
        return unscored(series, job.methods)
    asked = Points(series, rows)
    seen = Points(series, thinned(fold.fitted(series), MOST_SEEN))
    found = []
    if MODEL in job.methods or WITH_TABLE in job.methods:
        said = priced(asked, hardware, calibration)
        gaps = numpy.log(said.seconds / asked.seconds)
        found.append(Outcome(series, MODEL, rows, said.seconds, numpy.abs(gaps) <= Z80 * said.spread))
        if WITH_TABLE in job.methods and len(seen.rows) >= FEWEST_SEEN:
            trunk = priced(seen, hardware, calibration, intervals=False).seconds
            # Placed together: a kernel that only some points launch is a column for all of them.
            where = places(Points(series, numpy.concatenate([seen.rows, rows])))
            field = interpolated(where[: len(seen.rows)], numpy.log(seen.seconds / trunk))
            residual, left = field.at(where[len(seen.rows) :])
            inside = numpy.abs(gaps + residual) <= Z80 * left
            found.append(Outcome(series, WITH_TABLE, rows, said.seconds * numpy.exp(residual), inside))
    for name, baseline in BASELINES.items():
        if name in job.methods and (len(seen.rows) >= FEWEST_SEEN or name.startswith("roofline")):
            found.append(Outcome(series, name, rows, baseline(seen, asked, hardware), None))
    return found
