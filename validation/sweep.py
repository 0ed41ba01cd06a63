"""Runs planned points one after another in a process of its own, and writes what became of each at once.

The process may hang, crash or run out of memory: then the point's row says so, and a new process goes on with the next
one. Points whose rows are in the file already are not run again, so that an interrupted sweep goes on where it stopped.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from validation.device import DeviceFacts
from validation.measurements import Journal, Measurement
from validation.runners import Implementation, Planned, Runner, Shape
from validation.stopwatch import UNKNOWN_CACHE_BYTES
from validation.worker import Answer, Task, serve

LIMIT_S = {"cpu": 60.0, "cuda": 240.0}
"""Seconds after which a point is given up, compilation included."""
START_LIMIT_S = 300.0
"""Seconds that a process may take to load torch and find its device."""
BUDGET_S = {"quick": 0.1, "full": 0.3}
"""Seconds of samples per point."""
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
    measured together, so that those to fit and those to judge by see the same machine.

    families: names of kernel families, mechanisms or operators; none means all. part: (i, n) takes the i-th of n
    parts, which share no implementation of an operator, so that each compiles its own kernels once. With quick effort a
    GPU runs no plain form in torch where a kernel made for the operator is installed, and points to judge by cold only.
    """
    chosen = [
        runner for runner in known if not families or {runner.family, runner.mechanism, runner.name} & set(families)
    ]
    thrifty = facts.kind == "cuda" and effort == "quick"
    pairs = [
        (runner, implementation)
        for runner in chosen
        for implementation in runner.implementations
        if facts.kind in implementation.devices and not (thrifty and outdone(runner, implementation))
    ]
    found = [
        Job(runner, implementation, mode, planned)
        for runner, implementation in pairs[part[0] - 1 :: part[1]]
        for planned in runner.points(facts, effort)
        for mode in runner.modes[facts.kind]
        if mode == "cold"
        or "cold" not in runner.modes[facts.kind]
        or (replays_from_cache(runner, planned.shape, facts) and not (thrifty and planned.role != "fit"))
    ]
    if facts.kind == "cpu":
        return sorted(
            found, key=lambda job: ESSENTIAL.index(job.runner.family) if job.runner.family in ESSENTIAL else 9
        )
    return sorted(found, key=lambda job: job.planned.value)


def installed(implementation: Implementation) -> bool:
    """Whether the modules that it needs are there."""
    return all(find_spec(module) is not None for module in implementation.requires)


def outdone(runner: Runner, implementation: Implementation) -> bool:
    """Whether it is a plain form in torch of an operator for which a kernel on a GPU is installed."""
    return implementation.name.startswith(PLAIN) and any(
        "cuda" in other.devices and not other.name.startswith(PLAIN) and installed(other)
        for other in runner.implementations
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


class Worker:
    """The process that runs points, started again whenever it had to be stopped."""

    def __init__(self, device: str, folder: str | None = None) -> None:
        self.device, self.folder = device, folder
        self.process: Any = None
        self.pipe: Connection | None = None

    def run(self, task: Task, limit_s: float) -> Answer:
        """What became of a task."""
        if self.process is None:
            failed = self._start()
            if failed is not None:
                return failed
        assert self.pipe is not None
        try:
            self.pipe.send(task)
            if not self.pipe.poll(limit_s):
                self.stop()
                return Answer("timeout", detail=f"no result after {limit_s:g} s")
            answer: Answer = self.pipe.recv()
        except (EOFError, OSError):
            return self._died()
        if answer.broken:
            self.stop()
        return answer

    def _start(self) -> Answer | None:
        """Start the process and wait until it has found its device; the answer that says why it did not."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.device, self.folder), daemon=True)
        self.process.start()
        theirs.close()
        try:
            if self.pipe.poll(START_LIMIT_S):
                self.pipe.recv()
                return None
        except (EOFError, OSError):
            return self._died()
        self.stop()
        return Answer("error", detail=f"the process found no device after {START_LIMIT_S:g} s")

    def _died(self) -> Answer:
        process = self.process
        process.join(5.0)
        code = process.exitcode
        self.stop()
        if code == -9:
            return Answer("oom", detail="the process was killed, as systems do when memory runs out")
        return Answer("error", detail=f"the process ended with code {code}")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.join(5.0)
        if self.pipe is not None:
            self.pipe.close()
        self.process = self.pipe = None


Progress = Callable[[Job, int, int], None]


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
    how many of how many are done. until: no point is begun after this time of the monotonic clock. An interruption
    (KeyboardInterrupt) leaves the file whole.
    """
    done = {row.key for row in journal.rows}
    left = [job for job in wanted if job.row.key not in done]
    worker = Worker(facts.device, folder)
    limit = LIMIT_S[facts.kind] if limit_s is None else limit_s
    try:
        for index, job in enumerate(left):
            if until is not None and time.monotonic() >= until:
                break
            progress(job, index, len(left))
            journal.add(_measured(job, facts, worker, effort, limit))
    finally:
        worker.stop()
    keys = {job.row.key for job in wanted}
    return [row for row in journal.rows if row.key in keys]


def _measured(job: Job, facts: DeviceFacts, worker: Worker, effort: str, limit_s: float) -> Measurement:
    shape = job.planned.shape
    missing = job.implementation.supports(shape, facts)
    large = "" if missing else too_large(job, facts)
    if missing:
        answer = Answer("unsupported", detail=missing)
    elif large:
        answer = Answer("oom", detail=large)
    else:
        task = Task(job.runner.name, job.implementation.name, job.mode, dict(shape), BUDGET_S[effort])
        answer = worker.run(task, limit_s)
    return _row(job, facts, answer)


def _row(job: Job, facts: DeviceFacts, answer: Answer) -> Measurement:
    from dataclasses import replace

    packages = "; ".join(f"{name} {version}" for name, version in facts.packages.items())
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
