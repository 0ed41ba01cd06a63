"""Seconds of one engine iteration: tabulated once from the kernels' formulas, then looked up in plain Python.

An iteration holds decoding sequences, chunks of prompts, or both. Its kernels are of three kinds, which are found by
comparing the lists of decode and prefill steps:

- token-wise: the same work for n sequences of one token as for one sequence of n (products with weights, experts,
  norms, collectives). A mixed iteration runs them once, on the sum of the tokens, so weights are read once;
- row-wise: the output head, which runs on every decoded token and on one position of every chunk;
- sequence-wise: attention, scans, convolutions. Decode and prefill have their own kernels, whose times add up.

So T(n sequences at context L, m chunks of c tokens after p cached ones) =
tokens(n·S + m·c) + rows(n·S + m) + decode(n, L) + prefill(m, c, p) + host, and every term is a table of its own.
Attention's times stand at the batch's mean context, which is exact for work that is linear in it. Of communication that
is meant to hide, the terms hold nothing; what finds no computation to hide behind in any of them is added
(`costmodel.overlap.InParts`), from tables of the same kind.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel
from costmodel.overlap import InParts, in_parts, is_meant_to_hide
from costmodel.planning.kernel_kinds import KernelSource, kinds, named
from costmodel.step import Step

Pricing = Callable[[Sequence[Kernel]], Quantity]
"""Seconds of kernels, element by element where the step was made of arrays."""

EXACT = 1024
"""Token counts up to which every one has an entry."""

TILE = 128
"""Above that, products jump where a tile of rows is full."""
FEW_TILES = 8
"""Of so many, the next makes an iteration noticeably longer."""

MEMORY = 1 << 16
"""Results that are kept, so that a lookup of the same iteration costs nothing."""

Array = NDArray[numpy.float64]


class HostTime(NamedTuple):
    """What an engine adds to the kernels, in seconds.

    step_s, layer_s, moe_layer_s: to every iteration, for every layer of it, and more for a layer of experts.
    product_s: to every product with quantised activations; below 0 where serving fuses a quantisation that the
    kernels' measurements ran on its own. sequence_s: for every sequence that gets a token (sampling, detokenizing,
    streaming). front_end_s: on the way between a client and the queue, there and back (HTTP, tokenizer, processes,
    stream); the engine's iterations do not wait for it, but each client's next request does.
    """

    step_s: float = 0.0
    layer_s: float = 0.0
    moe_layer_s: float = 0.0
    front_end_s: float = 0.0
    product_s: float = 0.0
    sequence_s: float = 0.0


class Line:
    """A function of one variable, linear between nodes and beyond the last two."""

    __slots__ = ("nodes", "values")

    def __init__(self, nodes: Sequence[float], values: Sequence[float]) -> None:
        self.nodes, self.values = list(nodes), list(values)

    def at(self, x: float) -> float:
        """The value at x."""
        j, share = cell(self.nodes, x)
        return self.values[j] + share * (self.values[j + 1] - self.values[j])


def cell(nodes: Sequence[float], x: float) -> tuple[int, float]:
    """The cell that x lies in, and how far in it, from 0 to 1 (outside of the nodes: of the outermost cells).

    >>> cell([1, 2, 4], 3), cell([1, 2, 4], 6)
    ((1, 0.5), (1, 2.0))
    """
    j = bisect_right(nodes, x) - 1
    if j < 0:
        j = 0
    elif j > len(nodes) - 2:
        j = len(nodes) - 2
    low = nodes[j]
    return j, (x - low) / (nodes[j + 1] - low)


class StepTimes:
    """Seconds of an engine's iterations, by lookup.

    new_tokens: tokens that a decoding sequence processes in an iteration, 1 or, where drafts are verified, one more
    than the drafts. host_s: host time of an iteration, sequence_s of each sequence in it.
    contexts: the nodes between which the time of a decode iteration is linear in the context. behind: the same tables
    of `InParts.short` and of `InParts.held`, where communication is meant to hide.
    """

    def __init__(
        self,
        *,
        new_tokens: int,
        host_s: float = 0.0,
        sequence_s: float = 0.0,
        tokens: tuple[Line, Line],
        rows: Line,
        decode: tuple[list[float], list[float], list[list[float]]],
        prefill: tuple[list[float], list[float], list[float], list[list[list[float]]]],
        behind: "tuple[StepTimes, StepTimes] | None" = None,
    ) -> None:
        self.new_tokens, self.host_s, self.sequence_s = new_tokens, host_s, sequence_s
        self.decode_tokens, self.prefill_tokens = tokens
        self.rows, self.behind = rows, behind
        self.batches, self.contexts, self.decode_table = decode
        self.chunks, self.lengths, self.prefixes, self.prefill_table = prefill
        self._decode_rows: dict[int, list[float]] = {}
        self._shared: dict[int, float] = {}
        self._prefill_known: dict[tuple[float, float, float], float] = {}

    def with_host(self, host_s: float, sequence_s: float) -> "StepTimes":
        """The same kernels with another host."""
        return StepTimes(
            new_tokens=self.new_tokens,
            host_s=host_s,
            sequence_s=sequence_s,
            tokens=(self.decode_tokens, self.prefill_tokens),
            rows=self.rows,
            decode=(self.batches, self.contexts, self.decode_table),
            prefill=(self.chunks, self.lengths, self.prefixes, self.prefill_table),
            behind=self.behind,
        )

    def decode_row(self, sequences: int) -> list[float]:
        """Seconds of an iteration in which so many sequences decode, at every node of `contexts`."""
        row = self._decode_rows.get(sequences)
        if row is None:
            j, share = cell(self.batches, sequences)
            low, high = self.decode_table[j], self.decode_table[j + 1]
            rest = self._shared_s(sequences)
            row = [a + share * (b - a) + rest for a, b in zip(low, high, strict=True)]
            if self.behind is not None:
                short, held = (times.decode_row(sequences) for times in self.behind)
                row = [seconds + max(more) for seconds, *more in zip(row, short, held, strict=True)]
            self._decode_rows[sequences] = row
        return row

    def _shared_s(self, sequences: int) -> float:
        found = self._shared.get(sequences)
        if found is None:
            tokens = sequences * self.new_tokens
            found = self.decode_tokens.at(tokens) + self.rows.at(tokens) + self.host_s + sequences * self.sequence_s
            self._shared[sequences] = found
        return found

    def _of_sequences_s(self, sequences: int, context: float) -> float:
        """Sequence-wise seconds of decoding."""
        j, share = cell(self.batches, sequences)
        k, along = cell(self.contexts, context)
        low, high = self.decode_table[j], self.decode_table[j + 1]
        ends = [low[at] + share * (high[at] - low[at]) for at in (k, k + 1)]
        return ends[0] + along * (ends[1] - ends[0])

    def decode_s(self, sequences: int, context: float) -> float:
        """Seconds in which so many sequences decode; context: tokens in each after the step, on average."""
        row = self.decode_row(sequences)
        j, share = cell(self.contexts, context)
        return row[j] + share * (row[j + 1] - row[j])

    def step_s(self, sequences: int, context: float, chunks: int, length: float, prefix: float) -> float:
        """Seconds of an iteration of decoding sequences and of chunks of prompts.

        length: new tokens of a chunk, prefix: tokens before it that are cached, both on average over the chunks.
        """
        if not chunks:
            return self.decode_s(sequences, context)
        decoded = sequences * self.new_tokens
        seconds = self.prefill_tokens.at(decoded + chunks * length) + self.rows.at(decoded + chunks)
        seconds += self.host_s + (sequences + chunks) * self.sequence_s
        if self.behind is not None:
            seconds += max(times.step_s(sequences, context, chunks, length, prefix) for times in self.behind)
            seconds += self._of_sequences_s(sequences, context) if sequences else 0.0
        elif sequences:
            seconds += self.decode_s(sequences, context) - self._shared_s(sequences)
        return seconds + self._prefill_s(chunks, length, prefix)

    def prefill_s(self, tokens: int, prefix: int = 0) -> float:
        """Seconds of an iteration with one chunk and nothing else."""
        return self.step_s(0, 0.0, 1, tokens, prefix)

    def _prefill_s(self, chunks: int, length: float, prefix: float) -> float:
        key = (chunks, length, prefix)
        found = self._prefill_known.get(key)
        if found is None:
            i, a = cell(self.chunks, chunks)
            j, b = cell(self.lengths, length)
            k, c = cell(self.prefixes, prefix)
            found = 0.0
            for plane, of_plane in ((self.prefill_table[i], 1.0 - a), (self.prefill_table[i + 1], a)):
                for line, of_line in ((plane[j], 1.0 - b), (plane[j + 1], b)):
                    found += of_plane * of_line * (line[k] + c * (line[k + 1] - line[k]))
            if len(self._prefill_known) >= MEMORY:
                self._prefill_known.clear()
            self._prefill_known[key] = found
        return found


def mean_chunk(chunks: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(length, prefix) of the chunk that stands for several: as many tokens and (query, key) pairs in all.

    >>> mean_chunk([(100, 0), (100, 0)]), mean_chunk([(64, 512)])
    ((100.0, 0.0), (64, 512))
    """
    if len(chunks) == 1:
        return chunks[0]
    tokens = sum(length for length, _ in chunks)
    pairs = sum(length * (prefix + length / 2) for length, prefix in chunks)
    length = tokens / len(chunks)
    return length, pairs / tokens - length / 2


