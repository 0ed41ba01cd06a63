"""Log-linear attention: Mamba-2 or Gated DeltaNet with one state per level of a Fenwick tree over the past.

Source: arXiv:2506.04761, section 3 (Fenwick states, section 3.3: Mamba-2 and Gated DeltaNet).

A token weighs each state by a gate of its level: recent tokens are kept apart, old ones share states. Chunk i reads the
states of the bits set in i, so prefill costs L·log L and a decoded token ½·log₂(L/C) states. With `levels` fixed, as
here and in the published kernels, the growth ends there: the claimed one is that of fixed levels, to which a cache for
L = C·2^levels adds the logarithm. Transitions of the delta rule act on every state: at the end of a chunk each live one
takes two products with it, where a decay is only a factor.

>>> from costmodel.step import Precision
>>> d = Dims(Hk=1, Hv=32, dk=128, dv=64)
>>> more = cache(d, Precision()).fixed - mamba2.cache(base_dims(d), Precision()).fixed
>>> more == 7 * 4 * 32 * 128 * 64 + 64 * ((128 + 32 * 64) * 2 + 4 * 32)  # seven states, and the rows of an open chunk
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.algebra import Quantity, ceil_div, log2, minimum
from costmodel.dims import choice, dim
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import SLICE, Scan, chunk_kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.level_scan import Levels
from costmodel.kernels.short_conv import ShortConv, short_conv
from costmodel.layers.norm import gated_norm
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, gdn, mamba2
from costmodel.step import Precision, Step

NAME = "log_linear"
ALIASES = ("log-linear", "log-linear-attention", "loglinear")
TITLE = "Log-linear attention"
SUMMARY = "Mamba-2 or Gated DeltaNet with one state per level of a Fenwick tree"
SOURCES = (
    "arXiv:2506.04761, section 3",
    "fla-org/flash-linear-attention, fla/ops/log_linear_attn/chunk.py and fla/layers/log_linear_mamba2.py",
)
TENSOR_PARALLEL = "as its base; the weights of the levels are per head; no engine is known that splits it"
WHOLE_SEQUENCE = "the states of its levels would have to be folded across devices"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L log L)", "O(log L)", "arXiv:2506.04761, section 3")
UNVERIFIED = ("the pipeline of the Gated DeltaNet base, for which no public kernel exists",)


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a log-linear layer."""

    Hk: int = dim("k_heads", "query and key heads (Mamba-2: groups that share B and C)", split="groups")
    Hv: int = dim("v_heads", "value heads, each with its own states", split="heads")
    dk: int = dim("d_k", "width of a query or key head (Mamba-2: state size per channel)")
    dv: int = dim("d_v", "width of a value head")
    M: int = dim("levels", "states per head; the last takes all that is older than the others", 8, most=40)
    conv: int = dim("conv", "taps of the short convolution", 4)
    C: int = dim("chunk", "tokens of a chunk, a power of two", 64)
    base: str = choice("base", "the recurrence inside a level", "mamba2", ("mamba2", "gdn"))
    state_dtype: str = choice("state_dtype", "number format of the states", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(Hk=1, Hv=4, dk=4, dv=2, M=3, C=8),
    Dims(Hk=2, Hv=4, dk=4, dv=2, M=3, C=8, base="gdn"),
    Dims(Hk=1, Hv=2, dk=4, dv=4, M=1, conv=3, C=8),
    Dims(Hk=2, Hv=2, dk=2, dv=4, M=4, C=8, base="gdn", state_dtype="bf16"),
)


def module(d: Dims) -> Any:
    """The base mechanism."""
    return gdn if d.base == "gdn" else mamba2


def base_dims(d: Dims) -> Any:
    """The dimensions of the base mechanism."""
    if d.base == "gdn":
        return gdn.Dims(Hk=d.Hk, Hv=d.Hv, dk=d.dk, dv=d.dv, conv=d.conv, C=d.C, state_dtype=d.state_dtype)
    return mamba2.Dims(H=d.Hv, p=d.dv, N=d.dk, G=d.Hk, conv=d.conv, C=d.C, state_dtype=d.state_dtype)


def check(d: Dims) -> list[str]:
    """Chunks are leaves of a binary tree; value heads divide evenly over the key heads."""
    problems = [f"chunk {d.C} is not a power of two"] if d.C & (d.C - 1) else []
    return problems + ([f"v_heads {d.Hv} is not a multiple of k_heads {d.Hk}"] if d.Hv % d.Hk else [])


def gates(d: Dims) -> Quantity:
    """Weighted levels of a head: log₂C + 1 inside a chunk, and those that have a state."""
    return log2(d.C) + 1 + d.M


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Those of the base, and the weights of the levels."""
    *into, out = module(d).projections(base_dims(d), D)
    return (*into, Projection("level_proj", D, d.Hv * gates(d)), out)


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Those of the base, and a scale per head and level."""
    return module(d).extra_parameters(base_dims(d), D) + d.Hv * gates(d)


def open_row_bytes(d: Dims, precision: Precision) -> Quantity:
    """Bytes kept of a token in the open chunk: k, v and its decay; for the delta rule also w, u and its row of T."""
    e = precision.hidden_bytes
    delta = d.Hv * (d.dk + d.dv + d.C) * e if d.base == "gdn" else 0
    return (d.Hk * d.dk + d.Hv * d.dv) * e + 4 * d.Hv + delta


def cache(d: Dims, precision: Precision) -> Cache:
    """All states, the rows of the open chunk, and the convolution's last inputs; nothing grows with the context."""
    base = module(d).cache(base_dims(d), precision).fixed
    state = d.Hv * d.dk * d.dv * element_bytes(d.state_dtype)
    return Cache(fixed=base + (d.M - 1) * state + d.C * open_row_bytes(d, precision))


