"""Softmax attention with H query heads over Hkv key heads: MHA (Hkv = H), GQA, MQA (Hkv = 1).

Source: arXiv:1706.03762, section 3.2; GQA arXiv:2305.13245, section 2; FlashAttention arXiv:2205.14135.

Every query meets every visible key: FLOP = 2·B·H·pairs·(dk + dv), quadratic in the context. Decode reads
the whole cache for each token, and the G = H/Hkv heads of a group share what is read.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=2, Hkv=1, dk=64, dv=64)
>>> step = Step(B=1, S=1, P=1023, phase="decode")
>>> [k.work.flops for k in kernels(d, 128, step, Precision()) if "attention" in k.family]
[524288]
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import dim, flag
from costmodel.kernels.attention import Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "gqa"
ALIASES = ("mha", "mqa", "attention", "full-attention")
TITLE = "Softmax attention"
SUMMARY = "MHA, GQA, MQA; output gate, soft-cap, sinks, K = V projection"
SOURCES = (
    "arXiv:1706.03762, section 3.2 (attention)",
    "arXiv:2305.13245, section 2 (grouped queries)",
    "arXiv:2407.08608 (FlashAttention-3 tiles)",
)
TENSOR_PARALLEL = "by heads: vllm-project/vllm, layers/linear.py (QKVParallelLinear: key heads below tp are copied)"
CACHE_SPLITS = True
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("O(L²)", "O(L)", "arXiv:1706.03762, table 1")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a softmax attention layer."""

    H: int = dim("heads", "query heads", split="heads")
    Hkv: int = dim("kv_heads", "key and value heads", split="groups")
    dk: int = dim("d_qk", "width of a query or key head")
    dv: int = dim("d_v", "width of a value head")
    gate: bool = flag("output_gate", "a sigmoid gate on the output, projected with the queries")
    softcap: bool = flag("softcap", "scores pass through a tanh")
    sinks: bool = flag("sinks", "one learned logit per head joins the softmax")
    k_eq_v: bool = flag("k_eq_v", "values reuse the key projection; the cache still holds both")
    bias: bool = flag("qkv_bias", "biases on q, k, v")
    o_bias: bool = flag("o_bias", "bias on the output projection")
    qk_norm: bool = flag("qk_norm", "RMSNorm on every query and key head")
    rope: bool = flag("rope", "rotary position embedding", True)
    causal: bool = flag("causal", "a query sees only itself and earlier tokens", True)


EXAMPLES = (
    Dims(H=2, Hkv=1, dk=16, dv=16),
    Dims(H=4, Hkv=4, dk=8, dv=8, bias=True, sinks=True),
    Dims(H=8, Hkv=2, dk=16, dv=8, gate=True, softcap=True, qk_norm=True),
)


def check(d: Dims) -> list[str]:
    """Query heads must divide evenly over the key heads."""
    return [] if d.H % d.Hkv == 0 else [f"heads {d.H} is not a multiple of kv_heads {d.Hkv}"]


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """W_Q (doubled by an output gate), W_K, W_V as one matrix, and W_O."""
    queries = d.H * d.dk + (d.H * d.dv if d.gate else 0)
    values = 0 if d.k_eq_v else d.Hkv * d.dv
    return (
        Projection("qkv_proj", D, queries + d.Hkv * d.dk + values, bias=d.bias),
        Projection("o_proj", d.H * d.dv, D, bias=d.o_bias),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Scales of the query and key norms, and the sink logits."""
    return (2 * d.dk if d.qk_norm else 0) + (d.H if d.sinks else 0)


def cache(d: Dims, precision: Precision) -> Cache:
    """Hkv·(dk + dv) elements per token."""
    return Cache(per_token=d.Hkv * (d.dk + d.dv) * precision.kv_bytes)


def core(d: Dims, step: Step, precision: Precision, w: Quantity | None = None) -> Kernel:
    """The attention kernel itself; w is the window of a local layer."""
    a = Attention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        Hkv=d.Hkv,
        dk=d.dk,
        dv=d.dv,
        w=w,
        bidirectional=step.bidirectional or not d.causal,
        softcap=d.softcap,
        sinks=d.sinks,
        dtype=precision.attention,
        kv=precision.kv,
        appends=step.phase != "train",
    )
    return decode_attention("attention", a) if step.decoding else attention("attention", a)


def rotate_and_append(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Norms and rotation of queries and keys, and the write of new keys and values into the cache, fused."""
    e = precision.hidden_bytes
    queries, keys, values = step.tokens * d.H * d.dk, step.tokens * d.Hkv * d.dk, step.tokens * d.Hkv * d.dv
    return elementwise(
        "rope, cache write",
        read=(queries + keys + values) * e,
        written=queries * e + (keys + values) * precision.kv_bytes,
        vector=(queries + keys) * (6 if d.rope else 0) + (queries + keys) * (4 if d.qk_norm else 0),
    )


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision, w: Quantity | None = None) -> Sequence[Kernel]:
    """One layer: QKV projection, rotation and cache write, attention, gate, output projection."""
    qkv, out = projections(d, D)
    run = [
        projection(qkv, step, precision),
        rotate_and_append(d, step, precision),
        core(d, step, precision, w),
    ]
    if d.gate:
        elements = step.tokens * d.H * d.dv
        e = precision.hidden_bytes
        run.append(
            elementwise(
                "output gate", read=2 * elements * e, written=elements * e, vector=2 * elements, special=elements
            )
        )
    run.append(projection(out, step, precision))
    return run
