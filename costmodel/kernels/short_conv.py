"""Short causal depthwise convolutions: each channel sees its last few tokens.

Memory bound: every element is read and written once; the last width − 1 tokens of each channel are kept as
state between calls.

Source: Dao-AILab/causal-conv1d, csrc/causal_conv1d_fwd.cu and causal_conv1d_update.cu.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity
from costmodel.einsum import dot, size
from costmodel.kernels.base import Form, Kernel, Parameter, Work, unit_terms


class ShortConv(NamedTuple):
    """B sequences of S new tokens, `channels` independent filters of `width` taps, bytes per element."""

    B: Quantity
    S: Quantity
    channels: Quantity
    width: Quantity
    element: float = 2
    activation: bool = True


def state_bytes(channels: Quantity, width: Quantity, element: float) -> Quantity:
    """Bytes that one sequence keeps: the last width − 1 inputs of every channel.

    >>> state_bytes(12288, 4, 2)
    73728
    """
    return (width - 1) * channels * element


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """dx and dw, each as large as the forward product; reads x and dy, writes dx."""

    def gradient(forward: Work) -> Work:
        return Work(
            vector=2 * forward.vector,
            special=forward.special,
            read=forward.read + forward.written,
            written=forward.read,
            weights=forward.weights,
        )

    return (
        kernel._replace(
            name=f"{kernel.name} backward",
            ideal=gradient(kernel.ideal),
            executed=gradient(kernel.executed),
        ),
    )


PARAMETERS = (
    Parameter("launch_s", 2.2e-6, 0.4, 0.5e-6, 3e-5, "s", "time from the end of the last kernel to useful work"),
    Parameter("memory_efficiency", 0.70, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("vector_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s reached"),
    Parameter("special_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the special-function rate reached"),
)

FORM = Form(
    family="short-conv",
    summary="causal depthwise convolutions of a few taps",
    parameters=PARAMETERS,
    terms=unit_terms,
    backward=backward,
    sources=("Dao-AILab/causal-conv1d",),
    model_spread=0.2,
)


def short_conv(name: str, c: ShortConv, *, launches: int = 1) -> Kernel:
    """The convolution with its activation: 2·width FLOPs per channel and token.

    >>> short_conv("conv", ShortConv(B=1, S=10, channels=3, width=4)).work.flops
    240
    """
    s = {"B": c.B, "S": c.S, "channels": c.channels, "width": c.width}
    elements = size("B S channels", s)
    taps = dot("B S channels, channels width -> B S channels", s)
    weights = size("channels width", s) * c.element
    state = c.B * state_bytes(c.channels, c.width, c.element)
    traffic = Work(
        vector=taps,
        read=elements * c.element + state + weights,
        written=elements * c.element + state,
        weights=weights,
    )
    return Kernel(
        name=name,
        form=FORM,
        ideal=traffic,
        # SiLU: one exp, and about four fp32 operations around it.
        executed=traffic._replace(vector=taps + 4 * elements, special=elements) if c.activation else traffic,
        instance=f"w{c.width}",
        shape=c,
        launches=launches,
        implementation="causal-conv1d",
    )
