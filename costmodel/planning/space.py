"""The search space of a plan: every layout of every size, number format and draft length, on every device.

Nothing is left out in silence: what a rule or a bound excludes is counted under its name.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import NamedTuple

from costmodel.architecture import Architecture
from costmodel.ffns import moe
from costmodel.parallel.layout import Layout


class Task(NamedTuple):
    """One engine to evaluate: formats are None where the model's own are kept."""

    hw: str
    weights: str | None
    kv: str | None
    draft_tokens: int
    layout: Layout


class Layouts(tuple[Layout, ...]):
    """Layouts by which what is found of all of them is kept: their hash is computed once."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class Tasks(NamedTuple):
    """Tasks that share device, formats and drafts: a layout for each."""

    hw: str
    weights: str | None
    kv: str | None
    draft_tokens: int
    layouts: tuple[Layout, ...]

    def one(self, place: int) -> Task:
        """One of them."""
        return Task(*self[:4], self.layouts[place])

    def of(self, places: slice) -> "Tasks":
        """Some of them."""
        return self._replace(layouts=self.layouts[places])

    def chosen(self, places: Iterable[int]) -> "Tasks":
        """Those at these places."""
        return self._replace(layouts=tuple(map(self.layouts.__getitem__, places)))


def layouts(model: Architecture, sizes: Sequence[int], context_parallel: bool = False) -> Iterator[Layout]:
    """Every product tp · pp · dp of each size (and cp, if told), with the experts of a stage together or spread over
    all of its devices.

    Models without experts have no dp: its ranks would be replicas, which the plan counts as such.
    """
    experts = any(isinstance(block.dims, moe.Dims) for block in model.ffns.values())
    for size in sizes:
        for pp in _divisors(size):
            for dp in _divisors(size // pp) if experts else (1,):
                for cp in _divisors(size // pp // dp) if context_parallel else (1,):
                    tp = size // pp // dp // cp
                    stage = tp * dp * cp
                    if dp > 1:
                        yield Layout(tp, pp, stage, dp, cp)
                        continue
                    yield Layout(tp, pp, 1, 1, cp)
                    if experts and tp > 1:
                        yield Layout(tp, pp, tp, 1, cp)


@cache
def _divisors(number: int) -> tuple[int, ...]:
    """In rising order.

    >>> _divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(candidate for candidate in range(1, number + 1) if number % candidate == 0)


class Dimension(NamedTuple):
    """One dimension of the space: what it is, and its values, whose text names them."""

    name: str
    values: Sequence[object]


class Count(NamedTuple):
    """So many engines (or pairs of pools, or points) and what became of them."""

    what: str
    number: int
    why: str = ""
