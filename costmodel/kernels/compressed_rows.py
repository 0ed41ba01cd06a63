"""The rows that compressed attention goes through, and what runs before it can begin.

Source: DeepSeek-V4 technical report, section 2.3; deepseek-ai/FlashMLA, sparse prefill and decode with a second cache;
flashinfer-ai/flashinfer and NVIDIA/TensorRT-LLM (the kernels that TensorRT-LLM runs on Blackwell).
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil, ceil_div, floor_div, log2, maximum, minimum, power, root, where
from costmodel.kernels.sparse_attention import HEADS, ROWS, padded_heads
from costmodel.pairs import capped_compressed, compressed, window

MANY = 11673
"""Query tokens of a prefill above which SGLang runs another kernel (`_LARGE_INDEXER_QUERY_THRESHOLD`)."""

PASS = {"memory_efficiency": 0.8}
"""Share of the datasheet HBM bandwidth that a pass over elements reaches: the prior of such kernels."""

DEALT = 2.0
"""Value of `dealt` where a prefill of few queries runs decode's kernel."""

CLAMPED = 2.0
"""Value of `entries` where a query has at least one, as SGLang asks for."""

WIDENED = 2.0
"""Value of `rows` where every prefill widens its rows to bf16 first, as vLLM does."""

BY_HEADS = 2.0
"""Value of `tiles` where the heads of a rank decide the tile, as in the kernels that TensorRT-LLM runs on Blackwell."""


class CompressedAttention(NamedTuple):
    """B sequences, S queries of H heads after P cached tokens; rows of width d are keys and values.

    w: window; r: tokens per entry; k: entries that a query selects, None for all that are finished; row_bytes: of one
    cached row; quantised: rows are widened to bf16 before the products; sinks: one more logit per head; narrowed:
    outputs are quantised before the next product.
    """

    B: Quantity
    S: Quantity
    P: Quantity
    H: Quantity
    d: Quantity
    w: Quantity
    r: Quantity
    k: Quantity | None
    row_bytes: Quantity
    dtype: str = "bf16"
    quantised: bool = False
    sinks: bool = True
    decoding: bool = False
    narrowed: bool = False

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.P + self.S

    @property
    def dk(self) -> Quantity:
        """Width of a key."""
        return self.d

    @property
    def dv(self) -> Quantity:
        """Width of a value, the same row."""
        return self.d


def entry_pairs(x: CompressedAttention) -> Quantity:
    """(query, entry) pairs per sequence and head: Σ ⌊j/r⌋ over positions j, at most k each."""
    return compressed(x.P, x.S, x.r) if x.k is None else capped_compressed(x.P, x.S, x.r, x.k)


def gathered_rows(x: CompressedAttention) -> Quantity:
    """Rows per sequence that the kernel goes through: Σ over queries of both lists, each in whole tiles.

    ⌈j/64⌉ = ⌊(j + 63)/64⌋ and ⌈⌊j/r⌋/64⌉ = ⌊(j + 63r)/64r⌋, so both sums are those of finished blocks.

    >>> gathered_rows(CompressedAttention(1, 1, 999, 64, 512, w=128, r=4, k=512, row_bytes=584))  # 128 + ⌈250/64⌉ · 64
    384
    """
    last = capped_compressed(x.P + ROWS - 1, x.S, ROWS, ceil_div(x.w, ROWS))
    first, tile = x.P + (ROWS - 1) * x.r, ROWS * x.r
    if x.k is None:
        return ROWS * (last + compressed(first, x.S, tile))
    return ROWS * (last + capped_compressed(first, x.S, tile, ceil_div(x.k, ROWS)))


def without_entries(x: CompressedAttention) -> Quantity:
    """Queries of a sequence before the first finished entry.

    >>> [without_entries(CompressedAttention(1, S, P, 64, 512, 128, 4, None, 584)) for P, S in ((0, 9), (1, 1), (9, 9))]
    [3, 1, 0]
    """
    return maximum(minimum(x.r - 1 - x.P, x.S), 0)


