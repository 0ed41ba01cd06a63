"""Power attention of degree 2: weights (q·k)², which are products of feature maps, so that the past folds into a state.

Source: arXiv:2507.04239, sections 2 and 3; m-a-n-i-f-e-s-t/retention, retention/power_retention_maker.py.

φ(x) holds the D_φ = dk(dk + 1)/2 products xᵢxⱼ of a head, and φ(q)·φ(k) = (q·k)². Chunks of C tokens are attended to
token by token and then folded into a state of D_φ × (dv + 1) per key head (the last column sums the keys, for the
normaliser), which all H query heads read. Cost per token is constant, but large: softmax attention over L keys is
cheaper below L ≈ D_φ/2·(1 + Hkv/H). Chunks of prefill are as long as the cache that decode folds at once, the library's
default for both; chunks start at multiples of C in the sequence. The token that completes a chunk pays for folding it,
so contexts that are multiples of C are the dearest in decode.

>>> from costmodel.step import Precision
>>> d = Dims(H=24, Hkv=2, dk=128, dv=128)
>>> features(d), cache(d, Precision()).fixed / 2  # 4 · 8256 · 129 bytes per key head
(8256, 4260096.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div, floor_div, half, maximum, minimum, named
from costmodel.dims import dim, flag
from costmodel.einsum import dot, size
from costmodel.kernels.base import Grid, Kernel
from costmodel.kernels.chunk_scan import Scan, chunk_kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.pairs import chunked, executed_chunked
from costmodel.step import Precision, Step

NAME = "power"
ALIASES = ("power-attention", "power-retention", "symmetric-power")
TITLE = "Power attention"
SUMMARY = "squared dot products with a folded state of dk(dk + 1)/2 rows"
SOURCES = (
    "arXiv:2507.04239, sections 2 and 3",
    "m-a-n-i-f-e-s-t/retention, retention/power_retention_maker.py",
)
TENSOR_PARALLEL = "heads are independent; no engine is known that splits them"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2507.04239, section 2")

BLOCK = 16
"""Products xᵢxⱼ are computed in blocks of 16 × 16, those on the diagonal whole."""

ROWS, KEYS = 128, 64
"""Query rows and keys of a tile inside a chunk."""

DECODE_ROWS = 16
"""Rows of the tiles of a few tokens; the query heads of a key head share one."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a power attention layer."""

    H: int = dim("heads", "query heads", split="heads")
    Hkv: int = dim("kv_heads", "key and value heads, each with a state", split="groups")
    dk: int = dim("d_qk", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    C: int = dim("switch_over", "tokens of a chunk: kept as keys and values until they are folded", 1024)
    gate: bool = flag("gating", "a decay per token and key head", True)
    rope: bool = flag("rope", "rotary position embedding", True)


EXAMPLES = (
    Dims(H=4, Hkv=2, dk=4, dv=4, C=8),
    Dims(H=3, Hkv=3, dk=5, dv=6, C=8, gate=False, rope=False),
)


def check(d: Dims) -> list[str]:
    """Query heads must divide evenly over the key heads."""
    return [] if d.H % d.Hkv == 0 else [f"heads {d.H} is not a multiple of kv_heads {d.Hkv}"]


def features(d: Dims) -> Quantity:
    """D_φ, the products of two elements of a head."""
    return half(d.dk * (d.dk + 1))


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """W_Q, W_K, W_V and the decays as one matrix, and W_O."""
    return (
        Projection("qkv_proj", D, d.H * d.dk + d.Hkv * (d.dk + d.dv + (1 if d.gate else 0))),
        Projection("o_proj", d.H * d.dv, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """None."""
    return 0


def state_bytes(d: Dims) -> Quantity:
    """Bytes of the fp32 states of all key heads."""
    return 4 * d.Hkv * features(d) * (d.dv + 1)


def cache(d: Dims, precision: Precision) -> Cache:
    """Keys and values of the open chunk, and the states."""
    return Cache(per_token=d.Hkv * (d.dk + d.dv) * precision.kv_bytes, limit=d.C, fixed=state_bytes(d))


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Attention inside chunks, queries over the state, and the folding of finished chunks.

    FLOP = 2·B·[H·pairs·(dk + dv) + (H·beyond + Hkv·folded)·D_φ·(dv + 1)], where `beyond` counts the tokens after the
    first chunk. Executed: feature maps in whole blocks; in prefill a state per chunk in 16 bit, written, summed up from
    chunk to chunk, and read again.
    """
    e, P, S, L = precision.hidden_bytes, step.P, step.S, step.L
    chunks = Scan("power", step.B, S, d.H, features(d), d.dv, d.C, precision.hidden)
    folds, beyond = floor_div(L, d.C) - floor_div(P, d.C), maximum(L - d.C, 0) - maximum(P - d.C, 0)
    opened = chunked(P, 1, d.C) - 1  # tokens of the first chunk that were there before
    blocks = BLOCK * ceil_div(d.dk, BLOCK)
    s = {
        "B": step.B,
        "S": S,
        "H": d.H,
        "Hkv": d.Hkv,
        "dk": d.dk,
        "dv": d.dv,
        "dv1": d.dv + 1,
        "Dphi": named("D_φ", features(d)),
        "blocks": half(blocks * (blocks + BLOCK)),
        "pairs": named("pairs", chunked(P, S, d.C)),
        "beyond": named("beyond", beyond),
        "folds": named("folds", folds),
        "folded": d.C * folds,
        "opened": opened,
    }
    if step.decoding:
        rows = DECODE_ROWS * ceil_div(d.H * S, d.Hkv * DECODE_ROWS)
        s["computed"] = size("Hkv", s) * rows * KEYS * ceil_div(opened + S, KEYS)
        s["queries"] = size("Hkv", s) * rows * minimum(beyond, 1)
    else:
        s["computed"] = d.H * executed_chunked(P, S, d.C, ROWS, KEYS)
        s["queries"] = d.H * ROWS * ceil_div(beyond, ROWS)
    q, out = size("B S H dk", s) * e, size("B S H dv", s) * e
    kv = (size("B S Hkv dk", s) + size("B S Hkv dv", s)) * e
    cached = size("B opened Hkv", s) * (d.dk + d.dv) * precision.kv_bytes
    scores, sums = size("B computed", s), size("B S H", s) * 8  # a row's sum and its largest exponent
    state, per_chunk = step.B * state_bytes(d), size("B folds Hkv blocks dv1", s) * e
    # A state is read where a token lies beyond the first chunk, and written where a chunk was folded.
    known, renewed = minimum(beyond, 1) * state, minimum(folds, 1) * state
    widened = size("B Hkv blocks dv1", s) * 4  # the running states as they are laid out
    states = minimum(beyond, 1) * widened + (0 if step.decoding else per_chunk)
    slices = step.B * d.Hkv * ceil_div(s["blocks"], ROWS)  # thread blocks take 128 rows of a state, or 128 queries
    heads = chunks._replace(H=d.Hkv)
    launched = [
        chunk_kernel(
            "attention inside chunks",
            chunks,
            (dot("B H pairs dk", s), dot("B computed dk", s)),
            (dot("B H pairs dv", s), dot("B computed dv", s)),
            needed=(q + kv + cached, 0),
            moved=(q + kv + cached, out + sums),
            vector=5 * scores,
            special=2 * scores,
        ),
        chunk_kernel(
            "fold into states",
            chunks,
            (dot("B Hkv folded Dphi dv1", s), dot("B Hkv folded blocks dv1", s)),
            needed=(0, renewed),
            moved=(size("B folded Hkv", s) * (d.dk + d.dv) * e, per_chunk + minimum(folds, 1) * widened),
            vector=size("B folded Hkv blocks", s),
            launches=minimum(folds, 1),
            recomputed=True,
        )._replace(grid=Grid(blocks=slices * maximum(folds, 1), occupancy=2)),
        chunk_kernel(
            "sum of states",
            heads,
            moved=(per_chunk, per_chunk),
            vector=2 * size("B folds Hkv blocks dv1", s),
            slices=ceil_div(s["blocks"] * s["dv1"], 2048),
            occupancy=8,  # elementwise: no tiles to hold
            launches=minimum(folds, 1),
            recomputed=True,
        ),
        chunk_kernel(
            "queries over the state",
            chunks,
            (dot("B H beyond Dphi dv1", s), dot("B queries blocks dv1", s)),
            needed=(known, out),
            moved=(q + out + sums + states, out),
            vector=size("B queries blocks", s) + 4 * size("B S H dv", s),
        )._replace(grid=Grid(blocks=slices if step.decoding else step.B * d.H * ceil_div(S, ROWS), occupancy=2)),
    ]
    # A token's kernels have tiles of their own: their times say nothing of those of a sequence.
    return [kernel._replace(instance=f"{kernel.instance}-step") for kernel in launched] if step.decoding else launched


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projection, rotation and cache write, decays, the mechanism, output projection."""
    qkv, out = projections(d, D)
    e, n = precision.hidden_bytes, step.tokens
    queries, keys, values = n * d.H * d.dk, n * d.Hkv * d.dk, n * d.Hkv * d.dv
    prepare = elementwise(
        "rope, cache write",
        read=(queries + keys + values) * e,
        written=queries * e + (keys + values) * precision.kv_bytes,
        vector=6 * (queries + keys) if d.rope else 0,
    )
    decays = n * d.Hkv
    gates = elementwise("decay", read=decays * e, written=4 * decays, vector=2 * decays, special=2 * decays)
    return [
        projection(qkv, step, precision),
        prepare,
        *([gates] if d.gate else ()),
        *scan(d, step, precision),
        projection(out, step, precision),
    ]
