"""Linear layers around a mixer or an FFN. Declared once; FLOPs, bytes and parameter counts all read the list."""

from collections.abc import Iterable
from typing import NamedTuple

from costmodel.algebra import Quantity
from costmodel.kernels.base import Kernel
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.step import Precision, Step


class Projection(NamedTuple):
    """y = x·W with W of d_in × d_out; `bias` adds d_out parameters, with `heads` there is one such matrix per head."""

    name: str
    d_in: Quantity
    d_out: Quantity
    bias: bool = False
    heads: Quantity | None = None

    @property
    def parameters(self) -> Quantity:
        """Weights, biases included."""
        return (1 if self.heads is None else self.heads) * (self.d_in * self.d_out + (self.d_out if self.bias else 0))


def projection(
    p: Projection, step: Step, precision: Precision, *, role: str = "mixer", tokens: Quantity | None = None
) -> Kernel:
    """The GEMM of one projection over the new tokens of the batch (or over `tokens` rows).

    Batched projections run in 16 bit, as engines keep the per-head matrices of MLA unquantised. Where the others
    multiply in fewer bits, the product quantises its input.
    """
    batched = p.heads is not None
    return gemm(
        p.name,
        Gemm(
            m=step.tokens if tokens is None else tokens,
            n=p.d_out,
            k=p.d_in,
            batch=1 if p.heads is None else p.heads,
            activations=precision.hidden if batched else precision.operand(role),
            weights=precision.hidden if batched else precision.weight(role),
            output=precision.hidden,
            source=precision.hidden,
        ),
    )


def total_parameters(projections: Iterable[Projection]) -> Quantity:
    """Weights of several projections.

    >>> total_parameters([Projection("a", 3, 5), Projection("b", 3, 5, bias=True)])
    35
    """
    return sum(p.parameters for p in projections)
