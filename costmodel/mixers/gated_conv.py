"""Gated short convolution (LFM2): three branches of the input, two of which gate a convolution over a few tokens.

Source: arXiv:2511.23404 (LFM2), section 2; transformers, models/lfm2/modeling_lfm2.py (class Lfm2ShortConv).

y = C ⊙ conv(B ⊙ x): linear in the tokens, and memory of the last conv − 1 only. What such a layer cannot see, the few
softmax layers of its models must.

>>> from costmodel.step import Precision
>>> cache(Dims(W=2048), Precision()).fixed == 2 * 2048 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim, flag
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "gated_conv"
ALIASES = ("gated-short-convolution", "lfm2-conv")
TITLE = "Gated short convolution"
SUMMARY = "a convolution over a few tokens between two gates"
SOURCES = ("arXiv:2511.23404, section 2", "transformers, models/lfm2/modeling_lfm2.py")
TENSOR_PARALLEL = "by channels: vllm-project/vllm, layers/mamba/short_conv.py"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2511.23404, section 2")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a gated short convolution."""

    W: int = dim("width", "channels of a branch; in released models the model width", split="heads")
    conv: int = dim("conv", "taps of the convolution", 3)
    bias: bool = flag("bias", "biases on projections and convolution")


EXAMPLES = (Dims(W=24), Dims(W=10, conv=4, bias=True))


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Both gates and the input as one matrix, and the output."""
    return Projection("in_proj", D, 3 * d.W, d.bias), Projection("out_proj", d.W, D, d.bias)


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Taps, and their biases."""
    return d.W * (d.conv + 1) if d.bias else d.W * d.conv


def cache(d: Dims, precision: Precision) -> Cache:
    """The convolution's last inputs; nothing grows with the context."""
    return Cache(fixed=state_bytes(d.W, d.conv, precision.hidden_bytes))


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: the branches, a gate, the convolution, a gate, the output."""
    into, out = projections(d, D)
    e, elements = precision.hidden_bytes, step.tokens * d.W

    def gate(name: str) -> Kernel:
        return elementwise(name, read=2 * elements * e, written=elements * e, vector=elements)

    return [
        projection(into, step, precision),
        gate("gate before"),
        short_conv("short conv", ShortConv(step.B, step.S, d.W, d.conv, e, activation=False), update=step.decoding),
        gate("gate behind"),
        projection(out, step, precision),
    ]
