"""Input embedding and output head.

The head runs only where its logits are used: on the last position of each sequence in prefill, on every
new token in decode (speculative and diffusion blocks check or denoise all of them) and in training.
"""

from collections.abc import Sequence

from costmodel.algebra import Quantity
from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.step import Precision, Step


def embedding(D: Quantity, step: Step, precision: Precision) -> Kernel:
    """Gathers one row of the table per new token."""
    elements = step.tokens * D
    row_bytes = element_bytes(precision.weight("embedding"))
    return elementwise("embedding", read=elements * row_bytes, written=elements * precision.hidden_bytes)


def head_tokens(step: Step) -> Quantity:
    """Positions at which logits are computed."""
    return step.B if step.phase == "prefill" and not step.bidirectional else step.tokens


def head(D: Quantity, V: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """Logits of V words, and the pass over them that samples or takes the loss (fp32 softmax)."""
    tokens = head_tokens(step)
    logits = gemm(
        "lm_head",
        Gemm(
            m=tokens,
            n=V,
            k=D,
            activations=precision.operand("head"),
            weights=precision.weight("head"),
            output=precision.hidden,
        ),
    )
    return [logits, sampling(V, step, precision)]


def sampling(V: Quantity, step: Step, precision: Precision) -> Kernel:
    """A pass over the logits of V words that samples one, or takes the loss."""
    tokens, e = head_tokens(step), precision.hidden_bytes
    return elementwise("sampling", read=tokens * V * e, written=tokens * 4, vector=4 * tokens * V, special=tokens * V)
