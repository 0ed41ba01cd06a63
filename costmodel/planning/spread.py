"""The layouts of a search by which a model divides, and which of them have a part of its kernels in common.

A layout is a sum of parts, and each depends on few of its degrees: mixers on tp and cp, routed experts on ep too, what
devices send on how groups lie in domains, nothing on dp. So each different part is built and priced once, all that are
of one form side by side.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy

from costmodel.architecture import Architecture
from costmodel.errors import Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.parallel.exchanges import Group, domain, group
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import Options
from costmodel.parallel.pipeline import Cut, stage_cuts
from costmodel.planning.engine_model import EngineModel, Places, places
from costmodel.planning.side_by_side import Groups, Indices, different, form_of
from costmodel.step import Step


class Part(NamedTuple):
    """The kernels of some groups, either those that compute or those that send ("computed", "sent"), in all layouts.

    reads: the number formats on which they depend ("hidden", "weights" too, "caches" too). row: of each layout, the
    place among the different ones. beside: these, side by side.
    """

    what: str
    groups: tuple[str, ...]
    reads: str
    row: Indices
    beside: Groups

    def kernels(self, engine: EngineModel, step: Step, only: Collection[str] | None) -> list[Kernel]:
        """Those of a step, of some groups (None: all of a layout). engine: of layouts side by side."""
        if self.what == "sent":
            return engine.sent(step, only)
        return engine.device_kernels(step, self.groups if only is None else only)


@dataclass(frozen=True, eq=False)
class Spread:
    """Layouts by which a model divides.

    asked: of each, the place among all that were asked for. one: its place in `placed`, where each split of the layers
    stands once. cuts: the stages by pp. kept: parts that were found.
    """

    model: Architecture
    layouts: tuple[Layout, ...]
    asked: Indices
    one: Indices
    placed: tuple[Places, ...]
    cuts: dict[int, tuple[Cut, ...]]
    kept: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def pp(self) -> Indices:
        """Stages of each."""
        return numpy.array([layout.pp for layout in self.layouts])

    def parts(self, hardware: Hardware) -> list[Part]:
        """The parts of the model: mixers, which see caches, experts, which are spread, and the rest, computation and
        communication apart."""
        return self.once(("parts", domain(hardware)), lambda: self._parts(hardware))

    def _parts(self, hardware: Hardware) -> list[Part]:
        groups = tuple(dict.fromkeys(self.model.groups))
        mixers = tuple(name for name in groups if name in self.model.mixers)
        experts = tuple(name for name in groups if name not in mixers and _has_experts(self.model, name))
        rest = tuple(name for name in groups if name not in mixers and name not in experts)
        found = [
            self._computed(mixers, "caches", lambda layout: (layout.tp, layout.cp)),
            self._computed(rest, "weights", lambda layout: (layout.tp, layout.cp)),
            self._computed(experts, "weights", lambda layout: (layout.tp, layout.cp, layout.ep)),
        ]
        if any(layout.gpus > 1 for layout in self.layouts):
            among = [self._among(layout, one, hardware) for layout, one in zip(self.layouts, self.one, strict=True)]

            # Tokens that travel to experts are summed otherwise before.
            sent = [
                (layout.tp, layout.cp, layout.ep > layout.tp, layout.ep > layout.tp * layout.cp, ways, context)
                for layout, (ways, context, _) in zip(self.layouts, among, strict=True)
            ]
            of_experts = [
                (*key, layout.ep, spread) for key, layout, (*_, spread) in zip(sent, self.layouts, among, strict=True)
            ]
            # Sums are of hidden states; gathered caches have a format of their own, and so have tokens sent to experts.
            gathers = any(layout.cp > 1 for layout in self.layouts)
            found.append(self._sent((*mixers, *rest), "caches" if gathers else "hidden", sent))
            found.append(self._sent(experts, "weights", of_experts))
        return [part for part in found if part.groups]

    def _computed(self, groups: tuple[str, ...], reads: str, depends: Callable[[Layout], Hashable]) -> Part:
        def compute() -> Part:
            row, first = different([depends(layout) for layout in self.layouts])
            return Part(
                "computed", groups, reads, row, _beside(self.placed[self.one[place]].only(groups) for place in first)
            )

        return self.once(("computed", groups), compute)

    def _sent(self, groups: tuple[str, ...], reads: str, depends: Sequence[Hashable]) -> Part:
        row, first = different(depends)
        return Part("sent", groups, reads, row, _beside(self._staged(place) for place in first))

    def _staged(self, place: int) -> Places:
        """A layout with its stages."""
        return self.placed[self.one[place]].with_stages(self.layouts[place].pp)

    def drafting(self, hardware: Hardware, layouts: Indices) -> Groups:
        """The drafting layer of some layouts side by side."""
        key = ("drafting", domain(hardware), layouts.tobytes())
        return self.once(key, lambda: _beside(map(self._staged, layouts.tolist())))

    def _among(self, layout: Layout, one: int, hardware: Hardware) -> list[Group]:
        decode = self.placed[one].with_stages(layout.pp).decode
        return [group(decode, hardware, degree) for degree in ("ways", "cp", "ep")]

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What a function finds, kept under a key."""
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]

    def splits(self) -> Groups:
        """The splits of the layers side by side."""
        return self.once("splits", lambda: _beside(self.placed))

    def hops(self, hardware: Hardware) -> tuple[Indices, Groups]:
        """What the way from one stage to the next depends on: of each layout the place among the different ones, and
        these side by side."""

        def compute() -> tuple[Indices, Groups]:
            decode = (self._staged(place).decode for place in range(len(self.layouts)))
            row, first = different(
                [(group(one, hardware, "ways"), group(one, hardware, "pp").inside > 1) for one in decode]
            )
            return row, _beside(self._staged(place).only(()) for place in first)

        return self.once(("hops", domain(hardware)), compute)


def spread(model: Architecture, layouts: Iterable[Layout], options: Options, drafts: bool) -> Spread:
    """The layouts by which a model divides, placed."""
    placed: dict[Layout, Places | None] = {}
    cuts: dict[int, tuple[Cut, ...] | None] = {}
    found, asked = [], []
    for index, layout in enumerate(layouts):
        one = layout._replace(pp=1, dp=1)
        if one not in placed:
            try:
                placed[one] = places(model, one, options, drafts).with_stages(1)
            except Impossible:
                placed[one] = None
        if layout.pp not in cuts:
            try:
                cuts[layout.pp] = stage_cuts(model, layout.pp)
            except Impossible:
                cuts[layout.pp] = None
        if placed[one] is not None and cuts[layout.pp] is not None:
            found.append(layout)
            asked.append(index)
    divided = {one: of for one, of in placed.items() if of is not None}
    order = {one: place for place, one in enumerate(divided)}
    return Spread(
        model,
        tuple(found),
        numpy.array(asked, dtype=numpy.intp),
        numpy.array([order[layout._replace(pp=1, dp=1)] for layout in found], dtype=numpy.intp),
        tuple(divided.values()),
        {pp: cut for pp, cut in cuts.items() if cut is not None},
    )


def _has_experts(model: Architecture, name: str) -> bool:
    block = model.ffns.get(name)
    return block is not None and isinstance(block.dims, moe.Dims)


def _beside(members: Iterable[Places]) -> Groups:
    """Placed models side by side."""
    placed = list(members)
    return Groups(placed, [(form_of(places.prefill), form_of(places.decode)) for places in placed])
