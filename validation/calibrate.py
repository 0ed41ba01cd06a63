"""`calibrate --device`: probe a device, run the planned points, fit, and write what `predict` will use.

The profile, the calibration and the measured rows go to the user's data folder, or together into a folder of choice.
While points are still missing they have names of their own, so that an interrupted run leaves what was there before,
and the next one goes on where it stopped.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from costmodel.errors import BadInput, Impossible, unknown
from costmodel.fitting.calibrate import Calibrated, Source, calibrate
from costmodel.fitting.calibration_file import Header
from costmodel.fitting.own_measurements import csv_source
from costmodel.fitting.series import Series
from costmodel.hardware import Hardware, hardware_from_mapping
from costmodel.loading import read_mapping, user_folder, write_atomically
from costmodel.report.output import note
from validation.asked_facts import Ask, answered, asked
from validation.collectives import as_csv, links_told
from validation.device import DeviceFacts, facts
from validation.measured_profile import profile_name
from validation.measurements import (
    LIMITS,
    Group,
    Journal,
    Measurement,
    measurements_in,
    read_measurements,
    series_of,
    to_csv,
)
from validation.probe_rows import rows_csv
from validation.probes import profile
from validation.runners import Runner, runners
from validation.sweep import Job, jobs, sweep

LIBRARY = "own"
"""The name of a user's own calibration; `predict` takes it before shipped ones."""
TELL_EVERY_S = 15.0
COLLECTIVES = "collectives*.csv"
"""Files of `validation.collectives` beside the measured rows, which are fitted with them: of this host's devices, and
of several hosts where such a file was put there."""


PROBES = "probes.csv"
"""What the probes of the device gave, row by row, beside the measured rows."""


class Place(NamedTuple):
    """Where the three files of a device go, and under which names they are kept until the run is done."""

    profile: Path
    calibration: Path
    measurements: Path

    @property
    def unfinished(self) -> "Place":
        """The names of an interrupted run."""
        return Place(
            self.measurements.parent / "profile.unfinished.yaml",
            self.calibration,
            self.measurements.with_name(f"unfinished-{self.measurements.name}"),
        )


def place_of(out: str | None, name: str, part: tuple[int, int] = (1, 1)) -> Place:
    """A folder of choice, or the user's folders of profiles, calibrations and measurements."""
    file = "measurements.csv" if part[1] == 1 else f"measurements-{part[0]}of{part[1]}.csv"
    if out is not None:
        folder = Path(out)
        if folder.suffix == ".yaml" or folder.is_file():
            raise BadInput(f"--out {out}: names a file; a calibration by device writes three, name a folder")
        return Place(folder / "profile.yaml", folder / "calibration.yaml", folder / file)
    return Place(
        user_folder("hardware_profiles") / f"{name}.yaml",
        user_folder("calibrations") / name / f"{LIBRARY}.yaml",
        user_folder("measurements") / name / file,
    )


def parse_part(text: str) -> tuple[int, int]:
    """`2/3` as (2, 3). Raises BadInput for anything else.

    >>> parse_part("2/3")
    (2, 3)
    """
    first, slash, last = text.partition("/")
    if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 100):
        raise BadInput(f"--part {text[:40]!r}: expected I/N with I from 1 to N, such as 2/3")
    return int(first), int(last)


def chosen(families: Sequence[str]) -> list[Runner]:
    """The operators of these families, mechanisms or operators' names; all for none. Raises BadInput for another."""
    known = list(runners().values())
    allowed = {name for runner in known for name in (runner.family, runner.mechanism, runner.name) if name}
    for name in families:
        if name not in allowed:
            raise unknown("family", name, sorted(allowed))
    return [one for one in known if not families or {one.family, one.mechanism, one.name} & set(families)]


class Progress:
    """Says on stderr which point is at work and how much time is left, from the second second on."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.told = self.start - TELL_EVERY_S + 1.0
        self.line = sys.stderr.isatty()

    def __call__(self, job: Job, done: int, total: int) -> None:
        """One more point begins."""
        now = time.monotonic()
        if not self.line and now - self.told < TELL_EVERY_S:
            return
        self.told = now
        left = f", {(now - self.start) / done * (total - done):.0f} s left" if done else ""
        text = f"{done} of {total} points done{left}: {job.runner.name} {job.implementation.name}"
        sys.stderr.write(f"\r{text[:100]:100s}" if self.line else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Wipe the line."""
        if self.line:
            sys.stderr.write("\r" + " " * 100 + "\r")


class Outcome(NamedTuple):
    """What a run found: the device, its profile, the measured rows, their series, and the calibration; and how many
    points are left to measure."""

    stated: DeviceFacts
    hardware: Hardware
    rows: tuple[Measurement, ...]
    groups: tuple[Group, ...]
    calibrated: Calibrated
    place: Place
    left: int = 0