def tabulate(
    kernels: KernelSource,
    seconds: Pricing,
    *,
    most_sequences: int,
    most_context: int,
    most_tokens: int,
    new_tokens: int = 1,
    draft: KernelSource | None = None,
    host_s: float = 0.0,
    sequence_s: float = 0.0,
) -> StepTimes:
    """The tables up to so many decoding sequences, tokens in a sequence, and tokens in an iteration.

    draft: the kernels of a draft model, which proposes new_tokens − 1 tokens one after another before each
    verification. host_s, sequence_s: see `StepTimes`. Beyond the tables, times go on linearly.
    """
    kind = kinds(kernels)

    def chosen(step: Step, wanted: str) -> list[Kernel]:
        return [kernel for key, kernel in named(kernels(step)).items() if kind.get(key, "") == wanted]

    T = numpy.array(_token_nodes(max(most_tokens, most_sequences * new_tokens) + most_sequences))
    n, L = numpy.array(_batch_nodes(most_sequences)), numpy.array(_nodes(1, max(most_context, 2 * new_tokens), 1.1))
    m = numpy.array(_nodes(1, max(min(most_sequences, most_tokens), 2), 1.5))
    c, p = numpy.array(_length_nodes(most_tokens)), numpy.array([0.0, *_nodes(32, max(most_context, 64), 1.25)])
    L = numpy.unique(numpy.maximum(L, float(new_tokens)))
    S = numpy.float64(new_tokens)
    one_token, no_prefix = numpy.float64(1.0), numpy.float64(0.0)
    decoding = Step(B=n[:, None], S=S, P=L[None, :] - S, phase="decode")
    drafting = decoding._replace(S=one_token)
    drafts = draft(drafting) if draft is not None and new_tokens > 1 else ()
    grid = Step(B=m[:, None, None], S=c[None, :, None], P=p[None, None, :], phase="prefill")
    as_decode = Step(B=T, S=one_token, P=no_prefix, phase="decode")
    as_prefill = Step(B=one_token, S=T, P=no_prefix, phase="prefill")
    of_tokens = chosen(as_decode, "token"), chosen(as_prefill, "token")
    of_rows, of_decode, of_prefill = chosen(as_decode, "row"), chosen(decoding, ""), chosen(grid, "")

    def over(run: Sequence[Kernel], *shape: int) -> InParts:
        parts = (numpy.broadcast_to(part, shape) for part in in_parts(run, seconds))
        return InParts(*(numpy.array(part, dtype=numpy.float64) for part in parts))

    tokens = [over(run, len(T)) for run in of_tokens]
    rows, decode = over(of_rows, len(T)), over(of_decode, len(n), len(L))
    if drafts:
        proposed = over(drafts, len(n), len(L))
        decode = decode.plus(InParts(*((new_tokens - 1) * part for part in proposed)))
    prefill = over(of_prefill, len(m), len(c), len(p))

    def tables(part: str, **more: Any) -> StepTimes:
        def listed(parts: InParts) -> Any:
            return getattr(parts, part).tolist()

        return StepTimes(
            new_tokens=new_tokens,
            tokens=(Line(T.tolist(), listed(tokens[0])), Line(T.tolist(), listed(tokens[1]))),
            rows=Line(T.tolist(), listed(rows)),
            decode=(n.tolist(), L.tolist(), listed(decode)),
            prefill=(m.tolist(), c.tolist(), p.tolist(), listed(prefill)),
            **more,
        )

    hides = any(is_meant_to_hide(kernel) for kernel in (*of_tokens[0], *of_decode, *of_prefill))
    behind = (tables("short"), tables("held")) if hides else None
    return tables("exposed", host_s=host_s, sequence_s=sequence_s, behind=behind)


