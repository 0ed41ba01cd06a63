"""Chunked attention: the sequence is cut into chunks of c tokens, and a query sees only its own, causally.

Source: Llama 4 (Meta, April 2025); transformers, models/llama4/modeling_llama4.py (`attention_chunk_size`).

A saw-tooth: the first token of a chunk sees itself, the last one c keys, (c + 1)/2 on average. Chunks start at
position 0, not at the query, and what lies in finished chunks is never read again. Engines run each chunk as a
sequence of its own; those with one uniform paged cache keep all L tokens (`rolling: false`).

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=2, Hkv=1, dk=64, dv=64, c=1024)
>>> seen = [kernels(d, 128, Step(B=1, S=1, P=P, phase="decode"), Precision())[2].work.flops for P in (1023, 1024)]
>>> seen == [1024 * 512, 1 * 512]  # 2 · 2 heads · (64 + 64) = 512 per key
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim, flag
from costmodel.kernels.attention import Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.decode_attention import decode_attention
from costmodel.layers.projection import Projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.step import Precision, Step

NAME = "chunked"
ALIASES = ("chunked-attention", "llama4-local")
TITLE = "Chunked attention"
SUMMARY = "softmax attention inside fixed chunks of c tokens"
SOURCES = ("transformers, models/llama4/modeling_llama4.py", "vllm-project/vllm, chunked local attention")
TENSOR_PARALLEL = "as softmax attention: vllm-project/vllm, models/llama4.py"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L·c)", "O(c)", "transformers, models/llama4/modeling_llama4.py (`attention_chunk_size`)")


@dataclass(frozen=True, slots=True)
class Dims(gqa.Dims):
    """Dimensions of a chunked layer."""

    c: int = dim("chunk", "tokens of a chunk", 8192)
    rolling: bool = flag("rolling", "the engine keeps only the current chunk in the cache", True)


EXAMPLES = (
    Dims(H=2, Hkv=1, dk=16, dv=16, c=8),
    Dims(H=4, Hkv=2, dk=8, dv=8, c=4, qk_norm=True),
)

check = gqa.check
extra_parameters = gqa.extra_parameters


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """As in softmax attention."""
    return gqa.projections(d, D)


def cache(d: Dims, precision: Precision) -> Cache:
    """Hkv·(dk + dv) elements per token, of one chunk at most when the cache rolls."""
    return Cache(per_token=d.Hkv * (d.dk + d.dv) * precision.kv_bytes, limit=d.c if d.rolling else None)


def core(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Attention inside the chunks that the new tokens fall into."""
    a = Attention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        Hkv=d.Hkv,
        dk=d.dk,
        dv=d.dv,
        c=d.c,
        bidirectional=step.bidirectional or not d.causal,
        softcap=d.softcap,
        sinks=d.sinks,
        dtype=precision.attention,
        kv=precision.kv,
        appends=step.phase != "train",
    )
    return decode_attention("attention", a) if step.decoding else attention("attention", a)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer, as softmax attention with another core."""
    before, cached, _, *after = gqa.kernels(d, D, step, precision)
    return [before, cached, core(d, step, precision), *after]
