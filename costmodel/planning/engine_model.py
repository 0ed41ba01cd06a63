"""A model under a layout as one engine of a search runs it, and which layouts have a part of it in common.

Placing does not know of devices and formats, and stages do not change what a device holds of a layer: both are done
once for all engines that agree in the rest.
"""

from collections.abc import Callable, Collection, Sequence
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
from costmodel.overlap import exposed_parts
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
        return numpy.asarray(self.seconds(exposed_parts(hops)), dtype=numpy.float64)

    def seconds(self, run: list[Kernel]) -> Quantity:
        """Expected seconds of kernels."""
        return total_seconds(run, self.served.hardware, self.calibration)

    def parts(self) -> list["Part"]:
        """The engine's kernels by what they depend on: mixers, which see caches, experts, which are spread, and the
        rest, computation and communication apart."""
        model, layout, served = self.served.architecture, self.layout, self.served
        groups = tuple(dict.fromkeys(self.decode.model.part.groups))
        mixers = tuple(name for name in groups if name in model.mixers)
        experts = tuple(name for name in groups if name not in mixers and _has_experts(model, name))
        rest = tuple(name for name in groups if name not in mixers and name not in experts)
        formats, degrees = formats_of(served.precision), (layout.tp, layout.cp)
        plain: tuple[Any, ...] = (served.precision.activations,)
        spread: tuple[Any, ...] = (layout.ep > 1, layout.ep > layout.tp)
        if layout.cp > 1:
            # Devices that share the tokens of a prompt have whole ones: what is alike depends on how many there are.
            plain, spread = (*plain, *degrees), (layout.ep,)
        found = [
            self._computed(mixers, (*degrees, *formats), plain),
            self._computed(rest, (*degrees, *formats[:-2]), plain),
            self._computed(experts, (*degrees, layout.ep, *formats[:-2]), (*plain, *spread)),
        ]
        if layout.gpus > 1:
            ways, context, among = self._among("ways", "cp", "ep")
            # Tokens that travel to experts are summed otherwise before.
            sent = (*degrees, ways, context, layout.ep > layout.tp, layout.ep > layout.tp * layout.cp)
            kinds = (*plain, *spread, layout.tp > 1)
            # Sums are of hidden states; gathered caches have a format of their own, and so have tokens sent to experts.
            summed = formats if layout.cp > 1 else (served.precision.hidden,)
            found.append(self._sent((*mixers, *rest), (*sent, *summed), kinds))
            found.append(self._sent(experts, (*sent, layout.ep, among, *formats[:-2]), kinds))
        return [part for part in found if part.groups]

    def _computed(self, groups: tuple[str, ...], depends: tuple[Any, ...], kinds: tuple[Any, ...]) -> "Part":
        return Part("computed", groups, partial(self.device_kernels, only=groups), depends, kinds)

    def _sent(self, groups: tuple[str, ...], depends: tuple[Any, ...], kinds: tuple[Any, ...]) -> "Part":
        return Part("sent", groups, partial(self.sent, only=groups), depends, kinds)

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


def _has_experts(model: Architecture, name: str) -> bool:
    block = model.ffns.get(name)
    return block is not None and isinstance(block.dims, moe.Dims)


class Part(NamedTuple):
    """The computation or the communication ("computed", "sent") of some groups of kernels.

    depends: what the kernels depend on beside the device; kinds: what it depends on which of them are token-wise.
    """

    what: str
    groups: tuple[str, ...]
    kernels: Callable[[Step], list[Kernel]]
    depends: tuple[Any, ...]
    kinds: tuple[Any, ...]


def formats_of(precision: Precision) -> tuple[Any, ...]:
    """Number formats, those of weights and what multiplies them first, those of caches last."""
    weights = sorted(precision.weights.items())
    return (precision.activations, precision.hidden, *weights, precision.kv, precision.attention)
