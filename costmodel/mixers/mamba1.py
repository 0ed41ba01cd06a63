"""Mamba-1: a selective state-space model with a decay of its own for every channel and state element.

Source: arXiv:2312.00752, section 3 (algorithm 2); state-spaces/mamba, csrc/selective_scan.

h ← exp(Δ·A) ⊙ h + Δ·x·B, y = C·h + D·x, per channel, with N state elements each; Δ, B and C depend on the token.
Without a decay shared by channels there is no matrix product in the scan: prefill takes one exp per channel and state
element, decode reads and writes the state.

>>> from costmodel.step import Precision
>>> cache(Dims(inner=5120, N=16, rank=160), Precision()).fixed == 4 * 5120 * 16 + 3 * 5120 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import size
from costmodel.kernels.base import Kernel
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.selective_scan import PIECE, ChannelScan, selective_scan
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.partial_sum import PartialSum
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "mamba1"
ALIASES = ("mamba-1", "mamba", "s6", "selective-ssm")
TITLE = "Mamba-1"
SUMMARY = "selective state space: a decay per channel and state element, scanned on the vector lanes"
SOURCES = (
    "arXiv:2312.00752, section 3 (selection, hardware-aware scan)",
    "state-spaces/mamba, csrc/selective_scan (prefill), mamba_ssm/ops/triton/selective_state_update.py (decode)",
)
TENSOR_PARALLEL = "by channels, with a sum after x_proj: vllm-project/vllm, layers/mamba/mamba_mixer.py"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2312.00752, section 3")

OPERATIONS = 5
"""Per state element and token: decay 1, write 2, read 2."""

SCANNED = 10
"""What the kernel executes per state element and token: Δ·A and Δx·B 2, two passes of the scan 6, C·h 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a Mamba-1 layer."""

    inner: int = dim("d_inner", "channels, each with a state", split="heads")
    N: int = dim("state", "state size per channel")
    rank: int = dim("dt_rank", "inner width of the step size's projection")
    conv: int = dim("conv", "taps of the short convolution on x", 4)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(inner=16, N=4, rank=3),
    Dims(inner=10, N=5, rank=2, conv=3, state_dtype="bf16"),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """x and the gate z; from x the low-rank step size, B and C; the step size; the output."""
    return (
        Projection("in_proj", D, 2 * d.inner),
        Projection("x_proj", d.inner, d.rank + 2 * d.N),
        Projection("dt_proj", d.rank, d.inner, bias=True),
        Projection("out_proj", d.inner, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Convolution taps and biases, A, and the skip D."""
    return d.inner * (d.conv + 1) + d.inner * d.N + d.inner


def partial_sums(d: Dims, D: Quantity, ways: int) -> tuple[PartialSum, ...]:
    """Step size, B and C are products over all channels."""
    return (PartialSum("x_proj", d.rank + 2 * d.N),)


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every channel and the convolution's last inputs; nothing grows with the context."""
    state = d.inner * d.N * element_bytes(d.state_dtype)
    return Cache(fixed=state + state_bytes(d.inner, d.conv, precision.hidden_bytes))


def scan(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Prefill. x, Δ, z and the output: 4 elements per channel and token; B and C, shared by all channels, 2N.

    The kernel writes the output twice, before and after the gate, and the states between pieces; the block of every
    channel reads B and C again.
    """
    e = precision.hidden_bytes
    s = {"B": step.B, "S": step.S, "inner": d.inner, "N": d.N}
    row, shared = size("B S inner", s) * e, 2 * size("B S N", s) * e
    weights, state = (size("inner N", s) + 2 * d.inner) * 4, size("B inner N", s) * element_bytes(d.state_dtype)
    between = ceil_div(step.S, PIECE) * 2 * size("B inner N", s) * 4
    elements, channels = size("B S inner N", s), size("B S inner", s)
    read = 3 * row + shared + weights + state
    return selective_scan(
        "selective scan",
        ChannelScan("mamba1", step.B, step.S, d.inner, d.N, updates=d.N),
        flops=(OPERATIONS * elements, SCANNED * elements + 10 * channels),
        needed=(read, row + state),
        moved=(read, 2 * row + between + state),
        reread=(d.inner - 1) * shared,
        special=elements + 3 * channels,  # the decays; softplus of Δ and SiLU of z
    )


def stepwise(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Decode: selective_state_update, token by token."""
    channels = step.tokens * d.inner
    e = precision.hidden_bytes
    return recurrent_step(
        "recurrent step",
        Recurrence("mamba1", step.B, step.S, 1, d.N, d.inner, OPERATIONS, element_bytes(d.state_dtype)),
        read=(3 * channels + 2 * step.tokens * d.N) * e + (d.inner * d.N + 2 * d.inner) * 4,
        written=channels * e,
        vector=2 * channels * d.N + 10 * channels,
        special=channels * d.N + 3 * channels,
    )


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: input projection, convolution, Δ, B and C from the convolved x, the gated scan, output projection."""
    into, select, dt, out = projections(d, D)
    return [
        projection(into, step, precision),
        short_conv(
            "short conv", ShortConv(step.B, step.S, d.inner, d.conv, precision.hidden_bytes), update=step.decoding
        ),
        projection(select, step, precision),
        projection(dt, step, precision),
        stepwise(d, step, precision) if step.decoding else scan(d, step, precision),
        projection(out, step, precision),
    ]
