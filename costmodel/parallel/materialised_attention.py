"""Softmax attention as training ran it before fused kernels: scores and probabilities of all pairs go through memory.

Forward: Q·Kᵀ of all S × L pairs (the mask saves nothing), scale, mask and softmax in one pass, dropout, P·V. Backward:
dV and dP, dropout, softmax, dQ and dK. The probabilities before and after dropout and its mask wait for the backward
pass: 5·a·s²·b bytes with a heads, s tokens, b sequences.

Source: arXiv:2205.05198, section 4.1 (5as²b); arXiv:2104.04473, section 4.2 (fused scale, mask and softmax).
"""

from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.gemm import Gemm, gemm

SCORES = "attention scores"
"""The product that softmax overwrites."""
VALUES = "attention values"
"""The product whose result the output projection reads."""
E = 2
"""Bytes of a 16-bit score."""


def is_core(kernel: Kernel) -> bool:
    """Whether a kernel is a fused softmax attention or its gradient."""
    return isinstance(kernel.shape, Attention)


def materialised(kernel: Kernel) -> list[Kernel]:
    """The kernels in place of a fused one."""
    a: Attention = kernel.shape
    pairs = a.B * a.H * a.S * (a.P + a.S)
    if kernel.gradient:
        run = [
            _product("attention dV", a, m=a.P + a.S, n=a.dv, k=a.S),
            _product("attention dP", a, m=a.S, n=a.P + a.S, k=a.dv),
            elementwise("attention dropout backward", read=pairs * (E + 1), written=pairs * E),
            elementwise("softmax backward", read=2 * pairs * E, written=pairs * E),
            _product("attention dQ", a, m=a.S, n=a.dk, k=a.P + a.S),
            _product("attention dK", a, m=a.P + a.S, n=a.dk, k=a.S),
        ]
    else:
        run = [
            _product(SCORES, a, m=a.S, n=a.P + a.S, k=a.dk),
            elementwise("attention softmax", read=pairs * E, written=pairs * E, special=pairs),
            elementwise("attention dropout", read=pairs * E, written=pairs * (E + 1)),
            _product(VALUES, a, m=a.S, n=a.dv, k=a.P + a.S),
        ]
    same = {"group": kernel.group, "count": kernel.count, "gradient": kernel.gradient, "module": kernel.module}
    return [each._replace(**same) for each in run]


def _product(name: str, a: Attention, m: int, n: int, k: int) -> Kernel:
    return gemm(name, Gemm(m=m, n=n, k=k, batch=a.B * a.H, parameters=False))
