"""The row of a training step under a layout, and the model FLOPs utilisation of its devices."""

from collections.abc import Callable

from costmodel.calibration import Calibration
from costmodel.energy import energy_joules
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.overlap import EXCHANGE, is_meant_to_hide
from costmodel.parallel.placement import Placed
from costmodel.parallel.rows import waiting_row
from costmodel.parallel.training import (
    check,
    hops,
    microbatch_step,
    microbatches_of,
    training_kernels,
    training_memory,
    update_kernels,
)
from costmodel.prediction import StepPrediction, breakdown_of, summary
from costmodel.step import Precision, Step
from costmodel.timing import time_step, total_seconds

BUBBLE = "pipeline bubble"


def predict_training(
    placed: Placed, hardware: Hardware, step: Step, precision: Precision, calibration: Calibration
) -> StepPrediction:
    """One optimizer step over step.B sequences.

    The breakdown is of the slowest stage; FLOPs and bytes are sums over all devices, those of recomputation among the
    executed ones alone.
    """
    check(placed)
    how, m = placed.options.training, microbatches_of(placed, step)
    micro = microbatch_step(placed, step)
    between = hops(placed, micro, precision, hardware)
    runs = [training_kernels(placed, stage, micro, precision, hardware) for stage in placed.stages]
    updates = [update_kernels(placed, stage, hardware, m) for stage in placed.stages]

    def seconds(kernels: list[Kernel]) -> float:
        return float(total_seconds(kernels, hardware, calibration))

    times = [seconds([*run, *between]) for run in runs]
    slowest = max(range(len(times)), key=times.__getitem__)
    last = max(range(len(times)), key=lambda index: seconds(updates[index]))
    path = [kernel.times(m) for kernel in (*runs[slowest], *between)] + behind_passes(
        updates[last], runs[last], seconds
    )
    time = time_step(path, hardware, calibration)
    all_stages = sum(stage.times * found for stage, found in zip(placed.stages, times, strict=True))
    bubble = (all_stages - times[slowest]) / how.interleave
    total = time.time_s + bubble
    factor = total / time.time_s
    uses = [(stage, training_memory(placed, stage, step, precision, hardware)) for stage in placed.stages]
    fullest = max(float(use.total) for _, use in uses)
    devices = placed.ranks
    sums = {
        name: devices * sum(stage.times * float(getattr(use, name)) for stage, use in uses)
        for name in ("weights", "activations", "total")
    }
    computed = {
        (work, of): devices
        * m
        * sum(
            stage.times
            * sum(
                float(getattr(getattr(kernel, work), of) * kernel.count)
                for kernel in run
                if work == "executed" or not kernel.name.endswith(", again")
            )
            for stage, run in zip(placed.stages, runs, strict=True)
        )
        for work in ("ideal", "executed")
        for of in ("flops", "hbm_bytes")
    }
    one = energy_joules(hardware, total, time.roofline_s * factor)
    row = summary(placed.whole, hardware, step, calibration, path, time)
    rows = [entry._replace(share=entry.time_s / total) for entry in breakdown_of(time)]
    if bubble > 0:
        rows.append(waiting_row(BUBBLE, bubble, total, time))
    return row._replace(
        time_s=total,
        time_low_s=time.low_s * factor,
        time_high_s=time.high_s * factor,
        roofline_s=time.roofline_s * factor,
        serial_s=time.serial_s * factor,
        flops=computed["ideal", "flops"],
        hbm_bytes=computed["ideal", "hbm_bytes"],
        executed_flops=computed["executed", "flops"],
        executed_hbm_bytes=computed["executed", "hbm_bytes"],
        tokens_per_s=step.tokens / total,
        cache_bytes=0.0,
        weight_bytes=sums["weights"],
        activation_bytes=sums["activations"],
        memory_bytes=sums["total"],
        memory_capacity_bytes=hardware.memory.hbm.capacity * placed.layout.gpus,
        fits=fullest <= hardware.memory.hbm.capacity,
        energy_j=None if one is None else one * placed.layout.gpus,
        layout=str(placed.layout),
        gpus=placed.layout.gpus,
        interval_s=total,
        memory_per_gpu_bytes=fullest,
        mfu=model_flops(placed, step, precision)
        / (total * placed.layout.gpus * hardware.tensor_peak(precision.activations)),
        breakdown=tuple(rows),
    )


def behind_passes(updates: list[Kernel], run: list[Kernel], seconds: Callable[[list[Kernel]], float]) -> list[Kernel]:
    """What follows the last microbatch, of which no more hides than the pass that it can hide behind takes.

    Gradients are there when the backward pass of the last microbatch makes them (each reduction: of one microbatch),
    gathered weights are awaited by the forward pass of the next step's first. run: kernels of one microbatch.
    """
    found = []
    for kernel in updates:
        if is_meant_to_hide(kernel):
            backward = kernel.name.startswith("gradients")
            room = seconds([one for one in run if one.family != EXCHANGE and one.gradient == backward])
            hidden = seconds([kernel._replace(count=1, hidden=0.0)]) * kernel.hidden
            kernel = kernel._replace(hidden=kernel.hidden * min(1.0, room / hidden))
        found.append(kernel)
    return found


def model_flops(placed: Placed, step: Step, precision: Precision) -> float:
    """FLOPs of the model for one step, whatever the layout: forward, and twice that backward."""
    forward = [kernel for kernel in placed.whole.kernels(step, precision) if not kernel.gradient]
    return 3 * float(sum(kernel.ideal.flops * kernel.count for kernel in forward))
