"""Engines of a search side by side: those that share device, formats and drafts, the first axis of arrays."""

from typing import NamedTuple

import numpy

from costmodel.planning.curves import Curves, Timed, Truths, between, engine_curves
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.side_by_side import Indices
from costmodel.planning.space import Task


class Stack(NamedTuple):
    """Tasks with their engines. model: of one of them. gpus, engines: of one replica of each. places: sequences that
    each engine can have under way, by chunk budget. timed: what their times are made of. mixed: prompts and decoding
    sequences share iterations. send_s: of a prompt's cache to another pool."""

    tasks: tuple[Task, ...]
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
            tuple(self.tasks[place] for place in some),
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

    def replicated(self, most: int) -> "Replicas":
        """Every engine with every number of replicas that so many GPUs allow."""
        counts = (most // self.gpus).astype(numpy.intp)
        engine = numpy.repeat(numpy.arange(len(counts)), counts)
        return Replicas(engine, numpy.arange(1.0, len(engine) + 1.0) - (numpy.cumsum(counts) - counts)[engine])


class Replicas(NamedTuple):
    """Engines (places in a stack) with numbers of replicas, as columns."""

    engine: Indices
    number: Array


class Lookup(NamedTuple):
    """Where numbers lie among the nodes of their engines and budgets: places below and above in flat arrays of (engine,
    batch size, budget), and how far from one to the other. Outside of the nodes, the outermost stand."""

    low: Indices
    high: Indices
    share: Array

    def at(self, values: Array) -> Array:
        """The values of (engine, batch size, budget) there."""
        flat = values.reshape(-1)
        return between(flat[self.low], flat[self.high], self.share)


def lookup(nodes: Array, used: Truths, engine: Indices, column: Indices, wanted: Array) -> Lookup:
    """Where the wanted numbers (of an engine and budget each) lie among rising nodes of (engine, batch size, budget),
    of which the used ones come first."""
    _, sizes, budgets = nodes.shape
    last = numpy.maximum(used.sum(axis=1) - 1, 0)[engine, column]
    flat, first = nodes.reshape(-1), engine * (sizes * budgets) + column
    low = numpy.zeros(len(wanted), dtype=numpy.intp)
    step = 1 << sizes.bit_length()
    while step := step // 2:
        further = low + step
        inside = numpy.flatnonzero(further <= last)
        reached = inside[flat[first[inside] + further[inside] * budgets] <= wanted[inside]]
        low[reached] += step
    high = numpy.minimum(low + 1, last)
    low, high = first + low * budgets, first + high * budgets
    below, above = flat[low], flat[high]
    with numpy.errstate(invalid="ignore", divide="ignore"):
        share = numpy.where(above > below, (wanted - below) / (above - below), 0.0)
    return Lookup(low, high, numpy.clip(share, 0.0, 1.0))
