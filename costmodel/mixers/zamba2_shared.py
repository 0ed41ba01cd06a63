"""Zamba2's shared block: attention and a feed-forward over the hidden state beside the embedding, reused with adapters.

Source: arXiv:2411.15242 (Zamba2), section 2; transformers, models/zamba2/modeling_zamba2.py.

The same weights serve several places of the model (`copies` in an architecture file). Its input is twice the model's
width: the hidden state and the token's embedding. Each call has for itself its cache, low-rank adapters on the
up-projection (and on q, k, v where `attention_adapters`), and the D × D matrix through which it joins the next layer.

>>> from costmodel.step import Precision
>>> cache(Dims(H=32, d=160, F=10240, r=128), Precision()).per_token == 2 * 32 * 160 * 2
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim, flag
from costmodel.ffns import mlp
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.partial_sum import PartialSum
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order, gqa
from costmodel.step import Precision, Step

NAME = "zamba2_shared"
ALIASES = ("zamba2-shared-block", "shared-transformer-block")
TITLE = "Shared transformer block (Zamba2)"
SUMMARY = "attention and feed-forward that several layers share, with an adapter per call"
SOURCES = ("arXiv:2411.15242, section 2", "transformers, models/zamba2/modeling_zamba2.py")
TENSOR_PARALLEL = "by heads and inner width, adapters as LoRA: vllm-project/vllm, models/zamba2.py"
CACHE_SPLITS = True
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("O(L²)", "O(L)", "arXiv:2411.15242, section 2")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a shared block."""

    H: int = dim("heads", "heads, each with keys and values of its own", split="heads")
    d: int = dim("head_dim", "width of a head; heads · head_dim is twice the model's width in released models")
    F: int = dim("d_ff", "inner width of the feed-forward", split="heads")
    r: int = dim("adapter_rank", "inner width of an adapter")
    attention_adapters: bool = flag("attention_adapters", "adapters on q, k and v as well")
    rope: bool = flag("rope", "rotary position embedding")
    act: str = choice("act", "activation function of the feed-forward", "geglu", mlp.ACTIVATIONS)


EXAMPLES = (
    Dims(H=3, d=16, F=20, r=4),
    Dims(H=2, d=8, F=12, r=3, attention_adapters=True, rope=True),
)


def check(d: Dims) -> list[str]:
    """Nothing to divide."""
    return []


def _attention(d: Dims) -> gqa.Dims:
    return gqa.Dims(H=d.H, Hkv=d.H, dk=d.d, dv=d.d, rope=d.rope)


def _adapter(name: str, d_in: Quantity, rank: Quantity, d_out: Quantity, heads: int | None = None) -> list[Projection]:
    """Down and up; `heads` adapters on the same input have one down-projection."""
    down = Projection(f"{name}_down", d_in, rank if heads is None else heads * rank)
    return [down, Projection(f"{name}_up", rank, d_out, heads=heads)]


def own_projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """What every call has for itself: adapters and the matrix that leads back to the layers."""
    return (
        *(_adapter("qkv_adapter", 2 * D, d.r, d.H * d.d, heads=3) if d.attention_adapters else ()),
        *_adapter("up_adapter", D, d.r, 2 * d.F),
        Projection("linear", D, D),
    )


def shared_projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """W_Q, W_K, W_V over the doubled input, W_O, and the gated feed-forward."""
    return (
        Projection("qkv_proj", 2 * D, 3 * d.H * d.d),
        Projection("o_proj", d.H * d.d, D),
        Projection("gate_up_proj", D, 2 * d.F),
        Projection("down_proj", d.F, D),
    )


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """Those that are shared, and those of one call."""
    return (*shared_projections(d, D), *own_projections(d, D))


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """The embedding's half of the norm at the entrance (each block counts one of width D), and the norm in between."""
    return 2 * D


def partial_sums(d: Dims, D: Quantity, ways: int) -> tuple[PartialSum, ...]:
    """The output of attention, which the norm before the feed-forward reads."""
    return (PartialSum("o_proj", D),)


def cache(d: Dims, precision: Precision) -> Cache:
    """Keys and values of every head, at every call."""
    return gqa.cache(_attention(d), precision)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One call: concatenation, attention, norm, feed-forward, the way back; adapters are added to what they adapt."""
    e, tokens, a = precision.hidden_bytes, step.tokens, _attention(d)
    linears = {p.name: projection(p, step, precision) for p in projections(d, D)}

    def pass_over(name: str, read: Quantity, written: Quantity, vector: Quantity) -> Kernel:
        return elementwise(name, read=tokens * read * e, written=tokens * written * e, vector=tokens * vector)

    def adapted(name: str, adapter: str, width: Quantity) -> list[Kernel]:
        added = pass_over(f"{adapter} sum", 2 * width, width, width)
        return [linears[name], linears[f"{adapter}_down"], linears[f"{adapter}_up"], added]

    wide = 3 * d.H * d.d
    return [
        pass_over("concatenation", 2 * D, 2 * D, 0),
        *(adapted("qkv_proj", "qkv_adapter", wide) if d.attention_adapters else [linears["qkv_proj"]]),
        gqa.rotate_and_append(a, step, precision),
        gqa.core(a, step, precision),
        linears["o_proj"],
        pass_over("norm before feed-forward", D, D, 5 * D),
        *adapted("gate_up_proj", "up_adapter", 2 * d.F),
        mlp.activation(mlp.Dims(F=d.F, gated=True, act=d.act), tokens, precision),
        linears["down_proj"],
        linears["linear"],
    ]
