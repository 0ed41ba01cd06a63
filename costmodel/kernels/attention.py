"""Fused attention over many queries: prefill, windows, bidirectional blocks (FlashAttention 2 and 3).

A thread block is one query tile of one head; it walks the visible key tiles one after another. Tiles
above the diagonal are skipped, the tiles on it are computed whole. Work counts the tiles of FlashAttention-3; the time
form takes those of the device (`attention_walk`).

Source: FlashAttention-3, arXiv:2407.08608; tile sizes: Dao-AILab/flash-attention, hopper/tile_size.h; when keys are
split: hopper/heuristics.h.
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, named, nominal, power, root, where
from costmodel.dtypes import element_bytes
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.attention_walk import GENERATION, STEP, walk
from costmodel.kernels.base import (
    SHARED_BYTES_A_CLOCK,
    Form,
    Grid,
    Kernel,
    Parameter,
    Terms,
    Work,
    memory_seconds,
    waves,
)
from costmodel.pairs import (
    bidirectional,
    causal,
    chunk_keys,
    chunked,
    executed_causal,
    executed_chunked,
    executed_window,
    window,
)


class Attention(NamedTuple):
    """B sequences, S queries after P cached tokens, H query heads over Hkv key heads of width dk and dv.

    w: window or None; bidirectional: every query sees all P + S tokens (window and chunk do not apply); softcap: one
    tanh per score; sinks: one more logit per head; dtype: of the products; kv: of the cache; shared_kv: the values are
    (part of) the keys (K = V); row_bytes: bytes of a key with its value, per key head, where a cache layout mixes
    dtypes; c: tokens of a chunk, outside which a query sees nothing, or None; passes: FLOPs of a pair over those of the
    forward pass. appends: the new keys and values are written into a cache first, which training does not have.
    backward: the kernel is that of the gradients. block_per_tile: the launch has a thread block for every query tile,
    whatever the device's own kernels do. in_order: blocks that stay take a head's tiles in the order of its queries,
    not the longest first. pingpong: on Hopper, warpgroups take turns at products and softmax.
    """

    B: Quantity
    S: Quantity
    P: Quantity
    H: Quantity
    Hkv: Quantity
    dk: Quantity
    dv: Quantity
    w: Quantity | None = None
    bidirectional: bool = False
    softcap: bool = False
    sinks: bool = False
    shared_kv: bool = False
    dtype: str = "bf16"
    kv: str = "bf16"
    row_bytes: Quantity | None = None
    c: Quantity | None = None
    passes: Quantity = 1
    appends: bool = True
    backward: bool = False
    block_per_tile: bool = False
    in_order: bool = False
    pingpong: bool = True

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence that the kernel has to do with."""
        seen = self.P + self.S
        return seen if self.w is None or self.bidirectional else minimum(seen, self.w + self.S)


def tile(dk: Quantity, dtype: str = "bf16") -> tuple[int, int]:
    """Query rows and key columns of one tile, by head width (FlashAttention-3 on Hopper; FlashMLA above 256).

    >>> tile(64), tile(128), tile(128, "fp8"), tile(256), tile(576)
    ((192, 128), (128, 128), (128, 224), (128, 80), (64, 64))
    """
    width = nominal(dk, 128)
    if width > 256:
        return 64, 64  # the 512-wide output of 64 rows fills the registers of two warpgroups
    if dtype == "fp8":
        return (128, 224) if width <= 128 else (128, 128)
    if width <= 64:
        return 192, 128
    return (128, 128) if width <= 192 else (128, 80)


def pair_count(a: Attention) -> Quantity:
    """(query, key) pairs per sequence and head that the mask admits."""
    if a.bidirectional:
        return bidirectional(a.P, a.S)
    if a.c is not None:
        return chunked(a.P, a.S, a.c)
    return causal(a.P, a.S) if a.w is None else window(a.P, a.S, a.w)


def executed_pairs(a: Attention) -> Quantity:
    """(query, key) pairs per sequence and head that whole tiles compute."""
    rows, columns = tile(a.dk, a.dtype)
    if a.bidirectional:
        return rows * ceil_div(a.S, rows) * columns * ceil_div(a.P + a.S, columns)
    if a.c is not None:
        return executed_chunked(a.P, a.S, a.c, rows, columns)
    if a.w is None:
        return executed_causal(a.P, a.S, rows, columns)
    return executed_window(a.P, a.S, a.w, rows, columns)


