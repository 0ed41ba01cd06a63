"""RWKV-7 time mixing: a matrix state with a decay per channel and a rank-one correction chosen in context.

Source: arXiv:2503.14456, section 4; BlinkDL/RWKV-LM, RWKV-v7; chunked kernels of
fla-org/flash-linear-attention, fla/ops/generalized_delta_rule/dplr.

M ← diag(w)·M + b·(aᵀM) + k·vᵀ, o = r·M with a = −κ̂ and b = κ̂ ⊙ (in-context rate): diagonal plus low rank.
Low-rank projections of widths lora.* make the decay, the rate, the value mix and the output gate.

>>> from costmodel.step import Precision
>>> d = Dims(H=40, d=64, rw=96, ra=96, rv=64, rg=320)
>>> cache(d, Precision()).fixed == 4 * 64 * 2560 + 2 * 2560 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import SLICE, Scan, chunk_kernel, sizes
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "rwkv7"
ALIASES = ("rwkv-7", "goose", "rwkv7-time-mix")
TITLE = "RWKV-7"
SUMMARY = "diagonal plus low-rank state transition, matrix state, token shift"
SOURCES = (
    "arXiv:2503.14456, section 4 (mechanism)",
    "BlinkDL/RWKV-LM, RWKV-v7 (parameters)",
    "fla-org/flash-linear-attention, fla/ops/generalized_delta_rule/dplr (kernels)",
)
TENSOR_PARALLEL = (
    "heads are independent; no engine is known that splits them; token shift and low ranks on every device"
)
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2503.14456, section 4")

OPERATIONS = 9
"""Per state element and token: decay 1, aᵀM 2, write along b 2, write of k·vᵀ 2, read 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of an RWKV-7 time mix; heads · head_dim is the model width in every released model."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    d: int = dim("head_dim", "width of a head; its state is head_dim × head_dim")
    rw: int = dim("lora.w", "inner width of the decay's projection")
    ra: int = dim("lora.a", "inner width of the in-context rate's projection")
    rv: int = dim("lora.v", "inner width of the value mix's projection")
    rg: int = dim("lora.g", "inner width of the output gate's projection")
    shift: int = dim("token_shift", "earlier tokens that the input is mixed with", 1)
    C: int = dim("chunk", "tokens of a chunk", 16)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=3, d=8, rw=4, ra=4, rv=3, rg=6, C=8),
    Dims(H=2, d=4, rw=3, ra=2, rv=2, rg=5),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """r, k, v, then down and up for decay, rate, value mix and gate; the output last."""
    inner = d.H * d.d
    ranks = {"w": d.rw, "a": d.ra, "v": d.rv, "g": d.rg}
    return (
        *(Projection(f"{name}_proj", D, inner) for name in "rkv"),
        *(
            half
            for name, rank in ranks.items()
            for half in (Projection(f"{name}_lora_down", D, rank), Projection(f"{name}_lora_up", rank, inner))
        ),
        Projection("o_proj", inner, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Six token-shift mixes of width D; biases of w, a, v, scales of k (two), bonus r·k, group norm: eight vectors."""
    return 6 * D + 8 * d.H * d.d


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head, and the last token of this mix and of the channel mix that follows it."""
    state = d.H * d.d * d.d * element_bytes(d.state_dtype)
    return Cache(fixed=state + 2 * d.shift * d.H * d.d * precision.hidden_bytes)


def transition_bytes(d: Dims) -> Quantity:
    """What a run of tokens does to a state: d × d numbers of each head, since the delta rule mixes its rows."""
    return 4 * d.H * d.d * d.d


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """The launches of fla's chunk_dplr_delta_rule: 5.5 KB per token and head at d = 64, C = 16; fused 0.9 KB.

    With decays applied, T = (I − lower a·bᵀ)⁻¹, W = T·A, U = (T·lower a·kᵀ)V: Y = U + W·M are the rows aᵀM of the
    chunk, O = R·M + lower(r·kᵀ)V + lower(r·bᵀ)Y, M ← M + Kᵀ·V + Bᵀ·Y: four products with the state.
    """
    e = precision.hidden_bytes
    chunks = Scan("rwkv7", step.B, step.S, d.H, d.d, d.d, d.C, precision.hidden)
    s = sizes(chunks) | {"d": d.d}
    row, gate = size("B S H d", s) * e, size("B S H d", s) * 4
    narrow, wide = size("B S H C", s) * e, size("B S H C", s) * 4  # C × C matrices in the hidden format and fp32
    states, state = size("B n H dk dv", s) * e, size("B H dk dv", s) * element_bytes(d.state_dtype)
    channel, computed = size("B padded H d", s), size("B H square d", s)
    strict, inclusive = (dot("B H strict d", s), 2 * computed), (dot("B H pairs d", s), 2 * computed)
    through_state = (dot("B S H dk dv", s), dot("B padded H dk dv", s))
    slices = ceil_div(d.d, SLICE)
    return [
        chunk_kernel(
            "decay cumsum",
            chunks,
            needed=(row, 0),
            moved=(row, 2 * gate),  # sums with and without the token's own decay
            vector=2 * channel,
            recomputed=True,
        ),
        chunk_kernel(
            "a·bᵀ, a·kᵀ, r·kᵀ, r·bᵀ",
            chunks,
            strict,
            strict,
            inclusive,
            inclusive,
            needed=(4 * row, 0),
            moved=(4 * row + 2 * gate, 4 * row + 2 * narrow + 2 * wide),
            vector=4 * computed + 6 * channel,
            special=2 * computed + 3 * channel,
            launches=2,
            recomputed=True,
        ),
        chunk_kernel(
            "inverse, w, u",
            chunks,
            (dot("B H triples", s), dot("B H inverse", s)),
            inclusive,
            (dot("B H triples", s), dot("B H square C", s)),
            strict,
            needed=(row, 0),
            moved=(wide + 2 * row + 2 * wide, wide + 2 * row),  # the inverse is a launch of its own
            launches=2,
            recomputed=True,
        ),
        chunk_kernel(
            "chunk states",
            chunks,
            through_state,
            through_state,
            through_state,
            needed=(state, state),
            moved=(5 * row + state, states + row + state),
            reread=(slices - 1) * 3 * row,
            vector=channel + 2 * size("B n H dk dv", s),
            special=size("B n H d", s) * slices,
            slices=slices,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            through_state,
            inclusive,
            inclusive,
            needed=(0, row),
            moved=(3 * row + 2 * narrow + states, row),
            reread=(slices - 1) * row,
            vector=2 * channel,
        ),
    ]


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: the state stepped token by token."""
    elements = step.tokens * d.H * d.d
    e = precision.hidden_bytes
    return [
        recurrent_step(
            "recurrent step",
            Recurrence("rwkv7", step.B, step.S, d.H, d.d, d.d, OPERATIONS, element_bytes(d.state_dtype)),
            read=6 * elements * e,
            written=elements * e,
            vector=2 * elements,
            special=elements,
        )
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: token shift, projections, gates, the recurrence, group norm with bonus and gate, output."""
    *inputs, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    wide, inner = tokens * D, tokens * d.H * d.d
    kept = step.B * d.shift * D
    return [
        elementwise("token shift", read=(wide + kept) * e, written=(6 * wide + kept) * e, vector=(1 + 12) * wide),
        *(projection(p, step, precision) for p in inputs),
        # In: k, v, the first layer's v, and w, a, v before activation; out: w, k, v, −κ̂ and κ̂ ⊙ a.
        elementwise("decay, rate, κ̂", read=6 * inner * e, written=5 * inner * e, vector=20 * inner, special=6 * inner),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        # In: o, r, k, v and the gate's projection.
        elementwise("group norm, bonus, gate", read=5 * inner * e, written=inner * e, vector=13 * inner),
        projection(out, step, precision),
    ]