def scan(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """Decays summed, for the delta rule the in-chunk matrices, then one launch that walks the chunks with all states.

    The launch splits the key width into slices of 64 (so that the states fit on chip), computes whole chunks without a
    causal skip, also for one decoded token, and leaves an output per slice to be added up. For the delta rule there is
    no public kernel: assumed is the same launch after the first ones of the gated delta rule.
    """
    e = precision.hidden_bytes
    delta = d.base == "gdn"
    levels = Levels(step.P, step.S, d.C, d.M)
    chunks = Scan(f"log-linear-{d.base}", step.B, step.S, d.Hv, d.dk, d.dv, d.C, precision.hidden)
    slices = ceil_div(d.dk, SLICE)
    s = levels.sizes(chunks) | {"Hk": d.Hk, "H": d.Hv, "slices": slices, "M": d.M, "gates": gates(d)}
    keys, values, heads = size("B S Hk dk", s) * e, size("B S H dv", s) * e, size("B S H", s)
    rows, weights = size("B S H dk", s) * e, size("B S H gates", s) * e
    state = size("B H dk dv", s) * element_bytes(d.state_dtype)
    # Rows of the chunk that stays open are written, in decode those of every token, in training none.
    kept = step.S if step.decoding else 0 if step.phase == "train" else minimum(step.S, levels.rows_out)
    inside = levels.states_in * state + step.B * levels.rows_in * open_row_bytes(d, precision)
    outside = levels.states_out * state + step.B * kept * open_row_bytes(d, precision)
    run = [chunk_kernel("gate cumsum", chunks, needed=(4 * heads, 0), moved=(4 * heads, 4 * heads), vector=heads)]
    through = (dot("B H reads dk dv", s), dot("B H padded_reads dk dv", s))
    folded = (dot("B H folded dk dv", s), dot("B H padded dk dv", s))
    if delta:
        square = size("B S H C", s) * e
        run += [
            chunk_kernel(
                "k·kᵀ, inverse, w, u",
                chunks,
                (dot("B H strict dk", s), dot("B H lower dk", s)),
                (dot("B H triples", s), dot("B H square C", s)),
                (dot("B H pairs dk", s), dot("B H square dk", s)),
                (dot("B H pairs dv", s), dot("B H square dv", s)),
                needed=(keys + values + 4 * heads, 0),
                moved=(2 * keys + values + 8 * heads + square, square + rows + values),
                vector=3 * size("B H lower", s),
                special=size("B H lower", s),
                launches=3,
                recomputed=True,
            ),
            chunk_kernel(
                "q·kᵀ·T, q − q·kᵀ·w",
                chunks,
                (dot("B H pairs dk", s), dot("B H square dk", s)),
                (dot("B H full_triples", s), dot("B H square C", s)),
                (dot("B H pairs dk", s), dot("B H square dk", s)),
                needed=(keys, 0),
                moved=(2 * keys + square + rows + 4 * heads, square + rows),
                vector=3 * size("B H square", s),
                special=size("B H square", s),
                recomputed=True,
            ),
        ]
        # Every live state takes two products with the chunk's transition when the chunk is folded.
        carried = (dot("B H carried dk dv", s), dot("B H padded_reads dk dv", s))
        products = [(dot("B H pairs dv", s), dot("B H square slices dv", s)), through, folded, carried, carried]
        read, moved = weights, 2 * rows + keys + 2 * values + square + weights + 4 * heads
    else:
        products = [
            (dot("B Hk pairs dk", s), dot("B H square dk", s)),
            (dot("B H pairs dv", s), dot("B H square slices dv", s)),
            through,
            folded,
        ]
        read, moved = 2 * keys + values + weights, 2 * keys + values + weights + 4 * heads
    partial = size("B S H slices dv", s) * e
    walk = chunk_kernel(
        "chunk and level states",
        chunks,
        *products,
        needed=(read + inside, values + outside),
        moved=(moved + inside, partial + outside),
        reread=(d.Hv - d.Hk) * 2 * size("B S dk", s) * e,
        # Decays of all levels and the sums of the binary counter; decay and level weight of every pair.
        vector=3 * size("B n H M dk dv", s) + 3 * size("B H square slices", s),
        special=size("B H square slices", s) + size("B H padded", s),
        slices=slices,
        recomputed=True,
    )
    added = chunk_kernel("sum over slices", chunks, moved=(partial, values), vector=size("B S H slices dv", s))
    if not step.decoding:
        return [*run, walk, added]
    # A call that goes on inside a chunk first brings its rows together: the same launches have times of their own.
    return [kernel._replace(instance=f"{kernel.instance}-open") for kernel in (*run, walk, added)]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, convolution, gates, the recurrence over levels, gated norm, output projection."""
    *into, out = projections(d, D)
    e, tokens = precision.hidden_bytes, step.tokens
    heads, levels, qk = tokens * d.Hv, tokens * d.Hv * gates(d), 2 * tokens * d.Hk * d.dk
    channels = module(d).channels(base_dims(d))
    prepare = [
        elementwise("decay", read=2 * heads * e, written=8 * heads, vector=6 * heads, special=4 * heads),
        elementwise("level weights", read=levels * e, written=levels * e, vector=2 * levels, special=2 * levels),
    ]
    if d.base == "gdn":
        prepare.append(elementwise("q, k norm", read=qk * e, written=qk * e, vector=4 * qk))
    return [
        *(projection(p, step, precision) for p in into),
        short_conv("short conv", ShortConv(step.B, step.S, channels, d.conv, e), update=step.decoding),
        *prepare,
        *scan(d, step, precision),
        gated_norm("gated norm", d.Hv * d.dv, step, precision),
        projection(out, step, precision),
    ]
