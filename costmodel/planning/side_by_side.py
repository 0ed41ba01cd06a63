"""Layouts side by side: one model placed in many ways, each number that differs a column with a row for each.

Formulas of kernels read arrays as they read integers, so the kernels of all these layouts are built and priced at once.
Where a formula asks yes or no, all layouts must answer alike; those that do not are told apart, and asked again.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import numpy
from numpy.typing import NDArray

from costmodel.dims import split_fields
from costmodel.parallel.placement import Placed

Found = TypeVar("Found")
Indices = NDArray[numpy.intp]


class Apart(Exception):
    """Layouts side by side answer a question differently. answers: of each, in its row."""

    def __init__(self, answers: NDArray[Any]) -> None:
        super().__init__("layouts side by side answer differently")
        self.answers = answers


class Rows(numpy.ndarray):
    """Numbers of layouts, one in each row, and what formulas make of them.

    >>> heads = numpy.array([[8.0], [4.0]]).view(Rows)
    >>> bool(heads > 2), f"hd{heads / heads:g}"
    (True, 'hd1')
    >>> bool(heads > 4)
    Traceback (most recent call last):
    ...
    costmodel.planning.side_by_side.Apart: layouts side by side answer differently
    """

    def __bool__(self) -> bool:
        return bool(self._agreed())

    def __int__(self) -> int:
        return int(self._agreed())

    def __format__(self, how: str) -> str:
        return format(self._agreed(), how)

    def _agreed(self) -> Any:
        values = numpy.asarray(self)
        first = values.flat[0]
        if (values == first).all():
            return first.item()
        raise Apart(values.reshape(len(values), -1))

    @property
    def stands_for(self) -> "Rows | None":
        """What a formula may choose a kernel by (see `nominal`): the numbers of layouts, not those of many steps."""
        return self if self.shape[-1] == 1 else None

    def chosen(self) -> "Rows":
        """The numbers themselves."""
        return self


def side_by_side(members: Sequence[Any]) -> Any:
    """Values of one form as one, whose numbers are `Rows` where they differ. All else must be the same.

    >>> from costmodel.parallel.layout import Layout
    >>> one, other = Layout(tp=8), Layout(tp=4)
    >>> beside = side_by_side([one, other, one, one, other])
    >>> beside.tp[:, 0].tolist(), beside.pp
    ([8.0, 4.0, 8.0, 8.0, 4.0], 1)
    """
    first = members[0]
    apart = dict(zip(map(id, members), members, strict=True))
    if len(apart) == 1:
        return first
    if 2 * len(apart) < len(members) and not isinstance(first, int | float):
        place = dict(zip(apart, range(len(apart)), strict=True))
        rows = numpy.array([*map(place.__getitem__, map(id, members))])
        return some_rows(side_by_side([*apart.values()]), rows, len(apart))
    if isinstance(first, int | float) and not isinstance(first, bool):
        return first if len(set(members)) == 1 else numpy.array(members, dtype=numpy.float64)[:, None].view(Rows)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(side_by_side, zip(*members, strict=True)))
    if is_dataclass(first):
        kind: Any = type(first)
        names, values = _values(kind)
        columns = zip(*map(values, members), strict=True)
        return replace(first, **dict(zip(names, map(side_by_side, columns), strict=True)))  # type: ignore[type-var]
    if isinstance(first, Mapping):
        return {name: side_by_side([of[name] for of in members]) for name in first}
    assert all(other == first for other in members), first
    return first


@cache
def _values(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names of a dataclass's fields, and what finds their values."""
    names = tuple(item.name for item in fields(kind))
    get = attrgetter(*names)
    return names, get if len(names) > 1 else lambda of: (get(of),)


def different(keys: Iterable[Hashable]) -> tuple[Indices, Indices]:
    """Of each key its place among the different ones, and where each of these stands first.

    >>> row, first = different("abac")
    >>> row.tolist(), first.tolist()
    ([0, 1, 0, 2], [0, 1, 3])
    """
    order: dict[Hashable, int] = {}
    first: list[int] = []
    row: list[int] = []
    for place, key in enumerate(keys):
        if key not in order:
            order[key] = len(first)
            first.append(place)
        row.append(order[key])
    return numpy.array(row, dtype=numpy.intp), numpy.array(first, dtype=numpy.intp)


def different_among(columns: Iterable[Any]) -> tuple[Indices, Indices]:
    """The same of rows of whole numbers from 0.

    >>> row, first = different_among([numpy.array([1, 2, 1]), numpy.array([5, 5, 5])])
    >>> row.tolist(), first.tolist()
    ([0, 1, 0], [0, 1])
    """
    row: Any = 0
    for column in columns:
        number = column.astype(numpy.intp)
        row = row * (number.max(initial=0) + 1) + number
        _, first, row = numpy.unique(row, return_index=True, return_inverse=True)
    # In the order in which they stand first.
    order = numpy.argsort(first)
    place = numpy.empty_like(order)
    place[order] = numpy.arange(len(order))
    return place[row], first[order]


