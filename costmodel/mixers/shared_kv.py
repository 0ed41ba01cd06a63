"""Softmax attention over the keys and values of an earlier layer: queries of its own, no cache of its own.

Source: arXiv:2405.12981 (cross-layer attention), section 2; transformers, models/gemma4/modeling_gemma4.py (the last
`num_kv_shared_layers` layers read what the last layer before them of their type has cached).

FLOPs and the bytes read per token are those of softmax attention; only the projections of keys and values and the
growth of the cache are saved.

>>> from costmodel.step import Precision
>>> cache(Dims(H=8, Hkv=1, dk=256, dv=256), Precision()).bytes(10**6)
0
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim, flag
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.step import Precision, Step

NAME = "shared_kv"
ALIASES = ("cross-layer-attention", "kv-sharing")
TITLE = "Attention over another layer's cache"
SUMMARY = "softmax attention whose keys and values an earlier layer has cached"
SOURCES = ("arXiv:2405.12981, section 2", "transformers, models/gemma4/modeling_gemma4.py")
TENSOR_PARALLEL = "by heads: vllm-project/vllm, models/gemma3n.py"
CACHE_SPLITS = True
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=0)
CLAIM = Claim("O(L²)", "O(L)", "arXiv:2405.12981, section 2 (claims a smaller cache, not another order)")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a layer that reads another layer's keys and values."""

    H: int = dim("heads", "query heads", split="heads")
    Hkv: int = dim("kv_heads", "key and value heads of the layer that is read", split="groups")
    dk: int = dim("d_qk", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    w: int | None = dim("window", "keys a query sees at most; null: all", None, nullable=True)
    qk_norm: bool = flag("qk_norm", "RMSNorm on every query head")
    rope: bool = flag("rope", "rotary position embedding", True)
    causal: bool = flag("causal", "a query sees only itself and earlier tokens", True)


EXAMPLES = (
    Dims(H=4, Hkv=2, dk=16, dv=8),
    Dims(H=2, Hkv=1, dk=8, dv=8, qk_norm=True, rope=False),
)


def check(d: Dims) -> list[str]:
    """Query heads must divide evenly over the key heads."""
    return gqa.check(_softmax(d))


def _softmax(d: Dims) -> gqa.Dims:
    return gqa.Dims(H=d.H, Hkv=d.Hkv, dk=d.dk, dv=d.dv, qk_norm=d.qk_norm, rope=d.rope, causal=d.causal)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """W_Q and W_O."""
    return Projection("q_proj", D, d.H * d.dk), Projection("o_proj", d.H * d.dv, D)


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """The scale of the query norm."""
    return d.dk if d.qk_norm else 0


def cache(d: Dims, precision: Precision) -> Cache:
    """None: what it reads is another layer's."""
    return Cache()


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: queries, their norm and rotation, attention, output."""
    queries, out = projections(d, D)
    elements, e = step.tokens * d.H * d.dk, precision.hidden_bytes
    run = [projection(queries, step, precision)]
    if d.rope or d.qk_norm:
        work = elements * ((6 if d.rope else 0) + (4 if d.qk_norm else 0))
        run.append(elementwise("query norm, rope", read=elements * e, written=elements * e, vector=work))
    return [*run, gqa.core(_softmax(d), step, precision, d.w), projection(out, step, precision)]
