"""All kernels of one library on one device: fitted in an order in which each stands on the ones before.

Products and elementwise kernels come first, bare kernels next, whole modules last, since a module's time is a sum that
contains them. Instances of one kernel (head widths, dtypes) are first fitted together; each instance then starts from
what they share, so that a few points of its own are enough.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy

from costmodel.calibration import PRIOR, Calibration, from_fits
from costmodel.fit import Fit
from costmodel.fitting.inside_modules import BEGUN_FROM, compiled_name, nearest_name, same_code, within
from costmodel.fitting.least_squares import (
    HOST,
    HOST_OVERLAP,
    Block,
    Fitted,
    Key,
    Points,
    block,
    fit,
    host_key,
    own_key,
    pooled_key,
)
from costmodel.fitting.length_weights import ALIKE, LengthWeights, counted, drawn
from costmodel.fitting.series import Floats, Indices, Series, spread_out
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Work
from costmodel.timing import Z80, expected, spread

MOST_FITTED = 500
"""Points of one kernel instance that a fit looks at; more change nothing but the time that it takes."""
MORE_FITTED = {"gemm": 3500}
"""Families that gain from more: a product chooses among tiles and splits, each of which some points must decide.
Points inside the fitted four fifths that no fit saw, of the kernels missed most: 2,000 instead of 1,000 take their 90th
percentile from 17.8 to 17.4, 3,500 by another 0.25.
"""
FEWEST_FITTED = 5
"""With fewer points of its own an instance keeps what it shares with its siblings."""
SIBLING_FIRMNESS = 0.5
"""How much of the prior spread is left around what the instances of a kernel share."""
FIRST = ("gemm", "elementwise")
LONG = ("dsa-", "csa-", "hca-", "msa-", "sparse-attention", "indexer", "top-k")
"""Families whose tables reach contexts of a million tokens, with few points there."""
BALANCE = 0.5
"""How far octaves of length count alike in these: between every point (0) and every octave (1). Chosen by points inside
the fitted four fifths: 0.5 costs the short contexts nothing, and the long ones gain."""
LARGEST_SPREAD = 3.0
MOST_LEVERAGE = 0.9
"""A point is not taken to have decided more of what is predicted there, or nothing would be left to judge by."""


class Entry(NamedTuple):
    """The fit of one kernel instance, with what a calibration file says of it.

    measured: the instance of the series that it was fitted to, which for a kernel inside a module is the module's;
    None where several share the fit, or one has a fit of its own beside it.
    """

    fit: Fit
    names: tuple[str, ...]
    covariance: Floats
    flagged: Mapping[str, int]
    measured: str | None = None


Choose = Callable[[Series], Indices]
"""The points of a series that a fit may see."""


def most_fitted(family: str) -> int:
    """Points of one kernel instance of a family that a fit looks at."""
    return MORE_FITTED.get(family, MOST_FITTED)


def fit_library(
    series: Sequence[Series],
    hardware: Hardware,
    choose: Choose,
    start: Calibration = PRIOR,
    seed: int = 0,
    asked: Sequence[Series] | None = None,
    weights: LengthWeights | None = None,
) -> list[Entry]:
    """Fit every kernel that a library's series hold; start is what is known before (a relative's calibration).

    asked: the series that will be priced (None: all). Kernels and instances beside them are not fitted for themselves.
    weights: what points of different lengths count, of all but passes (None: `weights_of` their family).
    """
    found: dict[int, list[Entry]] = {}
    wanted = {(one.family, one.source, one.module, one.instance) for one in (series if asked is None else asked)}
    groups = in_order(series)
    for index in fit_order(groups):
        same = groups[index]
        first = same[0]
        instances = {key[3] for key in wanted if key[:3] == (first.family, first.source, first.module)}
        if instances or any(one.mechanism for one in series):
            known = calibration_of(in_file_order(found))
            own = None if asked is None else instances
            found[index] = fit_kernel(
                same, hardware, choose, known, start, seed, own, None if first.family == "elementwise" else weights
            )
    return in_file_order(found)


def calibration_of(entries: Iterable[Entry]) -> Calibration:
    """The entries as a calibration that can price kernels."""
    return from_fits(entry.fit for entry in entries)


def in_order(series: Iterable[Series]) -> list[list[Series]]:
    """Series of the same family and kernel together: the first families, bare kernels, modules; large before small."""
    groups: dict[tuple[str, str, str], list[Series]] = {}
    for one in series:
        groups.setdefault((one.family, one.source, one.module), []).append(one)

    def rank(same: list[Series]) -> tuple[int, str, int, int]:
        family = same[0].family
        stage = 0 if family in FIRST else 2 if same[0].mechanism else 1
        return stage, family, min(one.rank for one in same), -sum(len(one.used) for one in same)

    return sorted(groups.values(), key=rank)


def fit_order(groups: Sequence[Sequence[Series]]) -> list[int]:
    """The order in which the groups of a file are fitted: of a compiled kernel in a module those first that run fewer
    kinds of kernels, and of these the ones of shorter contexts, as what they show is part of the others."""
    first: dict[tuple[str, str], int] = {}

    def code(index: int) -> tuple[str, str]:
        one = groups[index][0]
        return one.module, compiled_name(one.source) if one.module else str(index)

    for index in range(len(groups)):
        first.setdefault(code(index), index)

    def rank(index: int) -> tuple[int, int, float, int]:
        used = [one for one in groups[index] if len(one.used)]
        if not groups[index][0].module or not used:
            return first[code(index)], 0, 0.0, index
        kinds = {family for one in used for family in one.families}
        longest = max(float(numpy.max(one.tokens[one.used])) for one in used)
        return first[code(index)], len(kinds), float(numpy.round(numpy.log2(longest))), index

    return sorted(range(len(groups)), key=rank)


T = TypeVar("T")


def in_file_order(found: Mapping[int, Sequence[T]]) -> list[T]:
    """What was found of each group, in the order of the groups."""
    return [one for index in sorted(found) for one in found[index]]


def weights_of(family: str) -> LengthWeights:
    """What points of different lengths count in a fit of a family."""
    return LengthWeights(BALANCE) if family.startswith(LONG) else ALIKE


def few(points: Points, most: int, weights: LengthWeights, seed: int = 0) -> Points:
    """At most so many of some points."""
    return points._replace(rows=drawn(points.rows, points.tokens, most, weights, seed))


def fit_kernel(
    same: Sequence[Series],
    hardware: Hardware,
    choose: Choose,
    known: Calibration = PRIOR,
    start: Calibration = PRIOR,
    seed: int = 0,
    wanted: Collection[str] | None = None,
    weights: LengthWeights | None = None,
) -> list[Entry]:
    """The entries of one kernel: each of its instances, and what they share for instances that were not measured.

    wanted: the instances that are fitted for themselves (None: all). weights: what points of different lengths count.
    """
    weights = weights_of(same[0].family) if weights is None else weights
    most = most_fitted(same[0].family)
    every = [few(Points(one, choose(one)), most, weights, seed) for one in same]
    pools = [points for points in every if len(points.rows)]
    if not pools:
        return []
    source, module = same[0].source, same[0].module
    kin = nearest_name(source, [fit.kernel for fit in known.read_.values() if module and fit.key[2] == module])
    known = known._replace(source=kin or source)

    def lookup(kernel: Kernel) -> Fit:
        return known.fit(kernel._replace(module=module))

    inside = [kernel for points in pools for kernel in own_kernels(points)]
    forms = {kernel.family: kernel.form for kernel in inside}

    def elsewhere(form: Form) -> Fit | None:
        """What the module that this one begins from found of a kernel."""
        other = BEGUN_FROM.get(module)
        if other is None:
            return None
        family = other if form.family == module else form.family
        found = known.fit(Kernel("", form._replace(family=family), Work(), Work(), module=other))
        return found if found.key[2] == other else None

    def begin(form: Form, relative: Calibration) -> Mapping[str, float]:
        instances = {kernel.instance for kernel in inside if kernel.family == form.family} if module else set()
        only = instances.pop() if len(instances) == 1 else ""
        kernel = Kernel("", form, Work(), Work(), instance=only, module=module)
        ended = elsewhere(form) if relative is PRIOR else None
        if ended is not None:
            return ended.values
        inherited = lookup(kernel)
        found = (relative.fit(kernel) if inherited.flops is None else inherited).values
        built = form.built.get(same[0].library, {})
        if other_design(form, found, built):
            found = form.priors()
        return {**found, **built}

    def begun(relative: Calibration) -> bool:
        own = forms.get(same[0].family)
        return relative is PRIOR and own is not None and elsewhere(own) is not None

    def held(form: Form) -> bool:
        """Whether another kernel of this module showed what the same compiled kernel takes inside it."""
        found = lookup(Kernel("", form, Work(), Work(), module=module))
        return kin is not None and found.key[2] == module and same_code(form.family, module, source, kin)

    several = [few(points, max(FEWEST_FITTED, most // len(pools)), weights) for points in pools]
    # A relative may run another kernel under this name: the generic priors are tried as well.
    tried = []
    for relative in (start,) if start is PRIOR else (start, PRIOR):
        blocks = [
            within(
                block(form, (family, "", module), begin(form, relative)), same[0].family, begun(relative), held(form)
            )
            for family, form in sorted(forms.items())
        ]
        tried.append(
            (fit(several, hardware, [*blocks, *hosts(pools)], lookup, pooled_key, weights=weights), blocks, relative)
        )
    together, blocks, start = min(tried, key=lambda found: found[0].objective)
    entries = []
    for instance in dict.fromkeys(points.series.instance for points in pools):
        own = [points for points in pools if points.series.instance == instance]
        keys = dict.fromkeys(own_key(points.series, kernel) for points in own for kernel in own_kernels(points))
        alone = len(own) == len(pools) and not any(key[1] for key in keys)  # what they share is all there is
        unasked = wanted is not None and instance not in wanted
        if alone or unasked or sum(len(points.rows) for points in own) < FEWEST_FITTED:
            continue
        apart = []
        for key in keys:
            shared = together.values[key[0], "", module]
            # What is tuned inside a module was fitted outside it before.
            relative = start if key[0] == same[0].family else known
            moved = _moved(relative, forms[key[0]], key, shared)
            own_block = block(forms[key[0]], key, moved, SIBLING_FIRMNESS)
            apart.append(within(own_block, same[0].family, begun(start), held(forms[key[0]])))
        fitted = fit(own, hardware, [*apart, *hosts(own)], lookup, weights=weights)
        if same[0].family in MORE_FITTED and not module:
            # Formats of a product run other kernels under one name: the generic priors are tried as well.
            generic = [block(forms[key[0]], key, forms[key[0]].built.get(same[0].library)) for key in keys]
            other = fit(own, hardware, [*generic, *hosts(own)], lookup, weights=weights)
            fitted, apart = min((fitted, apart), (other, generic), key=lambda one: one[0].objective)
        found = described(own, hardware, apart, fitted, known, weights)
        entries += [entry._replace(measured=instance) for entry in found]
    instances = {points.series.instance for points in pools}
    only = instances.pop() if len(instances) == 1 and not entries else None
    common = described(several, hardware, blocks, together, known, weights)
    return [*entries, *(entry._replace(measured=only) for entry in common)]


def other_design(form: Form, values: Mapping[str, float], built: Mapping[str, float]) -> bool:
    """Whether parameters make a choice that no fit of this form tries and that the library was not built with: then
    they are those of a kernel of other code, which says nothing about this one."""
    return any(
        values.get(one.name, one.prior)
        not in {one.prior, built.get(one.name), *(other.get(one.name) for other in form.starts)}
        for one in form.parameters
        if not one.spread
    )


def _moved(start: Calibration, form: Form, key: Key, shared: Mapping[str, float]) -> Mapping[str, float]:
    """What the instances share, moved by as much as a relative's instance differs from what its instances share."""
    kernel = Kernel("", form, Work(), Work(), instance=key[1], module=key[2])
    own, common = start.fit(kernel), start.fit(kernel._replace(instance=""))
    if own.key[1] != key[1]:
        return shared
    # A relative's kernel of this name may be of a form that lacks some of this one's parameters.
    both = own.values.keys() & common.values.keys()
    return {
        name: value * own.values[name] / common.values[name] if name in both else value
        for name, value in shared.items()
    }


