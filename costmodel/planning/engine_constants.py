"""What a serving library's engine adds to the kernels, and how it batches unless told otherwise.

Two kinds of YAML files, one of each for a library:

- `hardware_profiles/engines/vllm.yaml`: facts, the defaults of the library's own options with their sources;
- `hardware_profiles/engines/constants/vllm.yaml`: fitted host times, written by `calibrate --from-serving` and never by
  hand. A user's own lie in the folder `engines` of the user's data directory and win over shipped ones.

    schema: 1
    id: engines/vllm
    library: vllm
    date: 2026-11-29
    source: where the measurements come from
    command: costmodel calibrate --from-serving FILE
    constants: {step_s: 0.0003, layer_s: 1.0e-05, …}      # see CONSTANTS
    deviations: {step_s: 0.0001, …}                       # one standard deviation of each, where fitted
    spread: {ttft: 0.4, tpot: 0.1}                        # standard deviation of ln(measured/predicted), unseen models
    rows: 120                                             # measured runs that it was fitted to

`engine_constants` is the one way to them: `simulate`, `plan` and `validate --serving` all ask it.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from costmodel.calibration import find_calibration
from costmodel.hardware import Hardware
from costmodel.loading import Problems, data_folder, read_mapping, user_folder
from costmodel.planning.step_times import HostTime


class Constant(NamedTuple):
    """One constant: its prior value and how far from it is usual (one standard deviation), its bounds, its meaning."""

    name: str
    prior: float
    deviation: float
    low: float
    high: float
    meaning: str


CONSTANTS = (
    Constant("step_s", 3e-4, 3e-4, 0.0, 5e-3, "scheduling and sampling that the device waits for, in an iteration"),
    Constant("layer_s", 5e-6, 1e-5, -2e-5, 1e-4, "gaps and synchronisation of a layer, less what fusing saves"),
    Constant("moe_layer_s", 5e-6, 1e-5, -2e-5, 1e-4, "the same, more in a layer of experts"),
    Constant("product_s", -2e-6, 3e-6, -1e-5, 1e-5, "a product with quantised activations, beside its measurement"),
    Constant("sequence_s", 5e-6, 1e-5, 0.0, 2e-4, "a sequence that gets a token: detokenizing, streaming"),
    Constant(
        "prompt_layer_s", 2e-4, 1e-4, 0.0, 2e-3, "a layer launched kernel by kernel, in an iteration with prompts"
    ),
    Constant("front_end_s", 1e-2, 2e-2, 0.0, 0.5, "from the client to the queue and back: HTTP, tokenizer, processes"),
    Constant("serial_s", 5e-4, 1e-3, 0.0, 2e-2, "what the front end does for one request at a time"),
)
"""The constants of an engine, seconds each. Priors are what launching a kernel (5 µs), a trip between processes (0.1 to
1 ms) and an HTTP request with a tokenizer (some ms) take on a server's processor."""

PRIOR_SPREAD = {"ttft": 0.6, "tpot": 0.25}
"""Standard deviation of ln(measured/predicted) where nothing was fitted."""

KEYS = (
    "schema",
    "id",
    "library",
    "version",
    "date",
    "source",
    "notice",
    "command",
    "constants",
    "deviations",
    "spread",
)
MORE_KEYS = ("rows", "models", "held_out")


class EngineConstants(NamedTuple):
    """Host times of a library's engine, and how far its predictions are off on models that no fit saw (ln)."""

    id: str | None
    library: str
    host: HostTime
    spread: Mapping[str, float] = MappingProxyType(PRIOR_SPREAD)


def prior_constants() -> dict[str, float]:
    """The constants where nothing was fitted."""
    return {constant.name: constant.prior for constant in CONSTANTS}


def engine_constants(library: str | None, hardware: Hardware | None = None) -> EngineConstants:
    """The constants of a library: the user's own, else shipped ones, else the priors.

    library None takes the one whose calibration of this device is preferred, as predictions do. `prior` asks for the
    priors. Raises BadInput for a file with problems.
    """
    if library is None and hardware is not None:
        library = find_calibration(hardware, None).library
    if library is not None and library != "prior":
        shipped = data_folder("hardware_profiles") / "engines" / "constants"
        for folder in (user_folder("engines"), shipped):
            path = folder / f"{library}.yaml"
            if path.is_file():
                return read_constants(path)
    return EngineConstants(None, library or "prior", HostTime(**prior_constants()))


def read_constants(path: Path) -> EngineConstants:
    """The constants of a file. Raises BadInput with every problem found."""
    raw = read_mapping(path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, (*KEYS, *MORE_KEYS))
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    given = problems.mapping(raw.get("constants"), "constants")
    problems.unknown_keys(given, [constant.name for constant in CONSTANTS], "constants")
    values = prior_constants()
    for constant in CONSTANTS:
        if constant.name in given:
            values[constant.name] = _number(given[constant.name], constant, problems)
    spread = dict(PRIOR_SPREAD)
    given = problems.mapping(raw.get("spread") or {}, "spread")
    problems.unknown_keys(given, spread, "spread")
    for name, value in given.items():
        if name in spread:
            spread[name] = problems.number(value, f"spread.{name}", most=10.0)
    problems.raise_if_any()
    name = str(raw.get("library") or path.stem)
    return EngineConstants(str(raw.get("id") or path.stem), name, HostTime(**values), spread)


def _number(value: Any, constant: Constant, problems: Problems) -> float:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not constant.low <= value <= constant.high:
        problems.add(
            f"constants.{constant.name}: {str(value)[:40]} is outside {constant.low:g} to {constant.high:g} seconds"
        )
        return constant.prior
    return float(value)
