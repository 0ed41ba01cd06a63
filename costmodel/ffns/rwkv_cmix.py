"""RWKV channel mix: token shift, D → F, squared ReLU, F → D; before RWKV-7 also a D → D gate, the receptance.

Source: arXiv:2503.14456 (RWKV-7), section 4; arXiv:2305.13048 (RWKV-4), section 3.2; code BlinkDL/RWKV-LM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim, flag
from costmodel.ffns import mlp
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.step import Precision, Step

NAME = "rwkv_cmix"
ALIASES = ("rwkv-channel-mix", "channel-mix")
TITLE = "RWKV channel mix"
SUMMARY = "token shift and a squared-ReLU feed-forward"
SOURCES = ("arXiv:2503.14456, section 4", "arXiv:2305.13048, section 3.2", "BlinkDL/RWKV-LM, RWKV-v4 to v7")
TENSOR_PARALLEL = "by inner width; token shift and receptance on every device; no engine is known that splits it"


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a channel mix."""

    F: int = dim("d_ff", "inner width", split="heads")
    act: str = choice("act", "activation function", "relu2", ("relu2",))
    receptance: bool = flag("receptance", "a sigmoid gate on the output with a projection of its own (RWKV-4 to 6)")


EXAMPLES = (Dims(F=40), Dims(F=28, receptance=True))


def check(d: Dims) -> list[str]:
    """Nothing to divide."""
    return []


def _dense(d: Dims) -> mlp.Dims:
    return mlp.Dims(F=d.F, gated=False, act="relu2")


def _gate(D: Quantity) -> Projection:
    return Projection("receptance_proj", D, D)


def parameters(d: Dims, D: Quantity) -> Quantity:
    """Two matrices, that of the receptance, and the D mixing weights of each token shift."""
    return mlp.parameters(_dense(d), D) + D + (_gate(D).parameters + D if d.receptance else 0)


active_parameters = parameters


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """Token shift (of two mixes with a receptance), a plain feed-forward, and the gate."""
    elements = step.tokens * D
    e = precision.hidden_bytes
    mixed = elements * (2 if d.receptance else 1)
    shift = elementwise("token shift", read=elements * e, written=mixed * e, vector=elements + 2 * mixed)
    dense = mlp.kernels(_dense(d), D, step, precision)
    if not d.receptance:
        return [shift, *dense]
    gate = elementwise("receptance", read=2 * elements * e, written=elements * e, vector=2 * elements, special=elements)
    return [shift, *dense, projection(_gate(D), step, precision, role="ffn"), gate]
