"""Counts the arithmetic that a torch program really does, independently of any formula of the project.

Matrix products count 2·m·n·k on the tensor side. Inside `vector()` they count on the vector side, and
each element of an addition, subtraction, multiplication or division counts 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
_ELEMENTWISE = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_"}
_region = [False]


@contextmanager
def vector() -> Iterator[None]:
    """Arithmetic inside belongs to the vector lanes."""
    before, _region[0] = _region[0], True
    try:
        yield
    finally:
        _region[0] = before


@dataclass
class Counts:
    """FLOPs counted so far."""

    tensor: int = 0
    vector: int = 0


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No program here is compiled: torch would load its compiler, which takes seconds, to leave this class out."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _PRODUCTS:
            left = args[1] if name in ("addmm", "baddbmm") else args[0]
            flops = 2 * prod(out.shape) * left.shape[-1]
            if _region[0]:
                self.counts.vector += flops
            else:
                self.counts.tensor += flops
        elif _region[0] and name in _ELEMENTWISE:
            self.counts.vector += out.numel()
        return out


def count(program: Callable[[], object]) -> Counts:
    """The FLOPs of a program."""
    with _Counter() as counter:
        program()
    return counter.counts
