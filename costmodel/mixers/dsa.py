"""DeepSeek sparse attention: an indexer scores every token, latent attention runs over the k best of them.

Source: arXiv:2512.02556 (DeepSeek-V3.2), section 2.1, eq. 1 and 2; deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py.

Attention becomes linear in the context, 2H(2c + dr)·Σ min(j, k), but the indexer stays quadratic with a smaller
constant: 2·HI·dI per pair in fp8, and 4 bytes of logits per pair written and read. Layers that reuse the selection
of an earlier layer (arXiv:2603.12201) have no indexer at all.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=128, q_l=1536, c=512, dn=128, dr=64, dv=128, HI=64, dI=128, k=2048)
>>> work = {kernel.family: kernel.work.flops for kernel in kernels(d, 7168, Step(B=1, S=1, P=34_815), Precision())}
>>> work["indexer"] == work["sparse-attention"]  # 34,816 · 2 · 64 · 128 = 2,048 · 2 · 128 · (2 · 512 + 64)
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from costmodel import pairs
from costmodel.algebra import Quantity, maximum, minimum
from costmodel.dims import choice, dim, flag
from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.indexer import DTYPES, Indexer, indexer, key_bytes, pair_count
from costmodel.kernels.sparse_attention import SparseAttention, sparse_attention
from costmodel.kernels.top_k import Selection, top_k
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, mla
from costmodel.step import Precision, Step

NAME = "dsa"
ALIASES = ("deepseek-sparse-attention",)
TITLE = "DeepSeek sparse attention"
SUMMARY = "latent attention over the top-k tokens of a quadratic indexer"
SOURCES = (
    "arXiv:2512.02556, section 2.1 (DSA)",
    "arXiv:2603.12201 (selections shared between layers)",
    "deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py",
)
TENSOR_PARALLEL = (
    "as latent attention; the indexer is on every device: vllm-project/vllm, models/deepseek_v2.py (Indexer)"
)
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim(
    "O(L·k)",
    "O(k)",
    "arXiv:2512.02556, section 2.1 (the main attention; the indexer is said to stay quadratic)",
)
UNVERIFIED = (
    "short prompts: below top_k tokens some engines switch to a dense kernel, which runs here only with form: expanded",
)


PREPARATIONS = 4
"""Kernels between the index projections and the logits: norm and rotation, Hadamard, and one for either operand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(mla.Dims):
    """Dimensions of a sparse latent attention layer."""

    HI: int = dim("indexer.heads", "index heads")
    dI: int = dim("indexer.d", "width of an index head")
    k: int = dim("indexer.top_k", "tokens that a query attends to at most")
    k_heads: int = dim("indexer.k_heads", "index key heads, shared by the index heads", 1)
    index_dtype: str = choice("indexer.dtype", "number format of index queries and keys", "fp8", DTYPES)
    runs: bool = flag("indexer.runs", "the layer selects for itself; no: it reuses an earlier layer's selection", True)
    clean_logits: bool = flag("indexer.clean_logits", "masked logits are written and read as well")
    form: str = choice(
        "form",
        "latent attention runs absorbed over selected tokens; expanded: all tokens are selected, as engines may decide "
        "where a prompt has no more than top_k, and run dense",
        "auto",
        ("auto", "absorbed", "expanded"),
    )
    scaled: ClassVar[bool] = True


EXAMPLES = (
    Dims(H=4, q_l=12, c=16, dn=8, dr=4, dv=8, HI=4, dI=8, k=6),
    Dims(H=2, q_l=None, c=16, dn=8, dr=4, dv=6, HI=2, dI=16, k=5, gate=True, clean_logits=True, index_dtype="bf16"),
    Dims(H=4, q_l=12, c=16, dn=8, dr=4, dv=8, HI=4, dI=8, k=6, runs=False),
)


def check(d: Dims) -> list[str]:
    """As in latent attention; index heads must divide evenly over the index key heads."""
    uneven = d.HI % d.k_heads != 0
    return mla.check(d) + ([f"indexer.heads {d.HI} is not a multiple of indexer.k_heads {d.k_heads}"] if uneven else [])


