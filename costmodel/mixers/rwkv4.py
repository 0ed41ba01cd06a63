"""RWKV-4 time mixing: a decaying weighted mean of the values, per channel, with a bonus for the token itself.

Source: arXiv:2305.13048, section 3.1; BlinkDL/RWKV-LM, RWKV-v4neo/cuda/wkv_cuda.cu.

a ← e^w·a + e^k·v and b ← e^w·b + e^k with the output (a + e^(u+k)·v) / (b + e^(u+k)), gated by σ(r). The state of a
channel is three numbers: both sums and the largest exponent so far, which keeps them in range. There is no matrix
product; a thread walks its channel token by token, in prefill as in decode.

>>> from costmodel.step import Precision
>>> cache(Dims(inner=2560), Precision()).fixed == 3 * 4 * 2560 + 2 * 2560 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.selective_scan import ChannelScan, selective_scan
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "rwkv4"
ALIASES = ("rwkv-4", "rwkv", "rwkv4-time-mix")
TITLE = "RWKV-4"
SUMMARY = "decaying weighted mean per channel, token shift"
SOURCES = (
    "arXiv:2305.13048, section 3.1 (WKV)",
    "BlinkDL/RWKV-LM, RWKV-v4neo (parameters, cuda/wkv_cuda.cu)",
)
TENSOR_PARALLEL = "channels are independent; no engine is known that splits them"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2305.13048, section 3")

STATE = 3
"""Numbers per channel, in fp32."""

OPERATIONS = 3
"""Per number of the state and token: of 9 per channel, 5 update both sums and 4 form the quotient."""

EXECUTED = 19
"""Per channel and token: two maxima, four exponents, sums and quotient of rescaled terms."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of an RWKV-4 time mix; d_inner is the model width in every released model."""

    inner: int = dim("d_inner", "channels, each with a state of three numbers", split="heads")
    shift: int = dim("token_shift", "earlier tokens that the input is mixed with", 1)


EXAMPLES = (Dims(inner=24), Dims(inner=7))


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """r, k, v, and the output."""
    return (*(Projection(f"{name}_proj", D, d.inner) for name in "rkv"), Projection("o_proj", d.inner, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Three token-shift mixes; the decay w and the bonus u per channel."""
    return 3 * D + 2 * d.inner


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every channel, and the last token of this mix and of the channel mix that follows it."""
    return Cache(fixed=STATE * d.inner * 4 + 2 * d.shift * d.inner * precision.hidden_bytes)


def wkv(d: Dims, step: Step, precision: Precision) -> Kernel:
    """The WKV kernel: k and v read, the mean written; in prefill one thread per channel walks all tokens."""
    elements, e = step.tokens * d.inner, precision.hidden_bytes
    state = step.B * STATE * d.inner * 4
    ideal = STATE * OPERATIONS * elements
    if step.decoding:
        return recurrent_step(
            "recurrent step",
            Recurrence("rwkv4", step.B, step.S, 1, STATE, d.inner, OPERATIONS),
            read=2 * elements * e,
            written=elements * e,
            vector=EXECUTED * elements - ideal,
            special=5 * elements,
        )
    moved = (2 * elements * e + state, elements * e + state)
    return selective_scan(
        "wkv",
        ChannelScan("rwkv4", step.B, step.S, d.inner, STATE, updates=4, parallel=False),
        flops=(ideal, EXECUTED * elements),
        needed=moved,
        moved=moved,
        special=5 * elements,  # four exps and a reciprocal
        implementation="RWKV-LM (CUDA)",
    )


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: token shift, projections, the weighted mean, gate, output projection."""
    *inputs, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    wide, inner, kept = tokens * D, tokens * d.inner, step.B * d.shift * D
    return [
        elementwise("token shift", read=(wide + kept) * e, written=(3 * wide + kept) * e, vector=9 * wide),
        *(projection(p, step, precision) for p in inputs),
        wkv(d, step, precision),
        elementwise("gate", read=2 * inner * e, written=inner * e, vector=2 * inner, special=inner),
        projection(out, step, precision),
    ]
