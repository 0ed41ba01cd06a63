"""An empirical prior: what the measured kernels of a family say of one that nobody has measured.

A family's kernels share one time form, and on one device much of its parameters: how long a launch takes, how fast the
steps of a chain follow one another, what share of a peak a compiler's products reach. Their logarithms are pooled over
the kernels, together with the form's own prior as one more guess, each weighted by how much it scatters. The scatter
between the kernels becomes the interval; what it misses of a kernel that is left out is measured
(`costmodel.transfers`).
"""

import math
from collections.abc import Mapping, Sequence

from costmodel.calibration import Calibration
from costmodel.fit import Fit, prior_fit
from costmodel.kernels.base import Form


def measured_kernels(calibration: Calibration, form: Form, without: str | None = None) -> dict[str, Fit]:
    """What the instances of each measured kernel of a family share, by mechanism and name without the version.

    Only kernels of the design that a new one would have (`Form.design`). without: a mechanism whose kernels are left
    out, as if they had not been measured.
    """
    found: dict[str, Fit] = {}
    for document in calibration.entries.get(form.family, ()):
        mechanism = calibration.mechanism_of(document)
        if document.key[1] or mechanism == without or (form.by_mechanism and not mechanism):
            continue
        fit = calibration.read(document, form)
        if form.design is None or form.design(fit.values):
            found.setdefault(f"{mechanism}/{document.kernel.partition(' ')[0]}", fit)
    return found


def pooled(form: Form, fits: Sequence[Fit]) -> Fit:
    """The empirical prior that measured kernels of a family make up.

    The logarithm of each parameter: the mean of theirs with variance v/n, and of the prior with its own; columns: the
    deviations of the kernels from their mean, so that parameters that go together stay together. Of one kernel the
    scatter is not known, and the prior's is taken.
    """
    # Few predictions come here, and every other one would wait for the module to load.
    from statistics import mean, median

    prior, n = prior_fit(form), len(fits)
    values: dict[str, float] = {}
    columns: list[dict[str, float]] = [{} for _ in fits] if n > 1 else []
    for parameter in form.parameters:
        logs = [math.log(fit.values[parameter.name]) for fit in fits]
        middle = mean(logs)
        known = parameter.spread**2
        scatter = sum((log - middle) ** 2 for log in logs) / (n - 1) if n > 1 else known
        weight = known / (known + scatter / n) if known else 0.0  # a choice between designs stays the form's own
        value = math.exp(weight * middle + (1.0 - weight) * math.log(parameter.prior))
        low, high = prior.bounds[parameter.name]
        values[parameter.name] = min(max(value, low), high)
        if n == 1:
            columns.append({parameter.name: parameter.spread * math.sqrt(0.5)})
        for column, log in zip(columns, logs, strict=False) if n > 1 else ():
            column[parameter.name] = (log - middle) / math.sqrt(n - 1)
    return prior._replace(
        values=values,
        columns=tuple(columns),
        model_spread=median(fit.model_spread for fit in fits),
        missed=median(fit.missed for fit in fits),
        points=sum(fit.points for fit in fits),
    )


def widened(fit: Fit, spreads: Mapping[str, float], origin: str) -> Fit:
    """The fit with what such a step was found to miss of its family, and where it comes from."""
    family = fit.key[0]
    missed = spreads.get(family, spreads.get("", 0.0))
    return fit._replace(missed=math.hypot(fit.missed, missed), origin=origin)
