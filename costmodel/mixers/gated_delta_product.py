"""Gated DeltaProduct: a gated delta rule that writes n_h key-value pairs per token, a product of n_h Householder steps.

Source: arXiv:2502.10297, section 3 (DeltaProduct, with the gate of arXiv:2412.06464); fla-org/flash-linear-attention,
fla/ops/gated_delta_product (kernels), fla/layers/gated_deltaproduct.py (layer).

M ← (∏ⱼ(I − βⱼ·kⱼ·kⱼᵀ))·α·M + Σ…, o = q·M: the state sees a sequence n_h times as long, but decays and is read once per
token. So writing costs what Gated DeltaNet's costs over n_h·S tokens, and the chain of chunk states grows n_h-fold.

>>> from costmodel.step import Precision
>>> cache(Dims(H=6, dk=256, dv=512, n=2), Precision()).fixed == 4 * 6 * 256 * 512 + 3 * 6 * (256 + 2 * 768) * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim, flag
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import SLICE, Scan, chunk_kernel, delta_rule, sizes
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "gated_delta_product"
ALIASES = ("gated-deltaproduct", "deltaproduct", "delta-product", "gated-delta-product")
TITLE = "Gated DeltaProduct"
SUMMARY = "gated delta rule with n_h Householder steps per token, matrix state, chunked prefill"
SOURCES = (
    "arXiv:2502.10297, section 3 (products of Householder matrices)",
    "fla-org/flash-linear-attention, fla/ops/gated_delta_product (kernels)",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2502.10297, section 3")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a gated delta product layer."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    n: int = dim("householder", "Householder steps per token: key-value pairs that a token writes", 2)
    conv: int = dim("conv", "taps of the short convolutions on q, k and v", 4)
    forget: bool = flag("forget_gate", "the state decays by a scalar per head and token", True)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=2, dk=8, dv=8, n=2, C=8),
    Dims(H=3, dk=4, dv=6, n=3, conv=3, C=5),
    Dims(H=2, dk=4, dv=4, n=1, forget=False, C=8),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def channels(d: Dims) -> Quantity:
    """Channels of the short convolutions: q, and n_h keys and values."""
    return d.H * d.dk + d.n * d.H * (d.dk + d.dv)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q; n_h keys, values and rates β; the decay's input; the output gate; the output."""
    return (
        Projection("q_proj", D, d.H * d.dk),
        Projection("k_proj", D, d.n * d.H * d.dk),
        Projection("v_proj", D, d.n * d.H * d.dv),
        Projection("beta_proj", D, d.n * d.H),
        *((Projection("decay_proj", D, d.H),) if d.forget else ()),
        Projection("gate_proj", D, d.H * d.dv),
        Projection("o_proj", d.H * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Convolution taps, A and its bias per head, and the scale of the gated norm."""
    return channels(d) * d.conv + (2 * d.H if d.forget else 0) + d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head and the convolutions' last inputs; nothing grows with the context."""
    state = d.H * d.dk * d.dv * element_bytes(d.state_dtype)
    return Cache(fixed=state + state_bytes(channels(d), d.conv, precision.hidden_bytes))


def transition_bytes(d: Dims) -> Quantity:
    """What a run of tokens does to a state: dk × dk numbers of each head, since the delta rule mixes its rows."""
    return 4 * d.H * d.dk * d.dk


def scan(d: Dims, step: Step, precision: Precision, pipeline: str = NAME) -> list[Kernel]:
    """The launches of fla's chunk_gated_delta_product: those of the delta rule over n_h·S written pairs.

    Only the output works on tokens: a chunk of C tokens reads the state before it and the n_h·C pairs inside, so
    the states between the launches are kept once per n_h chunks of pairs.
    """
    e = precision.hidden_bytes
    tokens = Scan(pipeline, step.B, step.S, d.H, d.dk, d.dv, d.C, precision.hidden)
    pairs = tokens._replace(S=d.n * step.S)
    s, w = sizes(tokens) | {"copies": d.n}, sizes(pairs)
    p = delta_rule(w)
    queries, outputs = size("B S H dk", s) * e, size("B S H dv", s) * e
    keys, values = size("B S H dk", w) * e, size("B S H dv", w) * e
    gate, rate, square = size("B S H", s) * 4, size("B S H", w) * 4, size("B S H C", w) * e
    decay = rate if d.forget else 0  # the cumulative decay at every written pair
    states, state = size("B n H dk dv", s) * e, size("B H dk dv", s) * element_bytes(d.state_dtype)
    slices = ceil_div(d.dv, SLICE)
    gates = [
        chunk_kernel(
            "gate cumsum",
            tokens,
            needed=(gate, 0),
            # Once over the tokens; once over the pairs, zero-filled but for the first of each token.
            moved=(2 * gate + rate, 2 * gate + 2 * rate),
            vector=size("B padded H", s) + size("B padded H", w),
            launches=4,
        )
    ]
    return [
        *(gates if d.forget else ()),
        chunk_kernel(
            "k·kᵀ, inverse",
            pairs,
            p["k·kᵀ"],
            p["inverse"],
            needed=(keys + rate, 0),
            # The inverse is zero-filled by a launch of its own, then its lower tiles are written.
            moved=(keys + rate + decay, square + size("B H lower", w) * e),
            vector=3 * size("B H lower", w),
            special=size("B H lower", w) if d.forget else 0,
            launches=2,
        ),
        chunk_kernel(
            "w, u",
            pairs,
            p["w"],
            p["u"],
            needed=(values, 0),
            moved=(keys + values + square, keys + values),
            vector=size("B padded H dk", w) + size("B padded H dv", w),
            special=size("B padded H", w) if d.forget else 0,
            recomputed=True,
        ),
        chunk_kernel(
            "chunk states",
            pairs,
            p["w·M"],
            p["kᵀ·v'"],
            needed=(state, state),
            moved=(2 * keys + values + state, states + values + state),
            reread=(slices - 1) * 2 * keys,
            vector=2 * size("B padded H dv", w) + size("B n H dk dv", w),
            special=size("B padded H", w) * slices if d.forget else 0,
            slices=slices,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            tokens,
            (dot("B S H dk dv", s), dot("B padded H dk dv", s)),
            (dot("B H pairs copies dk", s), dot("B H square copies dk", s)),
            (dot("B H pairs copies dv", s), dot("B H square copies dv", s)),
            needed=(queries, outputs),
            moved=(queries + keys + values + states, outputs),
            reread=(slices - 1) * (queries + keys),
            vector=2 * size("B H square copies", s) + 2 * size("B padded H dv", s),
            special=size("B H square", s) + size("B padded H", s) if d.forget else 0,
        ),
    ]


def stepwise(d: Dims, step: Step, precision: Precision, mechanism: str = NAME) -> list[Kernel]:
    """Decode: fla's gated delta rule over n_h·S pairs, with a zero query and no decay at all but one of a token.

    Per state element and token the product needs a decay (1), n_h times kᵀM (2) and a rank-one write (2), and one
    read (2); the kernel does all seven for every pair.
    """
    e, heads = precision.hidden_bytes, step.tokens * d.H
    per_pair = 7 if d.forget else 6
    needed = 4 * d.n + per_pair - 4
    kernel = recurrent_step(
        "recurrent step",
        Recurrence(mechanism, step.B, step.S, d.H, d.dk, d.dv, needed, element_bytes(d.state_dtype)),
        read=heads * (d.dk + d.n * (d.dk + d.dv)) * e + heads * 4 * (d.n + (1 if d.forget else 0)),
        written=heads * d.dv * e,
        vector=(d.n * per_pair - needed) * heads * d.dk * d.dv + d.n * heads * (2 * d.dv + 8 * d.dk),
        special=3 * d.n * heads,
    )
    grid = kernel.grid
    return [kernel._replace(grid=grid._replace(chain_steps=d.n * grid.chain_steps) if grid else None)]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, convolutions, gates, the recurrence, gated norm, output projection."""
    *inputs, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    qk, gates = (1 + d.n) * tokens * d.H * d.dk, (d.n + (1 if d.forget else 0)) * tokens * d.H
    qk_norm = elementwise("q, k norm", read=qk * e, written=qk * e, vector=4 * qk)
    core = stepwise(d, step, precision) if step.decoding else [qk_norm, *scan(d, step, precision)]
    return [
        *(projection(p, step, precision) for p in inputs),
        short_conv(
            "short conv",
            ShortConv(step.B, step.S, channels(d), d.conv, e),
            launches=1 if step.decoding else 3,
            update=step.decoding,
        ),
        elementwise("decay, β", read=gates * e, written=gates * 4, vector=3 * gates, special=2 * gates),
        *core,
        gated_norm("gated norm", d.H * d.dv, step, precision),
        projection(out, step, precision),
    ]
