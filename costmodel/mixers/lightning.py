"""Lightning attention: linear attention with a constant decay per head and layer (MiniMax-01, Ring-linear, SALA).

Source: arXiv:2401.04658 (Lightning Attention-2), section 3; MiniMax-01 arXiv:2501.08313, section 2.2; Ring-linear
arXiv:2510.19338; kernels of fla-org/flash-linear-attention, fla/ops/lightning_attn.

M ← λ·M + kᵀ·v, o = q·M with SiLU on q, k and v: the arithmetic of retention with heads of equal width, a norm over all
heads and a full output gate. Every head has keys and values of its own, whatever the model's softmax layers share.

>>> from costmodel.step import Precision
>>> cache(Dims(H=64, d=128), Precision()).fixed == 64 * 64 * 1024
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.norm import gated_norm
from costmodel.layers.partial_sum import NORM_OF_ALL_HEADS, PartialSum
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, retnet
from costmodel.step import Precision, Step

NAME = "lightning"
ALIASES = ("lightning-attention", "lightning-attn", "lightning_attention")
TITLE = "Lightning attention"
SUMMARY = "linear attention with a constant decay per head, full output gate"
SOURCES = (
    "arXiv:2401.04658, section 3 (tiled linear attention)",
    "arXiv:2501.08313, section 2.2 (MiniMax-01)",
    "fla-org/flash-linear-attention, fla/ops/lightning_attn (kernels)",
)
TENSOR_PARALLEL = "by heads, with a sum in the norm over all of them: vllm-project/vllm, models/minimax_text_01.py"
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L)", "O(1)", "arXiv:2401.04658, section 3")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a lightning attention layer."""

    H: int = dim("heads", "heads, each with a state and with keys and values of its own", split="heads")
    d: int = dim("d_head", "width of a head; its state is d_head × d_head")
    decay: str = choice("decay", "what the decay depends on", "per-head constant", ("per-head constant",))
    gate: str = choice("gate", "output gate: a full matrix, or none", "full", ("full", "none"))
    C: int = dim("chunk", "tokens of a chunk", 64)
    state_dtype: str = choice("state_dtype", "number format of the state", "fp32", ("fp32", "bf16"))


EXAMPLES = (
    Dims(H=2, d=8, C=8),
    Dims(H=3, d=4, gate="none", C=5),
)


def check(d: Dims) -> list[str]:
    """Nothing has to divide."""
    return []


def retention(d: Dims) -> retnet.Dims:
    """The same recurrence as retention."""
    return retnet.Dims(H=d.H, dk=d.d, dv=d.d, C=d.C, state_dtype=d.state_dtype)


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """q, k and v as one matrix, the output gate, and the output."""
    inner = d.H * d.d
    gate = (Projection("gate_proj", D, inner),) if d.gate == "full" else ()
    return (Projection("qkv_proj", D, 3 * inner), *gate, Projection("o_proj", inner, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """The scale of the norm over all heads; the decays are constants."""
    return d.H * d.d


def partial_sums(d: Dims, D: Quantity, ways: int) -> tuple[PartialSum, ...]:
    """The norm is over all heads."""
    return (NORM_OF_ALL_HEADS,)


def cache(d: Dims, precision: Precision) -> Cache:
    """The state of every head; nothing grows with the context."""
    return retnet.cache(retention(d), precision)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: projections, SiLU (or norm and rotation), the recurrence, norm and gate, output projection."""
    *inputs, out = projections(d, D)
    inner, e = step.tokens * d.H * d.d, precision.hidden_bytes
    if d.gate == "full":
        after = gated_norm("gated norm", d.H * d.d, step, precision)
    else:
        after = elementwise("norm", read=inner * e, written=inner * e, vector=4 * inner)
    same = retention(d)
    # Its own Triton holds q, k and the state over the whole width of the keys in fp32, 100 KiB of a unit's 256 KiB of
    # registers (OpenNLPLab/lightning-attention, lightning_attn2.py): one block on a unit at a time.
    core = (
        retnet.stepwise(same, step, precision, NAME)
        if step.decoding
        else retnet.scan(same, step, precision, NAME, resident=1)
    )
    return [
        *(projection(p, step, precision) for p in inputs),
        elementwise("silu", read=3 * inner * e, written=3 * inner * e, vector=12 * inner, special=3 * inner),
        *core,
        after,
        projection(out, step, precision),
    ]
