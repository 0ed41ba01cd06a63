"""Engines of a search side by side: those that share device, formats and drafts, the first axis of arrays."""

from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.planning.curves import Curves, Truths, between
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.space import Task

Places = NDArray[numpy.intp]


class Stack(NamedTuple):
    """Tasks with their engines. gpus, engines: of one replica of each. places: sequences that each engine can have
    under way, by chunk budget. curves: the times of all. send_s: of a prompt's cache to another pool."""

    tasks: tuple[Task, ...]
    models: tuple[EngineModel, ...]
    gpus: Array
    engines: Array
    places: Array
    curves: Curves
    send_s: Array

    def replicated(self, most: int) -> "Replicas":
        """Every engine with every number of replicas that so many GPUs allow."""
        counts = [int(most // gpus) for gpus in self.gpus]
        each = [numpy.arange(1.0, count + 1.0) for count in counts]
        return Replicas(numpy.repeat(numpy.arange(len(counts)), counts), numpy.concatenate([numpy.zeros(0), *each]))


class Replicas(NamedTuple):
    """Engines (places in a stack) with numbers of replicas, as columns."""

    engine: Places
    number: Array


class Lookup(NamedTuple):
    """Where numbers lie among the nodes of their engines: below and above in the axis of batch sizes, and how far from
    one to the other. Outside of the nodes, the outermost stand."""

    engine: Places
    low: Places
    high: Places
    share: Array

    def at(self, values: Array) -> Array:
        """The values of (engine, batch size, budget) there."""
        column = numpy.arange(self.low.shape[1])
        engine = self.engine[:, None]
        return between(values[engine, self.low, column], values[engine, self.high, column], self.share)


def lookup(nodes: Array, used: Truths, engine: Places, wanted: Array) -> Lookup:
    """Where the wanted numbers (rows: of an engine each; columns: budgets) lie among rising nodes of (engine, batch
    size, budget), of which the used ones come first."""
    last = numpy.maximum(used.sum(axis=1) - 1, 0)[engine]
    known = numpy.where(used, nodes, numpy.inf)
    low = numpy.clip((known[engine] <= wanted[:, None, :]).sum(axis=1) - 1, 0, last)
    high = numpy.minimum(low + 1, last)
    column = numpy.arange(wanted.shape[1])
    below, above = nodes[engine[:, None], low, column], nodes[engine[:, None], high, column]
    with numpy.errstate(invalid="ignore", divide="ignore"):
        share = numpy.where(above > below, (wanted - below) / (above - below), 0.0)
    return Lookup(engine, low, high, numpy.clip(share, 0.0, 1.0))
