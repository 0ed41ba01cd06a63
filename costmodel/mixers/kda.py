"""Kimi Delta Attention: the gated delta rule with a decay of its own for every key channel.

Source: arXiv:2510.26692 (Kimi Linear), section 3, and equation 13 for FLOPs; kernels of
fla-org/flash-linear-attention, fla/ops/kda.

M ← (I − β·k·kᵀ)·diag(α)·M + β·k·vᵀ, o = q·M. The products are those of Gated DeltaNet; the vector gate, in
fp32, is written once and read four times by the chunked pipeline, which nearly doubles its traffic.

>>> from costmodel.step import Precision
>>> d = Dims(H=32, dk=128, dv=128, r=128, rg=128)
>>> cache(d, Precision()).fixed == 32 * 128 * 128 * 4 + 3 * (3 * 32 * 128) * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import SLICE, SUB_TILE, Scan, chunk_kernel, delta_rule, sizes, whole
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "kda"
ALIASES = ("kimi-delta-attention",)
TITLE = "Kimi Delta Attention"
SUMMARY = "delta rule with a decay per key channel, matrix state, chunked prefill"
SOURCES = (
    "arXiv:2510.26692, section 3 (mechanism), equation 13 (FLOPs)",
    "fla-org/flash-linear-attention, fla/ops/kda (kernels)",
)
TENSOR_PARALLEL = "by heads, the low ranks on every device: vllm-project/vllm, models/kimi_linear.py, layers/kda.py"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2510.26692, section 3")

OPERATIONS = 7
"""Per state element and token: decay 1, kᵀM 2, rank-1 write 2, qᵀM 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a KDA layer."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    r: int = dim("decay_rank", "inner width of the low-rank decay projection")
    rg: int | None = dim("gate_rank", "inner width of the output gate; null: one full matrix", None, nullable=True)
    conv: int = dim("conv", "taps of the short convolutions on q, k and v", 4)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=4, dk=8, dv=8, r=4, rg=4, C=8),
    Dims(H=3, dk=4, dv=6, r=5, conv=3, C=5),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def channels(d: Dims) -> Quantity:
    """Channels of the short convolutions: q, k and v."""
    return 2 * d.H * d.dk + d.H * d.dv


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k, v; the decay through rank r; β; the output gate, whole or through its rank; the output last."""
    gate = (
        (Projection("gate_proj", D, d.H * d.dv),)
        if d.rg is None
        else (Projection("gate_down", D, d.rg), Projection("gate_up", d.rg, d.H * d.dv))
    )
    return (
        Projection("q_proj", D, d.H * d.dk),
        Projection("k_proj", D, d.H * d.dk),
        Projection("v_proj", D, d.H * d.dv),
        Projection("decay_down", D, d.r),
        Projection("decay_up", d.r, d.H * d.dk),
        Projection("beta_proj", D, d.H),
        *gate,
        Projection("o_proj", d.H * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Convolution taps, A per head, the decay's bias per channel, and the scale of the gated norm."""
    return channels(d) * d.conv + d.H + d.H * d.dk + d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head and the convolutions' last inputs; nothing grows with the context."""
    state = d.H * d.dk * d.dv * element_bytes(d.state_dtype)
    return Cache(fixed=state + state_bytes(channels(d), d.conv, precision.hidden_bytes))


