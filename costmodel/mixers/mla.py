"""Multi-head latent attention: keys and values of all heads are projections of one cached latent.

Source: arXiv:2405.04434 (DeepSeek-V2), section 2.1.2 (compression, absorption) and 2.1.3 (decoupled RoPE).

Two forms of the same function. Expanded: kv_b turns every latent into H keys and values, FLOP per pair
2H(dn + dr + dv), and a cached prefix is expanded again by every chunk. Absorbed: kv_b moves to the query and output
side, so that all heads attend to the latent itself: FLOP per pair 2H(2c + dr), but c + dr elements read per token.

>>> from costmodel.step import Precision, Step
>>> d = Dims(H=128, q_l=1536, c=512, dn=128, dr=64, dv=128)
>>> [k.work.flops for k in kernels(d, 7168, Step(B=1, S=1, P=0), Precision()) if "mla" in k.family]
[81920]
>>> [k.work.flops for k in kernels(d, 7168, Step(B=1, S=1, P=0, phase="decode"), Precision()) if "mla" in k.family]
[278528]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from costmodel.algebra import Quantity, ceil_div, maximum, minimum
from costmodel.dims import choice, dim, flag
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.mla_decode import mla_decode
from costmodel.kernels.mla_prefill import mla_prefill
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Claim, Order
from costmodel.step import Precision, Step

NAME = "mla"
ALIASES = ("multi-head-latent-attention", "latent-attention")
TITLE = "Multi-head latent attention"
SUMMARY = "one cached latent for all heads; expanded for many queries, absorbed for few"
SOURCES = (
    "arXiv:2405.04434, section 2.1 (DeepSeek-V2)",
    "arXiv:2412.19437, section 2.1.1 (DeepSeek-V3)",
    "deepseek-ai/FlashMLA, README (fp8 layout of the cache)",
)
TENSOR_PARALLEL = (
    "by heads; the latents, their matrices and the cache are on every device: vllm-project/vllm, models/deepseek_v2.py"
)
CACHE_SPLITS = True
ORDER = Order(prefill_flops=2, decode_flops=1, decode_bytes=1, cache=1)
CLAIM = Claim("O(L²)", "O(L)", "arXiv:2405.04434, section 2.1 (claims a smaller cache, not another order)")


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a latent attention layer."""

    H: int = dim("heads", "query heads", split="heads")
    q_l: int | None = dim("q_lora", "width of the query latent; null: queries are projected directly", nullable=True)
    c: int = dim("kv_lora", "width of the cached latent")
    dn: int = dim("d_nope", "part of a query or key head without position")
    dr: int = dim("d_rope", "part of a query head that carries the position, and width of the shared position key")
    dv: int = dim("d_v", "width of a value head")
    rope: bool = flag("rope", "the d_rope part is rotated", True)
    gate: bool = flag("output_gate", "a sigmoid gate on the output with a projection of its own")
    form: str = choice("form", "the form that runs; auto: absorbed in decode", "auto", ("auto", "expanded", "absorbed"))
    scaled: ClassVar[bool] = False
    """Whether an fp8 cache keeps scales beside each latent, and its d_rope part in bf16."""


EXAMPLES = (
    Dims(H=4, q_l=12, c=16, dn=8, dr=4, dv=8),
    Dims(H=4, q_l=None, c=16, dn=8, dr=4, dv=8, rope=False, gate=True),
    Dims(H=2, q_l=12, c=16, dn=8, dr=4, dv=6, form="expanded"),
    Dims(H=2, q_l=12, c=16, dn=8, dr=4, dv=6, form="absorbed"),
)


