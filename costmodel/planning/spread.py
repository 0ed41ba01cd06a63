"""The layouts of a search by which a model divides, and which of them have a part of its kernels in common.

A layout is a sum of parts, and each depends on few of its degrees: mixers on tp and cp, routed experts on ep too, what
devices send on how groups lie in domains, nothing on dp. So each different part is built and priced once, all that are
of one form side by side.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy

from costmodel.architecture import Architecture
from costmodel.errors import Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.parallel.exchanges import domain, group
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import Options
from costmodel.parallel.pipeline import Cut, stage_cuts
from costmodel.parallel.placement import Placed
from costmodel.planning.engine_model import EngineModel, Places, places
from costmodel.planning.side_by_side import Groups, Indices, different_among, form_of
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

    degrees: theirs, as columns. asked: of each, the place among all that were asked for. one: its place in `placed`,
    where each split of the layers stands once. cuts: the stages by pp. kept: parts that were found.
    """

    model: Architecture
    layouts: tuple[Layout, ...]
    degrees: Any
    asked: Indices
    one: Indices
    placed: tuple[Places, ...]
    cuts: dict[int, tuple[Cut, ...]]
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def parts(self, hardware: Hardware) -> list[Part]:
        """The parts of the model: mixers, which see caches, experts, which are spread, and the rest, computation and
        communication apart."""
        return self.once(("parts", domain(hardware)), lambda: self._parts(hardware))

    def _parts(self, hardware: Hardware) -> list[Part]:
        groups = tuple(dict.fromkeys(self.model.groups))
        mixers = tuple(name for name in groups if name in self.model.mixers)
        experts = tuple(name for name in groups if name not in mixers and _has_experts(self.model, name))
        rest = tuple(name for name in groups if name not in mixers and name not in experts)
        tp, _, ep, _, cp = self.degrees
        found = [
            self._computed(mixers, "caches", tp, cp),
            self._computed(rest, "weights", tp, cp),
            self._computed(experts, "weights", tp, cp, ep),
        ]
        if (self.degrees.gpus > 1).any():
            ways, context, spread = (group(self._everywhere, hardware, degree) for degree in ("ways", "cp", "ep"))
            # Tokens that travel to experts are summed otherwise before.
            sent = (tp, cp, ep > tp, ep > tp * cp, *ways, *context)
            # Sums are of hidden states; gathered caches have a format of their own, and so have tokens sent to experts.
            gathers = (cp > 1).any()
            found.append(self._sent((*mixers, *rest), "caches" if gathers else "hidden", *sent))
            found.append(self._sent(experts, "weights", *sent, ep, *spread))
        return [part for part in found if part.groups]

    def _computed(self, groups: tuple[str, ...], reads: str, *depends: Any) -> Part:
        def compute() -> Part:
            row, first = different_among(depends)
            return Part(
                "computed", groups, reads, row, _beside(self.placed[self.one[place]].only(groups) for place in first)
            )

        return self.once(("computed", groups), compute)

    def _sent(self, groups: tuple[str, ...], reads: str, *depends: Any) -> Part:
        row, first = different_among(depends)
        return Part("sent", groups, reads, row, _beside(self._staged(place) for place in first))

    def _staged(self, place: int) -> Places:
        """A layout with its stages."""
        return self.placed[self.one[place]].with_stages(self.layouts[place].pp)

    @property
    def _everywhere(self) -> Placed:
        """The model as it decodes in all layouts, each degree a column."""
        degrees = self.degrees
        return self.placed[0].decode._replace(layout=degrees, ways=degrees.tp * degrees.cp)

    def stages(self) -> "Stages":
        """The different stages of all pipelines."""
        return self.once("stages", lambda: _stages(self.cuts, self.degrees.pp))

    def drafting(self, hardware: Hardware, layouts: Indices) -> Groups:
        """The drafting layer of some layouts side by side."""
        key = ("drafting", domain(hardware), layouts.tobytes())
        return self.once(key, lambda: _beside(map(self._staged, layouts.tolist())))

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
            ways, pipeline = (group(self._everywhere, hardware, degree) for degree in ("ways", "pp"))
            row, first = different_among((*ways, pipeline.inside > 1))
            return row, _beside(self._staged(place).only(()) for place in first)

        return self.once(("hops", domain(hardware)), compute)


