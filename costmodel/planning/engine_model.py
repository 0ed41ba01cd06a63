"""A model under a layout as one engine of a search runs it, or under several layouts side by side.

Placing does not know of devices and formats, and stages do not change what a device holds of a layer: both are done
once for all engines that agree in the rest.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.algebra import Quantity
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.generation._rows import one_layer
from costmodel.generation.speculative import tokens_per_verification
from costmodel.kernels.base import Kernel
from costmodel.overlap import exposed_parts
from costmodel.parallel.exchanges import Exchanger, between_stages
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import Options
from costmodel.parallel.pipeline import Cut
from costmodel.parallel.placement import Placed, in_stages, local_step, place_layers
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

    def with_stages(self, pp: int) -> "Places":
        """The same parts of layers as devices of one of so many stages send them, whatever these hold."""
        prefill, decode = (of._replace(layout=of.layout._replace(pp=pp)) for of in (self.prefill, self.decode))
        return self._replace(prefill=prefill, decode=decode)

    def only(self, groups: Collection[str]) -> "Places":
        """The blocks of these groups alone."""
        return self._replace(prefill=_only(self.prefill, groups), decode=_only(self.decode, groups), drafting=None)


def places(model: Architecture, layout: Layout, options: Options, drafts: bool) -> Places:
    """A model under a layout, not yet in stages. Raises Impossible where its layers cannot be split so."""
    return Places(
        place_layers(model, layout, "prefill", options),
        place_layers(model, layout, "decode", options),
        place_layers(one_layer(model), layout, "decode", options) if drafts else None,
    )


def _only(placed: Placed, groups: Collection[str]) -> Placed:
    def part(model: Architecture) -> Architecture:
        mixers, ffns = (
            {name: block for name, block in blocks.items() if name in groups} for blocks in (model.mixers, model.ffns)
        )
        return model._replace(mixers=mixers, ffns=ffns)

    stage = placed.model
    return placed._replace(model=stage._replace(part=part(stage.part), cores=stage.cores and part(stage.cores)))


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


def formats_of(precision: Precision) -> tuple[Any, ...]:
    """Number formats, those of weights and what multiplies them first, those of caches last."""
    weights = sorted(precision.weights.items())
    return (precision.activations, precision.hidden, *weights, precision.kv, precision.attention)
