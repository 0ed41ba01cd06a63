"""What a serving library's engine adds to the kernels: host times, fitted to measured serving runs.

They lie in YAML files, one for each library, written by `calibrate --from-serving` and never by hand: shipped ones in
`hardware_profiles/engines/constants`, a user's own, which win, in the folder `engines` of the user's data directory.

    schema: 1
    id: engines/vllm
    library: vllm
    date: 2026-11-29
    source: where the measurements come from
    command: costmodel calibrate --from-serving FILE
    constants: {step_s: 0.0003, layer_s: 1.0e-05, …}      # see CONSTANTS; for devices without an entry of their own
    devices:
      h100-sxm: {…}                                       # for a device whose runs were measured
    without:                                              # the same, fitted without the runs of one model
      llama-3.1-70b: {constants: {…}, devices: {…}}
    spread: {ttft: 0.4, tpot: 0.1}                        # standard deviation of ln(measured/predicted), unseen models
    runs: 120                                             # measured runs that it was fitted to
    models: {llama-3.1-70b: 60, …}

`engine_constants` is the one way to them: `simulate`, `plan` and `validate --serving` all ask it.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from costmodel.calibration_files import library_name
from costmodel.hardware import Hardware, load_hardware
from costmodel.loading import Problems, data_folder, read_mapping, user_folder
from costmodel.planning.step_times import HostTime


class Constant(NamedTuple):
    """One constant: its prior value and how far from it is usual (one standard deviation), its bounds, its meaning,
    and whether it may differ between devices."""

    name: str
    prior: float
    deviation: float
    low: float
    high: float
    meaning: str
    of_device: bool = True


CONSTANTS = (
    Constant("step_s", 3e-4, 1.5e-4, 0.0, 5e-3, "scheduling and sampling that the device waits for, in an iteration"),
    Constant("layer_s", 5e-6, 5e-6, -3e-5, 1e-4, "a layer's gaps and synchronisation, less what fused kernels save"),
    Constant("moe_layer_s", 0.0, 4e-6, -6e-5, 1e-4, "more in a layer of experts, less what runs on a second stream"),
    Constant("product_s", -2e-6, 1e-6, -1e-5, 1e-5, "a product with quantised activations, beside its measurement"),
    Constant("sequence_s", 5e-6, 5e-6, 0.0, 2e-4, "a sequence that gets a token: detokenizing, streaming"),
    Constant(
        "front_end_s", 3e-2, 2e-2, 0.0, 0.5, "on the way from client to queue and back: HTTP, tokenizer, stream", False
    ),
)
"""The constants of an engine, seconds each. Priors are what launching a kernel (5 µs), a trip between processes (0.1 to
1 ms) and an HTTP request with a tokenizer (some ms) take on a server's processor."""

LIBRARY_PRIORS: Mapping[str, Mapping[str, float]] = MappingProxyType({"trtllm": {"product_s": -7e-6}})
"""Where more is known of a library before a fit. TensorRT-LLM's products were measured with scales found on the fly, in
two kernels of their own (3 to 4 µs each); checkpoints bring scales, and what comes before a product quantises."""

PRIOR_SPREAD = {"ttft": 0.6, "tpot": 0.25}
"""Standard deviation of ln(measured/predicted) where nothing was fitted."""

KEYS = ("schema", "id", "library", "date", "source", "notice", "command", "constants", "devices", "without", "spread")
MORE_KEYS = ("runs", "models")


class EngineConstants(NamedTuple):
    """Host times of a library's engine on a device, and how far its predictions are off on unseen models (ln)."""

    id: str | None
    library: str
    host: HostTime
    spread: Mapping[str, float] = MappingProxyType(PRIOR_SPREAD)


def prior_constants(library: str | None = None) -> dict[str, float]:
    """The constants before anything is fitted."""
    return {constant.name: constant.prior for constant in CONSTANTS} | dict(LIBRARY_PRIORS.get(library or "", {}))


def engine_constants(
    library: str | None, hardware: Hardware | None = None, *, without: str | None = None
) -> EngineConstants:
    """The constants of a library on a device: the user's own, else shipped ones, else the priors.

    library None takes the one whose calibration of this device is preferred, as predictions do; `prior` asks for the
    priors. A device without measured runs takes those of one of its generation, else the library's in general.
    without: an architecture whose runs the fit must not have seen. Raises BadInput for a file with problems.
    """
    if hardware is not None:
        library = library_name(hardware, library)
    path = None if library in (None, "prior") else constants_path(str(library))
    if path is None:
        return EngineConstants(None, library or "prior", HostTime(**prior_constants(library)))
    raw = read_mapping(path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, (*KEYS, *MORE_KEYS))
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    fits = {"": raw, **problems.mapping(raw.get("without") or {}, "without")}
    seen = without is not None and without in problems.mapping(raw.get("models") or {}, "models")
    # Of a model that every fit has seen, only the priors have not.
    fit = fits.get(without or "", {"constants": {}} if seen else raw)
    chosen = _of_device(fit.get("devices") or {}, hardware) or fit.get("constants") or {}
    values = _checked(chosen, prior_constants(library), problems)
    spread = dict(PRIOR_SPREAD)
    for name, value in problems.mapping(fit.get("spread") or raw.get("spread") or {}, "spread").items():
        spread[name] = problems.number(value, f"spread.{name}", most=10.0)
    problems.raise_if_any()
    return EngineConstants(str(raw.get("id") or path.stem), str(library), HostTime(**values), spread)


def constants_path(library: str) -> Path | None:
    """The file of a library's constants, the user's own before the shipped one; None where there is neither."""
    shipped = data_folder("hardware_profiles") / "engines" / "constants"
    return next(
        (path for base in (user_folder("engines"), shipped) if (path := base / f"{library}.yaml").is_file()), None
    )


def _of_device(devices: Mapping[str, Any], hardware: Hardware | None) -> Any:
    if hardware is None or not devices:
        return None
    if hardware.name in devices:
        return devices[hardware.name]
    kin = (name for name in devices if load_hardware(name).generation == hardware.generation)
    return devices.get(next(kin, ""))


def _checked(given: Any, values: dict[str, float], problems: Problems) -> dict[str, float]:
    """The priors replaced by what a file says, each inside its bounds."""
    found = problems.mapping(given, "constants")
    problems.unknown_keys(found, values, "constants")
    for constant in CONSTANTS:
        value = found.get(constant.name, values[constant.name])
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if number and constant.low <= value <= constant.high:
            values[constant.name] = float(value)
        else:
            bounds = f"{constant.low:g} to {constant.high:g} seconds"
            problems.add(f"constants.{constant.name}: {str(value)[:40]} is outside {bounds}")
    return values
