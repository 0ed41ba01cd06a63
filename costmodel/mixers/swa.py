"""Sliding-window attention: a query sees at most the last w tokens, its own included.

Source: arXiv:2004.05150, section 3.1 (Longformer); Mistral 7B, arXiv:2310.06825, section 2.

Decode work stops growing once the context passes w, and a rolling cache holds w tokens. Engines with one
uniform paged cache keep all L tokens instead (`rolling: false`).

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=2, Hkv=1, dk=64, dv=64, w=1024)
>>> step = Step(B=1, S=1, P=8191, phase="decode")
>>> [k.work.flops for k in kernels(d, 128, step, Precision()) if "attention" in k.family]
[524288]
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim, flag
from costmodel.kernels.base import Kernel
from costmodel.layers.projection import Projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.step import Precision, Step

NAME = "swa"
ALIASES = ("sliding-window", "window", "local-attention")
REFINES = ("gqa", "window")
TITLE = "Sliding-window attention"
SUMMARY = "softmax attention over the last w tokens, rolling cache"
SOURCES = ("arXiv:2004.05150, section 3.1", "arXiv:2310.06825, section 2")
TENSOR_PARALLEL = "as softmax attention"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L·w)", "O(w)", "arXiv:2004.05150, section 3.1")


@dataclass(frozen=True, slots=True)
class Dims(gqa.Dims):
    """Dimensions of a sliding-window layer."""

    w: int = dim("window", "keys a query sees at most, its own included", 4096)
    rolling: bool = flag("rolling", "the engine keeps only the window in the cache", True)


EXAMPLES = (
    Dims(H=2, Hkv=1, dk=16, dv=16, w=8),
    Dims(H=4, Hkv=2, dk=8, dv=8, w=24, sinks=True),
)

check = gqa.check
extra_parameters = gqa.extra_parameters


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """As in softmax attention."""
    return gqa.projections(d, D)


def cache(d: Dims, precision: Precision) -> Cache:
    """Hkv·(dk + dv) elements per token, of the last w tokens when the cache rolls."""
    return Cache(per_token=d.Hkv * (d.dk + d.dv) * precision.kv_bytes, limit=d.w if d.rolling else None)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer, as softmax attention with a window."""
    return gqa.kernels(d, D, step, precision, w=d.w)
