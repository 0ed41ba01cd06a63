"""Choosing the k largest logits of every query: a radix selection, bound by reading the logits.

One thread block takes one row; each pass reads the row's logits once. The first pass makes a histogram of the
leading bits, the last collects the indices. A block of k threads (of 512 to 1024) sums the histogram up between
barriers; where the threshold's bin holds more than the k, as with equal scores, each further byte of the scores is
another round of that over what shared memory keeps. It has no gradient: the selection is piecewise constant.

SGLang's prefill scores every query against the keys of all sequences, side by side in one matrix. Where that matrix
would take more than a share of the memory, it is made and searched a chunk of queries at a time; each query of a chunk
is then a sequence of its own, with its own page table, and its thread block looks for it among all of the chunk.

Source: sgl-project/sglang, sgl-kernel/csrc/elementwise/topk.cu (32 KB of candidates, 1024 threads; the search in
`topk_transform_prefill_kernel`), jit_kernel/csrc/deepseek_v4/topk_v1.cuh (64 KB, k threads) and topk_v2.cuh (equal
scores ranked), python/sglang/srt/layers/attention/dsa/dsa_indexer.py (`_should_chunk_mqa_logits`); Alabi et al., "Fast
k-selection algorithms for graphics processing units", ACM JEA 17, 2012 (radix selection).
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum, nominal, power, where
from costmodel.hardware import Hardware
from costmodel.kernels.base import (
    L2_SHARPNESS,
    Form,
    Grid,
    Kernel,
    Parameter,
    Terms,
    Work,
    memory_seconds,
    no_backward,
    replayed_share,
    waves,
)

PASSES = 2
"""Times that a row is read: the histogram, and the collection."""

STEP = 4096
"""Logits that one thread block of 1024 threads takes in one step."""


FEWEST_THREADS, THREADS = 512, 1024
"""Threads of a block: k, between these."""

RESIDENT = 2
"""Blocks of 1024 threads that one compute unit holds at a time at most."""

REFINED = 4
"""Rounds after the first one, a byte of the scores each, where scores are equal."""

KEPT, MANY_KEPT = 4096, 8192
"""Candidates at the threshold that a thread block keeps in shared memory; the second where k < 2048."""

SHARED = 28_000
"""Candidates for which a compute unit has shared memory: 8 bytes each of 228 KB, less what blocks take beside them."""

RANKED, SPREAD = 512, 32_768
"""Candidates above k that SGLang's kernel for one row per sequence ranks among all that it keeps, where scores are
equal, and the length from which it spreads a row over several thread blocks, whose parts need no ranking."""


LOGITS_SHARE = 1 / 6
"""Of the device's memory, what the logits of one chunk may take: SGLang gives them a fifth of what is free, which on a
card that holds no weights is most of it."""


AT_ONCE, IN_CHUNKS = 1.0, 2.0
"""Values of `chunked`: whether a library scores and selects the queries of a prefill in chunks when it serves."""
CHUNKED = Parameter(
    "chunked", AT_ONCE, 0.0, AT_ONCE, IN_CHUNKS, "1", "queries of a prefill: 1 all at once, 2 in SGLang's chunks"
)

SERVED_SHARE = 0.2 * 0.15
"""Of the device's memory, what SGLang gives these logits when it serves: a fifth of what its pool of pages leaves free,
which is 15 % (`mem_fraction_static`, SGLANG_DSA_MQA_LOGITS_FREE_MEM_FRACTION)."""


class Chunks(NamedTuple):
    """Launches that rows are scored and selected in: all but the last of `rows`, which has `rest`."""

    count: Quantity
    rows: Quantity
    rest: Quantity

    @property
    def searched(self) -> Quantity:
        """Rows of its chunk that a row looks for itself among, on average; none where there is one chunk."""
        every = maximum((self.count - 1) * self.rows + self.rest, 1)
        return where(self.count > 1, ((self.count - 1) * self.rows**2 + self.rest**2) / every, 0)


class Selection(NamedTuple):
    """`rows` queries choose k each from `logits` candidates in all; bytes per logit.

    open_rows, open_logits: the rows with more than k candidates, and their candidates; the others take all that they
    have without looking at them (None: every row is open). ties: the scores are equal, as constant inputs make them.
    threads: those of a row (None: k, between 512 and 1024). ranked: equal scores are ranked, each against all that are
    kept, in place of further rounds. width: logits that a row has room for, where the keys of all sequences lie side by
    side (None: its own, and all rows are selected at once); logits_share: of the device's memory, what those of one
    chunk may take (None: SERVED_SHARE, where the library takes chunks when it serves); tables: bytes of the page tables
    that are copied out for the rows, one each, where there are chunks.
    """

    rows: Quantity
    logits: Quantity
    k: Quantity
    logit_bytes: Quantity = 4
    open_rows: Quantity | None = None
    open_logits: Quantity | None = None
    ties: bool = False
    threads: Quantity | None = None
    ranked: bool = False
    width: Quantity | None = None
    logits_share: float | None = LOGITS_SHARE
    tables: Quantity = 0

    @property
    def share(self) -> Quantity:
        """Threads of a row over 1024."""
        threads = minimum(maximum(self.k, FEWEST_THREADS), THREADS) if self.threads is None else self.threads
        return threads / THREADS

    @property
    def kept(self) -> int:
        """Candidates that shared memory keeps of a row."""
        return KEPT if nominal(self.k, 2048) >= 2048 else MANY_KEPT

    @property
    def length(self) -> Quantity:
        """Candidates of a query, on average."""
        return self.logits / maximum(self.rows, 1)

    @property
    def ranks(self) -> Quantity:
        """Share of the ranked places that equal scores fill.

        >>> [Selection(rows=1, logits=n, k=512, ranked=True).ranks for n in (512, 768, 9999, 40_000)]
        [0.0, 0.5, 1.0, 0]
        """
        more = minimum(maximum(self.length - self.k, 0), RANKED) / RANKED
        return where(self.length < SPREAD, more, 0) if self.ranked else 0

    def chunks(self, memory: float, chunked: Quantity = AT_ONCE) -> Chunks:
        """The rows selected at a time on a device with so many bytes, by a library that is so.

        >>> Selection(rows=5000, logits=1, k=1, width=2**20).chunks(48 * 2**30)
        Chunks(count=3.0, rows=2048.0, rest=904.0)
        """
        if self.width is None:
            return Chunks(1, self.rows, self.rows)
        share = SERVED_SHARE if self.logits_share is None else self.logits_share
        rows = maximum(floor_div(share * memory, self.width * self.logit_bytes), 1)
        if self.logits_share is None:
            rows = where(chunked >= IN_CHUNKS, rows, maximum(self.rows, 1))
        count = ceil_div(self.rows, rows)
        return Chunks(count, rows, self.rows - (count - 1) * rows)


def work(x: Selection) -> tuple[Work, Work]:
    """Ideal and executed work: each logit read once (executed: once per pass), k 4-byte indices per query written."""
    logits, indices = x.logits * x.logit_bytes, 4 * x.rows * x.k
    return (
        Work(read=logits, written=indices),
        Work(vector=2 * PASSES * x.logits, read=PASSES * logits, written=indices, l2=PASSES * logits),
    )


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launches + pnorm(chain of a row, rows through a unit, HBM bytes).

    A row alone is bound by its latency (block_s for each round, step_s for its logits), as many at a time as a unit
    holds (`resident`); the rows that share a unit also by what it issues, which its threads (scan_s) and its logits
    (stream_s) take. Every row is begun and written out, and one that is not open does nothing else: idle_s. Equal
    scores are refined in four more rounds, as many as shared memory keeps (tie_s), or ranked by one block (rank_s). A
    row of a chunk looks for itself (search_s), and reads its own page table, which was copied out for it before.
    """
    grid, x = kernel.grid, kernel.shape
    assert grid is not None
    units, resident, weight = hardware.compute.units, held(x, theta), theta["wave_weight"]
    rows, logits = x.rows if x.open_rows is None else x.open_rows, x.logits if x.open_logits is None else x.open_logits
    some, chunks = rows / maximum(rows, 1), x.chunks(hardware.memory.hbm.capacity, theta["chunked"])
    refined: Quantity = 0.0
    rounds = 1
    if x.ties:
        refined = minimum(logits / maximum(rows, 1), x.kept) / STEP * theta["tie_s"] / x.share
        rounds = 1 + REFINED
    search = chunks.searched / THREADS * theta["search_s"]
    written = x.rows / units * (theta["idle_s"] * x.share + search)
    issued = rounds * theta["scan_s"] * x.share + grid.chain_steps * theta["stream_s"] + refined / resident
    issued = issued + x.ranks * theta["rank_s"]
    read = passes(x, rows, logits, hardware, theta)
    missed = read / PASSES * (1.0 - replayed_share(kernel, hardware, theta))
    step = theta["step_s"] + missed * theta["miss_s"]
    latency = rounds * theta["block_s"] + grid.chain_steps * step / x.share + refined
    traffic = read * logits * x.logit_bytes + kernel.executed.written
    traffic = traffic + where(chunks.count > 1, kernel.executed.written, 0)
    copied = where(chunks.count > 1, 2 * x.tables, 0)
    launch = chunks.count * theta["launch_s"]

    def rounds_of(slots: Quantity) -> Quantity:
        """Waves of the open rows, chunk by chunk."""
        full = rows / maximum(x.rows, 1) * chunks.rows
        rest = rows - (chunks.count - 1) * full
        return (chunks.count - 1) * waves(full, slots, weight) + waves(rest, slots, weight)

    return Terms(
        vector=some * rounds_of(units) * issued + written,
        memory=memory_seconds(kernel, hardware, theta, traffic),
        chain=some * rounds_of(resident * units) * latency,
        launch=launch + copied / (hardware.memory.hbm.bandwidth * theta["memory_efficiency"]),
        overlap=theta["overlap"],
    )


