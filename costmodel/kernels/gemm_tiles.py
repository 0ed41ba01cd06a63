"""Tiles of products: which ones a library chooses from, those that its own table gives, and how each is compiled.

Kernels that share a library are compiled once for each tile: a narrow one has fewer warps and stages, a wide one spills
registers, some lack fast accumulation. So a size of tile has a step and a start of its own, relative to the full one.

Sources: vllm-project/vllm, csrc/quantization/w8a8/cutlass, scaled_mm_sm89, sm90 and sm100 fp8_dispatch.cuh;
vllm/model_executor/layers/quantization/utils/fp8_utils.py (the tile without a tuned one); sgl-project/sglang,
sgl-kernel/csrc/gemm/fp8_gemm_kernel.cu; NVIDIA/TensorRT-LLM, fp8_blockscale_gemm/ada_blockwise_gemm; NVIDIA/cutlass,
tile schedulers; flashinfer-ai/flashinfer pull request 2940, flashinfer/gemm/kernels/utils.py; deepseek-ai/DeepGEMM,
csrc/jit_kernels/heuristics/sm90.hpp.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, root, where

if TYPE_CHECKING:
    from costmodel.kernels.gemm import Gemm

FULL = 128
"""Rows and columns of the full output tile."""
FEW_ROWS = 16
"""A tile of so many rows is one of few."""
SMALL, HALF = 64 * 64, 64 * 128
"""Largest area of a small tile, and of half a full one."""
RANKED, VLLM, SGLANG, TRTLLM = 1, 2, 3, 4
"""Values of `dispatch`."""
GROUPED = 32
"""Tiles down the rows of which Triton's blocks take the same columns, group after group of them."""
FLASHINFER = ("blackwell", "nvfp4")
"""Generation and format of products that vLLM and SGLang hand to FlashInfer's CuTe DSL kernel."""
SCORED = (64, 128, 192, 256)
"""Columns of the tiles that FlashInfer scores; of its tiles of 256 rows, which score as well, none is ever the best."""
SCORED_ROWS = 4096
"""Rows from which FlashInfer's score no longer depends on them; below, they count as the power of two before."""


CYCLED = tuple(
    (rows, columns)
    for rows in (64, FULL, 2 * FULL)
    for columns in (*range(16, FULL + 1, 16), 144, 160, 192)
    if rows <= FULL or columns <= FULL
)
"""Rows and columns of the tiles whose cycles DeepGEMM compares on Hopper."""
WIDEST = ((128, 192), (256, 128))
"""Those of them that are slow without a cluster."""
L1_BYTES, L2_BYTES = 128, 6153
"""Bytes of a clock, of one SM's L1 and of all L2, that DeepGEMM counts with."""


class Tile(NamedTuple):
    """Rows and columns of one thread block's output, and those of the cluster of blocks that is launched as a whole."""

    rows: Quantity
    columns: Quantity
    cluster_rows: Quantity = 1
    cluster_columns: Quantity = 1


TILES = (Tile(16, 64), Tile(64, 64), Tile(64, 128), Tile(128, 128), Tile(128, 256))
"""The tiles between which a library chooses that tries them out or ranks them by a model."""


SCALED_BY_BLOCKS = {("ada", VLLM): Tile(64, 128), ("ada", TRTLLM): Tile(32, 128)}
"""The one tile of a kernel whose operands have a scale for each block of 128 elements."""


def sized(tile: Tile, theta: Mapping[str, float], what: str) -> Quantity:
    """A parameter of the tile's size (what: "step" or "block") over that of a full tile.

    >>> of = {"few_step": 3.0, "small_step": 1.5, "half_step": 1.2, "wide_step": 0.9}
    >>> [sized(tile, of, "step") for tile in TILES]
    [3.0, 1.5, 1.2, 1.0, 0.9]
    """
    area = tile.rows * tile.columns
    if type(area) is int:  # a tile among which a library chooses
        if HALF < area <= FULL**2:
            return 1.0
        size = "few" if tile.rows <= FEW_ROWS else "small" if area <= SMALL else "half" if area <= HALF else "wide"
        return theta[f"{size}_{what}"]
    full_or_wide = where(area <= FULL**2, 1.0, theta[f"wide_{what}"])
    larger = where(area <= SMALL, theta[f"small_{what}"], where(area <= HALF, theta[f"half_{what}"], full_or_wide))
    return where(tile.rows <= FEW_ROWS, theta[f"few_{what}"], larger)


