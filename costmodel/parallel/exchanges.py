"""What devices send one another in a step, inserted by rule as kernels of the collective family.

Tensor parallelism: the output of every block whose heads or widths are split, and of the split embedding, is summed by
an all-reduce (or, with sequence parallelism, scattered and gathered); logits of the split vocabulary are gathered.
Experts beyond the tensor-parallel group: tokens are dispatched to them and combined. Context parallelism: the keys and
values of the new tokens are gathered or go around a ring (prefill, training), or queries are gathered and partial
softmax sums scattered (decode); recurrent layers gather the states of all parts of the sequence. Pipeline: hidden
states are sent on.

Source: arXiv:1909.08053, section 3 (tensor); arXiv:2205.05198, section 4.2 (sequence); arXiv:2104.04473, section 4.1
(scatter and gather between stages); deepseek-ai/DeepEP (dispatch, combine); arXiv:2407.21783, section 3.3.2 (all-gather
of keys and values); arXiv:2310.01889 (ring of keys and values); arXiv:2502.07563 (LASP-2, all-gather of states);
vllm-project/vllm, docs/serving (context_parallel_deployment) and attention/ops/common.py (cp_lse_ag_out_rs).
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum
from costmodel.architecture import Block, branches
from costmodel.dtypes import token_bytes
from costmodel.errors import Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.collective import Collective, collective
from costmodel.layers.embedding import head_tokens
from costmodel.parallel.placement import Placed, Stage, core_step, dispatches, is_partial, splits_cache
from costmodel.parallel.ring import AROUND, block_tokens
from costmodel.step import Precision, Step

NO_DOMAIN = 10**9
"""Devices that reach one another over the host alone count as one domain."""
SENT_BY_ENGINES = 2
"""Tensors that serving engines send between stages: hidden state and residual."""


class Group(NamedTuple):
    """Devices that communicate: how many, and how many of them share a domain of fast links."""

    size: int
    inside: int


def domain(hardware: Hardware) -> int:
    """Devices in one domain of fast links."""
    return hardware.links.scale_up.devices if hardware.links.scale_up.bandwidth else NO_DOMAIN


def group(placed: Placed, hardware: Hardware, degree: str) -> Group:
    """The devices of one degree of a layout ("ways", "cp", "ep", "dp", "pp").

    Neighbouring devices share a domain: those of tp first, then cp, then pp (serving, as vLLM) or dp (training, as
    Megatron-LM).
    """
    layout, devices = placed.layout, domain(hardware)
    token = layout.tp * layout.cp
    training = placed.phase == "train"
    strides = {
        "ways": (placed.ways, 1),
        "cp": (layout.cp, layout.tp),
        "dp": (layout.dp, token if training else token * layout.pp),
        "pp": (layout.pp, token * layout.dp if training else token),
    }
    if degree == "ep":
        apart = 1 if training else layout.pp
        block = minimum(layout.ep, minimum(token, devices))
        return Group(layout.ep, minimum(layout.ep, block * maximum(1, floor_div(devices, token * apart))))
    size, stride = strides[degree]
    return Group(size, minimum(size, maximum(1, floor_div(devices, stride))))


class Exchanger(NamedTuple):
    """Builds the collectives of one stage for one local step."""

    placed: Placed
    stage: Stage
    step: Step
    precision: Precision
    hardware: Hardware

    @property
    def hidden(self) -> Quantity:
        """Bytes of the hidden states of the step's tokens."""
        return self.step.tokens * self.placed.whole.D * self.precision.hidden_bytes

    def send(self, name: str, op: str, among: Group, size: Quantity, **more: Quantity | None) -> Kernel:
        """One collective over a buffer of so many bytes."""
        own = op == "all_reduce" and self.step.phase != "train" and bool(among.inside == among.size)
        shape = Collective(op, among.size, size, self.precision.hidden, own=own, inside=among.inside, **more)
        return collective(name, shape)._replace(hidden=self.placed.options.overlap)

    def all(self, only: Collection[str] | None = None) -> list[Kernel]:
        """Every exchange of the stage's layers, embedding and head, equal ones as one entry with a count.

        only: the groups whose exchanges are wanted (None: all).
        """
        wanted = self.stage.part.groups if only is None else only
        run = [*self._tensor(wanted), *self._experts(wanted), *self._context(wanted)]
        return [kernel for kernel in run if not (isinstance(kernel.count, int) and kernel.count == 0)]

    def _summed(self, name: str, of: str, count: int, scattered: int = 0) -> Iterator[Kernel]:
        """The sum of a block's output, in `count` layers; in `scattered` ones each device then goes on with a part."""
        among = group(self.placed, self.hardware, "ways")
        halves = count if self.placed.options.sequence_parallel else 0
        whole = count - max(halves, scattered)
        yield self.send(f"{name} all-reduce", "all_reduce", among, self.hidden)._replace(group=of, count=whole)
        if parts := max(halves, scattered):
            yield self.send(f"{name} reduce-scatter", "reduce_scatter", among, self.hidden)._replace(
                group=of, count=parts
            )
        if halves:
            yield self.send(f"{name} all-gather", "all_gather", among, self.hidden)._replace(group=of, count=halves)

    def _tensor(self, wanted: Collection[str]) -> Iterator[Kernel]:
        placed, part = self.placed, self.stage.part
        ways = placed.ways
        if ways == 1:
            return
        if part.embeds and "embedding" in wanted:
            yield from self._summed("embedding", "embedding", 1)
        mixers, ffns = part.counts()
        travelling = {name for name, block in part.ffns.items() if dispatches(block)}
        for name, count in mixers.items():
            if name not in wanted:
                continue
            whole, local = placed.whole.mixers[name], part.mixers[name]
            before = sum(name in branches(names) and ffn in travelling for names, ffn in part.layers)
            if is_partial(whole, local):
                yield from self._summed("output", name, count, before)
            yield from self._inner(whole, name, count)
        for name, count in ffns.items():
            if name not in wanted:
                continue
            whole, local = placed.whole.ffns[name], part.ffns[name]
            if name in travelling:
                among = group(placed, self.hardware, "ways")
                yield self.send("output all-gather", "all_gather", among, self.hidden)._replace(group=name, count=count)
            elif is_partial(whole, local):
                yield from self._summed("output", name, count)
            yield from self._inner(whole, name, count)
        if part.predicts and "head" in wanted:
            yield self._logits()

    def _inner(self, whole: Block, name: str, count: int) -> Iterator[Kernel]:
        sums = getattr(whole.module, "partial_sums", None)
        if sums is None:
            return
        among = group(self.placed, self.hardware, "ways")
        for part in sums(whole.dims, self.placed.whole.D, self.placed.ways):
            e = self.precision.hidden_bytes if part.bytes is None else part.bytes
            size = self.step.tokens * part.width * e
            yield self.send(f"{part.name} all-reduce", "all_reduce", among, size)._replace(group=name, count=count)

    def _logits(self) -> Kernel:
        """All logits to every device that samples; training only adds up the parts of the loss."""
        among, tokens = group(self.placed, self.hardware, "ways"), head_tokens(self.step)
        if self.step.phase == "train":
            # Maximum, sum of exponentials, and the logit of the label, each an fp32 number per token.
            loss = self.send("loss all-reduce", "all_reduce", among, 4 * tokens)
            return loss._replace(group="head", count=3)
        size = tokens * self.placed.whole.V * self.precision.hidden_bytes
        return self.send("logits all-gather", "all_gather", among, size)._replace(group="head")

    def _experts(self, wanted: Collection[str]) -> Iterator[Kernel]:
        among = group(self.placed, self.hardware, "ep")
        for name, count in self.stage.part.counts()[1].items():
            block = self.stage.part.ffns[name]
            if name not in wanted or not dispatches(block):
                continue
            d: moe.PlacedDims = block.dims
            width = self.placed.whole.D if d.latent is None else d.latent
            tokens, at = ceil_div(self.step.tokens, d.place.parts), d.place
            sent = token_bytes(self.precision.operand("experts"))
            back = self.precision.hidden_bytes
            if at.gathered:
                total = tokens * at.ep * width
                yield self.send("tokens all-gather", "all_gather", among, total * sent)._replace(
                    group=name, count=count
                )
                yield self.send("experts reduce-scatter", "reduce_scatter", among, total * back)._replace(
                    group=name, count=count
                )
                continue
            # Low-latency kernels send a copy for each expert. Those of large batches send one to each domain, where
            # fast links pass it on; inside one domain, one to each device.
            copies, reached = d.k * (at.ep - 1) / at.ep, among
            if not self.step.decoding:
                places = at.ep if among.inside == at.ep else at.ep / among.inside
                copies = (places - 1) * moe.touches(d, places)
                reached = among if places == at.ep else Group(among.size, 1)
            units = None if self.step.decoding else self.placed.options.exchange_units
            for op, e in (("dispatch", sent), ("combine", back)):
                size = tokens * width * e * d.place.hottest
                kernel = self.send(op, op, reached, size, copies=copies, tokens=tokens, units=units)
                yield kernel._replace(group=name, count=count, holds=self._held(units))

    def _held(self, units: int | None) -> float:
        """The share of the device's processors. Raises Impossible where it has no more than these."""
        all_units = self.hardware.compute.units
        if units is None:
            return 0.0
        if units >= all_units:
            raise Impossible(
                f"exchange units {units}: {self.hardware.name} has {all_units}, of which computation needs some"
            )
        return units / all_units

    def _context(self, wanted: Collection[str]) -> Iterator[Kernel]:
        if self.placed.layout.cp == 1:
            return
        among = group(self.placed, self.hardware, "cp")
        for name, count in self.stage.part.counts()[0].items():
            if name not in wanted:
                continue
            found = self._of_tokens(name, among) if self.placed.by_tokens else self._of_cache(name, among)
            for kernel in found:
                yield kernel._replace(group=name).times(count)

    def _of_tokens(self, name: str, among: Group) -> Iterator[Kernel]:
        """New tokens are split: keys and values of all of them are gathered or go around a ring block by block, of a
        window what lies before each part is sent."""
        block, step = self.stage.part.mixers[name], self.step
        precision = self.precision._replace(kv=self.precision.hidden) if step.phase == "train" else self.precision
        cache = block.module.cache(block.dims, precision)
        if not (isinstance(cache.per_token, int) and cache.per_token == 0):
            if cache.limit is None and self.placed.ring:
                tokens = block_tokens(step.P, step.S, among.size, step.bidirectional)
                # Every device sends to its neighbour at once: where one of them is in another domain, all wait for it.
                next_to = Group(2, 2 if among.inside == among.size else 1)
                yield self.send(AROUND, "send", next_to, step.B * tokens * cache.per_token).times(among.size - 1)
            elif cache.limit is None:
                size = step.B * step.S * among.size * cache.per_token
                yield self.send("keys and values all-gather", "all_gather", among, size)
            else:
                size = step.B * minimum(2 * cache.limit, step.S * (among.size - 1)) * cache.per_token
                yield self.send("keys and values of the window", "send", among, size)
        if not (isinstance(cache.fixed, int) and cache.fixed == 0):
            transition = getattr(block.module, "transition_bytes", None)
            handed = cache.fixed + (transition(block.dims) if transition else 0)
            yield self.send("states all-gather", "all_gather", among, step.B * handed * among.size)

    def _of_cache(self, name: str, among: Group) -> Iterator[Kernel]:
        """Cached tokens are split: every device gets the queries of all, and the outputs are put together."""
        cores = self.stage.cores
        if cores is None or not splits_cache(self.stage.part.mixers[name]):
            return
        block = cores.mixers[name]
        step = core_step(self.placed, self.step)
        for kernel in block.module.kernels(block.dims, cores.D, step, self.precision):
            if isinstance(kernel.shape, Attention):
                a, e = kernel.shape, self.precision.hidden_bytes
                queries = step.tokens * a.H
                yield self.send("queries all-gather", "all_gather", among, queries * a.dk * e)
                yield self.send("softmax sums all-gather", "all_gather", among, queries * among.size * 4)
                yield self.send("outputs reduce-scatter", "reduce_scatter", among, queries * a.dv * e)


