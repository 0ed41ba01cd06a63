"""Pools of workers that only prefill or only decode, as disaggregated plans put them together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.parallel.layout import Layout
from costmodel.planning.curves import Curves, Truths
from costmodel.planning.engine_model import Array
from costmodel.planning.operating import FULL, decoding, prefilling
from costmodel.planning.points import rises
from costmodel.planning.question import Question
from costmodel.planning.side_by_side import Indices
from costmodel.planning.stacks import Stack, lookup

SHARES = numpy.linspace(0.1, 0.95, 18)
"""Of the time of engines that only prefill: how busy they may be."""
CLOSED_SHARE = 0.9
"""At most where clients wait: their number keeps a queue short, but not empty."""

CLASSES = 256
"""Of latencies and of sizes at most, where pools are compared."""


class Pools(NamedTuple):
    """Pools of one role, as columns: prefill (tpot_s 0) or decode (ttft_s 0).

    layout: place in layouts. budget: tokens of an iteration. replicas: 0 for one replica that is kept at a share of its
    time or at a batch, of which any number may be taken; else so many of them, which answer the load together. gpus: of
    all. sequences: under way in each engine that decodes; places: at most. rate: requests per second of all.
    """

    layouts: tuple[Layout, ...]
    layout: Indices
    budget: Indices
    replicas: Array
    gpus: Array
    sequences: Array
    ttft_s: Array
    tpot_s: Array
    rate: Array
    places: Array

    def of(self, chosen: Truths | Indices) -> "Pools":
        """Some of them."""
        return Pools(self.layouts, *(column[chosen] for column in self[1:]))  # type: ignore[arg-type]

    def undominated(self) -> "Pools":
        """Those that no other beats in latency, requests per second per GPU and size at once, the fastest first. Pools
        of known size are compared with one another only."""
        single = self.replicas == 0
        return self.of(numpy.concatenate([self._best(numpy.flatnonzero(some)) for some in (single, ~single)]))

    def _best(self, order: Indices) -> Indices:
        """Of some pools, those that no other of them beats, the fastest first."""
        each, gpus, slow = self.rate[order] / self.gpus[order], self.gpus[order], (self.ttft_s + self.tpot_s)[order]
        left = ~_beaten(each, gpus, slow)
        order, each, gpus, slow = order[left], each[left], gpus[left], slow[left]
        by = numpy.lexsort((gpus, -each, slow))
        order, each, gpus = order[by], each[by], gpus[by]
        # All that came before are at least as fast.
        kept = numpy.zeros(len(order), dtype=bool)
        for size in numpy.unique(gpus):
            kept |= (gpus == size) & rises(numpy.where(gpus <= size, each, 0.0))
        return order[kept]


def _beaten(each: Array, gpus: Array, slow: Array) -> Truths:
    """Which are certainly beaten: most of them, found without sorting. Latencies fall into sixteenths of octaves, of
    which a lower one is faster, and sizes into classes: a pool beats those that are at least as large as the end of its
    own, and is beaten by those that are no larger than the beginning."""
    if not len(slow):
        return numpy.zeros(0, dtype=bool)
    share, octave = numpy.frexp(slow)
    among = octave * 16 + (share * 32.0).astype(numpy.intp)
    among = numpy.minimum(among - among.min(), CLASSES)
    size = gpus.astype(numpy.intp)
    size = (numpy.cumsum(numpy.bincount(size) > 0) - 1)[size]
    step = size.max() // CLASSES + 1
    most = numpy.zeros((size.max() // step + 2, among.max() + 2))
    numpy.maximum.at(most, (-(-size // step), among + 1), each)
    most = numpy.maximum.accumulate(numpy.maximum.accumulate(most, axis=0), axis=1)
    return most[size // step, among] >= each


NONE: Any = numpy.zeros(0, dtype=numpy.intp)
NO_POOLS = Pools((), *[NONE] * 9)


def joined(parts: Sequence[Pools]) -> Pools:
    """All of them, one after another."""
    layouts: tuple[Layout, ...] = ()
    places = []
    for part in parts:
        again = part.layouts == layouts
        places.append(part.layout + (0 if again else len(layouts)))
        layouts = layouts if again else layouts + part.layouts
    columns: list[Any] = [numpy.concatenate(column) for column in zip(*(part[2:] for part in parts), strict=True)]
    return Pools(layouts, numpy.concatenate(places), *columns)


def prefill_pools(asked: Question, stack: Stack, curves: Curves) -> tuple[Pools, int]:
    """One replica at every share of its time; at a known rate also 1, 2, … replicas. The fastest budget of each, and
    how many were looked at."""
    work, model = asked.work, stack.model
    # Alone on an engine, a prompt waits for others as long as these take: what takes it least waits least.
    budget = curves.added[:, 0].argmin(axis=1)
    own = curves.added[numpy.arange(len(budget)), 0, budget]
    shares = SHARES[SHARES <= (CLOSED_SHARE if work.rate is None else asked.usable + 1e-9)]
    at = prefilling(model, work, own[:, None], shares, stack.send_s[:, None], stack.engines[:, None])
    engine = numpy.repeat(numpy.arange(len(own)), len(shares))
    zero = numpy.zeros(len(engine))
    pools = _of(asked, stack, engine, budget[engine], zero, at.ttft_s.ravel(), at.rate.ravel())
    if work.rate is None:
        return pools, len(pools.layout)
    engine, count = stack.replicated(asked.most)
    many = count * stack.engines[engine]
    load = (work.rate / many)[:, None] * curves.added[engine, 0]
    # Every budget at which a prompt does not wait for ever is one that is looked at.
    looked = int(numpy.count_nonzero((load <= asked.usable) & (load < FULL)))
    some = numpy.flatnonzero(work.rate / many * own[engine] <= asked.usable)
    engine, count, many = engine[some], count[some], many[some]
    at = prefilling(model, work, own[engine], work.rate / many * own[engine], stack.send_s[engine], many)
    exact = _of(asked, stack, engine, budget[engine], count, at.ttft_s, at.rate)
    return joined([pools, exact]), len(pools.layout) + looked


def _of(
    asked: Question,
    stack: Stack,
    engine: Indices,
    budget: Indices,
    replicas: Array,
    ttft_s: Array,
    rate: Array,
) -> Pools:
    """Pools that prefill; rate: of one engine."""
    many = numpy.maximum(replicas, 1.0)
    zero = numpy.zeros(len(engine))
    found = Pools(
        tuple(task.layout for task in stack.tasks),
        engine,
        numpy.array(asked.budgets)[budget],
        replicas,
        stack.gpus[engine] * many,
        zero,
        ttft_s,
        zero,
        rate * stack.engines[engine] * many,
        zero,
    )
    return found.of(numpy.isfinite(ttft_s))


def decode_pools(asked: Question, stack: Stack, curves: Curves) -> Pools:
    """One replica at every batch size that fits, where more sequences answer more; at a known rate also 1, 2, …
    replicas with the batch that it leaves to each."""
    work, most = asked.work, stack.places[:, 0]
    at = decoding(stack.model, work, curves, stack.places)
    fits = (at.n <= most[:, None]) & curves.distinct
    rates, tpot = at.rate[:, :, 0], at.tpot_s[:, :, 0]
    better = rises(numpy.where(fits & numpy.isfinite(tpot), rates, 0.0))
    engine, row = numpy.nonzero(better)
    here = engine, row
    single = _that_decode(
        asked, stack, engine, numpy.zeros(len(engine)), at.n[here], tpot[here], rates[here] * stack.engines[engine]
    )
    if work.rate is None:
        return single
    engine, count = stack.replicated(asked.most)
    each = work.rate / (count * stack.engines[engine])
    rising = numpy.maximum.accumulate(numpy.where(fits, rates, 0.0), axis=1)[..., None]
    able = numpy.any(better, axis=1)[engine] & (each < asked.usable * rising[engine, -1, 0])
    engine, count, each = engine[able], count[able], each[able]
    nodes, used, column = at.n[..., None], fits[..., None], numpy.zeros(len(engine), dtype=numpy.intp)
    least, first = rising[engine, 0, 0], at.n[engine, 0]
    among = lookup(rising, used, engine, column, each).at(nodes)
    sequences = numpy.where(each <= least, each / least * first, among)
    slow = lookup(nodes, used, engine, column, sequences).at(at.tpot_s)
    exact = _that_decode(asked, stack, engine, count, sequences, slow, numpy.full(len(engine), work.rate))
    return joined([single, exact])


def _that_decode(
    asked: Question,
    stack: Stack,
    engine: Indices,
    replicas: Array,
    sequences: Array,
    tpot_s: Array,
    rate: Array,
) -> Pools:
    found = Pools(
        tuple(task.layout for task in stack.tasks),
        engine,
        numpy.full(len(engine), min(asked.budgets)),
        replicas,
        stack.gpus[engine] * numpy.maximum(replicas, 1.0),
        sequences,
        numpy.zeros(len(engine)),
        tpot_s,
        rate,
        stack.places[engine, 0],
    )
    return found.of(numpy.isfinite(tpot_s))