def published_tile(shape: "Gemm", generation: str, dispatch: int, units: Quantity) -> Tile | None:
    """The tile that a library's own table gives a product of fp8 operands, block-scaled ones on Ada too, or
    FlashInfer's score one of nvfp4 operands; None where there is no table, as for several products in one launch, which
    are cuBLAS'.

    Blackwell's pairs of SMs count as two blocks of half the tile. SGLang's times on Hopper nearly equal vLLM's and step
    where those do, from 128 to 129 rows, not from 256 to 257 as in the source of its kernel: they are of vLLM's tiles.
    """
    if dispatch == RANKED or shape.several or shape.activations != shape.weights:
        return None
    if (generation, shape.activations) == FLASHINFER and dispatch in (VLLM, SGLANG):
        return _flashinfer(shape.m, shape.n, shape.k, units)
    if shape.weights == "fp8_block":
        return SCALED_BY_BLOCKS.get((generation, dispatch))
    if shape.weights != "fp8":
        return None
    tables = {
        ("hopper", VLLM): _vllm_hopper,
        ("ada", VLLM): _vllm_ada,
        ("blackwell", VLLM): _vllm_blackwell,
        ("hopper", SGLANG): _vllm_hopper,
        ("ada", SGLANG): _sglang_ada,
        ("blackwell", SGLANG): _sglang_blackwell,
    }
    table = tables.get((generation, dispatch))
    return None if table is None else table(shape.m, shape.n, shape.k)


def covered_by_a_round(shape: "Gemm", generation: str, dispatch: int, units: Quantity) -> tuple[Quantity, Quantity]:
    """Rows and columns of the output that tiles in work at the same time cover.

    Libraries that rank tiles group them, so that a round is as high as wide. CUTLASS' persistent kernels, as the
    published tables launch them, go line by line along the shorter side: of a large output a round covers lines that
    are long and few. On Ada SGLang's go down the rows, and vLLM's in groups; FlashInfer's go down the rows too. Kernels
    with a scale for each block of 128 elements go down the rows, Triton's down a group of them: narrow tiles cover few
    columns at a time.
    """
    area = FULL**2 * units
    m, n = shape.m, shape.n
    tile = published_tile(shape, generation, dispatch, units)
    if tile is not None and shape.weights == "fp8_block":
        rows = minimum(m, tile.rows * (GROUPED if dispatch == VLLM else units))
        return rows, tile.rows * tile.columns * units / rows
    if tile is None or (generation, dispatch) == ("ada", VLLM):
        return root(area, 2), root(area, 2)
    downwards = generation == "ada" or (generation, shape.activations) == FLASHINFER
    line = minimum(m if downwards else minimum(m, n), area / FULL)
    lines = area / line
    if downwards:
        return line, lines
    return where(n > m, line, lines), where(n > m, lines, line)


def waits(published: Tile | None, generation: str) -> bool:
    """Whether tiles, those of a library's table where it has one, wait for operands that L2 lost.

    CUTLASS' and Triton's kernels for Ada have two to five steps of k under way, enough for the latency of L2, not for
    that of HBM; a warp of Hopper's and Blackwell's does nothing but load, and what cuBLAS ranks is tuned for it.
    """
    return generation == "ada" and published is not None


def _steps(value: Quantity, *steps: tuple[int, Quantity], beyond: Quantity) -> Quantity:
    """What belongs to the first limit that the value does not pass."""
    result = beyond
    for limit, then in reversed(steps):
        result = where(value <= limit, then, result)
    return result


def _vllm_hopper(m: Quantity, n: Quantity, k: Quantity) -> Tile:
    few = n <= 1280
    return Tile(
        rows=_steps(m, (16, 16), (64, where(few, 16, 64)), (128, 64), beyond=128),
        columns=_steps(m, (64, 64), beyond=128),
        cluster_rows=_steps(m, (16, where(few, 2, 1)), (64, where(few, 4, 1)), beyond=2),
    )


