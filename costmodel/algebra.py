"""The few operations that must know what a formula was fed: numbers, numpy arrays or sympy symbols.

A cost formula is written once. Fed ints it gives exact counts, fed float64 arrays it sweeps, fed
symbols it explains itself. Which reading is meant is decided by looking into `sys.modules`, so that
neither numpy nor sympy is imported by a formula.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

Quantity = Any
"""An int, a float, a float64 array or a sympy expression."""


_NUMBERS = frozenset([int, float])
"""Looked up by type in every operation of a single prediction, hence no function of its own."""


def _symbolic(*values: Quantity) -> Any:
    """The sympy module when one of the values is symbolic, else None."""
    sympy = sys.modules.get("sympy")
    if sympy is not None and any(isinstance(value, sympy.Basic) for value in values):
        return sympy
    return None


def minimum(a: Quantity, b: Quantity) -> Quantity:
    """The smaller of the two, element by element.

    >>> minimum(3, 5)
    3
    """
    if type(a) in _NUMBERS and type(b) in _NUMBERS:
        return b if b < a else a
    if sympy := _symbolic(a, b):
        return sympy.Min(a, b)
    return sys.modules["numpy"].minimum(a, b)


def maximum(a: Quantity, b: Quantity) -> Quantity:
    """The larger of the two, element by element.

    >>> maximum(3, 5)
    5
    """
    if type(a) in _NUMBERS and type(b) in _NUMBERS:
        return b if b > a else a
    if sympy := _symbolic(a, b):
        return sympy.Max(a, b)
    return sys.modules["numpy"].maximum(a, b)


def ceil(a: Quantity) -> Quantity:
    """The smallest integer not below a.

    >>> ceil(2.25), ceil(7)
    (3, 7)
    """
    if type(a) in _NUMBERS:
        return math.ceil(a)
    if sympy := _symbolic(a):
        return sympy.ceiling(a)
    return sys.modules["numpy"].ceil(a)


def ceil_div(a: Quantity, b: Quantity) -> Quantity:
    """a / b rounded up.

    >>> ceil_div(129, 64)
    3
    """
    if type(a) in _NUMBERS and type(b) in _NUMBERS:
        return -(-a // b)
    if sympy := _symbolic(a, b):
        return sympy.ceiling(a / b)
    return sys.modules["numpy"].ceil(a / b)


def floor_div(a: Quantity, b: Quantity) -> Quantity:
    """a / b rounded down.

    >>> floor_div(129, 64)
    2
    """
    if type(a) in _NUMBERS and type(b) in _NUMBERS:
        return a // b
    if sympy := _symbolic(a, b):
        return sympy.floor(a / b)
    return sys.modules["numpy"].floor(a / b)


def where(condition: Any, then: Quantity, otherwise: Quantity) -> Quantity:
    """`then` where the condition holds, else `otherwise`.

    >>> where(2 < 3, 10, 20)
    10
    """
    if isinstance(condition, bool):
        return then if condition else otherwise
    if sympy := _symbolic(condition, then, otherwise):
        return sympy.Piecewise((then, condition), (otherwise, True))
    return sys.modules["numpy"].where(condition, then, otherwise)


def half(a: Quantity) -> Quantity:
    """a / 2, still an int where an even int was given.

    >>> half(10)
    5
    """
    if type(a) is int and a % 2 == 0:
        return a // 2
    return a / 2


def third(a: Quantity) -> Quantity:
    """a / 3, still an int where a multiple of 3 was given.

    >>> third(12)
    4
    """
    if type(a) is int and a % 3 == 0:
        return a // 3
    return a / 3


def log2(a: Quantity) -> Quantity:
    """The logarithm to base 2, still an int for a power of two.

    >>> log2(64)
    6
    """
    if type(a) is int and a > 0 and a & (a - 1) == 0:
        return a.bit_length() - 1
    if type(a) in _NUMBERS:
        return math.log2(a)
    if sympy := _symbolic(a):
        return sympy.log(a, 2)
    return sys.modules["numpy"].log2(a)


def power(a: Quantity, exponent: Quantity) -> Quantity:
    """a ** exponent; squares are chained for exponents 2 and 4, which numpy's pow is slow at.

    >>> power(3.0, 4.0)
    81.0
    """
    if isinstance(exponent, int | float):
        if exponent == 2:
            return a * a
        if exponent == 4:
            square = a * a
            return square * square
    return a**exponent


def root(a: Quantity, exponent: Quantity) -> Quantity:
    """a ** (1 / exponent).

    >>> root(81.0, 4.0)
    3.0
    """
    if type(a) in _NUMBERS:
        return a ** (1 / exponent)
    if _symbolic(a) or not isinstance(exponent, int | float):
        return a ** (1 / exponent)
    numpy = sys.modules["numpy"]
    if exponent == 2:
        return numpy.sqrt(a)
    if exponent == 4:
        return numpy.sqrt(numpy.sqrt(a))
    return a ** (1 / exponent)


def each(function: Callable[[Any], Any], a: Quantity) -> Quantity:
    """What a function of one number finds for it, or for every element of an array.

    >>> each(lambda n: n + 1, 3)
    4
    """
    if type(a) in _NUMBERS or not hasattr(a, "flat"):
        return function(a)
    found = sys.modules["numpy"].empty_like(a)
    found.flat = [function(number) for number in a.flat]
    return found


def named(name: str, value: Quantity) -> Quantity:
    """The value itself, which keeps its name when the formula is printed.

    Read with symbols, the result is a symbol that carries its definition (see
    `costmodel.analysis.symbolic`), so that `2·B·H·pairs·(dk + dv)` is printed, not a page of minima.

    >>> named("pairs", 36)
    36
    """
    if type(value) in _NUMBERS or not _symbolic(value):
        return value
    from costmodel.analysis.symbolic import name_expression

    return name_expression(name, value)


def nominal(value: Quantity, otherwise: int) -> Quantity:
    """The number by which a formula may choose a kernel, such as a tile for a head width.

    That is the value itself, what a symbol stands for, and `otherwise` for arrays and symbols without a value.

    >>> nominal(128, 64)
    128
    """
    if type(value) in _NUMBERS:
        return value
    if hasattr(value, "chosen"):  # a traced value, which notes what was chosen by it
        return otherwise if value.stands_for is None else value.chosen()
    if not _symbolic(value):
        return otherwise
    from costmodel.analysis.symbolic import evaluate

    try:
        return evaluate(value)
    except KeyError:
        return otherwise
