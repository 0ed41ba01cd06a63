"""Runs planned points one after another in a process of its own, and writes what became of each at once.

The process may hang, crash or run out of memory: then the point's row says so, and a new process goes on with the next
one. Points whose rows are in the file already are not run again, so that an interrupted sweep goes on where it stopped.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from validation.core_pace import is_calm
from validation.device import DeviceFacts
from validation.measurements import Journal, Measurement
from validation.process import ENDED, UNCHECKED, Worker
from validation.runners import Implementation, Planned, Runner, Shape
from validation.stopwatch import NO_GRAPH, UNKNOWN_CACHE_BYTES
from validation.task import Answer, Task

LIMIT_S = {"cpu": 60.0, "cuda": 240.0}
"""Seconds after which a point is given up."""
FIRST_LIMIT_S = {"cpu": 60.0, "cuda": 480.0}
"""The same for the first point of an implementation, whose kernels are compiled and tuned then: for some of fla's these
are a hundred configurations. A part of ten minutes has room for it."""
BUDGET_S = {"quick": 0.1, "full": 0.3}
"""Seconds of samples per point."""
SHARE_OF_PASS = {"cpu": 0.2, "cuda": 1.0}
"""Of these seconds in one pass: on a processor there are at least two."""
LATE_S, LATE_ROUNDS = 25.0, 3
"""Seconds and rounds of further passes after all operators, over points beside which a processor's core was slow."""
FEWEST_STUCK = 2
"""Points of an implementation that hung or ended the process, after which it is given up; of one that hung before its
outputs had been compared a single one, since all of its points begin so."""
GIVEN_UP = "given up"
SHARE_OF_MEMORY = 0.9
PLAIN = "torch-"
"""How the names of readable forms begin that no one would serve with."""
BEYOND_CACHES = 16
"""Times the last cache that a call may move and still be measured warm as well as cold."""
ESSENTIAL = ("gemm", "elementwise", "prefill-attention", "decode-attention", "chunk-scan", "recurrent-step")
"""Families that most models are made of, which come first where points go operator by operator."""


class Job(NamedTuple):
    """A point with the implementation and the state of caches in which it is to be measured."""

    runner: Runner
    implementation: Implementation
    mode: str
    planned: Planned

    @property
    def row(self) -> Measurement:
        """Its row without a result."""
        return Measurement(
            runner=self.runner.name,
            family=self.runner.family,
            mechanism=self.runner.mechanism,
            phase=self.runner.phase,
            implementation=self.implementation.name,
            mode=self.mode,
            role=self.planned.role,
            shape=self.planned.shape,
        )


def jobs(
    known: Iterable[Runner],
    facts: DeviceFacts,
    effort: str,
    families: Sequence[str] = (),
    part: tuple[int, int] = (1, 1),
) -> list[Job]:
    """What is to be measured on a device, in the order of its worth.

    A processor's speed changes with what else runs on the machine, over minutes: there the points of one operator are
    measured together, so that those to fit and those to judge by see the same machine. What slows it for seconds is
    seen by further passes over these points, until two of a point agree (`validation.passes.settled`), and what slows
    it for longer by passes after all operators.

    families: names of kernel families, mechanisms or operators; none means all. part: (i, n) takes the i-th of n
    parts, which share no implementation of an operator, so that each compiles its own kernels once. With quick effort a
    GPU runs no plain form in torch where a kernel made for the operator is installed, nothing that torch compiles for
    every shape where something else runs, and points to judge by cold only; of a family all implementations, and calls
    from its caches, are measured with one operator, the first. With full effort what torch compiles for every shape
    runs the points to fit and to judge by, and the others only where nothing else does.
    """
    chosen = [
        runner for runner in known if not families or {runner.family, runner.mechanism, runner.name} & set(families)
    ]
    thrifty = facts.kind == "cuda" and effort == "quick"
    first = {runner.family: runner.name for runner in reversed(chosen)}
    beside = {runner.name for runner in chosen if thrifty and first[runner.family] != runner.name}
    pairs = [
        (runner, implementation)
        for runner in chosen
        for implementation in (preferred(runner, facts) if runner.name in beside else runner.implementations)
        if facts.kind in implementation.devices
        and not (thrifty and (outdone(runner, implementation) or spared(runner, implementation, facts)))
    ]
    found = [
        Job(runner, implementation, mode, planned)
        for runner, implementation in pairs[part[0] - 1 :: part[1]]
        for planned in runner.points(facts, effort)
        if planned.role != "sweep" or not spared(runner, implementation, facts)
        for mode in runner.modes[facts.kind]
        if mode == "cold"
        or "cold" not in runner.modes[facts.kind]
        or (
            runner.name not in beside
            and not (thrifty and planned.role != "fit")
            and replays_from_cache(runner, planned.shape, facts)
        )
    ]
    if facts.kind == "cpu":
        return sorted(
            found, key=lambda job: ESSENTIAL.index(job.runner.family) if job.runner.family in ESSENTIAL else 9
        )
    return sorted(found, key=lambda job: job.planned.value)