def _vllm_ada(m: Quantity, n: Quantity, k: Quantity) -> Tile:
    rows = _steps(
        m,
        (16, _steps(n, (16384, 16), beyond=32)),
        (32, 32),
        (64, 64),
        (128, _steps(n, (8192, 64), beyond=128)),
        (256, _steps(n, (4096, 64), beyond=128)),
        beyond=_steps(n, (4096, 128), (8192, 256), beyond=128),
    )
    middle = _steps(n, (8192, 64), (16384, 128), beyond=64)
    return Tile(rows, _steps(m, (64, middle), (128, _steps(n, (16384, 128), beyond=64)), beyond=128))


def _vllm_blackwell(m: Quantity, n: Quantity, k: Quantity) -> Tile:
    return Tile(
        rows=_steps(m, (16, 32), (256, 64), beyond=128),
        columns=_steps(m, (64, 64), beyond=128),
        cluster_rows=_steps(m, (64, 1), beyond=2),
        cluster_columns=_steps(m, (64, 4), (256, 1), beyond=2),
    )


def _sglang_ada(m: Quantity, n: Quantity, k: Quantity) -> Tile:
    rows = _steps(
        m,
        (1, _steps(n, (8192, 16), beyond=32)),
        (16, _steps(n, (8192, 16), (16384, 32), beyond=16)),
        (64, _steps(n, (16384, 32), beyond=16)),
        (128, _steps(n, (16384, 64), beyond=32)),
        (256, _steps(n, (8192, 128), (16384, 64), beyond=128)),
        beyond=128,
    )
    return Tile(rows, _steps(m, (128, 64), (256, _steps(n, (8192, 64), (16384, 128), beyond=64)), beyond=128))


def _sglang_blackwell(m: Quantity, n: Quantity, k: Quantity) -> Tile:
    return Tile(
        rows=_steps(m, (256, 64), beyond=128),
        columns=_steps(m, (64, 64), beyond=128),
        cluster_rows=_steps(m, (64, 1), beyond=2),
        cluster_columns=_steps(m, (16, 4), (256, 1), beyond=2),
    )


def _flashinfer(m: Quantity, n: Quantity, k: Quantity, units: Quantity) -> Tile:
    """The best of FlashInfer's score, as without tuning: what the shape of a tile lets expect over the whole rounds of
    tiles. What it does for 8 to 24 rows, to turn the operands, is left out.
    """
    rows: Quantity = 1
    for exponent in range(1, SCORED_ROWS.bit_length()):
        rows = where(m >= 2**exponent, 2**exponent, rows)
    short = where(k <= 1024, 0.5, where(k <= 2048, 0.8, 1.0))
    best: Quantity = 0.0
    columns: Quantity = FULL
    for across in SCORED:
        shape = across**-0.5 * (min(across, FULL) / max(across, FULL)) ** 0.25 * (short if across > FULL else 1.0)
        score = shape / ceil_div(ceil_div(rows, FULL) * ceil_div(n, across), units)
        columns = where(score > best, across, columns)
        best = maximum(score, best)
    return Tile(FULL, columns)


def lone_round_of_widest(m: Quantity, n: Quantity, k: Quantity, units: Quantity) -> Quantity:
    """1 where DeepGEMM on Hopper takes one round of its widest tiles, else 0.

    It takes the tile with the fewest cycles of L1 or L2; tiles in pairs that share an operand only where there are
    more rounds than one.
    """
    alone: Quantity = 0.0
    paired: Quantity = 0.0
    lone: Quantity = 0.0
    for rows, columns in CYCLED:
        rounds = ceil_div(ceil_div(m, rows) * ceil_div(n, columns), units)
        output = 2 * rows * columns
        from_l1 = 2 * (k * (rows + columns) + output) / L1_BYTES
        from_l2 = (k * (rows + columns) + output) * units / L2_BYTES
        shared = (k * (rows + columns - max(rows, columns) / 2) + output) * units / L2_BYTES
        rate = 1.0 / (rounds * maximum(from_l1, from_l2))
        lone = where(rate > alone, where(rounds > 1, 0.0, 1.0) if (rows, columns) in WIDEST else 0.0, lone)
        alone = maximum(rate, alone)
        paired = maximum(where(rounds > 1, 1.0 / (rounds * maximum(from_l1, shared)), 0.0), paired)
    return where(paired > alone, 0.0, lone)
