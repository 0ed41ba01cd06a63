"""A device: sourced facts from one YAML file, as SI numbers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from costmodel.dtypes import ENGINES
from costmodel.errors import BadInput, Impossible
from costmodel.loading import Problems, available, find_file, read_mapping, user_folder
from costmodel.settings import apply_settings
from costmodel.units import parse_quantity


class Compute(NamedTuple):
    """Peaks of the arithmetic: units (SMs, CUs or cores), clock in Hz, dense FLOP/s by engine dtype.

    vector: fp32 FLOP/s outside the matrix engines; special: exp results per unit and clock, None when no
    source gives it.
    """

    units: int
    clock: float
    tensor: Mapping[str, float]
    vector: float
    special: float | None


class Level(NamedTuple):
    """A level of memory: bytes, and bytes per second (None when no source gives it)."""

    capacity: float | None
    bandwidth: float | None


class Hbm(NamedTuple):
    """The main memory: bytes and bytes per second."""

    capacity: float
    bandwidth: float


class Memory(NamedTuple):
    """HBM (or its like), L2, and the bytes of shared memory per unit."""

    hbm: Hbm
    l2: Level
    shared_per_unit: float | None


class Link(NamedTuple):
    """Bytes per second per direction and device, and the devices in one domain."""

    bandwidth: float | None
    devices: int = 1


class Links(NamedTuple):
    """Links to devices of the same domain, to other hosts, and to the own host."""

    scale_up: Link
    scale_out: Link
    host: Link


class Power(NamedTuple):
    """Watts at the limit and when idle (None when no source gives it)."""

    tdp: float | None
    idle: float | None


class Hardware(NamedTuple):
    """One device. Attribute paths equal the paths of its YAML file, so `hw.memory.hbm.bandwidth` reads as it is."""

    name: str
    description: str
    vendor: str
    generation: str
    compute: Compute
    memory: Memory
    links: Links
    power: Power
    sources: Mapping[str, str]
    unverified: tuple[str, ...]
    notes: str = ""
    changes: tuple[str, ...] = ()

    @property
    def special_peak(self) -> float | None:
        """Special-function results per second of the whole device."""
        compute = self.compute
        return compute.special * compute.units * compute.clock if compute.special else None

    @property
    def fastest_link(self) -> float:
        """Bytes per second and direction of the fastest link to others. Raises Impossible where none is known."""
        known = [link.bandwidth for link in self.links if link.bandwidth]
        if not known:
            raise Impossible(f"{self.name}: no bandwidth of a link to other devices is known")
        return max(known)

    def tensor_peak(self, dtype: str) -> float:
        """Dense FLOP/s of the engine that multiplies this dtype.

        Raises Impossible, naming the profiles that have such an engine.
        """
        engine = ENGINES.get(dtype, dtype)
        peak = self.compute.tensor.get(engine)
        if peak is None:
            have = ", ".join(profiles_with_engine(engine)) or "none"
            raise Impossible(f"{dtype} on {self.name}: no engine with {engine}; profiles that have it: {have}")
        return peak

    def has_engine(self, dtype: str) -> bool:
        """Whether a matrix engine multiplies this dtype."""
        return ENGINES.get(dtype, dtype) in self.compute.tensor


_UNITS: dict[str, str] = {
    "compute.clock": "Hz",
    "compute.vector": "FLOP/s",
    "memory.hbm.capacity": "B",
    "memory.hbm.bandwidth": "B/s",
    "memory.l2.capacity": "B",
    "memory.l2.bandwidth": "B/s",
    "memory.shared_per_unit": "B",
    "links.scale_up.bandwidth": "B/s",
    "links.scale_out.bandwidth": "B/s",
    "links.host.bandwidth": "B/s",
    "power.tdp": "W",
    "power.idle": "W",
}
SMALLEST, LARGEST = 1e-6, 1e30
"""What an entry may be; beyond, the arithmetic of a prediction would overflow."""
_PLAIN = ("compute.units", "compute.special", "links.scale_up.devices")
_WHOLE = ("compute.units", "links.scale_up.devices")
_REQUIRED = ("compute.clock", "compute.vector", "memory.hbm.capacity", "memory.hbm.bandwidth")
_TEXT = ("name", "description", "vendor", "generation")
_KEYS = (*_TEXT, "compute", "memory", "links", "power", "sources", "unverified", "notes")


def load_hardware(text: str, settings: tuple[str, ...] = ()) -> Hardware:
    """The device that a name, a unique prefix or a path means; `cpu` is what the user's calibration measured, else what
    the machine says at run time.

    settings are texts such as "memory.hbm.bandwidth=2x". Raises BadInput with every problem of the file.
    """
    if text == "cpu" and not (user_folder("hardware_profiles") / "cpu.yaml").is_file():
        from costmodel.host import read_host

        raw, place = read_host(), "cpu"
    else:
        path = find_file(text, "hardware_profiles", "hardware")
        raw, place = read_mapping(path), str(path)
    apply_settings(raw, settings, "hw.", place, quantity=_quantity_after_setting)
    return hardware_from_mapping(raw, place, settings)


def _quantity_after_setting(path: str, old: Any, value: str) -> Any:
    """The new value of a profile's entry: `2x` scales the old one, anything else replaces it."""
    if value.endswith("x") and value[:-1].replace(".", "", 1).isdigit():
        factor = float(value[:-1])
        if isinstance(old, bool) or old is None or old == "unknown":
            raise BadInput(f"hw.{path}={value}: the old value is unknown and cannot be scaled")
        if isinstance(old, int | float):
            scaled = old * factor
            return int(scaled) if float(scaled).is_integer() else scaled
        unit = _UNITS.get(path, "FLOP/s" if path.startswith("compute.tensor.") else "")
        return f"{parse_quantity(str(old), unit) * factor!r} {unit}"
    if isinstance(old, int | float) and not isinstance(old, bool):
        try:
            number = float(value)
        except ValueError:
            raise BadInput(f"hw.{path}={value[:60]}: expected a number or a factor such as 2x") from None
        return int(number) if number.is_integer() else number
    return value


