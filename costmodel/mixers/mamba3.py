"""Mamba-3: a state-space model with a trapezoidal update, a rotating state, and R inputs and outputs per head (MIMO).

Source: arXiv:2603.15569, section 3 (equations of the exponential-trapezoidal, complex and MIMO updates);
state-spaces/mamba, mamba_ssm/modules/mamba3.py, ops/triton/mamba3 (SISO), ops/tilelang/mamba3 (MIMO), ops/cute/mamba3
(decode).

h ← α·Rot(θ)·(h + β·B'·x'ᵀ) + γ·B·xᵀ, y = C·h with B', x' of the previous token and α = exp(Δ·A). The rotation is
applied to B and C as a cumulative rotary embedding; the update before last joins the strictly lower part of C·Bᵀ, so
chunks cost what linear attention's do. Rank R makes B, C and x R rows per token: R times the FLOPs on the same state.
No short convolution; a last B and x per head are kept instead.

>>> from costmodel.step import Precision
>>> cache(Dims(H=32, p=64, N=128), Precision()).fixed == 4 * 32 * (64 * 128 + 32) + 2 * 32 * (128 + 64)
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, floor_div
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Scan, chunk_kernel, sizes
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.recurrent_step import Recurrence, recurrent_step
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "mamba3"
ALIASES = ("mamba-3",)
TITLE = "Mamba-3"
SUMMARY = "trapezoidal state space with a rotating state; R inputs and outputs per head (MIMO)"
SOURCES = (
    "arXiv:2603.15569, section 3 (update, rotation, MIMO)",
    "state-spaces/mamba, mamba_ssm/modules/mamba3.py, mamba_ssm/ops/{triton,tilelang,cute}/mamba3 (kernels)",
)
TENSOR_PARALLEL = "by heads as Mamba-2, angles on every device; no engine is known that splits it"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2603.15569, section 3")
UNVERIFIED = ("prefill times: with the priors about 30 % below the published ones, and too little extra for MIMO",)

PER_RANK = 6
"""Per state element, token and rank: the previous token's write 2, the token's own 2, read 2; the decay adds 1."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a Mamba-3 layer; heads · head_dim is the inner width."""

    H: int = dim("heads", "heads, each with a state", split="heads")
    p: int = dim("head_dim", "width of a head")
    N: int = dim("state", "state size per channel")
    G: int = dim("groups", "groups of heads that share B and C", 1, split="groups")
    R: int | None = dim("mimo_rank", "inputs and outputs per head; null: one (SISO)", None, nullable=True)
    rope: int = dim("rope_dim", "part of B and C that is rotated, two elements per angle", 64)
    C: int = dim("chunk", "tokens of a chunk; 64 over the rank in released kernels", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=4, p=8, N=8, G=2, rope=4, C=8),
    Dims(H=3, p=4, N=6, rope=6, C=5),
    Dims(H=2, p=4, N=6, R=3, rope=2, C=4),
)


def check(d: Dims) -> list[str]:
    """Heads must divide evenly over the groups; the rotated part is even and within the state."""
    found = [] if d.H % d.G == 0 else [f"heads {d.H} is not a multiple of groups {d.G}"]
    if d.rope % 2 or d.rope > d.N:
        found.append(f"rope_dim {d.rope} is not an even number within state {d.N}")
    return found


def rank(d: Dims) -> Quantity:
    """Rows of B, C and x per token and head."""
    return 1 if d.R is None else d.R