def index_projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Index queries from the query latent, index keys and head weights from the hidden state."""
    if not d.runs:
        return ()
    return (
        Projection("indexer.q_proj", D if d.q_l is None else d.q_l, d.HI * d.dI),
        Projection("indexer.k_proj", D, d.k_heads * d.dI),
        Projection("indexer.weights_proj", D, d.HI),
    )


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Those of latent attention and of the indexer."""
    return (*mla.projections(d, D), *index_projections(d, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Norms of the latents, and the LayerNorm (scale and bias) of the index key."""
    return mla.extra_parameters(d, D) + (2 * d.dI if d.runs else 0)


def cache(d: Dims, precision: Precision) -> Cache:
    """The latent and, where an indexer runs, its keys: 132 bytes for 128 elements in fp8."""
    index = d.k_heads * key_bytes(d.dI, d.index_dtype) if d.runs else 0
    return Cache(per_token=mla.latent_bytes(d, precision) + index)


def prepare(d: Dims, step: Step, precision: Precision, wide: Quantity) -> Kernel:
    """Norm, rotation, Hadamard transform and quantisation of `wide` elements of index queries and of the keys."""
    e, n = precision.hidden_bytes, step.tokens
    keys = n * d.k_heads * d.dI
    heads = wide / d.dI
    kernel = elementwise(
        "index norm, rope, Hadamard, quantisation",
        read=(wide + keys + heads) * e,
        written=wide * element_bytes(d.index_dtype) + 4 * heads + n * d.k_heads * key_bytes(d.dI, d.index_dtype),
        # Rotation, the log2(128) additions of the Hadamard transform, and scaling.
        vector=16 * (wide + keys),
    )
    return kernel._replace(launches=PREPARATIONS)


def selection(d: Dims, step: Step, logits: Quantity) -> Selection:
    """The queries that see more than k tokens choose; those before them take what they see.

    In prefill the keys of all sequences lie side by side, and a library may select queries in chunks, each of which
    reads a copy of its page table.
    """
    if step.bidirectional:
        return Selection(rows=step.tokens, logits=logits, k=d.k)
    rows = minimum(step.S, maximum(step.L - d.k, 0))
    seen = pairs.causal(step.P, step.S) - pairs.top_k(step.P, step.S, d.k) + rows * d.k
    x = Selection(step.tokens, logits, d.k, open_rows=step.B * rows, open_logits=step.B * seen)
    if step.decoding:
        return x
    return x._replace(width=step.B * step.L, logits_share=None, tables=4 * step.tokens * step.L)


def select(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """Index projections, rotation and quantisation, the logits of all visible tokens, and the k best of each query."""
    n = step.tokens
    x = Indexer(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.HI,
        d=d.dI,
        k=d.k,
        k_heads=d.k_heads,
        dtype=d.index_dtype,
        clean_logits=d.clean_logits,
        decoding=step.decoding,
        bidirectional=step.bidirectional,
        gathered=not step.decoding,
    )
    logits = step.B * (step.S * step.L if d.clean_logits else pair_count(x))
    return [
        *(projection(p, step, precision) for p in index_projections(d, D)),
        prepare(d, step, precision, n * d.HI * d.dI),
        indexer("indexer", x),
        top_k("top-k", selection(d, step, logits)),
    ]


def core(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Absorbed latent attention over the selected tokens: Σ min(j, k) pairs, so all of them while L ≤ k."""
    slots = minimum(step.L, d.k)
    x = SparseAttention(
        B=step.B,
        S=step.S,
        H=d.H,
        dk=d.c + d.dr,
        dv=d.c,
        pairs=step.S * slots if step.bidirectional else pairs.top_k(step.P, step.S, d.k),
        slots=slots,
        entries=step.L,
        row_bytes=mla.latent_bytes(d, precision),
        dtype=precision.attention,
        quantised=element_bytes(precision.kv) < element_bytes(precision.hidden),
        decoding=step.decoding,
    )
    return sparse_attention("sparse attention", x)


def dense(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """A layer whose tokens are all selected: index keys for later, and expanded latent attention."""
    keys = [projection(p, step, precision) for p in index_projections(d, D) if p.name == "indexer.k_proj"]
    return [
        *mla.into_latents(d, D, step, precision),
        *([*keys, prepare(d, step, precision, 0)] if d.runs else ()),
        *mla.expanded(d, step, precision),
        *mla.out_of_heads(d, D, step, precision),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: into latents, selection, absorbed attention over the selected tokens, out of the heads."""
    if d.form == "expanded":
        return dense(d, D, step, precision)
    return [
        *mla.into_latents(d, D, step, precision),
        *(select(d, D, step, precision) if d.runs else ()),
        *mla.absorbed(d, step, precision, core(d, step, precision)),
        *mla.out_of_heads(d, D, step, precision),
    ]