def own_kernels(points: Points) -> list[Kernel]:
    """The kernels of a series whose parameters it decides: of its own family, and of those it names."""
    series = points.series
    return [
        kernel
        for part in series.parts(points.rows)
        for kernel in part.kernels
        if kernel.family in (series.family, *series.tuned)
    ]


def hosts(pools: Sequence[Points]) -> list[Block]:
    """A block for the host time of each eager kernel."""
    keys = dict.fromkeys(host_key(points.series) for points in pools if points.series.eager)
    return [Block(key, (HOST,), {HOST.name: HOST.prior}, {HOST.name: HOST.spread}) for key in keys]


def described(
    pools: Sequence[Points],
    hardware: Hardware,
    blocks: Sequence[Block],
    fitted: Fitted,
    known: Calibration,
    weights: LengthWeights = ALIKE,
) -> list[Entry]:
    """The fitted blocks as entries, with a model error that makes the 80 % interval hold 80 % of the points, which
    count as they did in the fit."""
    count = sum(len(points.rows) for points in pools)
    flagged = sum((points.series.left_out for points in pools), Counter[str]())
    host_s = next((fitted.values[key]["host_s"] for key in fitted.values if key[0] == "host"), 0.0)
    kernels = [kernel for points in pools for kernel in own_kernels(points)]
    entries = []
    for one in blocks:
        names = tuple(parameter.name for parameter in one.parameters)
        covariance = fitted.covariance[one.key]
        flops, hbm_bytes, lengths = _ranges([kernel for kernel in kernels if kernel.family == one.key[0]])
        found = Fit(
            key=one.key,
            values=fitted.values[one.key],
            columns=columns_of(covariance, names),
            bounds={parameter.name: (parameter.low, parameter.high) for parameter in one.parameters},
            model_spread=0.0,
            flops=flops,
            hbm_bytes=hbm_bytes,
            lengths=lengths,
            points=count,
            kernel=pools[0].series.source,
            host_s=host_s,
            occupancy=pools[0].series.occupancy if one.key[0] == pools[0].series.family else 0,
        )
        entries.append(Entry(found, names, covariance, flagged))
    # What the data decided was not free: the residuals of new points are larger than those of the fitted ones, most of
    # all where a few points far from all others decided alone.
    optimism = (count / max(count - fitted.effective, 0.25 * count)) ** 0.5
    alone = numpy.maximum(optimism, 1.0 / (1.0 - numpy.minimum(fitted.leverage, MOST_LEVERAGE)))
    # Beyond the lengths seen, points near them are not taken for more regular than all others.
    ways = {weights, ALIKE} if weights.lean else {weights}
    error = max(model_error(pools, hardware, entries, known, alone, way) for way in ways)
    return [entry._replace(fit=entry.fit._replace(model_spread=error)) for entry in entries]


