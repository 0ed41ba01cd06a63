"""Chunked scans: linear recurrences with a matrix state, run as matrix products over chunks of C tokens.

Inside a chunk every token meets the earlier ones by a C × C matrix; between chunks only the dk × dv state
is carried. Open-source pipelines are several launches that pass their intermediates through memory, and one of
them walks the chunks one after another: with few heads that chain is the time, whatever the FLOP/s. Fused kernels
(FlashInfer's gated delta rule, FlashKDA) keep the intermediates on chip and are that chain alone. Both are one
kernel here, `whole`: what its parameters say decides which one it is.

In-chunk pairs are exact: chunks start at the call's first token, the last one is ragged. Work depends on
the new tokens only; the state is read and written once per call, however long the past.

Source: GLA arXiv:2312.06635, section 4; DeltaNet arXiv:2406.06484, section 3; Gated DeltaNet
arXiv:2412.06464, section 3; kernels of fla-org/flash-linear-attention (fla/ops/common, fla/ops/gated_delta_rule),
flashinfer-ai/flashinfer (gdn_prefill), MoonshotAI/FlashKDA.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, half, maximum, minimum, named, power, root, third
from costmodel.einsum import dot
from costmodel.kernels.base import (
    SHARED_BYTES_A_CLOCK,
    Form,
    Grid,
    Kernel,
    Parameter,
    Terms,
    Work,
    memory_seconds,
    unit_terms,
    waves,
)
from costmodel.pairs import chunked

if TYPE_CHECKING:
    from costmodel.hardware import Hardware

SUB_TILE = 16
"""Rows of the blocks in which in-chunk matrices are computed and inverted."""

SLICE = 64
"""Value columns of the state that one thread block of the sequential kernel keeps in registers."""

RESIDENT = 4
"""Thread blocks that walk chunks side by side on one unit where each has only a 64 × 64 tile of the state.

The tile takes 16 of the 256 KiB of a unit's registers, two tiles of keys and values in two to four stages 32 to 64 KiB
of its shared memory. Source: fla-org/flash-linear-attention, fla/ops/common/chunk_h.py, chunk_fwd_kernel_h.
"""

SHARED_STATE = 3
"""Times that a step of 16 tokens moves a state that lies in shared memory, in 16 bit: read for the products with keys
and queries, read and written by its update.