def visible_keys(a: Attention) -> Quantity:
    """Keys that at least one query sees: what must be read."""
    if a.c is not None and not a.bidirectional:
        return chunk_keys(a.P, a.S, a.c)
    return a.P + a.S if a.w is None or a.bidirectional else minimum(a.P + a.S, a.w + a.S - 1)


def key_bytes(a: Attention) -> Quantity:
    """Bytes of one key and its value, per key head.

    >>> key_bytes(Attention(B=1, S=1, P=0, H=2, Hkv=1, dk=64, dv=32))
    192
    """
    if a.row_bytes is not None:
        return a.row_bytes
    return (a.dk if a.shared_kv else a.dk + a.dv) * element_bytes(a.kv)


def work(a: Attention) -> tuple[Work, Work]:
    """Ideal and executed work.

    FLOP = 2·B·H·pairs·(dk + dv). Bytes: Q in, O out, each visible key and value once. Executed: whole tiles,
    one exp per computed score (one tanh more with a soft-cap) and about 4 fp32 operations, and K, V passing
    through L2 once per query tile.
    """
    pairs = named("pairs", pair_count(a))
    computed = named("computed_pairs", executed_pairs(a))
    rows, _ = tile(a.dk, a.dtype)
    s = dict(B=a.B, S=a.S, H=a.H, Hkv=a.Hkv, dk=a.dk, dv=a.dv, keys=visible_keys(a), pairs=pairs, computed=computed)
    activation_bytes = 2
    queries, output = size("B S H dk", s) * activation_bytes, size("B S H dv", s) * activation_bytes
    read = queries + size("B keys Hkv", s) * key_bytes(a)
    ideal = Work(
        tensor={a.dtype: dot("B H pairs dk", s) + dot("B H pairs dv", s)},
        read=read,
        written=output,
    )
    scores = size("B H computed", s)
    executed = Work(
        tensor={a.dtype: dot("B H computed dk", s) + dot("B H computed dv", s)},
        vector=4 * scores,
        special=scores * (2 if a.softcap else 1) + (size("B S H", s) if a.sinks else 0),
        read=read,
        written=output,
        l2=scores * key_bytes(a) / rows,
    )
    return ideal, executed


def grid(a: Attention) -> Grid:
    """One thread block per query tile and head; its chain is the key tiles that the last tile sees."""
    rows, columns = tile(a.dk, a.dtype)
    longest = a.P + a.S if a.w is None or a.bidirectional else minimum(a.P + a.S, a.w + rows)
    if a.c is not None and not a.bidirectional:
        longest = minimum(longest, a.c)
    return Grid(blocks=a.B * a.H * ceil_div(a.S, rows), chain_steps=ceil_div(longest, columns))


SOFTMAX_BACKWARD = 2
"""Work on a score between the products of the backward pass over that of the forward pass: P = exp(S − LSE) once more,
then P ∘ (dP − δ), and both P and dS are rounded and stored to shared memory, from where the products read them.

Source: Dao-AILab/flash-attention, csrc/flash_attn/src/flash_bwd_kernel.h."""


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """Five products instead of two: S = QKᵀ again, dP = dO·Vᵀ, dV = Pᵀ·dO, dQ = dS·K, dK = dSᵀ·Q.

    For dk = dv that is 2.5 times the forward FLOPs (FlashAttention-2, arXiv:2307.08691, section 4.1). Of full attention
    they are one launch of three: before it δ = rowsum(dO ∘ O), after it dQ, which thread blocks of other keys have
    added up in fp32, is rounded.
    """
    a: Attention = kernel.shape
    ideal, executed = kernel.ideal, kernel.executed
    widen = (3 * a.dk + 2 * a.dv) / (a.dk + a.dv)

    def products(forward: Work, around: tuple[Quantity, Quantity] = (0, 0)) -> Work:
        return Work(
            tensor={dtype: flops * widen for dtype, flops in forward.tensor.items()},
            vector=forward.vector * SOFTMAX_BACKWARD,
            special=forward.special,
            # Q, K, V, O, dO in; dQ, dK, dV out.
            read=forward.read + 2 * forward.written + around[0],
            written=forward.read + around[1],
            l2=forward.l2 * 2.5,
        )

    same = isinstance(a, Attention)
    return (
        kernel._replace(
            name=f"{kernel.name} backward",
            ideal=products(ideal),
            executed=products(executed, handed_over(a) if same else (0, 0)),
            shape=a._replace(passes=widen, backward=True) if same else a,
            launches=kernel.launches + 2 if same else kernel.launches,
        ),
    )


