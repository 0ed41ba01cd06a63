"""MiniMax sparse attention: an index head per key head scores every token, a block is as good as its best token.

Source: arXiv:2606.13392, section 3; MiniMax-AI/MSA, README; vllm-project/vllm, models/minimax_m3.

Attention becomes linear, but every token is scored for every query: 2·HI·dI per pair, quadratic with 1/32 of the
constant of full attention in MiniMax-M3. Only the maximum over a block leaves the kernel, one number per block. The
index key adds to the cache; nothing is saved there. Forced blocks (`init_blocks`, `local_blocks`) count among the k.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=64, Hkv=4, dk=128, dv=128, HI=4, dI=128, b=128, k=16)
>>> work = {k.family: k.work.flops for k in kernels(d, 6144, Step(1, 1, 65_535, "decode"), Precision())}
>>> work["indexer"] == work["msa-decode"]  # 65,536 · 2 · 4 · 128 = 2,048 · 2 · 64 · (128 + 128)
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel import pairs
from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.block_scores import Scores, best_blocks, block_scores, rectangle, tiled_pairs
from costmodel.kernels.block_sparse import MSA_DECODE, MSA_PREFILL, BlockSparse, block_sparse
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.top_k import Selection
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.mixers.moba import everywhere, selected
from costmodel.step import Precision, Step

NAME = "msa"
ALIASES = ("minimax-sparse-attention",)
TITLE = "MiniMax sparse attention (MSA)"
SUMMARY = "the top-k blocks by a quadratic index of every token"
SOURCES = ("arXiv:2606.13392, section 3", "MiniMax-AI/MSA, README", "vllm-project/vllm, models/minimax_m3")
TENSOR_PARALLEL = "by heads, index heads with their key heads: vllm-project/vllm, models/minimax_m3"
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("28.4× less at 1M", "28.4× less at 1M", "arXiv:2606.13392 (attention FLOPs of one token)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(gqa.Dims):
    """Dimensions of an MSA layer."""

    HI: int = dim("index_heads", "index query heads, one per key head", split="groups")
    dI: int = dim("d_index", "width of an index head")
    kI: int = dim("index_k_heads", "index key heads, shared by the index query heads", 1, split="groups")
    b: int = dim("block", "tokens of a block", 128)
    k: int = dim("top_k_blocks", "blocks that a query attends to at most, forced ones included", 16)
    init_blocks: int = dim("init_blocks", "first blocks of the sequence that are always selected", 0, least=0)
    local_blocks: int = dim("local_blocks", "last blocks up to the query's own that are always selected", 1)


EXAMPLES = (
    Dims(H=4, Hkv=2, dk=16, dv=16, HI=2, dI=8, b=4, k=2),
    Dims(H=4, Hkv=2, dk=8, dv=8, HI=2, dI=16, kI=2, b=5, k=3, init_blocks=1, qk_norm=True),
)


def check(d: Dims) -> list[str]:
    """As in softmax attention; one index head per key head, and forced blocks that fit among the selected ones."""
    problems = gqa.check(d)
    if d.Hkv != d.HI:
        problems.append(f"index_heads {d.HI} differs from kv_heads {d.Hkv}")
    if d.HI % d.kI:
        problems.append(f"index_heads {d.HI} is not a multiple of index_k_heads {d.kI}")
    if d.init_blocks + d.local_blocks > d.k:
        problems.append(f"init_blocks {d.init_blocks} + local_blocks {d.local_blocks} exceed top_k_blocks {d.k}")
    return problems


def index_projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Index queries and index keys."""
    return (Projection("index_q_proj", D, d.HI * d.dI), Projection("index_k_proj", D, d.kI * d.dI))


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Those of softmax attention and of the index."""
    return (*gqa.projections(d, D), *index_projections(d, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """As in softmax attention, and the scales of the index norms."""
    return gqa.extra_parameters(d, D) + (2 * d.dI if d.qk_norm else 0)


def cache(d: Dims, precision: Precision) -> Cache:
    """Keys and values of all tokens, and their index keys."""
    return Cache(per_token=(d.Hkv * (d.dk + d.dv) + d.kI * d.dI) * precision.kv_bytes)


def into_heads(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """One product for queries, keys, values and both of the index; one pass for norms, rotation and cache."""
    fused = (projections(d, D)[0], *index_projections(d, D))
    merged = Projection(", ".join(p.name for p in fused), D, sum(p.d_out for p in fused))
    own, n = gqa.rotate_and_append(d, step, precision).executed, step.tokens
    queries, keys, e = n * d.HI * d.dI, n * d.kI * d.dI, precision.hidden_bytes
    prepare = elementwise(
        "norms, rope, cache write",
        read=own.read + (queries + keys) * e,
        written=own.written + queries * e + keys * precision.kv_bytes,
        vector=own.vector + (queries + keys) * ((6 if d.rope else 0) + (4 if d.qk_norm else 0)),
    )
    return [projection(merged, step, precision), prepare]


def select(d: Dims, step: Step, precision: Precision, x: BlockSparse) -> list[Kernel]:
    """The best score of every block, and the k best blocks per key head."""
    n, blocks = step.tokens, ceil_div(step.L, d.b)
    if everywhere(d, step):
        scored, computed = pairs.bidirectional(step.P, step.S), rectangle(step.S, step.L)
        rated = step.S * blocks
    else:
        scored, computed = pairs.causal(step.P, step.S), tiled_pairs(step.P, step.S, 1)
        rated = step.S + pairs.earlier_blocks(step.P, step.S, d.b)
    scores = Scores(
        B=step.B,
        S=step.S,
        H=d.HI,
        Hk=d.kI,
        d=d.dI,
        pairs=scored,
        computed=computed,
        heads_apart=True,
        entries=step.L,
        entry_bytes=d.dI * precision.kv_bytes,
        results=d.HI * rated,
        dtype=precision.hidden,
        decoding=step.decoding,
        learned=x.pairs,
        teacher=2 * d.H * d.dk,
    )
    return [
        block_scores("indexer", scores, learned=True),
        best_blocks("top-k", Selection(rows=n * d.HI, logits=step.B * scores.results, k=d.k), decoding=step.decoding),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: as softmax attention, with the index and the selected blocks in place of the core."""
    _, _, _, *after = gqa.kernels(d, D, step, precision)
    x = selected(d, step, precision, d.b, d.k, d.Hkv)
    form = MSA_DECODE if step.decoding else MSA_PREFILL
    return [
        *into_heads(d, D, step, precision),
        *select(d, step, precision, x),
        block_sparse("attention", x, form=form),
        *after,
    ]
