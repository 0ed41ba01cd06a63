"""Hyena: long convolutions with filters computed by a small network, between elementwise gates.

Source: arXiv:2302.10866, section 3; HazyResearch/safari, src/models/sequence/hyena.py.

Of order n: one projection to n + 1 branches, n − 1 convolutions as long as the sequence, each after a gate, and a last
gate. Prefill costs L·log L, but a decode step 2·L·W: there is no recurrent form (the published `recurrence` is not
implemented), so every token passes over the whole history, which must be kept, and S tokens cost S². The claimed
growth of prefill is 1: exponents leave the logarithm out.

>>> from costmodel.step import Precision, Step
>>> run = kernels(Dims(W=768), 768, Step(B=1, S=1, P=8191, phase="decode"), Precision())
>>> [k.work.flops for k in run if k.family == "fft-conv"] == [2 * 8192 * 768]
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.fft_conv import FILTER_BYTES, Convolution, direct_convolution, fft_convolution
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "hyena"
ALIASES = ("long-convolution", "long-conv")
TITLE = "Hyena"
SUMMARY = "long convolutions with implicit filters between gates; no recurrent decode"
SOURCES = (
    "arXiv:2302.10866, section 3",
    "HazyResearch/safari, src/models/sequence/hyena.py",
)
TENSOR_PARALLEL = (
    "channels are independent, and so are their filters but for the network before them; no engine splits them"
)
WHOLE_SEQUENCE = "its long convolution transforms the whole sequence at once"
ORDER = Order(prefill_flops=1, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("O(L log L)", "not stated", "arXiv:2302.10866, section 3")
UNVERIFIED = ("transforms on matrix engines (FlashFFTConv), which are not modelled",)

INNER = 2
"""Inner layers of the network that computes the filters."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a Hyena operator."""

    W: int = dim("width", "channels of a branch; in the published models the model width", split="heads")
    n: int = dim("order", "order of the recurrence: n − 1 long convolutions", 2, least=2)
    conv: int = dim("conv", "taps of the short convolution on all branches", 3)
    f: int = dim("filter_width", "inner width of the network that computes the filters", 64)
    emb: int = dim("filter_emb", "width of the positions that go into it", 3)


EXAMPLES = (Dims(W=24, f=8), Dims(W=8, n=3, conv=4, f=6, emb=5))


def check(d: Dims) -> list[str]:
    """Positions are a time and pairs of sine and cosine."""
    return [] if d.emb % 2 else [f"filter_emb {d.emb} is even: a time and pairs of sine and cosine make it odd"]


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """All branches, the output, and the network of the filters."""
    inner = [Projection(f"filter layer {i + 1}", d.f, d.f, bias=True) for i in range(INNER)]
    return (
        Projection("in_proj", D, (d.n + 1) * d.W, bias=True),
        Projection("out_proj", d.W, D, bias=True),
        Projection("filter layer 0", d.emb, d.f, bias=True),
        *inner,
        Projection(f"filter layer {INNER + 1}", d.f, (d.n - 1) * d.W),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Taps and biases of the short convolution, a skip weight per long filter, frequencies of the filters' sines."""
    return (d.n + 1) * d.W * (d.conv + 1) + (d.n - 1) * d.W + d.f


def cache(d: Dims, precision: Precision) -> Cache:
    """The input of every long convolution for all tokens, and the last inputs of the short one."""
    e = precision.hidden_bytes
    return Cache(per_token=(d.n - 1) * d.W * e, fixed=state_bytes((d.n + 1) * d.W, d.conv, e))


def filters(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """The network over all L positions, as the published code runs it in every forward pass; the batch shares it."""
    layers = projections(d, D)[2:]
    hidden, out = step.L * d.f * precision.hidden_bytes, step.L * (d.n - 1) * d.W
    sines = elementwise("sine", read=hidden, written=hidden, vector=step.L * d.f, special=step.L * d.f)
    return [
        *(projection(layer, step, precision, tokens=step.L) for layer in layers),
        sines.times(INNER + 1),
        elementwise(
            "filter decay",
            read=out * precision.hidden_bytes,
            written=out * FILTER_BYTES,
            vector=2 * out,
            special=out,
        ),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: branches, short convolution, filters, gates and long convolutions, output."""
    into, out, *_ = projections(d, D)
    e, elements = precision.hidden_bytes, step.tokens * d.W
    gate = elementwise("gate", read=2 * elements * e, written=elements * e, vector=elements)
    c = Convolution(step.B, step.S, step.P, d.W, e)
    if step.decoding:
        long = [direct_convolution("long convolution", c)]
    else:
        long = fft_convolution("long convolution", c)
    skip = elementwise("skip", read=2 * elements * e, written=elements * e, vector=2 * elements)
    return [
        projection(into, step, precision),
        short_conv(
            "short conv", ShortConv(step.B, step.S, (d.n + 1) * d.W, d.conv, e, activation=False), update=step.decoding
        ),
        *([] if step.decoding else filters(d, D, step, precision)),
        *(kernel.times(d.n - 1) for kernel in (gate, *long, skip)),
        gate,
        projection(out, step, precision),
    ]
