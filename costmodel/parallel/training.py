"""A training step under a layout: forward and backward of all microbatches, gradients, optimizer, memory.

Seconds: with m microbatches and v stages of the pipeline on each device, m · t_max + (Σ tᵢ − t_max)/v over the stages,
then the reduction of gradients over the ranks of dp and cp, and the optimizer's pass. Memory: weights in 16 bit,
gradients, and 12 bytes per weight of the optimizer (master weight, two moments in fp32), shared out as ZeRO says; the
results that the backward pass reads, of as many microbatches as are under way in the stage.

Source: arXiv:2104.04473, section 2.2 (bubble (p − 1)/(v·m)); arXiv:2205.05198, sections 4 and 5 (activations,
recomputation); arXiv:1910.02054, sections 3 and 5 (16 bytes per weight, ZeRO and its traffic).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from costmodel.algebra import ceil_div
from costmodel.architecture import branches
from costmodel.errors import Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.kernels.collective import Collective, collective
from costmodel.kernels.elementwise import elementwise
from costmodel.memory import MemoryUse
from costmodel.parallel.exchanges import Group, between_stages, domain
from costmodel.parallel.materialised_attention import SCORES, VALUES, is_core, materialised
from costmodel.parallel.placement import Placed, Stage, dispatches, local_step
from costmodel.parallel.ring import AROUND, MERGE, OTHERS
from costmodel.parallel.stages import stage_kernels
from costmodel.step import Precision, Step

WEIGHT_BYTES = 2
OPTIMIZER_BYTES = 12
"""A master weight and two moments of Adam in fp32."""
MOVED_BY_OPTIMIZER = 2 * OPTIMIZER_BYTES + WEIGHT_BYTES
"""Reads and writes of its state, and the new 16-bit weight; the gradient comes on top."""
IN_PLACE = ("rope", "cache write", "query norm, rope", "norms, rope", SCORES, OTHERS, MERGE)
"""Passes whose results replace their input, or go into a running sum."""


def microbatch_step(placed: Placed, step: Step) -> Step:
    """One microbatch as a device runs it."""
    size = min(placed.options.training.microbatch, int(ceil_div(step.B, placed.layout.dp)))
    return local_step(placed._replace(layout=placed.layout._replace(dp=1)), step._replace(B=size))


def microbatches_of(placed: Placed, step: Step) -> int:
    """Microbatches of one rank of dp, the fullest."""
    each = int(ceil_div(step.B, placed.layout.dp))
    return int(ceil_div(each, min(placed.options.training.microbatch, each)))


def check(placed: Placed) -> None:
    """Interleaved stages need layers to share. Raises Impossible."""
    parts = placed.layout.pp * placed.options.training.interleave
    if parts > len(placed.whole.layers):
        raise Impossible(f"{placed.layout}, interleave {placed.options.training.interleave}: more stages than layers")


def microbatch_kernels(
    placed: Placed, stage: Stage, micro: Step, precision: Precision, hardware: Hardware
) -> list[Kernel]:
    """Forward and backward of one microbatch on one device of a stage."""
    run = stage_kernels(placed, stage, micro, precision, hardware)
    if placed.options.training.attention == "fused":
        return run
    return [part for kernel in run for part in (materialised(kernel) if is_core(kernel) else [kernel])]


def computed_again(placed: Placed, stage: Stage, run: list[Kernel]) -> list[Kernel]:
    """The forward kernels that the backward pass repeats."""
    how = placed.options.training
    layers = {*stage.part.mixers, *stage.part.ffns}
    forward = [kernel for kernel in run if not kernel.gradient and kernel.group in layers]
    if how.recompute == "selective":
        return [kernel for kernel in forward if _in_attention(kernel)]
    return forward if how.recompute == "full" else []


def _in_attention(kernel: Kernel) -> bool:
    return is_core(kernel) or kernel.name.startswith("attention ") or kernel.name == AROUND


def training_kernels(
    placed: Placed, stage: Stage, micro: Step, precision: Precision, hardware: Hardware
) -> list[Kernel]:
    """One microbatch on one device of a stage: forward, backward, what is computed again, and ZeRO-3's gathering."""
    run = microbatch_kernels(placed, stage, micro, precision, hardware)
    again = computed_again(placed, stage, run)
    run += [kernel._replace(name=f"{kernel.name}, again", gradient=True) for kernel in again]
    if placed.options.training.zero == 3:
        run += _gathered_weights(placed, stage, hardware)
    return run


class Shared(NamedTuple):
    """Weights of a device that so many devices hold alike, and the group of these."""

    weights: float
    among: Group


