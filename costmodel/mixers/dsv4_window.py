"""The window layer of DeepSeek-V4, and what its compressed layers (CSA, HCA) share with it.

Source: DeepSeek-V4 technical report, section 2.3; huggingface/transformers, models/deepseek_v4/modeling_deepseek_v4.py.

One head of width dh is key and value of all query heads (K = V); its last dr elements are rotated, and the rotation is
undone on the output. H·dh is too wide for one output matrix: g groups of heads are projected to rank o each, then
g·o to D. Every layer sees the last w tokens; this one nothing else, so its work and cache stop growing.

>>> from costmodel.step import Precision
>>> cache(Dims(H=64, q_l=1024, dh=512, dr=64, g=8, o=1024), Precision(kv="fp8")).fixed == 128 * 584
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity, ceil_div, floor_div
from costmodel.dims import dim, flag
from costmodel.dtypes import element_bytes
from costmodel.kernels.attention import Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.kernels.sparse_attention import padded_heads
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "dsv4_window"
ALIASES = ("dsv4-window", "deepseek-v4-window")
TITLE = "DeepSeek-V4 window attention"
SUMMARY = "one head of keys that are the values, grouped low-rank output, window, sinks"
SOURCES = (
    "DeepSeek-V4 technical report, section 2.3 (huggingface.co/deepseek-ai/DeepSeek-V4-Pro)",
    "huggingface/transformers, models/deepseek_v4/modeling_deepseek_v4.py",
    "deepseek-ai/FlashMLA, tests (fp8 layout of the cache)",
)
TENSOR_PARALLEL = (
    "by heads and output groups; latent, key and cache are on every device: vllm-project/vllm, models/deepseek_v4"
)
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)
CLAIM = Claim("O(L·w)", "O(w)", "DeepSeek-V4 technical report, section 2.3")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a DeepSeek-V4 attention layer."""

    H: int = dim("heads", "query heads", split="heads")
    q_l: int = dim("q_lora", "width of the query latent")
    dh: int = dim("d_head", "width of a query head, and of the one key, which is the value")
    dr: int = dim("d_rope", "part of a head that carries the position")
    g: int = dim("o_groups", "groups of heads that are projected to o_lora each", split="heads")
    o: int = dim("o_lora", "width of one group's output latent")
    w: int = dim("window", "tokens that a query sees uncompressed, its own included", 128)
    Hkv: int = dim("kv_heads", "key heads", 1, most=1)
    sinks: bool = flag("sinks", "one learned logit per head joins the softmax", True)
    k_eq_v: bool = flag("k_eq_v", "the key is the value", True)


EXAMPLES = (
    Dims(H=4, q_l=12, dh=16, dr=4, g=2, o=6, w=8),
    Dims(H=6, q_l=8, dh=8, dr=2, g=3, o=4, w=24, sinks=False),
)


def check(d: Dims) -> list[str]:
    """Groups divide the heads, rotation takes pairs of elements, and keys are values."""
    problems = []
    if d.H % d.g:
        problems.append(f"heads {d.H} is not a multiple of o_groups {d.g}")
    if d.dr % 2 or d.dr > d.dh:
        problems.append(f"d_rope {d.dr} is not an even part of d_head {d.dh}")
    if not d.k_eq_v:
        problems.append("k_eq_v false: this attention has no values of its own")
    return problems


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """W_DQ, W_KV, W_UQ, and the output in two steps: g matrices of (H·dh/g) × o, then g·o × D."""
    return (
        Projection("q_a_proj", D, d.q_l),
        Projection("kv_proj", D, d.dh),
        Projection("q_b_proj", d.q_l, d.H * d.dh),
        Projection("o_a_proj", floor_div(d.H * d.dh, d.g), d.o, heads=d.g),
        Projection("o_b_proj", d.g * d.o, D),
    )


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Scales of the norms on query latent and key, and the sink logits."""
    return d.q_l + d.dh + (d.H if d.sinks else 0)


def row_bytes(d: Dims, precision: Precision) -> Quantity:
    """Bytes of a cached key, or of a compressed entry.

    In fp8: dh − dr elements of one byte with a scale byte per 64, dr in bf16, filled up to a multiple of 8.

    >>> row_bytes(Dims(H=1, q_l=1, dh=512, dr=64, g=1, o=1), Precision(kv="fp8"))  # 448 + 7 + 64 · 2 + 1
    584
    """
    if precision.kv == "fp8":
        content = d.dh - d.dr
        return 8 * ceil_div(content + ceil_div(content, 64) + 2 * d.dr, 8)
    return d.dh * precision.kv_bytes


def cache(d: Dims, precision: Precision) -> Cache:
    """The last w keys, in a ring that is allocated once."""
    return Cache(fixed=d.w * row_bytes(d, precision))


def into_heads(d: Dims, D: Quantity, step: Step, precision: Precision, *, filled_up: bool = False) -> list[Kernel]:
    """Both down projections as one, norms and the cache write, then the queries, normed by head and rotated.

    filled_up: into buffers of whole tiles of heads, where the attention kernel does not count that itself.
    """
    n, e = step.tokens, precision.hidden_bytes
    width = padded_heads(d.H) if filled_up else d.H
    normed, queries = n * (d.q_l + d.dh), n * d.H * d.dh
    into_latents, queries_of = Projection("q_a_proj, kv_proj", D, d.q_l + d.dh), projections(d, D)[2]
    rotate = elementwise(
        "query norm, rope", read=queries * e, written=queries * e, vector=4 * queries + 6 * n * d.H * d.dr
    )
    return [
        projection(into_latents, step, precision),
        elementwise(
            "latent norms, rope, cache write",
            read=normed * e,
            written=n * (d.q_l * e + row_bytes(d, precision)),
            vector=4 * normed + 6 * n * d.dr,
        ),
        projection(queries_of, step, precision),
        rotate._replace(executed=rotate.executed._replace(written=n * width * d.dh * e)),
    ]


def out_of_heads(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """The rotation undone on the output of every head, and the grouped low-rank projection.

    Narrow matrices take narrow input: then the same pass reads the whole output and quantises it. The groups are
    quantised like any other matrix (fp8 in the published checkpoints).
    """
    n, e = step.tokens, precision.hidden_bytes
    groups, out = projections(d, D)[3:]
    operand = precision.operand("mixer")
    narrow = element_bytes(operand) < e
    moved = n * d.H * (d.dh if narrow else d.dr)
    product = Gemm(
        m=n,
        n=groups.d_out,
        k=groups.d_in,
        batch=d.g,
        activations=operand,
        weights=precision.weight("mixer"),
        output=precision.hidden,
        source=operand,
        joined=True,
    )
    return [
        elementwise(
            "inverse rope, quantisation" if narrow else "inverse rope",
            read=moved * e,
            written=moved * element_bytes(operand),
            vector=6 * n * d.H * d.dr + (4 * moved if narrow else 0),
        ),
        gemm(groups.name, product),
        projection(out, step, precision),
    ]


def core(d: Dims, step: Step, precision: Precision) -> Kernel:
    """Attention inside the window."""
    a = Attention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        Hkv=1,
        dk=d.dh,
        dv=d.dh,
        w=d.w,
        sinks=d.sinks,
        shared_kv=True,
        dtype=precision.hidden,
        kv=precision.kv,
        appends=step.phase != "train",
        row_bytes=row_bytes(d, precision),
    )
    return decode_attention("attention", a) if step.decoding else attention("attention", a)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: into heads, attention inside the window, out of heads."""
    return [
        *into_heads(d, D, step, precision, filled_up=True),
        core(d, step, precision),
        *out_of_heads(d, D, step, precision),
    ]
