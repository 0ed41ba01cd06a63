"""Mamba-2 (state-space duality): a matrix state per head that decays by a scalar and accumulates B·xᵀ.

Source: arXiv:2405.21060, sections 5 and 6; kernels of state-spaces/mamba, mamba_ssm/ops/triton/ssd_*.py.

h ← a·h + Δ·B·xᵀ, y = C·h + D·x with a = exp(Δ·A). G groups share B and C. Work per token is constant: prefill
runs chunks as products (C·Bᵀ once per group), decode steps the state and is bound by its bytes.

>>> from costmodel.step import Precision
>>> d = Dims(H=80, p=64, N=128)
>>> cache(d, Precision()).fixed == 4 * 80 * 64 * 128 + 3 * (80 * 64 + 2 * 128) * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div
from costmodel.dims import choice, dim, flag
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Scan, chunk_kernel, lower_tiles, sizes, whole
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.kernels.short_conv import ShortConv, short_conv, state_bytes
from costmodel.layers.norm import gated_norm
from costmodel.layers.partial_sum import NORM_OF_ALL_HEADS, PartialSum
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "mamba2"
ALIASES = ("mamba-2", "ssd")
TITLE = "Mamba-2"
SUMMARY = "state-space duality: scalar decay per head, B and C shared by groups, matrix state"
SOURCES = (
    "arXiv:2405.21060, sections 5 (structured duality) and 6 (block decomposition)",
    "state-spaces/mamba, mamba_ssm/ops/triton/ssd_combined.py (kernels)",
)
TENSOR_PARALLEL = "by heads, groups below tp are copied: vllm-project/vllm, layers/mamba/mamba_mixer2.py"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2405.21060, section 6")
UNVERIFIED = ("prefill times: with the priors about half of public measurements",)

OPERATIONS = 5
"""Per state element and token: decay 1, write 2, read 2."""

ROWS = 64
"""Rows of the tiles in which the causal product with x skips what lies above the diagonal."""

PASSED = 2048
"""State elements that one thread block carries from chunk to chunk."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a Mamba-2 layer; heads · head_dim is the inner width."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    p: int = dim("head_dim", "width of a head")
    N: int = dim("state", "state size per channel")
    G: int = dim("groups", "groups of heads that share B and C", 1, split="groups")
    conv: int = dim("conv", "taps of the short convolution on x, B and C", 4)
    C: int = dim("chunk", "tokens of a chunk", 256)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))
    norm: bool = flag("gated_norm", "an RMSNorm of the gated output; without it the scan applies the gate z", True)
    apart: bool = flag(
        "chunks_apart", "chunks run on any unit, as mamba_ssm's; else a unit walks those of a head", False
    )


EXAMPLES = (
    Dims(H=4, p=8, N=8, G=2, C=8),
    Dims(H=3, p=4, N=6, conv=3, C=5),
    Dims(H=2, p=4, N=4, C=4, norm=False, apart=True),
)


def check(d: Dims) -> list[str]:
    """Heads must divide evenly over the groups."""
    return [] if d.H % d.G == 0 else [f"heads {d.H} is not a multiple of groups {d.G}"]


