"""Parameters of kernels that the calibration in use does not hold: where else they are looked for, nearest first.

Where the calibration in use is a user's own, the shipped one of its device answers first, as it does where it is in use
itself: of the same library, else vLLM's. Own measurements of a few kernels hide none that ship. Then, for whichever:

1. Another library's kernel of the same kind on this device.
2. The relatives of the device, nearest first: the same library's kernel, then other libraries'.
3. What the measured kernels of the family have in common (`costmodel.siblings`), on the nearest device that has any.

A family takes no step that was found to be farther from measurements than the form's generic prior, which is what is
left. Every step is named (`Fit.origin`) and widens the interval by what it was found to miss (`costmodel.transfers`).
Files are read when a kernel first needs them.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from costmodel.calibration import Calibration, read_calibration
from costmodel.calibration_files import (
    DEFAULT_LIBRARY,
    is_shipped,
    relatives,
    shipped_files,
    transferred_from,
    user_files,
)
from costmodel.fit import Fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel
from costmodel.siblings import measured_kernels, pooled, widened
from costmodel.transfers import (
    LIBRARIES,
    RELATIVES,
    SIBLINGS,
    between_libraries,
    between_siblings,
    worse_than_prior,
)


class Source(NamedTuple):
    """A calibration that may hold what another one lacks."""

    device: Hardware
    library: str
    path: Path


class Elsewhere:
    """What other calibrations than the one in use say of a device's kernels."""

    def __init__(self, hardware: Hardware, library: str, place: str) -> None:
        """place: the file of the calibration in use."""
        self.hardware, self.library, self.place = hardware, library, place
        self._read: dict[Path, Calibration] = {}
        self._left_out: dict[str, frozenset[str]] = {}
        self._found: dict[tuple[str, str, str], Fit | None] = {}

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Every calibration of the device and its relatives, in the order in which they are asked."""
        return tuple(_sources(self.hardware, self.library))

    @cached_property
    def stand_in(self) -> Source | None:
        """The shipped calibration of the device that stands in first for a user's own; None beside a shipped one."""
        if is_shipped(self.place):
            return None
        files = shipped_files(self.hardware.name)
        name = self.library if self.library in files else DEFAULT_LIBRARY
        return Source(self.hardware, name, files[name]) if name in files else None

    @cached_property
    def of_libraries(self) -> dict[str, float]:
        """By family, what another library's kernel was found to miss."""
        return between_libraries()

    def fit(self, kernel: Kernel) -> Fit | None:
        """The parameters of a kernel that the calibration in use does not hold; None where nobody knows of any."""
        key = (kernel.family, kernel.instance, kernel.module)
        if key not in self._found:
            self._found[key] = self._looked_for(kernel)
        return self._found[key]

    def _looked_for(self, kernel: Kernel) -> Fit | None:
        if self.stand_in is not None and (found := self._of(self.stand_in, kernel)) is not None:
            return found
        if kernel.form.by_mechanism and not kernel.instance:
            # Norms and the like: of passes without a name only quantisations were measured, and in four of six tables
            # the prior is nearer to them, in the mean, than what was fitted on another device.
            return None
        return self._borrowed(kernel) or self._pooled(kernel.form)

    def _borrowed(self, kernel: Kernel) -> Fit | None:
        for source in self.sources:
            step = LIBRARIES if source.device.name == self.hardware.name else RELATIVES
            if str(source.path) == self.place or kernel.family in self._worse(step):
                continue
            if (found := self._of(source, kernel)) is not None:
                return found
        return None

    def _of(self, source: Source, kernel: Kernel) -> Fit | None:
        """What one calibration says of a kernel; None where it does not hold it."""
        calibration = self._calibration(source)
        fit = calibration.own_fit(kernel, strict=True)
        if fit is None or fit.flops is None:
            return None
        spreads = {} if source.library == self.library else self.of_libraries
        return widened(fit, spreads, str(calibration.id))._replace(transferred=True)

    def _worse(self, step: str) -> frozenset[str]:
        if step not in self._left_out:
            self._left_out[step] = worse_than_prior(step)
        return self._left_out[step]

    def _pooled(self, form: Form) -> Fit | None:
        """The empirical prior of a family of mechanisms, from the nearest device on which any of its kernels was
        measured."""
        if not form.by_mechanism or form.family in self._worse(SIBLINGS):
            return None
        for device, sources in groupby(self.sources, key=lambda source: source.device.name):
            kernels: dict[str, Fit] = {}
            for source in sources:
                for name, fit in measured_kernels(self._calibration(source), form).items():
                    kernels.setdefault(name, fit)
            if kernels:
                origin = f"{len(kernels)} other {form.family} kernel{'s' if len(kernels) > 1 else ''} of {device}"
                return widened(pooled(form, list(kernels.values())), between_siblings(), origin)
        return None

    def _calibration(self, source: Source) -> Calibration:
        if source.path not in self._read:
            own = source.device.name == self.hardware.name
            self._read[source.path] = (
                read_calibration(source.path) if own else transferred_from(source.path, source.device, self.hardware)
            )
        return self._read[source.path]


def _sources(hardware: Hardware, library: str) -> Iterator[Source]:
    """Every calibration of a device and its relatives: the nearest device first, on each the same library first, and of
    each library the user's own before the shipped one, which it may hold less than."""
    for device in (hardware, *relatives(hardware)):
        own, shipped = user_files(device.name), shipped_files(device.name)
        for name in dict.fromkeys((library, DEFAULT_LIBRARY, *sorted({*own, *shipped}))):
            for files in (own, shipped):
                if name in files:
                    yield Source(device, name, files[name])