def transition_bytes(d: Dims) -> Quantity:
    """What a run of tokens does to a state: dk × dk numbers of each head, since the delta rule mixes its rows."""
    return 4 * d.H * d.dk * d.dk


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """The launches of fla's chunk_kda as one kernel: 8.6 KB per token and head at dk = dv = 128, C = 64 in bf16.

    q and k are normed inside (use_qk_l2norm_in_kernel), as measured: the norms have no launch of their own here.

    q·kᵀ and k·kᵀ are built together in 16-row blocks, because the vector decay must be applied before the
    product: first the diagonal blocks, then the others and the inverse; counted here as one kernel of three
    launches (one zero-fills). Diagonal blocks are taken on the matrix engines, as for bounded gates.
    """
    e = precision.hidden_bytes
    chunks = Scan("kda", step.B, step.S, d.H, d.dk, d.dv, d.C, precision.hidden, element_bytes(d.state_dtype))
    s = sizes(chunks) | {"tile": SUB_TILE}
    p = delta_rule(s)
    keys, values = size("B S H dk", s) * e, size("B S H dv", s) * e
    beta, square, block = size("B S H", s) * 4, size("B S H C", s) * e, size("B S H tile", s)
    lower = size("B H lower", s) * e
    raw, gate = size("B S H dk", s) * e, size("B S H dk", s) * 4  # the decay's input; its cumulative sum in fp32
    states, state = size("B n H dk dv", s) * e, size("B H dk dv", s) * element_bytes(d.state_dtype)
    last = size("B n H dk", s) * 4  # the gate at the end of each chunk
    channel = size("B padded H dk", s)
    slices = ceil_div(d.dv, SLICE)
    stages = [
        chunk_kernel(
            "gate cumsum",
            chunks,
            needed=(raw, 0),
            moved=(raw, gate),
            vector=4 * channel,
            special=2 * channel,
            recomputed=True,
        ),
        chunk_kernel(
            "q·kᵀ, k·kᵀ, inverse",
            chunks,
            (p["q·kᵀ"][0], p["k·kᵀ"][1]),  # only the lower blocks of q·kᵀ are computed
            p["k·kᵀ"],
            p["inverse"],
            needed=(2 * keys + beta, 0),
            # Both launches read q, k, g and β. Diagonal blocks: q·kᵀ in the hidden format, k·kᵀ in fp32 and read
            # again; then the rest of the lower blocks, and the inverse over its zero fill.
            moved=(2 * (2 * keys + gate + beta) + 4 * block, 4 * block + lower + square + lower),
            # Decays inside the diagonal blocks, half a block of pairs per token: an exp, two products, two sums.
            # The norms of q and k, eight operations a channel, are among them.
            vector=3 * SUB_TILE * channel + 8 * size("B S H dk", s),
            special=(SUB_TILE // 2 + 2) * channel,
            launches=3,
        ),
        chunk_kernel(
            "w, u",
            chunks,
            p["w"],
            p["u"],
            needed=(values, 0),
            moved=(keys + values + beta + square + gate, 2 * keys + values),
            vector=3 * channel + size("B padded H dv", s),
            special=2 * channel,
            recomputed=True,
        ),
        chunk_kernel(
            "chunk states",
            chunks,
            p["w·M"],
            p["kᵀ·v'"],
            needed=(state, state),
            moved=(2 * keys + values + last + state, states + values + state),
            reread=(slices - 1) * (2 * keys + last),
            vector=size("B padded H dv", s) + size("B n H dk dv", s),
            special=size("B n H dk", s) * slices,
            slices=slices,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            p["q·M"],
            p["(q·kᵀ)·v'"],
            needed=(0, values),
            moved=(keys + gate + states + values + square, values),
            reread=(slices - 1) * (keys + gate),
            vector=2 * channel,
            special=channel * slices,
        ),
    ]
    return [whole("chunk scan", stages, f"h{d.H}")]


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: the state stepped token by token; q and k are normed and the decay activated inside."""
    e = precision.hidden_bytes
    heads = step.tokens * d.H
    return [
        recurrent_step(
            "recurrent step",
            Recurrence("kda", step.B, step.S, d.H, d.dk, d.dv, OPERATIONS, element_bytes(d.state_dtype)),
            read=heads * ((3 * d.dk + d.dv) * e + 4),
            written=heads * d.dv * e,
            vector=heads * (2 * d.dv + 12 * d.dk),
            special=heads * 3 * d.dk,
        )
    ]


def convolution(d: Dims, step: Step, precision: Precision) -> Kernel:
    """The convolutions of q, k and v: three launches in prefill, one in decode."""
    c = ShortConv(step.B, step.S, channels(d), d.conv, precision.hidden_bytes)
    return short_conv("short conv", c, launches=1 if step.decoding else 3, update=step.decoding)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, convolutions, β, the recurrence, gated norm, output projection."""
    *inputs, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    heads = tokens * d.H
    core = stepwise(d, step, precision) if step.decoding else scan(d, step, precision)
    return [
        *(projection(p, step, precision) for p in inputs),
        convolution(d, step, precision),
        elementwise("β", read=heads * e, written=4 * heads, vector=2 * heads, special=heads),
        *core,
        gated_norm("gated norm", d.H * d.dv, step, precision),
        projection(out, step, precision),
    ]