def held(x: Selection, theta: Mapping[str, float]) -> Quantity:
    """Rows that a compute unit holds at a time: by their threads, and by the candidates that they keep."""
    by_threads = theta["resident"] / x.share
    return by_threads if x.threads is not None else minimum(by_threads, SHARED // x.kept)


def passes(x: Selection, rows: Quantity, logits: Quantity, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Passes that read HBM: a later one finds its row in L2 as long as all rows in flight fit there."""
    if not hardware.memory.l2.capacity:
        return PASSES
    in_flight = minimum(rows, held(x, theta) * hardware.compute.units) * logits / maximum(rows, 1) * x.logit_bytes
    fill = power(in_flight / (theta["flight_share"] * hardware.memory.l2.capacity), L2_SHARPNESS)
    return 1.0 + (PASSES - 1) * fill / (1.0 + fill)


FORM = Form(
    family="top-k",
    summary="the k largest logits of every query",
    parameters=(
        Parameter("launch_s", 2.0e-6, 0.3, 0.5e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
        Parameter("block_s", 1.5e-6, 0.5, 0.1e-6, 2e-4, "s", "latency of a row's histogram and scan in shared memory"),
        Parameter("scan_s", 0.8e-6, 0.5, 0.02e-6, 2e-5, "s", "a round of 1024 threads, in what a unit issues"),
        Parameter("step_s", 0.4e-6, 0.5, 0.02e-6, 5e-6, "s", "4096 logits of one pass by 1024 threads"),
        Parameter("miss_s", 0.5e-6, 0.4, 0.02e-6, 5e-6, "s", "what a step takes longer from HBM than from L2"),
        Parameter("stream_s", 0.3e-6, 0.4, 0.01e-6, 5e-6, "s", "4096 logits of one pass through one unit"),
        Parameter("idle_s", 0.6e-6, 0.5, 0.02e-6, 2e-5, "s", "beginning 1024 threads and writing out what they chose"),
        Parameter("search_s", 8.0e-8, 0.3, 5e-9, 1e-6, "s", "looking for a row among 1024 rows of its chunk"),
        Parameter("resident", 1.5, 0.3, 1.0, 2.0, "1", "rows of 1024 threads that a unit holds at a time"),
        Parameter("tie_s", 3.0e-6, 0.7, 0.02e-6, 5e-5, "s", "4096 equal scores at the threshold, in one thread block"),
        Parameter("rank_s", 6.5e-5, 0.3, 1e-6, 1e-3, "s", "comparing 512 equal scores with the 4096 that are kept"),
        Parameter(
            "flight_share", 0.5, 0.4, 0.1, 2.0, "1", "share of L2 in which a second pass finds the rows in flight"
        ),
        Parameter("memory_efficiency", 0.8, 0.15, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
        CHUNKED,
        Parameter("l2_share", 0.72, 0.2, 0.1, 1.0, "1", "share of L2 that a replay finds filled"),
        Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's"),
        Parameter("wave_weight", 0.5, 0.4, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
        Parameter("overlap", 3.0, 0.2, 1.5, 8.0, "1", "exponent of the p-norm"),
    ),
    terms=terms,
    backward=no_backward,
    sources=("sgl-project/sglang, sgl-kernel/csrc/elementwise/topk.cu",),
    # sgl-project/sglang, layers/attention/dsa/dsa_indexer.py (`_get_topk_ragged`).
    built={"sglang": {"chunked": IN_CHUNKS}},
    model_spread=0.35,
)


def top_k(name: str, x: Selection) -> Kernel:
    """The selection kernel.

    >>> top_k("t", Selection(rows=2, logits=2 * 1024, k=64)).work.hbm_bytes  # 4 · 2048 in, 4 · 2 · 64 out
    8704
    """
    ideal, executed = work(x)
    # Rows differ in length; over many waves the mean decides, and in one wave of decode they are alike.
    rows, logits = x.rows if x.open_rows is None else x.open_rows, x.logits if x.open_logits is None else x.open_logits
    grid = Grid(blocks=rows, occupancy=RESIDENT, chain_steps=PASSES * logits / (maximum(rows, 1) * STEP))
    return Kernel(
        name=name,
        form=FORM,
        ideal=ideal,
        executed=executed,
        grid=grid,
        instance=f"k{x.k}{'-ties' if x.ties or x.ranked else ''}",
        shape=x,
        implementation="radix selection (SGLang, vLLM)",
    )
