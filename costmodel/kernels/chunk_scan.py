"""Chunked scans: linear recurrences with a matrix state, run as matrix products over chunks of C tokens.

Inside a chunk every token meets the earlier ones by a C × C matrix; between chunks only the dk × dv state
is carried. The real pipelines are several launches that pass their intermediates through memory, and one of
them walks the chunks one after another: with few heads that chain is the time, whatever the FLOP/s.

In-chunk pairs are exact: chunks start at the call's first token, the last one is ragged. Work depends on
the new tokens only; the state is read and written once per call, however long the past.

Source: GLA arXiv:2312.06635, section 4; DeltaNet arXiv:2406.06484, section 3; Gated DeltaNet
arXiv:2412.06464, section 3; kernels of fla-org/flash-linear-attention (fla/ops/common, fla/ops/gated_delta_rule).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, half, named, third
from costmodel.einsum import dot
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Work, unit_terms
from costmodel.pairs import chunked

SUB_TILE = 16
"""Rows of the blocks in which in-chunk matrices are computed and inverted."""

SLICE = 64
"""Value columns of the state that one thread block of the sequential kernel keeps in registers."""

Flops = tuple[Quantity, Quantity]
"""Ideal and executed FLOPs of one product."""

Bytes = tuple[Quantity, Quantity]
"""Bytes read and written."""


class Scan(NamedTuple):
    """B sequences of S new tokens, H heads with a state of dk × dv, chunks of C tokens; dtype of the products.

    pipeline names the compiled pipeline that a calibration belongs to.
    """

    pipeline: str
    B: Quantity
    S: Quantity
    H: Quantity
    dk: Quantity
    dv: Quantity
    C: Quantity
    dtype: str = "bf16"

    @property
    def chunks(self) -> Quantity:
        """Chunks of one sequence, the ragged last one included."""
        return ceil_div(self.S, self.C)


class Stage(NamedTuple):
    """One launch of a pipeline; `recomputed` ones run again before the backward pass."""

    scan: Scan
    recomputed: bool = False


def substitution(S: Quantity, C: Quantity) -> Quantity:
    """Multiply-adds that invert the unit lower triangular matrix of every chunk by forward substitution.

    T[i, j] = −A[i, j] − Σ A[i, m]·T[m, j] over j < m < i: one per triple i > m > j, n(n − 1)(n − 2)/6 in a
    chunk of n tokens. The strictly lower product of two such matrices takes as many.

    >>> substitution(8, 4), substitution(7, 4)
    (8, 5)
    """

    def triples(n: Quantity) -> Quantity:
        return third(half(n * (n - 1) * (n - 2)))

    whole = floor_div(S, C)
    return whole * triples(C) + triples(S - whole * C)


def lower_tiles(C: Quantity, rows: int = SUB_TILE) -> Quantity:
    """Elements of the square tiles on and below the diagonal of a C × C matrix.

    >>> lower_tiles(64), lower_tiles(64) / 64**2
    (2560, 0.625)
    """
    m = ceil_div(C, rows)
    return rows * rows * half(m * (m + 1))


def inverse_tiles(C: Quantity) -> Quantity:
    """Multiply-adds of the blocked inverse of a unit lower triangular C × C matrix.

    Block (i, j) of the inverse takes i − j + 1 products of 16 × 16 blocks; a block on the diagonal, inverted
    row by row on the fp32 lanes, is counted as one product too.

    >>> inverse_tiles(64) == (4 + 16) * 16**3
    True
    """
    m = ceil_div(C, SUB_TILE)
    return (m + third(half(m * (m - 1) * (m + 4)))) * SUB_TILE**3


def sizes(scan: Scan) -> dict[str, Quantity]:
    """The axes of a scan for einsum expressions.

    pairs, strict: in-chunk pairs per sequence and head with and without a token's own; triples: see
    `substitution`; n: chunks; padded, square, lower, inverse: what whole tiles compute instead of S, pairs,
    strict and triples.
    """
    pairs = named("pairs", chunked(0, scan.S, scan.C))
    n = named("chunks", scan.chunks)
    return {
        "B": scan.B,
        "S": scan.S,
        "H": scan.H,
        "dk": scan.dk,
        "dv": scan.dv,
        "C": scan.C,
        "n": n,
        "pairs": pairs,
        "strict": pairs - scan.S,
        "triples": named("triples", substitution(scan.S, scan.C)),
        "padded": n * scan.C,
        "square": n * scan.C * scan.C,
        "lower": n * lower_tiles(scan.C),
        "inverse": n * inverse_tiles(scan.C),
    }


def delta_rule(s: Mapping[str, Quantity]) -> dict[str, Flops]:
    """The products of a gated delta rule, M ← α(I − β·k·kᵀ)M + β·k·vᵀ, in its chunked (WY) form.

    With T = (I + strict lower of β·k·kᵀ)⁻¹: W = T(β·K), U = T(β·V), V' = U − W·M, O = Q·M + lower(Q·Kᵀ)·V',
    M ← M + Kᵀ·V', decays applied to the operands. Counted per value head, as the kernels compute it: heads
    that share a key head could share K·Kᵀ and Q·Kᵀ, but none does.

    Source: arXiv:2406.06484, section 3 (WY form); arXiv:2412.06464, section 3 (with decay).
    """
    state = (dot("B S H dk dv", s), dot("B padded H dk dv", s))
    return {
        "k·kᵀ": (dot("B H strict dk", s), dot("B H lower dk", s)),
        "inverse": (dot("B H triples", s), dot("B H inverse", s)),
        "w": (dot("B H pairs dk", s), dot("B H square dk", s)),
        "u": (dot("B H pairs dv", s), dot("B H square dv", s)),
        "w·M": state,
        "kᵀ·v'": state,
        "q·M": state,
        "q·kᵀ": (dot("B H pairs dk", s), dot("B H square dk", s)),
        "(q·kᵀ)·v'": (dot("B H pairs dv", s), dot("B H square dv", s)),
    }


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """Two products for each one of the forward pass, and the forward launch again where its result is not kept.

    The gradient reads the inputs and the incoming gradients and writes those of the inputs; a chain runs once
    more from the last chunk to the first. Recomputation counts as executed work only.
    """
    stage: Stage = kernel.shape
    again = 1 if stage.recomputed else 0

    def gradient(forward: Work, again: int) -> Work:
        passes = 2 + again
        return Work(
            tensor={dtype: flops * passes for dtype, flops in forward.tensor.items()},
            vector=forward.vector * passes,
            special=forward.special * passes,
            read=forward.read * (1 + again) + forward.written,
            written=forward.read + forward.written * again,
            l2=forward.l2 * passes,
        )

    grid = kernel.grid
    return (
        kernel._replace(
            name=f"{kernel.name} backward",
            ideal=gradient(kernel.ideal, 0),
            executed=gradient(kernel.executed, again),
            grid=grid._replace(chain_steps=grid.chain_steps * (1 + again)) if grid else None,
            launches=kernel.launches * (1 + again),
        ),
    )


PARAMETERS = (
    Parameter("launch_s", 2.6e-6, 0.4, 0.5e-6, 3e-5, "s", "launch and tail of one kernel of the pipeline"),
    Parameter("block_s", 1.0e-6, 0.5, 0.1e-6, 1e-5, "s", "prologue and epilogue of one thread block"),
    Parameter("step_s", 1.2e-6, 0.4, 0.05e-6, 1e-5, "s", "one chunk in the chain of one thread block"),
    Parameter("tensor_efficiency", 0.40, 0.4, 0.02, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
    Parameter("vector_efficiency", 0.4, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s for decays and gates"),
    Parameter("special_efficiency", 0.6, 0.4, 0.02, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.55, 0.35, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's, where the profile has no figure"),
    Parameter("wave_weight", 0.5, 0.5, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 3.0, 0.25, 1.5, 8.0, "1", "exponent of the p-norm"),
)

FORM = Form(
    family="chunk-scan",
    summary="linear recurrences as products over chunks, with a serial chain of chunk states",
    parameters=PARAMETERS,
    terms=unit_terms,
    backward=backward,
    sources=("arXiv:2406.06484, section 3", "fla-org/flash-linear-attention, fla/ops"),
    model_spread=0.3,
)


def chunk_kernel(
    name: str,
    scan: Scan,
    *products: Flops,
    needed: Bytes = (0, 0),
    moved: Bytes,
    reread: Quantity = 0,
    vector: Quantity = 0,
    special: Quantity = 0,
    slices: Quantity | None = None,
    occupancy: int = 1,
    recomputed: bool = False,
    launches: int = 1,
) -> Kernel:
    """One launch of a pipeline.

    needed: bytes of a pipeline fused into one pass (inputs at the first launch that wants them, outputs at the
    last, intermediates never); moved: what this launch really reads and writes; reread: bytes that come again
    from L2; slices: thread blocks per head that walk the chunks one after another, `occupancy` of them sharing a
    unit; None when chunks run in parallel.

    >>> scan = Scan("gdn", B=1, S=128, H=2, dk=4, dv=4, C=64)
    >>> k = chunk_kernel("states", scan, (100, 120), needed=(8, 8), moved=(64, 32), slices=1)
    >>> k.ideal.flops, k.executed.flops, k.executed.hbm_bytes, k.grid.chain_steps
    (100, 120, 96, 2)
    """
    chunks = scan.chunks
    grid = (
        Grid(blocks=scan.B * scan.H * chunks, occupancy=4)
        if slices is None
        else Grid(blocks=scan.B * scan.H * slices, occupancy=occupancy, chain_steps=chunks)
    )
    return Kernel(
        name=name,
        form=FORM,
        ideal=Work(
            tensor={scan.dtype: sum(ideal for ideal, _ in products)} if products else {},
            read=needed[0],
            written=needed[1],
        ),
        executed=Work(
            tensor={scan.dtype: sum(executed for _, executed in products)} if products else {},
            vector=vector,
            special=special,
            read=moved[0],
            written=moved[1],
            l2=moved[0] + moved[1] + reread,
        ),
        grid=grid,
        instance=f"{scan.pipeline}-{scan.dk}x{scan.dv}-{scan.dtype}",
        shape=Stage(scan, recomputed),
        launches=launches,
        implementation="flash-linear-attention (Triton)",
    )


def fused(name: str, pipeline: Sequence[Kernel]) -> Kernel:
    """A pipeline as one launch: a thread block keeps the state of a head on chip and walks its chunks.

    Only what the parts need passes through memory; their arithmetic stays. Such kernels are FlashInfer's gated
    delta rule and FlashKDA.

    >>> scan = Scan("gdn", B=1, S=128, H=2, dk=4, dv=4, C=64)
    >>> parts = [chunk_kernel(n, scan, (100, 120), needed=(8, 4), moved=(64, 32)) for n in ("states", "output")]
    >>> k = fused("scan", parts)
    >>> k.ideal.flops, k.executed.flops, k.executed.hbm_bytes, k.launches
    (200, 240, 24, 1)
    """
    scan: Scan = pipeline[0].shape.scan
    ideal = Work(
        tensor={scan.dtype: sum(part.ideal.flops for part in pipeline)},
        read=sum(part.ideal.read for part in pipeline),
        written=sum(part.ideal.written for part in pipeline),
    )
    return pipeline[0]._replace(
        name=name,
        ideal=ideal,
        executed=ideal._replace(
            tensor={scan.dtype: sum(sum(part.executed.tensor.values()) for part in pipeline)},
            vector=sum(part.executed.vector for part in pipeline),
            special=sum(part.executed.special for part in pipeline),
            l2=ideal.hbm_bytes,
        ),
        grid=Grid(blocks=scan.B * scan.H, chain_steps=scan.chunks),
        instance=f"{pipeline[0].instance}-fused",
        launches=1,
        implementation="FlashInfer, FlashKDA",
    )