def channels(d: Dims) -> Quantity:
    """Channels of the short convolution: x, B and C."""
    return d.H * d.p + 2 * d.G * d.N


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """z, x, B, C and Δ as one matrix, and the output."""
    return (
        Projection("in_proj", D, 2 * d.H * d.p + 2 * d.G * d.N + d.H),
        Projection("out_proj", d.H * d.p, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Convolution taps and biases; A, D and the bias of Δ per head; the scale of the gated norm."""
    return channels(d) * (d.conv + 1) + 3 * d.H + (d.H * d.p if d.norm else 0)


def partial_sums(d: Dims, D: Quantity, ways: int) -> tuple[PartialSum, ...]:
    """The gated norm is over a group's channels, which one device has unless groups are copied."""
    return (NORM_OF_ALL_HEADS,) if d.norm and d.G % ways else ()


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head and the convolution's last inputs; nothing grows with the context."""
    state = d.H * d.N * d.p * element_bytes(d.state_dtype)
    return Cache(fixed=state + state_bytes(channels(d), d.conv, precision.hidden_bytes))


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """The five launches of mamba_chunk_scan_combined as one kernel.

    Bytes in bf16: 6p + 26 + 12·N·p/C per token and head, 8N + 8C per token and group; a fused pass would move
    4p + 2 and 4N. C·Bᵀ is computed without a causal skip; the decays inside a chunk take one exp per computed
    pair and head, which rivals the products on devices with fast matrix engines. A gate without a norm is applied by
    the last launch, which reads z and writes its result before and after the gate (ssd_chunk_scan.py, out_x).
    """
    e = precision.hidden_bytes
    chunks = Scan("mamba2", step.B, step.S, d.H, d.N, d.p, d.C, precision.hidden, element_bytes(d.state_dtype), d.apart)
    groups = chunks._replace(H=d.G)
    s = sizes(chunks) | {"p": d.p, "N": d.N, "G": d.G}
    s["causal"] = s["n"] * lower_tiles(d.C, ROWS)
    x, b = size("B S H p", s) * e, size("B S G N", s) * e  # C is as large as B
    delta, decay = size("B S H", s) * e, size("B S H", s) * 4  # Δ as projected; Δ and the summed decay in fp32
    cb, again = size("B G square", s) * 4, (d.H - d.G) * size("B square", s) * 4
    states, passed = size("B n H N p", s) * 4, size("B n H N p", s) * e
    state = size("B H N p", s) * element_bytes(d.state_dtype)
    gate = 0 if d.norm else x
    gated = 0 if d.norm else size("B S H p", s)
    through_state = (dot("B S H N p", s), dot("B padded H N p", s))
    stages = [
        chunk_kernel(
            "decay cumsum",
            chunks,
            needed=(delta, 0),
            moved=(delta, 2 * decay),
            vector=4 * size("B padded H", s),
            special=2 * size("B padded H", s),
            recomputed=True,
        ),
        chunk_kernel(
            "chunk states",
            chunks,
            through_state,
            needed=(x + b, 0),
            moved=(x + b + 2 * decay, states),
            vector=2 * size("B padded H N", s),
            special=size("B padded H", s),
            recomputed=True,
        ),
        chunk_kernel(
            "state passing",
            chunks,
            needed=(state, state),
            moved=(states + state, passed + state),
            vector=2 * size("B n H N p", s),
            special=size("B n H", s),
            slices=ceil_div(d.N * d.p, PASSED),
            occupancy=8,  # elementwise: no tiles to hold
            recomputed=True,
        ),
        chunk_kernel(
            "C·Bᵀ",
            groups,
            (dot("B G pairs N", s), dot("B G square N", s)),
            needed=(b, 0),
            moved=(2 * b, cb),
            recomputed=True,
        ),
        chunk_kernel(
            "output",
            chunks,
            through_state,
            (dot("B H pairs p", s), dot("B H causal p", s)),
            needed=(gate, x),
            moved=(x + b + cb + passed + 2 * decay + gate, x + gate),
            reread=again,  # every head of a group reads its C·Bᵀ
            vector=4 * size("B H causal", s) + 2 * size("B padded H p", s) + 2 * gated,
            special=size("B H causal", s) + size("B padded H", s) + gated,
        ),
    ]
    return [whole("chunk scan", stages)]


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: selective_state_update, token by token."""
    e = precision.hidden_bytes
    heads = step.tokens * d.H
    gate = 0 if d.norm else d.p
    return [
        recurrent_step(
            "recurrent step",
            Recurrence("mamba2", step.B, step.S, d.H, d.N, d.p, OPERATIONS, element_bytes(d.state_dtype)),
            read=heads * (d.p + 1 + gate) * e + 2 * step.tokens * d.G * d.N * e,
            written=heads * d.p * e,
            vector=heads * (3 * d.p + 4 + 2 * gate),
            special=heads * (3 + gate),
        )
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: input projection, convolution, the recurrence, gated norm, output projection."""
    into, out = projections(d, D)
    conv = ShortConv(step.B, step.S, channels(d), d.conv, precision.hidden_bytes)
    return [
        projection(into, step, precision),
        short_conv("short conv", conv, update=step.decoding),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        *([gated_norm("gated norm", d.H * d.p, step, precision)] if d.norm else []),
        projection(out, step, precision),
    ]