def shared_weights(placed: Placed, stage: Stage, hardware: Hardware) -> list[Shared]:
    """The weights of a stage by who else has them: experts that are spread have fewer copies than the rest."""
    layout, part = placed.layout, stage.part
    experts = 0.0
    for name, count in part.counts()[1].items():
        block = part.ffns[name]
        if dispatches(block):
            experts += block.sets(count) * float(moe.routed_parameters(block.dims, part.D))
    copies = layout.dp * layout.cp
    stride = layout.tp
    inside = min(copies, max(1, domain(hardware) // stride))
    found = [Shared(float(part.parameters) - experts, Group(copies, inside))]
    if experts:
        fewer = max(1, copies * layout.tp // layout.ep)
        found.append(Shared(experts, Group(fewer, min(fewer, max(1, domain(hardware) // layout.ep)))))
    return found


def _gathered_weights(placed: Placed, stage: Stage, hardware: Hardware) -> Iterator[Kernel]:
    for shared in shared_weights(placed, stage, hardware):
        if shared.among.size > 1:
            size = shared.weights * WEIGHT_BYTES
            yield _among(placed, "weights all-gather", "all_gather", shared.among, size)._replace(
                count=2, gradient=True
            )


def _among(placed: Placed, name: str, op: str, among: Group, size: float) -> Kernel:
    kernel = collective(name, Collective(op, among.size, size, "bf16", inside=among.inside))
    return kernel._replace(group="gradients", hidden=placed.options.hidden_gradients)


def update_kernels(placed: Placed, stage: Stage, hardware: Hardware, microbatches: int) -> list[Kernel]:
    """What follows the last microbatch: gradients are reduced, the optimizer runs, its new weights are gathered."""
    how = placed.options.training
    run: list[Kernel] = []
    for shared in shared_weights(placed, stage, hardware):
        n = shared.among.size
        gradients = shared.weights * how.gradient_bytes
        updated = shared.weights / (n if how.zero else 1)
        if n > 1 and how.zero == 0:
            run.append(_among(placed, "gradients all-reduce", "all_reduce", shared.among, gradients))
        elif n > 1:
            scattered = _among(placed, "gradients reduce-scatter", "reduce_scatter", shared.among, gradients)
            run.append(scattered._replace(count=microbatches if how.zero >= 2 and placed.layout.pp == 1 else 1))
            if how.zero < 3:
                size = shared.weights * WEIGHT_BYTES
                run.append(_among(placed, "new weights all-gather", "all_gather", shared.among, size))
        moved = updated * MOVED_BY_OPTIMIZER
        state = updated * (OPTIMIZER_BYTES + how.gradient_bytes)
        optimizer = elementwise("optimizer", read=state, written=moved - updated * OPTIMIZER_BYTES, vector=12 * updated)
        run.append(optimizer._replace(group="optimizer"))
    return run


def hops(placed: Placed, micro: Step, precision: Precision, hardware: Hardware) -> list[Kernel]:
    """Hidden states to the next stage and gradients back, of one microbatch: once for each interleaved part."""
    if placed.layout.pp == 1:
        return []
    both = 2 * placed.options.training.interleave
    return [kernel.times(both) for kernel in between_stages(placed, micro, precision, hardware)]


def under_way(placed: Placed, stage: Stage, microbatches: int) -> float:
    """Microbatches whose results a stage keeps: as many as stages follow, more where stages are interleaved.

    Source: arXiv:2205.05198, section 4.2.3: L·(1 + (p − 1)/(p·m)) layers' worth on the first stage.
    """
    pp, v = placed.layout.pp, placed.options.training.interleave
    ahead = pp - stage.place
    return min(float(microbatches), ahead * (1 + (pp - 1) / (pp * v) if v > 1 else 1))


def kept_bytes(
    placed: Placed, stage: Stage, kernels: list[Kernel], micro: Step, precision: Precision
) -> tuple[float, float]:
    """Results of one microbatch's forward pass that wait for the backward pass, and those of a layer computed again.

    Recomputing whole layers keeps their inputs, and for a while the results of one layer. What a block adds to the
    residual stream is read by no gradient, and a fused attention kernel computes its probabilities again.
    """
    part, how = stage.part, placed.options.training
    layers = {*part.mixers, *part.ffns}
    written: dict[str, float] = {}
    last: dict[str, float] = {}
    for kernel in kernels:
        again = how.recompute == "selective" and kernel.name.startswith("attention ")
        again = again and kernel.name != VALUES
        if kernel.gradient or kernel.family == "collective" or kernel.name.startswith(IN_PLACE) or again:
            continue
        size = float(kernel.executed.written * kernel.count)
        written[kernel.group] = written.get(kernel.group, 0.0) + size
        if kernel.group in layers:
            last[kernel.group] = size
    for of, size in last.items():
        written[of] -= size
    if how.recompute != "full":
        return sum(written.values()), 0.0
    ways = placed.ways if placed.options.sequence_parallel else 1
    inputs = len(part.layers) * float(micro.tokens * part.D * precision.hidden_bytes) / ways
    counts = {**part.counts()[0], **part.counts()[1]}
    outside = sum(size for of, size in written.items() if of not in layers)
    one = {of: size / counts[of] for of, size in written.items() if of in layers}
    largest = max((sum(one[name] for name in (*branches(names), ffn) if name) for names, ffn in part.layers), default=0)
    return inputs + outside, float(largest)


def training_memory(placed: Placed, stage: Stage, step: Step, precision: Precision, hardware: Hardware) -> MemoryUse:
    """What one device of a stage holds in a training step: weights with gradients and optimizer, and activations."""
    how = placed.options.training
    states = 0.0
    for shared in shared_weights(placed, stage, hardware):
        n = shared.among.size
        each = [
            (WEIGHT_BYTES, how.zero >= 3),
            (how.gradient_bytes, how.zero >= 2),
            (OPTIMIZER_BYTES, how.zero >= 1),
        ]
        states += sum(shared.weights * size / (n if split else 1) for size, split in each)
    micro = microbatch_step(placed, step)
    kernels = microbatch_kernels(placed, stage, micro, precision, hardware)
    kept, once = kept_bytes(placed, stage, kernels, micro, precision)
    written = [float(kernel.executed.written) for kernel in kernels if kernel.count]
    working = max((before + after for before, after in pairwise(written)), default=0.0)
    waiting = under_way(placed, stage, microbatches_of(placed, step))
    return MemoryUse(states, 0, kept * waiting + once + working)
