"""A model: named blocks and the list of layers, read from a YAML file or a Hugging Face `config.json`."""

from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from costmodel.algebra import Quantity
from costmodel.dtypes import element_bytes
from costmodel.ffns import FeedForward
from costmodel.kernels.base import Kernel
from costmodel.layers.embedding import embedding, head
from costmodel.layers.norm import norm, sum_of_branches
from costmodel.layers.projection import total_parameters
from costmodel.mixers import Mixer
from costmodel.step import Precision, Step


class Block(NamedTuple):
    """A named mixer or FFN of a model: its module and its dimensions.

    copies: sets of weights that all its layers share; None: each layer has its own.
    """

    name: str
    module: Any
    dims: Any
    copies: int | None = None

    @property
    def kind(self) -> str:
        """The mechanism: the name of its module's file."""
        return str(self.module.__name__.rpartition(".")[2])

    def sets(self, layers: int) -> int:
        """Sets of weights that so many layers of this block have."""
        return layers if self.copies is None else min(self.copies, layers)


class HyperConnections(NamedTuple):
    """The residual stream kept `streams` times over, mixed at every mixer and FFN: `layers.hyper_connections`."""

    streams: int
    sinkhorn_iterations: int = 20


class MultiTokenPrediction(NamedTuple):
    """Layers behind the model that predict further tokens, with its embedding and head; width D.

    Source: arXiv:2412.19437, section 2.2, equations 21 to 23.
    """

    layers: int
    mixer: Block | None
    ffn: Block | None
    D: Quantity

    @property
    def parameters(self) -> Quantity:
        """Weights of all of them: block, its norms, the 2D → D matrix with a norm for each half, and a final norm."""
        each: Quantity = 2 * self.D * self.D + 3 * self.D
        if self.mixer is not None:
            each += mixer_parameters(self.mixer, self.D) + self.D
        if self.ffn is not None:
            each += self.ffn.module.parameters(self.ffn.dims, self.D) + self.D
        return self.layers * each


Mixers = str | tuple[str, ...] | None
"""The mixer of a layer; several names run side by side on one input, and their outputs are summed."""


def branches(mixers: Mixers) -> tuple[str, ...]:
    """The names of a layer's mixers.

    >>> branches("attn"), branches(("attn", "mamba")), branches(None)
    (('attn',), ('attn', 'mamba'), ())
    """
    if mixers is None:
        return ()
    return (mixers,) if isinstance(mixers, str) else mixers


