"""Heavily compressed attention: 128 tokens become one entry, and a query sees all entries besides its window.

Source: DeepSeek-V4 technical report, section 2.3.2, equations 20 to 23.

FLOP = 4·H·dh·(window pairs + Σ ⌊j/r⌋): still quadratic, 2·H·dh/r per token², 1/r of full attention of these heads;
decode reads 1/r of a row per cached token.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=128, q_l=1536, dh=512, dr=64, g=16, o=1024, r=128)
>>> run = kernels(d, 7168, Step(B=1, S=1, P=2**20 - 1, phase="decode"), Precision())
>>> [k.work.flops for k in run if k.family == "hca-decode"] == [4 * 128 * 512 * (128 + 2**20 // 128)]
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim
from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.compressed_attention import compressed_attention
from costmodel.kernels.compressed_rows import CompressedAttention
from costmodel.layers.compressor import Compressor, compress
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, dsv4_window
from costmodel.step import Precision, Step

NAME = "hca"
ALIASES = ("heavily-compressed-attention",)
TITLE = "Heavily compressed attention"
SUMMARY = "a window and all entries of 128 tokens compressed to one"
SOURCES = (
    "DeepSeek-V4 technical report, section 2.3.2 (huggingface.co/deepseek-ai/DeepSeek-V4-Pro)",
    "huggingface/transformers, models/deepseek_v4/modeling_deepseek_v4.py",
)
TENSOR_PARALLEL = "as the window layer; the compressor is on every device: vllm-project/vllm, models/deepseek_v4"
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim(
    "27 % of V3.2 at 1M",
    "27 % of V3.2 at 1M",
    "DeepSeek-V4 technical report, as quoted elsewhere (V4-Pro, FLOPs of one token)",
)


@dataclass(frozen=True, slots=True)
class Dims(dsv4_window.Dims):
    """Dimensions of a heavily compressed layer."""

    r: int = dim("ratio", "tokens per compressed entry", 128)
    m: int = dim("overlap", "blocks that an entry is pooled from", 1)


EXAMPLES = (
    Dims(H=4, q_l=12, dh=16, dr=4, g=2, o=6, w=4, r=4),
    Dims(H=6, q_l=8, dh=8, dr=2, g=3, o=4, w=8, r=3, sinks=False),
)

check = dsv4_window.check


def compressor(d: Dims) -> Compressor:
    """The pooling of d.r tokens to one entry of the key's width."""
    return Compressor("compressor", d.dh, d.r, d.m)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Those of the window layer, and values and gates of the compressor."""
    return (*dsv4_window.projections(d, D), compressor(d).projection(D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Norms, sinks, and the compressor's biases and norm."""
    return dsv4_window.extra_parameters(d, D) + compressor(d).extra_parameters


def cache(d: Dims, precision: Precision) -> Cache:
    """One row per r tokens; the window and the compressor's buffer are allocated once."""
    row = dsv4_window.row_bytes(d, precision)
    return Cache(per_token=row / d.r, fixed=d.w * row + compressor(d).state_bytes)


def core(d: Dims, step: Step, precision: Precision, k: Quantity | None = None) -> Kernel:
    """Attention to the window and to the entries, k of them where a layer selects."""
    x = CompressedAttention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        d=d.dh,
        w=d.w,
        r=d.r,
        k=k,
        row_bytes=dsv4_window.row_bytes(d, precision),
        dtype=precision.hidden,
        quantised=element_bytes(precision.kv) < element_bytes(precision.hidden),
        sinks=d.sinks,
        decoding=step.decoding,
        narrowed=element_bytes(precision.operand("mixer")) < element_bytes(precision.hidden),
    )
    return compressed_attention("attention", x)


def compression(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """The compressor's projection, which stays in 16 bits, and the entries that the step finishes."""
    x = compressor(d)
    return [
        projection(x.projection(D), step, precision, role="default"),
        compress(x, dsv4_window.row_bytes(d, precision), step, precision),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: into heads, compression, attention, out of heads."""
    return [
        *dsv4_window.into_heads(d, D, step, precision),
        *compression(d, D, step, precision),
        core(d, step, precision),
        *dsv4_window.out_of_heads(d, D, step, precision),
    ]
