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
        left = ~certainly_beaten(each, gpus, slow)
        order, each, gpus, slow = order[left], each[left], gpus[left], slow[left]
        by = numpy.lexsort((gpus, -each, slow))
        order, each, gpus = order[by], each[by], gpus[by]
        # All that came before are at least as fast.
        kept = numpy.zeros(len(order), dtype=bool)
        for size in numpy.unique(gpus):
            kept |= (gpus == size) & rises(numpy.where(gpus <= size, each, 0.0))
        return order[kept]


def certainly_beaten(each: Array, gpus: Array, slow: Array) -> Truths:
    """Which are certainly beaten: most of them, found without sorting. Latencies fall into sixteenths of octaves, of
    which a lower one is faster, and sizes into classes: a pool beats those that are at least as large as the end of its
    own, and is beaten by those that are no larger than the beginning."""
    if not len(slow):
        return numpy.zeros(0, dtype=bool)
    # A float begins with its octave, and the first four digits of the rest are its sixteenth of that.
    among = slow.view(numpy.int64) >> 48
    among = numpy.minimum(among - among.min(), CLASSES)
    size = gpus.astype(numpy.intp)
    size = (numpy.cumsum(numpy.bincount(size) > 0) - 1)[size]
    step = size.max() // CLASSES + 1
    most = numpy.zeros((size.max() // step + 2, among.max() + 2))
    numpy.maximum.at(most.reshape(-1), -(-size // step) * most.shape[1] + among + 1, each)
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


def prefill_pools(asked: Question, stack: Stack, curves: Curves, all_of_them: bool = False) -> tuple[Pools, int]:
    """One replica at every share of its time; at a known rate also 1, 2, … replicas. The fastest budget of each, but
    for those that are certainly beaten (unless all are wanted), and how many were looked at."""
    work, model = asked.work, stack.model
    # Alone on an engine, a prompt waits for others as long as these take: what takes it least waits least.
    alone = curves.added[..., 0]
    budget = alone.argmin(axis=1)
    own = alone[numpy.arange(len(budget)), budget]
    shares = SHARES[SHARES <= (CLOSED_SHARE if work.rate is None else asked.usable + 1e-9)]
    at = prefilling(model, work, own[:, None], shares, stack.send_s[:, None], stack.engines[:, None])
    engine = numpy.repeat(numpy.arange(len(own)), len(shares))
    found = Found(engine, numpy.zeros(len(engine)), at.ttft_s.ravel(), at.rate.ravel() * stack.engines[engine])
    single, looked = _that_prefill(asked, stack, found, budget, all_of_them), found.number
    if work.rate is None:
        return single, looked
    engine, count = stack.replicated(asked.most, work.rate / stack.engines * own / asked.usable)
    many = count * stack.engines[engine]
    # Every budget at which a prompt does not wait for ever is one that is looked at.
    load = (work.rate / many)[:, None] * alone[engine]
    looked += int(numpy.count_nonzero((load <= asked.usable) & (load < FULL)))
    load = work.rate / many * own[engine]
    some = numpy.flatnonzero(load <= asked.usable)
    engine, count, many, load = engine[some], count[some], many[some], load[some]
    at = prefilling(model, work, own[engine], load, stack.send_s[engine], many)
    found = Found(engine, count, at.ttft_s, at.rate * stack.engines[engine] * count)
    return joined([single, _that_prefill(asked, stack, found, budget, all_of_them)]), looked


class Found(NamedTuple):
    """Pools before much is told of them, as columns: places of their engines in a stack, replicas (see `Pools`), the
    latency of their role in seconds, and requests per second of all."""

    engine: Indices
    replicas: Array
    slow: Array
    rate: Array

    @property
    def number(self) -> int:
        """Of those that answer at all."""
        return int(numpy.count_nonzero(numpy.isfinite(self.slow)))

    def gpus(self, stack: Stack) -> Array:
        """Of all replicas."""
        return stack.gpus[self.engine] * numpy.maximum(self.replicas, 1.0)

    def standing(self, stack: Stack) -> Indices:
        """The places of those that answer and are not certainly beaten."""
        gpus = self.gpus(stack)
        return numpy.flatnonzero(numpy.isfinite(self.slow) & ~certainly_beaten(self.rate / gpus, gpus, self.slow))

    def of(self, some: Indices) -> "Found":
        """Some of them."""
        return Found(self.engine[some], self.replicas[some], self.slow[some], self.rate[some])


def _that_prefill(asked: Question, stack: Stack, found: Found, budget: Indices, all_of_them: bool) -> Pools:
    """Pools that prefill, of engines with the fastest budget of each."""
    found = found.of(numpy.flatnonzero(numpy.isfinite(found.slow)) if all_of_them else found.standing(stack))
    zero = numpy.zeros(len(found.engine))
    return Pools(
        stack.tasks.layouts,
        found.engine,
        numpy.array(asked.budgets)[budget[found.engine]],
        found.replicas,
        found.gpus(stack),
        zero,
        found.slow,
        zero,
        found.rate,
        zero,
    )


def decode_pools(asked: Question, stack: Stack, curves: Curves) -> tuple[Pools, int]:
    """One replica at every batch size that fits, where more sequences answer more; at a known rate also 1, 2, …
    replicas with the batch that it leaves to each. Those that are not certainly beaten, and how many were looked at."""
    work, most = asked.work, stack.places[:, 0]
    at = decoding(stack.model, work, curves, stack.places)
    fits = (at.n <= most[:, None]) & curves.distinct
    rates, tpot = at.rate[:, 0], at.tpot_s[:, 0]
    better = rises(numpy.where(fits & numpy.isfinite(tpot), rates, 0.0))
    here, engine = (
        numpy.flatnonzero(better),
        numpy.repeat(numpy.arange(len(better)), numpy.count_nonzero(better, axis=1)),
    )
    slow, rate, n = (values.reshape(-1)[here] for values in (tpot, rates, at.n))
    found = Found(engine, numpy.zeros(len(engine)), slow, rate * stack.engines[engine])
    single, looked = _that_decode(asked, stack, found, n), found.number
    if work.rate is None:
        return single, looked
    rising = numpy.maximum.accumulate(numpy.where(fits, rates, 0.0), axis=1)
    with numpy.errstate(divide="ignore"):
        least = work.rate / (stack.engines * asked.usable * rising[:, -1])
    engine, count = stack.replicated(asked.most, least)
    each = work.rate / (count * stack.engines[engine])
    able = numpy.any(better, axis=1)[engine] & (each < asked.usable * rising[engine, -1])
    engine, count, each = engine[able], count[able], each[able]
    there = lookup(rising[:, None], fits[:, None], engine, numpy.zeros(len(engine), dtype=numpy.intp), each)
    sequences = there.at(at.n)
    sequences = numpy.where(each <= rising[engine, 0], each / rising[engine, 0] * at.n[engine, 0], sequences)
    slow = there.of(at.n, sequences).at(at.tpot_s)
    found = Found(engine, count, slow, numpy.full(len(engine), work.rate))
    return joined([single, _that_decode(asked, stack, found, sequences)]), looked + found.number


def _that_decode(asked: Question, stack: Stack, found: Found, sequences: Array) -> Pools:
    """Pools that decode, with so many sequences under way in each engine."""
    left = found.standing(stack)
    found = found.of(left)
    return Pools(
        stack.tasks.layouts,
        found.engine,
        numpy.full(len(left), min(asked.budgets)),
        found.replicas,
        found.gpus(stack),
        sequences[left],
        numpy.zeros(len(left)),
        found.slow,
        found.rate,
        stack.places[found.engine, 0],
    )
