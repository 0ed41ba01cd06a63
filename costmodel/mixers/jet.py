"""JetBlock: Gated DeltaNet with a convolution on the values whose taps are computed from the token.

Source: arXiv:2508.15884 (Jet-Nemotron), section 2; NVlabs/Jet-Nemotron, jetai/modeling/hf/jet_block.py and
dynamic_conv.py.

Queries and keys pass a SiLU only. A generator D → H·dv/ratio → H·dv·taps makes the taps of every token and channel,
which the convolution reads like activations: taps times as many bytes as its input.

>>> from costmodel.step import Precision
>>> cache(Dims(H=12, dk=96, dv=256), Precision()).fixed == 4 * 12 * 96 * 256 + 3 * 3072 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, floor_div
from costmodel.dims import choice, dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, gdn
from costmodel.step import Precision, Step

NAME = "jet"
ALIASES = ("jetblock", "jet-block", "jet_block")
TITLE = "JetBlock"
SUMMARY = "gated delta rule with a dynamic convolution on the values"
SOURCES = (
    "arXiv:2508.15884, section 2 (JetBlock)",
    "NVlabs/Jet-Nemotron, jetai/modeling/hf/jet_block.py (layer), dynamic_conv.py (taps)",
)
TENSOR_PARALLEL = (
    "not split: the generator of the taps mixes all channels, and no engine splits it; every device has all of it"
)
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2508.15884, section 2")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a JetBlock."""

    H: int = dim("heads", "heads, each with a state")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    conv: int = dim("conv", "taps of the dynamic convolution on v", 4)
    ratio: int = dim("generator_ratio", "width of v over the inner width of the taps' generator", 8)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=2, dk=8, dv=12, ratio=4, C=8),
    Dims(H=3, dk=4, dv=6, conv=3, ratio=2, C=5),
)


def check(d: Dims) -> list[str]:
    """The generator's inner width must be whole."""
    width = d.H * d.dv
    return [] if width % d.ratio == 0 else [f"v is {width} wide, not a multiple of generator_ratio {d.ratio}"]


def rule(d: Dims) -> gdn.Dims:
    """The recurrence is that of Gated DeltaNet without shared keys."""
    return gdn.Dims(Hk=d.H, Hv=d.H, dk=d.dk, dv=d.dv, C=d.C, state_dtype=d.state_dtype)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k, v, the output gate, decay and rate; the taps' generator, down and up; the output last."""
    values = d.H * d.dv
    inner = floor_div(values, d.ratio)
    return (
        Projection("q_proj", D, d.H * d.dk),
        Projection("k_proj", D, d.H * d.dk),
        Projection("v_proj", D, values),
        Projection("gate_proj", D, values),
        Projection("ba_proj", D, 2 * d.H),
        Projection("taps_down", D, inner),
        Projection("taps_up", inner, values * d.conv, bias=True),
        Projection("o_proj", values, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """A and its bias per head, and the scale of the gated norm; the taps are no parameters."""
    return 2 * d.H + d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head and the convolution's last values; nothing grows with the context."""
    state = gdn.cache(gdn.Dims(Hk=d.H, Hv=d.H, dk=d.dk, dv=d.dv, conv=1, state_dtype=d.state_dtype), precision)
    return Cache(fixed=state.fixed + state_bytes(d.H * d.dv, d.conv, precision.hidden_bytes))


def transition_bytes(d: Dims) -> Quantity:
    """What a run of tokens does to a state: dk × dk numbers of each head, since the delta rule mixes its rows."""
    return 4 * d.H * d.dk * d.dk


def dynamic_conv(d: Dims, step: Step, precision: Precision) -> Kernel:
    """The convolution on v, its taps read for every token instead of once; decode has a kernel of its own."""
    c = ShortConv(step.B, step.S, d.H * d.dv, d.conv, precision.hidden_bytes)
    kernel = short_conv("dynamic conv", c, update=step.decoding)
    taps = step.tokens * c.channels * c.width * c.element
    fixed = kernel.ideal.weights
    return kernel._replace(
        ideal=kernel.ideal._replace(read=kernel.ideal.read - fixed + taps, weights=0),
        executed=kernel.executed._replace(read=kernel.executed.read - fixed + taps, weights=0),
        instance=f"dynamic-{kernel.instance}",
        implementation="Jet-Nemotron (Triton)",
    )


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, SiLU of q and k, dynamic convolution, gates, the recurrence, gated norm, output."""
    q, k, v, gate, ba, down, up, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    qk, heads, inner = 2 * tokens * d.H * d.dk, tokens * d.H, tokens * down.d_out
    same = rule(d)
    core = gdn.stepwise(same, step, precision) if step.decoding else gdn.scan(same, step, precision)
    return [
        *(projection(p, step, precision) for p in (q, k, v, gate, ba)),
        elementwise("silu of q, k", read=qk * e, written=qk * e, vector=4 * qk, special=qk),
        projection(down, step, precision),
        elementwise("silu of the generator", read=inner * e, written=inner * e, vector=4 * inner, special=inner),
        projection(up, step, precision),
        dynamic_conv(d, step, precision),
        elementwise("decay, β", read=2 * heads * e, written=8 * heads, vector=6 * heads, special=4 * heads),
        *core,
        gated_norm("gated norm", d.H * d.dv, step, precision),
        projection(out, step, precision),
    ]
