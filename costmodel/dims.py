"""Dimensions of a block: the paper's symbol, the descriptive field of the architecture file, and the meaning.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Dims:
...     H: int = dim("heads", "query heads")
...     gate: bool = flag("output_gate", "multiplies the output by a sigmoid gate")
>>> fields_by_name(Dims)["heads"].name
'H'

What tensor parallelism splits is said where the dimension is declared, and what is not said to be split is on every
device. The formulas of a block, fed its local dimensions, then give its local matrices, kernels and cache:

>>> @dataclass(frozen=True)
... class Grouped:
...     H: int = dim("heads", "query heads", split="heads")
...     Hkv: int = dim("kv_heads", "key and value heads", split="groups")
...     dk: int = dim("d_qk", "width of a head")
>>> split_dims(Grouped(H=32, Hkv=2, dk=128), 8)
Grouped(H=4, Hkv=1, dk=128)
"""

from dataclasses import MISSING, Field, field, fields, replace
from functools import cache
from typing import Any

from costmodel.errors import Impossible

SPLITS = ("heads", "groups", "rows")
"""How a dimension is divided over devices. heads: evenly (heads, channels, inner widths); groups: evenly, or one for
several devices, each of which has a copy of it (key heads, groups of heads); rows: rounded up (a table)."""


def dim(
    name: str,
    meaning: str,
    default: Any = MISSING,
    *,
    least: int = 1,
    most: int = 2**31,
    nullable: bool = False,
    split: str | None = None,
) -> Any:
    """A whole-number dimension; its dataclass field is the symbol, `name` the field in files.

    nullable dimensions may be null in a file, which means that the part they size is absent. split: how tensor
    parallelism divides it, one of SPLITS; None: every device has all of it.
    """
    meta = {"name": name, "meaning": meaning, "kind": "dim", "least": least, "most": most, "nullable": nullable}
    return field(default=default, metadata={**meta, "split": split})


def flag(name: str, meaning: str, default: bool = False) -> Any:
    """A yes-or-no property of the block."""
    return field(default=default, metadata={"name": name, "meaning": meaning, "kind": "flag"})


def choice(name: str, meaning: str, default: str, options: tuple[str, ...]) -> Any:
    """A property with a few named values."""
    return field(default=default, metadata={"name": name, "meaning": meaning, "kind": "choice", "options": options})


def fields_by_name(dims_class: Any) -> dict[str, Field[Any]]:
    """The fields that files give, by their descriptive names; what only a placement sets has none."""
    return {item.metadata["name"]: item for item in fields(dims_class) if item.metadata}


def by_name(dims: Any) -> dict[str, Any]:
    """The values by their descriptive names."""
    return {name: getattr(dims, item.name) for name, item in fields_by_name(type(dims)).items()}


def is_required(item: Field[Any]) -> bool:
    """Whether a file must give the field."""
    return item.default is MISSING


def split_fields(dims: Any) -> list[Field[Any]]:
    """The fields that tensor parallelism divides, those that are absent (null) left out."""
    kind: Any = type(dims)
    return [item for item in _splittable(kind) if getattr(dims, item.name) is not None]


@cache
def _splittable(kind: Any) -> tuple[Field[Any], ...]:
    return tuple(item for item in fields(kind) if item.metadata.get("split"))


def split_dims(dims: Any, ways: int) -> Any:
    """The dimensions on one of `ways` devices.

    Raises Impossible for a dimension that does not divide, naming the numbers of devices that it divides over.
    """
    if ways == 1:
        return dims
    local = {item.name: _share(item, getattr(dims, item.name), ways) for item in split_fields(dims)}
    return replace(dims, **local) if local else dims


def _share(item: Field[Any], size: int, ways: int) -> int:
    how = item.metadata["split"]
    if how == "rows":
        return -(-size // ways)
    if how == "groups" and size < ways and ways % size == 0:
        return 1
    return even_share(item.metadata["name"], size, ways)


def even_share(name: str, size: int, ways: int) -> int:
    """The part of a size on one of `ways` devices. Raises Impossible, with what would divide, where it is not whole.

    >>> even_share("heads", 32, 4)
    8
    """
    if size % ways:
        raise Impossible(f"{name} {size} does not divide over {ways} devices; it does over {_ways_of(size)}")
    return size // ways


@cache
def _ways_of(size: int) -> str:
    return ", ".join(str(ways) for ways in range(1, min(size, 1024) + 1) if size % ways == 0)
