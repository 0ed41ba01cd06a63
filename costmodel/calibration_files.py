"""Which calibration a device and library take: one by its path, the user's own, a shipped one, a relative's, priors."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from costmodel.calibration import PRIOR, Calibration, read_calibration
from costmodel.errors import BadInput
from costmodel.hardware import Hardware, load_hardware
from costmodel.loading import available, data_folder, user_folder
from costmodel.transfers import transfer_spreads

DEFAULT_LIBRARY = "vllm"
"""Whose kernels run unless told otherwise and where the user has no calibration of their own."""


def find_calibration(hardware: Hardware, library: str | None) -> Calibration:
    """The calibration to use: the user's own for this device, a shipped one, a relative's, else the prior.

    library None prefers the user's own, then vllm, then the first by name; `prior` asks for the generic priors, and the
    path of a file for the calibration that it holds. Raises BadInput for a library that has no calibration for this
    device or a relative, and for a file that is not a calibration of this device.
    """
    if library == "prior":
        return PRIOR
    if library is not None and is_path(library):
        return with_others(named_calibration(hardware, library), hardware)
    found = own_calibration(hardware, library) or relatives_calibration(hardware, library)
    if found.id is None and library is not None:
        from costmodel.errors import unknown

        raise unknown(f"library for {hardware.name}", library, [*libraries(hardware.name), "prior"])
    return found if found.id is None else with_others(found, hardware)


def with_others(calibration: Calibration, hardware: Hardware) -> Calibration:
    """The calibration of a device, with all others beyond it."""
    from costmodel.fallback import Elsewhere

    return calibration._replace(beyond=Elsewhere(hardware, calibration.library, calibration.place))


def is_path(library: str) -> bool:
    """Whether a library is given as the path of a calibration file, not by name.

    >>> [is_path(each) for each in ("vllm", "vllm-0.24.0", "mine.yaml", "./mine", "h100/mine.yml")]
    [False, False, True, True, True]
    """
    return library.endswith((".yaml", ".yml")) or any(mark in library for mark in (os.sep, os.altsep) if mark)


def named_calibration(hardware: Hardware, place: str) -> Calibration:
    """The calibration that a file holds. Raises BadInput for a missing file, and for one of another device."""
    path = Path(os.path.abspath(place))
    if not path.exists():
        names = ", ".join([*libraries(hardware.name), "prior"])
        raise BadInput(
            f"{place[:200]}: no such file; a library is the path of a calibration file or a name (known: {names})"
        )
    found = read_calibration(path)
    if found.hardware != hardware.name:
        raise BadInput(
            f"{place[:200]}: holds a calibration of {found.hardware[:80]!r}, not of {hardware.name!r}"
            f"; did you mean --hw {found.hardware[:80]}?"
        )
    return found


def library_name(hardware: Hardware, library: str | None) -> str | None:
    """The name of the library whose engine runs: of a file that is named what it says, of None the preferred one."""
    return find_calibration(hardware, None).library if library is None else named_library(library)


def named_library(library: str) -> str:
    """The name of a library that is given by name or as the path of a calibration file."""
    return read_calibration(Path(library)).library if is_path(library) else library


def own_calibration(hardware: Hardware, library: str | None) -> Calibration | None:
    """The calibration of this very device and library (None: the preferred one), where there is one."""
    chosen = chosen_file(calibration_files(hardware.name), library)
    return read_calibration(chosen) if chosen else None


def relatives_calibration(hardware: Hardware, library: str | None) -> Calibration:
    """The calibration of the nearest relative that has one of this library, in this device's clock; else the prior."""
    for device in relatives(hardware):
        chosen = chosen_file(calibration_files(device.name), library)
        if chosen is not None:
            return transferred_from(chosen, device, hardware)
    return PRIOR


def transferred_from(path: Path, device: Hardware, hardware: Hardware) -> Calibration:
    """A relative's calibration, in the clock of this device."""
    missed = {} if device.generation == hardware.generation else transfer_spreads(hardware.name)
    slower = device.compute.clock / hardware.compute.clock
    busier = per_clock(hardware) / per_clock(device)
    return read_calibration(path)._replace(slower=slower, busier=busier, missed=missed)


def per_clock(hardware: Hardware) -> float:
    """FLOPs of one unit's matrix engine (without one, its lanes) in a clock."""
    compute = hardware.compute
    return compute.tensor.get("bf16", compute.vector) / (compute.units * compute.clock)


def libraries(hardware: str) -> list[str]:
    """The libraries with a calibration of this very device."""
    return sorted(calibration_files(hardware))


def calibration_path(hardware: str, library: str) -> Path:
    """The file of a calibration, the user's own before the shipped one. Raises BadInput when there is none."""
    files = calibration_files(hardware)
    if library not in files:
        from costmodel.errors import unknown

        raise unknown(f"library for {hardware}", library, files)
    return files[library]


def calibration_files(hardware: str) -> dict[str, Path]:
    """Library → calibration file of a device; the user's own come last and win."""
    return {**shipped_files(hardware), **user_files(hardware)}


def shipped_files(hardware: str) -> dict[str, Path]:
    """Library → shipped calibration file of a device."""
    return _files_in(_shipped_folder() / hardware)


def user_files(hardware: str) -> dict[str, Path]:
    """Library → calibration file of a device that the user's data folder holds."""
    return _files_in(user_folder("calibrations") / hardware)


def is_shipped(place: str) -> bool:
    """Whether a calibration file is one that ships."""
    return _shipped_folder() in Path(place).parents


def _shipped_folder() -> Path:
    return data_folder("hardware_profiles") / "calibrations"


def _files_in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder.is_dir() else {}


def chosen_file(files: Mapping[str, Path], library: str | None) -> Path | None:
    """The file of a library; of any (None) the user's own first, then vllm's."""
    if library is not None:
        return files.get(library)
    user = user_folder("calibrations")
    for path in files.values():
        if user in path.parents:
            return path
    return files.get(DEFAULT_LIBRARY) or next(iter(files.values()), None)


def relatives(hardware: Hardware) -> list[Hardware]:
    """Calibrated devices of the same vendor, those of the same generation first; other vendors' kernels are others."""
    base = _shipped_folder()
    if hardware.name == "cpu" or not base.is_dir():
        return []
    profiles = available("hardware_profiles")
    names = [folder.name for folder in sorted(base.iterdir()) if folder.is_dir() and folder.name in profiles]
    devices = [load_hardware(name) for name in names if name != hardware.name]
    kin = [device for device in devices if device.vendor == hardware.vendor]
    return sorted(kin, key=lambda device: (device.generation != hardware.generation, _distance(device, hardware)))


def _distance(one: Hardware, other: Hardware) -> float:
    """How unlike two devices are: their machine balance (FLOPs per byte) and their bandwidth, in logarithms."""
    mine, theirs = (device.compute.tensor.get("bf16", device.compute.vector) for device in (one, other))
    bandwidth = math.log(one.memory.hbm.bandwidth / other.memory.hbm.bandwidth)
    return abs(math.log(mine / theirs) - bandwidth) + abs(bandwidth)
