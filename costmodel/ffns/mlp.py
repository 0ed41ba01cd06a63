"""Dense feed-forward without a gate: two matrices; `swiglu` is the same with a third.

Source: arXiv:1706.03762, equation 2; arXiv:2002.05202, equation 5 (gated variants).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim, flag
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection, total_parameters
from costmodel.step import Precision, Step

NAME = "mlp"
ALIASES = ("ffn",)
TITLE = "Dense feed-forward"
SUMMARY = "up, activation (ReLU², GELU), down: two matrices"
SOURCES = ("arXiv:1706.03762, equation 2", "arXiv:2002.05202, equation 5")
ACTIVATIONS = ("silu", "swiglu", "geglu", "gelu", "relu", "relu2", "situ", "swigluoai")
TENSOR_PARALLEL = "by inner width: arXiv:1909.08053, section 3"


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a dense feed-forward block."""

    F: int = dim("d_ff", "inner width", split="heads")
    gated: bool = flag("gated", "a second up-projection multiplies the activation")
    act: str = choice("act", "activation function", "gelu", ACTIVATIONS)
    bias: bool = flag("bias", "biases on every projection")


EXAMPLES = (Dims(F=40), Dims(F=32, act="relu2", bias=True))


def check(d: Dims) -> list[str]:
    """Nothing to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, Projection]:
    """Up (with the gate's, as one matrix) and down."""
    wide = 2 * d.F if d.gated else d.F
    return Projection("gate_up_proj" if d.gated else "up_proj", D, wide, d.bias), Projection(
        "down_proj", d.F, D, d.bias
    )


def parameters(d: Dims, D: Quantity) -> Quantity:
    """3·D·F when gated, else 2·D·F."""
    return total_parameters(projections(d, D))


active_parameters = parameters


def smooth(act: str) -> bool:
    """Whether an activation takes an exponential or a tanh of each element."""
    return act not in ("relu", "relu2")


def activation(d: Dims, tokens: Quantity, precision: Precision, name: str = "activation") -> Kernel:
    """act(gate) · up, or act(up)."""
    elements = tokens * d.F
    e = precision.hidden_bytes
    return elementwise(
        name,
        read=elements * e * (2 if d.gated else 1),
        written=elements * e,
        vector=4 * elements,
        special=elements if smooth(d.act) else 0,
    )


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision, role: str = "ffn") -> Sequence[Kernel]:
    """Up, activation, down: 2·(2 or 3)·D·F FLOPs per token."""
    up, down = projections(d, D)
    return [
        projection(up, step, precision, role=role),
        activation(d, step.tokens, precision),
        projection(down, step, precision, role=role),
    ]
