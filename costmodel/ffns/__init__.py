"""Feed-forward blocks, one file per kind, found by folder. Their modules offer what a mixer's does, without a cache.

NAME, ALIASES, TITLE, SUMMARY, SOURCES, Dims, EXAMPLES, check(d), parameters(d, D),
active_parameters(d, D), kernels(d, D, step, precision), TENSOR_PARALLEL, and optionally partial_sums(d, D, ways).
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel
from costmodel.mixers import by_alias, modules_of
from costmodel.step import Precision, Step


class FeedForward(Protocol):
    """What a feed-forward module offers."""

    NAME: str
    ALIASES: tuple[str, ...]
    TITLE: str
    SUMMARY: str
    SOURCES: tuple[str, ...]
    Dims: Callable[..., Any]
    EXAMPLES: tuple[Any, ...]

    def parameters(self, d: Any, D: Quantity) -> Quantity:
        """All weights."""
        ...

    def active_parameters(self, d: Any, D: Quantity) -> Quantity:
        """Weights that one token multiplies."""
        ...

    def kernels(self, d: Any, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
        """The forward kernels of one layer."""
        ...

    def check(self, d: Any) -> list[str]:
        """What is inconsistent about the dimensions."""
        ...


def names() -> tuple[str, ...]:
    """The kinds in this folder."""
    return modules_of(__path__)


def ffn(kind: str) -> FeedForward:
    """The module of a kind, by its name or an alias.

    >>> ffn("geglu").NAME
    'swiglu'
    """
    if kind in names():
        return cast(FeedForward, importlib.import_module(f"{__name__}.{kind}"))
    return cast(FeedForward, by_alias(__name__, names(), kind, "ffn kind"))
