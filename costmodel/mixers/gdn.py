"""Gated DeltaNet: a matrix state per value head that decays, forgets what its key held, and writes the value.

Source: arXiv:2412.06464, section 3; Qwen3-Next and Qwen3.5 (Hugging Face transformers,
models/qwen3_next); kernels of fla-org/flash-linear-attention, fla/ops/gated_delta_rule.

M ← α(I − β·k·kᵀ)M + β·k·vᵀ, o = q·M. Hv value heads share Hk query and key heads (grouped values). Work per
token is constant: prefill runs chunks of C tokens as products, decode steps the state and is bound by its bytes.

>>> from costmodel.step import Precision, Step
>>> d = Dims(Hk=16, Hv=64, dk=128, dv=128)
>>> run = kernels(d, 4096, Step(B=1, S=1, P=8191, phase="decode"), Precision())
>>> [k.work.vector for k in run if k.family == "recurrent-step"] == [7 * 64 * 128 * 128]
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import SLICE, Scan, chunk_kernel, delta_rule, sizes, whole
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "gdn"
ALIASES = ("gated-deltanet", "gated-delta-net", "gated_deltanet")
TITLE = "Gated DeltaNet"
SUMMARY = "delta rule with a scalar decay per head, matrix state, chunked prefill"
SOURCES = (
    "arXiv:2412.06464, section 3 (gated delta rule, chunked form)",
    "arXiv:2406.06484, section 3 (WY form of the delta rule)",
    "fla-org/flash-linear-attention, fla/ops/gated_delta_rule (kernels)",
)
TENSOR_PARALLEL = "by key and value heads: vllm-project/vllm, models/qwen3_next.py (Qwen3NextGatedDeltaNet)"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2412.06464, section 3")

OPERATIONS = 7
"""Per state element and token: decay 1, kᵀM 2, rank-1 write 2, qᵀM 2."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a Gated DeltaNet layer."""

    Hk: int = dim("k_heads", "query and key heads", split="heads")
    Hv: int = dim("v_heads", "value heads, each with a state", split="heads")
    dk: int = dim("d_k", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    conv: int = dim("conv", "taps of the short convolution on q, k and v", 4)
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(Hk=2, Hv=4, dk=8, dv=8, C=8),
    Dims(Hk=1, Hv=3, dk=4, dv=6, conv=3, C=5),
    Dims(Hk=2, Hv=2, dk=8, dv=4, C=64, state_dtype="bf16"),
)


def check(d: Dims) -> list[str]:
    """Value heads must divide evenly over the key heads."""
    return [] if d.Hv % d.Hk == 0 else [f"v_heads {d.Hv} is not a multiple of k_heads {d.Hk}"]


