"""Fused attention of latent attention (MLA) over many queries, expanded or absorbed.

Expanded: 128 × 128 tiles of each head, keys 192 wide and values 128, on Blackwell two at a time. Absorbed: all heads
share the one latent, so that the 64 rows of a tile are heads of a token, and with few heads tokens too; 576 wide,
values 512. Before Hopper absorbed kernels are Triton's: 32 × 32 tiles of each head.

Source: Dao-AILab/flash-attention, hopper/tile_size.h and hopper/pack_gqa.h, flash_attn/cute/flash_fwd_sm100.py
(`q_stage`); sgl-project/sglang, python/sglang/srt/layers/attention/triton_ops/extend_attention.py; arXiv:2405.04434,
section 2.1.
"""

from collections.abc import Mapping

from costmodel.algebra import Quantity, ceil_div, maximum, minimum, nominal, power, root, where
from costmodel.hardware import Hardware
from costmodel.kernels.attention import SOFTMAX_BACKWARD, Attention, attention, backward
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, memory_seconds, waves
from costmodel.pairs import executed_causal

ABSORBED_WIDTH = 256
"""Keys wider than this are latents."""


LARGE_TILES = ("hopper", "blackwell", "blackwell-ultra")
"""Generations whose tiles of an expanded head have 128 rows and keys instead of 64, and which pack heads into tiles."""


PAIRED_TILES = ("blackwell", "blackwell-ultra")
"""Generations whose thread blocks take two tiles of 128 queries at a time, one's softmax during the other's products,
where there are so many queries and tensor memory holds the scores and outputs of both."""
QUERIES, TENSOR_COLUMNS = 128, 512
"""Query rows of a tile, and columns of tensor memory, of which a tile takes one for each of its keys and elements of a
value. Source: PTX ISA, "Tensor Memory"."""


def tile(a: Attention, generation: str = "hopper") -> tuple[int, int, int]:
    """Query tokens, heads, and keys of one tile.

    >>> a = Attention(B=1, S=1, P=0, H=16, Hkv=16, dk=192, dv=128)
    >>> tile(a), tile(a._replace(Hkv=1, dk=576, dv=512)), tile(a._replace(H=128, Hkv=1, dk=576, dv=512))
    ((128, 1, 128), (4, 16, 64), (1, 64, 64))
    >>> tile(a, "blackwell"), tile(a._replace(dk=256, dv=256), "blackwell")
    ((256, 1, 128), (128, 1, 128))
    """
    if nominal(a.dk, 192) <= ABSORBED_WIDTH:
        if generation in PAIRED_TILES and 2 * (128 + nominal(a.dv, 128)) <= TENSOR_COLUMNS:
            return 2 * QUERIES, 1, 128
        return (128, 1, 128) if generation in LARGE_TILES else (64, 1, 64)
    if generation not in LARGE_TILES:
        return 32, 1, 32
    heads = minimum(64, nominal(a.H, 128))
    return 64 // heads, heads, 64


