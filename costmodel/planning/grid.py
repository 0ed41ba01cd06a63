"""Chunk budgets by batch sizes, and the steps at which a search prices kernels for them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy

from costmodel.parallel.memory import last_chunk
from costmodel.planning.engine_model import Array
from costmodel.planning.kernel_kinds import DECODING, PROMPTS
from costmodel.planning.side_by_side import Indices
from costmodel.planning.workload import Workload
from costmodel.step import Step

POINTS = 64
"""Batch sizes of an engine, from 1 to the most that it can hold, in equal ratios."""


SAMPLE = 32.0
"""Sequences that decode where the groups of a model's kernels are compared with one another."""


class Steps(NamedTuple):
    """Many steps, of which some are the same. different: each once, a step of arrays; place: of each among these."""

    different: Step
    place: Indices

    @property
    def all(self) -> Step:
        """Each in its place."""
        B, S, P = (numpy.broadcast_to(part, self.different.tokens.shape)[self.place] for part in self.different[:3])
        return self.different._replace(B=B, S=S, P=P)


def steps(every: Step) -> Steps:
    """Steps of arrays, each that is different once.

    >>> found = steps(decode_step([2, 1, 2], 1, 5))
    >>> found.different.B.tolist(), found.place.tolist(), found.all.P.tolist()
    ([1.0, 2.0], [1, 0, 1], [5.0, 5.0, 5.0])
    """
    columns, place = numpy.unique(numpy.stack(numpy.broadcast_arrays(*every[:3])), axis=1, return_inverse=True)
    # What is one number for all steps stays one: formulas are faster with it.
    B, S, P = (column if numpy.ndim(part) else part for part, column in zip(every[:3], columns, strict=True))
    return Steps(every._replace(B=B, S=S, P=P), place.ravel())


class Grid(NamedTuple):
    """Chunk budgets (rows) by batch sizes n (columns), and the steps at which kernels are priced for it.

    left: tokens that a budget leaves beside the n − 1 others. chunks: iterations that a prompt takes. together: how
    many short prompts share an iteration. tokens, rows: steps of as many tokens, and of as many sampled positions, as
    three iterations have, one after another: n sequences decode, n − 1 do, and n − 1 beside a chunk. decoding: steps of
    n sequences. prompts: of chunks. At the end of all but the last stands a step in which `SAMPLE` sequences decode.

    The same kernels are asked for more at further steps: among the different ones of decoding and of prompts, compared
    has the places of `DECODING` and of `PROMPTS`; among those of prompts, largest has those of `chunk_step`.
    """

    n: Array
    left: Array
    chunks: Array
    together: Array
    tokens: Steps
    rows: Steps
    decoding: Steps
    prompts: Steps
    compared: tuple[Indices, Indices]
    largest: Indices


def grid(work: Workload, budgets: Sequence[int], most: int, draft_tokens: int, pace: float) -> Grid:
    """The grid up to so many sequences. pace: tokens that a sequence gains in an iteration."""
    n = numpy.unique(numpy.round(numpy.geomspace(1, max(most, 1), POINTS)))
    S, budget, sample = float(draft_tokens + 1), numpy.array(budgets, dtype=numpy.float64), numpy.array([SAMPLE])
    left = budget[:, None] - (n - 1.0) * S
    chunks = numpy.ceil(work.computed / numpy.clip(left, 1.0, work.computed))
    size = work.computed / chunks
    # Short prompts share iterations: as many as arrive in one while n sequences are kept, if they fit.
    together = numpy.clip(n * pace / max(work.output - 1.0, 1.0), 1.0, numpy.maximum(left / size, 1.0))
    together = numpy.where(chunks > 1, 1.0, together)
    beside, least = (n - 1.0) * S, numpy.maximum(n - 1.0, 1.0)
    tokens, rows = (
        decode_step(numpy.concatenate([n * S, least * S, (beside + chunk).ravel(), sample]), 1.0, 0.0)
        for chunk in (together * size, together)
    )
    every = decode_step(n, S, max(work.context - S, 0.0))
    one = decode_step(sample, 1.0, max(int(work.context) - 1, 0))
    chunk = Step(
        B=together.ravel(), S=size.ravel(), P=numpy.maximum(work.position - size / 2, 0.0).ravel(), phase="prefill"
    )
    largest = chunk_step(budgets, work.longest)
    decoding, prompts = (
        steps(_one_after_another(every, one, DECODING)),
        steps(_one_after_another(chunk, largest, PROMPTS)),
    )
    N, C = len(n) + 1, chunks.size
    return Grid(
        n,
        left,
        chunks,
        together,
        steps(tokens),
        steps(rows),
        decoding._replace(place=decoding.place[:N]),
        prompts._replace(place=prompts.place[:C]),
        (decoding.place[N:], prompts.place[C + len(budgets) :]),
        prompts.place[C : C + len(budgets)],
    )


def chunk_step(budgets: Sequence[int], longest: int) -> Step:
    """The last chunk of the longest prompt, for each budget."""
    tokens = numpy.minimum(numpy.array(budgets, dtype=numpy.float64), longest)
    return decode_step(*last_chunk(longest, tokens)[:3])._replace(phase="prefill")


def decode_step(B: Any, S: Any, P: Any) -> Step:
    """A step of arrays."""
    B, S, P = (numpy.asarray(value, dtype=numpy.float64) for value in (B, S, P))
    return Step(B=B, S=S, P=P, phase="decode")


def _one_after_another(*every: Step) -> Step:
    """Steps of arrays as one."""
    columns = (numpy.stack(numpy.broadcast_arrays(*step[:3])) for step in every)
    B, S, P = numpy.concatenate(list(columns), axis=1)
    return every[0]._replace(B=B, S=S, P=P)
