"""Which kernels of a step depend on how many tokens it has, which on how many logits, and which on its sequences.

Nobody has to say so: the lists of steps that have the same tokens in other sequences are compared.
"""

from collections.abc import Callable, Sequence

from costmodel.kernels.base import Kernel
from costmodel.step import Step

KernelSource = Callable[[Step], Sequence[Kernel]]
"""The kernels of a step, such as those of a model on one device, or of one rank of a parallel layout."""


Key = tuple[str, str, int]
"""Group, name, how many of that name came before."""
Kinds = dict[Key, str]
"""The kind of kernels by what they are called."""


MANY = 65_537
"""Tokens of a prompt of which more than one falls to each device, however many share it."""


def kinds(kernels: KernelSource) -> Kinds:
    """Which kernels are token-wise ("token") and which row-wise ("row"); all others are sequence-wise.

    The key is (group, name, how many of that name came before).
    """
    found: Kinds = {}
    for index, n in enumerate((4, 208)):
        decode = named(kernels(Step(B=n, S=1, P=96, phase="decode")))
        others = {
            "token": (
                named(kernels(Step(B=1, S=n, P=0, phase="prefill"))),
                named(kernels(Step(B=1, S=n, P=4096, phase="prefill"))),
                named(kernels(Step(B=n // 2, S=2, P=7000, phase="decode"))),
            ),
            "row": (
                named(kernels(Step(B=n, S=MANY, P=4096, phase="prefill"))),
                named(kernels(Step(B=n // 2, S=2, P=7000, phase="decode"))),
            ),
        }
        for key, kernel in decode.items():
            kind = next((kind for kind, lists in others.items() if all(_same(kernel, at.get(key)) for at in lists)), "")
            if index and found.get(key) != kind:
                kind = ""
            found[key] = kind
    return {key: kind for key, kind in found.items() if kind}


def named(kernels: Sequence[Kernel]) -> dict[tuple[str, str, int], Kernel]:
    """The kernels by (group, name, how many of that name came before)."""
    found: dict[tuple[str, str, int], Kernel] = {}
    for kernel in kernels:
        before = 0
        while (kernel.group, kernel.name, before) in found:
            before += 1
        found[kernel.group, kernel.name, before] = kernel
    return found


def _same(one: Kernel, other: Kernel | None) -> bool:
    return other is not None and (one.ideal, one.executed, one.count) == (other.ideal, other.executed, other.count)
