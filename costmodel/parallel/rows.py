"""One row of a prediction under a layout: the step of a whole replica, or of the workers of one phase.

Time is that of the fullest device's way through the pipeline; FLOPs, bytes and energy are sums over all devices, so
that what is replicated shows; the breakdown is what one device of each stage runs.
"""

from typing import TYPE_CHECKING

from costmodel.calibration import Calibration
from costmodel.energy import energy_joules
from costmodel.errors import Impossible
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.overlap import exposed_parts, hidden_parts
from costmodel.parallel.exchanges import between_stages, cache_transfer
from costmodel.parallel.layout import Disaggregated, Layout
from costmodel.parallel.memory import max_concurrency, memory_by_stage
from costmodel.parallel.options import SERIAL, Options
from costmodel.parallel.placement import Placed, cache_bytes, filled, local_step, place
from costmodel.parallel.stages import StepSeconds, flow, microbatches, path_kernels, stage_kernels
from costmodel.prediction import KernelRow, StepPrediction, breakdown_of, served, summary
from costmodel.step import Precision, Step
from costmodel.timing import StepTime, time_step, total_seconds

if TYPE_CHECKING:
    from costmodel.architecture import Architecture
    from costmodel.fitting.measured_table import MeasuredTable

WAITING = "waiting for the other parts of the batch"


def predict_placed(
    placed: Placed,
    hardware: Hardware,
    step: Step,
    precision: Precision,
    calibration: Calibration,
    caches: str = "served",
    table: "MeasuredTable | None" = None,
    after: tuple[Kernel, ...] = (),
) -> StepPrediction:
    """A step of prefill or decode of one replica. after: kernels that end the step, such as the sending of caches."""
    parts = microbatches(placed, step)
    local, placed = local_step(placed, step, parts), filled(placed, step)
    run = served([*path_kernels(placed, local, precision, hardware), *after], caches)
    time = time_step(run, hardware, calibration, table.corrections(run) if table else None)
    seconds = _flow(placed, local, parts, precision, hardware, calibration, time.time_s)
    uses = memory_by_stage(placed, step, precision, hardware)
    row = summary(placed.whole, hardware, step, calibration, run, time)
    devices = placed.ranks * parts
    total = {
        name: placed.ranks * sum(stage.times * float(getattr(use, name)) for stage, use in uses)
        for name in ("weights", "cache", "activations", "reserved", "total")
    }
    fullest = max(float(use.total) for _, use in uses)
    factor = seconds.time_s / time.time_s
    roofline_s = time.roofline_s * factor
    one = energy_joules(hardware, seconds.time_s, roofline_s)
    sequences = None if step.bidirectional else max_concurrency(placed, step.L, precision, hardware, batch=step.B)
    kept = 0.0 if step.bidirectional else float(step.B * placed.whole.cache_bytes(step.L, precision))
    return row._replace(
        time_s=seconds.time_s,
        time_low_s=time.low_s * factor,
        time_high_s=time.high_s * factor,
        roofline_s=roofline_s,
        serial_s=time.serial_s * factor,
        flops=row.flops * devices,
        hbm_bytes=row.hbm_bytes * devices,
        executed_flops=row.executed_flops * devices,
        executed_hbm_bytes=row.executed_hbm_bytes * devices,
        tokens_per_s=step.tokens / seconds.interval_s,
        cache_bytes=total["cache"],
        weight_bytes=total["weights"],
        activation_bytes=total["activations"],
        reserved_bytes=total["reserved"],
        memory_bytes=total["total"],
        memory_capacity_bytes=hardware.memory.hbm.capacity * placed.layout.gpus,
        fits=fullest <= hardware.memory.hbm.capacity if sequences is None else step.B <= sequences,
        energy_j=None if one is None else one * placed.layout.gpus,
        layout=str(placed.layout),
        gpus=placed.layout.gpus,
        interval_s=seconds.interval_s,
        memory_per_gpu_bytes=fullest,
        replicated_weight_bytes=total["weights"] - float(placed.whole.weight_bytes(precision)),
        replicated_cache_bytes=total["cache"] - kept,
        max_sequences=sequences,
        breakdown=_breakdown(time, seconds),
    )


