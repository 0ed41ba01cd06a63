"""Which layers the stages of a pipeline have.

Source: arXiv:2104.04473 (pipeline); vllm-project/vllm, distributed/utils.py (get_pp_indices).
"""

from collections import Counter
from typing import Any, NamedTuple

from costmodel.architecture import Architecture, Mixers
from costmodel.errors import Impossible


class Cut(NamedTuple):
    """The layers of a stage, whether it has the embedding and the head, how many are like it, and the first's place."""

    layers: tuple[tuple[Mixers, str | None], ...]
    embeds: bool
    predicts: bool
    times: int
    place: int


def stage_cuts(architecture: Architecture, pp: int) -> tuple[Cut, ...]:
    """The different stages of so many. Raises Impossible where there are fewer layers."""
    if pp > len(architecture.layers):
        raise Impossible(f"pp{pp}: {architecture.name} has {len(architecture.layers)} layers")
    found: dict[tuple[Any, ...], Cut] = {}
    start = 0
    for index, size in enumerate(stage_sizes(len(architecture.layers), pp)):
        embeds, predicts = index == 0, index == pp - 1
        layers = architecture.layers[start : start + size]
        start += size
        key = (tuple(sorted(Counter(layers).items(), key=str)), embeds, predicts)
        before = found.get(key)
        found[key] = (
            Cut(layers, embeds, predicts, 1, index) if before is None else before._replace(times=before.times + 1)
        )
    return tuple(found.values())


def stage_sizes(layers: int, stages: int) -> list[int]:
    """Layers of each stage: what is left over goes to the stages before the last, which has the head to do.

    Source: vllm-project/vllm, distributed/utils.py (get_pp_indices).

    >>> stage_sizes(61, 4), stage_sizes(5, 4)
    ([15, 15, 16, 15], [1, 1, 2, 1])
    """
    sizes = [layers // stages] * stages
    for index in range(layers % stages):
        sizes[-2 - index] += 1
    return sizes