def different_rows(values: Sequence[Any]) -> tuple[Indices, Indices] | None:
    """Of each row of some numbers, the place among the different ones, and where each of these stands first; None where
    most differ."""
    columns = [value for value in values if isinstance(value, numpy.ndarray) and value.ndim == 2]
    if not columns:
        return None
    # Rows that differ in a few of the numbers differ.
    for few in ([column[:, ::16] for column in columns], columns):
        row, first = different(zip(*(map(bytes, numpy.ascontiguousarray(column)) for column in few), strict=True))
        if 2 * len(first) >= len(row):
            return None
    return row, first


def some_rows(value: Any, rows: Indices | slice, among: int) -> Any:
    """Some rows of values with so many."""
    if isinstance(value, numpy.ndarray):
        return value[rows] if value.ndim == 2 and len(value) == among else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(some_rows(entry, rows, among) for entry in value))
    if isinstance(value, Mapping):
        return {name: some_rows(entry, rows, among) for name, entry in value.items()}
    if is_dataclass(value):
        kind: Any = type(value)
        names, values = _values(kind)
        entries = (some_rows(entry, rows, among) for entry in values(value))
        return replace(value, **dict(zip(names, entries, strict=True)))  # type: ignore[type-var]
    return value


def narrowed(beside: Any, first: Any, rows: Indices) -> Any:
    """Some rows of values side by side, as `side_by_side` of these has them; first: the values of the first row.

    >>> from costmodel.parallel.layout import Layout
    >>> members = [Layout(tp=8), Layout(tp=4), Layout(tp=4)]
    >>> narrowed(side_by_side(members), members[1], numpy.array([1, 2]))
    Layout(tp=4, pp=1, ep=1, dp=1, cp=1)
    """
    if beside is first:
        return first
    if isinstance(beside, Rows):
        column = beside[rows]
        return first if numpy.asarray(column == column[0]).all() else column
    if isinstance(beside, tuple) and hasattr(beside, "_fields"):
        return type(beside)(*(narrowed(entry, one, rows) for entry, one in zip(beside, first, strict=True)))
    if isinstance(beside, Mapping):
        return {name: narrowed(entry, first[name], rows) for name, entry in beside.items()}
    if is_dataclass(beside):
        kind: Any = type(beside)
        names, values = _values(kind)
        entries = (narrowed(entry, one, rows) for entry, one in zip(values(beside), values(first), strict=True))
        return replace(beside, **dict(zip(names, entries, strict=True)))  # type: ignore[type-var]
    return first


def form_of(placed: Placed) -> Hashable:
    """What must be the same of placed models to stand side by side: the kinds of their blocks, and which heads are one
    alone, for products of several heads are other kernels."""
    parts = [part for part in (placed.model.part, placed.model.cores) if part is not None]
    dims = [block.dims for part in parts for blocks in (part.mixers, part.ffns) for block in blocks.values()]
    ones = (
        tuple(getattr(of, item.name) == 1 for item in split_fields(of) if item.metadata["split"] != "rows")
        for of in dims
    )
    return placed.model.cores is None, *map(type, dims), *ones


class Groups:
    """Members of one form each, in groups that stand side by side; told apart further as formulas ask for it."""

    def __init__(self, members: Sequence[Any], forms: Sequence[Any]) -> None:
        self.members, self.groups = members, list[Indices]()
        found: dict[Any, list[int]] = {}
        for place, of in enumerate(forms):
            found.setdefault(of, []).append(place)
        self.groups = [numpy.array(places) for places in found.values()]
        self._forms = tuple(self.groups)
        self._form, self._row = (numpy.zeros(len(members), dtype=numpy.intp) for _ in range(2))
        for form, places in enumerate(self._forms):
            self._form[places], self._row[places] = form, numpy.arange(len(places))
        self._beside: dict[bytes, Any] = {}

    def beside(self, places: Indices) -> Any:
        """Some members of one form side by side."""
        key = places.tobytes()
        if key not in self._beside:
            first = places[0]
            every = self._forms[self._form[first]]
            if places is every:
                self._beside[key] = side_by_side([self.members[place] for place in places])
            else:
                self._beside[key] = narrowed(self.beside(every), self.members[first], self._row[places])
        return self._beside[key]

    def each(
        self, compute: Callable[[Any, Indices], Found], rows: Indices | None = None
    ) -> Iterator[tuple[Indices, Found]]:
        """What a function finds for every group, with the places of its members.

        rows: members, some of them again and again, which stand side by side instead; then places are among these.
        """
        waiting, self.groups = self.groups, []
        while waiting:
            group = waiting.pop()
            places = group if rows is None else numpy.flatnonzero(numpy.isin(rows, group))
            members = places if rows is None else rows[places]
            try:
                found = compute(self.beside(members), places) if len(places) else None
            except Apart as apart:
                answers = dict(zip(members.tolist(), map(bytes, apart.answers), strict=True))
                told: dict[bytes, list[int]] = {}
                for member in group.tolist():
                    told.setdefault(answers.get(member, b""), []).append(member)
                waiting += [numpy.array(some) for some in told.values()]
                continue
            self.groups.append(group)
            if found is not None:
                yield places, found
