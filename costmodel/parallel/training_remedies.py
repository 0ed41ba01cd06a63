"""What would make a training step fit that does not: sharing, recomputation, smaller microbatches, more devices."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

from costmodel.architecture import Architecture
from costmodel.errors import BadInput, Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import RECOMPUTED, ZERO, Options
from costmodel.parallel.placement import place
from costmodel.parallel.remedies import Remedy
from costmodel.parallel.training import check, training_memory
from costmodel.step import Precision, Step

Changes = dict[str, int | str]
"""Fields of `Training` with new values."""
DOUBLINGS = 3
"""How often a degree is doubled alone before it is given up."""
MOST_DOUBLINGS = 10
"""How often one is doubled where options do what they can."""


class _Question(NamedTuple):
    """What is to fit, whatever the layout and the options."""

    architecture: Architecture
    step: Step
    precision: Precision
    hardware: Hardware

    def fitting(self, text: str, layout: Layout, options: Options) -> Iterator[Remedy]:
        """The change, if a step fits with it."""
        if layout.dp > self.step.B:
            return
        try:
            placed = place(self.architecture, layout, "train", options)
            check(placed)
        except (Impossible, BadInput):
            return
        uses = [
            training_memory(placed, stage, self.step, self.precision, self.hardware).total for stage in placed.stages
        ]
        if (needed := max(map(float, uses))) <= self.hardware.memory.hbm.capacity:
            yield Remedy(text, needed)


def training_remedies(
    architecture: Architecture,
    layout: Layout,
    step: Step,
    precision: Precision,
    hardware: Hardware,
    options: Options,
    microbatch: int | None = None,
) -> Iterator[Remedy]:
    """The least of each change with which a step fits: of options, which need no more devices, then of degrees.

    Where no option alone is enough, all of them together; where nothing is, these with as many more devices as it then
    takes. microbatch: in which the step runs now (None: that of the options).
    """
    asked = _Question(architecture, step, precision, hardware)
    how = options.training
    sharing = layout.dp * layout.cp > 1
    changes: tuple[list[Changes], ...] = (
        [{"zero": stage} for stage in ZERO if stage > how.zero and sharing],
        [{"recompute": what} for what in RECOMPUTED[RECOMPUTED.index(how.recompute) + 1 :]],
        [{"microbatch": size} for size in _halves(how.microbatch if microbatch is None else microbatch)],
    )
    found = [remedy for each in changes for remedy in _first(_trained(asked, layout, options, one) for one in each)]
    if layout.tp > 1 and not options.sequence_parallel:
        found += asked.fitting("--sequence-parallel", layout, options._replace(sequence_parallel=True))
    most: Changes = {"recompute": RECOMPUTED[-1], "microbatch": 1}
    shared: Changes = {"zero": ZERO[-1], **most}
    if not found:
        found += _trained(asked, layout, options, shared if sharing else most)
    for trials in _larger(asked, layout, DOUBLINGS, shared=how.zero > 0):
        found += _first(asked.fitting(str(trial), trial, options) for trial in trials)
    if not found:
        for trials in _larger(asked, layout, MOST_DOUBLINGS, shared=True):
            found += _first(_trained(asked, trial, options, shared, f"{trial} ") for trial in trials)
    yield from found


def _first(trials: Iterable[Iterator[Remedy]]) -> Iterator[Remedy]:
    """The first of several changes, from the least to the most, with which a step fits."""
    return islice(chain.from_iterable(trials), 1)


def _trained(
    asked: _Question, layout: Layout, options: Options, changes: Changes, before: str = ""
) -> Iterator[Remedy]:
    """Changes to how a training step is run, if it fits with them."""
    text = before + " ".join(f"--{name} {value}" for name, value in changes.items())
    changed = options.training._replace(**changes)  # type: ignore[arg-type]
    return asked.fitting(text, layout, options._replace(training=changed))


def _halves(size: int) -> list[int]:
    """Smaller microbatches, the largest first.

    >>> _halves(6)
    [3, 1]
    """
    return [size >> power for power in range(1, size.bit_length())]


def _larger(asked: _Question, layout: Layout, doublings: int, shared: bool) -> Iterator[list[Layout]]:
    """Layouts of more devices, by the degree that grows: more ranks of dp only help where they share something out."""
    degrees = ["tp", "pp", "cp", *(["dp"] if shared else [])]
    for degree in degrees:
        yield [layout._replace(**{degree: getattr(layout, degree) * 2**power}) for power in range(1, doublings + 1)]
    if any(isinstance(block.dims, moe.Dims) for block in asked.architecture.ffns.values()):
        sizes = [layout.ep * 2**power for power in range(1, doublings + 1)]
        yield [layout._replace(ep=size, dp=max(layout.dp, size // layout.tp)) for size in sizes]
