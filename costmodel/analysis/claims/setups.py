"""The set-up of a claim: what runs, on what, in which formats, how much at a time; read strictly from a mapping."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.analysis.claims.devices import BY_MMA_SYNC, ampere_on_hopper, device, of_ampere
from costmodel.analysis.full_attention import one_layer, with_full_attention
from costmodel.architecture import Architecture, Block
from costmodel.calibration import Calibration, read_calibration
from costmodel.calibration_files import calibration_path, find_calibration, transferred_from
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware, load_hardware
from costmodel.loading import Problems
from costmodel.mixers import mixer
from costmodel.model_file import ROLES, load_architecture, read_dims
from costmodel.parallel.layout import Layout, parse_layout
from costmodel.parallel.memory import max_concurrency, step_results
from costmodel.parallel.placement import cache_bytes, place
from costmodel.prediction import make_precision
from costmodel.settings import split_settings
from costmodel.step import Precision, Step

FILL = "fill"
"""A batch as large as memory holds."""


class SetUp(NamedTuple):
    """Under what a number was measured. Entries have the names of the command line's options where those exist.

    architecture: a name, or a file beside the claim; mixer: instead, one layer of this mechanism (fields as in an
    architecture's file) of width d_model. full_attention: the same model with full attention in every layer.
    settings: as for `--set`. calibrated_on: the device whose measured kernels are taken, where not this one's; those of
    Ampere multiply by `mma.sync`, and in their own tiles, wherever they run. calibration: instead, a file beside the
    claim with parameters of the claim's own kernels, fitted to other numbers of its tables, or to another source's
    tables, in whose folder it is (`validation/paper_kernels.py`). substitute: the kernels are of another implementation
    than the measured ones. block_per_tile: no thread block stays for several tiles, as FlashAttention-3's do in
    training, and of a product a started round of tiles is a whole one. in_order: blocks that stay take tiles in the
    order of the queries, as in FlashAttention-3's report. without_pingpong: warpgroups of attention on Hopper do not
    take turns at products and softmax. shared_state: FlashKDA's own build, whose state lies in shared
    memory, where the measured one keeps it in registers. stateless: a recurrence's kernels start from no state and
    leave none, as benchmarks of them alone do.
    batch: sequences, or "fill", as many as memory holds; tokens: instead, so many tokens in all sequences together.
    unquantised: roles whose weights `weights` leaves in 16 bit, as in an architecture's file (a checkpoint in nvfp4
    most often keeps `mixer`). drafter: the layers that predict further tokens run over the step's tokens as well, as in
    the prefill of an engine that drafts with them (without the 2D → D matrix before each).
    quantised: activations arrive in the format of the products, so that no quantisation is timed. outputs: the format
    in which products leave (none: the model's). flushed: before each call a buffer larger than L2 was cleared.
    whole_prompts: a batch that fills memory runs all prompts at once in one piece, and nothing is kept back (Hugging
    Face transformers).
    concatenated: decode copies all keys and values to where the new ones follow (transformers' DynamicCache).
    new_tokens: of the step, None: one in decode, the whole context in prefill. library: whose kernels run (none:
    the engine's). kernels: only these, by name, family or block; without: not these. part: forward, backward or
    both (of training). engine: the serving library whose host times are added to each step; engine_set: what it was
    told, as for `simulate`; host_s: further seconds; launches: small launches of a step that the source's code has
    beside the formulas' kernels (fills, copies, arithmetic that is not fused). prompt, output: tokens of a request;
    method, block, steps, accepted, draft_tokens: as for `generate`; counted: of a generation's tokens, those that its
    rate counts (0: all). contexts: the range in which a slope or a knee is looked for. usd_per_gpu_hour: what a device
    costs.
    """

    architecture: str = ""
    mixer: Mapping[str, Any] | None = None
    d_model: int = 4096
    full_attention: bool = False
    drafter: bool = False
    settings: tuple[str, ...] = ()
    hardware: str = ""
    library: str | None = None
    calibrated_on: str = ""
    calibration: str = ""
    substitute: bool = False
    block_per_tile: bool = False
    in_order: bool = False
    without_pingpong: bool = False
    shared_state: bool = False
    stateless: bool = False
    layout: str = ""
    overlap: float = 0.0
    imbalance: float = 1.0
    exchange_units: int | None = None
    weights: str | None = None
    unquantised: tuple[str, ...] = ()
    kv: str | None = None
    activations: str | None = None
    caches: str = "served"
    quantised: bool = False
    outputs: str = ""
    flushed: bool = False
    whole_prompts: bool = False
    concatenated: bool = False
    phase: str = "decode"
    part: str = "both"
    context: int = 0
    batch: int | str = 1
    tokens: int = 0
    new_tokens: int | None = None
    kernels: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    engine: str = ""
    engine_set: tuple[str, ...] = ()
    host_s: float = 0.0
    launches: int = 0
    prompt: int = 0
    output: int = 0
    method: str = "autoregressive"
    block: int = 32
    steps: int | None = None
    accepted: float | None = None
    draft_tokens: int = 0
    counted: int = 0
    contexts: tuple[int, ...] = ()
    usd_per_gpu_hour: float = 0.0

    def changed(self, changes: Mapping[str, Any]) -> "SetUp":
        """This set-up with other entries; settings are added to those that it has, a batch takes the place of tokens.

        >>> SetUp(settings=("a=1",)).changed({"settings": ("b=2",), "batch": 4}).settings
        ('a=1', 'b=2')
        """
        settings = self.settings + tuple(changes.get("settings", ()))
        tokens = changes.get("tokens", 0 if "batch" in changes else self.tokens)
        return self._replace(**{**changes, "settings": settings, "tokens": tokens})

    @property
    def gpus(self) -> int:
        """Devices that run a step."""
        return parse_layout(self.layout).gpus if self.layout else 1


FILES = ("architecture", "calibration")
LISTS = ("settings", "kernels", "without", "engine_set", "contexts", "unquantised")
CHOICES = {
    "caches": ("served", "benchmarked"),
    "phase": ("prefill", "decode", "train"),
    "part": ("forward", "backward", "both"),
}
FLAGS = tuple(name for name, default in SetUp._field_defaults.items() if isinstance(default, bool))
WHOLE = (
    "context",
    "tokens",
    "new_tokens",
    "prompt",
    "output",
    "block",
    "steps",
    "draft_tokens",
    "counted",
    "launches",
    "d_model",
    "exchange_units",
)
REAL = ("overlap", "imbalance", "host_s", "accepted", "usd_per_gpu_hour")


def entries(problems: Problems, raw: Any, where: str, folder: Path) -> dict[str, Any]:
    """The entries of a set-up, or of a change to one, as `SetUp` has them; problems are noted."""
    given = problems.mapping(raw, where)
    problems.unknown_keys(given, SetUp._fields, where)
    known = {name: value for name, value in given.items() if name in SetUp._fields}
    return {name: entry(problems, name, value, f"{where}.{name}", folder) for name, value in known.items()}


def entry(problems: Problems, name: str, value: Any, place: str, folder: Path) -> Any:
    """One entry of a set-up. A file in the claim's folder becomes its path."""
    if name in LISTS:
        if not isinstance(value, list):
            problems.add(f"{place}: {str(value)[:60]!r} is not a list")
            return ()
        for item in value if name == "unquantised" else ():
            if item not in ROLES:
                problems.add(f"{place}: {unknown('role of weights', str(item), ROLES)}")
        return tuple(problems.whole_number(item, place) if name == "contexts" else str(item) for item in value)
    if value is None:
        return SetUp._field_defaults[name]
    if name == "mixer":
        return problems.mapping(value, place)
    if name in FLAGS:
        if not isinstance(value, bool):
            problems.add(f"{place}: {str(value)[:60]!r} is not true or false")
        return bool(value)
    if name in WHOLE or (name == "batch" and value != FILL):
        return problems.whole_number(value, place)
    if name in REAL:
        return problems.number(value, place)
    if name in CHOICES and value not in CHOICES[name]:
        problems.add(f"{place}: {unknown(name, str(value), CHOICES[name])}")
    text = str(value)
    return str(folder / text) if name in FILES and (folder / text).is_file() else text


@functools.lru_cache(maxsize=256)
def _architecture(name: str, full_attention: bool, drafter: bool, settings: tuple[str, ...]) -> Architecture:
    found = load_architecture(name, settings)
    if drafter:
        found = _with_drafter(found)
    return with_full_attention(found).model if full_attention else found


def _with_drafter(found: Architecture) -> Architecture:
    mtp = found.mtp
    if mtp is None:
        raise BadInput(f"drafter: {found.name} has no layer that predicts further tokens")
    pair = (mtp.mixer.name if mtp.mixer else None, mtp.ffn.name if mtp.ffn else None)
    return found._replace(layers=found.layers + (pair,) * mtp.layers)


@functools.lru_cache(maxsize=64)
def _calibration(name: str, settings: tuple[str, ...], library: str | None, calibrated_on: str) -> Calibration:
    own = device(name, settings)
    if calibrated_on in ("", own.name):
        return find_calibration(own, library)
    return transferred_from(calibration_path(calibrated_on, library or "vllm"), load_hardware(calibrated_on), own)


def model_of(setup: SetUp) -> Architecture:
    """The model that runs: an architecture, or a lone layer. Raises BadInput for what cannot be understood."""
    if setup.mixer is None:
        if not setup.architecture:
            raise BadInput("the set-up names neither an architecture nor a mixer")
        return _architecture(setup.architecture, setup.full_attention, setup.drafter, split_settings(setup.settings)[0])
    fields = dict(setup.mixer)
    problems = Problems("mixer")
    module: Any = mixer(str(fields.pop("kind", "")))
    dims = read_dims(problems, module.Dims, fields, "mixer")
    if dims is not None:
        for message in module.check(dims):
            problems.add(message)
    problems.raise_if_any()
    layer = one_layer(Block("layer", module, dims), setup.d_model)
    return with_full_attention(layer).model if setup.full_attention else layer


def device_of(setup: SetUp) -> Hardware:
    """The device, changed by the set-up's settings, as its kernels see it."""
    if not setup.hardware:
        raise BadInput("the set-up names no hardware")
    found = device(setup.hardware, _of_hardware(setup))
    return of_ampere(found) if ampere_on_hopper(setup.calibrated_on, setup.hardware) else found


def _of_hardware(setup: SetUp) -> tuple[str, ...]:
    """The set-up's settings of its device, and what kernels of Ampere reach of it."""
    given = split_settings(setup.settings)[1]
    return (*given, *BY_MMA_SYNC) if ampere_on_hopper(setup.calibrated_on, setup.hardware) else given


def calibration_of(setup: SetUp) -> Calibration:
    """The measured kernels of the set-up's own file; else what its device has of its library, else of its engine."""
    if setup.calibration:
        return _own_kernels(setup.calibration)
    library = setup.library or setup.engine or None
    return _calibration(setup.hardware, _of_hardware(setup), library, setup.calibrated_on)


@functools.lru_cache(maxsize=64)
def _own_kernels(path: str) -> Calibration:
    return read_calibration(Path(path))


def precision_of(setup: SetUp) -> Precision:
    """The number formats: the model's own, changed by the set-up's."""
    found = make_precision(model_of(setup), device_of(setup), setup.weights, setup.kv, setup.activations)
    return found._replace(weights={**found.weights, **dict.fromkeys(setup.unquantised, found.hidden)})


def layout_of(setup: SetUp) -> Layout:
    """The layout of one replica. Raises BadInput for separate workers of prefill and decode."""
    found = parse_layout(setup.layout or "tp1")
    if not isinstance(found, Layout):
        raise BadInput(f"layout {setup.layout}: a set-up has one layout; write the other one into a set-up of its own")
    return found


def capacity(setup: SetUp) -> int:
    """Sequences of the set-up's context that fit in the memory of its devices."""
    if setup.whole_prompts:
        return _prompts_at_once(setup)
    placed = place(model_of(setup), layout_of(setup), "decode")
    return max_concurrency(placed, setup.context, precision_of(setup), device_of(setup))


def _prompts_at_once(setup: SetUp) -> int:
    """Sequences whose prompts run side by side in one piece: each brings its cache and the results of two kernels in a
    row, where they are largest."""
    placed = place(model_of(setup), layout_of(setup), "prefill")
    precision, device = precision_of(setup), device_of(setup)
    step = Step(B=1, S=setup.context, P=0, phase="prefill")
    return min(
        int(
            (device.memory.hbm.capacity - float(stage.part.weight_bytes(precision)))
            // float(cache_bytes(placed, stage, step, precision) + step_results(placed, stage, step, precision, device))
        )
        for stage in placed.stages
    )


def sequences(setup: SetUp) -> int:
    """Sequences of a step, once a batch that fills memory is counted; at least one."""
    if setup.tokens:
        return max(1, setup.tokens // setup.context)
    return max(1, capacity(setup)) if setup.batch == FILL else int(setup.batch)
