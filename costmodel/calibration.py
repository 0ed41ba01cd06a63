"""What is known of the time forms' parameters on a device: fitted values with their covariance, or priors.

A calibration is a YAML file of several documents, written by a command and never by hand. The first says what was
measured, each of the others holds the fit of one kernel:

    schema: 1
    id: h100-sxm/vllm-0.24.0
    hardware: h100-sxm          # the profile it was measured on
    library: vllm
    version: 0.24.0
    date: 2026-11-23
    source: where the measurements come from
    ---
    family: gemm
    instance: bf16              # the compiled kernel; "" fits every instance of the family
    module: ""                  # only inside this mixer or FFN, such as mla-prefill; "" everywhere
    kernel: cublas              # the name that the library gives it
    parameters: {launch_s: 2.0e-06, tensor_efficiency: 0.86, …}
    covariance: |               # lower triangle, of the natural logarithms, in the order of `parameters`
      0.0004
      0.0001 0.0009
    model_spread: 0.05          # standard deviation of ln(measured/predicted) that remains
    points: 412
    flops: [1.0e+06, 4.0e+13]   # range of the measured points, where the fit interpolates
    hbm_bytes: [1.0e+04, 2.0e+09]
    lengths: [1.0, 3.2e+04]     # and of the tokens (entries, rows) that one sequence goes through
    flagged: {host plateau: 12} # rows that were left out, by rule
    held_out: {n: 103, median_ape: 4.1, mean_ape: 6.0, p90_ape: 13.2}

Of several kernels for the same family, instance and module the first is what the library runs by default. A
prediction reads only the documents of the families that it needs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.algebra import Quantity, log2, maximum
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.base import Form, Kernel
from costmodel.kernels.processor import PROCESSOR, for_device
from costmodel.loading import Problems, available, data_folder, parse_mapping, read_text, user_folder
from costmodel.transfers import ANY_FAMILY, transfer_spreads

if TYPE_CHECKING:
    from costmodel.fallback import Elsewhere

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

HEADER = ("schema", "id", "hardware", "library", "version", "date", "source", "notice", "seed", "command")
ENTRY = (
    "family",
    "instance",
    "module",
    "kernel",
    "parameters",
    "covariance",
    "model_spread",
    "points",
    "flops",
    "hbm_bytes",
    "lengths",
    "flagged",
    "held_out",
    "host_s",
    "occupancy",
)
SEPARATOR = "\n---\n"


TENSOR = "tensor_efficiency"
"""The parameter that is a share of a matrix engine's peak."""
REPEATABLE = 0.01
"""Spread of repeated measurements: doubted all the same where a covariance alone explains what a fit missed."""
LEAST_MOVED = 1e-3
"""A direction along which no parameter moves by a tenth of a percent, as in modules that fit few of them, is none."""


class Fit(NamedTuple):
    """Parameters of one kernel instance: values, and columns of steps of one standard deviation.

    key is (family, instance, module). columns holds, for each independent direction, the change of the logarithm
    of every parameter; for priors each direction is one parameter. flops, hbm_bytes, lengths: smallest and largest of
    the measured kernels (`Kernel.length`; None in files that do not say), None for priors. host_s: seconds of host time
    that an eager benchmark of the kernel could not hide, 0 where launches were captured; no part of the device time.
    occupancy: thread blocks of the measured kernel that share a unit, as its compiler says; 0: what the grid says.
    origin: where the parameters come from that the calibration in use does not hold; "" for its own.
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
        """The model error, wider outside the measured range."""
        if self.flops is None:
            return self.model_spread
        family, _, module = self.key
        growth = EXTRAPOLATION_SPREADS.get(module or family, EXTRAPOLATION_SPREADS[""])
        return self.model_spread * (1.0 + growth * self.octaves_outside(kernel))

    def for_another(self) -> "Fit":
        """What these parameters are worth for a kernel that was not measured: a processor's are measured in fp32 and
        one head width, and stand in for all others; a family's for one that is like it."""
        return self._replace(transferred=True, model_spread=self.model_spread * TRANSFER_SPREAD)

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


class Document(NamedTuple):
    """One entry of a calibration before it is read: whose it is, the library's kernel, and its text."""

    key: tuple[str, str, str]
    kernel: str
    text: str


