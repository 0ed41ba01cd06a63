"""A predicted number with its interval, and how two of them compare."""

import math
from collections.abc import Callable
from typing import NamedTuple

from costmodel.fit import BASES
from costmodel.timing import Z80

COUNTED = "counted"
"""The basis of what is counted and not timed."""


class Value(NamedTuple):
    """A predicted number with its 80 % interval and how firm it is."""

    value: float
    low: float
    high: float
    basis: str

    def scaled(self, factor: float) -> "Value":
        """The value and its interval times a factor."""
        return self._replace(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def widened(self, spread: float) -> "Value":
        """The value with an independent error more: a standard deviation of its logarithm.

        >>> value = Value(1.0, 1.0, 1.0, "fitted").widened(0.3)
        >>> round(value.low, 3), round(value.high, 3)
        (0.681, 1.469)
        """
        more = Z80 * spread
        low = math.hypot(math.log(self.value / self.low), more)
        high = math.hypot(math.log(self.high / self.value), more)
        return self._replace(low=self.value * math.exp(-low), high=self.value * math.exp(high))

    def inverse(self, factor: float = 1.0) -> "Value":
        """factor over the value."""
        return Value(factor / self.value, factor / self.high, factor / self.low, self.basis)


def counted(value: float) -> Value:
    """A count, which has no interval."""
    return Value(float(value), float(value), float(value), COUNTED)


def weaker(*bases: str) -> str:
    """The least firm of several.

    >>> weaker("counted", "fitted", "prior")
    'prior'
    """
    order = (COUNTED, *BASES)
    return max(bases, key=order.index)


def less(own: Value, baseline: Value) -> Value:
    """How many times less than the baseline."""
    return more(baseline, own)


def more(own: Value, baseline: Value) -> Value:
    """How many times more than the baseline. The errors of the two are taken to be independent."""
    ratio = own.value / baseline.value
    up = math.hypot(math.log(own.high / own.value), math.log(baseline.high / baseline.value))
    return Value(ratio, ratio * math.exp(-up), ratio * math.exp(up), weaker(own.basis, baseline.basis))


def cut(own: Value, baseline: Value) -> Value:
    """The part of the baseline that is saved."""
    rest = more(own, baseline)
    return Value(1 - rest.value, 1 - rest.high, 1 - rest.low, rest.basis)


COMPARISONS: dict[str, Callable[[Value, Value], Value]] = {"times-less": less, "times-more": more, "cut": cut}
"""How a set-up is compared with its baseline."""