def between_stages(placed: Placed, step: Step, precision: Precision, hardware: Hardware) -> list[Kernel]:
    """The hidden states of a local step from one stage to the next: each device of a group sends a part.

    Serving engines gather the parts again; with sequence parallelism nothing has to be.
    """
    exchanger = Exchanger(placed, placed.model, step, precision, hardware)
    streams = 1 if placed.whole.hyper_connections is None else placed.whole.hyper_connections.streams
    tensors = 1 if step.phase == "train" else SENT_BY_ENGINES
    size = exchanger.hidden * tensors * streams
    apart = group(placed, hardware, "pp")
    pair = Group(2, 2 if apart.inside > 1 else 1)
    run = [exchanger.send("to the next stage", "send", pair, size / placed.ways)]
    if placed.ways > 1 and not placed.options.sequence_parallel:
        run.append(exchanger.send("stage input all-gather", "all_gather", group(placed, hardware, "ways"), size))
    return [kernel._replace(group="pipeline") for kernel in run]


def cache_transfer(
    source: Placed, target: Placed, step: Step, precision: Precision, hardware: Hardware, cache: Quantity
) -> Kernel:
    """The caches that a prefill device hands to decode workers over the links between hosts."""
    wide = Group(2, 1)
    exchanger = Exchanger(source, source.model, step, precision, hardware)
    fewer = minimum(1.0, target.layout.gpus / source.layout.gpus)
    # Fewer receivers than senders: their links are what limits.
    return exchanger.send("cache to decode workers", "send", wide, cache / fewer)._replace(group="pipeline")
