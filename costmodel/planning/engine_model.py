"""A model under a layout as one engine of a search runs it, and which layouts have a part of it in common.

Placing does not know of devices and formats, and stages do not change what a device holds of a layer: both are done
once for all engines that agree in the rest.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.algebra import Quantity
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.ffns import moe
from costmodel.generation._rows import one_layer
from costmodel.generation.speculative import tokens_per_verification
from costmodel.kernels.base import Kernel
from costmodel.parallel.exchanges import Exchanger, Group, between_stages, group
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import Options
from costmodel.parallel.pipeline import Cut
from costmodel.parallel.placement import Placed, in_stages, local_step, place
from costmodel.parallel.stages import device_kernels, stage_kernels
from costmodel.planning.deployment import Served
from costmodel.step import Precision, Step
from costmodel.timing import total_seconds

Array = NDArray[numpy.float64]


class Places(NamedTuple):
    """A model placed for prompts, for decoding, and its drafting layer (None: it drafts nothing)."""

    prefill: Placed
    decode: Placed
    drafting: Placed | None

    def in_stages(self, cuts: Sequence[Cut]) -> "Places":
        """The same parts of layers in other stages; drafts have none."""
        return self._replace(prefill=in_stages(self.prefill, cuts), decode=in_stages(self.decode, cuts))


def places(model: Architecture, layout: Layout, options: Options, drafts: bool) -> Places:
    """A model under a layout without stages. Raises Impossible where it cannot be split so."""
    assert layout.pp == 1
    return Places(
        place(model, layout, "prefill", options),
        place(model, layout, "decode", options),
        place(one_layer(model), layout, "decode", options) if drafts else None,
    )


class EngineModel(NamedTuple):
    """A model under a layout as one of its dp · pp engines runs it, with what prices its kernels."""

    served: Served
    layout: Layout
    prefill: Placed
    decode: Placed
    drafting: Placed | None
    calibration: Calibration
    draft_tokens: int
    acceptance: float

    @property
    def engines(self) -> int:
        """Engines of one replica: each rank of dp has its own queue, each stage of pp a batch on its way."""
        return self.layout.dp * self.layout.pp

    @property
    def pace(self) -> float:
        """Tokens that a sequence gains in a decode iteration."""
        return float(tokens_per_verification(self.draft_tokens, self.acceptance))

    def kernels(self, step: Step) -> list[Kernel]:
        """The kernels of a step on the devices of one place in each stage, without hops between stages; all ranks of
        dp are as full as this one."""
        return self._kernels(self._placed(step), step)

    def draft_kernels(self, step: Step) -> list[Kernel]:
        """The kernels of one drafted token."""
        assert self.drafting is not None
        return self._kernels(self.drafting, step)

    def device_kernels(self, step: Step, only: Collection[str]) -> list[Kernel]:
        """Of `kernels`, those of some groups that are no communication."""
        placed = self._placed(step)
        return device_kernels(placed, placed.model, self._local(placed, step), self.served.precision, only)

    def sent(self, step: Step, only: Collection[str] | None = None) -> list[Kernel]:
        """Of `kernels`, all communication, or that of some groups."""
        placed, served = self._placed(step), self.served
        exchanger = Exchanger(placed, placed.model, self._local(placed, step), served.precision, served.hardware)
        return exchanger.all(only)

    def _placed(self, step: Step) -> Placed:
        return self.decode if step.phase == "decode" else self.prefill

    def _local(self, placed: Placed, step: Step) -> Step:
        """The step of one rank of dp, which all others are like: a mean number of sequences stays that mean."""
        return local_step(placed._replace(layout=placed.layout._replace(dp=1)), step)

    def _kernels(self, placed: Placed, step: Step) -> list[Kernel]:
        local = self._local(placed, step)
        return stage_kernels(placed, placed.model, local, self.served.precision, self.served.hardware)

    def hop_s(self, tokens: Array) -> Array:
        """Seconds in which so many tokens of each rank go from one stage to the next."""
        step = Step(B=tokens, S=numpy.float64(1.0), P=numpy.float64(0.0), phase="decode")
        hops = between_stages(self.decode, step, self.served.precision, self.served.hardware)
        return numpy.asarray(self.seconds(hops), dtype=numpy.float64)

    def seconds(self, run: list[Kernel]) -> Quantity:
        """Expected seconds of kernels."""
        return total_seconds(run, self.served.hardware, self.calibration)

    def parts(self) -> Iterator["Part"]:
        """The groups of the engine's kernels, computation and communication apart."""
        among = self._among("ways", "cp", "ep")
        for name in dict.fromkeys(self.decode.model.part.groups):
            yield Part(name, "computed", partial(self.device_kernels, only=(name,)), *self._computed(name))
            if self.layout.gpus > 1:
                yield Part(name, "sent", partial(self.sent, only=(name,)), *self._sent(name, among))

    def _computed(self, name: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Of the computation of a group: how its heads, widths or experts are divided; and whether they are."""
        layout, spread = self.layout, self._has_experts(name)
        kinds = (layout.cp > 1, *(self._spread() if spread else ()), self.served.precision.activations)
        return (layout.tp, layout.cp, layout.ep if spread else 1, *self._formats(name)), kinds

    def _sent(self, name: str, among: Sequence[Group]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Of the communication of a group: how its devices lie in domains, and whether tokens travel to experts after
        it; and which exchanges there are."""
        layout, spread = self.layout, self._has_experts(name)
        kinds = (layout.tp > 1, layout.cp > 1, *self._spread(), self.served.precision.activations)
        travels = layout.ep > layout.tp, layout.ep > layout.tp * layout.cp
        # Sums are of hidden states; experts get tokens in a format of their own, and gathered caches have theirs.
        formats = self._formats(name) if spread or layout.cp > 1 else (self.served.precision.hidden,)
        experts = (layout.ep, among[2]) if spread else ()
        return (layout.tp, layout.cp, *experts, *travels, *among[:2], *formats), kinds

    def _spread(self) -> tuple[bool, bool]:
        return self.layout.ep > 1, self.layout.ep > self.layout.tp

    def _formats(self, name: str) -> tuple[Any, ...]:
        """The formats that a group may see: caches are of mixers."""
        formats = self.served.precision
        return formats_of(formats) if name in self.served.architecture.mixers else formats_of(formats)[:-2]

    def split(self) -> tuple[Any, ...]:
        """What the times of all layers depend on beside device, formats and drafts: all degrees but pp and dp, and how
        groups lie in domains."""
        return (*self.layout._replace(pp=1, dp=1), *self._among("ways", "cp", "ep"))

    def hop_of(self) -> tuple[Any, ...]:
        """What the seconds between two stages depend on, beside device, formats and tokens."""
        ways, apart = self._among("ways", "pp")
        return (ways, apart.inside > 1)

    def _among(self, *degrees: str) -> list[Group]:
        return [group(self.decode, self.served.hardware, degree) for degree in degrees]

    def _has_experts(self, name: str) -> bool:
        block = self.served.architecture.ffns.get(name)
        return block is not None and isinstance(block.dims, moe.Dims)


class Part(NamedTuple):
    """The kernels of a group that are computation, or communication.

    depends: what they depend on beside the device; kinds: what it depends on which of them are token-wise.
    """

    group: str
    what: str
    kernels: Callable[[Step], list[Kernel]]
    depends: tuple[Any, ...]
    kinds: tuple[Any, ...]


def formats_of(precision: Precision) -> tuple[Any, ...]:
    """Number formats, those of weights and what multiplies them first, those of caches last."""
    weights = sorted(precision.weights.items())
    return (precision.activations, precision.hidden, *weights, precision.kv, precision.attention)
