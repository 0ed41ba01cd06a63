"""Disaggregated plans: pools of prefill and decode workers, put together so that both keep up with the load.

TTFT is the prefill pool's, TPOT the decode pool's, so each is searched alone, what another pool of its role beats is
dropped, and the rest are paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.parallel.layout import Disaggregated, Workers
from costmodel.planning.candidates import Candidate, next_limit, rank
from costmodel.planning.curves import Array
from costmodel.planning.measures import ServiceLevel
from costmodel.planning.pools import Pool, plan_load
from costmodel.planning.question import Question
from costmodel.planning.space import Task

Truths = NDArray[numpy.bool_]


def undominated(pools: Sequence[Pool]) -> list[Pool]:
    """Those that no other pool of the role beats in latency, requests per second per GPU and size at once, the fastest
    first."""
    kept: list[Pool] = []
    most: dict[int, float] = {}
    for pool in sorted(pools, key=lambda pool: (pool.ttft_s + pool.tpot_s, -pool.rate / pool.gpus, pool.gpus)):
        each = pool.rate / pool.gpus
        # All that came before are at least as fast.
        if not any(best >= each for gpus, best in most.items() if gpus <= pool.gpus):
            most[pool.gpus] = each
            kept.append(pool)
    return kept


def paired(
    asked: Question, task: Task, prefill: Sequence[Pool], decode: Sequence[Pool]
) -> tuple[list[Candidate], list[Candidate], Candidate | None, int]:
    """The best plans, the frontier, the plan that comes closest, and how many pairs were looked at.

    task: whose device, formats and drafts the pools share. Where the rate is known, plans are pairs of pools with whole
    numbers of workers; else as many workers are taken as the load needs at a pool's share of time or batch.
    """
    level = asked.level
    free = _pairs(asked, task, [pool for pool in prefill if not pool.replicas], [p for p in decode if not p.replicas])
    if free is None:
        return [], [], None, 0
    # What the GPUs allow, and what would be if there were more.
    allowed = free.within(level) & (free.gpus <= asked.most)
    edges = [*_frontier(free.tpot, free.per_gpu, allowed), *_frontier(free.tpot, free.per_gpu, free.within(level))]
    frontier = [free.candidate(row, column) for row, column in dict.fromkeys(edges)]
    looked, whole = free.gpus.size, free
    # The most per GPU is asked of engines that are kept full, however many the load then needs.
    if asked.work.rate is not None and asked.optimize != "throughput":
        exact = _pairs(asked, task, [p for p in prefill if p.replicas], [p for p in decode if p.replicas])
        if exact is not None:
            whole, looked = exact, looked + exact.gpus.size
    fit = whole.within(level) & (whole.gpus <= asked.most) & (whole.gpus >= min(asked.gpus))
    plans = []
    if fit.any():
        first = {
            "cost": whole.gpus / whole.load,
            "gpus": whole.gpus,
            "latency": whole.e2e,
            "throughput": -whole.per_gpu,
        }[asked.optimize]
        places = numpy.argwhere(fit)
        order = numpy.lexsort((whole.e2e[fit], whole.gpus[fit], first[fit]))
        plans = [whole.candidate(*map(int, places[place])) for place in order[:3]]
        # A pool is a little larger than the load needs: what it answers is the load.
        plans = [plan._replace(rate=float(plan_load(asked.work, numpy.array(plan.e2e_s)))) for plan in plans]
        plans.sort(key=lambda plan: rank(plan, asked.optimize))
        return plans, frontier, None, looked
    within_gpus = whole.gpus <= asked.most
    if not within_gpus.any():
        return [], frontier, None, looked
    over = numpy.ones(whole.gpus.shape)
    for values, most in zip((whole.ttft, whole.tpot), level, strict=True):
        if most is not None:
            over = numpy.maximum(over, values / most)
    over = numpy.where(within_gpus, over, numpy.inf)
    closest = whole.candidate(*map(int, numpy.unravel_index(int(over.argmin()), over.shape)))
    return [], frontier, closest, looked


class _Pairs(NamedTuple):
    """Every prefill pool (rows) with every decode pool (columns)."""

    asked: Question
    task: Task
    fronts: list[Pool]
    backs: list[Pool]
    ttft: Array
    tpot: Array
    e2e: Array
    load: Array
    workers: tuple[Array, Array]
    gpus: Array
    per_gpu: Array

    def within(self, level: ServiceLevel) -> Truths:
        """Which hold the service level."""
        held = numpy.ones(self.gpus.shape, dtype=bool)
        for values, most in zip((self.ttft, self.tpot), level, strict=True):
            if most is not None:
                held &= values <= most
        return held

    def candidate(self, row: int, column: int) -> Candidate:
        """One pair as a plan."""
        front, back, asked, task = self.fronts[row], self.backs[column], self.asked, self.task
        counts = [int(of[row, column]) for of in self.workers]
        layout = Disaggregated(Workers(counts[0], front.layout), Workers(counts[1], back.layout))
        rate = min(
            pool.rate * (1 if pool.replicas else count) for pool, count in zip((front, back), counts, strict=True)
        )
        later = [pool for pool in self.backs if pool.layout == back.layout and pool.tpot_s > back.tpot_s]
        slower = min((pool.tpot_s for pool in later), default=back.tpot_s)
        return Candidate(
            task.hw, task.weights, task.kv, task.draft_tokens, str(layout), front.budget, back.sequences, 1,
            layout.gpus, front.ttft_s, back.tpot_s, float(self.e2e[row, column]), rate,
            float(self.per_gpu[row, column]), layout.gpus * asked.prices[task.hw],
            next_limit(asked, task.hw, bool(later), back.places, 0.0, slower),
        )  # fmt: skip


def _pairs(asked: Question, task: Task, prefill: Sequence[Pool], decode: Sequence[Pool]) -> _Pairs | None:
    fronts, backs = undominated(prefill), undominated(decode)
    if not fronts or not backs:
        return None
    p, d = _columns(fronts), _columns(backs)
    ttft, tpot = p["ttft"][:, None], d["tpot"][None, :]
    e2e = ttft + tpot * (asked.work.output - 1.0)
    load = plan_load(asked.work, e2e)
    rates = p["rate"][:, None], d["rate"][None, :]
    each = p["each"][:, None], d["each"][None, :]
    if fronts[0].replicas:
        workers = tuple(
            numpy.broadcast_to(values, e2e.shape) for values in (p["replicas"][:, None], d["replicas"][None, :])
        )
        # What a prefill pool of whole workers could answer is told by its share, not by its rate: the load is both's.
        per_gpu = load * asked.work.output / (workers[0] * each[0] + workers[1] * each[1])
    else:
        workers = tuple(numpy.maximum(numpy.ceil(load / rate - 1e-9), 1.0) for rate in rates)
        per_gpu = asked.work.output / (each[0] / rates[0] + each[1] / rates[1])
    gpus = workers[0] * each[0] + workers[1] * each[1]
    return _Pairs(asked, task, fronts, backs, ttft, tpot, e2e, load, (workers[0], workers[1]), gpus, per_gpu)


def _columns(pools: Sequence[Pool]) -> dict[str, Array]:
    return {
        "ttft": numpy.array([pool.ttft_s for pool in pools]),
        "tpot": numpy.array([pool.tpot_s for pool in pools]),
        "rate": numpy.array([pool.rate for pool in pools]),
        "each": numpy.array([float(pool.layout.gpus) for pool in pools]),
        "replicas": numpy.array([float(pool.replicas) for pool in pools]),
    }


def _frontier(tpot: Array, per_gpu: Array, within: Truths) -> list[tuple[int, int]]:
    """For each decode pool, fastest first, the prefill pool with which the most tokens come per GPU, while more do."""
    found, most = [], 0.0
    allowed = numpy.where(within, per_gpu, -1.0)
    for column in numpy.argsort(tpot[0], kind="stable"):
        row = int(numpy.argmax(allowed[:, column]))
        if allowed[row, column] > most:
            most = float(allowed[row, column])
            found.append((row, int(column)))
    return found
