"""Convolutions as long as the sequence: by Fourier transforms for many tokens, directly for a few.

A causal convolution of channels with filters of length L is a product of spectra. Outputs at positions P … P + S − 1
are right for transforms of N ≥ L + S points; N is the power of two from there on, which the fast kernels require. A
transform of N real points takes 5/2·N·log₂N FLOPs (two channels share a complex one of 5·N·log₂N), so the cost grows
as L·log L, all of it on the fp32 lanes. Unfused, every spectrum passes through memory in fp32.

A token alone is the product of its history with the reversed filter: 2·L FLOPs and the whole history read per channel.

Source: arXiv:2302.10866, section 3.2; HazyResearch/safari, src/models/sequence/hyena.py (function fftconv_ref); count
of operations: Cooley and Tukey, Math. Comp. 19, 1965 (radix 2); passes of long transforms: NVIDIA, cuFFT documentation.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil, ceil_div, half, log2, named
from costmodel.einsum import dot, size
from costmodel.kernels.base import Form, Kernel, Parameter, Work, scaled, unit_terms
from costmodel.pairs import causal

PASS_BITS = 13
"""Transforms of up to 2¹³ points run in the shared memory of one thread block; longer ones take several passes."""

FILTER_BYTES = 4
"""Filters are kept in fp32."""


class Convolution(NamedTuple):
    """B sequences, S new tokens after P earlier ones, `channels` filters as long as the sequence, shared by the batch.

    element: bytes of an activation; products: how often its gradient repeats a kernel's arithmetic (a transform's
    gradient is one transform, a product of two spectra has two).
    """

    B: Quantity
    S: Quantity
    P: Quantity
    channels: Quantity
    element: float = 2
    products: int = 1

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.S

    @property
    def bits(self) -> Quantity:
        """log₂ of the length of the transforms."""
        return named("log2N", ceil(log2(self.P + 2 * self.S)))

    @property
    def points(self) -> Quantity:
        """Length of the transforms."""
        return named("N", 2**self.bits)


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dv and dk: the gradient of a transform is a transform, that of the product two products.

    Inputs and incoming gradients are read, gradients of the inputs written.
    """
    c: Convolution = kernel.shape

    def gradient(forward: Work) -> Work:
        return scaled(forward, c.products, 1)._replace(read=forward.read + forward.written, written=forward.read)

    return (
        kernel._replace(
            name=f"{kernel.name} backward", ideal=gradient(kernel.ideal), executed=gradient(kernel.executed)
        ),
    )


FORM = Form(
    family="fft-conv",
    summary="convolutions as long as the sequence, by Fourier transforms or directly",
    parameters=(
        Parameter("launch_s", 3.0e-6, 0.4, 0.5e-6, 5e-5, "s", "launch and tail of one pass"),
        Parameter("memory_efficiency", 0.70, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
        Parameter("vector_efficiency", 0.30, 0.5, 0.02, 1.0, "1", "share of the fp32 FLOP/s: adds and shuffles"),
        Parameter("overlap", 3.0, 0.25, 1.5, 8.0, "1", "exponent of the p-norm"),
    ),
    terms=unit_terms,
    backward=backward,
    sources=("arXiv:2302.10866, section 3.2", "HazyResearch/safari, src/models/sequence/hyena.py"),
    model_spread=0.4,
)


def _kernel(name: str, c: Convolution, ideal: Work, executed: Work, launches: int = 1) -> Kernel:
    return Kernel(
        name=name,
        form=FORM,
        ideal=ideal,
        executed=executed,
        instance="fp32",
        shape=c,
        launches=launches,
        implementation="cuFFT (safari fftconv_ref)",
    )


def fft_convolution(name: str, c: Convolution) -> list[Kernel]:
    """Transforms of signal and filter, the product of the spectra, and the transform back.

    Needed are v and k in and y out; executed, each spectrum of N/2 + 1 complex numbers is written and read again.

    >>> run = fft_convolution("conv", Convolution(B=1, S=512, P=0, channels=2))
    >>> one = 2 * 5 * 1024 * 10 // 2
    >>> [k.work.flops for k in run] == [one, one, 2 * 6 * 513, one]
    True
    """
    bins = half(c.points) + 1
    s = dict(B=c.B, S=c.S, L=c.P + c.S, channels=c.channels, bins=bins, N=c.points, bits=c.bits)
    signal, filters = half(5 * size("B channels N bits", s)), half(5 * size("channels N bits", s))
    v, k, y = (
        size("B channels L", s) * c.element,
        size("channels L", s) * FILTER_BYTES,
        size("B channels S", s) * c.element,
    )
    spectra, spectrum = 8 * size("B channels bins", s), 8 * size("channels bins", s)
    # Each pass after the first reads and writes the spectra once more.
    again = ceil_div(c.bits, PASS_BITS) - 1
    product = 6 * size("B channels bins", s)
    return [
        _kernel(
            f"{name}: transform",
            c,
            Work(vector=signal, read=v),
            Work(vector=signal, read=v + again * spectra, written=spectra + again * spectra),
        ),
        _kernel(
            f"{name}: transform of the filter",
            c,
            Work(vector=filters, read=k),
            Work(vector=filters, read=k + again * spectrum, written=spectrum + again * spectrum),
        ),
        _kernel(
            f"{name}: product of the spectra",
            c._replace(products=2),
            Work(vector=product),
            Work(vector=product, read=spectra + spectrum, written=spectra),
        ),
        _kernel(
            f"{name}: transform back",
            c,
            Work(vector=signal, written=y),
            Work(vector=signal, read=spectra + again * spectra, written=y + again * spectra),
        ),
    ]


def direct_convolution(name: str, c: Convolution) -> Kernel:
    """New tokens one by one over their whole history: 2·Σ j FLOPs per channel; the batch shares the filters.

    >>> k = direct_convolution("conv", Convolution(B=3, S=1, P=99, channels=2))
    >>> k.work.flops == 2 * 100 * 2 * 3, k.work.read == 3 * 2 * 100 * 2 + 2 * 100 * 4
    (True, True)
    """
    s = dict(B=c.B, S=c.S, L=c.P + c.S, channels=c.channels, pairs=named("pairs", causal(c.P, c.S)))
    history, filters = size("B channels L", s) * c.element, size("channels L", s) * FILTER_BYTES
    work = Work(
        vector=dot("B channels pairs", s),
        read=history + filters,
        written=size("B channels S", s) * c.element,
    )
    return _kernel(name, c, work, work)._replace(instance="direct", implementation="direct product with the history")
