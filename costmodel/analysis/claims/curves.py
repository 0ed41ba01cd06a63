"""What is said of a quantity's curve over the context: its slope, its exponent, its knee."""

import math
from collections.abc import Callable, Sequence

from costmodel.analysis.claims.setups import SetUp
from costmodel.analysis.claims.values import Value, counted, weaker

Quantity = Callable[[SetUp], Value]


def slope(of: Quantity, setup: SetUp) -> Value:
    """The growth of a quantity per token of context, between the ends of the set-up's range."""
    first, last = setup.contexts
    low, high = (of(setup._replace(context=L)) for L in (first, last))
    rise = (high.value - low.value) / (last - first)
    width = math.log(high.high / high.value)
    return Value(rise, rise * math.exp(-width), rise * math.exp(width), weaker(low.basis, high.basis))


def exponent(of: Quantity, setup: SetUp) -> Value:
    """d log / d log L of a quantity between the ends of the set-up's range."""
    first, last = setup.contexts
    low, high = (of(setup._replace(context=L)) for L in (first, last))
    return counted(math.log(high.value / low.value) / math.log(last / first))._replace(basis=high.basis)


PLACES = 33
"""Contexts at which a curve is looked at for its knee, evenly spaced."""


def knee(of: Quantity, setup: SetUp) -> Value:
    """The context where two straight lines that fit a quantity best (least squares) meet."""
    first, last = setup.contexts
    places = [round(first + (last - first) * i / (PLACES - 1)) for i in range(PLACES)]
    values = [of(setup._replace(context=L)) for L in places]
    heights = [value.value for value in values]
    best = min(range(2, PLACES - 2), key=lambda i: _misfit(places[:i], heights[:i]) + _misfit(places[i:], heights[i:]))
    (a, b), (c, d) = (_line(x, y) for x, y in ((places[:best], heights[:best]), (places[best:], heights[best:])))
    return counted((a - c) / (d - b))._replace(basis=values[-1].basis)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    return my - rise * mx, rise


def _misfit(x: Sequence[float], y: Sequence[float]) -> float:
    a, b = _line(x, y)
    return sum((value - a - b * place) ** 2 for place, value in zip(x, y, strict=True))


SHAPES: dict[str, Callable[[Quantity, SetUp], Value]] = {"slope": slope, "exponent": exponent, "knee": knee}
"""What is said of a quantity's curve over the context."""
