"""The kernels of one device under a layout, and the seconds of a step through all stages of the pipeline.

A batch passes the stages in m parts. Prefill: the first part takes Σ tᵢ, every further one the slowest stage. Decode: a
sequence's next token has to wait for the last stage, so a step takes Σ tᵢ, or m times the slowest stage where the
parts that circulate do not leave that idle.

Source: arXiv:2104.04473, section 2.2 (fill and drain of a pipeline); vllm-project/vllm, v1/engine/core.py (batches in
flight, one per stage).
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from costmodel.algebra import Quantity, maximum, minimum
from costmodel.calibration import Calibration
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel, scaled
from costmodel.layers.embedding import sampling
from costmodel.overlap import exposed_parts, hidden_parts
from costmodel.parallel.exchanges import Exchanger, between_stages
from costmodel.parallel.placement import Placed, Stage, core_step, filled, local_step, splits_cache
from costmodel.parallel.ring import AROUND, in_steps
from costmodel.step import Precision, Step
from costmodel.timing import total_seconds

NORMS = ("norm", "final norm", "norm backward", "final norm backward")
OUTSIDE_CORES = ("norm", "sum of branches")
"""Passes over the hidden state, which every device of a group does alike."""


class StepSeconds(NamedTuple):
    """Seconds from the start of a step to its end, and from one start to the next where steps follow one another."""

    time_s: Quantity
    interval_s: Quantity


def stage_kernels(
    placed: Placed,
    stage: Stage,
    step: Step,
    precision: Precision,
    hardware: Hardware,
    only: Collection[str] | None = None,
) -> list[Kernel]:
    """Every kernel of one device of a stage for a local step, communication included.

    only: the groups whose kernels are wanted, see `Architecture.groups` (None: all).
    """
    run = device_kernels(placed, stage, step, precision, only)
    exchanges = Exchanger(placed, stage, step, precision, hardware).all(only)
    if step.phase == "train":
        # The gradients of a sum are the same to all devices, those of a copy are summed: the same bytes once more.
        # Around a ring, keys and values pass again, and their gradients with them.
        exchanges += [
            kernel._replace(name=f"{kernel.name}, gradients", gradient=True).times(2 if kernel.name == AROUND else 1)
            for kernel in exchanges
            if kernel.name != "loss all-reduce"
        ]
    return run + exchanges


def device_kernels(
    placed: Placed, stage: Stage, step: Step, precision: Precision, only: Collection[str] | None = None
) -> list[Kernel]:
    """Of `stage_kernels`, those without communication."""
    run = stage.part.kernels(step, precision, only)
    if stage.cores is not None:
        run = _with_cores(stage, run, core_step(placed, step), precision, only)
    if placed.ring:
        run = _around_the_ring(placed, stage, run)
    if placed.ways > 1 and step.phase != "train":
        every = sampling(placed.whole.V, step, precision)
        run = [every._replace(group="head") if kernel.name == "sampling" else kernel for kernel in run]
    if placed.options.sequence_parallel and placed.ways > 1:
        run = [_on_a_part(kernel, placed.ways) if kernel.name in NORMS else kernel for kernel in run]
    return run


def _with_cores(
    stage: Stage, run: list[Kernel], step: Step, precision: Precision, only: Collection[str] | None
) -> list[Kernel]:
    """The kernels between the projections of layers whose cache is split, as their devices run them."""
    assert stage.cores is not None
    layers = {name for name, block in stage.part.mixers.items() if splits_cache(block)}
    cores = stage.cores.kernels(step, precision, only)
    return [
        core if core.group in layers and core.family != "gemm" and core.name not in OUTSIDE_CORES else kernel
        for kernel, core in zip(run, cores, strict=True)
    ]


def _around_the_ring(placed: Placed, stage: Stage, run: list[Kernel]) -> list[Kernel]:
    """Attention in as many steps as there are blocks, in layers whose keys and values go around."""
    layers = {name for name, block in stage.part.mixers.items() if splits_cache(block)}
    return [
        part for kernel in run for part in (in_steps(kernel, placed.layout.cp) if kernel.group in layers else [kernel])
    ]


def _on_a_part(kernel: Kernel, ways: int) -> Kernel:
    """A pass over the hidden states of a part of the tokens."""
    return kernel._replace(
        ideal=scaled(kernel.ideal, 1 / ways, 1 / ways), executed=scaled(kernel.executed, 1 / ways, 1 / ways)
    )


def microbatches(placed: Placed, step: Step) -> Quantity:
    """Parts in which a batch passes the pipeline: as many as there are stages, or sequences, unless told."""
    layout = placed.layout
    if layout.pp == 1:
        return 1
    each = local_step(placed, step).B
    wanted = layout.pp if placed.options.microbatches is None else placed.options.microbatches
    return minimum(wanted, each)


def path_kernels(placed: Placed, step: Step, precision: Precision, hardware: Hardware) -> list[Kernel]:
    """The kernels that one part of a batch meets on its way through all stages. step: local."""
    run = stage_kernels(placed, placed.model, step, precision, hardware)
    if placed.layout.pp > 1:
        hops = between_stages(placed, step, precision, hardware)
        run += [kernel._replace(count=placed.layout.pp - 1) for kernel in hops]
    return run


def flow(placed: Placed, decoding: bool, parts: Quantity, stages: Sequence[Quantity], hop: Quantity) -> StepSeconds:
    """The seconds of a step from those of each different stage (in the order of placed.stages) and of one hop."""
    total: Quantity = (placed.layout.pp - 1) * hop
    slowest: Quantity = 0.0
    for stage, seconds in zip(placed.stages, stages, strict=True):
        total = total + stage.times * seconds
        slowest = maximum(slowest, seconds + hop)
    if decoding:
        time = maximum(total, parts * slowest)
        return StepSeconds(time, time)
    return StepSeconds(total + (parts - 1) * slowest, parts * slowest)


def step_seconds(
    placed: Placed, step: Step, precision: Precision, hardware: Hardware, calibration: Calibration
) -> StepSeconds:
    """Expected seconds of a step of the whole replica: numbers, or arrays of many steps.

    step: B sequences of all ranks of dp together, as asked; the fullest rank sets the time. Training steps have their
    own composition: `costmodel.parallel.training`.
    """
    parts = microbatches(placed, step)
    local, placed = local_step(placed, step, parts), filled(placed, step)

    def seconds(run: Sequence[Kernel]) -> Quantity:
        return total_seconds(run, hardware, calibration)

    if placed.layout.pp == 1:
        time = seconds(stage_kernels(placed, placed.model, local, precision, hardware))
        return StepSeconds(time, time)
    hops = between_stages(placed, local, precision, hardware)
    hop = seconds(exposed_parts(hops))
    stages = [
        seconds([*stage_kernels(placed, stage, local, precision, hardware), *hidden_parts(hops)])
        for stage in placed.stages
    ]
    return flow(placed, step.decoding, parts, stages, hop)
