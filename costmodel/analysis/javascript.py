"""Traced formulas as JavaScript: one function for each graph, with a constant for each value that is used twice.

>>> from costmodel.analysis.tracing import Graph
>>> graph = Graph()
>>> L = graph.input("L")
>>> tiles = graph.apply("ceil", L / 128)
>>> print(function("work", ("L", "o"), graph, {"o[0]": tiles * (tiles + 1), "o[1]": 7}))
function work(L,o){const a=Math.ceil(L/128);o[0]=a*(a+1);o[1]=7}
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from costmodel.analysis.tracing import Graph, Traced

_INFIX = {
    "add": ("+", 4),
    "subtract": ("-", 4),
    "multiply": ("*", 5),
    "divide": ("/", 5),
    "less": ("<", 3),
    "less_equal": ("<=", 3),
    "greater": (">", 3),
    "greater_equal": (">=", 3),
    "equal": ("===", 2),
    "not_equal": ("!==", 2),
    "and": ("&&", 1),
    "or": ("||", 1),
}
"""Signs with their precedence; a larger number binds more tightly."""
_CALLS = {
    "minimum": "Math.min",
    "maximum": "Math.max",
    "power": "Math.pow",
    "ceil": "Math.ceil",
    "floor": "Math.floor",
    "sqrt": "Math.sqrt",
    "log2": "Math.log2",
    "exp": "Math.exp",
}
_PREFIX = {"negative": "-", "not": "!"}
_UNARY, _ATOM, _CHOICE = 6, 9, 0
_LETTERS = "abdefgijlmnpqrsuvwxyz"
"""Names of constants; c, h, k, o and t are inputs of the functions that the page calls."""
_RESERVED = {"as", "do", "if", "in", "is", "of"}

Substitution = Callable[[Any], str]


def number(value: Any) -> str:
    """A number as JavaScript writes it, shortest and exact.

    >>> number(0.5), number(131072), number(2.5e-06), number(1e22), number(True)
    ('.5', '131072', '2.5e-6', '1e22', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = repr(float(value)).replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text[1:] if text.startswith("0.") else text


def function(
    name: str,
    parameters: Sequence[str],
    graph: Graph,
    assignments: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    constant: Substitution = number,
) -> str:
    """A JavaScript function that assigns outputs (each a traced value or a number) to places.

    inputs: what stands for the graph's inputs, by their names (default: the name itself); constant: how numbers are
    written, for functions that take their numbers from elsewhere.
    """
    return f"function {name}({','.join(parameters)}){{{body(graph, assignments, inputs, constant)}}}"


def body(
    graph: Graph,
    assignments: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    constant: Substitution = number,
) -> str:
    """The statements of a function: constants first, then the assignments."""
    outputs = {place: graph.of(value) for place, value in assignments.items()}
    writer = _Writer(graph, [value.index for value in outputs.values()], inputs or {}, constant)
    written = ";".join(f"{place}={writer.text(value.index, _CHOICE)}" for place, value in outputs.items())
    return f"const {','.join(writer.constants)};{written}" if writer.constants else written


def condition(graph: Graph, inputs: Mapping[str, str]) -> str:
    """The conditions of a graph as one truth; "true" where there are none."""
    parts = []
    for node, value in graph.conditions:
        writer = _Writer(graph, [], inputs, number)
        shown = writer.text(node, 2)
        parts.append(shown if value is True else f"!({shown})" if value is False else f"{shown}==={number(value)}")
    return "&&".join(parts) or "true"


def live_inputs(graph: Graph, outputs: Sequence[Traced]) -> list[str]:
    """The names of the inputs that outputs and conditions need, in the order of the graph."""
    needed: set[int] = set()
    waiting = [value.index for value in outputs] + [node for node, _ in graph.conditions]
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting += _operands(graph, index)
    return [graph.nodes[index][1] for index in sorted(needed) if graph.nodes[index][0] == "input"]


def _operands(graph: Graph, index: int) -> Sequence[int]:
    operation, *operands = graph.nodes[index]
    return () if operation in ("constant", "input") else operands


class _Writer:
    """Writes nodes as expressions; those used more than once become constants, in the order of the graph."""

    def __init__(self, graph: Graph, outputs: Sequence[int], inputs: Mapping[str, str], constant: Substitution) -> None:
        self.graph, self.inputs, self.constant = graph, inputs, constant
        self.names: dict[int, str] = {}
        self.constants: list[str] = []
        for index in sorted(self._shared(outputs)):
            shown = self.text(index, _CHOICE)
            name = _name(len(self.names))
            self.names[index] = name
            self.constants.append(f"{name}={shown}")

    def _shared(self, outputs: Sequence[int]) -> set[int]:
        """Operations with several users."""
        users: dict[int, int] = {}
        waiting = list(outputs)
        while waiting:
            index = waiting.pop()
            users[index] = users.get(index, 0) + 1
            if users[index] == 1:
                waiting += _operands(self.graph, index)
        return {index for index, count in users.items() if count > 1 and _operands(self.graph, index)}

    def text(self, index: int, binding: int) -> str:
        """A node as an expression inside one that binds this tightly."""
        if index in self.names:
            return self.names[index]
        operation, *operands = self.graph.nodes[index]
        if operation == "constant":
            shown = self.constant(operands[0])
            return f"({shown})" if shown.startswith("-") else shown
        if operation == "input":
            return self.inputs.get(operands[0], operands[0])
        if operation in _CALLS:
            return f"{_CALLS[operation]}({','.join(self.text(operand, _CHOICE) for operand in operands)})"
        if operation == "where":
            test, then, otherwise = (self.text(operand, 1) for operand in operands)
            shown, own = f"{test}?{then}:{otherwise}", _CHOICE
        elif operation in _PREFIX:
            shown, own = f"{_PREFIX[operation]}{self.text(operands[0], _UNARY + 1)}", _UNARY
        else:
            sign, own = _INFIX[operation]
            # The right operand of a − b and a / b is not part of the chain.
            shown = f"{self.text(operands[0], own)}{sign}{self.text(operands[1], own + 1)}"
        return f"({shown})" if own < binding else shown


def _name(count: int) -> str:
    """a, b, …, z, aa, ab, … without words of the language."""
    found = ""
    count += 1
    while count:
        count, rest = divmod(count - 1, len(_LETTERS))
        found = _LETTERS[rest] + found
    return f"{found}_" if found in _RESERVED else found