class Architecture(NamedTuple):
    """A decoder-only model of width D with V words; `layers` lists (mixer, ffn) names, either may be None.

    weights: dtype by role, see `Precision`. Totals that the publisher states are kept beside the computed ones.
    mtp is no part of the totals or of the kernels of a step. embeds, predicts: of a part of a model, such as a stage of
    a pipeline, whether it begins with the embedding and ends with the final norm and the head.
    """

    name: str
    title: str
    D: int
    V: int
    tied_embeddings: bool
    max_context: int | None
    mixers: Mapping[str, Block]
    ffns: Mapping[str, Block]
    layers: tuple[tuple[Mixers, str | None], ...]
    weights: Mapping[str, str]
    kv: str = "bf16"
    activations: str | None = None
    sandwich_norm: bool = False
    generation: str = "autoregressive"
    hf_id: str | None = None
    published: Mapping[str, float] | None = None
    sources: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hyper_connections: HyperConnections | None = None
    mtp: MultiTokenPrediction | None = None
    embeds: bool = True
    predicts: bool = True

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """How many layers use each mixer, and each FFN."""
        mixers, ffns, _ = _uses(self.layers)
        return mixers, ffns

    def sites(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """How many norms stand before each mixer, and each FFN: parallel branches share that of the first."""
        _, ffns, first = _uses(self.layers)
        return first, ffns

    @property
    def bidirectional(self) -> bool:
        """Whether the model denoises whole sequences instead of predicting the next token."""
        return self.generation == "diffusion"

    @property
    def denoises(self) -> bool:
        """Whether tokens come out of denoising: of whole sequences, or of blocks over a cache of those before."""
        return self.generation != "autoregressive"

    @property
    def norms(self) -> int:
        """Norms of width D: one before each mixer and FFN (two with sandwich norms), and the final one."""
        mixers, ffns = self.sites()
        parts = sum(self.mixers[name].sets(count) for name, count in mixers.items())
        parts += sum(self.ffns[name].sets(count) for name, count in ffns.items())
        return parts * (2 if self.sandwich_norm else 1) + int(self.predicts)

    @property
    def tables(self) -> tuple[int, int]:
        """How many matrices of V × D it holds as head, and as an embedding beside that; a tied one counts as head."""
        head = int(self.predicts or (self.tied_embeddings and self.embeds))
        return head, int(self.embeds and not self.tied_embeddings)

    def _weights_of(self, active: bool) -> Quantity:
        mixers, ffns = self.counts()
        total: Quantity = self.norms * self.D + self._hyper_parameters()
        for name, count in mixers.items():
            block = self.mixers[name]
            total += count * mixer_parameters(block, self.D) if active else sum(mixer_weights(block, self.D, count))
        for name, count in ffns.items():
            block = self.ffns[name]
            if active:
                total += count * block.module.active_parameters(block.dims, self.D)
            else:
                total += block.sets(count) * block.module.parameters(block.dims, self.D)
        return total

    @property
    def parameters(self) -> Quantity:
        """All weights; a tied embedding counts once."""
        return self._weights_of(active=False) + self.V * self.D * sum(self.tables)

    @property
    def active_parameters(self) -> Quantity:
        """Weights that one token multiplies: chosen experts, shared blocks per call, the head, not the embedding."""
        return self._weights_of(active=True) + self.V * self.D

    def weight_bytes(self, precision: Precision) -> Quantity:
        """Bytes of all weights in their dtypes."""
        mixers, ffns = self.counts()
        hidden = precision.hidden_bytes
        total: Quantity = (self.norms * self.D + self._hyper_parameters()) * hidden
        for name, count in mixers.items():
            matrices, rest = mixer_weights(self.mixers[name], self.D, count)
            total += matrices * element_bytes(precision.weight("mixer")) + rest * hidden
        for name, count in ffns.items():
            block = self.ffns[name]
            total += block.sets(count) * _ffn_bytes(block, self.D, precision)
        for tables, role in zip(self.tables, ("head", "embedding"), strict=True):
            total += tables * self.V * self.D * element_bytes(precision.weight(role))
        return total

    def cache_bytes(self, L: Quantity, precision: Precision) -> Quantity:
        """Bytes of cache and state of one sequence of L tokens."""
        total: Quantity = 0
        for name, count in self.counts()[0].items():
            block = self.mixers[name]
            total = total + count * block.module.cache(block.dims, precision).bytes(L)
        return total

    @property
    def groups(self) -> tuple[str, ...]:
        """What the kernels of a step belong to, in their order: embedding, blocks by name, and what follows them."""
        mixers, ffns = self.counts()
        mixed = ("hyper-connections",) if self.hyper_connections is not None else ()
        return ("embedding",) * self.embeds + (*mixers, *ffns, *mixed) + ("head",) * self.predicts

    def kernels(self, step: Step, precision: Precision, only: Collection[str] | None = None) -> list[Kernel]:
        """Every kernel of a step, equal layers as one entry with a count; training adds the backward kernels.

        only: the groups whose kernels are wanted (None: all).
        """
        wanted = self.groups if only is None else only
        begins = self.embeds and "embedding" in wanted
        run = [embedding(self.D, step, precision)._replace(group="embedding")] if begins else []
        per_part = 2 if self.sandwich_norm else 1
        phase = "decode" if step.decoding else "prefill"
        parts = zip((self.mixers, self.ffns), self.counts(), self.sites(), strict=True)
        for blocks, counts, sites in parts:
            for name, count in counts.items():
                if name not in wanted:
                    continue
                block, before = blocks[name], sites.get(name, 0)
                if before:
                    around = norm("norm", self.D, step, precision)
                    run.append(around._replace(group=name, count=before * per_part))
                for kernel in block.module.kernels(block.dims, self.D, step, precision):
                    run.append(kernel._replace(group=name, module=f"{block.kind}-{phase}", count=kernel.count * count))
                if count > before:
                    run.append(sum_of_branches(self.D, step, precision)._replace(group=name, count=count - before))
        if "hyper-connections" in wanted:
            run += self._hyper_kernels(step, precision)
        if self.predicts and "head" in wanted:
            end = [norm("final norm", self.D, step, precision), *head(self.D, self.V, step, precision)]
            run += [kernel._replace(group="head") for kernel in end]
        if step.phase == "train":
            run += [
                gradient._replace(group=kernel.group, count=kernel.count, gradient=True)
                for kernel in reversed(run)
                for gradient in kernel.form.backward(kernel)
            ]
        return run

    def _hyper_sites(self) -> int:
        return sum(sum(counts.values()) for counts in self.sites())

    def _hyper_parameters(self) -> Quantity:
        if self.hyper_connections is None:
            return 0
        from costmodel.layers import hyper_connections as hyper

        streams = self.hyper_connections.streams
        sites = self._hyper_sites() * hyper.parameters(self.D, streams)
        return sites + hyper.collapse_parameters(self.D, streams)

    def _hyper_kernels(self, step: Step, precision: Precision) -> list[Kernel]:
        """The mixing of the residual streams around every mixer and FFN."""
        if self.hyper_connections is None:
            return []
        from costmodel.layers import hyper_connections as hyper

        streams, iterations = self.hyper_connections
        run = hyper.hyper_connections(self.D, streams, step, precision, iterations)
        sites = self._hyper_sites()
        return [kernel._replace(group="hyper-connections", count=kernel.count * sites) for kernel in run]


@lru_cache(maxsize=4096)
def _uses(layers: tuple[tuple[Mixers, str | None], ...]) -> tuple[Mapping[str, int], ...]:
    """How many layers use each mixer, each FFN, and each mixer as their first."""
    mixers, ffns, first = Counter[str](), Counter[str](), Counter[str]()
    for (names_of_layer, ffn_name), times in Counter(layers).items():
        names = branches(names_of_layer)
        for mixer_name in names:
            mixers[mixer_name] += times
        for mixer_name in names[:1]:
            first[mixer_name] += times
        if ffn_name is not None:
            ffns[ffn_name] += times
    return mixers, ffns, first


def mixer_parameters(block: Block, D: Quantity) -> Quantity:
    """Weights of one mixer layer."""
    module: Mixer = block.module
    return total_parameters(module.projections(block.dims, D)) + module.extra_parameters(block.dims, D)


def mixer_weights(block: Block, D: Quantity, layers: int) -> tuple[Quantity, Quantity]:
    """Weights of so many layers, in matrices and elsewhere.

    A module whose weights are shared may name the projections that each layer has for itself: `own_projections`.
    """
    module: Mixer = block.module
    matrices = total_parameters(module.projections(block.dims, D))
    sets = block.sets(layers)
    if sets < layers and hasattr(module, "own_projections"):
        own = total_parameters(module.own_projections(block.dims, D))
    else:
        own = 0
    return sets * (matrices - own) + layers * own, sets * module.extra_parameters(block.dims, D)


def _ffn_bytes(block: Block, D: Quantity, precision: Precision) -> Quantity:
    """Bytes of one FFN layer; routed experts have a role of their own."""
    module: FeedForward = block.module
    everything = module.parameters(block.dims, D)
    experts = getattr(module, "routed_parameters", None)
    if experts is None:
        return everything * element_bytes(precision.weight("ffn"))
    routed = experts(block.dims, D)
    shared = element_bytes(precision.weight("shared_experts"))
    return routed * element_bytes(precision.weight("experts")) + (everything - routed) * shared
