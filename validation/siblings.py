"""How far a device's other libraries and other kernels are off: `python -m validation.siblings DIR`.

Every measured kernel of the calibrated devices is predicted as if it were not: from another library's calibration of
the same device, from the same library's of the nearest relative, from the generic prior, and, in families whose kernels
are one mechanism's each, from what the other mechanisms' kernels have in common. For each family the spread is found
with which the 80 % interval would have held 80 % of the points, and written beside the shipped calibrations with the
families of which the prior came nearer; there `costmodel.transfers` reads them. The errors are printed on shapes that
no fit saw; how siblings are pooled, and what is written, was chosen by the others.

Kernels of another design than a new one would have (`Form.design`) are neither pooled nor judged; they are counted.
"""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import yaml

from costmodel.calibration import PRIOR as GENERIC
from costmodel.calibration import Calibration, from_fits, read_calibration
from costmodel.calibration_files import calibration_files, relatives, transferred_from
from costmodel.errors import BadInput
from costmodel.fallback import Elsewhere
from costmodel.fit import Fit
from costmodel.fitting.calibration_file import rounded
from costmodel.fitting.entries import own_kernels
from costmodel.fitting.least_squares import Points
from costmodel.fitting.length_weights import thinned
from costmodel.fitting.pricing import priced
from costmodel.fitting.series import Floats, Indices, Series
from costmodel.fitting.silicon import TableFile, hardware_of, read_table, tables_of
from costmodel.fitting.splits import shapes_split
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.loading import write_atomically
from costmodel.siblings import measured_kernels, pooled
from costmodel.timing import Z80
from costmodel.transfers import LIBRARIES, RELATIVES, SIBLINGS, siblings_path
from validation.transfers import FEWEST, MOST, Gaps, known, missing_spread

PRIOR, OTHER_DESIGN = "prior", "another design"


class Judged(NamedTuple):
    """Gaps of one kernel as a step predicts them, on the points that fits saw and on those that they did not."""

    step: str
    kernel: str
    seen: Gaps
    unseen: Gaps


def judged_file(file: TableFile) -> list[Judged]:
    """The kernels of one table, each predicted as if it had not been measured.

    Nothing of a table that belongs to every library, such as NCCL's.
    """
    hardware = hardware_of(file)
    calibrations = calibrations_of(file.device)
    found: list[Judged] = []
    if file.library not in calibrations:
        return found
    for one in read_table(file, hardware):
        if not len(one.used):
            continue
        point = Points(one, one.used[:1])
        for library, calibration in calibrations.items():
            if library != file.library and known(point, calibration):
                found.append(_judged(LIBRARIES, one, library, hardware, calibration))
        near = next((each for each in relatives_of(file, hardware) if known(point, each)), None)
        if near is not None:
            found.append(_judged(RELATIVES, one, near.hardware, hardware, near))
        found.append(_judged(PRIOR, one, "", hardware, GENERIC))
        found += _from_siblings(one, hardware, calibrations)
    return [each for each in found if len(each.seen.gaps) + len(each.unseen.gaps)]


class Nowhere(Elsewhere):
    """No other calibration to ask: what is not a kernel's own is not taken for it, and the prior answers."""

    def __init__(self) -> None:
        """Nothing to read."""

    def fit(self, kernel: Kernel) -> Fit | None:
        """Nothing."""
        return None


@functools.cache
def calibrations_of(device: str) -> dict[str, Calibration]:
    """Library → calibration of a device."""
    files = calibration_files(device)
    return {library: read_calibration(path)._replace(beyond=Nowhere()) for library, path in files.items()}


RELATIVE: dict[tuple[str, str], tuple[Calibration, ...]] = {}


def relatives_of(file: TableFile, hardware: Hardware) -> tuple[Calibration, ...]:
    """The calibrations of the same library on the relatives of a device, nearest first."""
    key = (hardware.name, file.library)
    if key not in RELATIVE:
        RELATIVE[key] = tuple(
            transferred_from(calibration_files(relative.name)[file.library], relative, hardware)._replace(
                beyond=Nowhere()
            )
            for relative in relatives(hardware)
            if file.library in calibration_files(relative.name)
        )
    return RELATIVE[key]


def _from_siblings(one: Series, hardware: Hardware, calibrations: Mapping[str, Calibration]) -> Iterator[Judged]:
    """One kernel from the kernels of other mechanisms."""
    kernel = next((each for each in own_kernels(Points(one, one.used[:1])) if each.family == one.family), None)
    if kernel is None or not kernel.form.by_mechanism:
        return
    form = kernel.form
    mechanism = one.mechanism or one.instance.partition("-")[0]
    kernels: dict[str, Fit] = {}
    for library in dict.fromkeys((one.library, "vllm", *sorted(calibrations))):
        kernels = {**measured_kernels(calibrations[library], form, without=mechanism), **kernels}
    if not kernels:
        return
    own = calibrations[one.library].own_fit(kernel._replace(module=one.module))
    step = SIBLINGS if form.design is None or own is None or form.design(own.values) else OTHER_DESIGN
    fit = pooled(form, list(kernels.values()))._replace(key=(form.family, "", one.module))
    yield _judged(step, one, "", hardware, from_fits([fit]))


