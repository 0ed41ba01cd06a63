"""DeltaNet: a matrix state that replaces what its key held by the new value, without decay.

Source: arXiv:2406.06484, section 3 (WY form), section 3.4 (layer); fla-org/flash-linear-attention, fla/ops/delta_rule
(kernels), fla/layers/delta_net.py (layer).

M ← (I − β·k·kᵀ)M + β·k·vᵀ, o = q·M: Gated DeltaNet without its gate, with the same matrix products, one FLOP less per
state element in decode, and no stream of decays.

>>> from costmodel.step import Precision
>>> cache(Dims(H=16, dk=128, dv=128), Precision()).fixed == 4 * 16 * 128 * 128 + 3 * 3 * 2048 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim, flag
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.short_conv import ShortConv, short_conv
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.mixers import gated_delta_product as product
from costmodel.step import Precision, Step

NAME = "deltanet"
ALIASES = ("delta-net", "delta_net", "delta-rule")
TITLE = "DeltaNet"
SUMMARY = "delta rule without decay, matrix state, chunked prefill"
SOURCES = (
    "arXiv:2406.06484, section 3 (WY form, chunked)",
    "fla-org/flash-linear-attention, fla/ops/delta_rule (kernels)",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2406.06484, section 3")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a DeltaNet layer."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    gate: bool = flag("output_gate", "multiplies the normed output by a gate with a projection of its own")
    conv: int = dim("conv", "taps of the short convolutions on q, k and v", 4)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=2, dk=8, dv=8, C=8),
    Dims(H=3, dk=4, dv=6, gate=True, conv=3, C=5),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def rule(d: Dims) -> product.Dims:
    """The same recurrence as a product of one Householder step without decay."""
    return product.Dims(H=d.H, dk=d.dk, dv=d.dv, n=1, conv=d.conv, forget=False, C=d.C, state_dtype=d.state_dtype)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k, v, the rate β, the output gate if there is one, and the output."""
    return (
        Projection("q_proj", D, d.H * d.dk),
        Projection("k_proj", D, d.H * d.dk),
        Projection("v_proj", D, d.H * d.dv),
        Projection("beta_proj", D, d.H),
        *((Projection("gate_proj", D, d.H * d.dv),) if d.gate else ()),
        Projection("o_proj", d.H * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Convolution taps and the scale of the norm."""
    return product.channels(rule(d)) * d.conv + d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head and the convolutions' last inputs; nothing grows with the context."""
    return product.cache(rule(d), precision)


def transition_bytes(d: Dims) -> Quantity:
    """What a run of tokens does to a state: dk × dk numbers of each head, since the delta rule mixes its rows."""
    return 4 * d.H * d.dk * d.dk


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, convolutions, β, the recurrence, norm, output projection."""
    *inputs, out = projections(d, D)
    same, e, tokens = rule(d), precision.hidden_bytes, step.tokens
    qk, heads, values = 2 * tokens * d.H * d.dk, tokens * d.H, tokens * d.H * d.dv
    qk_norm = elementwise("q, k norm", read=qk * e, written=qk * e, vector=4 * qk)
    if step.decoding:
        core = product.stepwise(same, step, precision, NAME)
    else:
        core = [qk_norm, *product.scan(same, step, precision, NAME)]
    if d.gate:
        after = gated_norm("gated norm", d.H * d.dv, step, precision)
    else:
        after = elementwise("norm", read=values * e, written=values * e, vector=4 * values)
    conv = ShortConv(step.B, step.S, product.channels(same), d.conv, e)
    return [
        *(projection(p, step, precision) for p in inputs),
        short_conv("short conv", conv, launches=1 if step.decoding else 3, update=step.decoding),
        elementwise("β", read=heads * e, written=4 * heads, vector=2 * heads, special=heads),
        *core,
        after,
        projection(out, step, precision),
    ]
