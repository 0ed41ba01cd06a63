"""How an expression grows with the context L: its leading term, exactly.

An expression is read as a sum of coefficient · L^p · (ln L)^q for large L. Minima, maxima and cases are decided
by growth (where two sides grow alike, by the sizes' nominal values), floor and ceiling count as their argument, and
a power of a number below one with a growing exponent vanishes. Coefficients keep their symbols.

>>> from costmodel.analysis.symbolic import Size
>>> L, w, H = Size("L", 8192), Size("w", 1024), Size("H", 4)
>>> leading(H * sympy.Min(L, w) * L + 3 * sympy.ceiling(L / 128), L)
Leading(coefficient=H*w + 3/128, power=1, log_power=0)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from costmodel.analysis.symbolic import Named, evaluate, expand_names, factored

Key = tuple[Any, Any]
"""Exponents of L and of ln L."""

Growth = Mapping[Key, sympy.Expr]
"""The terms of an expression by their exponents."""

MOST_TERMS = 12
"""Powers above this are not multiplied out."""


@dataclass(frozen=True, slots=True)
class Leading:
    """coefficient · L^power · (ln L)^log_power."""

    coefficient: sympy.Expr
    power: Any
    log_power: Any

    @property
    def key(self) -> Key:
        """The exponents of L and ln L."""
        return self.power, self.log_power


def growth(expression: Any, L: sympy.Symbol, memo: dict[sympy.Basic, Growth] | None = None) -> Growth:
    """The terms of an expression by powers of L and ln L, for large L."""
    return _Reader(L, {} if memo is None else memo).read(sympy.sympify(expression))


def leading(expression: Any, L: sympy.Symbol, memo: dict[sympy.Basic, Growth] | None = None) -> Leading:
    """The term that grows fastest, its coefficient factored; coefficient 0 for a zero expression."""
    found = leading_of(growth(expression, L, memo))
    return replace(found, coefficient=factored(found.coefficient))


def leading_of(terms: Growth) -> Leading:
    """The fastest term whose coefficient does not cancel."""
    for key in sorted(terms, reverse=True):
        coefficient = terms[key]
        if not _vanishes(coefficient):
            return Leading(coefficient, *key)
    return Leading(sympy.S.Zero, 0, 0)


def _vanishes(coefficient: sympy.Expr) -> bool:
    if coefficient.is_Number:
        return coefficient == 0
    if coefficient.is_positive:
        return False
    full = sympy.expand(expand_names(coefficient))
    return full == 0 or (evaluate(full) == 0 and sympy.cancel(full) == 0)


def _sign(coefficient: sympy.Expr) -> int | None:
    """1, 0 or -1 where the symbols alone decide it, else None."""
    if coefficient.is_positive:
        return 1
    if coefficient.is_negative:
        return -1
    return 0 if coefficient == 0 else None


def _nominal_sign(coefficient: sympy.Expr) -> int:
    value = evaluate(coefficient)
    return (value > 0) - (value < 0)


class _Reader:
    """Reads expressions bottom up; what was read once is remembered."""

    def __init__(self, L: sympy.Symbol, memo: dict[sympy.Basic, Growth]) -> None:
        self.L = L
        self.memo = memo

    def depends(self, expression: sympy.Basic) -> bool:
        return any(
            symbol == self.L or (isinstance(symbol, Named) and self.depends(symbol.definition))
            for symbol in expression.atoms(sympy.Symbol)
        )

    def read(self, expression: sympy.Basic) -> Growth:
        found = self.memo.get(expression)
        if found is None:
            found = self.memo[expression] = self._read(expression)
        return found

    def _read(self, expression: sympy.Basic) -> Growth:
        if expression == self.L:
            return {(1, 0): sympy.S.One}
        if not self.depends(expression):
            return {(0, 0): expression} if expression != 0 else {}
        if isinstance(expression, Named):
            return self.read(expression.definition)
        if isinstance(expression, sympy.Add):
            return _added(*(self.read(argument) for argument in expression.args))
        if isinstance(expression, sympy.Mul):
            product: Growth = {(0, 0): sympy.S.One}
            for argument in expression.args:
                product = _multiplied(product, self.read(argument))
            return product
        if isinstance(expression, sympy.Pow):
            return self._power(*expression.args)
        if isinstance(expression, sympy.floor | sympy.ceiling):
            return self._rounded(expression)
        if isinstance(expression, sympy.Min | sympy.Max):
            parts = [self.read(argument) for argument in expression.args]
            chosen = parts[0]
            for part in parts[1:]:
                chosen = self._extreme(chosen, part, expression.func)
            return chosen
        if isinstance(expression, sympy.Piecewise):
            return self._case(expression)
        if isinstance(expression, sympy.log):
            top = leading_of(self.read(expression.args[0]))
            return _added({(0, 1): sympy.sympify(top.power)}, {(0, 0): sympy.log(top.coefficient)})
        raise TypeError(f"growth of {type(expression).__name__} is not known: {str(expression)[:80]}")

    def _power(self, base: sympy.Expr, exponent: sympy.Expr) -> Growth:
        if self.depends(exponent):
            raised = leading_of(self.read(exponent))
            if not self.depends(base) and raised.power > 0:
                falls = (evaluate(base) < 1) == (_nominal_sign(raised.coefficient) > 0)
                if falls:
                    return {}
            if raised.key == (0, 1) and not self.depends(base):
                # b^(a·ln L + c) = b^c · L^(a·ln b)
                rest = self.read(exponent).get((0, 0), sympy.S.Zero)
                power = sympy.simplify(raised.coefficient * sympy.log(base))
                return {(power, 0): base**rest}
            raise TypeError(f"growth is not a power of L: {str(base**exponent)[:80]}")
        below = self.read(base)
        if exponent.is_Integer and 0 < exponent <= MOST_TERMS:
            product = below
            for _ in range(int(exponent) - 1):
                product = _multiplied(product, below)
            return product
        top = leading_of(below)
        return {(top.power * exponent, top.log_power * exponent): top.coefficient**exponent}

    def _rounded(self, expression: sympy.Expr) -> Growth:
        inside = self.read(expression.args[0])
        top = leading_of(inside)
        if top.key >= (0, 1):
            return inside
        if top.key == (0, 0):
            return {(0, 0): expression.func(top.coefficient)}
        # What tends to zero from above rounds up to 1 and down to 0.
        rises = isinstance(expression, sympy.ceiling) and _nominal_sign(top.coefficient) > 0
        return {(0, 0): sympy.S.One} if rises else {}

    def _extreme(self, a: Growth, b: Growth, extreme: Any) -> Growth:
        difference = leading_of(_added(a, _multiplied({(0, 0): sympy.S.NegativeOne}, b)))
        sign = _sign(difference.coefficient)
        if sign is None:
            if leading_of(a).key == leading_of(b).key == (0, 0):
                return {(0, 0): extreme(leading_of(a).coefficient, leading_of(b).coefficient)}
            sign = _nominal_sign(difference.coefficient)
        first = sign >= 0 if extreme is sympy.Max else sign <= 0
        return a if first else b

    def _case(self, expression: sympy.Piecewise) -> Growth:
        for value, condition in expression.args:
            if self._holds(condition):
                return self.read(value)
        raise TypeError(f"no case holds for large L: {str(expression)[:80]}")

    def _holds(self, condition: Any) -> bool:
        if condition in (sympy.true, sympy.false):
            return bool(condition)
        if isinstance(condition, sympy.And | sympy.Or):
            join = all if isinstance(condition, sympy.And) else any
            return join(self._holds(argument) for argument in condition.args)
        if isinstance(condition, sympy.Not):
            return not self._holds(condition.args[0])
        difference = leading_of(self.read(condition.lhs - condition.rhs))
        sign = _sign(difference.coefficient)
        if sign is None:
            sign = _nominal_sign(difference.coefficient)
        return bool(condition.func(sympy.Integer(sign), 0))


def _added(*parts: Growth) -> Growth:
    total: dict[Key, sympy.Expr] = {}
    for part in parts:
        for key, coefficient in part.items():
            total[key] = total[key] + coefficient if key in total else coefficient
    return {key: coefficient for key, coefficient in total.items() if coefficient != 0}


def _multiplied(a: Growth, b: Growth) -> Growth:
    product: dict[Key, sympy.Expr] = {}
    for (p, q), left in a.items():
        for (r, s), right in b.items():
            key = (p + r, q + s)
            term = left * right
            product[key] = product[key] + term if key in product else term
    return {key: coefficient for key, coefficient in product.items() if coefficient != 0}
