"""The slowest stage of a pipeline, whose pace is that of all."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy

from costmodel.architecture import Architecture
from costmodel.parallel.pipeline import Cut
from costmodel.planning.engine_model import Array


class Shares(NamedTuple):
    """Of the different stages of a pipeline (rows), the parts of each group's kernels that they have, and how many
    stages are like each."""

    groups: tuple[str, ...]
    parts: Array
    times: Array


def stage_shares(model: Architecture, cuts: Sequence[Cut]) -> Shares:
    """The parts of the groups in the stages of a pipeline."""
    every = {name: count for counts in model.counts() for name, count in counts.items()}
    groups = ("embedding", *every, "head")
    parts = []
    for cut in cuts:
        part = model._replace(layers=cut.layers)
        here = {name: count for counts in part.counts() for name, count in counts.items()}
        blocks = [here.get(name, 0) / count for name, count in every.items()]
        parts.append([float(cut.embeds), *blocks, float(cut.predicts)])
    return Shares(groups, numpy.array(parts), numpy.array([float(cut.times) for cut in cuts]))


def stretch(shares: Shares, samples: Mapping[str, Array]) -> Array:
    """How much longer the slowest stage of a pipeline takes than the mean one: the pace of all.

    samples: seconds of each group, of several splits of the layers.
    """
    none = numpy.zeros_like(next(iter(samples.values())))
    groups = zip(shares.parts.T[..., None], (samples.get(name, none) for name in shares.groups), strict=True)
    seconds = sum(part * of_group for part, of_group in groups)
    total = sum(times * of_stage for times, of_stage in zip(shares.times, seconds, strict=True))
    return seconds.max(axis=0) * shares.times.sum() / total