def check(d: Dims) -> list[str]:
    """The rotation pairs up the elements of d_rope."""
    return [f"d_rope {d.dr} is odd, but rotation takes pairs of elements"] if d.rope and d.dr % 2 else []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """W_DQ (absent without a query latent), W_DKV with W_KR, W_UQ with W_QR, W_UK with W_UV, gate, W_O.

    Both forms use the same weights of kv_b.
    """
    heads = d.H * (d.dn + d.dr)
    return (
        *(() if d.q_l is None else (Projection("q_a_proj", D, d.q_l),)),
        Projection("kv_a_proj", D, d.c + d.dr),
        Projection("q_proj", D, heads) if d.q_l is None else Projection("q_b_proj", d.q_l, heads),
        Projection("kv_b_proj", d.c, d.H * (d.dn + d.dv)),
        *((Projection("gate_proj", D, d.H * d.dv),) if d.gate else ()),
        Projection("o_proj", d.H * d.dv, D),
    )


def run_projections(d: Dims, D: Quantity, step: Step, precision: Precision, *names: str) -> list[Kernel]:
    """The kernels of the named projections, those that the layer has."""
    return [projection(p, step, precision) for p in projections(d, D) if p.name in names]


def extra_parameters(d: Dims, D: Quantity) -> Quantity:
    """Scales of the norms on the query and key-value latents."""
    return d.c if d.q_l is None else d.q_l + d.c


def latent_bytes(d: Dims, precision: Precision) -> Quantity:
    """Bytes of one cached token: c + dr elements; where fp8 is `scaled`, an fp32 scale per 128, and dr in bf16.

    Kernels over all tokens take one scale for the whole cache, those over selected ones FlashMLA's layout with scales.

    Source: vllm-project/vllm, vllm/v1/attention/backends/mla/flashmla_sparse.py (`get_kv_cache_shape`); FlashMLA.

    >>> latent_bytes(Dims(H=1, q_l=1, c=512, dn=1, dr=64, dv=1), Precision(kv="fp8"))
    576
    """
    if precision.kv == "fp8" and d.scaled:
        return d.c + 4 * ceil_div(d.c, 128) + 2 * d.dr
    return (d.c + d.dr) * precision.kv_bytes


def cache(d: Dims, precision: Precision) -> Cache:
    """The latent and the position key of every token, once for all heads."""
    return Cache(per_token=latent_bytes(d, precision))


def absorbs(d: Dims, step: Step) -> bool:
    """Whether kv_b is applied to queries and outputs instead of keys and values."""
    return d.form == "absorbed" or (d.form == "auto" and step.decoding)


def into_latents(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """Down projections in one product, norms, queries of all heads, rotation and the cache write."""
    e, n, normed = precision.hidden_bytes, step.tokens, extra_parameters(d, D)
    norms = elementwise("latent norms", read=n * normed * e, written=n * normed * e, vector=4 * n * normed)
    return [
        down_projection(d, D, step, precision),
        norms._replace(launches=1 if d.q_l is None else 2),
        *run_projections(d, D, step, precision, "q_proj", "q_b_proj"),
        cache_write(d, step, precision),
    ]


def cache_write(d: Dims, step: Step, precision: Precision) -> Kernel:
    """The rotation of the d_rope parts, and the write of the new latents."""
    e, n = precision.hidden_bytes, step.tokens
    rotated = n * (d.H + 1) * d.dr if d.rope else 0
    write = elementwise(
        "rope, cache write" if d.rope else "cache write",
        read=rotated * e + n * (d.c + d.dr) * e,
        written=rotated * e + n * latent_bytes(d, precision),
        vector=6 * rotated,
    )
    return write._replace(launches=2 if d.rope else 1)


def down_projection(d: Dims, D: Quantity, step: Step, precision: Precision) -> Kernel:
    """W_DQ beside W_DKV and W_KR: engines join them into one matrix, so that the hidden state is read once."""
    if d.q_l is None:
        return run_projections(d, D, step, precision, "kv_a_proj")[0]
    return projection(Projection("q_a_proj, kv_a_proj", D, d.q_l + d.c + d.dr), step, precision)


def absorbed(d: Dims, step: Step, precision: Precision, core: Kernel) -> list[Kernel]:
    """W_UK on the queries of each head, the core over latents, W_UV on its outputs: no token is expanded.

    The two batched products read the weights of kv_b, once in all. Between them the two parts of a query are joined.
    """
    into, out = Projection("absorb_k", d.dn, d.c, heads=d.H), Projection("absorb_v", d.c, d.dv, heads=d.H)
    position, whole = (step.tokens * d.H * width * precision.hidden_bytes for width in (d.dr, d.c + d.dr))
    join = elementwise("join queries", read=whole, written=whole)._replace(ideal=Work(read=position, written=position))
    return [projection(into, step, precision), join, core, projection(out, step, precision)]


def latent_core(d: Dims, step: Step, precision: Precision) -> Kernel:
    """All heads over the one latent per token: its c elements are the values as well."""
    a = Attention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        Hkv=1,
        dk=d.c + d.dr,
        dv=d.c,
        bidirectional=step.bidirectional,
        shared_kv=True,
        dtype=precision.attention,
        kv=precision.kv,
        row_bytes=latent_bytes(d, precision),
    )
    return _core(a, step)._replace(implementation="FlashMLA")


