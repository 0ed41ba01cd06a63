"""What is known of the time forms' parameters on a device: fitted values with their covariance, or priors.

A calibration is a YAML file, written by a command and never by hand:

    schema: 1
    id: h100-sxm/vllm-0.24.0
    hardware: h100-sxm          # the profile it was measured on
    library: vllm
    version: 0.24.0
    date: 2026-11-23
    source: where the measurements come from
    kernels:
    - family: gemm
      instance: bf16            # the compiled kernel; "" fits every instance of the family
      parameters: {launch_s: 2.0e-6, tensor_efficiency: 0.86, …}
      covariance: [[…], …]      # of the natural logarithms, in the order of `parameters`
      model_spread: 0.05        # standard deviation of ln(measured/predicted) that remains
      points: 412
      flops: [1.0e6, 4.0e13]    # range of the measured points, where the fit interpolates
      hbm_bytes: [1.0e4, 2.0e9]
      held_out: {n: 103, median_ape: 4.1, mean_ape: 6.0, p90_ape: 13.2}
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel
from costmodel.loading import Problems, available, data_folder, read_mapping, user_folder

BASES = ("table", "fitted", "extrapolated", "transferred", "prior")
"""From strongest to weakest."""

TRANSFER_SPREAD = 1.5
"""How much wider the spread of a relative's parameters is taken than their own."""


class Fit(NamedTuple):
    """Parameters of one kernel instance: values, and columns of steps of one standard deviation.

    columns holds, for each independent direction, the change of the logarithm of every parameter; for
    priors each direction is one parameter. ranges are the measured FLOPs and bytes, None for priors.
    """

    key: tuple[str, str]
    values: Mapping[str, float]
    columns: tuple[Mapping[str, float], ...]
    bounds: Mapping[str, tuple[float, float]]
    model_spread: float
    transferred: bool = False
    flops: tuple[float, float] | None = None
    hbm_bytes: tuple[float, float] | None = None
    points: int = 0

    def basis(self, kernel: Kernel) -> str:
        """How firm the parameters are for this kernel."""
        if self.flops is None or self.hbm_bytes is None:
            return "prior"
        if self.transferred:
            return "transferred"
        inside = (
            self.flops[0] <= kernel.ideal.flops <= self.flops[1]
            and self.hbm_bytes[0] <= kernel.ideal.hbm_bytes <= self.hbm_bytes[1]
        )
        return "fitted" if inside else "extrapolated"

    def shifted(self, column: Mapping[str, float], sign: float) -> dict[str, float]:
        """The values moved by one standard deviation along a direction, inside their bounds."""
        moved = dict(self.values)
        for name, change in column.items():
            low, high = self.bounds[name]
            moved[name] = min(max(moved[name] * math.exp(sign * change), low), high)
        return moved


def prior_fit(form: Form) -> Fit:
    """What is known of a family before any measurement."""
    return Fit(
        key=(form.family, ""),
        values=form.priors(),
        columns=tuple({parameter.name: parameter.spread} for parameter in form.parameters),
        bounds={parameter.name: (parameter.low, parameter.high) for parameter in form.parameters},
        model_spread=form.model_spread,
    )


class Calibration(NamedTuple):
    """The fits of one device and library. Without a file it is the generic prior."""

    id: str | None = None
    library: str = "prior"
    hardware: str = ""
    fits: Mapping[tuple[str, str], Fit] = MappingProxyType({})

    def fit(self, kernel: Kernel) -> Fit:
        """The fit of a kernel's instance, else of its family, else the prior."""
        for key in ((kernel.family, kernel.instance), (kernel.family, "")):
            if key in self.fits:
                return self.fits[key]
        return prior_fit(kernel.form)


PRIOR = Calibration()


def read_calibration(path: Path, forms: Mapping[str, Form], transferred: bool = False) -> Calibration:
    """A calibration file. Raises BadInput with every problem found."""
    raw = read_mapping(path)
    problems = Problems(str(path))
    known = ("schema", "id", "hardware", "library", "version", "date", "source", "notice", "seed", "command", "kernels")
    problems.unknown_keys(raw, known)
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    fits: dict[tuple[str, str], Fit] = {}
    kernels = raw.get("kernels") or []
    if not isinstance(kernels, list):
        problems.add("kernels: expected a list")
        kernels = []
    for index, entry in enumerate(kernels):
        fit = _read_fit(problems, f"kernels[{index}]", problems.mapping(entry, f"kernels[{index}]"), forms, transferred)
        if fit:
            fits[fit.key] = fit
    problems.raise_if_any()
    return Calibration(
        str(raw.get("id") or path.stem), str(raw.get("library") or path.stem), str(raw.get("hardware")), fits
    )


