"""Architecture, step and device in; time, memory and energy out. The only place where the rooms meet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.coverage import borrowed, unmeasured
from costmodel.dtypes import CHOICES, KV_CHOICES, OWN, WEIGHT_ONLY, element_bytes
from costmodel.energy import energy_joules
from costmodel.errors import BadInput, Impossible, unknown
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.base import Kernel
from costmodel.memory import memory_use
from costmodel.model_file import load_architecture
from costmodel.settings import split_settings
from costmodel.step import PHASES, Phase, Precision, Step
from costmodel.timing import StepTime, time_step
from costmodel.units import MAX_CONTEXT

if TYPE_CHECKING:
    import pandas

    from costmodel.fitting.measured_table import MeasuredTable
    from costmodel.parallel.options import Options

MAX_BATCH = 10**9
CACHES = ("served", "benchmarked")
"""What kernels find in L2: nothing of their operands, or all that fits, as when a benchmark replays them."""


class KernelRow(NamedTuple):
    """One kernel of a breakdown: all its launches in the step together.

    origin: where its parameters come from that the calibration does not hold; "" for the calibration's own.
    """

    kernel: str
    group: str
    family: str
    count: int  # type: ignore[assignment]  # the contract's name, which tuple.count gives way to
    time_s: float
    share: float
    bound: str
    basis: str
    flops: float
    executed_flops: float
    hbm_bytes: float
    implementation: str
    origin: str = ""


class StepPrediction(NamedTuple):
    """One row: a step of one architecture on one device. Names are those of the JSON output.

    time_low_s … time_high_s is the 80 % interval; roofline_s assumes perfect overlap inside each kernel at the
    datasheet's peaks, serial_s no overlap at all. flops and hbm_bytes are the ideal work, executed_* what
    the kernels do. cache_bytes is of all sequences of the batch. tokens_per_s counts new tokens.

    Under a layout of several devices, FLOPs, bytes and energy are sums over all of them; memory_per_gpu_bytes is what
    the fullest device needs, and replicated_* the part of the sums that a single device would not hold. interval_s is
    the time between the starts of two steps that follow one another, less than time_s in a full pipeline. mfu, of
    training under a layout: three times the forward pass's FLOPs (exact pairs) over time and the devices' peak.
    unmeasured: mechanisms among whose kernels is one of a kind that no measurement covers yet.
    borrowed: families of kernels that the calibration does not hold, with where their parameters come from.
    max_sequences: of serving under a layout, sequences of this context whose caches fit on all devices beside weights,
    results and what an engine keeps for graphs, workspaces and fragmentation (reserved_bytes, on all devices); fits is
    then whether the batch is no more than that. Without a layout, fits is of weights, cache and results of the step
    alone in the whole memory; in training, of states and activations.
    """

    arch: str
    hw: str
    library: str
    phase: str
    batch: int
    context: int
    new_tokens: int
    time_s: float
    time_low_s: float
    time_high_s: float
    roofline_s: float
    serial_s: float
    bound: str
    basis: str
    flops: float
    hbm_bytes: float
    executed_flops: float
    executed_hbm_bytes: float
    intensity: float
    tokens_per_s: float
    cache_bytes: float
    weight_bytes: float
    activation_bytes: float
    memory_bytes: float
    memory_capacity_bytes: float
    fits: bool
    energy_j: float | None
    calibration: str | None
    layout: str = "tp1"
    gpus: int = 1
    interval_s: float = 0.0
    memory_per_gpu_bytes: float = 0.0
    replicated_weight_bytes: float = 0.0
    replicated_cache_bytes: float = 0.0
    mfu: float | None = None
    unmeasured: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    max_sequences: int | None = None
    reserved_bytes: float = 0.0
    breakdown: tuple[KernelRow, ...] = ()

    def to_dict(self, breakdown: bool = False) -> dict[str, Any]:
        """The row as plain values."""
        row = self._asdict()
        kernels = row.pop("breakdown")
        if breakdown:
            row["breakdown"] = [kernel._asdict() for kernel in kernels]
        return row


class Prediction(tuple[StepPrediction, ...]):
    """The rows of a question: every architecture, device, phase and context asked for, in that order."""

    __slots__ = ()

    @property
    def rows(self) -> tuple[StepPrediction, ...]:
        """The rows as a plain tuple."""
        return tuple(self)

    @property
    def row(self) -> StepPrediction:
        """The only row. Raises ValueError when the question had several."""
        if len(self) != 1:
            raise ValueError(f"the prediction has {len(self)} rows; iterate over them")
        return self[0]

    @property
    def time_s(self) -> float:
        """Expected seconds of the only row."""
        return self.row.time_s

    def to_frame(self) -> "pandas.DataFrame":
        """The rows as a pandas data frame."""
        import pandas

        return pandas.DataFrame([row.to_dict() for row in self])


def make_step(
    architecture: Architecture, phase: str, context: int, batch: int = 1, new_tokens: int | None = None
) -> Step:
    """The step that a context, a phase and a number of new tokens mean.

    Decode: new_tokens (1) of the context are processed, the rest is cached. Prefill: all of it, or its last
    new_tokens. Train: all. A diffusion model denoises the whole context at once in every phase but train.
    Raises BadInput when the numbers do not fit together.
    """
    if phase not in PHASES:
        raise unknown("phase", phase, [*PHASES, "all"])
    for name, value, most in (
        ("context", context, MAX_CONTEXT),
        ("batch", batch, MAX_BATCH),
        ("new tokens", new_tokens, MAX_CONTEXT),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput(f"{name} {str(value)[:60]!r} is not a whole number")
        if not 1 <= value <= most:
            raise BadInput(f"{name} {value} is outside 1 to {most}")
    chosen: Phase = phase
    diffusing = architecture.bidirectional and chosen != "train"
    S = new_tokens or (1 if chosen == "decode" and not diffusing else context)
    if S > context:
        raise BadInput(f"new tokens {S} exceed the context {context}, which counts them too")
    if chosen == "train" and S != context:
        raise BadInput(f"new tokens {S}: a training step processes its whole context of {context}")
    return Step(B=batch, S=S, P=context - S, phase=chosen, bidirectional=architecture.bidirectional)


def make_precision(
    architecture: Architecture,
    hardware: Hardware,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
) -> Precision:
    """Number formats of a run: the model's own, changed by what is given; `own` stands for it as well.

    `weights` sets mixers and FFNs; embedding, head and router stay in 16 bit, as quantisers leave them.
    Activations follow the weights, except that int4 and mxfp4 are weight-only and keep 16 bit. Attention
    multiplies in fp8 when the cache is fp8 and the device has the engine, else in 16 bit.
    Raises Impossible when the device has no engine for what the GEMMs multiply.
    """
    for name, dtype, choices in (
        ("weights", weights, CHOICES),
        ("kv", kv, KV_CHOICES),
        ("activations", activations, CHOICES),
    ):
        if dtype is not None and dtype not in (OWN, *choices):
            raise unknown(f"dtype for {name}", dtype, (OWN, *choices))
    weights, kv, activations = (None if dtype == OWN else dtype for dtype in (weights, kv, activations))
    hidden = "fp16" if "fp16" in (activations, weights if activations is None else None) else "bf16"
    by_role = dict(architecture.weights)
    default = architecture.activations
    if weights is not None:
        by_role = {"default": hidden, **dict.fromkeys(("mixer", "ffn", "experts", "shared_experts"), weights)}
        default = hidden if weights in WEIGHT_ONLY or element_bytes(weights) >= 2 else weights
    chosen = activations or default or hidden
    if chosen == "int4":
        raise Impossible("activations int4: no engine multiplies int4 activations; int4 is a weight format")
    if not hardware.has_engine(chosen):
        try:
            hardware.tensor_peak(chosen)
        except Impossible as error:
            hint = "" if activations else "; --activations bf16 keeps the weights narrow and multiplies in 16 bit"
            raise Impossible(f"{error}{hint}") from None
    cache = kv or architecture.kv
    attention = "fp8" if cache == "fp8" and hardware.has_engine("fp8") else hidden
    return Precision(activations=chosen, weights=by_role, kv=cache, attention=attention, hidden=hidden)


def predict_step(
    architecture: Architecture,
    hardware: Hardware,
    step: Step,
    precision: Precision,
    calibration: Calibration,
    caches: str = "served",
    table: "MeasuredTable | None" = None,
) -> StepPrediction:
    """One step, from parts that are already loaded.

    caches: "served", every kernel finds its operands in HBM, or "benchmarked", what it used last time is still in L2.
    table: measurements that correct the times.
    """
    kernels = served(architecture.kernels(step, precision), caches)
    time = time_step(kernels, hardware, calibration, table.corrections(kernels) if table else None)
    memory = memory_use(architecture, kernels, step, precision)
    return summary(architecture, hardware, step, calibration, kernels, time)._replace(
        cache_bytes=float(memory.cache),
        weight_bytes=float(memory.weights),
        activation_bytes=float(memory.activations),
        memory_bytes=float(memory.total),
        memory_per_gpu_bytes=float(memory.total),
        fits=bool(memory.total <= hardware.memory.hbm.capacity),
        breakdown=breakdown_of(time),
    )


def served(kernels: list[Kernel], caches: str) -> list[Kernel]:
    """The kernels with the state in which they find L2."""
    if caches == "benchmarked":
        return [kernel._replace(circulating=kernel.executed.hbm_bytes) for kernel in kernels]
    return kernels


def summary(
    architecture: Architecture,
    hardware: Hardware,
    step: Step,
    calibration: Calibration,
    kernels: Sequence[Kernel],
    time: StepTime,
) -> StepPrediction:
    """The row of kernels and their time on one device, without its memory and breakdown."""
    flops = float(sum(kernel.ideal.flops * kernel.count for kernel in kernels))
    hbm_bytes = float(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in kernels))
    return StepPrediction(
        arch=architecture.name,
        hw=hardware.name,
        library=calibration.library,
        phase=step.phase,
        batch=step.B,
        context=step.L,
        new_tokens=step.S,
        time_s=time.time_s,
        time_low_s=time.low_s,
        time_high_s=time.high_s,
        roofline_s=time.roofline_s,
        serial_s=time.serial_s,
        bound=time.bound,
        basis=time.basis,
        flops=flops,
        hbm_bytes=hbm_bytes,
        executed_flops=float(sum(kernel.executed.flops * kernel.count for kernel in kernels)),
        executed_hbm_bytes=float(sum(kernel.executed.hbm_bytes * kernel.count for kernel in kernels)),
        intensity=flops / hbm_bytes,
        tokens_per_s=step.tokens / time.time_s,
        cache_bytes=0.0,
        weight_bytes=0.0,
        activation_bytes=0.0,
        memory_bytes=0.0,
        memory_capacity_bytes=hardware.memory.hbm.capacity,
        fits=True,
        energy_j=energy_joules(hardware, time.time_s, time.roofline_s),
        calibration=calibration.id,
        interval_s=time.time_s,
        unmeasured=unmeasured(kernels, calibration),
        borrowed=borrowed(kernels, calibration),
    )


def breakdown_of(time: StepTime) -> tuple[KernelRow, ...]:
    """The rows of the kernels that a step needs."""
    return tuple(
        KernelRow(
            kernel=entry.kernel.name,
            group=entry.kernel.group,
            family=entry.kernel.family,
            count=entry.kernel.count * entry.kernel.launches,
            time_s=float(entry.time_s),
            share=float(entry.time_s) / time.time_s,
            bound=entry.bound,
            basis=entry.basis,
            flops=float(entry.kernel.ideal.flops * entry.kernel.count),
            executed_flops=float(entry.kernel.executed.flops * entry.kernel.count),
            hbm_bytes=float(entry.kernel.ideal.hbm_bytes * entry.kernel.count),
            implementation=entry.kernel.implementation,
            origin=entry.fit.origin,
        )
        for entry in time.kernels
        if entry.kernel.count  # a kernel that this step does not need, such as the prefix of an empty cache
    )


def predict(
    architecture: str | Architecture | Sequence[str | Architecture],
    hardware: str | Hardware | Sequence[str | Hardware],
    context: int | Sequence[int],
    *,
    phase: str | Sequence[str] = "decode",
    batch: int = 1,
    new_tokens: int | None = None,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
    library: str | None = None,
    caches: str = "served",
    table: str | Path | None = None,
    layout: str | Sequence[str] = (),
    options: "Options | None" = None,
    settings: Sequence[str] = (),
) -> Prediction:
    """Time, memory and energy of steps; every argument that takes one value also takes several.

    architecture and hardware: names, unique prefixes, paths, or loaded objects. context: tokens in the
    sequence after the step. phase: prefill, decode, train or all. caches: "served" (cold) or "benchmarked" (L2-hot).
    table: a directory of measured tables that correct the times. layout: parallel layouts such as "tp8" or
    "prefill:2xtp4,decode:3xtp8" (none: one device), options how they run. settings: texts as for `--set`.

    Raises BadInput for what cannot be understood and Impossible for what has no answer.

    >>> predict("llama-3.1-8b", "h100-sxm", 8192).row.cache_bytes
    1073741824.0
    """
    if caches not in CACHES:
        raise unknown("state of caches", caches, CACHES)
    architectures, devices = loaded(architecture, hardware, settings)
    phases = phases_of(phase, new_tokens)
    layouts = _layouts(layout)
    rows = []
    for device in devices:
        calibration = find_calibration(device, library)
        measured = _measured_table(table, device, calibration)
        for model in architectures:
            precision = make_precision(model, device, weights, kv, activations)
            for spread in layouts:
                for chosen, block in phases:
                    for length in several(context):
                        step = make_step(model, chosen, length, batch, block)
                        if spread is None:
                            row = predict_step(model, device, step, precision, calibration, caches, measured)
                        else:
                            row = _predict_layout(
                                model, spread, device, step, precision, calibration, caches, measured, options
                            )
                        rows.append(row)
    return Prediction(rows)


def _layouts(texts: str | Sequence[str]) -> list[Any]:
    """The layouts that texts mean; None for one device, whose code needs no other room."""
    if not texts:
        return [None]
    from costmodel.parallel.layout import parse_layout

    return [parse_layout(text) for text in ([texts] if isinstance(texts, str) else texts)]


def _predict_layout(
    architecture: Architecture,
    layout: Any,
    hardware: Hardware,
    step: Step,
    precision: Precision,
    calibration: Calibration,
    caches: str,
    table: "MeasuredTable | None",
    options: "Options | None",
) -> StepPrediction:
    from costmodel.parallel.options import SERIAL
    from costmodel.parallel.rows import predict_layout

    return predict_layout(
        architecture, layout, hardware, step, precision, calibration, caches, table, options or SERIAL
    )


def _measured_table(
    directory: str | Path | None, hardware: Hardware, calibration: Calibration
) -> "MeasuredTable | None":
    if directory is None:
        return None
    from costmodel.fitting.measured_table import MeasuredTable

    return MeasuredTable(Path(directory), hardware, calibration)


def loaded(
    architecture: str | Architecture | Sequence[str | Architecture],
    hardware: str | Hardware | Sequence[str | Hardware],
    settings: Sequence[str] = (),
) -> tuple[list[Architecture], list[Hardware]]:
    """The models and devices that names, paths or loaded objects mean; settings change what is loaded here."""
    of_architecture, of_hardware = split_settings(settings)
    models = [
        item if isinstance(item, Architecture) else load_architecture(item, of_architecture)
        for item in several(architecture)
    ]
    return models, [
        item if isinstance(item, Hardware) else load_hardware(item, of_hardware) for item in several(hardware)
    ]


def phases_of(phase: str | Sequence[str], new_tokens: int | None) -> list[tuple[str, int | None]]:
    """Each phase asked for with its new tokens: beside other phases, a block is no question about training.

    >>> phases_of("all", 16)
    [('prefill', 16), ('decode', 16), ('train', None)]
    """
    phases = [part for item in several(phase) for part in (PHASES if item == "all" else (item,))]
    return [(chosen, None if chosen == "train" and len(phases) > 1 else new_tokens) for chosen in phases]


def several(value: Any) -> list[Any]:
    """The values of an argument that takes one or several."""
    # A loaded architecture or device is a named tuple, which is one value.
    return list(value) if type(value) in (list, tuple, range) else [value]
