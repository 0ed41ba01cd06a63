"""Pools of workers that only prefill or only decode, as disaggregated plans put them together."""

from typing import NamedTuple

import numpy

from costmodel.parallel.layout import Layout
from costmodel.planning.curves import Array, Curves, EngineModel
from costmodel.planning.deployment import stage_cache
from costmodel.planning.operating import Operating, decoding, prefilling
from costmodel.planning.question import Question
from costmodel.planning.workload import Workload

SHARES = numpy.linspace(0.1, 0.95, 18)
"""Of the time of engines that only prefill: how busy they may be."""
CLOSED_SHARE = 0.9
"""At most where clients wait: their number keeps a queue short, but not empty."""


class Pool(NamedTuple):
    """Workers of one role: prefill (tpot_s 0) or decode (ttft_s 0).

    replicas: 0 for one replica that is kept at a share of its time or at a batch, of which any number may be taken;
    else so many of them, which answer the load together. gpus: of all. rate: requests per second of all.
    """

    layout: Layout
    budget: int
    replicas: int
    gpus: int
    sequences: float
    ttft_s: float
    tpot_s: float
    rate: float
    places: float = 0.0


def send_s(asked: Question, engine: EngineModel) -> float:
    """Seconds in which a device sends its part of a prompt's cache."""
    served = engine.served
    bandwidth = asked.link_bandwidth or served.hardware.links.scale_out.bandwidth
    if not bandwidth:
        return float("inf")
    caches = (stage_cache(engine.prefill, stage, served.precision) for stage in engine.prefill.stages)
    return max(float(cache.bytes(round(asked.work.input))) for cache in caches) / bandwidth


def plan_load(work: Workload, e2e_s: Array) -> Array:
    """Requests per second that a load brings: its rate, or what its clients ask for at these times."""
    if work.rate is not None:
        return numpy.full_like(e2e_s, work.rate)
    assert work.clients is not None
    with numpy.errstate(divide="ignore"):
        return numpy.where(numpy.isfinite(e2e_s), work.clients / e2e_s, 0.0)


def prefill_pools(asked: Question, engine: EngineModel, found: Curves, send: float) -> tuple[Pool, ...]:
    """One replica at every share of its time; at a known rate also 1, 2, … replicas. The fastest budget of each."""
    at = prefilling(engine, asked.work, found, SHARES, send, engine.engines)
    pools = [
        _prefill_pool(asked, engine, at, row, 0)
        for row, share in enumerate(SHARES)
        if share <= (CLOSED_SHARE if asked.work.rate is None else asked.usable + 1e-9)
    ]
    if asked.work.rate is not None:
        counts = numpy.arange(1, asked.most // engine.layout.gpus + 1, dtype=numpy.float64)
        for column in range(len(asked.budgets)):
            own = found.added[0, column]
            shares = asked.work.rate / (counts * engine.engines) * own
            at = prefilling(engine, asked.work, found, shares, send, counts * engine.engines)
            pools += [
                _prefill_pool(asked, engine, at, row, row + 1, column)
                for row in range(len(counts))
                if shares[row] <= asked.usable
            ]
    return tuple(pool for pool in pools if numpy.isfinite(pool.ttft_s))


def _prefill_pool(
    asked: Question, engine: EngineModel, at: Operating, row: int, replicas: int, column: int | None = None
) -> Pool:
    chosen = int(numpy.argmin(at.ttft_s[row])) if column is None else column
    many = max(replicas, 1)
    rate = float(at.rate[row, chosen]) * engine.engines * many
    return Pool(
        engine.layout, asked.budgets[chosen], replicas, engine.layout.gpus * many, 0.0,
        float(at.ttft_s[row, chosen]), 0.0, rate,
    )  # fmt: skip


def decode_pools(asked: Question, engine: EngineModel, found: Curves, places: Array) -> tuple[Pool, ...]:
    """One replica at every batch size that fits, where more sequences answer more; at a known rate also 1, 2, …
    replicas with the batch that it leaves to each."""
    at = decoding(engine, asked.work, found, places)
    most, budget, fits = float(places[0]), min(asked.budgets), at.n <= places[0]
    g, e = engine.layout.gpus, engine.engines
    rates, tpot = at.rate[:, 0], at.tpot_s[:, 0]
    pools, best = [], 0.0
    for row in numpy.nonzero(fits & numpy.isfinite(tpot))[0]:
        if rates[row] > best:
            best = float(rates[row])
            pools.append(Pool(engine.layout, budget, 0, g, float(at.n[row]), 0.0, float(tpot[row]), best * e, most))
    if asked.work.rate is not None and best > 0:
        n, rising = at.n[fits], numpy.maximum.accumulate(rates[fits])
        for count in range(1, asked.most // g + 1):
            each = asked.work.rate / (count * e)
            if each < asked.usable * rising[-1]:
                sequences = each / rising[0] * n[0] if each <= rising[0] else float(numpy.interp(each, rising, n))
                slow = float(numpy.interp(sequences, n, tpot[fits]))
                pools.append(Pool(engine.layout, budget, count, g * count, sequences, 0.0, slow, asked.work.rate, most))
    return tuple(pool for pool in pools if numpy.isfinite(pool.tpot_s))
