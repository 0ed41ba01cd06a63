"""Dimensions of a block: the paper's symbol, the descriptive field of the architecture file, and the meaning.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Dims:
...     H: int = dim("heads", "query heads")
...     gate: bool = flag("output_gate", "multiplies the output by a sigmoid gate")
>>> fields_by_name(Dims)["heads"].name
'H'
"""

from dataclasses import MISSING, Field, field, fields
from typing import Any


def dim(
    name: str, meaning: str, default: Any = MISSING, *, least: int = 1, most: int = 2**31, nullable: bool = False
) -> Any:
    """A whole-number dimension; its dataclass field is the symbol, `name` the field in files.

    nullable dimensions may be null in a file, which means that the part they size is absent.
    """
    return field(
        default=default,
        metadata={"name": name, "meaning": meaning, "kind": "dim", "least": least, "most": most, "nullable": nullable},
    )


def flag(name: str, meaning: str, default: bool = False) -> Any:
    """A yes-or-no property of the block."""
    return field(default=default, metadata={"name": name, "meaning": meaning, "kind": "flag"})


def choice(name: str, meaning: str, default: str, options: tuple[str, ...]) -> Any:
    """A property with a few named values."""
    return field(default=default, metadata={"name": name, "meaning": meaning, "kind": "choice", "options": options})


def fields_by_name(dims_class: Any) -> dict[str, Field[Any]]:
    """The dataclass fields by their descriptive names."""
    return {item.metadata["name"]: item for item in fields(dims_class)}


def by_name(dims: Any) -> dict[str, Any]:
    """The values by their descriptive names."""
    return {item.metadata["name"]: getattr(dims, item.name) for item in fields(dims)}


def is_required(item: Field[Any]) -> bool:
    """Whether a file must give the field."""
    return item.default is MISSING
