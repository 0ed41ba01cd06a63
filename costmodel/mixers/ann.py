"""Attention as vector search: an inverted-file index over the keys, of which each query probes a few lists.

Source: the proposal in the discussion of https://www.lesswrong.com/posts/kpSXeMcthtHgnwMx3 (keys whose norms vary
little are searched as unit vectors, with an index for each range of norms); inverted lists: FAISS, arXiv:2401.08281,
section 4; ranges of norms for inner products: arXiv:1809.08782; for attention: RetrievalAttention, arXiv:2409.10516.

A key joins the nearest of the lists/bands centroids of its norm band: when the index is built, `build_iterations`
times over the new keys (k-means), and once when it is appended in decode. Each query head scores all centroids,
2·H·dk·lists; a group of heads probes the `probes` best lists by the sum of its scores, and attends to the k best
keys found there. With a fixed number of lists a probe stays linear in the context, probes·L/lists keys: full
attention divided by lists/probes. lists = √(probes·L) makes centroids and probed keys equal, and a query cost √L;
set it for the context at hand, such as lists = 4096 with probes = 16 at 1M tokens. Lists are taken as equally
filled and the counts are expectations. The selection has no gradient.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=8, Hkv=8, dk=64, dv=64, lists=4096, probes=16, k=256)
>>> run = kernels(d, 512, Step(1, 1, 2**20 - 1, "decode"), Precision())
>>> [run[i].work.flops == 2 * 8 * 64 * 4096 for i in (4, 6)]  # 16 · 1,048,576 / 4,096 = 4,096 probed keys
[True, True]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel import pairs
from costmodel.algebra import Quantity, ceil_div, minimum
from costmodel.dims import dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.block_scores import Scores, best_blocks, block_scores, rectangle
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.sparse_attention import SparseAttention, sparse_attention
from costmodel.kernels.top_k import Selection, top_k
from costmodel.layers.projection import Projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.mixers.moba import everywhere, without_gradient
from costmodel.step import Precision, Step

NAME = "ann"
ALIASES = ("nearest-neighbour-attention", "vector-search-attention")
TITLE = "Approximate-nearest-neighbour attention"
SUMMARY = "the top-k keys found by probing an inverted-file index"
SOURCES = (
    "https://www.lesswrong.com/posts/kpSXeMcthtHgnwMx3, discussion",
    "arXiv:2401.08281, section 4 (inverted lists)",
    "arXiv:1809.08782 (ranges of norms)",
    "arXiv:2409.10516 (RetrievalAttention)",
)
TENSOR_PARALLEL = "by heads, each with an index of its own; no engine is known that splits them"
WHOLE_SEQUENCE = "its index covers all keys of a head"
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("sublinear", "sublinear", "https://www.lesswrong.com/posts/kpSXeMcthtHgnwMx3, discussion")
UNVERIFIED = (
    "every kernel: the index, its build and its probes are a proposal, counted as an inverted file with balanced lists",
)

INDEX_BYTES = 4
"""Bytes of a token's number in a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(gqa.Dims):
    """Dimensions of an attention layer over a vector index."""

    lists: int = dim("lists", "inverted lists of the index, in all norm bands together", 1024)
    probes: int = dim("probes", "lists that a query probes", 16)
    k: int = dim("top_k", "keys that a query attends to at most", 256)
    bands: int = dim("norm_bands", "ranges of key norms with centroids of their own", 1)
    iterations: int = dim("build_iterations", "assignments of every key while the index is built", 1)


EXAMPLES = (
    Dims(H=4, Hkv=2, dk=16, dv=8, lists=4, probes=2, k=3),
    Dims(H=4, Hkv=4, dk=8, dv=8, lists=4, probes=1, k=2, bands=2, iterations=3),
)

extra_parameters = gqa.extra_parameters


def check(d: Dims) -> list[str]:
    """As in softmax attention; a query probes lists that exist, and every band has as many lists."""
    problems = gqa.check(d)
    if d.probes > d.lists:
        problems.append(f"probes {d.probes} exceed lists {d.lists}")
    if d.lists % d.bands:
        problems.append(f"lists {d.lists} is not a multiple of norm_bands {d.bands}")
    return problems


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """As in softmax attention."""
    return gqa.projections(d, D)