class Calibration(NamedTuple):
    """The fits of one device and library. Without a file it is the generic prior.

    entries: the documents of each family, as text until they are asked for; read_ keeps what was read. slower: clock
    of the measured device over that of this one, by which a relative's seconds are stretched (None: the device's own).
    source: the library's name of the kernel to prefer where there are several ("" takes the library's default).
    busier: what a unit's matrix engine does per clock, of this device over the measured one.
    missed: for a relative of another generation, by family, what its parameters were found to miss of ln(time).
    beyond: where the parameters of kernels are looked for that none of the entries is for.
    """

    id: str | None = None
    library: str = "prior"
    hardware: str = ""
    entries: Mapping[str, tuple[Document, ...]] = MappingProxyType({})
    slower: float | None = None
    busier: float = 1.0
    place: str = ""
    source: str = ""
    missed: Mapping[str, float] = MappingProxyType({})
    beyond: "Elsewhere | None" = None
    read_: dict[Document, Fit] = {}  # noqa: RUF012  # the prior has no entries and never fills it

    def fits(self, form: Form) -> tuple[Fit, ...]:
        """Every fit of a family, in the order of the file. Raises BadInput for the first entry with a problem."""
        return tuple(self.read(document, form) for document in self.entries.get(form.family, ()))

    def read(self, document: Document, form: Form) -> Fit:
        """The fit of one entry."""
        if document not in self.read_:
            known = for_device(form, self.hardware)
            missed = self.missed.get(form.family, self.missed.get(ANY_FAMILY))
            self.read_[document] = read_entry(self.place, document.text, known, self.slower, missed, self.busier)
        return self.read_[document]

    def fit(self, kernel: Kernel) -> Fit:
        """The fit of a kernel: of this calibration, else what others say of it, else the prior."""
        found = self.own_fit(kernel, strict=self.beyond is not None)
        if found is None and self.beyond is not None:
            found = self.beyond.fit(kernel)
        return prior_fit(kernel.form) if found is None else found

    def own_fit(self, kernel: Kernel, strict: bool = False) -> Fit | None:
        """The fit of a kernel's instance inside its module, else anywhere, else of a less special instance (the name
        without what follows its last hyphen), at last of its family, or of one that is like it; None where no entry
        is for it. strict: of families whose instances begin with a mechanism, what another one's kernels share is for
        none but its own."""
        documents = self.entries.get(kernel.family, ())
        instance = kernel.instance
        while documents:
            for key in ((kernel.family, instance, kernel.module), (kernel.family, instance, "")):
                found = [document for document in documents if document.key == key]
                if strict and kernel.form.by_mechanism and not (instance or key[2]):
                    found = [each for each in found if self.mechanism_of(each) == _mechanism(kernel.instance)]
                if found:
                    preferred = next((each for each in found if each.kernel == self.source), found[0])
                    fit = self.read(preferred, kernel.form)
                    return fit.for_another() if self.hardware == PROCESSOR and kernel.instance and not instance else fit
            if not instance:
                break
            instance = instance.rpartition("-")[0]
        like = kernel.form.like
        if like is not None and like.family in self.entries:
            found_like = self.own_fit(kernel._replace(form=like), strict)
            return None if found_like is None else found_like.for_another()
        return None

    def mechanism_of(self, document: Document) -> str:
        """The mechanism that an entry's kernel runs: of its module, else by what was measured of the same kernel; ""
        where nothing tells."""
        family, instance, module = document.key
        if module:
            return module.rpartition("-")[0]
        same = [each for each in self.entries[family] if each.kernel == document.kernel]
        names = {_mechanism(name) for name in (instance, *(each.key[1] for each in same)) if name}
        return names.pop() if len(names) == 1 else ""


def _mechanism(instance: str) -> str:
    """The mechanism at the beginning of an instance's name."""
    return instance.partition("-")[0]


PRIOR = Calibration()


def from_fits(fits: Iterable[Fit], id: str | None = None, library: str = "", hardware: str = "") -> Calibration:
    """A calibration of fits in memory, in their order."""
    entries: dict[str, tuple[Document, ...]] = {}
    read: dict[Document, Fit] = {}
    for index, fit in enumerate(fits):
        document = Document(fit.key, fit.kernel, str(index))
        entries[fit.key[0]] = (*entries.get(fit.key[0], ()), document)
        read[document] = fit
    return Calibration(id, library, hardware, entries=entries, read_=read)


