"""Mixture of block attention: each head picks the blocks whose mean key fits its query best, and its own block.

Source: arXiv:2502.13189, section 2.2, eq. 1 to 6; MoonshotAI/MoBA, moba/moba_efficient.py; FlashMoBA, arXiv:2511.11571.

The gate has no parameters: 2·H·dk FLOP per query and earlier block, quadratic with 1/b of the constant, and so are
its scores. A query sees its own block causally and k − 1 whole ones, (k − ½)·b keys on average, so the gain over
full attention is bounded by about b·(dk + dv)/dk. The implementations above decode densely; `sparse_decode` selects
in decode too, from cached means.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=2, Hkv=2, dk=64, dv=64, b=512, k=3)
>>> run = {k.name: k.work.flops for k in kernels(d, 128, Step(B=1, S=512, P=511 * 512), Precision())}
>>> run["attention"] == 2 * 2 * 128 * (512 * 513 // 2 + 512 * 2 * 512), run["block gate"] == 2 * 2 * 64 * 512 * 511
(True, True)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel import pairs
from costmodel.algebra import Quantity, ceil_div, minimum
from costmodel.dims import dim, flag
from costmodel.kernels.base import Kernel, no_backward
from costmodel.kernels.block_scores import Scores, best_blocks, block_scores, rectangle, tiled_pairs
from costmodel.kernels.block_sparse import BlockSparse, block_sparse, own_tile
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.top_k import Selection
from costmodel.layers.projection import Projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.step import Precision, Step

NAME = "moba"
ALIASES = ("mixture-of-block-attention",)
TITLE = "Mixture of block attention (MoBA)"
SUMMARY = "the top-k blocks by mean key, for every head"
SOURCES = (
    "arXiv:2502.13189, section 2.2",
    "MoonshotAI/MoBA, moba/moba_efficient.py",
    "arXiv:2511.11571 (FlashMoBA)",
)
TENSOR_PARALLEL = "as softmax attention; the gate is per key head"
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("sub-quadratic", "O(L)", "arXiv:2502.13189, section 3 (generation attends to everything)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(gqa.Dims):
    """Dimensions of a MoBA layer."""

    b: int = dim("block", "tokens of a block")
    k: int = dim("top_k_blocks", "blocks that a query attends to at most, its own included")
    sparse_decode: bool = flag("sparse_decode", "decode selects blocks too; no: it attends to the whole cache")


EXAMPLES = (
    Dims(H=2, Hkv=2, dk=16, dv=16, b=4, k=3),
    Dims(H=4, Hkv=2, dk=8, dv=16, b=8, k=2, sparse_decode=True, gate=True),
)

check = gqa.check
extra_parameters = gqa.extra_parameters


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """As in softmax attention: the gate has no parameters."""
    return gqa.projections(d, D)


def cache(d: Dims, precision: Precision) -> Cache:
    """Keys and values of all tokens and, where decode selects, the mean key of every block."""
    row = d.Hkv * (d.dk + d.dv) * precision.kv_bytes
    return Cache(per_token=row + (d.Hkv * d.dk * precision.kv_bytes / d.b if d.sparse_decode else 0))


def everywhere(d: gqa.Dims, step: Step) -> bool:
    """Whether a query sees later tokens as well."""
    return step.bidirectional or not d.causal


def selected(d: Any, step: Step, precision: Precision, b: Quantity, k: Quantity, selectors: Quantity) -> BlockSparse:
    """Attention to at most k blocks of b tokens, the query's own (causally) among them."""
    if everywhere(d, step):
        seen, visits = step.S * minimum(step.L, k * b), step.S * minimum(ceil_div(step.L, b), k)
        walked = b * visits
    else:
        seen = pairs.blocks(step.P, step.S, b, k)
        visits = step.S + pairs.earlier_blocks(step.P, step.S, b, k - 1)
        walked = seen + step.S * own_tile(b)
    return BlockSparse(
        B=step.B,
        S=step.S,
        H=d.H,
        Hkv=d.Hkv,
        dk=d.dk,
        dv=d.dv,
        pairs=seen,
        walked=walked,
        visits=visits,
        b=b,
        selectors=selectors,
        entries=step.L,
        most=k,
        row_bytes=(d.dk + d.dv) * precision.kv_bytes,
        softcap=d.softcap,
        sinks=d.sinks,
        dtype=precision.attention,
        kv=precision.kv,
        decoding=step.decoding,
    )


def pool(name: str, step: Step, precision: Precision, numbers: Quantity, width: Quantity, stride: Quantity) -> Kernel:
    """Means over `width` tokens every `stride` tokens, of so many numbers per token."""
    e, new = precision.hidden_bytes, step.tokens * numbers
    return elementwise(name, read=new * e, written=new * e / stride, vector=new * width / stride)


def without_gradient(kernel: Kernel) -> Kernel:
    """The kernel of a path that training does not differentiate."""
    return kernel._replace(form=kernel.form._replace(backward=no_backward))


def gate(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Mean keys, their products with the queries, and the k − 1 best earlier blocks of every head."""
    blocks = ceil_div(step.L, d.b)
    if everywhere(d, step):
        scored, computed = step.S * blocks, rectangle(step.S, blocks)
    else:
        scored, computed = pairs.earlier_blocks(step.P, step.S, d.b), tiled_pairs(step.P, step.S, d.b)
    x = Scores(
        B=step.B,
        S=step.S,
        H=d.H,
        Hk=d.Hkv,
        d=d.dk,
        pairs=scored,
        computed=computed,
        entries=blocks,
        entry_bytes=d.dk * precision.hidden_bytes,
        results=d.H * scored,
        dtype=precision.attention,
        decoding=step.decoding,
    )
    return [
        without_gradient(pool("block means", step, precision, d.Hkv * d.dk, d.b, d.b)),
        block_scores("block gate", x),
        best_blocks(
            "top-k", Selection(rows=step.tokens * d.H, logits=step.B * x.results, k=d.k - 1), decoding=step.decoding
        ),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: as softmax attention, with the gate and the selected blocks in place of the core."""
    before, cached, dense, *after = gqa.kernels(d, D, step, precision)
    if step.decoding and not d.sparse_decode:
        return [before, cached, dense, *after]
    x = selected(d, step, precision, d.b, d.k, d.H)._replace(blocks_outside=not step.decoding)
    return [before, cached, *gate(d, step, precision), block_sparse("attention", x), *after]
