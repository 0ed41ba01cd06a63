"""What a row of anyone's own measurements says of a kernel: the families that a CSV takes, and their columns.

A column is a field of the family's shape, with its name and unit, in whichever file of `costmodel/kernels/` its class
stands.
"""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import costmodel.kernels
from costmodel.dtypes import BYTES
from costmodel.errors import BadInput, Impossible, unknown
from costmodel.kernels.base import Form, Kernel
from costmodel.kernels.collective import RINGS, TO_EXPERTS

COMMON = ("family", "kernel", "seconds", "hot")
DTYPES = ("activations", "dtype", "kv", "output", "source", "weights")
"""Columns that hold a number format."""

OPERATIONS = (*RINGS, *TO_EXPERTS, "send")
COUNTS = frozenset(
    (
        *("m", "n", "k", "batch", "E", "d_in", "d_out"),
        *("B", "S", "H", "Hkv", "dk", "dv", "c", "d", "k_heads", "chunks", "b", "selectors", "r", "ratio"),
        *("channels", "width", "rows", "threads", "tokens", "devices", "inside", "units"),
    )
)
"""Columns that count things of which there is at least one. Pairs, entries and bytes may be means over sequences."""

COUNTS_FROM_ZERO = frozenset(("P", "w"))
MEANS = frozenset((("moe", "k"),))
"""Fields of families that bear a count's name and may be a mean: of the experts that a token chooses on one device."""

MOST = 1e15


class Maker(NamedTuple):
    """How a family's kernel is made from its shape: the class of the shape, and the function."""

    family: str
    shape: Any
    make: Callable[[Any], Kernel]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What an empty cell means, of those fields where it means something."""
        hints = typing.get_type_hints(self.shape)
        optional = {field: None for field in self.shape._fields if type(None) in typing.get_args(hints[field])}
        return optional | self.shape._field_defaults

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a cell can hold: all but lists."""
        hints = typing.get_type_hints(self.shape)
        return tuple(name for name in self.shape._fields if typing.get_origin(hints[name]) is not tuple)

    def is_text(self, field: str) -> bool:
        """Whether a field holds a name, not a number."""
        return typing.get_type_hints(self.shape)[field] is str

    def value(self, field: str, text: str) -> Any:
        """What a cell says. Raises BadInput, which names the column, the value and what is allowed."""
        if field in DTYPES and text not in BYTES:
            raise BadInput(f"{field}: {unknown('dtype', text, BYTES)}")
        if field == "op" and text not in OPERATIONS:
            raise BadInput(f"{field}: {unknown('operation', text, OPERATIONS)}")
        if self.is_text(field):
            return text
        if isinstance(self.defaults.get(field), bool):
            return number(field, text) != 0
        if (self.family, field) in MEANS:
            return number(field, text, above_zero=True)
        if field in COUNTS or field in COUNTS_FROM_ZERO:
            # A count whose default is none of something may be none.
            least = 0 if field in COUNTS_FROM_ZERO or self.defaults.get(field) == 0 else 1
            return count(field, text, least)
        return number(field, text)

    def kernel(self, given: Mapping[str, Any]) -> Kernel:
        """The kernel of a row. Raises BadInput where its fields do not go together, or are those of another family."""
        try:
            found = self.make(self.shape(**{**self.defaults, **given}))
        except Impossible as error:
            raise BadInput(str(error)) from None
        if found.family != self.family:
            raise BadInput(f"its cells describe a kernel of {found.family}, not of {self.family}")
        return found


@cache
def makers() -> dict[str, Maker]:
    """Every family whose kernel is a function of a name and one shape alone, which bears the name of its file."""
    found = {}
    for module_info in pkgutil.iter_modules(costmodel.kernels.__path__):
        module = importlib.import_module(f"costmodel.kernels.{module_info.name}")
        function = getattr(module, module_info.name, None)
        if function is None:
            continue
        shape = list(typing.get_type_hints(function).values())[1]
        asked = inspect.signature(function).parameters
        others = [each for name, each in asked.items() if each.default is each.empty and name != "form"][2:]
        if others or not hasattr(shape, "_fields"):
            continue
        forms: Sequence[Form] = getattr(module, "FORMS", (module.FORM,) if hasattr(module, "FORM") else ())
        takes_form = "form" in asked
        for form in forms:
            make = partial(_make, function, form if takes_form else None)
            found[form.family] = Maker(form.family, shape, make)
    return found


def _make(function: Callable[..., Kernel], form: Form | None, shape: Any) -> Kernel:
    return function("measured", shape) if form is None else function("measured", shape, form=form)


def maker_of(family: str) -> Maker:
    """The maker of a family. Raises BadInput for one that is unknown, and for one whose kernels have no plain shape."""
    known = makers()
    if family in known:
        return known[family]
    if family in costmodel.kernels.forms():
        families = ", ".join(sorted(known))
        raise BadInput(
            f"family {family!r} cannot be imported by CSV: no columns describe its kernels (can: {families})"
        )
    raise unknown("family", family, known)


def columns_of(family: str) -> str:
    """The columns of a family in words: those that it needs, and those that may stay empty; "" where it takes none.

    >>> columns_of("short-conv")
    'B, S, channels, width; may stay empty: element, activation'
    >>> columns_of("fft-conv")
    ''
    """
    maker = makers().get(family)
    if maker is None:
        return ""
    needed, optional = (
        ", ".join(field for field in maker.fields if (field in maker.defaults) is has) for has in (False, True)
    )
    return f"{needed}; may stay empty: {optional}" if optional else needed


def number(field: str, text: str, most: float = MOST, *, above_zero: bool = False) -> float | int:
    """The number in a cell, at most `most`. Raises BadInput."""
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{field} {text[:40]!r} is not a number") from None
    if not 0 <= value <= most or (above_zero and not value):
        raise BadInput(f"{field} {text[:40]} is outside 0 to {most:g}{', without 0' if above_zero else ''}")
    return int(value) if value.is_integer() else value


def count(field: str, text: str, least: int) -> int:
    """The count in a cell, a whole number from `least` on. Raises BadInput."""
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{field} {text[:40]!r} is not a number") from None
    if not least <= value <= MOST or not value.is_integer():
        raise BadInput(f"{field} {text[:40]} is not a whole number from {least} to {MOST:g}")
    return int(value)