def _flow(
    placed: Placed,
    local: Step,
    parts: int,
    precision: Precision,
    hardware: Hardware,
    calibration: Calibration,
    path_s: float,
) -> StepSeconds:
    """The seconds of all parts of the batch, from those of the path of one."""
    if placed.layout.pp == 1:
        return StepSeconds(path_s, path_s)
    hops = between_stages(placed, local, precision, hardware)
    hop = total_seconds(exposed_parts(hops), hardware, calibration)
    stages = [
        total_seconds(
            [*stage_kernels(placed, stage, local, precision, hardware), *hidden_parts(hops)], hardware, calibration
        )
        for stage in placed.stages
    ]
    found = flow(placed, local.decoding, parts, stages, hop)
    # Measured tables may have corrected the path: what follows from the model alone is how the parts overlap.
    alone = sum(stage.times * seconds for stage, seconds in zip(placed.stages, stages, strict=True))
    correction = path_s / (alone + (placed.layout.pp - 1) * hop)
    return StepSeconds(float(found.time_s * correction), float(found.interval_s * correction))


def _breakdown(time: StepTime, seconds: StepSeconds) -> tuple[KernelRow, ...]:
    """The kernels on the way of one part of the batch, and the time in which other parts are in the way."""
    rows = [row._replace(share=row.time_s / seconds.time_s) for row in breakdown_of(time)]
    waiting = seconds.time_s - time.time_s
    if waiting > 1e-9 * seconds.time_s:
        rows.append(waiting_row(WAITING, waiting, seconds.time_s, time))
    return tuple(rows)


def waiting_row(name: str, waiting_s: float, total_s: float, time: StepTime) -> KernelRow:
    """The time in which a device waits for others of its pipeline, as a row of the breakdown."""
    return KernelRow(
        kernel=name,
        group="pipeline",
        family="pipeline",
        count=1,
        time_s=waiting_s,
        share=waiting_s / total_s,
        bound=time.bound,
        basis=time.basis,
        flops=0.0,
        executed_flops=0.0,
        hbm_bytes=0.0,
        implementation="pipeline",
    )


def predict_layout(
    architecture: "Architecture",
    layout: Layout | Disaggregated,
    hardware: Hardware,
    step: Step,
    precision: Precision,
    calibration: Calibration,
    caches: str = "served",
    table: "MeasuredTable | None" = None,
    options: Options = SERIAL,
) -> StepPrediction:
    """A row for a layout; of a disaggregated one, for all workers of the step's phase, each with a batch of its own."""
    if isinstance(layout, Layout):
        placed = place(architecture, layout, step.phase, options)
        if step.phase == "train":
            from costmodel.parallel.training_rows import predict_training

            return predict_training(placed, hardware, step, precision, calibration)
        return predict_placed(placed, hardware, step, precision, calibration, caches, table)
    if step.phase == "train":
        raise Impossible(f"layout {layout}: workers of prefill and decode do not train")
    prefill, decode = layout
    workers = decode if step.decoding else prefill
    placed = place(architecture, workers.layout, step.phase, options)
    after: tuple[Kernel, ...] = ()
    if not step.decoding and not step.bidirectional:
        # Every sender has a part of the cache; the slowest has the most.
        kept = max(cache_bytes(placed, stage, step, precision) for stage in placed.stages)
        target = place(architecture, decode.layout, "decode", options)
        after = (cache_transfer(placed, target, step, precision, hardware, kept),)
    row = predict_placed(placed, hardware, step, precision, calibration, caches, table, after)
    n = workers.replicas
    summed = ("flops", "hbm_bytes", "executed_flops", "executed_hbm_bytes", "cache_bytes", "weight_bytes")
    more = (
        "activation_bytes",
        "reserved_bytes",
        "memory_bytes",
        "memory_capacity_bytes",
        "tokens_per_s",
        "replicated_cache_bytes",
    )
    return row._replace(
        **{name: getattr(row, name) * n for name in (*summed, *more)},
        max_sequences=None if row.max_sequences is None else row.max_sequences * n,
        replicated_weight_bytes=n * row.weight_bytes - float(architecture.weight_bytes(precision)),
        energy_j=None if row.energy_j is None else row.energy_j * n,
        layout=str(layout),
        gpus=workers.gpus,
    )