def handed_over(a: Attention) -> tuple[Quantity, Quantity]:
    """Bytes read and written between the three launches of a backward pass: dO again and δ, and dQ in fp32, which is
    cleared, added up and read back.

    Source: Dao-AILab/flash-attention, csrc/flash_attn/src/flash_bwd_preprocess_kernel.h.
    """
    rows = a.B * a.S * a.H
    sums = 4 * rows * a.dk
    return rows * (2 * a.dv + 4) + sums, 4 * rows + 2 * sums


def around(a: Attention) -> Quantity:
    """Bytes of the two launches around the products of a backward pass, which do nothing else.

    Before: O and dO in, δ out, dQ cleared. After: dQ in fp32 in, rounded out.
    """
    return a.B * a.S * a.H * (4 * a.dv + 4 + 4 * a.dk + 6 * a.dk) if a.backward else 0


APPEND_THREADS = 512
"""Threads of the block that appends one token: one per element, no more than these."""


def append_seconds(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Quantity:
    """Seconds to write the new keys and values into the paged cache, before the attention kernel proper.

    A block per token copies one element per thread: the device holds few such blocks at a time, so that wide tokens
    cost as much as their threads occupy, or as their bytes take.

    Source: vllm-project/vllm, csrc/cache_kernels.cu, reshape_and_cache_flash.
    """
    a: Attention = kernel.shape
    if a.bidirectional or not a.appends or "append_share" not in theta:
        return 0.0
    tokens, width = a.B * a.S, a.Hkv * (a.dk + a.dv)
    copied = memory_seconds(kernel, hardware, theta, tokens * width * (2 + element_bytes(a.kv)) * theta["append_share"])
    blocks = tokens * minimum(width / 2, APPEND_THREADS) / 128 * theta["token_s"]
    return root(power(copied, 4.0) + power(blocks, 4.0), 4.0)


def stays(a: Attention, generation: str, theta: Mapping[str, float]) -> bool:
    """Whether thread blocks stay and take one query tile after another, while the next tile's Q, K and V and the last
    one's O are on their way (FlashAttention-3, for sequences of one length whose keys lie in one piece).

    A producer warp then loads by TMA what the next tile needs while the others multiply, and O leaves by TMA too: what
    a tile waits for is hidden behind its neighbours, but for the first and the last of a thread block. With pages,
    packed heads or varied lengths the multiplying warps themselves fetch Q and store O. The backward pass, and the
    report's kernel in fp8, have a block for every tile.

    Source: arXiv:2407.08608, sections 3.1 and 5; Dao-AILab/flash-attention, hopper/flash_fwd_launch_template.h, of the
    report's version (StaticPersistentTileScheduler, DynamicPersistentTileScheduler).
    """
    own = round(nominal(theta.get("tiles", GENERATION), GENERATION)) == GENERATION
    return own and generation == "hopper" and a.dtype != "fp8" and not (a.appends or a.backward or a.block_per_tile)


IN_ORDER = 0.75
"""Of the longest tile, what a causal launch with a block per tile waits for once all other units are idle.

Blocks are dispatched in the order of the queries, so that each head ends with its longest tile. A list schedule of
such heads on 132 units gives 0.5 to 0.65 with one block on a unit and 0.8 to 1.1 with two that share it, whether a unit
has 2 tiles or 30."""
IN_ORDER_OF_ONE, IN_ORDER_OF_TWO = 0.62, 1.05
"""The same where one block is known to have a unit to itself, and where two are known to share it: the medians of that
schedule over heads of 4 to 256 tiles, 8 to 31 tiles a unit; of two, one left alone goes on at the whole rate of the
unit or at three quarters of it."""


def of_one_length(a: Attention, generation: str) -> bool:
    """Whether the kernel is the forward pass of FlashAttention-2 over sequences of one length whose keys lie in one
    piece, of which what follows is known; with pages another kernel runs, with tiles of its own."""
    return generation == "ampere" and not (a.appends or a.backward)


def blocks_of_a_unit(a: Attention, generation: str) -> int:
    """Thread blocks that share a unit, where that is known: two of FlashAttention-2's forward pass (`of_one_length`),
    whose 128 threads hold up to 255 registers each and whose tiles take 48 to 96 KiB of shared memory ("since then we
    can get 2 CTAs per SM"); one with widths of 129 to 192, which have 256 threads.

    One block's prologue, and what it waits for, passes while the other multiplies.

    Source: Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h (run_mha_fwd_hdim64 and others).
    """
    return 2 if of_one_length(a, generation) and not 128 < nominal(a.dk, 128) <= 192 else 1


def reread(a: Attention, hardware: Hardware, products: Quantity) -> Quantity:
    """How much longer a tile's products take where a warp has 16 of its rows, and not 32: each warp reads all keys and
    values of a tile from shared memory, beside its products (`products`: seconds of a pair).

    FlashAttention-2's tiles have 32 rows a warp up to a width of 128, which its parameters stand for, and 16 above
    (64 × 64 in 4 warps, 128 × 64 in 8), where half as many rows share a read. What `mma.sync` reaches on Hopper makes
    that nearly as long as the products.

    Source: Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h.
    """
    if not of_one_length(a, hardware.generation) or nominal(a.dk, 128) <= 128:
        return 1.0
    read = 2 * (a.dk + a.dv) / (SHARED_BYTES_A_CLOCK * hardware.compute.units * hardware.compute.clock)
    narrow, wide = (root(power(products, 2.0) + power(read / rows, 2.0), 2.0) for rows in (16, 32))
    return narrow / wide


def last_share(a: Attention, generation: str, theta: Mapping[str, float]) -> float:
    """Of the longest tile, what comes after all others where a causal launch takes tiles in the order of the queries;
    0 where it does not.

    With a block per tile on Ampere always, on Hopper for sequences of one length (those of varied lengths are sorted).
    Blocks that stay take the longest tile first since the end of 2024; in the kernels of FlashAttention-3's report
    they took them in order (`in_order`).

    Source: Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h (grid of run_flash_fwd and
    run_flash_splitkv_fwd) and hopper/tile_scheduler.hpp (get_block_coord of DynamicPersistentTileScheduler).
    """
    if a.bidirectional or a.w is not None or a.c is not None:
        return 0.0
    if stays(a, generation, theta):
        return IN_ORDER_OF_ONE if a.in_order else 0.0
    if blocks_of_a_unit(a, generation) > 1:
        return IN_ORDER_OF_TWO
    return IN_ORDER if generation == "ampere" or (generation == "hopper" and not a.appends) else 0.0


SPLIT_S = 4e-6
"""The kernel that combines the splits of the keys."""
SPLIT_BELOW = 0.8
"""Keys are split where the tiles fill less than this of the units."""
SPLIT_STEPS = 4.0
"""A split keeps about this many key tiles."""


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + append + prologues + exposed Q and O + pnorm(all tiles, HBM bytes, longest tile).

    A tile's products and exponentials overlap in part, in the same proportion however long it is. How far its traffic
    overlaps with them is another matter: one block on an SM waits for Q and the first keys, so that a short tile's
    bytes nearly add to its products.
    One thread block occupies a unit, so loading Q and storing O overlap with little: rounds · block_s and a share of
    their traffic are added to the launch, but once where blocks stay (`stays`), and of two blocks that share a unit
    side by side (`blocks_of_a_unit`). A kernel before that rotates Q
    (TensorRT-LLM) reads and writes it once more, at the bandwidth that it reaches. The longest tile bounds the time
    from below: the others run beside it, and a part of its keys goes to idle units where there are any. Where blocks
    are launched in the order of the queries, most of it comes after the others (`last_share`).
    """
    a: Attention = kernel.shape
    units = hardware.compute.units
    tiles, pairs, longest = walk(a, hardware.generation, theta)
    together = blocks_of_a_unit(a, hardware.generation)
    rounds = waves(tiles, units, theta["wave_weight"])
    waits = rounds if together == 1 else waves(tiles, units * together, theta["wave_weight"])
    waited = 1.0 if stays(a, hardware.generation, theta) else waits
    idle = where(tiles < units, 1.0, maximum(rounds * units / tiles, 1.0))
    width = a.dk + a.dv
    peak = hardware.tensor_peak(a.dtype) * theta["tensor_efficiency"]
    products = 2 * width * a.passes / peak
    products = products * reread(a, hardware, products)
    special_peak = hardware.special_peak
    results = (2 if a.softcap else 1) * (SOFTMAX_BACKWARD if a.backward else 1)
    exponentials = results / (special_peak * theta["special_efficiency"]) if special_peak else 0.0
    pair_s = root(power(products, SOFTMAX_OVERLAP) + power(exponentials, SOFTMAX_OVERLAP), SOFTMAX_OVERLAP)
    pair_s = pair_s if a.pingpong else pair_s / WITHOUT_PINGPONG
    multiplies = where(products >= exponentials, 1.0, 0.0)
    busy = pairs * idle * pair_s
    possible = maximum(minimum(units / tiles, longest / (STEP * SPLIT_STEPS)), 1.0)
    splits = 1.0 + theta["splitting"] * where(tiles < SPLIT_BELOW * units, possible - 1.0, 0.0)
    combined = 1.0 - 1.0 / splits
    partials = combined * splits * a.B * a.S * a.H * (a.dv + 1) * 8
    bandwidth = hardware.memory.hbm.bandwidth
    alone = longest * units * theta["alone"] * pair_s / splits
    last = last_share(a, hardware.generation, theta)
    exposed = theta["exposed"] * waited / rounds * memory_seconds(kernel, hardware, theta, a.B * a.S * a.H * width * 2)
    return Terms(
        tensor=busy * multiplies,
        special=busy * (1.0 - multiplies),
        memory=memory_seconds(kernel, hardware, theta, kernel.executed.hbm_bytes - around(a)),
        chain=0.0 if last else alone,
        launch=theta["launch_s"] * kernel.launches
        + waited * theta["block_s"]
        + last * alone
        + combined * SPLIT_S
        + partials / (bandwidth * theta["l2_over_hbm"])
        + append_seconds(kernel, hardware, theta)
        + memory_seconds(kernel, hardware, theta, around(a))
        + exposed,
        overlap=theta["overlap"] if together == 1 else maximum(theta["overlap"], BESIDE),
    )


SOFTMAX_OVERLAP = 2.0
"""The exponent of the p-norm of a tile's products and exponentials, of which other warps do one during the other."""
WITHOUT_PINGPONG = 570 / 630
"""Rate of FlashAttention-3's tiles where barriers do not make one warpgroup's softmax fall into the other's products:
"from 570 TFLOPS to 620-640 TFLOPS for FP16 forward with head dimension 128 and sequence length 8192".

Source: arXiv:2407.08608, section 3.1."""
BESIDE = SOFTMAX_OVERLAP
"""The least exponent of a tile's arithmetic and its traffic where another block shares the unit, whose warps do one
during the other as well."""

MASKED = Parameter(
    "masked", 1e-6, 0.1, 1e-7, 1.0, "1", "share of the tiles outside the window that is walked all the same"
)
EDGE = Parameter("edge", 16.0, 1.5, 0.1, 1024.0, "1", "keys more that a tile walks where a window cuts keys off")
PARAMETERS = (
    Parameter("launch_s", 8.5e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("block_s", 1.8e-6, 0.4, 0.02e-6, 2e-5, "s", "prologue and epilogue of one query tile"),
    Parameter(
        "token_s", 0.6e-9, 1.0, 1e-12, 1e-7, "s", "append of one token of 128 elements, where threads are the limit"
    ),
    Parameter("append_share", 0.8, 0.5, 0.01, 2.0, "1", "traffic of the append over one pass through it"),
    Parameter("tensor_efficiency", 0.72, 0.6, 0.01, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
    Parameter("special_efficiency", 0.75, 0.25, 0.05, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.87, 0.1, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's"),
    Parameter("l2_share", 0.65, 0.3, 0.1, 2.0, "1", "share of L2 that keeps replayed buffers"),
    Parameter(
        "exposed", 0.35, 0.6, 0.01, 6.0, "1", "traffic of Q and O that nothing overlaps, in passes; above 1: rotations"
    ),
    Parameter("alone", 1.0, 0.4, 0.2, 8.0, "1", "time of a step in the longest tile over that in a full device"),
    Parameter(
        "large_tiles", 0.85, 0.6, 0.01, 1.0, "1", "share of the generation's large tile; the rest are small ones"
    ),
    Parameter("packing", 0.4, 1.5, 0.001, 1.0, "1", "share of tiles that hold all query heads of a key head"),
    Parameter("splitting", 0.3, 1.0, 0.001, 1.0, "1", "share of idle units that takes keys of the longest tiles"),
    Parameter("wave_weight", 0.35, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter(
        "tiles",
        1.0,
        0.0,
        1.0,
        3.0,
        "1",
        "tiles: 1 the generation's, 2 SGLang's Triton kernel's, 3 vLLM's Triton kernel's",
    ),
    Parameter("overlap", 1.6, 0.3, 1.0, 8.0, "1", "exponent of the p-norm of tiles, their traffic and the longest"),
)

PREFILL = Form(
    family="prefill-attention",
    summary="fused attention over many queries",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("arXiv:2407.08608", "arXiv:2307.08691"),
    model_spread=0.35,
)
WINDOW = PREFILL._replace(
    family="window-attention",
    summary="fused attention inside a sliding window",
    parameters=(*PARAMETERS, EDGE, MASKED),
)
SKIPPING = WINDOW._replace(parameters=(*PARAMETERS, EDGE), elsewhere=(MASKED.name,))
"""For fits of kernels that skip what lies outside the window: nothing short may be read as a share of what is long."""
MASKING = WINDOW._replace(parameters=(*PARAMETERS, EDGE, MASKED._replace(prior=0.6, spread=0.5, low=0.01)))
"""For fits of kernels that walk what lies outside the window and mask it."""
IGNORING = WINDOW._replace(parameters=(*PARAMETERS, EDGE, MASKED._replace(prior=0.97, spread=0.05, low=0.01)))
"""For fits of kernels that are not told of the window or chunk, and attend to everything."""


COMPILED_EFFICIENCY, COMPILED_SPREAD = 0.2, 1.0
"""Share of the peak that kernels reach whose pipeline Triton schedules, from three hundredths to six tenths."""


def compiled(form: Form, library: str, tiles: int) -> Form:
    """The form for fits of a library's kernels that Triton compiles, with tiles of their own (values of `tiles`)."""
    priors = {
        "tensor_efficiency": {"prior": COMPILED_EFFICIENCY, "spread": COMPILED_SPREAD},
        "tiles": {"prior": float(tiles)},
    }
    return form.adjusted(priors)._replace(built={library: {"tiles": float(tiles)}})


def unrotated(form: Form) -> Form:
    """The form for fits of kernels before which nothing rotates Q: they expose one pass of it at most."""
    (exposed,) = (one for one in form.parameters if one.name == "exposed")
    return form.adjusted({"exposed": {"high": 1.0, "most": exposed.high}})


DIFFUSION = PREFILL._replace(
    family="diffusion-attention", summary="fused bidirectional attention", model_spread=0.4, like=PREFILL
)
FORMS = (PREFILL, WINDOW, DIFFUSION)


def instance(a: Attention) -> str:
    """The compiled kernel: head width, dtypes, and whether it has a mask at all.

    >>> base = Attention(B=1, S=1, P=0, H=1, Hkv=1, dk=128, dv=128)
    >>> instance(base), instance(base._replace(kv="fp8")), instance(base._replace(bidirectional=True))
    ('hd128-bf16', 'hd128-bf16-fp8-cache', 'hd128-bf16-bidirectional')
    """
    cache = "" if a.kv == a.dtype else f"-{a.kv}-cache"
    return f"hd{a.dk}-{a.dtype}{cache}{'-bidirectional' if a.bidirectional else ''}"


def attention(name: str, a: Attention, *, form: Form | None = None) -> Kernel:
    """The fused kernel.

    >>> attention("a", Attention(B=1, S=1, P=1023, H=2, Hkv=1, dk=64, dv=64)).work.flops
    524288
    >>> 2 * 2 * 1024 * (64 + 64)
    524288
    """
    ideal, executed = work(a)
    chosen = form or (DIFFUSION if a.bidirectional else PREFILL if a.w is None and a.c is None else WINDOW)
    return Kernel(
        name=name,
        form=chosen,
        ideal=ideal,
        executed=executed,
        grid=grid(a),
        instance=instance(a),
        shape=a,
        implementation="FlashAttention-3 (torch SDPA cuDNN)",
    )
