"""One engine over all batch sizes and chunk budgets at once: the iteration times that a steady state is made of.

The kernels are those of the replay's tables (`step_times`): token-wise ones run once on all tokens of an iteration,
row-wise ones on every position that is sampled, attention and scans of decoding sequences and of prompts add up. Here
each is evaluated once, on arrays, for the one workload that is asked about.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.algebra import Quantity
from costmodel.calibration import Calibration
from costmodel.generation._rows import one_layer
from costmodel.generation.speculative import tokens_per_verification
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.overlap import InParts, exposed_parts, in_parts
from costmodel.parallel.exchanges import between_stages, group
from costmodel.parallel.layout import Layout
from costmodel.parallel.placement import Placed, local_step, place
from costmodel.parallel.stages import stage_kernels
from costmodel.planning.deployment import Served, host_seconds
from costmodel.planning.kernel_kinds import kinds, named
from costmodel.planning.workload import Workload
from costmodel.step import Step
from costmodel.timing import roofline, total_seconds

Array = NDArray[numpy.float64]
Kinds = dict[tuple[str, str, int], str]

POINTS = 64
"""Batch sizes of an engine, from 1 to the most that it can hold, in equal ratios."""


class EngineModel(NamedTuple):
    """A model under a layout as one of its dp · pp engines runs it, with what prices its kernels."""

    served: Served
    layout: Layout
    prefill: Placed
    decode: Placed
    drafting: Placed | None
    calibration: Calibration
    draft_tokens: int
    acceptance: float

    @property
    def engines(self) -> int:
        """Engines of one replica: each rank of dp has its own queue, each stage of pp a batch on its way."""
        return self.layout.dp * self.layout.pp

    @property
    def pace(self) -> float:
        """Tokens that a sequence gains in a decode iteration."""
        return float(tokens_per_verification(self.draft_tokens, self.acceptance))

    def kernels(self, step: Step) -> list[Kernel]:
        """The kernels of a step on the devices of one place in each stage, without hops between stages; all ranks of
        dp are as full as this one."""
        return self._kernels(self.decode if step.phase == "decode" else self.prefill, step)

    def draft_kernels(self, step: Step) -> list[Kernel]:
        """The kernels of one drafted token."""
        assert self.drafting is not None
        return self._kernels(self.drafting, step)

    def _kernels(self, placed: Placed, step: Step) -> list[Kernel]:
        local = local_step(placed, step._replace(B=step.B * self.layout.dp))
        return stage_kernels(placed, placed.model, local, self.served.precision, self.served.hardware)

    def hop_s(self, tokens: Array) -> Array:
        """Seconds in which so many tokens of each rank go from one stage to the next."""
        step = Step(B=tokens, S=numpy.float64(1.0), P=numpy.float64(0.0), phase="decode")
        hops = between_stages(self.decode, step, self.served.precision, self.served.hardware)
        return numpy.asarray(self.seconds(exposed_parts(hops)), dtype=numpy.float64)

    def seconds(self, run: Sequence[Kernel]) -> Quantity:
        """Expected seconds of kernels."""
        return total_seconds(run, self.served.hardware, self.calibration)


def engine_model(
    served: Served, layout: Layout, calibration: Calibration, draft_tokens: int = 0, acceptance: float = 0.0
) -> EngineModel:
    """A model under a layout. Raises Impossible where it cannot be split so."""
    model, options = served.architecture, served.options
    return EngineModel(
        served,
        layout,
        place(model, layout, "prefill", options),
        place(model, layout, "decode", options),
        place(one_layer(model), layout._replace(pp=1), "decode", options) if draft_tokens else None,
        calibration,
        draft_tokens,
        acceptance if draft_tokens else 0.0,
    )


class Curves(NamedTuple):
    """Seconds of one engine; rows are batch sizes n, columns chunk budgets.

    decode: of an iteration in which n sequences decode. alone: the same without one of them. added: what all chunks of
    a prompt add to iterations of the n − 1 others (the first row, n = 1: a prompt on an engine that does nothing else;
    infinite where the decoding sequences fill the budget). chunks: iterations that a prompt takes.
    """

    n: Array
    decode: Array
    alone: Array
    added: Array
    chunks: Array


class Whole(NamedTuple):
    """All layers on one device of each stage: what engines of the same split share, however many stages they have.

    n: batch sizes. decode: seconds of an iteration. added, chunks, together: as in `Curves`, and how many short prompts
    share an iteration. peak: seconds at the datasheet's peaks, per token of one sequence and of a prompt alone.
    host: what the host adds to an iteration and to each sequence in it.
    """

    n: Array
    decode: Array
    added: Array
    chunks: Array
    together: Array
    peak: tuple[float, float]
    host: Mapping[str, float]


class Grid(NamedTuple):
    """Batch sizes n (rows) by chunk budgets (columns): tokens that a budget leaves beside the n − 1 others, iterations
    that a prompt takes, tokens of its chunk, and how many short prompts share an iteration."""

    n: Array
    left: Array
    chunks: Array
    size: Array
    together: Array

    @property
    def others(self) -> Array:
        """Sequences beside the one whose prompt comes."""
        return self.n - 1.0


def grid(model: EngineModel, work: Workload, budgets: Sequence[int], most: int) -> Grid:
    """The grid up to so many sequences."""
    n = numpy.unique(numpy.round(numpy.geomspace(1, max(most, 1), POINTS)))
    S, budget = float(model.draft_tokens + 1), numpy.array(budgets, dtype=numpy.float64)
    left = budget - (n - 1.0)[:, None] * S
    chunks = numpy.ceil(work.computed / numpy.clip(left, 1.0, work.computed))
    size = work.computed / chunks
    # Short prompts share iterations: as many as arrive in one while n sequences are kept, if they fit.
    together = numpy.clip(n[:, None] * model.pace / max(work.output - 1.0, 1.0), 1.0, numpy.maximum(left / size, 1.0))
    return Grid(n, left, chunks, size, numpy.where(chunks > 1, 1.0, together))


def by_tokens(model: EngineModel, at: Grid, kind: Kinds) -> InParts:
    """Seconds of token-wise kernels at the tokens, and of row-wise ones at the sampled positions, of three iterations
    one after another: n sequences decode, n − 1 do, and n − 1 beside a chunk."""
    S, others = float(model.draft_tokens + 1), at.others
    least = numpy.maximum(others, 1.0)
    beside = others[:, None] * S
    tokens = numpy.concatenate([at.n * S, least * S, (beside + at.together * at.size).ravel()])
    rows = numpy.concatenate([at.n * S, least * S, (beside + at.together).ravel()])
    M = len(tokens)
    run = named(model.kernels(decode_step(numpy.concatenate([tokens, rows]), 1.0, 0.0)))
    of_tokens, of_rows = (_seconds(model, run, kind, wanted, (2 * M,)) for wanted in ("token", "row"))
    return InParts(*(a[:M] + b[M:] for a, b in zip(of_tokens, of_rows, strict=True)))


def whole(model: EngineModel, work: Workload, at: Grid, shared: InParts, kind: Kinds) -> Whole:
    """The times of the grid, without hops between stages. shared: of `by_tokens`; kind: which kernels are token-wise,
    row-wise, neither. Host times are told beside, and not part of these."""
    N, C = at.size.shape
    S = float(model.draft_tokens + 1)
    step = decode_step(at.n, S, max(work.context - S, 0.0))
    decoding = named(model.kernels(step))
    own = _seconds(model, decoding, kind, "", (N,))
    prompts = Step(B=at.together, S=at.size, P=numpy.maximum(work.position - at.size / 2, 0.0), phase="prefill")
    prefilling = named(model.kernels(prompts))
    of_prompts = _seconds(model, prefilling, kind, "", (N, C))
    fewer = InParts(*(numpy.interp(at.others, at.n, part, left=0.0) for part in own))
    iterations = [
        InParts(*(part[:N] for part in shared)),
        InParts(*(part[N : 2 * N] for part in shared)),
        InParts(*(part[2 * N :].reshape(N, C) for part in shared)),
    ]
    decode = _together(iterations[0], own).total()
    without = _together(iterations[1], fewer).total()
    mixed = _together(iterations[2], InParts(*(part[:, None] for part in fewer)), of_prompts).total()
    if model.draft_tokens:
        drafts = model.draft_kernels(step._replace(S=numpy.float64(1.0)))
        decode = decode + model.draft_tokens * numpy.broadcast_to(model.seconds(drafts), (N,))
    added = mixed - numpy.where(at.n > 1.0, without, 0.0)[:, None]
    added = numpy.where(at.left >= 1.0, added, numpy.inf)
    hardware = model.served.hardware
    first = float(_peak(decoding.values(), hardware, (N,))[0]) / model.pace
    later = float((_peak(prefilling.values(), hardware, (N, C)) * at.chunks / at.together)[0].min())
    host = host_seconds(model.served.host, model.served.architecture, lambda _: list(decoding.values()))
    return Whole(at.n, decode, added, at.chunks, at.together, (first, later), host)


def _together(*parts: InParts) -> InParts:
    """Parts of the same iterations."""
    return InParts(*(sum(values[1:], values[0]) for values in zip(*parts, strict=True)))


def engine_curves(
    model: EngineModel, work: Workload, shared: Whole, blocks: Mapping[str, float], n: Array, mixed: bool = True
) -> Curves:
    """The times of an engine with its stages and its host, at batch sizes inside those of `shared`.

    blocks: seconds of each block, of which the stages of a pipeline have their parts. mixed: prompts and decoding
    sequences share iterations."""
    pp, lone = model.layout.pp, n > 1.0
    decode = numpy.interp(n, shared.n, shared.decode)
    added, chunks, together = (
        numpy.stack([numpy.interp(n, shared.n, column) for column in values.T], axis=1)
        for values in (shared.added, shared.chunks, shared.together)
    )
    stretch, host = 1.0, shared.host
    if pp > 1:
        hop = model.hop_s(numpy.maximum(n * (model.draft_tokens + 1), 1.0))
        decode = decode + (pp - 1) * hop
        size = work.computed / chunks
        added = added + (pp - 1) * (model.hop_s(n[:, None] + together * size) - numpy.where(lone, hop, 0.0)[:, None])
        stretch = _imbalance(model, blocks)
    decode = stretch * decode + host["host_s"] + n * host["sequence_s"]
    alone = numpy.where(lone, numpy.interp(n - 1.0, n, decode), 0.0)
    step = stretch * added + together * host["sequence_s"] + numpy.where(lone, alone, host["host_s"])[:, None]
    added = chunks * (step - alone[:, None]) / together
    if not mixed:
        # Prompts run alone, while the others wait.
        added = numpy.broadcast_to(added[0], added.shape)
    added = numpy.where(numpy.isnan(added), numpy.inf, added)
    return Curves(n, decode, alone, added, chunks)


def decode_step(B: Any, S: Any, P: Any) -> Step:
    """A step of arrays."""
    B, S, P = (numpy.asarray(value, dtype=numpy.float64) for value in (B, S, P))
    return Step(B=B, S=S, P=P, phase="decode")


def _seconds(
    model: EngineModel, run: Mapping[tuple[str, str, int], Kernel], kind: Kinds, wanted: str, shape: tuple[int, ...]
) -> InParts:
    """Seconds of the kernels of one kind."""
    chosen = [kernel for key, kernel in run.items() if kind.get(key, "") == wanted]

    def seconds(kernels: Sequence[Kernel]) -> Array:
        return numpy.array(numpy.broadcast_to(model.seconds(kernels), shape), dtype=numpy.float64)

    if not model.served.options.overlap:
        return InParts(seconds(chosen), numpy.zeros(shape), numpy.zeros(shape))
    return in_parts(chosen, seconds)


def _peak(run: Iterable[Kernel], hardware: Hardware, shape: tuple[int, ...]) -> Array:
    """Seconds of kernels at the datasheet's peaks."""
    total = sum(roofline(kernel, hardware) * kernel.exposed for kernel in run)
    return numpy.broadcast_to(numpy.asarray(total, dtype=numpy.float64), shape)