LEAST_HEADS, HALVED, MOST_HALVED, KEYS = 8, 16, 32, 128
"""Heads of the smallest tile, of the smallest and the largest that are halved; rows that a step of these takes."""


NARROWED, PLACE, SHORTEST = 3, 4, 512
"""Bytes of a query's element that are read in 16 bits and written in 8; of a place in a list; tokens of the shortest
sequence that a list is laid out for."""


def head_tiles(x: CompressedAttention, units: int) -> tuple[Quantity, Quantity, Quantity]:
    """Thread blocks of a query where heads decide the tile, and what a step of one and its prologue and epilogue take
    over those of 64 heads.

    Up to 64 heads are one tile. Those of 16 and 32 are halved while the requests' steps fill no more than an eighth of
    the units, and both halves gather all rows. 128 heads run on pairs of units that share the rows. A step gathers as
    many rows whatever the heads; loading queries and storing outputs costs the fourth root of the heads of a tile (the
    source's own model of a tile has 1, 1.2, 1.48 and 1.68 for 8, 16, 32 and 64).

    Source: flashinfer-ai/flashinfer, include/flashinfer/trtllm/fmha/fmhaKernels.cuh (selectSparseMlaGenerationKernel,
    kernelMainloopCost), as NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/trtllmGenKernels/fmha.

    >>> x = CompressedAttention(4, 1024, 0, 16, 512, w=128, r=128, k=None, row_bytes=584)
    >>> head_tiles(x, 148)[0], head_tiles(x._replace(B=16), 148)[0], head_tiles(x._replace(H=64), 148)
    (2, 1, (1, 1.0, 1.0))
    """
    entries = floor_div(x.length, x.r) if x.k is None else minimum(floor_div(x.length, x.r), x.k)
    few = x.B * ceil_div(minimum(x.length, x.w + entries), KEYS) <= units // 8
    halves = where(few, where(x.H <= MOST_HALVED, where(x.H >= HALVED, 2, 1), 1), 1)
    pairs = ceil_div(x.H, HEADS)
    return halves * pairs, 1.0 / pairs, root(maximum(x.H, LEAST_HEADS) / (HEADS * halves * pairs), 4) / pairs


def steps_of_keys(x: CompressedAttention) -> Quantity:
    """Rows per sequence that a kernel goes through which takes 128 at a time, and window and entries as one list.

    The list has the whole window in front, however few tokens came before, so that every query has ⌈entries/128⌉ + 1
    steps: ⌈⌊j/r⌋/128⌉ = ⌊(j + 127r)/128r⌋.

    >>> steps_of_keys(CompressedAttention(1, 1, 999, 64, 512, w=128, r=128, k=None, row_bytes=584))  # 7 entries
    256
    """
    first, tile = x.P + (KEYS - 1) * x.r, KEYS * x.r
    entries = compressed(first, x.S, tile) if x.k is None else capped_compressed(first, x.S, tile, ceil_div(x.k, KEYS))
    return KEYS * (x.S * ceil_div(x.w, KEYS) + entries)


def readers(x: CompressedAttention, at_work: Quantity) -> Quantity:
    """Queries at work that read the same row of a window, on average.

    Those of one sequence see windows that lie over each other, and each sequence at work adds a window before them.

    >>> x = CompressedAttention(64, 1, 4096, 8, 512, w=128, r=128, k=None, row_bytes=584)
    >>> readers(x, 64), round(readers(x._replace(B=1, S=4096), 128), 1)
    (1.0, 64.3)
    """
    sequences = minimum(1 + (at_work - 1) / x.S, x.B)
    seen = window(x.P, x.S, x.w) / x.S
    return at_work * seen / (at_work + sequences * (seen - 1))


