"""Native sparse attention: a compressed, a selected and a window branch, each with its softmax, summed under gates.

Source: arXiv:2502.11089, section 3, eq. 5 to 12; fla-org/native-sparse-attention, ops/parallel.py.

The compressed branch attends to one entry per ds tokens (pooled from l): H(dk + dv)/ds per squared token, quadratic.
Its scores rate the blocks, so the selection needs no products of its own; the public kernel computes them again
(executed). Heads of a group share the n selected blocks, the query's own among them. Every branch has its own keys
and values in the paper; with `shared_kv` there is one set, as in the public code.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=64, Hkv=4, dk=192, dv=128)
>>> run = kernels(d, 2560, Step(1, 1, 65_535, "decode"), Precision())
>>> [k.work.flops // (2 * 64 * (192 + 128)) for k in run if k.name.endswith("attention")]
[4095, 1024, 512]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from costmodel import pairs
from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import dim, flag
from costmodel.kernels.attention import Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.block_scores import Scores, block_scores, rectangle, tiled_pairs
from costmodel.kernels.block_sparse import BlockSparse, block_sparse
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.mixers.moba import everywhere, pool, selected
from costmodel.step import Precision, Step

NAME = "nsa"
ALIASES = ("native-sparse-attention",)
TITLE = "Native sparse attention (NSA)"
SUMMARY = "compressed, selected and window attention under gates"
SOURCES = ("arXiv:2502.11089, section 3", "fla-org/native-sparse-attention, ops/parallel.py")
TENSOR_PARALLEL = "as softmax attention; compression and selection are per key head"
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("9.0× faster at 64K", "11.6× faster at 64K", "arXiv:2502.11089, section 5")
UNVERIFIED = ("the compression network, whose widths the paper does not state: mean pooling is counted",)

STEP = 64
"""Entries of one step of the compressed branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(gqa.Dims):
    """Dimensions of an NSA layer."""

    l: int = dim("compress_block", "tokens pooled into one compressed entry", 32)
    ds: int = dim("compress_stride", "tokens between compressed entries", 16)
    b: int = dim("block", "tokens of a selected block", 64)
    n: int = dim("top_k_blocks", "selected blocks of a query, forced ones included", 16)
    w: int = dim("window", "keys that the window branch sees at most", 512)
    shared_kv: bool = flag("shared_kv", "the three branches share their keys and values")


EXAMPLES = (
    Dims(H=4, Hkv=2, dk=16, dv=8, l=4, ds=2, b=4, n=2, w=5),
    Dims(H=2, Hkv=1, dk=8, dv=8, l=4, ds=4, b=4, n=3, w=8, shared_kv=True),
)


def check(d: Dims) -> list[str]:
    """As in softmax attention; the stride divides the compressed and the selected blocks."""
    names = (("compress_block", d.l), ("block", d.b))
    return gqa.check(d) + [
        f"{name} {size} is not a multiple of compress_stride {d.ds}" for name, size in names if size % d.ds
    ]


def with_all_keys(d: Dims) -> Dims:
    """The dimensions with the key heads of all branches."""
    return d if d.shared_kv else replace(d, Hkv=3 * d.Hkv)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Queries, the keys and values of every branch, output; and the gates of the branches."""
    return (*gqa.projections(with_all_keys(d), D), Projection("branch_gate_proj", D, 3 * d.H))


extra_parameters = gqa.extra_parameters


def cache(d: Dims, precision: Precision) -> Cache:
    """All tokens for the selection, one entry per ds for the compression; of their own, w tokens and l to be pooled."""
    row = d.Hkv * (d.dk + d.dv) * precision.kv_bytes
    return Cache(per_token=row + row / d.ds, fixed=0 if d.shared_kv else row * (d.w + d.l))


def compressed(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Pooling, attention to the compressed entries, and the choice of blocks by its scores."""
    entries = pairs.pooled(step.L - 1, 1, d.l, d.ds)
    if everywhere(d, step):
        seen, visits = step.S * entries, step.S * ceil_div(entries, STEP)
        computed = rectangle(step.S, entries)
    else:
        seen = pairs.pooled(step.P, step.S, d.l, d.ds)
        visits = pairs.compressed(step.P + d.ds * (STEP - 1), step.S, d.ds * STEP)
        computed = tiled_pairs(step.P, step.S, d.ds)
    common: dict[str, Any] = dict(B=step.B, S=step.S, H=d.H, pairs=seen, entries=entries, decoding=step.decoding)
    x = BlockSparse(
        **common,
        Hkv=d.Hkv,
        dk=d.dk,
        dv=d.dv,
        walked=STEP * visits,
        visits=visits,
        b=STEP,
        selectors=d.Hkv,
        row_bytes=(d.dk + d.dv) * precision.kv_bytes,
        indexed=False,
        dtype=precision.hidden,
    )
    scores = block_scores(
        "block selection",
        Scores(
            **common,
            Hk=d.Hkv,
            d=d.dk,
            computed=computed,
            entry_bytes=d.dk * precision.kv_bytes,
            results=step.S * d.Hkv * d.n,
            softmax=True,
            packed=False,
            dtype=precision.hidden,
        ),
    )
    return [
        pool("compression", step, precision, d.Hkv * (d.dk + d.dv), d.l, d.ds),
        block_sparse("compressed attention", x),
        scores._replace(ideal=scores.ideal._replace(tensor={precision.hidden: 0})),
    ]


def near(d: Dims, step: Step, precision: Precision) -> Kernel:
    """The window branch."""
    a = Attention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        Hkv=d.Hkv,
        dk=d.dk,
        dv=d.dv,
        w=d.w,
        bidirectional=everywhere(d, step),
        dtype=precision.hidden,
        kv=precision.kv,
        appends=step.phase != "train",
    )
    return decode_attention("window attention", a) if step.decoding else attention("window attention", a)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: as softmax attention, with the three branches and their gated sum in place of the core."""
    before, cached, _, *after = gqa.kernels(with_all_keys(d), D, step, precision)
    outputs, gates, e = step.tokens * d.H * d.dv, step.tokens * 3 * d.H, precision.hidden_bytes
    return [
        before,
        projection(projections(d, D)[-1], step, precision),
        cached,
        *compressed(d, step, precision),
        block_sparse("selected attention", selected(d, step, precision, d.b, d.n, d.Hkv)),
        near(d, step, precision),
        elementwise(
            "gated sum", read=(3 * outputs + gates) * e, written=outputs * e, vector=5 * outputs, special=gates
        ),
        *after,
    ]
