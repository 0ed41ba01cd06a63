"""Gated linear attention: a matrix state with a decay of its own for every key channel.

Source: arXiv:2312.06635, section 4 (gated recurrence, secondary chunking); fla-org/flash-linear-attention, fla/ops/gla
(kernels), fla/layers/gla.py (layer).

M ← diag(α)·M + kᵀ·v, o = q·M. A decay per channel must be applied inside the inner product of q and k: blocks of 16
rows on the diagonal of a chunk are computed on the vector lanes with one exp per pair and channel, the rest on the
matrix engines, relative to the first row of each block.

>>> from costmodel.step import Precision
>>> cache(Dims(H=4, dk=256, dv=512, r=16), Precision()).fixed == 2048**2 / 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div, floor_div, half, named
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import RESIDENT, SLICE, SUB_TILE, Scan, chunk_kernel, lower_tiles, sizes
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.pairs import chunked
from costmodel.step import Precision, Step

NAME = "gla"
ALIASES = ("gated-linear-attention", "gated_linear_attention")
TITLE = "Gated linear attention"
SUMMARY = "linear attention with a decay per key channel"
SOURCES = (
    "arXiv:2312.06635, section 4 (chunked form, secondary chunking)",
    "fla-org/flash-linear-attention, fla/ops/gla/chunk.py and fla/ops/common/chunk_h.py (kernels)",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them; the low-rank decay is on every device"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2312.06635, section 4")

OPERATIONS = 5
"""Per state element and token: decay 1, write 2, read 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a gated linear attention layer."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    r: int = dim("gate_rank", "inner width of the low-rank decay projection", 16)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=2, dk=8, dv=12, r=4, C=8),
    Dims(H=1, dk=4, dv=6, r=3, C=40),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k, v; the decay through rank r; the output gate; the output last."""
    return (
        Projection("q_proj", D, d.H * d.dk),
        Projection("k_proj", D, d.H * d.dk),
        Projection("v_proj", D, d.H * d.dv),
        Projection("decay_down", D, d.r),
        Projection("decay_up", d.r, d.H * d.dk, bias=True),
        Projection("gate_proj", D, d.H * d.dv),
        Projection("o_proj", d.H * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """The scale of the gated norm."""
    return d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head; nothing grows with the context."""
    return Cache(fixed=d.H * d.dk * d.dv * element_bytes(d.state_dtype))


def pairs_of_blocks(S: Quantity, C: Quantity) -> Quantity:
    """In-chunk pairs inside the blocks of 16 rows on the diagonal; blocks start anew with every chunk.

    >>> pairs_of_blocks(64, 64) == 4 * 136, pairs_of_blocks(8, 8)
    (True, 36)
    """
    whole = floor_div(S, C)
    return whole * chunked(0, C, SUB_TILE) + chunked(0, S - whole * C, SUB_TILE)


def channel_decay(chunks: Scan, *, state: float, states: float, sums: int, streamed: bool = True) -> list[Kernel]:
    """The launches of a recurrence with a decay per key channel (fla's chunk_gla and chunk_rwkv6).

    state, states: bytes per element of the final state and of the states kept between the launches; sums: cumulative
    decays that are written, with and without the token's own; streamed: the decay depends on the token.

    GLA at dk = dv = 128, C = 64 in bf16, bytes per token and head: sums 768, q·kᵀ 2208, states 1536, output 2048; fused
    they would be 1280.
    """
    e = element_bytes(chunks.dtype)
    s = sizes(chunks) | {"near": named("near", pairs_of_blocks(chunks.S, chunks.C))}
    s["m"] = ceil_div(chunks.C, SUB_TILE)
    s["far"] = s["pairs"] - s["near"]
    s["blocks"] = s["n"] * s["m"] * SUB_TILE * SUB_TILE
    s["rest"] = s["n"] * lower_tiles(chunks.C) - s["blocks"]
    s["rows"] = s["n"] * half(s["m"] * (s["m"] - 1)) * SUB_TILE  # of the blocks below the diagonal
    keys, values = size("B S H dk", s) * e, size("B S H dv", s) * e
    decay = size("B S H dk", s) * 4  # cumulative, in fp32
    lower, square = (size("B H blocks", s) + size("B H rest", s)) * 4, size("B S H C", s) * 4
    kept, final = size("B n H dk dv", s) * states, size("B H dk dv", s) * state
    channel, on, below = size("B padded H dk", s), size("B H blocks dk", s), 2 * size("B H rows dk", s)
    through_state = (dot("B S H dk dv", s), dot("B padded H dk dv", s))
    rows, columns = ceil_div(chunks.dk, SLICE), ceil_div(chunks.dv, SLICE)
    products = chunk_kernel(
        "q·kᵀ",
        chunks,
        (dot("B H far dk", s), dot("B H rest dk", s)),
        needed=(keys, 0),
        # Two launches read q, k and the decays: blocks below the diagonal, then those on it.
        moved=(2 * (2 * keys + sums * decay), lower),
        # Per pair of a diagonal block and channel: a difference, two products and a sum, around an exp.
        # Below, q and k of each block are decayed to the block's first row: a difference, an exp and a product.
        vector=4 * on + 2 * below,
        special=on + below,
        launches=2,
    )
    products = products._replace(ideal=products.ideal._replace(vector=dot("B H near dk", s)))
    return [
        chunk_kernel(
            "decay cumsum",
            chunks,
            needed=(keys if streamed else 0, 0),
            # A constant decay is first written out for every token.
            moved=(keys, sums * decay + (0 if streamed else keys)),
            vector=sums * channel,
            recomputed=True,
        ),
        products,
        chunk_kernel(
            "chunk states",
            chunks,
            through_state,
            needed=(keys + values + final, final),
            moved=(keys + values + decay + final, kept + final),
            reread=(columns - 1) * (keys + decay) + (rows - 1) * values,
            vector=2 * channel * columns + size("B n H dk dv", s),
            special=channel * columns,
            slices=rows * columns,
            occupancy=RESIDENT,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            through_state,
            (dot("B H pairs dv", s), dot("B H square dv", s)),
            needed=(0, values),
            moved=(keys + decay + kept + values + square, values),
            reread=(columns - 1) * (keys + decay),
            vector=2 * channel * columns,
            special=channel * columns,
        ),
    ]


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """The launches of fla's chunk_gla: 6.4 KiB per token and head at dk = dv = 128, C = 64 in bf16."""
    chunks = Scan("gla", step.B, step.S, d.H, d.dk, d.dv, d.C, precision.hidden)
    return channel_decay(chunks, state=element_bytes(d.state_dtype), states=precision.hidden_bytes, sums=1)


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: the state stepped token by token."""
    heads, e = step.tokens * d.H, precision.hidden_bytes
    return [
        recurrent_step(
            "recurrent step",
            Recurrence("gla", step.B, step.S, d.H, d.dk, d.dv, OPERATIONS, element_bytes(d.state_dtype)),
            read=heads * (3 * d.dk + d.dv) * e,
            written=heads * d.dv * e,
            vector=heads * 2 * d.dk,
            special=heads * d.dk,
        )
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, decay, the recurrence, gated norm, output projection."""
    *inputs, out = projections(d, D)
    gate, e = step.tokens * d.H * d.dk, precision.hidden_bytes
    return [
        *(projection(p, step, precision) for p in inputs),
        elementwise("decay", read=gate * e, written=gate * e, vector=4 * gate, special=2 * gate),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        gated_norm("gated norm", d.H * d.dv, step, precision),
        projection(out, step, precision),
    ]
