"""All kernels of one library on one device: fitted in an order in which each stands on the ones before.

Products and elementwise kernels come first, bare kernels next, whole modules last, since a module's time is a sum that
contains them. Instances of one kernel (head widths, dtypes) are first fitted together; each instance then starts from
what they share, so that a few points of its own are enough.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from costmodel.calibration import PRIOR, Calibration, from_fits
from costmodel.fit import Fit
from costmodel.fitting.entries import Entry, described, own_kernels
from costmodel.fitting.fit_order import fit_order, in_file_order, in_order
from costmodel.fitting.fitted_points import FEWEST_FITTED, MORE_FITTED, Choose, few, most_fitted, weights_of
from costmodel.fitting.inside_modules import BEGUN_FROM, nearest_name, same_code, within
from costmodel.fitting.least_squares import HOST, Block, Key, Points, block, fit, host_key, own_key, pooled_key
from costmodel.fitting.length_weights import LengthWeights
from costmodel.fitting.series import Series
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Work

SIBLING_FIRMNESS = 0.5
"""How much of the prior spread is left around what the instances of a kernel share."""


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
    source, module, library = same[0].source, same[0].module, same[0].library
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
        built = form.built.get(library, {})
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

    def alone(form: Form) -> bool:
        """Whether this module's own kernel was measured outside of modules, under the same name."""
        found = lookup(Kernel("", form, Work(), Work(), module=module))
        return form.family == same[0].family and found.flops is not None and not found.key[2] and found.kernel == source

    several = [few(points, max(FEWEST_FITTED, most // len(pools)), weights) for points in pools]
    # A relative may run another kernel under this name: the generic priors are tried as well.
    tried = []
    for relative in (start,) if start is PRIOR else (start, PRIOR):
        blocks = [
            within(
                block(form, (family, "", module), begin(form, relative), library=library),
                same[0].family,
                begun(relative),
                held(form),
                hardware.generation,
                alone(form),
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
        same_fit = len(own) == len(pools) and not any(key[1] for key in keys)  # what they share is all there is
        unasked = wanted is not None and instance not in wanted
        if same_fit or unasked or sum(len(points.rows) for points in own) < FEWEST_FITTED:
            continue
        apart = []
        for key in keys:
            shared = together.values[key[0], "", module]
            form = forms[key[0]]
            # What is tuned inside a module, or was measured alone, was fitted outside it before.
            relative = start if key[0] == same[0].family and not alone(form) else known
            own_block = block(form, key, _moved(relative, form, key, shared), SIBLING_FIRMNESS, library)
            apart.append(within(own_block, same[0].family, begun(start), held(form), hardware.generation, alone(form)))
        fitted = fit(own, hardware, [*apart, *hosts(own)], lookup, weights=weights)
        if same[0].family in MORE_FITTED and not module:
            # Formats of a product run other kernels under one name: the generic priors are tried as well.
            generic = [block(forms[key[0]], key, forms[key[0]].built.get(library), library=library) for key in keys]
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


def hosts(pools: Sequence[Points]) -> list[Block]:
    """A block for the host time of each eager kernel."""
    keys = dict.fromkeys(host_key(points.series) for points in pools if points.series.eager)
    return [Block(key, (HOST,), {HOST.name: HOST.prior}, {HOST.name: HOST.spread}) for key in keys]
