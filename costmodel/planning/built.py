"""Kernels of a part of a model in a search, each built once, and sorted by what their times depend on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.kernels.base import Kernel
from costmodel.planning.deployment import quantised_products
from costmodel.planning.grid import Grid
from costmodel.planning.kernel_kinds import KernelSource, Key, kinds_among, named
from costmodel.step import Step


class ByKind(NamedTuple):
    """The kernels of a part of a model at the steps of a grid, by what their times depend on: tokens, sampled
    positions, or sequences, of these those of decoding and of prompts.

    products: launches with quantised activations.
    """

    token: tuple[Kernel, ...]
    row: tuple[Kernel, ...]
    decoding: tuple[Kernel, ...]
    prompts: tuple[Kernel, ...]
    products: Any

    @property
    def all(self) -> tuple[Kernel, ...]:
        """Every kernel that has a price."""
        return self.token + self.row + self.decoding + self.prompts


def by_kind(kernels: KernelSource, at: Grid) -> ByKind:
    """The kernels of a part. Raises Apart where layouts side by side differ in which are of which kind."""
    decoding, prompts = named(kernels(at.decoding.different)), named(kernels(at.prompts.different))
    kind = kinds_among(decoding, prompts, at.compared)

    def of_kind(wanted: str, run: Mapping[Key, Kernel]) -> tuple[Kernel, ...]:
        return tuple(kernel for key, kernel in run.items() if kind.get(key, "") == wanted)

    token, row = (
        of_kind(wanted, named(kernels(steps.different))) if wanted in kind.values() else ()
        for wanted, steps in (("token", at.tokens), ("row", at.rows))
    )
    return ByKind(token, row, of_kind("", decoding), of_kind("", prompts), quantised_products([*decoding.values()]))


class Built:
    """Kernels of steps, each built once."""

    def __init__(self, build: KernelSource) -> None:
        self.build = build
        self.known: dict[int, tuple[Step, Sequence[Kernel]]] = {}
        self.sorted: dict[int, tuple[Grid, ByKind]] = {}

    def __call__(self, step: Step) -> Sequence[Kernel]:
        """Those of a step."""
        # Steps of arrays have no hash; kept beside their kernels, each has an id of its own.
        if id(step) not in self.known:
            self.known[id(step)] = step, self.build(step)
        return self.known[id(step)][1]

    def by_kind(self, at: Grid) -> ByKind:
        """Those of a grid's steps, by kind."""
        if id(at) not in self.sorted:
            self.sorted[id(at)] = at, by_kind(self, at)
        return self.sorted[id(at)][1]
