"""Short causal depthwise convolutions: each channel sees its last few tokens.

Memory bound: every element is read and written once; the last width − 1 tokens of each channel are kept as
state between calls. Of short sequences it is the threads that count: the CUDA kernel gives every channel of every
sequence a thread block, the Triton one walks up to eight tokens one after another; further blocks of a sequence begin
with the tokens before theirs, which the first takes from the state.

Source: Dao-AILab/causal-conv1d, csrc/causal_conv1d_fwd.cu and causal_conv1d_update.cu; vllm-project/vllm,
model_executor/layers/mamba/ops/causal_conv1d.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from costmodel.algebra import Quantity, ceil_div, minimum, nominal
from costmodel.einsum import dot, size
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, unit_terms

if TYPE_CHECKING:
    from costmodel.hardware import Hardware

TOKENS = 8
"""Tokens of a channel that one thread block of the Triton kernel walks."""

CHUNK = 512
"""Tokens of a channel that one thread block of the CUDA kernel takes at once: shorter sequences cost as much, as
TensorRT-LLM's times show on H100 and B200."""


class ShortConv(NamedTuple):
    """B sequences of S new tokens, `channels` independent filters of `width` taps, bytes per element."""

    B: Quantity
    S: Quantity
    channels: Quantity
    width: Quantity
    element: float = 2
    activation: bool = True

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.S


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
    Parameter("step_s", 0.2e-6, 0.6, 1e-9, 2e-6, "s", "one of the first tokens that a thread block walks"),
    Parameter("later_s", 0.35e-6, 0.6, 1e-9, 2e-6, "s", "more where a sequence is longer than one block walks"),
    Parameter("channel_s", 6e-10, 2.0, 1e-11, 1e-6, "s", "one channel of one sequence on one unit"),
    Parameter("chunk_again", 0.8, 0.5, 0.01, 2.0, "1", "time of a channel's further 512 tokens over its first"),
    Parameter("memory_efficiency", 0.70, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_share", 0.7, 0.5, 0.1, 4.0, "1", "part of L2 in which replayed bytes are found again"),
    Parameter("l2_over_hbm", 2.5, 0.5, 1.0, 10.0, "1", "L2 bandwidth over HBM's"),
    Parameter("l2_sharpness", 5.0, 0.4, 1.0, 30.0, "1", "how abruptly replayed bytes fall out of L2"),
    Parameter("vector_efficiency", 0.3, 0.5, 0.01, 1.0, "1", "share of the fp32 FLOP/s reached"),
    Parameter("special_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the special-function rate reached"),
    Parameter("overlap", 2.0, 0.5, 1.0, 8.0, "1", "exponent of the p-norm"),
)


def terms(kernel: Kernel, hardware: "Hardware", theta: Mapping[str, float]) -> Terms:
    """Memory and arithmetic as everywhere; the chain is a thread block's tokens and the channels of short sequences.

    t = launches · launch_s + pnorm(vector, special, memory, launches · (min(S, 8)·step_s + [S > 8]·later_s)
        + B · channels · channel_s · (1 + chunk_again · (⌈S/512⌉ − 1)) / units).

    Other blocks move their bytes while one walks: times stay those of a walk up to a few blocks for each unit.
    """
    c: ShortConv = kernel.shape
    walk = minimum(c.S, TOKENS) * theta["step_s"] + minimum(ceil_div(c.S, TOKENS) - 1, 1) * theta["later_s"]
    chunks = 1.0 + theta["chunk_again"] * (ceil_div(c.S, CHUNK) - 1)
    return unit_terms(kernel, hardware, theta)._replace(
        launch=kernel.launches * theta["launch_s"],
        chain=kernel.launches * walk + c.B * c.channels * theta["channel_s"] * chunks / hardware.compute.units,
    )


FORM = Form(
    family="short-conv",
    summary="causal depthwise convolutions of a few taps",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("Dao-AILab/causal-conv1d",),
    model_spread=0.2,
    # A thread block per channel and sequence, whose start costs more than its tokens while they are few.
    starts=({"channel_s": 3e-7},),
)


def short_conv(name: str, c: ShortConv, *, launches: int = 1, update: bool = False) -> Kernel:
    """The convolution with its activation: 2·width FLOPs per channel and token.

    update: the kernel of decode steps, which shifts the kept inputs in place.

    >>> short_conv("conv", ShortConv(B=1, S=10, channels=3, width=4)).work.flops
    240
    """
    s = {"B": c.B, "S": c.S, "channels": c.channels, "width": c.width}
    elements = size("B S channels", s)
    taps = dot("B S channels, channels width -> B S channels", s)
    weights = size("channels width", s) * c.element
    state = c.B * state_bytes(c.channels, c.width, c.element)
    block = update and nominal(c.S, 1) > 1
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
        instance=f"w{c.width}{'-update' if update else ''}{'-block' if block else ''}",
        shape=c,
        launches=launches,
        implementation="causal-conv1d",
    )
