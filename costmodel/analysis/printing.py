"""Symbolic expressions as a line of text in the manner of a paper, and as LaTeX.

>>> from costmodel.analysis.symbolic import Size
>>> B, H, L, dk, dv = (Size(name, number) for name, number in dict(B=1, H=32, L=8192, dk=128, dv=128).items())
>>> flops = 2 * B * H * L**2 * (dk + dv)
>>> text(flops), numbers(flops)
('2·B·H·L²·(dk + dv)', '2·1·32·8192²·(128 + 128)')
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import sympy

from costmodel.analysis.symbolic import Size, evaluate

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_RELATIONS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥", "==": "=", "!=": "≠"}
_FUNCTIONS = {"Min": "min", "Max": "max", "log": "ln", "Abs": "abs"}

Label = Callable[[sympy.Symbol], str]


def number_text(value: Any) -> str:
    """A number without digits that say nothing: 134217728, 0.5625, 2.5e+19.

    >>> number_text(2**27), number_text(2.0), number_text(0.5625)
    ('134217728', '2', '0.5625')
    """
    number = float(value)
    return str(int(value)) if number.is_integer() and abs(number) < 1e18 else f"{number:.10g}"


def grouped(value: Any) -> str:
    """A number for reading: digits in groups of three while whole and below 10¹⁸.

    >>> grouped(134217728), grouped(1.5), grouped(2.5e30)
    ('134,217,728', '1.5', '2.5e+30')
    """
    number = float(value)
    return f"{int(value):,}" if number.is_integer() and abs(number) < 1e18 else f"{number:.6g}"


def text(expression: Any, names: Mapping[sympy.Symbol, str] | None = None) -> str:
    """The expression in one line; `names` replaces the texts of symbols."""
    given = names or {}
    return _line(sympy.sympify(expression), lambda symbol: given.get(symbol, symbol.name))


def numbers(expression: Any) -> str:
    """The expression in one line with the number that each symbol stands for."""
    found: dict[sympy.Symbol, str] = {}

    def label(symbol: sympy.Symbol) -> str:
        if symbol not in found:  # intermediate values turn up many times
            found[symbol] = number_text(evaluate(symbol))
        return found[symbol]

    return _line(sympy.sympify(expression), label)


def latex(expression: Any, names: Mapping[sympy.Symbol, str] | None = None) -> str:
    """The expression in LaTeX.

    >>> from costmodel.analysis.symbolic import Size
    >>> latex(Size("Hkv", 8) * Size("dk", 128))
    'H_{kv} d_{k}'
    """
    given = names or {}
    expression = sympy.sympify(expression)
    shown = {
        symbol: _latex_name(given.get(symbol, symbol.name), isinstance(symbol, Size))
        for symbol in expression.atoms(sympy.Symbol)
    }
    return sympy.latex(expression, symbol_names=shown)


def _latex_name(name: str, size: bool) -> str:
    bare = name.rstrip("′")
    primes = "'" * (len(name) - len(bare))
    # A whole word (conv, shift) is a name; one letter and a few more (dk, Hkv) is a symbol with an index.
    if not size or re.fullmatch(r"[a-z]{4,}", bare):
        return rf"\mathrm{{{bare.replace('_', ' ').replace(' ', chr(92) + ' ')}}}{primes}"
    match = re.fullmatch(r"([A-Za-z])_?(\w+)", bare)
    return f"{match[1]}_{{{match[2].replace('_', ',')}}}{primes}" if match else bare + primes


def _line(expression: sympy.Basic, label: Label) -> str:
    if isinstance(expression, sympy.Symbol):
        return label(expression)
    if isinstance(expression, sympy.Rational) and not expression.is_Integer:
        return f"{expression.p}/{expression.q}"
    if expression.is_Number:
        return number_text(expression)
    if isinstance(expression, sympy.Add):
        return _sum(expression, label)
    if isinstance(expression, sympy.Mul):
        return _product(expression, label)
    if isinstance(expression, sympy.Pow):
        return _power(expression, label)
    if isinstance(expression, sympy.floor):
        return f"⌊{_line(expression.args[0], label)}⌋"
    if isinstance(expression, sympy.ceiling):
        return f"⌈{_line(expression.args[0], label)}⌉"
    if isinstance(expression, sympy.Piecewise):
        return "{" + ", ".join(_cases(expression, label)) + "}"
    if isinstance(expression, sympy.core.relational.Relational):
        return f"{_line(expression.lhs, label)} {_RELATIONS[expression.rel_op]} {_line(expression.rhs, label)}"
    name = type(expression).__name__
    arguments = sorted(expression.args, key=sympy.default_sort_key) if name in ("Min", "Max") else expression.args
    return f"{_FUNCTIONS.get(name, name)}({', '.join(_line(argument, label) for argument in arguments)})"


def _cases(expression: sympy.Piecewise, label: Label) -> list[str]:
    """The cases, those of a nested last case in line with the others."""
    shown = []
    for value, condition in expression.args:
        if condition != sympy.true:
            shown.append(f"{_line(value, label)} if {_line(condition, label)}")
        elif isinstance(value, sympy.Piecewise):
            shown += _cases(value, label)
        else:
            shown.append(f"{_line(value, label)} otherwise")
    return shown


def _sum(expression: sympy.Add, label: Label) -> str:
    shown = ""
    # What is added comes first: L − C, not −C + L.
    for term in sorted(expression.as_ordered_terms(), key=lambda term: term.could_extract_minus_sign()):
        negative = term.could_extract_minus_sign()
        part = _line(-term if negative else term, label)
        shown += (f" − {part}" if negative else f" + {part}") if shown else (f"−{part}" if negative else part)
    return shown


def _factor_key(factor: sympy.Basic) -> tuple[Any, ...]:
    """Numbers first, then symbols and their powers by name, then sums and functions."""
    base = factor.base if isinstance(factor, sympy.Pow) else factor
    if factor.is_Number or base.is_Number:
        return 0, "", ()
    return (1, base.name, base.sort_key()) if base.is_Symbol else (2, "", sympy.default_sort_key(factor))


def _factor(expression: sympy.Basic, label: Label) -> str:
    """A factor of a product: sums in parentheses."""
    shown = _line(expression, label)
    return f"({shown})" if isinstance(expression, sympy.Add) or shown.startswith("−") else shown


def _product(expression: sympy.Mul, label: Label) -> str:
    above: list[str] = []
    below: list[str] = []
    sign = ""
    for factor in sorted(expression.args, key=_factor_key):
        if factor.is_Rational and not factor.is_Integer:
            sign = "−" if factor.p < 0 else sign
            if abs(factor.p) != 1:
                above.append(str(abs(factor.p)))
            below.append(str(factor.q))
        elif factor.is_Number and factor.is_negative:
            sign = "−"
            if factor != -1:
                above.append(number_text(-factor))
        elif isinstance(factor, sympy.Pow) and factor.exp.is_Number and factor.exp.is_negative:
            below.append(_factor(1 / factor, label))
        else:
            above.append(_factor(factor, label))
    top = "·".join(above) or "1"
    if not below:
        return sign + top
    bottom = "·".join(below)
    return f"{sign}{top}/{bottom if len(below) == 1 else f'({bottom})'}"


def _power(expression: sympy.Pow, label: Label) -> str:
    base, exponent = expression.args
    if exponent.is_Number and exponent.is_negative:
        return f"1/{_factor(1 / expression, label)}"
    if exponent == sympy.Rational(1, 2):
        return f"√({_line(base, label)})"
    shown = _line(base, label)
    if not (base.is_Symbol or (base.is_Integer and base >= 0)):
        shown = f"({shown})"
    if exponent.is_Integer:
        return shown + str(exponent).translate(_SUPERSCRIPT)
    raised = _line(exponent, label)
    return f"{shown}^{raised if exponent.is_Symbol or exponent.is_Integer else f'({raised})'}"


def order_text(power: Any, log_power: Any) -> str:
    """The growth as text.

    >>> order_text(2, 0), order_text(1, 1), order_text(0, 0)
    ('L²', 'L·ln L', '1')
    """
    parts = []
    if power:
        whole = sympy.sympify(power).is_Integer
        parts.append("L" if power == 1 else "L" + (str(power).translate(_SUPERSCRIPT) if whole else f"^({power})"))
    if log_power:
        parts.append("ln L" if log_power == 1 else f"(ln L){str(log_power).translate(_SUPERSCRIPT)}")
    return "·".join(parts) or "1"
