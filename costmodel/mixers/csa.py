"""Compressed sparse attention: 4 tokens become one entry, an indexer scores the entries, a query sees the k best.

Source: DeepSeek-V4 technical report, section 2.3.1, equations 9 to 17.

Attention is linear in the context, 4·H·dh·(window pairs + Σ min(⌊j/r⌋, k)); the indexer, which has a compressor of its
own, stays quadratic with HI·dI/r FLOPs per token², and its logits pass through memory.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=128, q_l=1536, dh=512, dr=64, g=16, o=1024, r=4, HI=64, dI=128, k=1024)
>>> run = kernels(d, 7168, Step(B=1, S=1, P=2**20 - 1, phase="decode"), Precision())
>>> work = {kernel.family: kernel.work.flops for kernel in run}
>>> work["csa-decode"] == 4 * 128 * 512 * (128 + 1024), work["indexer"] == 2 * 64 * 128 * 2**20 // 4
(True, True)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel import pairs
from costmodel.algebra import Quantity, maximum, minimum
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.indexer import DTYPES, Indexer, indexer, key_bytes
from costmodel.kernels.top_k import Selection, top_k
from costmodel.layers.compressor import Compressor, compress
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, dsv4_window, hca
from costmodel.step import Precision, Step

NAME = "csa"
ALIASES = ("compressed-sparse-attention",)
TITLE = "Compressed sparse attention"
SUMMARY = "a window and the top-k of entries of 4 tokens compressed to one, chosen by a quadratic indexer"
SOURCES = (
    "DeepSeek-V4 technical report, section 2.3.1 (huggingface.co/deepseek-ai/DeepSeek-V4-Pro)",
    "huggingface/transformers, models/deepseek_v4/modeling_deepseek_v4.py",
)
TENSOR_PARALLEL = (
    "as the window layer; compressors and indexer are on every device: vllm-project/vllm, models/deepseek_v4"
)
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim(
    "27 % of V3.2 at 1M",
    "27 % of V3.2 at 1M",
    "DeepSeek-V4 technical report, as quoted elsewhere (V4-Pro, FLOPs of one token)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(hca.Dims):
    """Dimensions of a compressed sparse layer."""

    HI: int = dim("indexer.heads", "index heads")
    dI: int = dim("indexer.d", "width of an index head, and of the one index key")
    k: int = dim("indexer.top_k", "entries that a query attends to at most")
    k_heads: int = dim("indexer.k_heads", "index key heads", 1, most=1)
    index_dtype: str = choice("indexer.dtype", "number format of index queries and keys", "fp8", DTYPES)
    r: int = dim("ratio", "tokens per compressed entry", 4)
    m: int = dim("overlap", "blocks that an entry is pooled from", 2)


EXAMPLES = (
    Dims(H=4, q_l=12, dh=16, dr=4, g=2, o=6, w=4, r=2, HI=4, dI=8, k=3),
    Dims(H=6, q_l=8, dh=8, dr=2, g=3, o=4, w=8, r=4, m=1, HI=2, dI=16, k=2, sinks=False, index_dtype="bf16"),
)

check = dsv4_window.check


def index_compressor(d: Dims) -> Compressor:
    """The pooling of d.r tokens to one index key."""
    return Compressor("indexer.compressor", d.dI, d.r, d.m)


def index_projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Index queries from the query latent, head weights from the hidden state, and the index compressor's."""
    return (
        Projection("indexer.q_proj", d.q_l, d.HI * d.dI),
        Projection("indexer.weights_proj", D, d.HI),
        index_compressor(d).projection(D),
    )


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Those of a heavily compressed layer and of the indexer."""
    return (*hca.projections(d, D), *index_projections(d, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Norms, sinks, and the biases and norms of both compressors."""
    return hca.extra_parameters(d, D) + index_compressor(d).extra_parameters


def cache(d: Dims, precision: Precision) -> Cache:
    """A row and an index key per r tokens; the window and both compressors' buffers are allocated once."""
    own = hca.cache(d, precision)
    key = key_bytes(d.dI, d.index_dtype)
    return Cache(per_token=own.per_token + key / d.r, fixed=own.fixed + index_compressor(d).state_bytes)


def selection(d: Dims, step: Step) -> Selection:
    """Query j has ⌊j/r⌋ candidates, and chooses among them once they are more than k."""
    candidates = pairs.compressed(step.P, step.S, d.r)
    rows = minimum(step.S, maximum(step.L - (d.k + 1) * d.r + 1, 0))
    return Selection(
        rows=step.tokens,
        logits=step.B * candidates,
        k=d.k,
        open_rows=step.B * rows,
        open_logits=step.B * (candidates - pairs.capped_compressed(step.P, step.S, d.r, d.k) + rows * d.k),
    )


def select(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """Index queries and keys, the logits of all finished entries, and the k best of each query."""
    e, n = precision.hidden_bytes, step.tokens
    queries = n * d.HI * d.dI
    queries_of, *others = index_projections(d, D)
    x = Indexer(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.HI,
        d=d.dI,
        k=d.k,
        dtype=d.index_dtype,
        decoding=step.decoding,
        ratio=d.r,
    )
    return [
        projection(queries_of, step, precision),
        # Head weights and the compressor stay in 16 bits.
        *(projection(p, step, precision, role="default") for p in others),
        compress(index_compressor(d), key_bytes(d.dI, d.index_dtype), step, precision),
        elementwise(
            "index rope, Hadamard, quantisation",
            read=(queries + n * d.HI) * e,
            written=queries * element_bytes(d.index_dtype) + 4 * n * d.HI,
            vector=16 * queries,
        ),
        indexer("indexer", x),
        top_k("top-k", selection(d, step)),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: into heads, compression, selection, attention, out of heads."""
    return [
        *dsv4_window.into_heads(d, D, step, precision),
        *hca.compression(d, D, step, precision),
        *select(d, D, step, precision),
        hca.core(d, step, precision, d.k),
        *dsv4_window.out_of_heads(d, D, step, precision),
    ]