def calibrate_device(
    device: str,
    *,
    effort: str = "quick",
    families: Sequence[str] = (),
    out: str | None = None,
    part: tuple[int, int] = (1, 1),
    command: str = "",
    folder: str | None = None,
    within_s: float | None = None,
    ask: Ask | None = None,
) -> Outcome:
    """Measure and fit a device, and write its profile, calibration and rows.

    families: only these operators; what is stored of the others stays. part: the i-th of n parts, whose rows go to
    files of their own beside each other. folder: further operators' files. within_s: no point is begun after so many
    seconds; what was measured is fitted, and the next run goes on with the rest. ask: whom to ask for what the device
    does not tell before its profile is made; None leaves that measured or unknown. Raises BadInput for a device that
    is not there, Impossible when no point could be measured.
    """
    until = None if within_s is None else time.monotonic() + within_s
    mine = chosen(families)
    stated = facts(device)
    name = stated.profile or profile_name(stated.name)
    place = place_of(out, name, part)
    raw = _profile(place, stated, effort, keep=bool(families) or part[1] > 1, ask=ask)
    hardware = hardware_from_mapping(raw, f"profile of {stated.name}")
    wanted = jobs(mine, stated, effort, part=part)
    journal = of_this_device(Journal(place.unfinished.measurements), stated)
    told = Progress()
    try:
        rows = sweep(wanted, stated, journal, effort=effort, folder=folder, progress=told, until=until)
    except KeyboardInterrupt:
        told.close()
        note(
            f"note: {len(journal.rows)} points are kept; the same command goes on with the rest, and with --within 0 "
            "it fits what there is"
        )
        raise
    finally:
        told.close()
    left = len(wanted) - len(rows)
    rows = [*rows, *_kept(place, {runner.name for runner in mine} if families else None)]
    others = [path for path in place.measurements.parent.glob("measurements-*of*.csv") if path != place.measurements]
    together = [*rows, *(row for path in others if part[1] > 1 for row in read_measurements(path))]
    groups = series_of(together, hardware, LIBRARY, LIMITS[stated.kind])
    fitted = [group.series for group in groups if (~_aside(group)).any()]
    fitted += collectives_beside(place, hardware)
    if not fitted:
        reasons = "; ".join(dict.fromkeys(f"{row.runner}: {row.status} {row.detail}" for row in together[:5]))
        raise Impossible(f"{stated.name}: no point to fit was measured ({reasons})")
    header = Header(
        id=f"{hardware.name}/{LIBRARY}",
        hardware=hardware.name,
        library=LIBRARY,
        version="",
        source=_source(stated),
        command=command,
    )
    calibrated = calibrate(Source(hardware, LIBRARY, tuple(fitted)), header)
    _write(place, raw, rows, calibrated, whole=left == 0)
    return Outcome(stated, hardware, tuple(together), tuple(groups), calibrated, place, left)


def of_this_device(journal: Journal, stated: DeviceFacts) -> Journal:
    """The journal, unless it holds points of another device: then BadInput."""
    other = next((row.device for row in journal.rows if row.device and row.device != stated.name), None)
    if other is not None:
        raise BadInput(
            f"{journal.path}: holds points of {other}, and {stated.device} is {stated.name}; "
            "choose another --out, or remove the file"
        )
    return journal


def collectives_beside(place: Place, hardware: Hardware) -> list[Series]:
    """The collectives measured beside a place's rows; none, with a note, for a profile that knows no link."""
    paths = sorted(place.measurements.parent.glob(COLLECTIVES))
    try:
        return [
            series for path in paths if hardware.fastest_link for series in csv_source(path, hardware, LIBRARY).series
        ]
    except Impossible as error:
        note(f"note: {', '.join(path.name for path in paths)} left out: {error}")
        return []


def _aside(group: Group) -> Any:
    assert group.series.aside is not None
    return group.series.aside


def _profile(place: Place, stated: DeviceFacts, effort: str, keep: bool, ask: Ask | None = None) -> Mapping[str, Any]:
    """The profile that the interrupted run measured, or (keep) that stands beside what is added to, or a new one."""
    unfinished = place.unfinished
    if unfinished.profile.exists() and unfinished.measurements.exists():
        return read_mapping(unfinished.profile)
    if keep and place.profile.exists():
        return read_mapping(place.profile)
    answers = asked(stated, ask) if ask else {}  # before the probes, while someone is there
    probed = profile(stated.device, effort == "quick")
    raw = answered(probed.profile, answers, stated)
    unfinished.profile.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(unfinished.profile.parent / PROBES, rows_csv(probed.rows).encode())
    failed = {f"{row.probe} {row.dtype}".strip(): row.detail for row in probed.rows if not row.n}
    if failed:
        note(f"note: of the probes {', '.join(failed)} gave nothing ({next(iter(failed.values()))}); see {PROBES}")
    if probed.links:
        text = as_csv(probed.links, "nccl", stated.device)
        write_atomically(unfinished.profile.parent / "collectives.csv", text.encode())
        for line in links_told(probed.links):
            note(f"note: {line}")
    unfinished.measurements.unlink(missing_ok=True)  # of another profile
    write_atomically(unfinished.profile, _yaml(raw))
    return raw


def _kept(place: Place, replaced: set[str] | None) -> list[Measurement]:
    """Rows of an earlier run of operators that are not measured again; none where all are."""
    if replaced is None or not place.measurements.exists():
        return []
    return [row for row in read_measurements(place.measurements) if row.runner not in replaced]


def _yaml(raw: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(raw), sort_keys=False, allow_unicode=True, width=118).encode()


def _source(stated: DeviceFacts) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in stated.packages.items())
    return f"measured on {stated.name}, {stated.date}, {packages}{', driver ' + stated.driver if stated.driver else ''}"


def _write(
    place: Place, raw: Mapping[str, Any], rows: Sequence[Measurement], calibrated: Calibrated, whole: bool
) -> None:
    for path in place:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place.measurements, to_csv(rows).encode())
    write_atomically(place.profile, _yaml(raw))
    write_atomically(place.calibration, calibrated.text.encode())
    if whole:
        place.unfinished.measurements.unlink(missing_ok=True)
        place.unfinished.profile.unlink(missing_ok=True)


def stored(folder: Path) -> tuple[list[Measurement], Path | None, Path | None]:
    """The rows of a folder, and its profile and calibration where it holds them."""
    rows = measurements_in(folder)
    place = folder if folder.is_dir() else folder.parent
    profile_path, calibration = place / "profile.yaml", place / "calibration.yaml"
    return rows, profile_path if profile_path.exists() else None, calibration if calibration.exists() else None