def read_calibration(path: Path) -> Calibration:
    """A calibration file: its header, and its entries as text. Raises BadInput with every problem found."""
    return parse_calibration(read_text(path), path)


def parse_calibration(text: str, path: Path) -> Calibration:
    """The calibration that a file's text holds."""
    header, *texts = text.split(SEPARATOR)
    raw = parse_mapping(header, path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, HEADER)
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    problems.raise_if_any()
    entries: dict[str, list[Document]] = {}
    for text in texts:
        document = _document(text)
        entries.setdefault(document.key[0], []).append(document)
    return Calibration(
        id=str(raw.get("id") or path.stem),
        library=str(raw.get("library") or path.stem),
        hardware=str(raw.get("hardware")),
        entries={family: tuple(found) for family, found in entries.items()},
        place=str(path),
        read_={},
    )


def _document(text: str) -> Document:
    """Whose entry a text is, from the lines at its top: a whole file is too long to parse for a few kernels."""
    told = dict.fromkeys(("family", "instance", "module", "kernel"), "")
    for line in text.split("\n", len(told))[: len(told)]:
        name, _, value = line.partition(": ")
        if name in told:
            told[name] = value.strip().strip("'\"")
    return Document((told["family"], told["instance"], told["module"]), told["kernel"], text)


def check_calibration(calibration: Calibration, forms: Mapping[str, Form]) -> None:
    """Read every entry. Raises BadInput for the first family that is unknown or has a problem."""
    for family in calibration.entries:
        if family not in forms:
            problems = Problems(calibration.place)
            problems.unknown_keys({family: 0}, forms, "family")
            problems.raise_if_any()
        calibration.fits(forms[family])


def read_entry(
    place: str, text: str, form: Form, slower: float | None = None, missed: float | None = None, busier: float = 1.0
) -> Fit:
    """One document of a calibration (slower, missed, busier: see `Calibration`). Raises BadInput with every problem."""
    entry = parse_mapping(text, Path(place))
    problems = Problems(place)
    where = "/".join([form.family, *(str(entry[key]) for key in ("instance", "module") if entry.get(key))])
    problems.unknown_keys(entry, ENTRY, where)
    declared = {parameter.name: parameter for parameter in form.parameters}
    clocked = TENSOR if form.clocked and busier != 1.0 else None
    given = problems.mapping(entry.get("parameters"), f"{where}.parameters")
    problems.unknown_keys(given, [*declared, *form.elsewhere], f"{where}.parameters")
    values = {name: parameter.prior for name, parameter in declared.items()}
    for name, value in given.items():
        if name in declared:
            low, high = declared[name].low, declared[name].high
            most = declared[name].most or high
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= most:
                problems.add(f"{where}.parameters.{name}: {str(value)[:40]} is outside {low:g} to {most:g}")
                continue
            stretch = slower if slower and declared[name].unit == "s" else 1.0
            moved = share_of_peak(float(value), busier) if name == clocked else float(value) * stretch
            values[name] = min(max(moved, low), high)
    factor = _cholesky(_triangle(entry.get("covariance")), len(given))
    if factor is None:
        problems.add(f"{where}.covariance: not the lower triangle of a positive {len(given)} × {len(given)} matrix")
    ranges: dict[str, tuple[float, float]] = {}
    for key in ("flops", "hbm_bytes", "lengths"):
        pair = entry.get(key)
        if key == "lengths" and pair is None:
            continue
        if not (isinstance(pair, list) and len(pair) == 2):
            problems.add(f"{where}.{key}: expected [smallest, largest] of the measured points")
            continue
        ranges[key] = (problems.number(pair[0], f"{where}.{key}"), problems.number(pair[1], f"{where}.{key}"))
    spread = entry.get("model_spread")
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < 10:
        problems.add(f"{where}.model_spread: {str(spread)[:40]!r} is not a spread of logarithms")
        spread = 0.0
    points = problems.whole_number(entry.get("points") or 0, f"{where}.points", least=0)
    host_s = problems.number(entry.get("host_s") or 0.0, f"{where}.host_s")
    occupancy = problems.whole_number(entry.get("occupancy") or 0, f"{where}.occupancy", least=0)
    problems.raise_if_any()
    assert factor is not None
    widen = 1.0 if slower is None or missed is not None else TRANSFER_SPREAD
    names = list(given)
    steps = {name: widen * (busier * values[name] / float(given[name]) if name == clocked else 1.0) for name in names}
    return Fit(
        key=(form.family, str(entry.get("instance") or ""), str(entry.get("module") or "")),
        values=values,
        columns=tuple(
            {
                names[row]: factor[row][column] * steps[names[row]]
                for row in range(column, len(names))
                if names[row] in declared
            }
            for column in range(len(names))
            if max(abs(factor[row][column]) for row in range(column, len(names))) >= LEAST_MOVED
        ),
        bounds={name: (parameter.low, parameter.high) for name, parameter in declared.items()},
        model_spread=math.hypot(max(float(spread), REPEATABLE) * widen, missed or 0.0),
        transferred=slower is not None,
        flops=ranges["flops"],
        hbm_bytes=ranges["hbm_bytes"],
        lengths=ranges.get("lengths"),
        points=points,
        kernel=str(entry.get("kernel") or ""),
        host_s=host_s,
        occupancy=occupancy,
    )