def preferred(runner: Runner, facts: DeviceFacts) -> Sequence[Implementation]:
    """The first installed implementation that takes an operator's shapes on a device; all where none does."""
    shapes = [planned.shape for planned in runner.points(facts, "quick")]
    for implementation in runner.implementations:
        if facts.kind not in implementation.devices or not installed(implementation):
            continue
        if not outdone(runner, implementation) and any(not implementation.supports(shape, facts) for shape in shapes):
            return (implementation,)
    return runner.implementations


def installed(implementation: Implementation) -> bool:
    """Whether the modules that it needs are there."""
    return all(find_spec(module) is not None for module in implementation.requires)


def outdone(runner: Runner, implementation: Implementation) -> bool:
    """Whether it is a plain form in torch of an operator for which a kernel on a GPU is installed."""
    return implementation.name.startswith(PLAIN) and any(
        "cuda" in other.devices and not other.name.startswith(PLAIN) and installed(other)
        for other in runner.implementations
    )


def spared(runner: Runner, implementation: Implementation, facts: DeviceFacts) -> bool:
    """Whether it is compiled for every shape, and something that is not runs the operator on such a device."""
    return implementation.per_shape and any(
        facts.kind in other.devices and not other.per_shape and installed(other) for other in runner.implementations
    )


def replays_from_cache(runner: Runner, shape: Shape, facts: DeviceFacts) -> bool:
    """Whether a call over the same buffers can find any of them in the last cache: beyond, warm is cold."""
    moved = sum(kernel.ideal.hbm_bytes * kernel.count for kernel in runner.kernels(shape))
    return bool(moved <= BEYOND_CACHES * (facts.l2_bytes or UNKNOWN_CACHE_BYTES))


def too_large(job: Job, facts: DeviceFacts) -> str:
    """Why a point cannot fit in the device's memory whatever runs it; "" where it can."""
    needed = max(kernel.ideal.hbm_bytes for kernel in job.runner.kernels(job.planned.shape))
    if needed <= SHARE_OF_MEMORY * facts.memory_bytes:
        return ""
    return f"needs {needed / 2**30:.1f} GiB of {facts.memory_bytes / 2**30:.1f}"


class History:
    """What became of implementations so far: which were begun, which refuse to be captured in a graph, and how often
    one hung or ended the process, and how it did last. Rows of earlier runs count."""

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self.begun: set[tuple[str, str]] = set()
        self.refusing: set[tuple[str, str]] = set()
        self.stuck: dict[tuple[str, str], list[Answer]] = {}
        for row in rows:
            ended = row.status == "timeout" or (row.status == "error" and ENDED in row.detail)
            told, checked = {"method": row.method}, UNCHECKED not in row.detail
            self.add((row.runner, row.implementation), Answer(row.status, told, row.detail, ended, checked))

    def add(self, name: tuple[str, str], answer: Answer) -> None:
        """Count what became of a point of an implementation."""
        if answer.status in ("unsupported", "oom"):
            return
        self.begun.add(name)
        if NO_GRAPH in str(answer.told.get("method", "")):
            self.refusing.add(name)
        if answer.broken and answer.status != "ok":
            self.stuck.setdefault(name, []).append(answer)

    def given_up(self, name: tuple[str, str]) -> Answer | None:
        """The answer for the other points of an implementation that is not tried any more, of the same kind."""
        stuck = self.stuck.get(name, [])
        if len(stuck) < FEWEST_STUCK and all(answer.checked for answer in stuck):
            return None
        last = stuck[-1]
        if last.detail.startswith(GIVEN_UP):  # in an earlier run
            return Answer(last.status, detail=last.detail)
        points = f"{len(stuck)} point{'s' if len(stuck) > 1 else ''}"
        return Answer(last.status, detail=f"{GIVEN_UP} after {points}: {last.detail}")


Progress = Callable[[Job, int, int], None]
Timed = tuple[Job, Measurement]


