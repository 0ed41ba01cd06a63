"""The hardware profile that probes of a device give: in the form of a profile's YAML file, every number with a source.

What the device itself states counts before what was measured; what neither tells is `unknown`.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from costmodel.errors import Impossible
from costmodel.hardware import hardware_from_mapping, load_hardware
from costmodel.loading import find_file, read_mapping
from validation.collectives import Timed, link_bandwidth
from validation.cuda_probes import DTYPES
from validation.device import DeviceFacts
from validation.probe_rows import Row, best, cache_of

GENERATIONS = {
    ("NVIDIA", (8, 0)): "ampere",
    ("NVIDIA", (8, 6)): "ampere-ga10x",
    ("NVIDIA", (8, 9)): "ada",
    ("NVIDIA", (9, 0)): "hopper",
    ("NVIDIA", (10, 0)): "blackwell",
    ("NVIDIA", (10, 3)): "blackwell-ultra",
    ("NVIDIA", (12, 0)): "blackwell-rtx",
    ("AMD", (9, 0)): "cdna2",
    ("AMD", (9, 4)): "cdna3",
    ("AMD", (9, 5)): "cdna4",
}
"""Microarchitectures by what torch calls the capability, as the shipped profiles name them."""
ENGINE_OVER_OTHER = 1.1
"""A product that beats the next slower kind of arithmetic by this runs on an engine of its own."""
NEEDED = ("compute.clock", "compute.vector", "memory.hbm.bandwidth")
FILLED = {("compute", "special"): "", ("memory.l2", "capacity"): "B", ("memory.l2", "bandwidth"): "B/s"}
"""What a probe may add to a shipped profile that does not know it, with its unit."""
UNKNOWN = "unknown"


class Entry(NamedTuple):
    """A number of a profile as text, where it is from, and whether that is enough to rely on."""

    text: str
    source: str
    verified: bool


def hardware_profile(stated: DeviceFacts, rows: Sequence[Row], links: Sequence[Timed] = ()) -> dict[str, Any]:
    """The profile of a device from its facts and the rows of its probes; it is valid.

    Raises Impossible when it lacks a number that predictions need.
    """
    if stated.profile not in ("", "cpu"):
        raw = _shipped_completed(stated, rows, links)
    else:
        raw = _measured_profile(stated, rows, links)
    hardware_from_mapping(raw, f"profile measured on {stated.name}")
    return raw


def measured_values(stated: DeviceFacts, rows: Sequence[Row], links: Sequence[Timed] = ()) -> dict[str, float]:
    """Every number of a profile that the probes give, by its path, in SI units."""
    values: dict[str, float | None] = {f"compute.tensor.{dtype}": best(rows, "gemm", dtype) for dtype in DTYPES}
    fma, fp32 = best(rows, "fma"), best(rows, "gemm", "fp32")
    values["compute.vector"] = fma or fp32
    if stated.kind == "cuda":
        if fp32 and (values["compute.tensor.tf32"] or 0) < ENGINE_OVER_OTHER * fp32:
            values["compute.tensor.tf32"] = None
        if not fma or not fp32 or fp32 < ENGINE_OVER_OTHER * fma:
            values["compute.tensor.fp32"] = None
            values["compute.vector"] = max(fma or 0, fp32 or 0)
    units = 1 if stated.kind == "cpu" else stated.units
    values["compute.clock"] = clock = stated.clock_hz or best(rows, "clock")
    exponentials = best(rows, "exp")
    values["compute.special"] = exponentials / (units * clock) if exponentials and clock else None
    values["memory.hbm.bandwidth"] = _stream_bandwidth(rows)
    probe = "copy" if stated.kind == "cpu" else "reread"
    sizes = [row for row in rows if row.probe == probe]
    cache = cache_of([row.size for row in sizes], [row.peak for row in sizes])
    if cache:
        values["memory.l2.capacity"], values["memory.l2.bandwidth"] = cache
    if links:
        values["links.scale_up.bandwidth"] = link_bandwidth(links)
    return {path: value for path, value in values.items() if value}


def _stream_bandwidth(rows: Sequence[Row]) -> float | None:
    """Bytes per second of the fastest of copy, read and write, at their largest sizes: caches show at smaller ones."""
    rates = []
    for probe in ("copy", "read", "write"):
        largest = max((row.size for row in rows if row.probe == probe and row.n), default=0)
        rates.append(best(rows, probe, at_least=largest))
    return max((rate for rate in rates if rate), default=None)


def shares(stated: DeviceFacts, rows: Sequence[Row], links: Sequence[Timed] = ()) -> dict[str, float]:
    """Measured over stated, of each number that the shipped profile of this device states; empty without one."""
    if stated.profile in ("", "cpu"):
        return {}
    hardware = load_hardware(stated.profile)
    memory = hardware.memory
    known = {
        **{f"compute.tensor.{dtype}": peak for dtype, peak in hardware.compute.tensor.items()},
        "compute.vector": hardware.compute.vector,
        "compute.special": hardware.compute.special,
        "memory.hbm.bandwidth": memory.hbm.bandwidth,
        "memory.l2.capacity": memory.l2.capacity,
        "memory.l2.bandwidth": memory.l2.bandwidth,
        "links.scale_up.bandwidth": hardware.links.scale_up.bandwidth,
    }
    measured = measured_values(stated, rows, links)
    return {path: measured[path] / value for path, value in known.items() if value and path in measured}


def _shipped_completed(stated: DeviceFacts, rows: Sequence[Row], links: Sequence[Timed]) -> dict[str, Any]:
    """The shipped profile, with what it does not know and a probe does, and the shares of the rest as a note."""
    raw = deepcopy(read_mapping(find_file(stated.profile, "hardware_profiles", "hardware")))
    measured = measured_values(stated, rows, links)
    filled = {}
    for (parents, leaf), unit in FILLED.items():
        place = raw
        for parent in parents.split("."):
            place = place.setdefault(parent, {})
        path = f"{parents}.{leaf}"
        if place.get(leaf, UNKNOWN) == UNKNOWN and path in measured:
            place[leaf] = quantity(measured[path], unit) if unit else float(f"{measured[path]:.3g}")
            filled[path] = _measured_here(stated)
    raw["sources"] = {**raw["sources"], **filled}
    raw["unverified"] = [*(raw.get("unverified") or []), *filled]
    reached = ", ".join(f"{path} {100 * share:.0f} %" for path, share in shares(stated, rows, links).items())
    raw["notes"] = f"{str(raw.get('notes') or '').strip()} Measured shares of the peaks: {reached or 'none'}.".strip()
    return raw


def _measured_profile(stated: DeviceFacts, rows: Sequence[Row], links: Sequence[Timed]) -> dict[str, Any]:
    """A profile of facts and measurements alone."""
    measured = measured_values(stated, rows, links)
    numbers = _entries(stated, measured)
    missing = [path for path in NEEDED if path not in numbers]
    if not any(path.startswith("compute.tensor.") for path in numbers):
        missing.append("compute.tensor")
    if missing:
        failed = "; ".join(f"{row.probe} {row.dtype}: {row.detail}" for row in rows if not row.n)
        raise Impossible(f"{stated.name}: no probe gave {', '.join(missing)} ({failed[:600] or 'none was run'})")
    raw: dict[str, Any] = {
        "name": "cpu" if stated.kind == "cpu" else profile_name(stated.name),
        "description": f"{stated.name}, one thread of {stated.units}" if stated.kind == "cpu" else stated.name,
        "vendor": stated.vendor or UNKNOWN,
        "generation": _generation(stated),
        "compute": {
            "units": 1 if stated.kind == "cpu" else stated.units,
            "clock": UNKNOWN,
            "tensor": {},
            "vector": UNKNOWN,
            "special": UNKNOWN,
        },
        "memory": {
            "hbm": {"capacity": UNKNOWN, "bandwidth": UNKNOWN},
            "l2": {"capacity": UNKNOWN, "bandwidth": UNKNOWN},
            "shared_per_unit": UNKNOWN,
        },
        "links": {
            "scale_up": {"bandwidth": UNKNOWN, "devices": links[0].devices if links else 1},
            "scale_out": {"bandwidth": UNKNOWN},
            "host": {"bandwidth": UNKNOWN},
        },
        "power": {"tdp": UNKNOWN, "idle": UNKNOWN},
        "sources": {
            "compute.units": "one thread was measured" if stated.kind == "cpu" else _stated_by(stated),
            "links.scale_up.devices": "devices of the host that was measured" if links else "no others were measured",
        },
    }
    for path, entry in numbers.items():
        *parents, leaf = path.split(".")
        place: dict[str, Any] = raw
        for parent in parents:
            place = place[parent]
        place[leaf] = entry.text if path != "compute.special" else float(entry.text)
        raw["sources"][path] = entry.source
    raw["unverified"] = [path for path, entry in numbers.items() if not entry.verified]
    raw["notes"] = "Measured peaks are those of the fastest probe: efficiencies are shares of what the device reached."
    return raw


def _entries(stated: DeviceFacts, measured: Mapping[str, float]) -> dict[str, Entry]:
    """Every number of a device without a shipped profile: as it states it, else as it was measured."""
    here, device_says = _measured_here(stated), _stated_by(stated)
    entries = {path: Entry(quantity(value, _unit(path)), here, False) for path, value in measured.items()}
    if stated.clock_hz:
        # What the system of a CPU states can be the base clock, or that of the moment.
        entries["compute.clock"] = Entry(quantity(stated.clock_hz, "Hz"), device_says, stated.kind == "cuda")
    entries["memory.hbm.capacity"] = Entry(quantity(stated.memory_bytes, "B"), device_says, True)
    # The pins' rate is the datasheet's; where a probe was faster, the width or the clock is not what it seems.
    if stated.bandwidth and stated.bandwidth > measured.get("memory.hbm.bandwidth", 0):
        stated_rate = quantity(stated.bandwidth, "B/s")
        entries["memory.hbm.bandwidth"] = Entry(stated_rate, f"memory clock × 2 × width, {device_says}", True)
    # A CPU's last cache is shared, so the size that one thread sees counts.
    if stated.l2_bytes and stated.kind == "cuda":
        entries["memory.l2.capacity"] = Entry(quantity(stated.l2_bytes, "B"), device_says, True)
    if stated.shared_per_unit:
        entries["memory.shared_per_unit"] = Entry(quantity(stated.shared_per_unit, "B"), device_says, True)
    return entries


def _unit(path: str) -> str:
    leaf = path.rsplit(".", 1)[-1]
    return {"clock": "Hz", "bandwidth": "B/s", "capacity": "B", "special": ""}.get(leaf, "FLOP/s")


def _stated_by(stated: DeviceFacts) -> str:
    return f"stated by the {'operating system' if stated.kind == 'cpu' else 'driver ' + stated.driver}, {stated.date}"


def _measured_here(stated: DeviceFacts) -> str:
    return f"measured on {stated.name}, {stated.date}, torch {stated.packages.get('torch', UNKNOWN)}"


def _generation(stated: DeviceFacts) -> str:
    if stated.capability is None:
        return "cpu"
    major, minor = stated.capability
    return GENERATIONS.get((stated.vendor, stated.capability), f"{stated.vendor.lower()}-{major}.{minor}")


def profile_name(name: str) -> str:
    """A device's name as profiles are named.

    >>> profile_name("NVIDIA A10G"), profile_name("NVIDIA GeForce RTX 3090 Ti")
    ('a10g', 'rtx-3090-ti')
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    kept = [word for word in words if word not in ("nvidia", "amd", "geforce", "instinct", "radeon", "gpu")]
    return "-".join(kept or words) or "device"


def quantity(value: float, unit: str) -> str:
    """A number as profiles write it: four digits with the prefix that suits it, and memory in whole bytes.

    >>> quantity(3.0151e12, "B/s"), quantity(80 * 2**30, "B"), quantity(1.98e9, "Hz"), quantity(25276514304, "B")
    ('3.015 TB/s', '80 GiB', '1.98 GHz', '25276514304 B')
    """
    if unit == "B":
        for factor, prefix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
            if value % factor == 0 and value < 2**20 * factor:
                return f"{value / factor:.0f} {prefix}B"
        return f"{value:.0f} B"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if unit else ():
        if value >= scale:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".strip()