def _triangle(text: Any) -> list[list[float]] | None:
    """The rows of a lower triangle written one per line."""
    try:
        rows = [[float(number) for number in line.split()] for line in str(text).strip().splitlines()]
    except ValueError:
        return None
    complete = all(len(row) == index + 1 and all(map(math.isfinite, row)) for index, row in enumerate(rows))
    return rows if complete else None


def _cholesky(triangle: Sequence[Sequence[float]] | None, size: int) -> list[list[float]] | None:
    """Lower factor of a positive semi-definite matrix given by its lower triangle, else None."""
    if triangle is None or len(triangle) != size:
        return None
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = triangle[i][j] - sum(factor[i][k] * factor[j][k] for k in range(j))
            if i == j:
                # Written digits are few: what strong correlation leaves may come out a little below zero.
                if not rest >= -1e-4 * triangle[i][i]:
                    return None
                factor[i][i] = math.sqrt(max(rest, 0.0))
            else:
                factor[i][j] = rest / factor[j][j] if factor[j][j] else 0.0
    return factor


def find_calibration(hardware: Hardware, library: str | None) -> Calibration:
    """The calibration to use: the user's own for this device, a shipped one, a relative's, else the prior.

    library None prefers the user's own, then vllm, then the first by name. Raises BadInput for a library
    that has no calibration for this device or a relative; `prior` asks for the generic priors.
    """
    if library == "prior":
        return PRIOR
    found = own_calibration(hardware, library) or relatives_calibration(hardware, library)
    if found.id is None and library is not None:
        from costmodel.errors import unknown

        raise unknown(f"library for {hardware.name}", library, [*libraries(hardware.name), "prior"])
    return found if found.id is None else with_others(found, hardware)


def with_others(calibration: Calibration, hardware: Hardware) -> Calibration:
    """The calibration of a device, with all others beyond it."""
    from costmodel.fallback import Elsewhere

    return calibration._replace(beyond=Elsewhere(hardware, calibration.library, calibration.place))


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


def share_of_peak(measured: float, busier: float) -> float:
    """The share of a matrix engine's peak that a kernel reaches where the engine does `busier` times as much per clock.

    What a kernel does between its products (addresses, barriers, copies) takes clocks of its own: they are 1/share − 1
    of the products' time, and the faster the engine, the more.

    >>> round(share_of_peak(0.2, 0.25), 3), round(share_of_peak(0.2, 2.0), 3)
    (0.5, 0.111)
    """
    return 1.0 / (1.0 + (1.0 / measured - 1.0) * busier)


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
    found: dict[str, Path] = {}
    for base in (data_folder("hardware_profiles") / "calibrations", user_folder("calibrations")):
        folder = base / hardware
        if folder.is_dir():
            found.update({path.stem: path for path in sorted(folder.glob("*.yaml"))})
    return found


def chosen_file(files: Mapping[str, Path], library: str | None) -> Path | None:
    """The file of a library; of any (None) the user's own first, then vllm's."""
    if library is not None:
        return files.get(library)
    user = user_folder("calibrations")
    for path in files.values():
        if user in path.parents:
            return path
    return files.get("vllm") or next(iter(files.values()), None)


def relatives(hardware: Hardware) -> list[Hardware]:
    """Calibrated devices of the same vendor, those of the same generation first; other vendors' kernels are others."""
    base = data_folder("hardware_profiles") / "calibrations"
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
