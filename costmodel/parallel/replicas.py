"""What a layout replicates: weights, caches and work that several devices have, of each block of a model.

Nothing is declared: the parts are counted by the formulas of the whole, and what they have beyond it is replicated.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from costmodel.algebra import Quantity
from costmodel.architecture import mixer_parameters
from costmodel.kernels.base import Kernel
from costmodel.parallel.placement import Placed, dispatches, splits_cache
from costmodel.step import Precision, Step


class Replicated(NamedTuple):
    """What the devices of a tensor-parallel group hold or do more than once, of one block: ways · local − whole.

    Each with the amount of the whole. cache_bytes: of one sequence; flops: of the step.
    """

    block: str
    weights: tuple[Quantity, Quantity]
    cache_bytes: tuple[Quantity, Quantity]
    flops: tuple[Quantity, Quantity]


def replicated(placed: Placed, step: Step, precision: Precision) -> list[Replicated]:
    """Every mixer and FFN with what is replicated of it among the devices that share the work of a token."""
    whole, part, ways = placed.whole, placed.model.part, placed.ways
    if dispatched := placed.layout.ep > ways:
        ways = placed.layout.ep
    rows = []
    for kind, blocks, locals_ in (("mixer", whole.mixers, part.mixers), ("ffn", whole.ffns, part.ffns)):
        counts: Mapping[str, int] = whole.counts()[kind == "ffn"]
        for name, count in counts.items():
            one, other = blocks[name], locals_[name]
            n = ways if dispatched and dispatches(other) else placed.ways
            if kind == "mixer":
                weights = [mixer_parameters(block, whole.D) for block in (one, other)]
                cores = placed.model.cores
                by_tokens = cores is not None and splits_cache(one)
                kept = cores.mixers[name] if cores is not None and by_tokens else other
                # A cache that is split by tokens has as many copies as its heads are split.
                copies = placed.layout.tp if by_tokens else placed.ways
                caches = [block.module.cache(block.dims, precision).bytes(step.L) for block in (one, kept)]
            else:
                weights = [block.module.parameters(block.dims, whole.D) for block in (one, other)]
                caches, copies = [0, 0], 1
            steps = (step._replace(B=step.B * n // placed.ways), step)
            flops = [
                _flops(block.module.kernels(block.dims, whole.D, of, precision))
                for block, of in zip((one, other), steps, strict=True)
            ]
            counted = ((n, weights), (copies, caches), (n, flops))
            more = [(count * (times * local - all_), count * all_) for times, (all_, local) in counted]
            rows.append(Replicated(name, *more))
    return rows


def _flops(kernels: Sequence[Kernel]) -> Quantity:
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)
