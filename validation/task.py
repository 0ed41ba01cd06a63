"""What the process of a sweep asks of the process that runs points, and what it is answered."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from validation.runners import Shape


class Task(NamedTuple):
    """A point to run: operator and implementation by name, state of caches, shape, seconds of samples.

    again: it was run before, and is only to be timed once more. capture: whether a CUDA graph of it may be tried.
    """

    runner: str
    implementation: str
    mode: str
    shape: Shape
    budget_s: float
    again: bool = False
    capture: bool = True

    @property
    def point(self) -> tuple[Any, ...]:
        """What is timed."""
        return (self.runner, self.implementation, self.mode, tuple(sorted(self.shape.items())))


CHECKED = "checked"
"""What the process says once a point's outputs are the reference's, before it times it."""


class Answer(NamedTuple):
    """What became of a task: a status, why, and fields of its row.

    broken: the process is of no more use. checked: its outputs had been compared when it was given up. settled: the
    point's time is known; else it should be timed again later.
    """

    status: str
    told: Mapping[str, Any] = MappingProxyType({})
    detail: str = ""
    broken: bool = False
    checked: bool = True
    settled: bool = True
