"""InfLLM-v2: blocks are selected by attention to pooled keys; short sequences stay with full attention.

Source: arXiv:2509.24663, section 3; OpenBMB/infllmv2_cuda_impl, README (stage 1, stage 2); openbmb/MiniCPM4-8B,
modeling_minicpm.py (two levels of pooled keys, top-k counted beside the window).

Stage 1 meets keys pooled over l tokens every r with every query head, for the sum over the heads of a group of their
probabilities; the normaliser comes from a coarser level, four times as wide: 2·H·dk·(1 + ¼)/r per pair, quadratic.
Stage 2 attends to the k best blocks and those of the window, the first block and the query's own among them. Neither
pooling nor selection has a gradient or parameters, so full attention (below `dense_len` tokens) needs the same weights.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=32, Hkv=2, dk=128, dv=128)
>>> short, long = (kernels(d, 4096, Step(1, 1, P, "decode"), Precision()) for P in (8190, 8191))
>>> [k.name for k in short if k.count == 1][2], [k.name for k in long if k.count == 1][-2]
('attention', 'sparse attention')
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel import pairs
from costmodel.algebra import Quantity, ceil_div, floor_div, where
from costmodel.dims import dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.block_scores import Scores, best_blocks, block_scores, rectangle, tiled_pairs
from costmodel.kernels.block_sparse import block_sparse
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.top_k import Selection
from costmodel.layers.projection import Projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.mixers.moba import everywhere, pool, selected, without_gradient
from costmodel.step import Precision, Step

NAME = "infllm2"
ALIASES = ("infllm-v2", "minicpm4-sparse-attention")
TITLE = "InfLLM-v2"
SUMMARY = "the top-k blocks by pooled keys, and a window; dense when short"
SOURCES = (
    "arXiv:2509.24663, section 3",
    "OpenBMB/infllmv2_cuda_impl, README",
    "openbmb/MiniCPM4-8B, modeling_minicpm.py",
)
TENSOR_PARALLEL = "as softmax attention; the selection is per key head: OpenBMB/infllmv2_cuda_impl"
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("< 5 % of the tokens", "< 5 % of the tokens", "openbmb/MiniCPM4-8B, model card (at 128K)")

COARSER = 4
"""Width and stride of the pooled keys for the normaliser, over those for the scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(gqa.Dims):
    """Dimensions of an InfLLM-v2 layer."""

    l: int = dim("kernel_size", "tokens pooled into one key of the selection", 32)
    r: int = dim("kernel_stride", "tokens between pooled keys", 16)
    b: int = dim("block", "tokens of a block", 64)
    k: int = dim("top_k_blocks", "blocks selected beside those of the window, the first ones included", 64)
    w: int = dim("window", "tokens whose blocks are always selected", 2048)
    init_blocks: int = dim("init_blocks", "first blocks of the sequence that are always selected", 1, least=0)
    dense_len: int = dim("dense_len", "context from which on attention is sparse", 8192, least=0)


EXAMPLES = (
    Dims(H=4, Hkv=2, dk=16, dv=16, l=2, r=1, b=4, k=1, w=4, dense_len=16),
    Dims(H=2, Hkv=1, dk=8, dv=8, l=2, r=2, b=2, k=2, w=3, init_blocks=0, dense_len=0, gate=True, rope=False),
)

extra_parameters = gqa.extra_parameters


def check(d: Dims) -> list[str]:
    """As in softmax attention; pooled keys overlap or touch, and the first blocks fit among the selected ones."""
    problems = gqa.check(d)
    if d.l < d.r:
        problems.append(f"kernel_size {d.l} is less than kernel_stride {d.r}")
    if d.b % d.r:
        problems.append(f"block {d.b} is not a multiple of kernel_stride {d.r}")
    if d.init_blocks > d.k:
        problems.append(f"init_blocks {d.init_blocks} exceed top_k_blocks {d.k}")
    return problems


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """As in softmax attention."""
    return gqa.projections(d, D)


def cache(d: Dims, precision: Precision) -> Cache:
    """Keys and values of all tokens, and the pooled keys of both levels."""
    pooled = d.Hkv * d.dk * (1 + 1 / COARSER) / d.r
    return Cache(per_token=(d.Hkv * (d.dk + d.dv) + pooled) * precision.kv_bytes)


def blocks(d: Dims) -> Quantity:
    """Blocks that a query attends to at most."""
    return d.k + floor_div(d.w, d.b)


def stage_1(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Pooled keys, the normaliser, the summed probabilities, their maximum in every block, and the best blocks."""

    def level(width: Quantity, stride: Quantity) -> dict[str, Any]:
        entries = pairs.pooled(step.L - 1, 1, width, stride)
        if everywhere(d, step):
            return dict(entries=entries, pairs=step.S * entries, computed=rectangle(step.S, entries))
        seen, computed = pairs.pooled(step.P, step.S, width, stride), tiled_pairs(step.P, step.S, stride)
        return dict(entries=entries, pairs=seen, computed=computed)

    common: dict[str, Any] = dict(B=step.B, S=step.S, H=d.H, Hk=d.Hkv, d=d.dk, entry_bytes=d.dk * precision.kv_bytes)
    common |= dict(softmax=True, dtype=precision.attention, decoding=step.decoding)
    coarse, fine = level(COARSER * d.l, COARSER * d.r), level(d.l, d.r)
    scores = Scores(**common, **fine, results=d.Hkv * fine["pairs"], result_bytes=2)
    if everywhere(d, step):
        rated = step.S * ceil_div(step.L, d.b)
    else:
        rated = step.S + pairs.earlier_blocks(step.P, step.S, d.b)
    rated = step.B * d.Hkv * rated
    summed = step.B * scores.results
    return [
        without_gradient(pool("pooled keys", step, precision, d.Hkv * d.dk, d.l, d.r)),
        without_gradient(pool("coarse pooled keys", step, precision, d.Hkv * d.dk, COARSER * d.l, COARSER * d.r)),
        block_scores("coarse normaliser", Scores(**common, **coarse, results=step.S * d.H)),
        block_scores("block scores", scores),
        without_gradient(elementwise("max-pool", read=2 * summed, written=2 * rated, vector=summed)),
        best_blocks(
            "top-k",
            Selection(rows=step.tokens * d.Hkv, logits=rated, k=blocks(d), logit_bytes=2),
            decoding=step.decoding,
        ),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: as softmax attention; from `dense_len` tokens on the two stages run in place of the core."""
    before, cached, dense, *after = gqa.kernels(d, D, step, precision)
    is_dense, is_sparse = where(d.dense_len > step.L, 1, 0), where(d.dense_len > step.L, 0, 1)
    sparse = block_sparse("sparse attention", selected(d, step, precision, d.b, blocks(d), d.Hkv))
    return [
        before,
        cached,
        dense.times(is_dense),
        *(kernel.times(is_sparse) for kernel in (*stage_1(d, step, precision), sparse)),
        *after,
    ]