def listed(x: CompressedAttention) -> Quantity:
    """Places in a query's list of rows in TensorRT-LLM: those of the window, and of all that a query selects, or of the
    entries of the longest sequence, rounded up to a power of two.

    Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/attention_backend/sparse/deepseek_v4 (max_compressed_indices).

    >>> x = CompressedAttention(1, 1, 65535, 8, 512, w=128, r=128, k=None, row_bytes=584)
    >>> listed(x), listed(x._replace(P=4224)), listed(x._replace(k=512))
    (1152.0, 192.0, 640)
    """
    if x.k is not None:
        return x.w + x.k
    return x.w + power(2.0, ceil(log2(ceil_div(maximum(x.length + 1, SHORTEST), x.r))))


def prepared(x: CompressedAttention, by_heads: Quantity) -> Quantity:
    """Bytes that passes over queries and lists move before the kernel can begin, beside norm and rotation.

    A kernel with tiles of 64 heads finds fewer filled up to as many. One with tiles of fewer heads (by_heads)
    multiplies in 8 bits: one pass reads the queries and writes them narrow, and another reads each query's list of rows
    as places in its sequence and writes it as places in the cache.

    Source: NVIDIA/TensorRT-LLM, as `listed`: _deepseek_v4_local_to_global_kernel; modules/mla.py (deepseek_v4_q_norm).
    """
    queries = x.B * x.S
    filled = 2 * queries * (padded_heads(x.H) - x.H) * x.d
    narrowed = NARROWED * queries * x.H * x.d if x.quantised else 0
    return where(by_heads, narrowed + 2 * PLACE * queries * listed(x), filled)


def sliced(x: CompressedAttention) -> Quantity:
    """Elements of outputs that SGLang copies out of buffers of whole tiles of heads before it quantises them: those of
    a rank with fewer heads do not lie behind each other. Products of 16 bits take them as they lie.

    Source: sgl-project/sglang, python/sglang/srt/models/deepseek_v4.py (o[:, tp_slice], then o.reshape(T * G, D)).

    >>> x = CompressedAttention(4, 1, 4096, 16, 512, w=128, r=128, k=None, row_bytes=584, narrowed=True)
    >>> sliced(x), sliced(x._replace(H=64)), sliced(x._replace(narrowed=False))
    (32768, 0, 0)
    """
    return where(padded_heads(x.H) > x.H, x.B * x.S * x.H * x.d, 0) if x.narrowed else 0


def walked(x: CompressedAttention) -> Quantity:
    """Tokens that one thread block of TensorRT-LLM's compressor goes through one by one in a prefill: those of an entry
    that is finished, or else all new ones, whose projections it keeps.

    Source: NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/compressorKernels (prefillReductionKernel).

    >>> x = CompressedAttention(1, 1, 65535, 8, 512, w=128, r=128, k=None, row_bytes=584)
    >>> walked(x), walked(x._replace(P=65536)), walked(x._replace(P=0, S=200))
    (128, 1, 128)
    """
    finished = floor_div(x.length, x.r) - floor_div(x.P, x.r)
    return where(finished > 0, x.r, minimum(x.S, x.r))


WORKERS, AT_ONCE = 128, 8
"""Thread blocks that vLLM gives each request while it widens rows, and those of them that a unit holds."""


def carried(x: CompressedAttention, units: int) -> Quantity:
    """Rows that one worker of vLLM's gathering kernels goes through one by one before a prefill: of the entries, and of
    the tokens that its queries see; of all requests, where their workers fill the units.

    Source: vllm-project/vllm, models/deepseek_v4/common/ops/cache_utils.py (_dequantize_and_gather_k_kernel).

    >>> x = CompressedAttention(4, 256, 4096, 64, 512, w=128, r=4, k=512, row_bytes=584)
    >>> carried(x, 128), carried(x._replace(B=16), 128)  # 1088 entries, 383 tokens
    (12.0, 24.0)
    """
    seen = minimum(x.length, x.w + x.S - 1)
    rounds = maximum(x.B * WORKERS / (AT_ONCE * units), 1.0)
    return rounds * (ceil_div(floor_div(x.length, x.r), WORKERS) + ceil_div(seen, WORKERS))