def _judged(step: str, one: Series, source: str, hardware: Hardware, calibration: Calibration) -> Judged:
    def gaps(rows: Indices) -> Gaps:
        chosen = thinned(rows, MOST)
        said = priced(Points(one, chosen), hardware, calibration)
        weights = numpy.full(len(chosen), len(rows) / max(len(chosen), 1))
        gap = numpy.abs(numpy.log(said.seconds / one.seconds[chosen]))
        return Gaps(hardware.name, source, one.family, gap, said.spread, weights)

    seen, unseen = shapes_split(one)
    return Judged(step, f"{one.library}/{one.kernel}", gaps(seen), gaps(unseen))


def spreads_of(found: Sequence[Judged], step: str) -> dict[str, dict[str, float]]:
    """Device → family → spread that a step misses, of families with FEWEST points; every kernel counts alike."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for each in found:
        if each.step == step:
            groups.setdefault((each.seen.target, each.seen.family), []).append(each)
    spreads: dict[str, dict[str, float]] = {}
    for (device, family), same in sorted(groups.items()):
        if sum(len(each.seen.gaps) for each in same) >= FEWEST:
            spread = missing_spread(*_columns([each.seen for each in same], [each.kernel for each in same]))
            spreads.setdefault(device, {})[family] = rounded(spread)
    return spreads


def worse_families(found: Sequence[Judged], step: str) -> list[str]:
    """The families whose kernels a step predicts no better than the generic prior does, by the mean of |ln(time)|."""
    kernels: dict[str, dict[tuple[str, str], dict[str, list[Floats]]]] = {}
    for each in found:
        if each.step in (step, PRIOR) and len(each.seen.gaps):
            by_step = kernels.setdefault(each.seen.family, {}).setdefault((each.seen.target, each.kernel), {})
            by_step.setdefault(each.step, []).append(each.seen.gaps)
    worse = []
    for family, own in kernels.items():
        both = [by_step for by_step in own.values() if len(by_step) == 2]
        means = [
            numpy.mean([numpy.concatenate(by_step[name]).mean() for by_step in both]) if both else 0.0
            for name in (step, PRIOR)
        ]
        if both and means[0] >= means[1]:
            worse.append(family)
    return sorted(worse)


def _columns(gaps: Sequence[Gaps], kernels: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Gaps, expected spreads and weights with which every kernel of every device counts alike."""
    counts: dict[tuple[str, str], int] = {}
    for one, kernel in zip(gaps, kernels, strict=True):
        counts[one.target, kernel] = counts.get((one.target, kernel), 0) + len(one.gaps)
    weights = [
        numpy.full(len(one.gaps), 1.0 / counts[one.target, kernel]) for one, kernel in zip(gaps, kernels, strict=True)
    ]
    return (
        numpy.concatenate([one.gaps for one in gaps]),
        numpy.concatenate([one.expected for one in gaps]),
        numpy.concatenate(weights),
    )


def summary(found: Sequence[Judged], added: dict[tuple[str, str], float]) -> Iterator[str]:
    """One line for each step and family: kernels, and errors on unseen shapes; added: what a step's interval gains."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for each in found:
        if len(each.unseen.gaps):
            groups.setdefault((each.unseen.family, each.step), []).append(each)
    for (family, step), same in sorted(groups.items()):
        gaps, expected, weights = _columns([each.unseen for each in same], [each.kernel for each in same])
        order = numpy.argsort(gaps)
        below = numpy.cumsum(weights[order]) / weights.sum()
        median, p90 = (100 * numpy.expm1(gaps[order][numpy.searchsorted(below, share)]) for share in (0.5, 0.9))
        spread = numpy.hypot(expected, added.get((step, family), 0.0))
        held = 100 * numpy.average(gaps <= Z80 * spread, weights=weights)
        kernels = len({(each.unseen.target, each.kernel) for each in same})
        yield (
            f"{family:20} {step:24} {kernels:3} kernels  median {median:6.1f} %  p90 {p90:6.1f} %  "
            f"inside 80 % interval {held:5.1f} %"
        )


def text_of(spreads: dict[str, dict[str, dict[str, float]]], worse: dict[str, list[str]]) -> str:
    """The file: one line for each device, and the families of each step that are left to the prior."""
    header = (
        "# Spread of ln(measured/predicted) on one device: of another library's kernel of the same kind, and of what\n"
        "# a family's other kernels have in common. Step, device, family. worse: families of which the generic prior\n"
        "# came nearer than a step. Written by `python -m validation.siblings`.\n"
    )
    both = {"schema": 1, **spreads, "worse": worse}
    return header + yaml.dump(both, sort_keys=False, default_flow_style=None, width=118)


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write the file."""
    if len(arguments) != 1:
        print("usage: python -m validation.siblings DIR", file=sys.stderr)
        return 2
    found: list[Judged] = []
    try:
        files = [file for file in tables_of(Path(arguments[0]), [], []) if calibration_files(file.device)]
        for index, file in enumerate(files, 1):
            found += judged_file(file)
            print(f"{index} of {len(files)}: {file.device} {file.library} {file.name}", file=sys.stderr)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    spreads = {step: spreads_of(found, step) for step in (LIBRARIES, SIBLINGS)}
    worse = {step: worse_families(found, step) for step in (LIBRARIES, RELATIVES, SIBLINGS)}
    write_atomically(siblings_path(), text_of(spreads, worse).encode())
    added = {
        (step, family): float(
            numpy.sqrt(numpy.mean([own[family] ** 2 for own in spreads[step].values() if family in own]))
        )
        for step in spreads
        for family in {family for own in spreads[step].values() for family in own}
    }
    for line in summary(found, added):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
