"""Which part of a model each device holds under a layout, and how large the step is that it runs.

Tensor parallelism gives every block its local dimensions (`costmodel.dims`): columns of the matrices into a block are
split, rows of those out of it, the width of the model is not. Nothing else has to be said: local matrices, kernels and
cache come from the same formulas, and what is replicated is ways · local − whole.

Context parallelism means two things, as in the engines. In prefill and training each device has S/cp tokens of every
sequence and all weights of its tensor-parallel rank. In decode, which has too few tokens for that, the cache is split
by tokens, and everything else over tp · cp devices by heads.

Source: arXiv:1909.08053 (tensor), arXiv:2104.04473 (pipeline), vllm-project/vllm, docs/serving (data, expert and
context parallel deployment), distributed/utils.py (get_pp_indices).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum
from costmodel.architecture import Architecture, Block
from costmodel.dims import split_dims, split_fields
from costmodel.errors import Impossible
from costmodel.ffns import moe
from costmodel.layers.expert_placement import Placement
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import SERIAL as SERIAL
from costmodel.parallel.options import Options as Options
from costmodel.parallel.pipeline import Cut, stage_cuts
from costmodel.step import Precision, Step


class Stage(NamedTuple):
    """A stage of the pipeline as one device holds it, and how many stages are like it.

    cores: the same layers as the attention kernels see them, where their heads are split less than the rest. place: of
    the first such stage.
    """

    part: Architecture
    cores: Architecture | None
    times: int = 1
    place: int = 0


class Placed(NamedTuple):
    """A model under a layout, in one phase.

    ways: devices that share the work of one token outside attention kernels. model: all layers as one device of each
    stage holds them. stages: the different ones.
    """

    whole: Architecture
    layout: Layout
    phase: str
    options: Options
    ways: int
    model: Stage
    stages: tuple[Stage, ...]

    @property
    def by_tokens(self) -> bool:
        """Whether context parallelism splits the new tokens (prefill, training), not the cache (decode)."""
        return self.phase != "decode"

    @property
    def ring(self) -> bool:
        """Whether blocks of keys and values go around the devices that share the new tokens."""
        return self.by_tokens and self.layout.cp > 1 and self.options.context_exchange == "ring"

    @property
    def ranks(self) -> int:
        """Devices of one stage."""
        return self.layout.gpus // self.layout.pp


def place(architecture: Architecture, layout: Layout, phase: str = "decode", options: Options = SERIAL) -> Placed:
    """The parts of a model on the devices of a layout.

    Raises Impossible where heads, widths, experts or layers do not divide, naming the block and what would.
    """
    return in_stages(place_layers(architecture, layout, phase, options), stage_cuts(architecture, layout.pp))


def place_layers(architecture: Architecture, layout: Layout, phase: str, options: Options) -> Placed:
    """The same without stages."""
    options.checked()
    decoding = phase == "decode" and not architecture.bidirectional
    ways = layout.tp * layout.cp if decoding else layout.tp
    if layout.ep > 1 and not any(isinstance(block.dims, moe.Dims) for block in architecture.ffns.values()):
        raise Impossible(f"{layout}: {architecture.name} has no experts to spread")
    if layout.cp > 1 and not decoding:
        _check_split_tokens(architecture)
        if options.context_exchange == "ring":
            _check_ring(architecture)
    part = _local(architecture, layout, ways, options)
    cores = None
    if decoding and layout.cp > 1:
        _check_split_cache(architecture)
        cores = _local(architecture, layout, layout.tp, options)
    return Placed(architecture, layout, phase, options, ways, Stage(part, cores), ())


def in_stages(placed: Placed, cuts: Sequence[Cut]) -> Placed:
    """The same parts of layers in other stages."""
    part, cores = placed.model.part, placed.model.cores
    stages = tuple(
        Stage(_cut(part, cut), None if cores is None else _cut(cores, cut), cut.times, cut.place) for cut in cuts
    )
    layout = placed.layout._replace(pp=sum(cut.times for cut in cuts))
    return placed._replace(layout=layout, stages=stages)


def _cut(model: Architecture, cut: Cut) -> Architecture:
    return model._replace(layers=cut.layers, embeds=cut.embeds, predicts=cut.predicts)


def _local(architecture: Architecture, layout: Layout, ways: int, options: Options) -> Architecture:
    """All layers as one of `ways` devices holds them."""
    if ways == 1 and layout.ep == 1:
        return architecture
    blocks: list[dict[str, Block]] = []
    for section, found in (("mixers", architecture.mixers), ("ffns", architecture.ffns)):
        local = {}
        for name, block in found.items():
            ep = layout.ep if isinstance(block.dims, moe.Dims) else 1
            try:
                local[name] = _local_block(block, ep, ways, options)
            except Impossible as error:
                raise Impossible(f"{layout}: {architecture.name}, {section}.{name}: {error}") from None
        blocks.append(local)
    return architecture._replace(mixers=blocks[0], ffns=blocks[1], V=-(-architecture.V // ways))


@lru_cache(maxsize=65536)
def _local_block(block: Block, ep: int, ways: int, options: Options) -> Block:
    """A block as one of `ways` devices holds it, its experts spread over ep."""
    local = block._replace(dims=_local_dims(block, ep, ways, options))
    problems = block.module.check(local.dims)
    if problems:
        raise Impossible("; ".join(problems))
    return local


def _local_dims(block: Block, ep: int, ways: int, options: Options) -> Any:
    if not isinstance(block.dims, moe.Dims):
        return split_dims(block.dims, ways)
    if ep > block.dims.E:
        raise Impossible(f"ep{ep} exceeds the {block.dims.E} experts")
    senders = max(1, ep // ways)
    spread = Placement(
        ep=ep,
        senders=senders,
        parts=ways if senders > 1 else 1,
        gathered=options.experts == "allgather",
        hottest=options.imbalance if ep > 1 else 1.0,
    )
    return moe.place(block.dims, ways, spread)


def _check_split_tokens(architecture: Architecture) -> None:
    """Devices that share the tokens of a sequence need mechanisms whose parts can be put together."""
    for name, block in architecture.mixers.items():
        reason = getattr(block.module, "WHOLE_SEQUENCE", None)
        if reason:
            raise Impossible(f"cp: {architecture.name}, mixers.{name}: {block.module.TITLE}: {reason}")


def _check_split_cache(architecture: Architecture) -> None:
    """A cache split by tokens needs kernels that attend to all of it: selections would have to look across devices."""
    for name, block in architecture.mixers.items():
        if grows(block) and not splits_cache(block):
            raise Impossible(
                f"cp in decode: {architecture.name}, mixers.{name}: {block.module.TITLE} selects or folds over the "
                "whole cache, which no engine splits by tokens; use tp, dp or cp in prefill only"
            )


def _check_ring(architecture: Architecture) -> None:
    """Blocks that pass one after another need kernels that attend to all tokens: their outputs can be put together."""
    for name, block in architecture.mixers.items():
        if grows(block) and not splits_cache(block):
            raise Impossible(
                f"ring: {architecture.name}, mixers.{name}: {block.module.TITLE} selects or folds over the whole "
                "sequence, which no block alone decides; use all-gather"
            )


def grows(block: Block) -> bool:
    """Whether the cache of a block grows with the context without limit.

    >>> from costmodel.mixers import gqa, swa
    >>> grows(Block("a", gqa, gqa.EXAMPLES[0])), grows(Block("b", swa, swa.EXAMPLES[0]))
    (True, False)
    """
    cache = block.module.cache(block.dims, Precision())
    return cache.limit is None and not (isinstance(cache.per_token, int) and cache.per_token == 0)


def splits_cache(block: Block) -> bool:
    """Whether decode kernels of a block may each attend to a part of the cache: those that attend to all of it."""
    return getattr(block.module, "CACHE_SPLITS", False) and getattr(block.dims, "w", None) is None


def dispatches(block: Block) -> bool:
    """Whether tokens travel to the experts of this block."""
    return isinstance(block.dims, moe.PlacedDims) and block.dims.place.dispatches


def is_partial(whole: Block, local: Block) -> bool:
    """Whether the output of a block is a part of a sum over devices."""
    if isinstance(local.dims, moe.PlacedDims):
        return not local.dims.place.dispatches and local.dims != whole.dims
    return any(item.metadata["split"] == "heads" for item in split_fields(whole.dims))


def local_step(placed: Placed, step: Step, microbatches: Quantity = 1) -> Step:
    """The step of one device: its share of the sequences and, in prefill and training, of their tokens.

    With cp devices, each has S/cp new tokens at their mean position, P + S/2 − S/(2cp): the causal pairs of all devices
    add up to those of the step, which zigzag assignment of 2cp chunks gives each of them. Without a mask, all see all.

    >>> from costmodel.mixers import gqa
    >>> toy = Architecture("a", "A", 8, 8, False, None, {"m": Block("m", gqa, gqa.EXAMPLES[0])}, {},
    ...     (("m", None),), {"default": "bf16"})
    >>> local_step(place(toy, Layout(cp=4), "prefill"), Step(B=1, S=4096, P=0))
    Step(B=1, S=1024, P=1536, phase='prefill', bidirectional=False)
    """
    layout = placed.layout
    B = step.B if layout.dp == 1 else ceil_div(step.B, layout.dp)
    B = B if isinstance(microbatches, int) and microbatches == 1 else ceil_div(B, microbatches)
    if layout.cp == 1 or not placed.by_tokens:
        return step._replace(B=B)
    S = ceil_div(step.S, layout.cp)
    others = step.S - S
    return step._replace(B=B, S=S, P=step.P + (others if step.bidirectional else floor_div(others, 2)))


def filled(placed: Placed, step: Step) -> Placed:
    """The parts, told how full the mean rank of dp is beside the fullest: experts get the tokens of all of them."""
    layout = placed.layout
    if layout.dp == 1 or layout.ep <= placed.ways:
        return placed
    share = step.B / (layout.dp * ceil_div(step.B, layout.dp))
    if isinstance(share, float) and share == 1.0:
        return placed

    def part(model: Architecture) -> Architecture:
        blocks = {
            name: block._replace(dims=replace(block.dims, place=block.dims.place._replace(filled=share)))
            if dispatches(block)
            else block
            for name, block in model.ffns.items()
        }
        return model._replace(ffns=blocks)

    def stage(old: Stage) -> Stage:
        return old._replace(part=part(old.part), cores=old.cores and part(old.cores))

    return placed._replace(model=stage(placed.model), stages=tuple(map(stage, placed.stages)))


def core_step(placed: Placed, step: Step) -> Step:
    """The step as the attention kernels of a cache that is split by tokens see it: its part of the cached tokens."""
    return step._replace(P=maximum(ceil_div(step.L, placed.layout.cp) - step.S, 0))


def cache_bytes(placed: Placed, stage: Stage, step: Step, precision: Precision) -> Quantity:
    """Bytes of cache and state that one device of a stage keeps for its sequences, after the step.

    Prefill whose tokens are split leaves each device the whole cache of its heads, as vLLM's does: the keys were
    gathered. Around a ring, they only passed.
    """
    B = ceil_div(step.B, placed.layout.dp)
    if placed.layout.cp == 1:
        return B * stage.part.cache_bytes(step.L, precision)
    total: Quantity = 0
    L = ceil_div(step.L, placed.layout.cp)
    for name, count in stage.part.counts()[0].items():
        of_tokens = (stage.cores is not None or placed.ring) and splits_cache(stage.part.mixers[name])
        block = stage.cores.mixers[name] if stage.cores and of_tokens else stage.part.mixers[name]
        total = total + count * block.module.cache(block.dims, precision).bytes(L if of_tokens else step.L)
    return B * total
