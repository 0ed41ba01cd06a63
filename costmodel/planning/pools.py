"""Disaggregated plans: pools of prefill and decode workers, put together so that both keep up with the load.

TTFT is the prefill pool's, TPOT the decode pool's, so each is searched alone, what another pool of its role beats is
dropped, and the rest are paired.
"""

from collections.abc import Sequence

import numpy

from costmodel.parallel.layout import Disaggregated, Workers
from costmodel.planning.candidates import Candidate, Pool, next_limit, plan_load, rank
from costmodel.planning.curves import Array
from costmodel.planning.question import Question
from costmodel.planning.space import Task


def undominated(pools: Sequence[Pool]) -> list[Pool]:
    """Those that no other pool of the role beats in latency, requests per second per GPU and size at once."""
    if not pools:
        return []
    values = numpy.array([(pool.ttft_s + pool.tpot_s, -pool.rate / pool.gpus, pool.gpus) for pool in pools])
    kept = []
    for index, value in enumerate(values):
        no_worse = (values <= value).all(axis=1)
        better = no_worse & (values < value).any(axis=1)
        twin = no_worse[:index] & (values[:index] == value).all(axis=1)
        if not better.any() and not twin.any():
            kept.append(pools[index])
    return kept


def paired(
    asked: Question, task: Task, prefill: Sequence[Pool], decode: Sequence[Pool]
) -> tuple[list[Candidate], list[Candidate], Candidate | None, int]:
    """The best plans, the frontier, the plan that comes closest, and how many pairs were looked at.

    task: whose device, formats and drafts the pools share.
    """
    level, work = asked.level, asked.work
    fronts, backs = undominated(prefill), undominated(decode)
    if not fronts or not backs:
        return [], [], None, 0
    p, d = _columns(fronts), _columns(backs)
    ttft, tpot = p["ttft"][:, None], d["tpot"][None, :]
    e2e = ttft + tpot * (work.output - 1.0)
    load = plan_load(work, e2e)
    workers = [numpy.maximum(numpy.ceil(load / rate - 1e-9), 1.0) for rate in (p["rate"][:, None], d["rate"][None, :])]
    gpus = workers[0] * p["gpus"][:, None] + workers[1] * d["gpus"][None, :]
    per_gpu = work.output / ((p["gpus"] / p["rate"])[:, None] + (d["gpus"] / d["rate"])[None, :])
    within = numpy.ones_like(gpus, dtype=bool)
    over = gpus / asked.most
    for values, most in ((ttft, level.ttft_s), (tpot, level.tpot_s)):
        if most is not None:
            within &= values <= most
            over = numpy.maximum(over, values / most)
    whole = within & (gpus <= asked.most) & (gpus >= min(asked.gpus))
    price = asked.prices[task.hw]

    def candidate(row: int, column: int) -> Candidate:
        front, back = fronts[row], backs[column]
        counts = [int(of[row, column]) for of in workers]
        layout = Disaggregated(Workers(counts[0], front.layout), Workers(counts[1], back.layout))
        rate = min(front.rate * counts[0], back.rate * counts[1])
        later = [pool for pool in decode if pool.layout == back.layout and pool.tpot_s > back.tpot_s]
        limit = next_limit(asked, bool(later), back.places, 0.0, later[0].tpot_s if later else back.tpot_s)
        return Candidate(
            task.hw, task.weights, task.kv, task.draft_tokens, str(layout), front.budget, back.sequences, 1,
            layout.gpus, front.ttft_s, back.tpot_s, float(e2e[row, column]), rate, float(per_gpu[row, column]),
            layout.gpus * price, limit,
        )  # fmt: skip

    plans = []
    if whole.any():
        first = {"cost": gpus / load, "gpus": gpus, "latency": e2e, "throughput": -per_gpu}[asked.optimize]
        places = numpy.argwhere(whole)
        order = numpy.lexsort((e2e[whole], gpus[whole], first[whole]))
        plans = [candidate(*map(int, places[place])) for place in order[:3]]
        # A pool is a little larger than the load needs: what it answers is the load.
        plans = [plan._replace(rate=float(plan_load(work, numpy.array(plan.e2e_s)))) for plan in plans]
        plans.sort(key=lambda plan: rank(plan, asked.optimize))
    closest = None if whole.any() else candidate(*map(int, numpy.unravel_index(int(over.argmin()), over.shape)))
    frontier = [candidate(row, column) for row, column in _frontier(tpot, per_gpu, within)]
    return plans, frontier, closest, int(gpus.size)


def _columns(pools: Sequence[Pool]) -> dict[str, Array]:
    return {
        "ttft": numpy.array([pool.ttft_s for pool in pools]),
        "tpot": numpy.array([pool.tpot_s for pool in pools]),
        "rate": numpy.array([pool.rate for pool in pools]),
        "gpus": numpy.array([float(pool.gpus) for pool in pools]),
    }


def _frontier(tpot: Array, per_gpu: Array, within: Array) -> list[tuple[int, int]]:
    """For each decode pool, fastest first, the prefill pool with which the most tokens come per GPU, while more do."""
    found, most = [], 0.0
    allowed = numpy.where(within, per_gpu, -1.0)
    for column in numpy.argsort(tpot[0], kind="stable"):
        row = int(numpy.argmax(allowed[:, column]))
        if allowed[row, column] > most:
            most = float(allowed[row, column])
            found.append((row, int(column)))
    return found