def cache(d: Dims, precision: Precision) -> Cache:
    """Keys, values and a place in a list for every token; the centroids."""
    row = d.Hkv * (d.dk + d.dv) * precision.kv_bytes
    return Cache(per_token=row + INDEX_BYTES * d.Hkv, fixed=d.Hkv * d.lists * d.dk * precision.kv_bytes)


def index(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Every new key meets the centroids of its norm band and joins a list; a build moves the centroids as well."""
    band, keys, e = d.lists / d.bands, step.tokens * d.Hkv, precision.hidden_bytes
    x = Scores(
        B=step.B,
        S=step.S,
        H=d.Hkv,
        Hk=d.Hkv,
        d=d.dk,
        pairs=step.S * band,
        computed=rectangle(step.S, band),
        entries=d.lists,
        entry_bytes=d.dk * precision.kv_bytes,
        results=step.S * d.Hkv,
        dtype=precision.attention,
        decoding=step.decoding,
    )
    append = elementwise(
        "norms, lists and centroids",
        read=keys * (d.dk * e + INDEX_BYTES),
        written=keys * INDEX_BYTES + step.B * d.Hkv * d.lists * d.dk * precision.kv_bytes * (0 if step.decoding else 1),
        vector=3 * keys * d.dk,
    )
    often = 1 if step.decoding else d.iterations
    return [block_scores("assignment", x).times(often), without_gradient(append).times(often)]


def search(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Products with all centroids, the best lists of every group, products with their keys, and the k best of them."""
    if everywhere(d, step):
        probed = d.probes * pairs.bidirectional(step.P, step.S) / d.lists
    else:
        probed = pairs.probed(step.P, step.S, d.probes, d.lists)
    common: dict[str, Any] = dict(B=step.B, S=step.S, H=d.H, Hk=d.Hkv, d=d.dk, dtype=precision.attention)
    common["decoding"] = step.decoding
    centroids = Scores(
        **common,
        pairs=step.S * d.lists,
        computed=rectangle(step.S, d.lists),
        entries=d.lists,
        entry_bytes=d.dk * precision.kv_bytes,
        results=step.S * d.Hkv * d.lists,
    )
    slots = ceil_div(d.probes * step.L, d.lists)
    keys = Scores(
        **common,
        pairs=probed,
        computed=rectangle(step.S, slots),
        entries=minimum(step.L, probed),
        entry_bytes=d.dk * precision.kv_bytes + INDEX_BYTES,
        results=d.Hkv * probed,
        streamed=slots,
        packed=False,
    )
    rows = step.tokens * d.Hkv
    return [
        block_scores("centroid scores", centroids),
        best_blocks(
            "choice of lists",
            Selection(rows=rows, logits=step.B * centroids.results, k=d.probes),
            decoding=step.decoding,
        ),
        block_scores("probe", keys),
        top_k("choice of keys", Selection(rows=rows, logits=step.B * keys.results, k=d.k)),
    ]


def core(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Attention of the heads of a group to the keys they found; every key head counts as a sequence of its own."""
    found = d.probes * step.L / d.lists
    if everywhere(d, step):
        seen = step.S * minimum(found, d.k)
    else:
        seen = pairs.probed(step.P, step.S, d.probes, d.lists, d.k)
    x = SparseAttention(
        B=step.B * d.Hkv,
        S=step.S,
        H=d.H / d.Hkv,
        dk=d.dk,
        dv=d.dv,
        pairs=seen,
        slots=minimum(d.k, ceil_div(d.probes * step.L, d.lists)),
        entries=step.L,
        row_bytes=(d.dk + d.dv) * precision.kv_bytes,
        dtype=precision.attention,
        decoding=step.decoding,
    )
    return sparse_attention("attention", x)._replace(implementation="gathering attention")


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: as softmax attention, with index, search and gathered attention in place of the core."""
    before, cached, _, *after = gqa.kernels(d, D, step, precision)
    return [
        before,
        cached,
        *index(d, step, precision),
        *search(d, step, precision),
        core(d, step, precision),
        *after,
    ]