def _nodes(first: int, last: int, ratio: float) -> list[float]:
    """Whole numbers that grow by the ratio, at least by 1."""
    nodes: list[float] = [float(first)]
    while nodes[-1] < last:
        nodes.append(float(min(max(int(nodes[-1] * ratio), int(nodes[-1]) + 1), last)))
    return nodes


def _batch_nodes(most: int) -> list[float]:
    return sorted(
        {*map(float, range(1, min(max(most, 2), 64) + 1)), *_nodes(min(64, max(most, 2)), max(most, 2), 1.04)}
    )


def _token_nodes(most: int) -> list[float]:
    """Every number, then the ends of whole tiles and the first row of the next."""
    jumps: list[Any] = [edge + first for edge in range(EXACT, most + TILE, TILE) for first in (0, 1)]
    return sorted({*map(float, range(1, EXACT + 1)), *map(float, jumps)})


def _length_nodes(most: int) -> list[float]:
    """Steps of an eighth up to a tile, then whole tiles; one more too, where the next begins, while they are few."""
    small = [float(x) for x in (1, 2, 4, *range(8, 64, 8), *range(64, TILE, 16)) if x < max(most, 2)]
    tiles = [x * TILE for x in _nodes(1, max(-(-most // TILE), 1), 1.12)]
    begun = [tokens + 1.0 for tokens in tiles if tokens < min(most, FEW_TILES * TILE + 1)]
    return sorted({*small, *tiles, *begun})
