"""Plans for answers of one token, such as scores, labels and embeddings: engines that only process prompts.

The token comes with the last chunk of the prompt, so nothing decodes, and an engine is the prefill worker of a
disaggregated plan that sends its caches nowhere. What counts is the time to that token.
"""

import numpy

from costmodel.planning.engine_model import Array
from costmodel.planning.outcomes import Outcome
from costmodel.planning.points import Candidate, first_of
from costmodel.planning.pools import Pools, prefill_pools
from costmodel.planning.question import Question
from costmodel.planning.replicas import KEPT, holds
from costmodel.planning.stacks import Stack


def only_prefill(asked: Question, stack: Stack, outcome: Outcome) -> Outcome:
    """The outcome of engines side by side."""
    assert asked.work.rate is not None
    pools, looked = prefill_pools(asked, stack, stack.apart(), all_of_them=True)
    within = holds(pools.ttft_s, asked.level.ttft_s)
    # Engines that are kept busy, whatever the load.
    kept = within & (pools.replicas == 0)
    full = numpy.zeros(len(stack.gpus))
    numpy.maximum.at(full, pools.layout[kept], (pools.rate / pools.gpus)[kept])
    rows = numpy.flatnonzero(within & (pools.replicas > 0) & (pools.gpus >= min(asked.gpus)))
    plans: tuple[Candidate, ...] = ()
    if len(rows):
        usd, gpus, ttft = (pools.gpus * asked.prices[stack.tasks.hw])[rows], pools.gpus[rows], pools.ttft_s[rows]
        best = {"cost": usd, "gpus": gpus, "latency": ttft, "throughput": -full[pools.layout[rows]]}[asked.optimize]
        plans = tuple(
            _candidate(asked, stack, pools, int(rows[place]), int(pools.replicas[rows[place]]), full)
            for place in first_of(best, usd, ttft, KEPT)
        )
    return outcome._replace(
        points=looked,
        fitting=len(pools.layout),
        within=int(within.sum()),
        plans=plans,
        closest=None if plans else _closest(asked, stack, pools, full),
    )


def _closest(asked: Question, stack: Stack, pools: Pools, full: Array) -> Candidate | None:
    """The engines, as many as the GPUs allow and kept as busy, that miss the worst of the limits by the least."""
    single = numpy.flatnonzero((pools.replicas == 0) & (pools.gpus <= asked.most))
    if not len(single):
        return None
    count = asked.most // pools.gpus[single]
    over = (asked.work.rate or 0.0) / (pools.rate[single] * count)
    if asked.level.ttft_s is not None:
        over = numpy.maximum(over, pools.ttft_s[single] / asked.level.ttft_s)
    place = int(over.argmin())
    return _candidate(asked, stack, pools, int(single[place]), int(count[place]), full)


def _candidate(asked: Question, stack: Stack, pools: Pools, row: int, count: int, full: Array) -> Candidate:
    """So many replicas as a plan."""
    task, place = stack.tasks.one(pools.layout[row]), pools.layout[row]
    single = pools.replicas[row] == 0
    gpus, rate = count * int(stack.gpus[place]), float(pools.rate[row]) * (count if single else 1)
    ttft = float(pools.ttft_s[row])
    under_way = rate / (count * float(stack.engines[place])) * ttft
    usd = gpus * asked.prices[task.hw]
    return Candidate(
        task.hw, task.weights, task.kv, task.draft_tokens, str(task.layout),
        int(pools.budget[row]), under_way, count, gpus, ttft, 0.0, ttft, rate, float(full[place]), usd,
    )  # fmt: skip
