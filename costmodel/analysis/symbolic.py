"""Formulas read with symbols: sizes that know the number they stand for, intermediates that keep their name.

A `Size` is a positive whole number such as H or L that carries a nominal value, so that a formula may be
printed with symbols, printed again with numbers, and evaluated. A `Named` symbol stands for an intermediate
and carries its definition. Both compare by name and content: two definitions under one name stay two symbols.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import sympy

from costmodel.algebra import Quantity
from costmodel.dims import fields_by_name
from costmodel.step import Phase, Step


class Size(sympy.Symbol):  # type: ignore[misc]  # sympy has no types
    """A positive whole number with a name and a nominal value.

    >>> Size("H", 32).nominal, Size("H", 32) == Size("H", 32), Size("H", 32) == Size("H", 8)
    (32, True, False)
    """

    __slots__ = ("nominal",)
    nominal: int

    def __new__(cls, name: str, nominal: int) -> "Size":
        """The symbol of this name and value."""
        made = sympy.Symbol.__xnew__(cls, name, integer=True, positive=True)
        made.nominal = nominal
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str, int], dict[str, Any]]:
        return (self.name, self.nominal), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (self.name, self.nominal)

    @classmethod
    def class_key(cls) -> tuple[Any, ...]:
        """Sorts among other symbols by its name."""
        return sympy.Symbol.class_key()

    def sort_key(self, order: Any = None) -> tuple[Any, ...]:
        """By name, then by value: the printed order depends on nothing else."""
        return self.class_key(), (2, (self.name, f"{self.nominal:020d}")), sympy.S.One.sort_key(), sympy.S.One


class Named(sympy.Symbol):  # type: ignore[misc]  # sympy has no types
    """An intermediate result, positive, that carries its definition."""

    __slots__ = ("definition", "key")
    definition: sympy.Expr
    key: tuple[Any, ...] | None

    def __new__(cls, name: str, definition: sympy.Expr) -> "Named":
        """The symbol of this name and definition."""
        # Whole only where that is evident: expected counts are not, and a wrong claim would drop a rounding.
        whole = {"integer": True} if definition.is_integer else {}
        made = sympy.Symbol.__xnew__(cls, name, positive=True, **whole)
        made.definition = definition
        made.key = None
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str, sympy.Expr], dict[str, Any]]:
        return (self.name, self.definition), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (self.name, self.definition)

    @classmethod
    def class_key(cls) -> tuple[Any, ...]:
        """Sorts among other symbols by its name."""
        return sympy.Symbol.class_key()

    def sort_key(self, order: Any = None) -> tuple[Any, ...]:
        """By name, then by definition."""
        if self.key is None:
            self.key = self.class_key(), (2, (self.name, str(self.definition))), sympy.S.One.sort_key(), sympy.S.One
        return self.key


def name_expression(name: str, value: sympy.Expr) -> sympy.Expr:
    """A symbol that stands for the value; a plain number stays a number.

    >>> L = Size("L", 8)
    >>> pairs = name_expression("pairs", L * (L + 1) / 2)
    >>> 2 * pairs, pairs.definition, pairs == name_expression("pairs", L)
    (2*pairs, L*(L + 1)/2, False)
    """
    value = sympy.sympify(value)
    return value if value.is_Number else Named(name, value)


def definitions(expression: sympy.Expr) -> dict[Named, sympy.Expr]:
    """The named intermediates of an expression with their definitions, those needed first before those that use them.

    >>> L = Size("L", 8)
    >>> chunks = name_expression("chunks", sympy.ceiling(L / 4))
    >>> [named.name for named in definitions(5 * name_expression("padded", 4 * chunks))]
    ['chunks', 'padded']
    """
    found: dict[Named, sympy.Expr] = {}

    def collect(below: sympy.Expr) -> None:
        for symbol in sorted(below.atoms(Named), key=Named.sort_key):
            if symbol not in found:
                collect(symbol.definition)
                found[symbol] = symbol.definition

    collect(expression)
    return found


def expand_names(expression: sympy.Expr) -> sympy.Expr:
    """The expression with every named intermediate replaced by its definition.

    >>> L = Size("L", 8)
    >>> expand_names(2 * name_expression("pairs", L * (L + 1) / 2))
    L*(L + 1)
    """
    full: dict[sympy.Expr, sympy.Expr] = {}
    for symbol, definition in definitions(expression).items():
        full[symbol] = definition.xreplace(full)
    return expression.xreplace(full)


def evaluate(expression: Quantity, values: Mapping[str, Any] | None = None) -> Any:
    """The number that an expression stands for: sizes take their nominal value, or that given under their name.

    Whole results are ints, others floats.

    >>> L = Size("L", 8)
    >>> evaluate(2 * name_expression("pairs", L * (L + 1) / 2)), evaluate(L / 3, {"L": 4.5})
    (72, 1.5)
    """
    if not isinstance(expression, sympy.Basic):
        return expression
    numbers: dict[sympy.Basic, sympy.Basic] = {}
    given = values or {}

    def number(symbol: sympy.Symbol) -> sympy.Basic:
        if symbol.name in given:
            return sympy.sympify(given[symbol.name])
        if not isinstance(symbol, Size):
            raise KeyError(f"no value for {symbol.name}")
        return sympy.Integer(symbol.nominal)

    intermediates = definitions(expression)
    for part in (expression, *intermediates.values()):
        for symbol in part.atoms(sympy.Symbol):
            if not isinstance(symbol, Named):
                numbers[symbol] = number(symbol)
    for symbol, definition in intermediates.items():
        numbers[symbol] = _at(definition, numbers)
    result = _at(expression, numbers)
    return int(result) if result.is_Integer else float(result)


LONG_POWER = 1000
"""Exponents from which a power of a fraction is rounded: the exact one of a million tokens has millions of digits."""


def _at(expression: sympy.Basic, numbers: Mapping[sympy.Basic, sympy.Basic]) -> sympy.Basic:
    """The expression with numbers for its symbols, exactly but for long powers of fractions."""
    rounded = {}
    for power in expression.atoms(sympy.Pow):
        exponent = power.exp.xreplace(numbers)
        if power.exp.free_symbols and exponent.is_Integer and abs(exponent) >= LONG_POWER:
            base = power.base.xreplace(numbers)
            if base.is_Rational and not base.is_Integer:
                rounded[power] = sympy.Float(base) ** exponent
    return expression.xreplace(rounded).xreplace(numbers) if rounded else expression.xreplace(numbers)


def symbolic_dims(module: Any, example: Any) -> Any:
    """The dimensions of a mechanism as symbols named after their fields.

    Flags, choices, absent parts (None) and parts of size zero stay as they are in the example, because they decide
    which terms a formula has.
    """
    symbols = {}
    for item in fields_by_name(module.Dims).values():
        value = getattr(example, item.name)
        if item.metadata.get("kind") == "dim" and isinstance(value, int) and value > 0:
            symbols[item.name] = Size(item.name, value)
    return replace(example, **symbols)


def symbolic_step(
    phase: Phase, context: int = 8192, batch: int = 1, *, new_tokens: int | None = None, bidirectional: bool = False
) -> Step:
    """The step with symbols: B, and L = P + S with S = 1 in decode (a symbol S for blocks), S = L otherwise.

    >>> step = symbolic_step("decode")
    >>> step.B, step.S, step.P, step.L
    (B, 1, L - 1, L)
    """
    B, L = Size("B", batch), Size("L", context)
    if phase == "train" or (bidirectional and new_tokens is None):
        return Step(B=B, S=L, P=0, phase=phase, bidirectional=bidirectional)
    if new_tokens is not None and (phase, new_tokens) != ("decode", 1):
        S: Quantity = Size("S", new_tokens)
        return Step(B=B, S=S, P=L - S, phase=phase, bidirectional=bidirectional)
    if phase == "decode":
        return Step(B=B, S=1, P=L - 1, phase=phase, bidirectional=bidirectional)
    return Step(B=B, S=L, P=0, phase=phase, bidirectional=bidirectional)


@functools.lru_cache(maxsize=4096)
def factored(expression: sympy.Expr) -> sympy.Expr:
    """Common factors taken out, so that a formula reads like its paper.

    >>> B, H, Hkv, dk, dv = (Size(name, 2) for name in ("B", "H", "Hkv", "dk", "dv"))
    >>> factored(2 * B * H * dk + 2 * B * Hkv * dk + 2 * B * Hkv * dv)
    2*B*(H*dk + Hkv*(dk + dv))
    """
    expression = sympy.sympify(expression)
    if expression.is_Atom:
        return expression
    common = sympy.factor_terms(expression)
    return sympy.factor_terms(common.replace(lambda part: isinstance(part, sympy.Add), _grouped))


def _grouped(terms: sympy.Add) -> sympy.Expr:
    """A sum whose terms share factors in part: the factor that most terms share is taken out, then the next."""
    counts: dict[sympy.Expr, int] = {}
    for term in terms.args:
        for factor in sympy.Mul.make_args(term):
            if not factor.is_Number:
                counts[factor] = counts.get(factor, 0) + 1
    shared = [factor for factor, count in counts.items() if count > 1]
    if not shared:
        return terms
    chosen = min(shared, key=lambda factor: (-counts[factor], sympy.default_sort_key(factor)))
    inside: list[sympy.Expr] = []
    outside: list[sympy.Expr] = []
    for term in terms.args:
        (inside if chosen in sympy.Mul.make_args(term) else outside).append(term)
    taken = sympy.factor_terms(chosen * _grouped(sympy.Add(*(term / chosen for term in inside))))
    rest = sympy.Add(*outside)
    rest = _grouped(rest) if isinstance(rest, sympy.Add) else rest
    return sympy.factor_terms(taken + rest, sign=False) if outside else taken


def labels(symbols: Iterable[sympy.Symbol]) -> dict[sympy.Symbol, str]:
    """A text for each symbol; equal names get primes, in the order of the symbols.

    >>> L = Size("L", 8)
    >>> list(labels([name_expression("pairs", L), name_expression("pairs", 2 * L)]).values())
    ['pairs', 'pairs′']
    """
    taken: dict[str, int] = {}
    shown = {}
    for symbol in symbols:
        if symbol not in shown:
            shown[symbol] = symbol.name + "′" * taken.get(symbol.name, 0)
            taken[symbol.name] = taken.get(symbol.name, 0) + 1
    return shown
