"""Costs of tensor contractions, written as their einsum.

The shapes stand on the page: the reader checks them against the paper instead of a bare product.
"""

import functools
from collections.abc import Mapping

from costmodel.algebra import Quantity


@functools.cache
def _axes(expression: str) -> tuple[str, ...]:
    names = expression.replace("->", " ").replace(",", " ").split()
    return tuple(dict.fromkeys(names))


def dot(expression: str, sizes: Mapping[str, Quantity]) -> Quantity:
    """FLOPs of a contraction: a multiply and an add for each point of its iteration space.

    >>> dot("B H S dk, B L dk -> B H S L", dict(B=1, H=2, S=3, L=5, dk=4))
    240
    """
    return 2 * size(expression, sizes)


def size(expression: str, sizes: Mapping[str, Quantity]) -> Quantity:
    """Elements of a tensor: the product of its distinct axes.

    >>> size("B S H dk", dict(B=1, S=3, H=2, dk=4))
    24
    """
    first, *others = _axes(expression)
    product = sizes[first]
    for axis in others:
        product = product * sizes[axis]
    return product
