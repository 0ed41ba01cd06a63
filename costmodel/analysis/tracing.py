"""The fourth reading of a formula: fed traced values, it writes down what it computes.

A formula fed `Traced` values runs as it does on numpy arrays and leaves a graph of its operations, from which a
program in another language is made (`costmodel.analysis.javascript`). Equal operations become one node.

Some inputs carry the number they stand for. Where a formula chooses by such a number (a tile by the width of a head,
a kernel without a window), the choice is taken and noted as a condition, under which the graph holds. Inputs without
a number behave like arrays: choosing by them is an error, as it is there.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy  # noqa: F401  # formulas fed anything but numbers take numpy's functions, which come here

Node = tuple[Any, ...]
"""("constant", number), ("input", name), or an operation with the indices of its operands."""

_PYTHON: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
    "negative": operator.neg,
    "minimum": min,
    "maximum": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "sqrt": math.sqrt,
    "log2": math.log2,
    "exp": math.exp,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": operator.not_,
    "where": lambda condition, then, otherwise: then if condition else otherwise,
}
OPERATIONS = tuple(_PYTHON)
"""Every operation that a node may have."""

_UFUNCS = {
    **{name: name for name in OPERATIONS if name not in ("and", "or", "not", "where")},
    "bitwise_and": "and",
    "logical_and": "and",
    "bitwise_or": "or",
    "logical_or": "or",
    "logical_not": "not",
    "true_divide": "divide",
}


class Condition(NamedTuple):
    """A number or truth that a graph takes for granted: the node, and what it must come to."""

    node: int
    value: Any


class Graph:
    """Operations in the order in which they were first needed, and the conditions under which they are the formula's.

    >>> graph = Graph()
    >>> x = graph.input("x")
    >>> y = (x + 1) * (x + 1)
    >>> [node[0] for node in graph.nodes], graph.evaluate([y], {"x": 3})
    (['input', 'constant', 'add', 'multiply'], [16])
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.conditions: list[Condition] = []
        self._index: dict[Node, int] = {}

    def input(self, name: str, stands_for: float | None = None) -> "Traced":
        """A named input; with a number, formulas may choose by it."""
        return Traced(self, self.add(("input", name)), stands_for)

    def add(self, node: Node) -> int:
        """The index of a node, which is new or equal to an earlier one."""
        # 1, 1.0 and True are equal keys, and the same number in a program.
        index = self._index.get(node)
        if index is None:
            index = self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return index

    def of(self, value: Any) -> "Traced":
        """A traced value as it is; a number as a constant."""
        if isinstance(value, Traced):
            return value
        plain = value.item() if hasattr(value, "item") else value
        return Traced(self, self.add(("constant", plain)), plain)

    def apply(self, operation: str, *operands: Any) -> "Traced":
        """The result of an operation on traced values and numbers."""
        values = [self.of(operand) for operand in operands]
        simple = self._simplified(operation, values)
        if simple is not None:
            return simple
        known = [value.stands_for for value in values]
        result = None if any(each is None for each in known) else _PYTHON[operation](*known)
        if result is not None and all(self.nodes[value.index][0] == "constant" for value in values):
            return self.of(result)
        return Traced(self, self.add((operation, *(value.index for value in values))), result)

    def _simplified(self, operation: str, values: Sequence["Traced"]) -> "Traced | None":
        """What x + 0, x · 1, x / 1 and x · 0 come to; products of constants are taken together."""
        if operation not in ("add", "subtract", "multiply", "divide"):
            return None
        left, right = values
        a, b = (self._constant(value) for value in values)
        if operation == "add" and a == 0:
            return right
        if (operation in ("add", "subtract") and b == 0) or (operation in ("multiply", "divide") and b == 1):
            return left
        if operation == "multiply":
            if a == 1:
                return right
            if a == 0 or b == 0:
                return self.of(0)
            if a is not None and b is None:
                return self.apply("multiply", right, left)
            if b is not None and self.nodes[left.index][0] == "multiply":
                inner = self.nodes[left.index][2]
                if self.nodes[inner][0] == "constant":
                    factor = self.nodes[inner][1] * b
                    return self.apply("multiply", Traced(self, self.nodes[left.index][1], None), factor)
        if operation == "divide" and a == 0:
            return self.of(0)
        return None

    def _constant(self, value: "Traced") -> float | None:
        node = self.nodes[value.index]
        return node[1] if node[0] == "constant" else None

    def evaluate(self, wanted: Iterable["Traced | int"], inputs: Mapping[str, Any]) -> list[Any]:
        """The numbers of nodes, from those of the inputs that they need."""
        known: dict[int, Any] = {}

        def number(index: int) -> Any:
            if index not in known:
                operation, *operands = self.nodes[index]
                if operation == "constant":
                    known[index] = operands[0]
                elif operation == "input":
                    known[index] = inputs[operands[0]]
                else:
                    known[index] = _PYTHON[operation](*map(number, operands))
            return known[index]

        return [number(each.index if isinstance(each, Traced) else each) for each in wanted]

    def holds(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the conditions are met by these inputs."""
        return all(self.evaluate([node], inputs)[0] == value for node, value in self.conditions)


class Traced:
    """A value of a graph, which computes like a number or an array.

    numpy's functions come here by numpy's own protocol, so that a formula needs to know nothing of tracing.
    """

    __slots__ = ("graph", "index", "stands_for")

    def __init__(self, graph: Graph, index: int, stands_for: Any = None) -> None:
        self.graph, self.index, self.stands_for = graph, index, stands_for

    def __add__(self, other: Any) -> "Traced":
        return self.graph.apply("add", self, other)

    def __radd__(self, other: Any) -> "Traced":
        return self.graph.apply("add", other, self)

    def __sub__(self, other: Any) -> "Traced":
        return self.graph.apply("subtract", self, other)

    def __rsub__(self, other: Any) -> "Traced":
        return self.graph.apply("subtract", other, self)

    def __mul__(self, other: Any) -> "Traced":
        return self.graph.apply("multiply", self, other)

    def __rmul__(self, other: Any) -> "Traced":
        return self.graph.apply("multiply", other, self)

    def __truediv__(self, other: Any) -> "Traced":
        return self.graph.apply("divide", self, other)

    def __rtruediv__(self, other: Any) -> "Traced":
        return self.graph.apply("divide", other, self)

    def __floordiv__(self, other: Any) -> "Traced":
        return self.graph.apply("floor", self / other)

    def __rfloordiv__(self, other: Any) -> "Traced":
        return self.graph.apply("floor", other / self)

    def __pow__(self, other: Any) -> "Traced":
        return self.graph.apply("power", self, other)

    def __rpow__(self, other: Any) -> "Traced":
        return self.graph.apply("power", other, self)

    def __neg__(self) -> "Traced":
        return self.graph.apply("negative", self)

    def __lt__(self, other: Any) -> "Traced":
        return self.graph.apply("less", self, other)

    def __le__(self, other: Any) -> "Traced":
        return self.graph.apply("less_equal", self, other)

    def __gt__(self, other: Any) -> "Traced":
        return self.graph.apply("greater", self, other)

    def __ge__(self, other: Any) -> "Traced":
        return self.graph.apply("greater_equal", self, other)

    def __eq__(self, other: object) -> Any:
        return self.graph.apply("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return self.graph.apply("not_equal", self, other)

    def __and__(self, other: Any) -> "Traced":
        return self.graph.apply("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> "Traced":
        return self.graph.apply("or", self, other)

    __ror__ = __or__

    def __invert__(self) -> "Traced":
        return self.graph.apply("not", self)

    __hash__ = None  # type: ignore[assignment]  # equality is an operation, not an answer

    def __bool__(self) -> bool:
        truth = isinstance(self.stands_for, bool)
        return bool(self.chosen() if truth else self.graph.apply("not_equal", self, 0).chosen())

    def chosen(self) -> Any:
        """The number that the value stands for, noted as a condition. Raises TypeError where it stands for none."""
        if self.stands_for is None:
            raise TypeError("a formula chooses by a value that is not known when it is traced; use algebra.where")
        if self.graph.nodes[self.index][0] != "constant":
            condition = Condition(self.index, self.stands_for)
            if condition not in self.graph.conditions:
                self.graph.conditions.append(condition)
        return self.stands_for

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Any, **options: Any) -> Any:
        if method != "__call__" or options or ufunc.__name__ not in _UFUNCS:
            return NotImplemented
        return self.graph.apply(_UFUNCS[ufunc.__name__], *operands)

    def __array_function__(self, function: Any, types: Any, operands: Any, options: Any) -> Any:
        if function.__name__ != "where" or options:
            return NotImplemented
        return self.graph.apply("where", *operands)
