"""Gated dense feed-forward (SwiGLU, GeGLU): three matrices, act(x·W_gate) · (x·W_up) · W_down.

Source: arXiv:2002.05202, equation 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, flag
from costmodel.ffns import mlp
from costmodel.kernels.base import Kernel
from costmodel.step import Precision, Step

NAME = "swiglu"
ALIASES = ("geglu", "glu")
TITLE = "Gated feed-forward"
SUMMARY = "SwiGLU, GeGLU: a gate, an up- and a down-projection"
SOURCES = ("arXiv:2002.05202, equation 5",)
TENSOR_PARALLEL = "by inner width: arXiv:1909.08053, section 3"


@dataclass(frozen=True, slots=True)
class Dims(mlp.Dims):
    """Dimensions of a gated feed-forward block."""

    gated: bool = flag("gated", "a second up-projection multiplies the activation", True)
    act: str = choice("act", "activation function", "silu", mlp.ACTIVATIONS)


EXAMPLES = (Dims(F=40), Dims(F=32, act="geglu"))

check = mlp.check
parameters = mlp.parameters
active_parameters = mlp.active_parameters


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """Gate and up as one product, activation, down: 6·D·F FLOPs per token."""
    return mlp.kernels(d, D, step, precision)
