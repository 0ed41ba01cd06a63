"""RWKV-6 (Finch) time mixing: RWKV-5 with a decay and token-shift mixes that depend on the token.

Source: arXiv:2404.05892, section 4.2; BlinkDL/RWKV-LM, RWKV-v5/rwkv_v6_demo.py (class RWKV_Tmix_x060); chunked kernels
of fla-org/flash-linear-attention, fla/ops/rwkv6.

M ← diag(w)·M + kᵀ·v, o = r·(M' + diag(u)·kᵀ·v) with M' before the token. Five low-rank maps of the input choose how
much of the last token each of r, w, k, v and g sees; another makes the decay.

>>> from costmodel.step import Precision
>>> cache(Dims(H=32, d=64, rm=32, rw=64), Precision()).fixed == 4 * 64 * 2048 + 2 * 2048 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, rwkv5
from costmodel.step import Precision, Step

NAME = "rwkv6"
ALIASES = ("rwkv-6", "finch", "rwkv6-time-mix")
TITLE = "RWKV-6"
SUMMARY = "matrix state with a decay per channel and token, bonus for the token itself, token shift"
SOURCES = (
    "arXiv:2404.05892, section 4.2 (Finch)",
    "BlinkDL/RWKV-LM, RWKV-v5/rwkv_v6_demo.py (parameters)",
    "fla-org/flash-linear-attention, fla/ops/rwkv6/chunk.py (kernels)",
)
TENSOR_PARALLEL = (
    "heads are independent; no engine is known that splits them; token shift and low ranks on every device"
)
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2404.05892, section 4")

MIXES = 5
"""Inputs that are mixed with the last token: r, w, k, v, g."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of an RWKV-6 time mix; heads · head_dim is the model width in every released model."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    d: int = dim("head_dim", "width of a head; its state is head_dim × head_dim")
    rm: int = dim("mix_lora", "inner width of each of the five token-shift mixes")
    rw: int = dim("decay_lora", "inner width of the decay's projection")
    shift: int = dim("token_shift", "earlier tokens that the input is mixed with", 1)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=3, d=8, rm=4, rw=6, C=8),
    Dims(H=2, d=4, rm=3, rw=2, C=20),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """The mixes, down together and up one by one; r, k, v, g; the decay; the output last."""
    inner = d.H * d.d
    return (
        Projection("mix_down", D, MIXES * d.rm),
        Projection("mix_up", d.rm, D, heads=MIXES),
        *(Projection(f"{name}_proj", D, inner) for name in "rkvg"),
        Projection("decay_down", D, d.rw),
        Projection("decay_up", d.rw, inner),
        Projection("o_proj", inner, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Six constant mixes of width D; decay, bonus, scale and bias of the group norm: four vectors."""
    return 6 * D + 4 * d.H * d.d


def cache(d: Dims, precision: Precision) -> Cache:
    """As in RWKV-5."""
    return rwkv5.cache(d, precision)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: mixes, projections, decay, the recurrence, group norm and gate, output projection."""
    down, up, *inputs, decay_down, decay_up, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    wide, kept = tokens * D, step.B * d.shift * D
    low, slow = tokens * MIXES * d.rm, tokens * d.rw
    core = rwkv5.stepwise if step.decoding else rwkv5.scan
    return [
        elementwise("token shift", read=(wide + kept) * e, written=(wide + kept) * e, vector=3 * wide),
        projection(down, step, precision),
        elementwise("tanh", read=low * e, written=low * e, special=low),
        projection(up, step, precision),
        elementwise(
            "mixes", read=((1 + MIXES) * wide + kept) * e, written=MIXES * wide * e, vector=(1 + 3 * MIXES) * wide
        ),
        *(projection(p, step, precision) for p in inputs),
        projection(decay_down, step, precision),
        elementwise("tanh of the decay", read=slow * e, written=slow * e, special=slow),
        projection(decay_up, step, precision),
        *core(d, step, precision, NAME, streamed=True),
        gated_norm("group norm, gate", d.H * d.d, step, precision),
        projection(out, step, precision),
    ]
