"""What would make a step fit that does not: more devices, or fewer bits."""

from collections.abc import Iterator
from typing import NamedTuple

from costmodel.architecture import Architecture
from costmodel.errors import BadInput, Impossible
from costmodel.ffns import moe
from costmodel.hardware import Hardware
from costmodel.parallel.layout import Layout
from costmodel.parallel.memory import memory_by_stage
from costmodel.parallel.options import SERIAL, Options
from costmodel.parallel.placement import cache_bytes, place
from costmodel.step import Precision, Step

DOUBLINGS = 7
"""How often a degree is doubled before it is given up."""
BLOCKS = ("mixer", "ffn", "experts", "shared_experts")
"""The roles of weights that quantisers narrow."""


class Remedy(NamedTuple):
    """A change with which a step fits, and the bytes that the fullest device then needs at most."""

    change: str
    memory_bytes: float


def remedies(
    architecture: Architecture,
    layout: Layout,
    step: Step,
    precision: Precision,
    hardware: Hardware,
    taken: float | None = None,
    options: Options = SERIAL,
) -> Iterator[Remedy]:
    """The smallest tp, pp and ep, each doubled alone, with which a step fits, and narrower weights or caches.

    taken: bytes of a device that are not for weights and caches, where that is known; else they are counted for an
    engine (`costmodel.parallel.memory`).
    """
    room = hardware.memory.hbm.capacity

    def needed(trial: Layout, formats: Precision) -> float | None:
        try:
            placed = place(architecture, trial, step.phase, options)
        except (Impossible, BadInput):
            return None
        if taken is None:
            return max(float(use.total) for _, use in memory_by_stage(placed, step, formats, hardware))
        kept = [
            float(stage.part.weight_bytes(formats))
            + (0.0 if step.bidirectional else float(cache_bytes(placed, stage, step, formats)))
            for stage in placed.stages
        ]
        return max(kept) + taken

    experts = any(isinstance(block.dims, moe.Dims) for block in architecture.ffns.values())
    for degree in ("tp", "pp", "ep") if experts else ("tp", "pp"):
        for power in range(1, DOUBLINGS + 1):
            size = 2**power * getattr(layout, degree)
            trial = layout._replace(**{degree: size})
            if degree == "ep":
                trial = trial._replace(dp=max(layout.dp, size // layout.tp))
            found = needed(trial, precision)
            if found is not None and found <= room:
                yield Remedy(str(trial), found)
                break
    for text, formats in _narrower(precision, hardware):
        found = needed(layout, formats)
        if found is not None and found <= room:
            yield Remedy(text, found)
            break


def _narrower(precision: Precision, hardware: Hardware) -> Iterator[tuple[str, Precision]]:
    """Formats with fewer bytes, the widest first, that the device multiplies or unpacks."""
    for dtype in ("fp8", "int4"):
        if dtype == "fp8" and not hardware.has_engine("fp8"):
            continue
        others = {role: of for role, of in precision.weights.items() if role not in BLOCKS}
        weights = {**dict.fromkeys(BLOCKS, dtype), **others}
        yield f"{dtype} weights", precision._replace(weights=weights)
        yield f"{dtype} weights and fp8 cache", precision._replace(weights=weights, kv="fp8")
