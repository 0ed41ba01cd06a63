"""Engines of a search side by side: those that share device, formats and drafts, the first axis of arrays."""

from typing import NamedTuple

import numpy

from costmodel.planning.curves import Curves, Timed, Truths, between, engine_curves
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.side_by_side import Indices
from costmodel.planning.space import Tasks


class Stack(NamedTuple):
    """Tasks with their engines. model: of one of them. gpus, engines: of one replica of each. places: sequences that
    each engine can have under way, by chunk budget. timed: what their times are made of. mixed: prompts and decoding
    sequences share iterations. send_s: of a prompt's cache to another pool."""

    tasks: Tasks
    model: EngineModel
    gpus: Array
    engines: Array
    places: Array
    timed: Timed
    mixed: bool
    send_s: Array

    def of(self, some: Indices) -> "Stack":
        """Some of them."""
        return Stack(
            self.tasks.chosen(some.tolist()),
            self.model,
            self.gpus[some],
            self.engines[some],
            self.places[some],
            self.timed.of(some),
            self.mixed,
            self.send_s[some],
        )

    def curves(self) -> Curves:
        """Their times."""
        return engine_curves(self.timed, self.mixed)

    def apart(self) -> Curves:
        """Their times as engines that only prefill or only decode."""
        return engine_curves(self.timed, self.mixed, batches=False)

    def tokens_per_s_gpu(self, rate: Array, engine: Indices, output: float) -> Array:
        """Tokens per second and GPU of engines that answer so many requests per second each."""
        return rate * self.engines[engine] / self.gpus[engine] * output

    def replicated(self, most: int, least: Array | float = 1.0) -> "Replicas":
        """Every engine with every number of replicas that so many GPUs allow, but for those that are certainly too few:
        fewer than a least number by one or more."""
        first = numpy.maximum(numpy.floor(least) - 1.0, 1.0)
        counts = numpy.maximum(most // self.gpus - first + 1.0, 0.0).astype(numpy.intp)
        engine = numpy.repeat(numpy.arange(len(counts)), counts)
        return Replicas(engine, numpy.arange(float(len(engine))) + (first + counts - numpy.cumsum(counts))[engine])


class Replicas(NamedTuple):
    """Engines (places in a stack) with numbers of replicas, as columns."""

    engine: Indices
    number: Array


class Lookup(NamedTuple):
    """Where numbers lie among the nodes of their engines and budgets: places below and above in flat arrays of (engine,
    budget, batch size), and how far from one to the other. Outside of the nodes, the outermost stand."""

    low: Indices
    high: Indices
    share: Array

    def at(self, values: Array) -> Array:
        """The values of (engine, budget, batch size) there."""
        flat = values.reshape(-1)
        return between(flat[self.low], flat[self.high], self.share)

    def of(self, nodes: Array, wanted: Array) -> "Lookup":
        """Where numbers lie among other nodes, which are known to lie between the same places."""
        flat = nodes.reshape(-1)
        below, above = flat[self.low], flat[self.high]
        with numpy.errstate(invalid="ignore", divide="ignore"):
            share = numpy.where(above > below, (wanted - below) / (above - below), 0.0)
        return self._replace(share=numpy.clip(share, 0.0, 1.0))


def lookup(nodes: Array, used: Truths, engine: Indices, column: Indices, wanted: Array) -> Lookup:
    """Where the wanted numbers (of an engine and budget each) lie among rising nodes of (engine, budget, batch size),
    of which the used ones come first."""
    _, budgets, sizes = nodes.shape
    flat, low = nodes.reshape(-1), (engine * budgets + column) * sizes
    last = low + numpy.maximum(numpy.count_nonzero(used, axis=2) - 1, 0)[engine, column]
    step = 1 << (sizes - 1).bit_length()
    while step := step // 2:
        further = numpy.minimum(low + step, last)
        low = numpy.where(flat[further] <= wanted, further, low)
    high = numpy.minimum(low + 1, last)
    return Lookup(low, high, numpy.zeros(len(low))).of(nodes, wanted)
