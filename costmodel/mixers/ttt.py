"""TTT-Linear: the state is a linear model per head, trained on every token by gradient steps of mini-batches.

Source: arXiv:2407.04620, sections 2.1 to 2.6 (mini-batches, dual form); test-time-training/ttt-lm-pytorch, ttt.py
(class TTTLinear); chunked kernels of fla-org/flash-linear-attention, fla/ops/ttt.

W ← W − η·Σ kᵀ·g over a mini-batch of 16 tokens, where g is the gradient at k·W + b of the squared distance between
k + LayerNorm(k·W + b) and v, all taken at the W before the mini-batch; the output is q + LayerNorm(q·W + b). In chunks
of one mini-batch this is a delta rule without inverse. Inside a mini-batch decode needs W and the gradients summed so
far: two states. A prefill starts on the boundary of a mini-batch.

>>> from costmodel.step import Precision
>>> cache(Dims(H=32, d=64), Precision()).fixed == 2 * 4 * 32 * (64 * 64 + 64)
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim, flag
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Scan, chunk_kernel, sizes
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "ttt"
ALIASES = ("ttt-linear", "ttt_linear", "test-time-training")
TITLE = "TTT-Linear"
SUMMARY = "test-time training: a linear model per head as state, one gradient step per mini-batch"
SOURCES = (
    "arXiv:2407.04620, section 2 (TTT layers, mini-batch, dual form)",
    "test-time-training/ttt-lm-pytorch, ttt.py (layer, decode)",
    "fla-org/flash-linear-attention, fla/ops/ttt/chunk.py (kernels)",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them"
WHOLE_SEQUENCE = "its update is not linear in the state, so each device would wait for the one before"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2407.04620, section 2")

OPERATIONS = 8
"""Per element of W and token: k·W 2, gradient kᵀ·g 2, W minus the scaled gradient 2, q·W 2."""

GRADIENT = 24
"""Executed per element of v and token: mean, variance and gradient of the LayerNorm and of the squared distance."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a TTT-Linear layer; heads · head_dim is the model width in released models."""

    H: int = dim("heads", "heads, each with a linear model as state", split="heads")
    d: int = dim("head_dim", "width of a head; its state is head_dim × head_dim and a bias")
    C: int = dim("mini_batch", "tokens of a mini-batch, which is also a chunk", 16)
    conv: int | None = dim(
        "conv", "q and k share a projection and have convolutions of so many taps; null: neither", None, nullable=True
    )
    gate: bool = flag("output_gate", "multiplies the normed output by a gate with a projection of its own")


EXAMPLES = (
    Dims(H=2, d=8, C=4),
    Dims(H=3, d=4, C=5, conv=4, gate=True),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k (unless shared), v, the learning rate per head, the output gate if there is one, and the output."""
    inner = d.H * d.d
    return (
        *(Projection(f"{name}_proj", D, inner) for name in ("qkv" if d.conv is None else "qv")),
        Projection("rate_proj", D, d.H, bias=True),
        *((Projection("gate_proj", D, inner),) if d.gate else ()),
        Projection("o_proj", inner, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """First W and b; inner and outer norm; a weight per place of a mini-batch; taps and biases of the convolutions."""
    inner = d.H * d.d
    taps = 0 if d.conv is None else 2 * inner * (d.conv + 1)
    return d.H * d.d * d.d + inner + 4 * inner + d.C + taps


def cache(d: Dims, precision: Precision) -> Cache:
    """W, b and the gradients of both summed over the open mini-batch, in fp32; the convolutions' last inputs."""
    inner = d.H * d.d
    kept = 0 if d.conv is None else state_bytes(2 * inner, d.conv, precision.hidden_bytes)
    return Cache(fixed=2 * 4 * (d.H * d.d * d.d + inner) + kept)


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """The two launches of fla's chunk_ttt_linear: the walk that trains, then all outputs.

    Bytes at d = 64 and mini-batches of 16 in bf16, per token and head: 908 + 1036, half of them states; fused they
    would be 516. A LayerNorm needs a whole row of k·W, so one thread block walks each head.
    """
    e = precision.hidden_bytes
    chunks = Scan("ttt-linear", step.B, step.S, d.H, d.d, d.d, d.C, precision.hidden)
    s = sizes(chunks) | {"d": d.d}
    row, rate = size("B S H d", s) * e, size("B S H", s) * 4
    states, bias = size("B n H dk dv", s) * e, size("B n H d", s) * e
    state = 4 * (size("B H dk dv", s) + size("B H d", s))
    through_state = (dot("B S H dk dv", s), dot("B padded H dk dv", s))
    inside, whole = dot("B H pairs d", s), dot("B H square d", s)
    return [
        chunk_kernel(
            "mini-batch gradients",
            chunks,
            through_state,
            through_state,
            needed=(2 * row + rate + state, state),
            moved=(2 * row + rate + state, states + bias + row + state),
            vector=(GRADIENT + 2) * size("B padded H d", s) + size("B n H dk dv", s),
            special=size("B padded H", s),
            slices=1,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            through_state,
            (inside, whole),
            # A second product with the gradients, by the rates alone, moves the bias.
            (inside, 2 * whole),
            needed=(row, row),
            moved=(3 * row + rate + states + bias, row),
            vector=3 * size("B H square", s) + 3 * size("B padded H d", s),
        ),
    ]


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: W is read, the summed gradient read and written, token by token.

    W itself is written back at the end of a mini-batch only: once in `mini_batch` tokens, counted as executed traffic.
    """
    elements, e = step.tokens * d.H * d.d, precision.hidden_bytes
    weights, bias = 4 * step.B * d.H * d.d * d.d, 4 * step.B * d.H * d.d
    kernel = recurrent_step(
        "recurrent step",
        Recurrence("ttt-linear", step.B, step.S, d.H, d.d, d.d, OPERATIONS),
        read=3 * elements * e + step.tokens * d.H * 4 + weights + 2 * bias,
        written=elements * e + bias,
        vector=(2 * GRADIENT + 6) * elements,
        special=2 * step.tokens * d.H,
    )
    back = step.S * (weights + bias) / d.C
    return [kernel._replace(executed=kernel.executed._replace(written=kernel.executed.written + back))]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, convolutions, rotation, learning rates, the trained state, norms and gate, output."""
    *inputs, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    inner, heads = tokens * d.H * d.d, tokens * d.H
    convolved = (
        ()
        if d.conv is None
        else (
            short_conv(
                "short conv",
                ShortConv(step.B, step.S, 2 * d.H * d.d, d.conv, e, activation=False),
                launches=2,
                update=step.decoding,
            ),
        )
    )
    if d.gate:
        after = gated_norm("gated norm", d.H * d.d, step, precision)
    else:
        after = elementwise("norm", read=inner * e, written=inner * e, vector=5 * inner)
    return [
        *(projection(p, step, precision) for p in inputs),
        *convolved,
        elementwise("rope", read=2 * inner * e, written=2 * inner * e, vector=6 * inner),
        elementwise("learning rate", read=heads * e, written=heads * 4, vector=3 * heads, special=heads),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        elementwise("inner norm, residual", read=2 * inner * e, written=inner * e, vector=8 * inner),
        after,
        projection(out, step, precision),
    ]