def sweep(
    wanted: Sequence[Job],
    facts: DeviceFacts,
    journal: Journal,
    *,
    effort: str = "quick",
    limit_s: float | None = None,
    folder: str | None = None,
    progress: Progress = lambda job, done, total: None,
    until: float | None = None,
) -> list[Measurement]:
    """Measure the points that the file does not hold yet, and give the rows of all that it then holds.

    folder: where the operators' files are, if not in the package's own folder. progress is told the point at work and
    how many of how many are done. until: a time of the monotonic clock after which no point is begun, and the one at
    work is left to the next run. An interruption (KeyboardInterrupt) leaves the file whole.
    """
    done = {row.key for row in journal.rows}
    history = History(journal.rows)
    left = [job for job in wanted if job.row.key not in done]
    worker = Worker(facts.device, folder)
    again = partial(
        _again, facts=facts, worker=worker, effort=effort, limit_s=limit_s, journal=journal, history=history
    )
    timed: list[Timed] = []
    end = math.inf if until is None else until
    try:
        together = itertools.groupby(left, key=lambda job: (job.runner.name, job.implementation.name))
        index = 0
        for name, same in together:
            unsettled: list[Timed] = []
            for job in same:
                remaining = end - time.monotonic()
                if remaining <= 0:
                    break
                progress(job, index, len(left))
                index += 1
                limit = limit_s or (LIMIT_S if name in history.begun else FIRST_LIMIT_S)[facts.kind]
                answer = _measured(job, facts, worker, effort, min(limit, remaining), history)
                if answer.status == "timeout" and remaining < limit and index > 1:
                    break  # cut short: the next run begins with it
                history.add(name, answer)
                row = _row(job, facts, answer)
                journal.add(row)
                (timed if answer.settled else unsettled).append((job, row))
            while unsettled and time.monotonic() < end:
                found = again(unsettled, until=end)
                timed += [(job, row) for job, row, settled in found if settled]
                unsettled = [(job, row) for job, row, settled in found if not settled]
            timed += unsettled
        late_end = min(end, time.monotonic() + LATE_S)
        for _ in range(LATE_ROUNDS):
            slow, calm = beside_a_slow_core(timed)
            if not slow or time.monotonic() >= late_end:
                break
            timed = calm + [(job, row) for job, row, _ in again(slow, until=late_end)]
    finally:
        worker.stop()
    keys = {job.row.key for job in wanted}
    return [row for row in journal.rows if row.key in keys]


def beside_a_slow_core(timed: Sequence[Timed]) -> tuple[list[Timed], list[Timed]]:
    """Of a run's points, those in whose passes a processor's core was never as fast as in others, and the rest."""
    fastest_s = min((row.pace_s for _, row in timed if row.pace_s), default=math.inf)
    slow = [each for each in timed if not is_calm(each[1].pace_s, fastest_s)]
    return slow, [each for each in timed if is_calm(each[1].pace_s, fastest_s)]


def _again(
    points: Sequence[Timed],
    until: float,
    *,
    facts: DeviceFacts,
    worker: Worker,
    effort: str,
    limit_s: float | None,
    journal: Journal,
    history: History,
) -> list[tuple[Job, Measurement, bool]]:
    """One more pass over points that were timed before: each with its row then, and whether it is settled.

    What goes wrong now leaves the row of the passes before, and there is no further pass; a point whose turn does not
    come before `until` stays as it is.
    """
    from dataclasses import replace

    found, better = [], []
    for job, row in points:
        remaining, settled = until - time.monotonic(), False
        if remaining > 0:
            limit = min(limit_s or LIMIT_S[facts.kind], remaining)
            answer = worker.run(_task(job, facts, effort, history)._replace(again=True), limit)
            settled = answer.status != "ok" or answer.settled
            if answer.status == "ok":
                row = replace(row, **answer.told)
                better.append(row)
        found.append((job, row, settled))
    journal.replace(better)
    return found


def _task(job: Job, facts: DeviceFacts, effort: str, history: History) -> Task:
    name = (job.runner.name, job.implementation.name)
    budget = BUDGET_S[effort] * SHARE_OF_PASS[facts.kind]
    return Task(*name, job.mode, dict(job.planned.shape), budget, capture=name not in history.refusing)


def _measured(job: Job, facts: DeviceFacts, worker: Worker, effort: str, limit_s: float, history: History) -> Answer:
    """What became of a point."""
    shape = job.planned.shape
    missing = job.implementation.supports(shape, facts)
    large = "" if missing else too_large(job, facts)
    if missing:
        return Answer("unsupported", detail=missing)
    if large:
        return Answer("oom", detail=large)
    given_up = history.given_up((job.runner.name, job.implementation.name))
    return given_up or worker.run(_task(job, facts, effort, history), limit_s)


def _row(job: Job, facts: DeviceFacts, answer: Answer) -> Measurement:
    from dataclasses import replace

    versions = [f"{name} {version}" for name, version in facts.packages.items()]
    packages = "; ".join(filter(None, [facts.toolkit, *versions]))
    told: Mapping[str, Any] = answer.told
    return replace(
        job.row,
        status=answer.status,
        detail=answer.detail,
        at_s=round(time.time(), 1),
        device=facts.name,
        driver=facts.driver,
        packages=packages,
        date=facts.date,
        **told,
    )


def small_shapes(runner: Runner, points: Iterable[Planned]) -> list[Shape]:
    """The different shapes on which an operator is checked for these points."""
    return list(
        {tuple(sorted(small.items())): small for small in (runner.small(each.shape) for each in points)}.values()
    )
