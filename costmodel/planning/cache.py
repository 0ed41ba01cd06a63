"""The memory of an engine's sequences: pages of keys and values that grow with them, and what each holds throughout.

Keys and values of layers that see the whole context grow token by token, in pages. Recurrent states and the caches of
windowed layers are bounded: they are reserved when a sequence is admitted, at the size that its full length needs.
"""

from typing import NamedTuple

from costmodel.algebra import minimum
from costmodel.architecture import Architecture
from costmodel.step import Precision


class SequenceCache(NamedTuple):
    """Bytes of one sequence: per token without bound, per token up to a limit of tokens, and fixed (states)."""

    token_bytes: float = 0.0
    limited: tuple[tuple[int, float], ...] = ()
    state_bytes: float = 0.0

    def reserved(self, length: int) -> float:
        """Bytes besides the growing pages that a sequence of this length needs."""
        if not self.limited:
            return self.state_bytes
        return self.state_bytes + sum(size * minimum(length, limit) for limit, size in self.limited)

    def bytes(self, length: int) -> float:
        """Everything that a sequence of this length holds.

        >>> SequenceCache(token_bytes=2, limited=((10, 3.0),), state_bytes=100).bytes(50)
        230.0
        """
        return self.token_bytes * length + self.reserved(length)


def sequence_cache(architecture: Architecture, precision: Precision) -> SequenceCache:
    """What a sequence of this model keeps on one device that holds all of the model."""
    growing = fixed = 0.0
    limited: dict[int, float] = {}
    for name, count in architecture.counts()[0].items():
        block = architecture.mixers[name]
        kept = block.module.cache(block.dims, precision)
        fixed += count * kept.fixed
        if kept.limit is None:
            growing += count * kept.per_token
        elif kept.per_token:
            limited[kept.limit] = limited.get(kept.limit, 0.0) + count * kept.per_token
    return SequenceCache(growing, tuple(sorted(limited.items())), fixed)


class Pages:
    """Pages of growing caches, counted exactly while all sequences grow by `pace` tokens in an iteration.

    A sequence needs its next page when the tokens that its last page has left are used up. Sequences are kept by
    that number, as slots of a dial that turns by `pace` tokens in every iteration, so that the pages of a thousand
    sequences over many iterations are a sum over at most one turn. Sizes are in pages; `used` may have a fraction, from
    what is reserved in bytes. Models without growing caches have a pace of 0.

    >>> pages = Pages(size=16, capacity=3)
    >>> pages.used = pages.pages(20)
    >>> slot = pages.join(20)
    >>> pages.needed(12), pages.needed(13), pages.possible(100)
    (0, 1, 28)
    """

    __slots__ = ("capacity", "dial", "growing", "pace", "size", "slots", "used")

    def __init__(self, size: int, capacity: float, pace: float = 1.0) -> None:
        self.size, self.capacity, self.pace = size, capacity, pace
        self.used = 0.0
        self.dial = 0.0
        self.slots = [0] * size
        self.growing = 0

    def pages(self, tokens: float) -> int:
        """Whole pages of so many tokens."""
        return -int(-tokens // self.size) if self.pace else 0

    def join(self, tokens: int) -> int:
        """A sequence of so many cached tokens, whose pages are counted already, grows from now on. Its slot."""
        slot = (int(self.dial) - tokens) % self.size
        self.slots[slot] += 1
        self.growing += 1
        return slot

    def leave(self, slot: int) -> None:
        """A sequence with this slot grows no more."""
        self.slots[slot] -= 1
        self.growing -= 1

    def needed(self, iterations: int) -> int:
        """New pages of all growing sequences in the next so many iterations."""
        first = int(self.dial)
        turned = int(self.dial + iterations * self.pace) - first
        if turned == 1:
            return self.slots[first % self.size]
        turns, rest = divmod(turned, self.size)
        pages = turns * self.growing
        for place in range(first, first + rest):
            pages += self.slots[place % self.size]
        return pages

    def turn(self, iterations: int) -> None:
        """So many iterations happen."""
        self.used += self.needed(iterations)
        self.dial += iterations * self.pace

    def possible(self, iterations: int) -> int:
        """How many of the next iterations have their pages, up to the number given."""
        free = self.capacity - self.used
        if self.growing * (iterations * self.pace / self.size + 1) <= free:
            return iterations
        low, high = 0, iterations + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.needed(middle) <= free:
                low = middle
            else:
                high = middle
        return low