def angles(d: Dims) -> Quantity:
    """Rotation angles per head."""
    return floor_div(d.rope, 2)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """z, x, B, C, step size, decay, trapezoid weight and angles as one matrix, and the output."""
    shared = 2 * d.G * d.N * rank(d) + angles(d)
    return (Projection("in_proj", D, 2 * d.H * d.p + shared + 3 * d.H), Projection("out_proj", d.H * d.p, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Biases of B and C per head and rank, their norms, bias of Δ and skip D; MIMO's maps of x, z and the output."""
    maps = 0 if d.R is None else 3 * d.H * d.R * d.p
    return 2 * d.H * rank(d) * d.N + 2 * d.N + 2 * d.H + maps


def cache(d: Dims, precision: Precision) -> Cache:
    """State, cumulative angles, and the last token's B and x of every head; nothing grows with the context."""
    state = d.H * d.N * d.p * element_bytes(d.state_dtype) + d.H * angles(d) * 4
    return Cache(fixed=state + (rank(d) * d.H * d.N + d.H * d.p) * precision.hidden_bytes)


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Cumulative angles, then one fused launch in which a thread block walks the chunks of a head.

    The angles are shared by the heads but materialised for each. The SISO kernel walks twice: first it rotates B and
    C and stores them per head, then it multiplies. The MIMO kernel keeps them on chip, takes C·Bᵀ twice (with and
    without rotation), and reads a C × C matrix of decays that a launch of its own writes.
    """
    e = precision.hidden_bytes
    mimo = d.R is not None
    pipeline = "mamba3" if d.R is None else f"mamba3-mimo{d.R}"
    chunks = Scan(pipeline, step.B, step.S, d.H, d.N, d.p, d.C, precision.hidden)
    s = sizes(chunks) | {"N": d.N, "p": d.p, "G": d.G, "R": rank(d), "R2": rank(d) * rank(d), "A": angles(d)}
    x, b, each = size("B S H p", s) * e, size("B S G R N", s) * e, size("B S H R N", s) * e
    head, angle, turned = size("B S H", s) * 4, size("B S A", s) * e, size("B S H A", s) * 4
    state = size("B H N p", s) * element_bytes(d.state_dtype) + (size("B H R N", s) + size("B H p", s)) * e
    kept, decays = size("B H A", s) * 4, size("B H square", s) * 4
    through_state = (dot("B S H R N p", s), dot("B padded H R N p", s))
    cumsum = chunk_kernel(
        "angle cumsum",
        chunks,
        needed=(angle + head + kept, kept),
        moved=(angle + turned + head + kept, 2 * turned + kept),
        vector=3 * size("B padded H A", s),
        launches=2,
    )
    sums = chunk_kernel("decay sums", chunks, moved=(head, 2 * head + decays), vector=2 * size("B H square", s))
    square, rows = size("B H square R2", s), size("B padded H R", s)
    whole = dot("B H square R2 N", s)
    main = chunk_kernel(
        "scan",
        chunks,
        through_state,
        through_state,
        (dot("B H pairs R2 N", s), 2 * whole if mimo else whole),
        (dot("B H pairs R2 p", s), dot("B H square R2 p", s)),
        # x, z, B, C; decay, step size and trapezoid weight in fp32; the state and the last B and x.
        needed=(2 * x + 2 * b + 3 * head + state, x + state),
        moved=(
            2 * x + 2 * b + 5 * head + turned + state + (decays if mimo else 2 * each + head),
            x + state + (0 if mimo else 2 * each + 3 * head),
        ),
        reread=(d.H - d.G) * 2 * size("B S R N", s) * e,
        # Rotation and biases; decays of pairs; the token's own C·B with its outer part; gate and skip per rank.
        vector=16 * rows * d.N + 3 * square + 2 * rows * (d.N + rank(d) * d.p) + 10 * rows * d.p,
        special=2 * size("B padded H A", s) + square + rows * d.p + 4 * size("B padded H", s),
        slices=1,
        recomputed=mimo,
    )._replace(implementation="mamba-ssm (TileLang)" if mimo else "mamba-ssm (Triton)")
    if mimo:
        return [cumsum, sums, main]
    grid = main.grid
    return [cumsum, main._replace(grid=grid._replace(chain_steps=2 * grid.chain_steps) if grid else None)]


def stepwise(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decode: B and C rotated per head, then the state stepped token by token, with the last B and x at hand."""
    e, tokens, R = precision.hidden_bytes, step.tokens, rank(d)
    rows, turning = tokens * d.H * R * d.N, step.B * d.H * angles(d) * 4
    last = step.B * d.H * (R * d.N + d.p) * e
    rotated = elementwise(
        "rotation",
        read=tokens * (2 * d.G * R * d.N + angles(d)) * e + tokens * d.H * 4 + turning,
        written=2 * rows * e + turning,
        vector=8 * rows + 2 * tokens * d.H * angles(d),
        special=2 * tokens * d.H * angles(d),
    )
    return [
        rotated,
        recurrent_step(
            "recurrent step",
            Recurrence("mamba3", step.B, step.S, d.H, d.N, d.p, 1 + PER_RANK * R, element_bytes(d.state_dtype)),
            read=2 * rows * e + tokens * d.H * (2 * d.p * e + 12) + last,
            written=tokens * d.H * d.p * e + last,
            vector=tokens * d.H * (8 * R * d.p + 6),
            special=tokens * d.H * (R * d.p + 3),
        ),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: input projection, norms of B and C, step size and decay, the gated scan, output projection."""
    into, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    shared, heads = 2 * tokens * d.G * rank(d) * d.N, 3 * tokens * d.H
    return [
        projection(into, step, precision),
        elementwise("B, C norm", read=shared * e, written=shared * e, vector=4 * shared),
        elementwise("step size, decay", read=heads * e, written=heads * 4, vector=3 * heads, special=2 * heads),
        *(stepwise(d, step, precision) if step.decoding else scan(d, step, precision)),
        projection(out, step, precision),
    ]