def hardware_from_mapping(raw: Mapping[str, Any], place: str, changes: tuple[str, ...] = ()) -> Hardware:
    """A device from the mapping of its file. Raises BadInput with every problem found."""
    problems = Problems(place)
    problems.unknown_keys(raw, _KEYS)
    texts = {}
    for key in _TEXT:
        if not isinstance(raw.get(key), str):
            problems.add(f"{key}: missing or not a text")
        texts[key] = str(raw.get(key, ""))
    leaves = _flatten({key: raw.get(key) for key in ("compute", "memory", "links", "power")})
    values: dict[str, float | None] = {}
    tensor: dict[str, float] = {}
    for path, value in leaves.items():
        if path.startswith("compute.tensor."):
            engine = path.removeprefix("compute.tensor.")
            if engine not in set(ENGINES.values()):
                problems.unknown_keys({engine: value}, sorted(set(ENGINES.values())), "compute.tensor")
            number = _read(problems, path, value, "FLOP/s")
            if number is not None:
                tensor[engine] = number
        elif path in _UNITS or path in _PLAIN:
            values[path] = _read(problems, path, value, _UNITS.get(path))
        else:
            problems.unknown_keys({path: value}, (*_UNITS, *_PLAIN, "compute.tensor.bf16"))
    for path in (*_REQUIRED, "compute.units"):
        if values.get(path) is None:
            problems.add(f"{path}: missing; a prediction needs it")
    if not tensor:
        problems.add("compute.tensor: no engine given")
    sources = raw.get("sources") or {}
    if not isinstance(sources, dict):
        problems.add("sources: expected a mapping from paths to texts")
        sources = {}
    unverified = raw.get("unverified") or []
    if not isinstance(unverified, list):
        problems.add("unverified: expected a list of paths")
        unverified = []
    problems.raise_if_any()

    def known(path: str) -> float:
        value = values[path]
        assert value is not None
        return value

    return Hardware(
        **texts,
        compute=Compute(
            int(known("compute.units")),
            known("compute.clock"),
            tensor,
            known("compute.vector"),
            values.get("compute.special"),
        ),
        memory=Memory(
            Hbm(known("memory.hbm.capacity"), known("memory.hbm.bandwidth")),
            Level(values.get("memory.l2.capacity"), values.get("memory.l2.bandwidth")),
            values.get("memory.shared_per_unit"),
        ),
        links=Links(
            Link(values.get("links.scale_up.bandwidth"), int(values.get("links.scale_up.devices") or 1)),
            Link(values.get("links.scale_out.bandwidth")),
            Link(values.get("links.host.bandwidth")),
        ),
        power=Power(values.get("power.tdp"), values.get("power.idle")),
        sources={str(key): str(value) for key, value in sources.items()},
        unverified=tuple(str(path) for path in unverified),
        notes=str(raw.get("notes") or "").strip(),
        changes=changes,
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value} if prefix.count(".") else {}
    flat: dict[str, Any] = {}
    for key, below in value.items():
        flat.update(_flatten(below, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _read(problems: Problems, path: str, value: Any, unit: str | None) -> float | None:
    if value is None or value == "unknown":
        return None
    try:
        if unit is None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadInput(f"{str(value)[:60]!r} is not a number")
            number = float(value)
            if path in _WHOLE and not number.is_integer():
                raise BadInput(f"{str(value)[:60]} is not a whole number")
        else:
            number = parse_quantity(str(value), unit)
    except BadInput as error:
        problems.add(f"{path}: {error}")
        return None
    if not math.isfinite(number) or number <= 0:
        problems.add(f"{path}: {str(value)[:60]} must be positive and finite")
        return None
    if not SMALLEST <= number <= LARGEST:
        problems.add(f"{path}: {str(value)[:60]} is outside {SMALLEST:g} to {LARGEST:g} of its unit")
        return None
    return number


def profiles_with_engine(engine: str) -> list[str]:
    """The names of the profiles whose matrix engines multiply this dtype."""
    names = []
    for name, path in available("hardware_profiles").items():
        tensor = (read_mapping(path).get("compute") or {}).get("tensor") or {}
        if engine in tensor:
            names.append(name)
    return sorted(names)
