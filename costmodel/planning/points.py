"""Ways to serve a load: one as a plan names it, and many as columns, of which few are ever named.

A search looks at hundreds of points of every layout. They stay columns of numbers until it is known which of them
somebody will read.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.planning.engine_model import Array
from costmodel.planning.question import Question
from costmodel.planning.side_by_side import Indices
from costmodel.planning.space import Tasks
from costmodel.planning.workload import Workload

LIMITS = ("TTFT", "TPOT", "speed per user", "memory", "max sequences")
"""What a fuller engine would miss first: a latency, nothing but the speed of a user, memory, or places."""


class Candidate(NamedTuple):
    """One way to serve the load.

    layout: text, as for `--layout`. budget: tokens of an iteration; of disaggregated layouts that of the prefill pool.
    sequences: under way in each engine that decodes. replicas: of the layout; of disaggregated ones 1, the layout has
    the workers. rate: requests per second that the whole would answer, were its engines this full, with the service
    level held. usd_per_hour: of all GPUs. limited_by: what a fuller engine would miss.
    """

    hw: str
    weights: str | None
    kv: str | None
    draft_tokens: int
    layout: str
    budget: int
    sequences: float
    replicas: int
    gpus: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    rate: float
    tokens_per_s_gpu: float
    usd_per_hour: float
    limited_by: str = ""


class Points(NamedTuple):
    """Points of tasks that share device, formats and drafts, as columns; the fields are those of `Candidate`.

    task, budget, limit: places in tasks, budgets and LIMITS. price: USD per hour of a GPU.
    """

    tasks: Tasks
    budgets: tuple[int, ...]
    price: float
    task: Indices
    budget: Indices
    sequences: Array
    replicas: Array
    gpus: Array
    ttft_s: Array
    tpot_s: Array
    e2e_s: Array
    rate: Array
    tokens_per_s_gpu: Array
    limit: Indices

    def candidate(self, row: int) -> Candidate:
        """One of them."""
        task, gpus = self.tasks.one(self.task[row]), int(self.gpus[row])
        return Candidate(
            task.hw, task.weights, task.kv, task.draft_tokens, str(task.layout),
            self.budgets[self.budget[row]], float(self.sequences[row]),
            int(self.replicas[row]), gpus, float(self.ttft_s[row]), float(self.tpot_s[row]), float(self.e2e_s[row]),
            float(self.rate[row]), float(self.tokens_per_s_gpu[row]), gpus * self.price, LIMITS[self.limit[row]],
        )  # fmt: skip

    def candidates(self, rows: Iterable[int] | None = None) -> list[Candidate]:
        """All of them, or some."""
        return [self.candidate(row) for row in (range(len(self.task)) if rows is None else rows)]

    def exceeded(self, question: Question) -> Array:
        """By which factor each misses the worst of its limits, see `exceeded`."""
        wanted = plan_load(question.work, self.e2e_s)
        over = numpy.maximum(wanted / self.rate, self.gpus / question.most)
        for values, most in ((self.ttft_s, question.level.ttft_s), (self.tpot_s, question.level.tpot_s)):
            if most is not None:
                over = numpy.maximum(over, values / most)
        return over


def plan_load(work: Workload, e2e_s: Array) -> Array:
    """Requests per second that a load brings: its rate, or what its clients ask for at these times."""
    if work.rate is not None:
        return numpy.full_like(e2e_s, work.rate)
    assert work.clients is not None
    with numpy.errstate(divide="ignore"):
        return numpy.where(numpy.isfinite(e2e_s), work.clients / e2e_s, 0.0)


def exceeded(question: Question, plan: Candidate) -> tuple[float, str]:
    """By which factor a plan misses the worst of its limits (at most 1: none), and which one that is."""
    level, work = question.level, question.work
    wanted = work.rate if work.rate is not None else (work.clients or 0) / plan.e2e_s
    ratios = [(wanted / plan.rate, "rate"), (plan.gpus / question.most, "GPUs")]
    if level.ttft_s is not None:
        ratios.append((plan.ttft_s / level.ttft_s, "TTFT"))
    if level.tpot_s is not None:
        ratios.append((plan.tpot_s / level.tpot_s, "TPOT"))
    return max(ratios, key=lambda entry: entry[0])


def rank(plan: Candidate, optimize: str) -> tuple[float, ...]:
    """What a plan is ordered by, the best first; ties go to the cheaper, then to the faster one."""
    first = {
        "cost": plan.usd_per_hour / plan.rate,
        "gpus": float(plan.gpus),
        "latency": plan.e2e_s,
        "throughput": -plan.tokens_per_s_gpu,
    }[optimize]
    return (_rounded(first), plan.usd_per_hour, plan.e2e_s)


def _rounded(value: float) -> float:
    """To the digits that tell plans apart."""
    return float(f"{value:.9g}")


def first_of(values: Array, usd: Array, e2e: Array, count: int) -> list[int]:
    """The places of the best, in the order of `rank`; values: what is made least."""
    if len(values) > count:
        # Rounding moves no value past one that is larger by more than that.
        limit = numpy.partition(values, count - 1)[count - 1]
        near = numpy.flatnonzero(values <= limit + 1e-8 * abs(limit))
    else:
        near = numpy.arange(len(values))
    rounded = numpy.array([_rounded(value) for value in values[near].tolist()])
    return near[numpy.lexsort((e2e[near], usd[near], rounded))][:count].tolist()


def fastest_first(tpot: Array, per_gpu: Array) -> Indices:
    """The places that no other beats in tokens/s of a user and tokens/s per GPU, the fastest first."""
    order = numpy.lexsort((-per_gpu, tpot))
    return order[rises(per_gpu[order])]


def rises(values: Array) -> NDArray[numpy.bool_]:
    """Which values along the last axis are above 0 and above all before them.

    >>> rises(numpy.array([1.0, 3.0, 3.0, 2.0, 4.0])).tolist()
    [True, True, False, False, True]
    """
    most = numpy.maximum.accumulate(values, axis=-1)
    before = numpy.concatenate([numpy.zeros((*values.shape[:-1], 1)), most[..., :-1]], axis=-1)
    return values > numpy.maximum(before, 0.0)


def named(cloud: Iterable[Points | Candidate]) -> list[Candidate]:
    """All points, each as a plan names it."""
    return [point for part in cloud for point in (part.candidates() if isinstance(part, Points) else [part])]


def undominated(points: Sequence[Candidate], hw: str) -> list[Candidate]:
    """Those of a device that no other of it beats in tokens/s of a user and tokens/s per GPU, the fastest first."""
    mine = [point for point in points if point.hw == hw]
    tpot, per_gpu = (numpy.array([getattr(point, name) for point in mine]) for name in ("tpot_s", "tokens_per_s_gpu"))
    return [mine[place] for place in fastest_first(tpot, per_gpu)]