def spread(model: Architecture, layouts: Iterable[Layout], options: Options, drafts: bool) -> Spread:
    """The layouts by which a model divides, placed."""
    every = tuple(layouts)
    degrees: Any = Layout(*numpy.fromiter(chain.from_iterable(every), numpy.intp).reshape(-1, len(Layout._fields)).T)
    split, first = different_among((degrees.tp, degrees.ep, degrees.cp))
    splits = zip(*(degree[first].tolist() for degree in (degrees.tp, degrees.ep, degrees.cp)), strict=True)
    placed = _splits(model, (Layout(tp=tp, ep=ep, cp=cp) for tp, ep, cp in splits), options, drafts)
    cuts = {pp: cut for pp in dict.fromkeys(degrees.pp.tolist()) if (cut := _cuts(model, pp)) is not None}
    divides = numpy.array([of is not None for of in placed], dtype=bool)
    asked = numpy.flatnonzero(divides[split] & numpy.isin(degrees.pp, [*cuts]))
    order = numpy.cumsum(divides) - 1
    return Spread(
        model,
        tuple(map(every.__getitem__, asked.tolist())),
        Layout(*(degree[asked] for degree in degrees)),
        asked,
        order[split[asked]],
        tuple(of for of in placed if of is not None),
        cuts,
    )


def _splits(model: Architecture, layouts: Iterable[Layout], options: Options, drafts: bool) -> list[Places | None]:
    """A model under layouts without stages, None where it does not divide."""
    mixers, alone, found = model._replace(ffns={}), dict[tuple[int, int], bool](), list[Places | None]()
    for layout in layouts:
        attention = layout.tp, layout.cp
        if attention not in alone:
            alone[attention] = _placed(mixers, Layout(tp=layout.tp, cp=layout.cp), options) is not None
        # Where mixers do not divide, no spread of the experts helps.
        found.append(_placed(model, layout, options, drafts) if alone[attention] else None)
    return found


def _cuts(model: Architecture, stages: int) -> tuple[Cut, ...] | None:
    """The stages of a pipeline of so many, None where there are not as many layers."""
    try:
        return stage_cuts(model, stages)
    except Impossible:
        return None


def _placed(model: Architecture, layout: Layout, options: Options, drafts: bool = False) -> Places | None:
    """A model under a layout, None where it does not divide."""
    try:
        return places(model, layout, options, drafts)
    except Impossible:
        return None


class Stages(NamedTuple):
    """The different stages of pipelines, and of each layout the places of its own among them, −1 beyond the last."""

    different: tuple[Cut, ...]
    place: Indices


def _stages(cuts: Mapping[int, Sequence[Cut]], pp: Indices) -> Stages:
    found: dict[Hashable, int] = {}
    different: list[Cut] = []
    places = numpy.full((max(cuts, default=0) + 1, max(map(len, cuts.values()), default=0)), -1)
    for stages, of_pipeline in cuts.items():
        for column, cut in enumerate(of_pipeline):
            key = (cut.layers, cut.embeds, cut.predicts)
            if key not in found:
                found[key] = len(different)
                different.append(cut)
            places[stages, column] = found[key]
    return Stages(tuple(different), places[pp])


def _has_experts(model: Architecture, name: str) -> bool:
    block = model.ffns.get(name)
    return block is not None and isinstance(block.dims, moe.Dims)


def _beside(members: Iterable[Places]) -> Groups:
    """Placed models side by side."""
    placed = list(members)
    return Groups(placed, [(form_of(places.prefill), form_of(places.decode)) for places in placed])