Source: MoonshotAI/FlashKDA, csrc/smxx/fwd_kernel2.cuh, phases 1 and 6; vllm-project/FlashKDA keeps it in registers
(pull request 4).
"""

Flops = tuple[Quantity, Quantity]
"""Ideal and executed FLOPs of one product."""

Bytes = tuple[Quantity, Quantity]
"""Bytes read and written."""


class Scan(NamedTuple):
    """B sequences of S new tokens, H heads with a state of dk × dv, chunks of C tokens; dtype of the products, and
    bytes per element of the state.

    pipeline names the compiled pipeline that a calibration belongs to. apart: a chunk runs on any unit, as a launch of
    its own passes the states on; else one unit walks the chunks of a head. shared_state: a fused chain keeps the state
    in shared memory and not in registers.
    """

    pipeline: str
    B: Quantity
    S: Quantity
    H: Quantity
    dk: Quantity
    dv: Quantity
    C: Quantity
    dtype: str = "bf16"
    state: float = 4
    apart: bool = False
    shared_state: bool = False

    @property
    def chunks(self) -> Quantity:
        """Chunks of one sequence, the ragged last one included."""
        return ceil_div(self.S, self.C)

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.S


class Stage(NamedTuple):
    """One launch of a pipeline; `recomputed` ones run again before the backward pass, `serial` ones walk the chunks."""

    scan: Scan
    recomputed: bool = False
    serial: bool = False

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.scan.S


class Pipeline(NamedTuple):
    """All launches of a scan, which a library may have fused into one; walked: FLOPs executed in the serial chain."""

    scan: Scan
    stages: tuple[Kernel, ...]
    walked: Quantity

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.scan.S


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
    if isinstance(kernel.shape, Pipeline):
        gradients = [one for stage in kernel.shape.stages for one in backward(stage)]
        return (whole(f"{kernel.name} backward", gradients)._replace(instance=kernel.instance, grid=kernel.grid),)
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
    Parameter("launch_s", 2.2e-6, 0.6, 0.1e-6, 3e-5, "s", "fixed time per launch of the unfused pipeline"),
    Parameter("block_s", 3.0e-6, 0.9, 0.1e-6, 5e-5, "s", "start and end of a chain: a state comes in and goes out"),
    Parameter("step_s", 2.4e-6, 0.5, 0.05e-6, 1e-5, "s", "one chunk in the chain of one head"),
    Parameter("row_s", 0.07e-6, 1.0, 1e-9, 2e-6, "s", "one row of the substitution inside a chunk"),
    Parameter("wave_weight", 0.5, 0.5, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("tensor_efficiency", 0.18, 0.6, 0.003, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
    Parameter("vector_efficiency", 0.4, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s for decays and gates"),
    Parameter("special_efficiency", 0.6, 0.4, 0.02, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.85, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("materialised", 0.9, 0.8, 0.01, 1.0, "1", "share of the intermediates that pass through memory"),
    Parameter("l2_share", 1.2, 0.5, 0.1, 5.0, "1", "part of L2 in which bytes are found again"),
    Parameter("l2_over_hbm", 3.0, 0.4, 1.0, 10.0, "1", "L2 bandwidth over HBM's"),
    Parameter("l2_sharpness", 3.0, 0.4, 1.0, 12.0, "1", "how abruptly bytes fall out of L2"),
    Parameter("overlap", 3.0, 0.6, 1.0, 8.0, "1", "exponent of the p-norm where nothing is materialised"),
)

STAGE_OVERLAP, WALK_OVERLAP = 3.0, 4.0
"""Exponents of the p-norm inside one launch: one that is priced alone, and one that is part of a whole scan."""


def _longest(a: Quantity, b: Quantity, c: Quantity) -> Quantity:
    """What overlapping work of one launch takes, by a p-norm."""
    return root(power(a, WALK_OVERLAP) + power(b, WALK_OVERLAP) + power(c, WALK_OVERLAP), WALK_OVERLAP)


def _through_shared(scan: Scan, clock: float) -> Quantity:
    """Seconds in which the steps of a chunk move a state that lies in shared memory."""
    if not scan.shared_state:
        return 0.0
    return ceil_div(scan.C, SUB_TILE) * SHARED_STATE * 2 * scan.dk * scan.dv / (SHARED_BYTES_A_CLOCK * clock)


def _chain(scan: Scan, hardware: "Hardware", theta: Mapping[str, float]) -> Quantity:
    """Waves of heads, one on a unit at a time, times a start and all chunks; of chunks where they run apart."""
    heads, chunks, units = scan.B * scan.H, scan.chunks, hardware.compute.units
    step = theta["step_s"] + _through_shared(scan, hardware.compute.clock)
    if scan.apart:
        return waves(heads * chunks, units, theta["wave_weight"]) * (theta["block_s"] / chunks + step)
    return waves(heads, units, theta["wave_weight"]) * (theta["block_s"] + chunks * step)


def terms(kernel: Kernel, hardware: "Hardware", theta: Mapping[str, float]) -> Terms:
    """A whole scan, or one launch of a pipeline that is priced launch by launch.

    t = (1 + materialised · (launches − 1)) · launch_s + pnorm(walk, products, memory). The walk is whichever is slower
    of the chain (waves of heads, one on a unit at a time, times block_s + chunks · step_s), its own products, and the
    states that come in and go out; a chunk's inverse takes its rows one after another as well. A step takes longer by
    the time in which a state in shared memory is moved (`shared_state`), as products wait for it. The other products,
    with the fp32 arithmetic beside them, run in all chunks at once. Memory is what the tokens bring: needed bytes, cold
    as served, and the materialised part of the others, written a moment ago and found in L2 where they fit.
    """
    pipeline = kernel.shape
    if not isinstance(pipeline, Pipeline):
        return unit_terms(kernel, hardware, theta)._replace(overlap=STAGE_OVERLAP)
    work, scan = kernel.executed, pipeline.scan
    heads, units = scan.B * scan.H, hardware.compute.units
    state = 2 * scan.dk * scan.dv * scan.state
    states = memory_seconds(kernel, hardware, theta, heads * state)
    # The states of the first wave come in, and those of the last go out, while nothing else can run.
    alone = states * minimum(1.0, units / heads)
    chain = _chain(scan, hardware, theta) + alone
    peak = hardware.tensor_peak(scan.dtype) * theta["tensor_efficiency"]
    walk = _longest(chain, pipeline.walked / peak, states)
    needed = kernel.ideal.hbm_bytes
    passed = theta["materialised"] * (work.hbm_bytes - needed)
    # What one launch hands over is read by one of the next two, replayed or not.
    inside = kernel._replace(circulating=2 * (work.hbm_bytes - needed) / kernel.launches)
    special_peak = hardware.special_peak
    return Terms(
        tensor=_longest(
            (work.tensor[scan.dtype] - pipeline.walked) / peak,
            work.vector / (hardware.compute.vector * theta["vector_efficiency"]),
            work.special / (special_peak * theta["special_efficiency"]) if special_peak else 0.0,
        ),
        memory=memory_seconds(kernel, hardware, theta, maximum(needed - heads * state, 0.0))
        + memory_seconds(inside, hardware, theta, passed),
        chain=walk + minimum(scan.S, scan.C) * theta["row_s"],
        # Launches go with the intermediates that they hand over.
        launch=theta["launch_s"] * (1.0 + (kernel.launches - 1) * theta["materialised"]),
        # Launch after launch nothing overlaps.
        overlap=theta["overlap"] + (1.0 - theta["overlap"]) * theta["materialised"],
    )


def is_pipeline(theta: Mapping[str, float]) -> bool:
    """Whether launches pass their intermediates through memory, as Triton's do; those of kernels fused by hand stay."""
    return theta["materialised"] >= 0.5


