"""RMSNorm with the residual addition fused in, before each mixer and FFN, and the sum of mixers side by side.

Source: arXiv:1910.07467, equation 4.
"""

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.step import Precision, Step


def norm(name: str, D: Quantity, step: Step, precision: Precision, tokens: Quantity | None = None) -> Kernel:
    """Reads the block's output and the residual, writes the residual and the normed input of the next block."""
    elements = (step.tokens if tokens is None else tokens) * D
    e = precision.hidden_bytes
    return elementwise(name, read=2 * elements * e, written=2 * elements * e, vector=5 * elements)


def gated_norm(name: str, width: Quantity, step: Step, precision: Precision) -> Kernel:
    """RMSNorm of a mixer's output times the SiLU or sigmoid of a gate, in one pass.

    Source: arXiv:2312.06635, section 4 (GLA layer); fla-org/flash-linear-attention, fla/modules/fused_norm_gate.py.
    """
    elements = step.tokens * width
    e = precision.hidden_bytes
    return elementwise(name, read=2 * elements * e, written=elements * e, vector=8 * elements, special=elements)


def sum_of_branches(D: Quantity, step: Step, precision: Precision) -> Kernel:
    """Adds the output of a mixer to those of the mixers beside it on the same input."""
    moved = step.tokens * D * precision.hidden_bytes
    return elementwise("sum of branches", read=2 * moved, written=moved, vector=step.tokens * D)
