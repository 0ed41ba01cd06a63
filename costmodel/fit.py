"""What is known of a kernel's parameters on a device: values, how they vary together, where they were measured."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from costmodel.algebra import Quantity, log2, maximum, power, root
from costmodel.kernels.base import Form, Kernel

BASES = ("table", "fitted", "extrapolated", "transferred", "prior")
"""From strongest to weakest."""

TRANSFER_SPREAD = 1.5
"""How much wider the spread of the parameters of a relative of the same generation is taken than their own: an
assumption, as no two devices of one generation were measured. Beyond the generation see `transfers`."""

EXTRAPOLATION_SPREADS: Mapping[str, float] = MappingProxyType({"": 0.5, "msa-prefill": 1.0, "msa-decode": 1.0})
"""How much wider the model error is taken for each octave outside the measured range, by family or module.

Fits of up to 512 tokens, on H100, were asked for 1,024 to 2,048. With a half, 58 % of MSA's prefill lie in
their intervals, with 1 80 %; of all other families without long points 80 to 98 % do with a half. None is taken for
less, as what is asked may lie further out. MSA's decode is taken as its prefill: up to 16 blocks of 128 tokens nothing
is selected, so that short points of either show nothing of what a selection costs."""

ROUNDED = 1e-3
"""Octaves that the digits of a file may put a measured point outside its range."""


class Fit(NamedTuple):
    """Parameters of one kernel instance: values, and columns of steps of one standard deviation.

    key is (family, instance, module). columns holds, for each independent direction, the change of the logarithm
    of every parameter; for priors each direction is one parameter. flops, hbm_bytes, lengths: smallest and largest of
    the measured kernels (`Kernel.length`; None in files that do not say), None for priors. host_s: seconds of host time
    that an eager benchmark of the kernel could not hide, 0 where launches were captured; no part of the device time.
    occupancy: thread blocks of the measured kernel that share a unit, as its compiler says; 0: what the grid says.
    origin: where the parameters come from that the calibration in use does not hold; "" for its own.
    missed: what a step from another device, library or kernel was found to miss of ln(time), wherever a kernel lies.
    """

    key: tuple[str, str, str]
    values: Mapping[str, float]
    columns: tuple[Mapping[str, float], ...]
    bounds: Mapping[str, tuple[float, float]]
    model_spread: float
    transferred: bool = False
    flops: tuple[float, float] | None = None
    hbm_bytes: tuple[float, float] | None = None
    lengths: tuple[float, float] | None = None
    points: int = 0
    kernel: str = ""
    host_s: float = 0.0
    occupancy: int = 0
    origin: str = ""
    missed: float = 0.0

    def octaves_outside(self, kernel: Kernel) -> Any:
        """How far the kernel's FLOPs, bytes or length, whichever is farthest, lie from the measured ones, in powers of
        two; 0 among them."""
        assert self.flops is not None
        assert self.hbm_bytes is not None
        given = [(kernel.ideal.flops, self.flops), (kernel.ideal.hbm_bytes, self.hbm_bytes)]
        if self.lengths is not None:
            given.append((kernel.length, self.lengths))
        far: Any = 0.0
        for value, (least, most) in given:
            # Below one of its kind is as one: a kernel without FLOPs is no farther from few than from none.
            far = maximum(far, maximum(log2(maximum(value, 1.0) / max(most, 1.0)), 0.0))
            far = maximum(far, maximum(log2(max(least, 1.0) / maximum(value, 1.0)), 0.0))
        return far

    def basis(self, kernel: Kernel) -> str:
        """How firm the parameters are for this kernel."""
        if self.flops is None:
            return "prior"
        if self.transferred:
            return "transferred"
        return "fitted" if self.octaves_outside(kernel) <= ROUNDED else "extrapolated"

    def spread_for(self, kernel: Kernel) -> Quantity:
        """The model error, wider outside the measured range, and beside it what the step to this kernel misses."""
        own: Quantity = self.model_spread
        if self.flops is not None:
            family, _, module = self.key
            growth = EXTRAPOLATION_SPREADS.get(module or family, EXTRAPOLATION_SPREADS[""])
            own = own * (1.0 + growth * self.octaves_outside(kernel))
        return root(power(own, 2.0) + power(self.missed, 2.0), 2.0) if self.missed else own

    def for_form(self, form: Form) -> "Fit":
        """With priors for what this form declares and the one that was fitted, another of its family, does not."""
        missing = [parameter for parameter in form.parameters if parameter.name not in self.values]
        if not missing:
            return self
        return self._replace(
            values={**self.values, **{parameter.name: parameter.prior for parameter in missing}},
            bounds={**self.bounds, **{parameter.name: (parameter.low, parameter.high) for parameter in missing}},
        )

    def for_another(self) -> "Fit":
        """What these parameters are worth for a kernel that was not measured: a processor's are measured in fp32 and
        one head width, and stand in for all others; a family's for one that is like it."""
        spread, missed = self.model_spread * TRANSFER_SPREAD, self.missed * TRANSFER_SPREAD
        return self._replace(transferred=True, model_spread=spread, missed=missed)

    def shifted(self, column: Mapping[str, float], sign: float) -> dict[str, float]:
        """The values moved by one standard deviation along a direction, inside their bounds."""
        moved = dict(self.values)
        for name, change in column.items():
            low, high = self.bounds[name]
            moved[name] = min(max(moved[name] * math.exp(sign * change), low), high)
        return moved

    def straight_side(self, column: Mapping[str, float]) -> int:
        """Of a short direction, the side (1 or -1) on which no parameter passes its bounds; 0: both must be asked."""
        if any(abs(change) > SHORT_STEP for change in column.values()):
            return 0
        for side in (1, -1):
            moved = ((name, self.values[name] * math.exp(side * change)) for name, change in column.items())
            if all(self.bounds[name][0] <= value <= self.bounds[name][1] for name, value in moved):
                return side
        return 0


SHORT_STEP = 0.1
"""A step that moves no parameter by more is so nearly straight that one side tells what both do."""


def prior_fit(form: Form) -> Fit:
    """What is known of a family before any measurement."""
    return Fit(
        key=(form.family, "", ""),
        values=form.priors(),
        columns=tuple({parameter.name: parameter.spread} for parameter in form.parameters),
        bounds={parameter.name: (parameter.low, parameter.high) for parameter in form.parameters},
        model_spread=form.model_spread,
    )