def computed_pairs(a: Attention, tokens: int, keys: int) -> Quantity:
    """(query, key) pairs per sequence and head that whole tiles compute."""
    if a.bidirectional:
        return tokens * ceil_div(a.S, tokens) * keys * ceil_div(a.P + a.S, keys)
    return executed_causal(a.P, a.S, tokens, keys)


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(units at work, HBM bytes) + conversion of the operands.

    Units: rounds of block_s and the mean tile + tail_weight · what the longest tile takes more than that, as tiles of
    unequal length are handed out in a fixed order; a single round takes as long as its longest tile. Equal tiles, those
    of short prompts, come in whole rounds, and only unequal ones leave a tail. A tile's step is products and
    exponentials in part overlapped. Values filled up to the width of keys (`filling`) take more products and traffic,
    a pass before and one after. Where the operands are 8 bit, a kernel of its own narrows q, k and v, or, before
    kernels that multiply 8 bits, widens a cache of 8 bits (SGLang's FlashAttention, TensorRT-LLM's before Hopper).
    Up to 128 queries fill one of two tiles.
    """
    a: Attention = kernel.shape
    units = hardware.compute.units
    tokens, heads, keys = tile(a, hardware.generation)
    tiles = a.B * ceil_div(a.H, heads) * ceil_div(a.S, tokens)
    widened = a.dtype == "fp8" and round(nominal(theta["widening"], 1)) == WIDENED
    peak = hardware.tensor_peak("bf16" if widened else a.dtype) * theta["tensor_efficiency"] / units
    rows = tokens * heads
    if tokens > QUERIES:
        rows = rows * where(a.S > QUERIES, 1.0, 0.5)
    filled = filling(a, hardware.generation, theta)
    products = 2 * rows * keys * (a.dk + a.dv + filled) * a.passes / peak
    special = hardware.special_peak
    if special:
        scores = rows * keys * (SOFTMAX_BACKWARD if a.backward else 1)
        exponentials = scores / (special * theta["special_efficiency"] / units)
        step = root(power(products, SOFTMAX_OVERLAP) + power(exponentials, SOFTMAX_OVERLAP), SOFTMAX_OVERLAP)
    else:
        step = products
    steps = a.B * ceil_div(a.H, heads) * computed_pairs(a, tokens, keys) / (tokens * keys)
    longest = ceil_div(a.P + a.S, keys) * step * theta["alone"]
    later = 1.0 - 1.0 / maximum(tiles / units, 1.0)
    rounds = waves(tiles, units, theta["wave_weight"])
    mean = steps * step / tiles
    uneven = theta["tail_weight"] * later * maximum(longest - mean, 0.0)
    busy = rounds * theta["block_s"] + maximum(longest, rounds * mean + uneven)
    launch: Quantity = theta["launch_s"] + a.B * a.S * theta["token_s"]
    if a.dtype == "fp8":
        operands = a.B * (a.S * a.H * a.dk + (a.P + a.S) * a.Hkv * (a.dk + a.dv))
        launch = launch + theta["conversion"] * 3 * operands / hardware.memory.hbm.bandwidth
    values, outputs = 2 * a.B * (a.P + a.S) * a.Hkv, 2 * a.B * a.S * a.H
    around = where(filled > 0, values * (2 * a.dv + filled) + outputs * 2 * a.dv, 0)
    return Terms(
        tensor=busy,
        memory=memory_seconds(kernel, hardware, theta, kernel.executed.hbm_bytes + (values + outputs) * filled),
        launch=launch + memory_seconds(kernel, hardware, theta, around),
        overlap=theta["overlap"],
    )


def filling(a: Attention, generation: str, theta: Mapping[str, float]) -> Quantity:
    """Elements that a value is filled up by to the width of a key.

    FlashAttention 2 has one width for both. vLLM fills the values up in a kernel before it and cuts the outputs in one
    after it, on devices that FlashAttention 3 and 4 do not run on.

    Source: vllm-project/vllm, vllm/v1/attention/backends/mla/common.py (`_pad_v`).

    >>> a = Attention(B=1, S=1, P=0, H=16, Hkv=16, dk=192, dv=128)
    >>> filling(a, "ada", {"values": FILLED}), filling(a, "ada", {}), filling(a, "hopper", {"values": FILLED})
    (64, 0, 0)
    """
    fills = round(nominal(theta.get("values", 1.0), 1)) == FILLED and generation not in LARGE_TILES
    return a.dk - a.dv if fills and nominal(a.dk, 192) <= ABSORBED_WIDTH else 0


SOFTMAX_OVERLAP = 2.0
FILLED = 2.0
"""The value of `values` of kernels whose values are filled up to the width of the keys."""
WIDENED = 2.0
"""The value of `widening` of kernels that multiply 8-bit operands as 16-bit ones."""

PARAMETERS = (
    Parameter("launch_s", 9.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("block_s", 2.5e-6, 0.5, 0.05e-6, 2e-5, "s", "prologue and epilogue of one query tile"),
    Parameter("token_s", 2e-10, 1.5, 1e-12, 1e-7, "s", "one token's copies around the kernel, however many heads"),
    Parameter("tensor_efficiency", 0.80, 0.15, 0.05, 1.0, "1", "share of the datasheet FLOP/s inside the tiles"),
    Parameter("special_efficiency", 0.85, 0.25, 0.05, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.88, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_share", 0.72, 0.3, 0.1, 1.5, "1", "share of L2 that keeps replayed buffers"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's"),
    Parameter("alone", 1.0, 0.3, 0.2, 4.0, "1", "time of a step in the longest tile over that in a full device"),
    Parameter(
        "tail_weight", 0.5, 0.5, 0.01, 2.0, "1", "share of the longest tile beyond the mean that others wait for"
    ),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter(
        "conversion", 0.5, 0.7, 0.01, 3.0, "1", "traffic of narrowing q, k, v to 8 bit, over one pass at full bandwidth"
    ),
    Parameter("widening", 1.0, 0.0, 1.0, 2.0, "1", "bits that are multiplied over those of 8-bit operands"),
    Parameter("values", 1.0, 0.0, 1.0, 2.0, "1", "values: 1 as wide as they are, 2 filled up to the keys' width"),
    Parameter("overlap", 2.0, 0.25, 1.0, 8.0, "1", "exponent of the p-norm of work and traffic"),
)

MLA_PREFILL = Form(
    family="mla-prefill",
    summary="fused attention of expanded or absorbed MLA",
    parameters=PARAMETERS,
    terms=terms,
    backward=backward,
    sources=("arXiv:2407.08608", "Dao-AILab/flash-attention, hopper/pack_gqa.h"),
    model_spread=0.3,
    starts=({"widening": WIDENED},),
    built={"vllm": {"values": FILLED}},
)
NARROW = MLA_PREFILL._replace(starts=())
"""For fits of kernels whose code multiplies an 8-bit cache in 8 bits."""
WIDE = MLA_PREFILL.adjusted({"widening": {"prior": WIDENED}})._replace(starts=())
"""For fits of kernels whose code multiplies in 16 bits whatever the cache."""
FORMS = (MLA_PREFILL,)


def mla_prefill(name: str, a: Attention) -> Kernel:
    """The fused kernel.

    >>> mla_prefill("a", Attention(B=1, S=1, P=0, H=128, Hkv=128, dk=192, dv=128)).work.flops
    81920
    """
    return attention(name, a, form=MLA_PREFILL)._replace(instance=f"hd{a.dk}-{a.dtype}")