FORM = Form(
    family="chunk-scan",
    summary="linear recurrences as products over chunks, with a serial chain of chunk states",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("arXiv:2406.06484, section 3", "fla-org/flash-linear-attention, fla/ops"),
    model_spread=0.3,
    by_mechanism=True,
    design=is_pipeline,
    clocked=True,
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
        shape=Stage(scan, recomputed, slices is not None),
        launches=launches,
        implementation="flash-linear-attention (Triton)",
    )


def without_states(kernel: Kernel) -> Kernel:
    """The launch that walks the chunks of a pipeline priced launch by launch, if no state comes in and none goes out.

    >>> scan = Scan("gla", B=1, S=128, H=2, dk=4, dv=4, C=64)
    >>> k = without_states(chunk_kernel("states", scan, needed=(200, 128), moved=(256, 160), slices=1))
    >>> k.ideal.hbm_bytes, k.executed.hbm_bytes
    (72, 160)
    """
    stage = kernel.shape
    if not isinstance(stage, Stage) or not stage.serial:
        return kernel
    scan = stage.scan
    state = scan.B * scan.H * scan.dk * scan.dv * scan.state
    ideal, executed = kernel.ideal, kernel.executed
    return kernel._replace(
        ideal=ideal._replace(read=ideal.read - state, written=ideal.written - state),
        executed=executed._replace(
            read=executed.read - state, written=executed.written - state, l2=executed.l2 - 2 * state
        ),
    )


def whole(name: str, stages: Sequence[Kernel], variant: str = "") -> Kernel:
    """All launches of a scan as one kernel.

    Ideal work is what a pass fused into one launch needs, executed work what the launches do. variant is what the
    library's compiler tunes for beside widths and dtype, such as the number of heads.

    >>> scan = Scan("gdn", B=1, S=128, H=2, dk=4, dv=4, C=64)
    >>> parts = [chunk_kernel(n, scan, (100, 120), needed=(8, 4), moved=(64, 32)) for n in ("states", "output")]
    >>> k = whole("scan", parts, "h2")
    >>> k.ideal.flops, k.executed.flops, k.ideal.hbm_bytes, k.executed.hbm_bytes, k.launches, k.instance
    (200, 240, 24, 192, 2, 'gdn-4x4-bf16-h2')
    """
    scan: Scan = stages[0].shape.scan
    first = stages[0]
    walked = sum(s.executed.tensor.get(scan.dtype, 0) for s in stages if s.shape.serial)
    return first._replace(
        name=name,
        ideal=total(scan.dtype, [stage.ideal for stage in stages]),
        executed=total(scan.dtype, [stage.executed for stage in stages]),
        grid=Grid(blocks=scan.B * scan.H, chain_steps=scan.chunks),
        instance=f"{first.instance}-{variant}" if variant else first.instance,
        shape=Pipeline(scan, tuple(stages), walked),
        launches=sum(stage.launches for stage in stages),
    )


def total(dtype: str, works: Sequence[Work]) -> Work:
    """The sum of several launches' work."""
    return Work(
        tensor={dtype: sum(work.tensor.get(dtype, 0) for work in works)},
        vector=sum(work.vector for work in works),
        special=sum(work.special for work in works),
        read=sum(work.read for work in works),
        written=sum(work.written for work in works),
        l2=sum(work.l2 for work in works),
    )
