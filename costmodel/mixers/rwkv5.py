"""RWKV-5 (Eagle) time mixing: a matrix state with a constant decay per channel and a bonus for the token itself.

Source: arXiv:2404.05892, section 4.1; BlinkDL/RWKV-LM, RWKV-v5/src/model.py (class RWKV_Tmix_x052); chunked kernels of
fla-org/flash-linear-attention, fla/ops/rwkv6.

M ← diag(w)·M + kᵀ·v, o = r·(M' + diag(u)·kᵀ·v) with M' before the token: the bonus u replaces the decay on the diagonal
of r·kᵀ. In chunks it runs as RWKV-6 does, its decay written out for every token.

>>> from costmodel.step import Precision
>>> cache(Dims(H=32, d=64), Precision()).fixed == 4 * 64 * 2048 + 2 * 2048 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Scan
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.mixers.gla import channel_decay
from costmodel.step import Precision, Step

NAME = "rwkv5"
ALIASES = ("rwkv-5", "eagle", "rwkv5-time-mix")
TITLE = "RWKV-5"
SUMMARY = "matrix state with a constant decay per channel, bonus for the token itself, token shift"
SOURCES = (
    "arXiv:2404.05892, section 4.1 (Eagle)",
    "BlinkDL/RWKV-LM, RWKV-v5/src/model.py (parameters)",
    "fla-org/flash-linear-attention, fla/ops/rwkv6/chunk.py (kernels)",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them; token shift on every device"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2404.05892, section 4")
UNVERIFIED = ("prefill by the official serial kernel: the chunked kernel of RWKV-6 in fla is counted",)

OPERATIONS = 5
"""Per state element and token: decay 1, write 2, read 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of an RWKV-5 time mix; heads · head_dim is the model width in every released model."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    d: int = dim("head_dim", "width of a head; its state is head_dim × head_dim")
    shift: int = dim("token_shift", "earlier tokens that the input is mixed with", 1)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=3, d=8, C=8),
    Dims(H=2, d=4, C=20, state_dtype="bf16"),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """r, k, v, the output gate, and the output."""
    inner = d.H * d.d
    return (*(Projection(f"{name}_proj", D, inner) for name in "rkvg"), Projection("o_proj", inner, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Four token-shift mixes of width D; decay, bonus, scale and bias of the group norm: four vectors."""
    return 4 * D + 4 * d.H * d.d


def cache(d: Any, precision: Precision) -> Cache:
    """The state of every head, and the last token of this mix and of the channel mix that follows it."""
    state = d.H * d.d * d.d * element_bytes(d.state_dtype)
    return Cache(fixed=state + 2 * d.shift * d.H * d.d * precision.hidden_bytes)


def scan(d: Any, step: Step, precision: Precision, pipeline: str = NAME, streamed: bool = False) -> list[Kernel]:
    """The launches of fla's chunk_rwkv6, with chunk states in fp32; streamed: the decay depends on the token.

    Bytes at d = C = 64 in bf16, per token and head: sums 640 (768 for a constant decay), r·kᵀ 1696, states 768,
    output 1152; fused they would be 640 (512).
    """
    chunks = Scan(pipeline, step.B, step.S, d.H, d.d, d.d, d.C, precision.hidden)
    return channel_decay(chunks, state=element_bytes(d.state_dtype), states=4, sums=2, streamed=streamed)


def stepwise(d: Any, step: Step, precision: Precision, mechanism: str = NAME, streamed: bool = False) -> list[Kernel]:
    """Decode: the state stepped token by token.

    The bonus needs r·(u ⊙ k) and its product with v, 4·d per head; the kernel adds it to every state element it reads.
    """
    channels, e = step.tokens * d.H * d.d, precision.hidden_bytes
    kernel = recurrent_step(
        "recurrent step",
        Recurrence(mechanism, step.B, step.S, d.H, d.d, d.d, OPERATIONS, element_bytes(d.state_dtype)),
        read=(4 if streamed else 3) * channels * e,
        written=channels * e,
        vector=2 * channels * d.d + 4 * channels,
        special=2 * channels if streamed else 0,  # e^(−e^w)
    )
    return [kernel._replace(ideal=kernel.ideal._replace(vector=kernel.ideal.vector + 4 * channels))]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: token shift, projections, the recurrence, group norm and gate, output projection."""
    *inputs, out = projections(d, D)
    wide, kept, e = step.tokens * D, step.B * d.shift * D, precision.hidden_bytes
    return [
        elementwise("token shift", read=(wide + kept) * e, written=(4 * wide + kept) * e, vector=12 * wide),
        *(projection(p, step, precision) for p in inputs),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        gated_norm("group norm, gate", d.H * d.d, step, precision),
        projection(out, step, precision),
    ]
