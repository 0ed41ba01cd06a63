"""How far calibrations are off on devices that they were not made on: `python -m validation.transfers DIR`.

Every calibrated device in a directory of measured tables is predicted from every other one's calibration. For each
family the spread is found with which the 80 % interval would have held 80 % of its points, and written beside the
shipped calibrations, where `costmodel.transfers` reads it.

A pair of devices says nothing of a family of which fewer than FEWEST points were predicted: their 80 % is an accident.
Nor do kernels count that the relative has never run: the generic prior answers for them, and nothing is transferred.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy
import yaml

from costmodel.calibration import Calibration
from costmodel.calibration_files import calibration_files, chosen_file, relatives, transferred_from
from costmodel.errors import BadInput
from costmodel.fitting.calibration_file import rounded
from costmodel.fitting.entries import LARGEST_SPREAD, own_kernels
from costmodel.fitting.least_squares import Points
from costmodel.fitting.length_weights import thinned
from costmodel.fitting.pricing import priced
from costmodel.fitting.series import Floats, Series
from costmodel.fitting.silicon import TableFile, hardware_of, read_table, tables_of
from costmodel.hardware import Hardware, load_hardware
from costmodel.loading import write_atomically
from costmodel.timing import Z80
from costmodel.transfers import Spreads, transfers_path

MOST = 100
"""Points of one series that are predicted."""
FEWEST = 30
"""Predicted points of a family below which a pair of devices says nothing of it."""


class Gaps(NamedTuple):
    """|ln(predicted/measured)| of some points of a family, the spread that was expected, and what each point weighs."""

    target: str
    source: str
    family: str
    gaps: Floats
    expected: Floats
    weights: Floats


def gaps_of(files: Sequence[TableFile]) -> list[Gaps]:
    """The tables of one library on one device, predicted from the calibrations of all its relatives."""
    hardware, library = hardware_of(files[0]), files[0].library
    series = [one for file in files for one in read_table(file, hardware)]
    return [gaps for relative in relatives(hardware) for gaps in _from(relative, hardware, library, series)]


def _from(relative: Hardware, hardware: Hardware, library: str, series: Sequence[Series]) -> Iterator[Gaps]:
    files = calibration_files(relative.name)
    path = chosen_file(files, library if library in files else None)
    # A library that the relative has no calibration of says nothing of how that one carries over.
    if path is None or (library not in files and any(one.family != "collective" for one in series)):
        return
    calibration = transferred_from(path, relative, hardware)._replace(missed={})
    for one in series:
        rows = thinned(one.used, MOST)
        if len(rows) and known(Points(one, rows), calibration):
            said = priced(Points(one, rows), hardware, calibration)
            gaps = numpy.abs(numpy.log(said.seconds / one.seconds[rows]))
            weights = numpy.full(len(rows), len(one.used) / len(rows))
            yield Gaps(hardware.name, relative.name, one.family, gaps, said.spread, weights)


def known(points: Points, calibration: Calibration) -> bool:
    """Whether a calibration was fitted to what rules these points: the kernels of their own family.

    Else the prior answers, and says so: nothing is transferred.
    """
    series = points.series
    calibration = calibration._replace(source=series.source)
    own = [kernel._replace(module=series.module) for kernel in own_kernels(points) if kernel.family == series.family]
    return bool(own) and all(calibration.fit(kernel).basis(kernel) != "prior" for kernel in own)


def missing_spread(gaps: Floats, expected: Floats, weights: Floats) -> float:
    """What must be added to the expected spreads, in squares, for the 80 % interval to hold 80 % of the gaps.

    0 where the relative's own interval holds them already.

    >>> import numpy
    >>> round(missing_spread(numpy.linspace(0.0, 1.0, 1001), numpy.zeros(1001), numpy.ones(1001)) * Z80, 3)
    0.8
    >>> missing_spread(numpy.array([0.1, 0.2]), numpy.array([0.2, 0.2]), numpy.ones(2))
    0.0
    """

    def held(added: float) -> float:
        return float(numpy.average(gaps <= Z80 * numpy.hypot(expected, added), weights=weights))

    if held(0.0) >= 0.8:
        return 0.0
    low, high = 0.0, LARGEST_SPREAD
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if held(middle) < 0.8 else (low, middle)
    return high


def measured(directory: Path, processes: int) -> Spreads:
    """Device predicted → device whose calibration was used, nearest first → family → spread."""
    jobs: dict[tuple[str, str], list[TableFile]] = {}
    for file in tables_of(directory, [], []):
        if calibration_files(file.device):
            jobs.setdefault((file.device, file.library), []).append(file)
    found: list[Gaps] = []
    with ProcessPoolExecutor(processes) as pool:
        for index, many in enumerate(pool.map(gaps_of, jobs.values()), 1):
            print(f"{index} of {len(jobs)}", file=sys.stderr)
            found += many
    return nearest_first(spreads_of(found))


def spreads_of(found: Iterable[Gaps]) -> Spreads:
    """Device predicted → device whose calibration was used → family → spread, of families with FEWEST points."""
    groups: dict[tuple[str, str, str], list[Gaps]] = {}
    for one in found:
        groups.setdefault((one.target, one.source, one.family), []).append(one)
    spreads: dict[str, dict[str, dict[str, float]]] = {}
    for (target, source, family), same in groups.items():
        if sum(len(one.gaps) for one in same) < FEWEST:
            continue
        columns = (numpy.concatenate([getattr(one, name) for one in same]) for name in ("gaps", "expected", "weights"))
        spreads.setdefault(target, {}).setdefault(source, {})[family] = rounded(missing_spread(*columns))
    return spreads


def nearest_first(spreads: Spreads) -> Spreads:
    """The devices whose calibrations were used, in the order in which a device would take them."""
    order = {target: [relative.name for relative in relatives(load_hardware(target))] for target in spreads}
    return {
        target: dict(sorted(sources.items(), key=lambda item: order[target].index(item[0])))
        for target, sources in spreads.items()
    }


def text_of(spreads: Spreads) -> str:
    """The file: one line for each pair of devices."""
    header = (
        "# Spread of ln(measured/predicted) where a calibration of one device predicts another: device predicted,\n"
    )
    header += (
        "# device whose calibration was used (nearest first), family. Written by `python -m validation.transfers`.\n"
    )
    sorted_families = {
        target: {source: dict(sorted(families.items())) for source, families in sources.items()}
        for target, sources in sorted(spreads.items())
    }
    body = yaml.dump({"schema": 1, "spreads": sorted_families}, sort_keys=False, default_flow_style=None, width=118)
    return header + body


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the file."""
    if not arguments or len(arguments) > 2:
        print("usage: python -m validation.transfers DIR [PROCESSES]", file=sys.stderr)
        return 2
    try:
        spreads = measured(Path(arguments[0]), int(arguments[1]) if len(arguments) == 2 else 2)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomically(transfers_path(), text_of(spreads).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
