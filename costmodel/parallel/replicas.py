"""What a layout replicates: weights, caches and work that several devices have, of each block of a model.

Nothing is declared: the parts are counted by the formulas of the whole, and what they have beyond it is replicated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from costmodel.algebra import Quantity
from costmodel.architecture import Block, mixer_parameters
from costmodel.dims import fields_by_name
from costmodel.kernels.base import Kernel
from costmodel.parallel.placement import Placed, dispatches, splits_cache
from costmodel.step import Precision, Step


class Replicated(NamedTuple):
    """What the devices of a tensor-parallel group hold or do more than once, of one block: ways · local − whole.

    Each with the amount of the whole. cache_bytes: of one sequence; flops: of the step. matrices: those of which there
    are copies. cached: dimensions, as files name them, that size what is cached more than once, such as the latent.
    """

    block: str
    weights: tuple[Quantity, Quantity]
    cache_bytes: tuple[Quantity, Quantity]
    flops: tuple[Quantity, Quantity]
    matrices: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()


SMALL = 0.005
"""Copies of less than this share of a block are not named."""


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
            held, kept_of_one, done = [
                (count * (times * local - all_), count * all_) for times, (all_, local) in counted
            ]
            matrices: tuple[str, ...] = ()
            cached: tuple[str, ...] = ()
            if kind == "mixer":
                matrices = _copied_matrices(one, other, whole.D, n)
                cached = _cached_dims(one, kept, step.L, precision, copies)
            rows.append(Replicated(name, held, kept_of_one, done, matrices, cached))
    return rows


def _copied_matrices(whole: Block, local: Block, D: Quantity, ways: int) -> tuple[str, ...]:
    """The projections that devices hold more than once."""
    least = SMALL * mixer_parameters(whole, D)
    pairs = zip(*(block.module.projections(block.dims, D) for block in (whole, local)), strict=True)
    return tuple(one.name for one, other in pairs if ways * other.parameters - one.parameters > least)


def _cached_dims(whole: Block, local: Block, L: Quantity, precision: Precision, copies: int) -> tuple[str, ...]:
    """The dimensions of a cache that devices hold more than once: groups that have copies, else those with which the
    part that is not split grows."""

    def size(dims: Any) -> Quantity:
        return whole.module.cache(dims, precision).bytes(L)

    if copies * size(local.dims) - size(whole.dims) <= SMALL * size(whole.dims):
        return ()
    found: dict[str, list[str]] = {"groups": [], "": []}
    for item in fields_by_name(type(whole.dims)).values():
        value, split = getattr(whole.dims, item.name), item.metadata.get("split") or ""
        # One of something is no width; what is split evenly has no copies.
        if item.metadata["kind"] != "dim" or value in (None, 1) or split not in found:
            continue
        if split == "groups" and copies * getattr(local.dims, item.name) == value:
            continue
        if size(replace(whole.dims, **{item.name: 2 * value})) > size(whole.dims):
            found[split].append(item.metadata["name"])
    return tuple(found["groups"] or found[""])


def _flops(kernels: Sequence[Kernel]) -> Quantity:
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)