def channels(d: Dims) -> Quantity:
    """Channels of the short convolution: q, k and v."""
    return 2 * d.Hk * d.dk + d.Hv * d.dv


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k, v and the output gate z as one matrix, β and the decay's input as another, and the output."""
    return (
        Projection("qkvz_proj", D, 2 * d.Hk * d.dk + 2 * d.Hv * d.dv),
        Projection("ba_proj", D, 2 * d.Hv),
        Projection("o_proj", d.Hv * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Convolution taps, A and its bias per head, and the scale of the gated norm."""
    return channels(d) * d.conv + 2 * d.Hv + d.dv


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every value head and the convolution's last inputs; nothing grows with the context."""
    state = d.Hv * d.dk * d.dv * element_bytes(d.state_dtype)
    return Cache(fixed=state + state_bytes(channels(d), d.conv, precision.hidden_bytes))


def transition_bytes(d: Dims) -> Quantity:
    """What a run of tokens does to a state: dk × dk numbers of each head, since the delta rule mixes its rows."""
    return 4 * d.Hv * d.dk * d.dk


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """The five launches of fla's chunk_gated_delta_rule as one kernel; Triton compiles and tunes it per head count.

    q and k are normed inside (use_qk_l2norm_in_kernel), as measured: the norms have no launch of their own here.

    Bytes at dk = dv = 128, C = 64 in bf16, per token and value head, ρ = Hv/Hk: 3424 + 1280/ρ. A pipeline fused
    into one pass would move q, k, v, g, β and o only: 520 + 512/ρ.
    """
    e = precision.hidden_bytes
    chunks = Scan("gdn", step.B, step.S, d.Hv, d.dk, d.dv, d.C, precision.hidden, element_bytes(d.state_dtype))
    s = sizes(chunks) | {"Hk": d.Hk}
    p = delta_rule(s)
    keys, values, w = size("B S Hk dk", s) * e, size("B S H dv", s) * e, size("B S H dk", s) * e
    gate, square = size("B S H", s) * 4, size("B S H C", s) * e  # g and β in fp32; the C × C matrices
    states, state = size("B n H dk dv", s) * e, size("B H dk dv", s) * element_bytes(d.state_dtype)
    slices = ceil_div(d.dv, SLICE)
    again = (slices - 1) * (w + keys)
    stages = [
        chunk_kernel(
            "gate cumsum",
            chunks,
            needed=(gate, 0),
            moved=(gate, gate),
            vector=size("B padded H", s),
        ),
        chunk_kernel(
            "k·kᵀ, inverse",
            chunks,
            p["k·kᵀ"],
            p["inverse"],
            needed=(keys + gate, 0),
            # The inverse is zero-filled by a launch of its own, then its lower tiles are written.
            moved=(keys + 2 * gate, square + size("B H lower", s) * e),
            vector=3 * size("B H lower", s) + 8 * size("B S Hk dk", s),  # decays, and the norms of q and k
            special=size("B H lower", s),
            launches=2,
        ),
        chunk_kernel(
            "w, u",
            chunks,
            p["w"],
            p["u"],
            needed=(values, 0),
            moved=(keys + values + square, w + values),
            vector=size("B padded H dk", s) + size("B padded H dv", s),
            special=size("B padded H", s),
            recomputed=True,
        ),
        chunk_kernel(
            "chunk states",
            chunks,
            p["w·M"],
            p["kᵀ·v'"],
            needed=(state, state),
            moved=(w + values + keys + state, states + values + state),
            reread=again,
            vector=2 * size("B padded H dv", s) + size("B n H dk dv", s),
            special=size("B padded H", s) * slices,
            slices=slices,
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            p["q·M"],
            p["q·kᵀ"],
            p["(q·kᵀ)·v'"],
            needed=(keys, values),
            moved=(2 * keys + values + states, values),
            reread=(slices - 1) * 2 * keys,
            vector=2 * size("B H square", s) + 2 * size("B padded H dv", s),
            special=size("B H square", s) + size("B padded H", s),
        ),
    ]
    return [whole("chunk scan", stages, f"h{d.Hk}x{d.Hv}")]


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: the state stepped token by token; q and k are normed inside."""
    e = precision.hidden_bytes
    tokens = step.tokens
    vectors = tokens * (2 * d.Hk * d.dk + d.Hv * d.dv) * e + tokens * d.Hv * 8  # g and β in fp32
    return [
        recurrent_step(
            "recurrent step",
            Recurrence("gdn", step.B, step.S, d.Hv, d.dk, d.dv, OPERATIONS, element_bytes(d.state_dtype)),
            read=vectors,
            written=tokens * d.Hv * d.dv * e,
            vector=tokens * d.Hv * (2 * d.dv + 8 * d.dk),
            special=3 * tokens * d.Hv,
        )
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, convolution, gates, the recurrence, gated norm, output projection."""
    qkvz, ba, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    heads = tokens * d.Hv
    core = stepwise(d, step, precision) if step.decoding else scan(d, step, precision)
    return [
        projection(qkvz, step, precision),
        projection(ba, step, precision),
        short_conv("short conv", ShortConv(step.B, step.S, channels(d), d.conv, e), update=step.decoding),
        elementwise("decay, β", read=2 * heads * e, written=8 * heads, vector=6 * heads, special=4 * heads),
        *core,
        gated_norm("gated norm", d.Hv * d.dv, step, precision),
        projection(out, step, precision),
    ]