def _read_fit(
    problems: Problems, where: str, entry: Mapping[str, Any], forms: Mapping[str, Form], transferred: bool
) -> Fit | None:
    form = forms.get(str(entry.get("family")))
    if form is None:
        problems.unknown_keys({str(entry.get("family")): 0}, forms, f"{where}.family")
        return None
    declared = {parameter.name: parameter for parameter in form.parameters}
    values = problems.mapping(entry.get("parameters"), f"{where}.parameters")
    problems.unknown_keys(values, declared, f"{where}.parameters")
    numbers = {name: parameter.prior for name, parameter in declared.items()}
    for name, value in values.items():
        if name in declared:
            low, high = declared[name].low, declared[name].high
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                problems.add(f"{where}.parameters.{name}: {str(value)[:40]} is outside {low:g} to {high:g}")
            else:
                numbers[name] = float(value)
    covariance = entry.get("covariance")
    factor = _cholesky(covariance, len(values))
    if factor is None:
        problems.add(f"{where}.covariance: not a positive {len(values)} × {len(values)} matrix")
        return None
    ranges: dict[str, tuple[float, float]] = {}
    for key in ("flops", "hbm_bytes"):
        pair = entry.get(key)
        if not (isinstance(pair, list) and len(pair) == 2):
            problems.add(f"{where}.{key}: expected [smallest, largest] of the measured points")
            return None
        ranges[key] = (problems.number(pair[0], f"{where}.{key}"), problems.number(pair[1], f"{where}.{key}"))
    widen = TRANSFER_SPREAD if transferred else 1.0
    spread = entry.get("model_spread")
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < 10:
        problems.add(f"{where}.model_spread: {str(spread)[:40]!r} is not a spread of logarithms")
        return None
    names = list(values)
    return Fit(
        key=(form.family, str(entry.get("instance") or "")),
        values=numbers,
        columns=tuple(
            {names[row]: factor[row][column] * widen for row in range(column, len(names))}
            for column in range(len(names))
        ),
        bounds={name: (parameter.low, parameter.high) for name, parameter in declared.items()},
        model_spread=float(spread) * widen,
        transferred=transferred,
        flops=ranges["flops"],
        hbm_bytes=ranges["hbm_bytes"],
        points=problems.whole_number(entry.get("points") or 0, f"{where}.points", least=0),
    )


def _cholesky(matrix: Any, size: int) -> list[list[float]] | None:
    """Lower factor of a positive semi-definite matrix, else None."""
    square = isinstance(matrix, list) and len(matrix) == size
    if not square or not all(isinstance(row, list) and len(row) == size for row in matrix):
        return None
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            if isinstance(matrix[i][j], bool) or not isinstance(matrix[i][j], int | float):
                return None
            rest = float(matrix[i][j]) - sum(factor[i][k] * factor[j][k] for k in range(j))
            if i == j:
                if not rest >= -1e-12:
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
    for name in _nearest(hardware):
        chosen = _choose(_files(name), library)
        if chosen is not None:
            from costmodel.kernels import forms

            return read_calibration(chosen, forms(), transferred=name != hardware.name)
    if library is not None:
        from costmodel.errors import unknown

        raise unknown(f"library for {hardware.name}", library, [*libraries(hardware.name), "prior"])
    return PRIOR


def libraries(hardware: str) -> list[str]:
    """The libraries with a calibration of this very device."""
    return sorted(_files(hardware))


def _files(hardware: str) -> dict[str, Path]:
    """Library → calibration file of a device; the user's own come last and win."""
    found: dict[str, Path] = {}
    for base in (data_folder("hardware_profiles") / "calibrations", user_folder("calibrations")):
        folder = base / hardware
        if folder.is_dir():
            found.update({path.stem: path for path in sorted(folder.glob("*.yaml"))})
    return found


def _choose(files: Mapping[str, Path], library: str | None) -> Path | None:
    if library is not None:
        return files.get(library)
    user = user_folder("calibrations")
    for path in files.values():
        if user in path.parents:
            return path
    return files.get("vllm") or next(iter(files.values()), None)


def _nearest(hardware: Hardware) -> Iterator[str]:
    """The device itself and, only if asked further, its calibrated relatives; a CPU has none among accelerators."""
    yield hardware.name
    if hardware.name != "cpu":
        yield from _relatives(hardware)


def _relatives(hardware: Hardware) -> list[str]:
    """Calibrated devices of the same generation first, then the others."""
    base = data_folder("hardware_profiles") / "calibrations"
    if not base.is_dir():
        return []
    profiles = available("hardware_profiles")
    names = [folder.name for folder in sorted(base.iterdir()) if folder.is_dir() and folder.name in profiles]
    generation = {name: read_mapping(profiles[name]).get("generation") for name in names if name != hardware.name}
    return sorted(generation, key=lambda name: (generation[name] != hardware.generation, name))