def expanded(d: Dims, step: Step, precision: Precision) -> list[Kernel]:
    """kv_b over the new tokens and, once more, over the cached prefix; then attention with H full heads.

    The re-expansion is 2·B·P·c·H(dn + dv) FLOP in every chunk of every layer. Keys and values are activations here:
    written by kv_b, read by the core, in the dtype of the hidden state.
    """
    kv_b = Projection("kv_b_proj", d.c, d.H * (d.dn + d.dv))
    again = kv_b._replace(name="kv_b_proj of the cached prefix")
    # Launched min(P, 1) times: without a prefix there is nothing to expand, and no product of zero rows to price.
    prefix = projection(again, step, precision, tokens=step.B * maximum(step.P, 1)).times(minimum(step.P, 1))
    core = expanded_core(d, step, precision)
    return [projection(kv_b, step, precision), prefix, assemble(d, step, precision), core]


def expanded_core(d: Dims, step: Step, precision: Precision, key_heads: Quantity | None = None) -> Kernel:
    """Every head with keys and values of its own, or in groups that share those of `key_heads`."""
    a = Attention(
        B=step.B,
        S=step.S,
        P=step.P,
        H=d.H,
        Hkv=d.H if key_heads is None else key_heads,
        dk=d.dn + d.dr,
        dv=d.dv,
        bidirectional=step.bidirectional,
        dtype=precision.attention,
        kv=precision.hidden,
    )
    return _core(a, step)


def assemble(d: Dims, step: Step, precision: Precision) -> Kernel:
    """The shared position key joins the keys of all heads.

    Needed are dr elements per key and head; executed is the concatenation that engines run over the whole keys, and
    the gathering of the cached prefix from its pages into 16 bit.
    """
    e, keys, cached = precision.hidden_bytes, step.B * step.L, step.B * step.P
    needed = Work(read=keys * d.dr * e, written=keys * d.H * d.dr * e)
    whole = elementwise(
        "assemble keys",
        read=keys * (d.H * d.dn + d.dr) * e + cached * latent_bytes(d, precision),
        written=keys * d.H * (d.dn + d.dr) * e + cached * (d.c + d.dr) * e,
    )
    return whole._replace(ideal=needed)


def _core(a: Attention, step: Step) -> Kernel:
    if step.decoding:
        return mla_decode("attention", a)
    return mla_prefill("attention", a)


def out_of_heads(d: Dims, D: Quantity, step: Step, precision: Precision) -> list[Kernel]:
    """The output gate, where there is one, and W_O."""
    elements, e = step.tokens * d.H * d.dv, precision.hidden_bytes
    written = elements * e
    gate = elementwise("output gate", read=2 * written, written=written, vector=2 * elements, special=elements)
    return [
        *run_projections(d, D, step, precision, "gate_proj"),
        *([gate] if d.gate else []),
        *run_projections(d, D, step, precision, "o_proj"),
    ]


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One layer: into latents, attention in one of the two forms, out of the heads."""
    if absorbs(d, step):
        core = absorbed(d, step, precision, latent_core(d, step, precision))
    else:
        core = expanded(d, step, precision)
    return [*into_latents(d, D, step, precision), *core, *out_of_heads(d, D, step, precision)]
