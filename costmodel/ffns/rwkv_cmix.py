"""RWKV channel mix: token shift, D → F, squared ReLU, F → D.

Source: arXiv:2503.14456 (RWKV-7), section 4; code BlinkDL/RWKV-LM, RWKV-v7.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim
from costmodel.ffns import mlp
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.step import Precision, Step

NAME = "rwkv_cmix"
ALIASES = ("rwkv-channel-mix", "channel-mix")
TITLE = "RWKV channel mix"
SUMMARY = "token shift and a squared-ReLU feed-forward"
SOURCES = ("arXiv:2503.14456, section 4", "BlinkDL/RWKV-LM, RWKV-v7")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a channel mix."""

    F: int = dim("d_ff", "inner width")
    act: str = choice("act", "activation function", "relu2", ("relu2",))


EXAMPLES = (Dims(F=40),)


def check(d: Dims) -> list[str]:
    """Nothing to divide."""
    return []


def _dense(d: Dims) -> mlp.Dims:
    return mlp.Dims(F=d.F, gated=False, act="relu2")


def parameters(d: Dims, D: Quantity) -> Quantity:
    """Two matrices and the D mixing weights of the token shift."""
    return mlp.parameters(_dense(d), D) + D


active_parameters = parameters


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """Token shift, then a plain feed-forward."""
    elements = step.tokens * D
    e = precision.hidden_bytes
    shift = elementwise("token shift", read=elements * e, written=elements * e, vector=3 * elements)
    return [shift, *mlp.kernels(_dense(d), D, step, precision)]