def model_error(
    pools: Sequence[Points],
    hardware: Hardware,
    entries: Sequence[Entry],
    known: Calibration,
    optimism: Floats,
    weights: LengthWeights = ALIKE,
) -> float:
    """The common model error of some entries with which the interval holds 80 % of the residuals.

    optimism: by how much larger the residual of each point would be had it not been fitted. weights: what points of
    different lengths count.
    """
    fits = [entry.fit for entry in entries]
    # What a model error adds to the spread does not depend on how well the parameters are known.
    firm = [fit._replace(columns=()) for fit in fits]
    around = from_fits((fit._replace(columns=()) for fit in known.read_.values()), library=known.library)
    gaps, without, shares = [], [], []
    seen = [few(points, MOST_FITTED // 4, weights) for points in pools]
    ends = numpy.cumsum([len(points.rows) for points in pools])[:-1]
    for whole, points, factors in zip(pools, seen, numpy.split(optimism, ends), strict=True):
        base = predicted(points, hardware, fits, known)
        none, unit = (
            predicted(points, hardware, [fit._replace(model_spread=error) for fit in firm], around).spread
            for error in (0.0, 1.0)
        )
        gaps.append(numpy.abs(numpy.log(points.seconds / base.seconds)) * factors[numpy.isin(whole.rows, points.rows)])
        without.append(base.spread)
        shares.append(numpy.sqrt(numpy.maximum(unit**2 - none**2, 1e-12)))
    gap, rest, share = numpy.concatenate(gaps), numpy.concatenate(without), numpy.concatenate(shares)
    # Of n residuals, the interval that holds the next point in 4 of 5 cases holds ⌈0.8·(n + 1)⌉; where they count
    # differently, 0.8 of what they and the next one count together, which is one of the longest where those are asked:
    # weighted conformal prediction, Tibshirani et al., NeurIPS 2019, lemma 3 (arXiv:1904.06019).
    counts = counted(numpy.concatenate([points.tokens for points in seen]), weights)
    coming = float(counts.max()) if weights.lean else 1.0
    wanted = min(1.0, 0.8 * (1.0 + coming / len(gap)))
    low, high = 0.0, LARGEST_SPREAD
    for _ in range(40):
        middle = 0.5 * (low + high)
        if numpy.average(gap <= Z80 * numpy.hypot(rest, share * middle), weights=counts) < wanted - 1e-9:
            low = middle
        else:
            high = middle
    return high


class Predicted(NamedTuple):
    """Expected seconds of points, and the standard deviation of their logarithm."""

    seconds: Floats
    spread: Floats


def predicted(
    points: Points, hardware: Hardware, fits: Sequence[Fit], known: Calibration = PRIOR, intervals: bool = True
) -> Predicted:
    """What fits (and, for the kernels that they lack, a calibration) say of measured points."""
    both = from_fits([*fits, *known.read_.values()], library=known.library)
    return priced(points, hardware, both, intervals)


def priced(points: Points, hardware: Hardware, calibration: Calibration, intervals: bool = True) -> Predicted:
    """What a calibration says of measured points, host time included where it was seen."""
    series = points.series
    seconds, deviation = numpy.zeros(len(points.rows)), numpy.zeros(len(points.rows))
    calibration = calibration._replace(source=series.source)
    for part in series.parts(points.rows):
        size = len(part.rows)
        kernels = [kernel._replace(module=series.module) for kernel in part.kernels]
        with numpy.errstate(all="ignore"):
            times = expected(kernels, hardware, calibration)
            total = spread_out(sum(entry.time_s for entry in times), size)
            if intervals:
                deviation[part.rows] = spread_out(spread(times, hardware), size)
        host = max((entry.fit.host_s for entry in times), default=0.0) if series.eager else 0.0
        seconds[part.rows] = (total**HOST_OVERLAP + host**HOST_OVERLAP) ** (1.0 / HOST_OVERLAP)
    return Predicted(seconds, deviation)


def columns_of(covariance: Floats, names: Sequence[str]) -> tuple[dict[str, float], ...]:
    """Independent steps of one standard deviation: the columns of the covariance's factor.

    What cannot vary, such as the number of a rule, stands in none: even a rounding error would make it another.
    """
    values, vectors = numpy.linalg.eigh(covariance)
    steps = vectors * numpy.sqrt(numpy.maximum(values, 0.0))
    varied = [row for row in range(len(names)) if covariance[row, row] > 0.0]
    return tuple(
        {names[row]: float(steps[row, column]) for row in varied}
        for column in range(len(names))
        if values[column] > 0.0
    )


Range = tuple[float, float]


def _ranges(kernels: Sequence[Kernel]) -> tuple[Range, Range, Range]:
    """Smallest and largest FLOPs, bytes and lengths of some kernels."""
    if not kernels:
        # None of the points runs it: wherever it is priced, that is outside what was measured.
        return (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    counted = zip(*((kernel.ideal.flops, kernel.ideal.hbm_bytes, kernel.length) for kernel in kernels), strict=True)
    flops, hbm_bytes, lengths = (
        (float(min(map(numpy.min, values))), float(max(map(numpy.max, values)))) for values in counted
    )
    return flops, hbm_bytes, lengths
