"""RetNet's retention: linear attention with a constant decay per head.

Source: arXiv:2307.08621, section 2.1 (recurrent and chunkwise forms); fla-org/flash-linear-attention, fla/ops/retention
and fla/ops/common (kernels), fla/layers/multiscale_retention.py (layer).

M ← γ·M + kᵀ·v, o = q·M. A constant decay needs no gate stream and no decayed copies of the operands: two launches and
the least traffic of all chunked pipelines.

>>> from costmodel.step import Precision
>>> cache(Dims(H=8, dk=256, dv=512), Precision()).fixed == 4 * 8 * 256 * 512
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import RESIDENT, SLICE, Scan, chunk_kernel, sizes
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "retnet"
ALIASES = ("retention", "multi-scale-retention")
TITLE = "RetNet"
SUMMARY = "linear attention with a constant decay per head"
SOURCES = (
    "arXiv:2307.08621, section 2.1, equations 6 and 7",
    "fla-org/flash-linear-attention, fla/ops/common/chunk_h.py and chunk_o.py (kernels)",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2307.08621, section 2")

OPERATIONS = 5
"""Per state element and token: decay 1, write 2, read 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a retention layer."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=2, dk=8, dv=16, C=8),
    Dims(H=3, dk=4, dv=6, C=5, state_dtype="bf16"),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k, v, the output gate, and the output."""
    return (
        Projection("q_proj", D, d.H * d.dk),
        Projection("k_proj", D, d.H * d.dk),
        Projection("v_proj", D, d.H * d.dv),
        Projection("gate_proj", D, d.H * d.dv),
        Projection("o_proj", d.H * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """The scale of the gated norm; the decays are constants."""
    return d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head; nothing grows with the context."""
    return Cache(fixed=d.H * d.dk * d.dv * element_bytes(d.state_dtype))


def scan(d: Dims, step: Step, precision: Precision, pipeline: str = NAME, resident: int = RESIDENT) -> list[Kernel]:
    """The two launches of fla's chunk_retention (chunk_simple_gla with a constant decay).

    resident: thread blocks that walk chunks on one unit side by side.

    Bytes at dk = dv = 128, C = 64 in bf16, per token and head: 1024 + 1536; fused they would be 1024. The states are
    split in 64 × 64 blocks, each walked by a thread block of its own; keys and values come again from L2.
    """
    e = precision.hidden_bytes
    chunks = Scan(pipeline, step.B, step.S, d.H, d.dk, d.dv, d.C, precision.hidden)
    s = sizes(chunks)
    keys, values = size("B S H dk", s) * e, size("B S H dv", s) * e
    states, state = size("B n H dk dv", s) * e, size("B H dk dv", s) * element_bytes(d.state_dtype)
    through_state = (dot("B S H dk dv", s), dot("B padded H dk dv", s))
    rows, columns = ceil_div(d.dk, SLICE), ceil_div(d.dv, SLICE)
    return [
        chunk_kernel(
            "chunk states",
            chunks,
            through_state,
            needed=(keys + values + state, state),
            moved=(keys + values + state, states + state),
            reread=(columns - 1) * keys + (rows - 1) * values,
            vector=size("B padded H dv", s) * rows + size("B n H dk dv", s),
            special=size("B padded H", s) * rows * columns,
            slices=rows * columns,
            occupancy=resident,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            through_state,
            (dot("B H pairs dk", s), dot("B H square dk", s)),
            (dot("B H pairs dv", s), dot("B H square dv", s)),
            needed=(keys, values),
            moved=(2 * keys + values + states, values),
            reread=(columns - 1) * 2 * keys,
            vector=2 * size("B H square", s) + 2 * size("B padded H dv", s),
            special=size("B H square", s) + size("B padded H", s),
        ),
    ]


def stepwise(d: Dims, step: Step, precision: Precision, mechanism: str = NAME) -> list[Kernel]:
    """Decode: the state stepped token by token."""
    heads, e = step.tokens * d.H, precision.hidden_bytes
    return [
        recurrent_step(
            "recurrent step",
            Recurrence(mechanism, step.B, step.S, d.H, d.dk, d.dv, OPERATIONS, element_bytes(d.state_dtype)),
            read=heads * (2 * d.dk + d.dv) * e,
            written=heads * d.dv * e,
            vector=heads * d.dk,  # the scale of q
        )
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, rotation of q and k, retention, gated norm, output projection."""
    *inputs, out = projections(d, D)
    qk = 2 * step.tokens * d.H * d.dk
    e = precision.hidden_bytes
    return [
        *(projection(p, step, precision) for p in inputs),
        elementwise("rope", read=qk * e, written=qk * e, vector=3 * qk),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        gated_norm("gated norm", d.H * d.dv, step, precision),
        projection(out, step, precision),
    ]
