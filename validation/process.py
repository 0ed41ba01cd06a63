"""The process in which points are run, as the sweep sees it: asked, given up, and started again."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from validation.task import CHECKED, Answer, Task
from validation.worker import serve

START_LIMIT_S = 300.0
"""Seconds that a process may take to load torch and find its device."""
END_LIMIT_S = 30.0
ENDED, UNCHECKED = "the process ended", "before its outputs had been compared"
"""What details say of a process that ended by itself, and of one that hung in a comparison."""


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
        end, checked = time.monotonic() + limit_s, False
        try:
            self.pipe.send(task)
            while self.pipe.poll(max(end - time.monotonic(), 0.0)):
                said: Answer | str = self.pipe.recv()
                if not isinstance(said, str):
                    if said.broken:
                        self.stop()
                    return said
                checked = said == CHECKED
            self.stop()
            where = "" if checked else f", {UNCHECKED}"
            return Answer("timeout", detail=f"no result after {limit_s:g} s{where}", broken=True, checked=checked)
        except (EOFError, OSError):
            return self._died()._replace(checked=checked)

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
            return Answer("oom", detail="the process was killed, as systems do when memory runs out", broken=True)
        return Answer("error", detail=f"{ENDED} with code {code}", broken=True)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            # A driver takes seconds to tear down what hangs on its device; the next process needs that memory.
            self.process.join(END_LIMIT_S)
        if self.pipe is not None:
            self.pipe.close()
        self.process = self.pipe = None