def seconds_by_block(model: EngineModel, context: float) -> dict[str, float]:
    """Seconds of each block's kernels in a decode iteration of 32 sequences."""
    found: dict[str, float] = {}
    step = Step(B=32, S=1, P=max(int(context) - 1, 0), phase="decode")
    for kernel in model.kernels(step):
        found[kernel.group] = found.get(kernel.group, 0.0) + float(model.seconds(exposed_parts([kernel])))
    return found


def _imbalance(model: EngineModel, blocks: Mapping[str, float]) -> float:
    """How much longer the slowest stage of the pipeline takes than the mean one: the pace of all."""
    every = {name: count for counts in model.served.architecture.counts() for name, count in counts.items()}
    total = slowest = 0.0
    for stage in model.decode.stages:
        part = stage.part
        seconds = sum(
            blocks.get(name, 0.0) * count / every[name] for counts in part.counts() for name, count in counts.items()
        )
        seconds += blocks.get("embedding", 0.0) * part.embeds + blocks.get("head", 0.0) * part.predicts
        total, slowest = total + stage.times * seconds, max(slowest, seconds)
    return slowest * model.layout.pp / total


def kinds_of(model: EngineModel) -> Kinds:
    """Which kernels of the engine are token-wise, which row-wise; the same for all layouts that split alike."""
    return kinds(model.kernels)


def likeness(model: EngineModel) -> tuple[Any, ...]:
    """What the kinds of kernels depend on: which exchanges a layout has, not how many devices take part in them."""
    layout = model.layout
    spread = layout.ep > 1, layout.ep > layout.tp
    return (layout.tp > 1, layout.cp > 1, layout.dp > 1, *spread, model.served.precision.activations)


def split(model: EngineModel) -> tuple[Any, ...]:
    """What `whole` depends on beside device, formats and drafts: all degrees but pp, and how groups lie in domains."""
    groups = (group(model.decode, model.served.hardware, degree) for degree in ("ways", "cp", "ep"))
    return (*model.layout._replace(pp=1), *groups)
