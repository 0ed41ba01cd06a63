"""Which points a fit may see and which it is judged by; both never share a shape.

The names and meanings of the splits are part of the contract of this program: `shapes` puts 20 % of all shapes aside
by a fixed hash, `extrapolate` fits at most 2,048 tokens and scores at least 8,192.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.calibration import Calibration
from costmodel.errors import unknown
from costmodel.fitting.length_weights import LengthWeights
from costmodel.fitting.series import Indices, Series
from costmodel.hardware import Hardware

HELD_OUT = 5
"""One shape in so many is never fitted."""
SHORT, LONG = 2048, 8192
"""Tokens up to which `extrapolate` fits, and from which it scores."""


def held_out(series: Series) -> NDArray[numpy.bool_]:
    """The points that shipped calibrations never see: those that were measured to judge by, else those that a hash of
    their shape chooses, the same for every dtype and kernel."""
    if series.aside is not None:
        return series.aside
    shapes = series.shapes
    state = numpy.zeros(len(shapes), dtype=numpy.uint64)
    for name in sorted(map(str, shapes.columns)):
        values = numpy.round(shapes[name].to_numpy(dtype=numpy.float64)).astype(numpy.int64).astype(numpy.uint64)
        state = _mixed(state ^ _mixed(values + numpy.uint64(_text_seed(name))))
    return state % numpy.uint64(HELD_OUT) == 0


def _mixed(state: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    """One round of splitmix64 (Steele, Lea, Flood, OOPSLA 2014); wraps around by design."""
    with numpy.errstate(over="ignore"):
        state = state + numpy.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return state ^ (state >> numpy.uint64(31))


def _text_seed(text: str) -> int:
    """A number below 2³² for a column name, the same in every process.

    >>> _text_seed("m") == _text_seed("m") != _text_seed("n")
    True
    """
    import zlib

    return zlib.crc32(text.encode())


def shapes_split(series: Series) -> tuple[Indices, Indices]:
    """The used points to fit and to score, by the hash of their shape."""
    aside = held_out(series)
    used = series.flags == ""
    return numpy.flatnonzero(used & ~aside), numpy.flatnonzero(used & aside)


def extrapolate_split(series: Series) -> tuple[Indices, Indices]:
    """The short used points to fit, and the long ones to score."""
    used = series.flags == ""
    return numpy.flatnonzero(used & (series.tokens <= SHORT)), numpy.flatnonzero(used & (series.tokens >= LONG))


class Fold(NamedTuple):
    """A fit and what it is judged by: the points that it may see, and those that it is asked for.

    weights: what points of different lengths count in the fit (None: as always).
    """

    fitted: Callable[[Series], Indices]
    scored: Callable[[Series], Indices]
    weights: LengthWeights | None = None


LEFT_OUT = {"unseen-head-dim": "head_dim", "unseen-group": "group"}
"""The column whose values a split leaves out, one after the other."""
NAMES = ("shapes", "all", "extrapolate", "unseen-head-dim", "unseen-group", "unseen-gpu=NAME", "points=N")
ANCHORED = ("dsa-", "csa-", "sparse-attention", "indexer", "top-k")
"""Families that switch to another kernel in long contexts: `extrapolate` gives each instance a few long points."""
ANCHORS = 5


BEYOND = LengthWeights(balance=1.0, lean=0.5)
"""What points count where longer ones are asked: the nearer to them the more, and the anchors as octaves before.
Chosen on fits of up to 512 tokens judged from 1,024 to 2,048 (vLLM and TensorRT-LLM on H100): decode attention
misses 4.6 / 16 instead of 5.8 / 22, windows 5.8 / 14 instead of 7.4 / 18, prefill 5.2 / 15 instead of 5.8 / 16.
Products (SGLang on H100 and L40S, vLLM on B200, TensorRT-LLM on A100) miss 6.7 / 20 instead of 8.3 / 25."""


class Split(NamedTuple):
    """A parsed `--split`: its name as given, the system whose own calibration is not used, and points per kernel."""

    text: str
    kind: str
    system: str = ""
    points: int = 0


def parse_split(text: str) -> Split:
    """The split that a text means. Raises BadInput for one that is not known.

    >>> parse_split("points=20").points, parse_split("unseen-gpu=l40s:points=20")
    (20, Split(text='unseen-gpu=l40s:points=20', kind='unseen-gpu', system='l40s', points=20))
    """
    system, points = "", 0
    kind = ""
    for part in text.split(":"):
        name, _, value = part.partition("=")
        if name == "points" and value.isdigit() and int(value) > 0:
            kind, points = kind or "points", int(value)
        elif name == "unseen-gpu" and value and not kind:
            kind, system = name, value
        elif name in ("shapes", "all", "extrapolate", "unseen-head-dim", "unseen-group") and not value and not kind:
            kind = name
        else:
            raise unknown("split", text, NAMES)
    return Split(text, kind, system, points)


def folds(split: Split, series: Sequence[Series], hardware: Hardware, start: Calibration) -> list[Fold]:
    """The fits that a split asks for."""
    if split.kind == "shapes":
        return [Fold(lambda one: shapes_split(one)[0], lambda one: shapes_split(one)[1])]
    if split.kind == "extrapolate":
        return [_extrapolating(series, hardware, start)]
    if split.kind in LEFT_OUT:
        return _leaving_out(LEFT_OUT[split.kind], series)
    if split.points:
        from costmodel.fitting.planner import plan_library, planned_choice

        chosen = planned_choice(plan_library(series, hardware, split.points, lambda one: one.used, start))
        return [Fold(chosen, lambda one: numpy.setdiff1d(one.used, chosen(one)))]
    return [Fold(lambda one: NOTHING, lambda one: one.used)]


NOTHING: Indices = numpy.array([], dtype=numpy.intp)


def _extrapolating(series: Sequence[Series], hardware: Hardware, start: Calibration) -> Fold:
    from costmodel.fitting.planner import plan_library, planned_choice

    anchored = [one for one in series if one.family.startswith(ANCHORED)]
    anchors = planned_choice(plan_library(anchored, hardware, ANCHORS, lambda one: extrapolate_split(one)[1], start))

    def fitted(one: Series) -> Indices:
        short = extrapolate_split(one)[0]
        return numpy.union1d(short, anchors(one)) if one.family.startswith(ANCHORED) else short

    def scored(one: Series) -> Indices:
        long = extrapolate_split(one)[1]
        return numpy.setdiff1d(long, anchors(one)) if one.family.startswith(ANCHORED) else long

    return Fold(fitted, scored, BEYOND)


def _leaving_out(column: str, series: Sequence[Series]) -> list[Fold]:
    """One fold for each value of a column, fitted on all the others."""
    having = [one for one in series if column in one.shapes.columns]
    values = sorted({float(value) for one in having for value in one.shapes[column].unique()})

    def fold(value: float) -> Fold:
        def with_value(one: Series) -> Indices:
            return one.used[one.shapes[column].to_numpy()[one.used] == value] if column in one.shapes else NOTHING

        return Fold(lambda one: numpy.setdiff1d(one.used, with_value(one)), with_value)

    return [fold(value) for value in values]
