"""Fused attention over many queries: `context_attention` (causal, also in windows) and `encoder_attention`.

`context_attention` times the append of the new keys and values to the paged cache and the attention kernel.
TensorRT-LLM's `torch_flow` also rotates, in the kernel that appends, so that a fit counts it there;
elsewhere rotation is not in the rows.
bfloat16 compute over an fp8 cache stays what the table calls it, although vLLM's FlashAttention-3 then multiplies in
fp8: whoever predicts asks by the same two dtypes.

Source: ai-dynamo/aiconfigurator, collector/{vllm,sglang,trtllm}/collect_attn.py.
"""

from collections.abc import Iterator

import pandas

from costmodel.fitting.series import Build, Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, dtype_names, require, series
from costmodel.kernels.attention import (
    IGNORING,
    MASKING,
    PREFILL,
    SKIPPING,
    Attention,
    attention,
    compiled,
    unrotated,
)
from costmodel.kernels.attention_walk import EXTEND, UNIFIED
from costmodel.kernels.base import Form, replayed

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "fp8_e4m3": "fp8"}
SHAPE = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "group")
ENCODER_SHAPE = ("batch_size", "isl", "num_heads", "head_dim")
"""Encoders have one key head per query head."""
COLUMNS = (*SHAPE[:-1], "kernel_source", "attn_dtype", "kv_cache_dtype", "latency")


ROTATES = ("trtllm",)
"""Libraries whose rows hold the rotation of queries."""
COMPILED = {"triton": EXTEND, "vllm_triton_attn": UNIFIED}
"""Kernels that Triton compiles, and whose tiles they have."""
MASKS = ("triton",)
"""Kernels that mask what lies outside a window instead of skipping it (SGLang, extend_attention.py)."""
IGNORES = ("flashinfer",)
"""Kernels that SGLang launches without a window over tokens that nothing is cached before (flashinfer_backend.py,
forward_extend: the ragged wrapper is handed none)."""
CHUNK = 8192
"""What SGLang's rows call a window of this size is the `attention_chunk_size` of Llama 4: a query sees its own chunk.
FlashAttention-3 runs chunks as sequences of their own; other backends do not know them."""
CHUNKS = ("fa3", *IGNORES)
"""Kernels whose rows of that size are chunks. Of the rest, which know windows, they are full attention."""


def context_build(base: Attention, form: Form) -> Build:
    """The kernel of causal rows."""

    def build(shapes: pandas.DataFrame) -> list[Part]:
        s = arrays(shapes)
        a = base._replace(B=s["batch_size"], S=s["isl"], H=s["num_heads"], Hkv=s["num_key_value_heads"])
        return whole(shapes, replayed([attention("attention", a, form=form)]))

    return build


def read_context(table: Table) -> Iterator[Series]:
    """One series per kernel, head width, window and pair of dtypes."""
    require(table, COLUMNS)
    frame = table.frame.assign(group=table.frame["num_heads"] // table.frame["num_key_value_heads"])
    if "window_size" not in frame:
        frame["window_size"] = 0
    keys = ["kernel_source", "attn_dtype", "kv_cache_dtype", "head_dim", "window_size"]
    for (source, computed, kv, width, window), rows in frame.groupby(keys):
        base = Attention(
            B=1,
            S=1,
            P=0,
            H=1,
            Hkv=1,
            dk=int(str(width)),
            dv=int(str(width)),
            dtype=dtype_names(DTYPES, str(computed)),
            kv=dtype_names(DTYPES, str(kv)),
        )
        base = masked(base, table.library, str(source), int(str(window)))
        form = bounded(table, form_of(base, str(source)), str(source))
        one = attention("attention", base, form=form)
        yield from series(
            table,
            rows,
            SHAPE,
            context_build(base, form),
            family=one.family,
            kernel=str(source),
            instance=one.instance,
            phase="prefill",
            tokens="isl",
        )


def masked(a: Attention, library: str, source: str, window: int) -> Attention:
    """The attention of rows that are labelled with a window of so many tokens, 0 for none.

    >>> base = Attention(B=1, S=1, P=0, H=1, Hkv=1, dk=128, dv=128)
    >>> [(a.w, a.c) for a in (masked(base, library, "fa3", 8192) for library in ("vllm", "sglang"))]
    [(8192, None), (None, 8192)]
    """
    if library == "sglang" and window == CHUNK:
        return a._replace(c=window) if source in CHUNKS else a
    return a._replace(w=window or None)


def form_of(a: Attention, source: str) -> Form:
    """The form of a kernel: whether it has a window or chunks, and what it does with what lies outside."""
    if a.w is None and a.c is None:
        return PREFILL
    return MASKING if source in MASKS else IGNORING if source in IGNORES else SKIPPING


def bounded(table: Table, form: Form, source: str) -> Form:
    """The form with the bounds that hold for a library's kernels, of which those of one name are fitted together, and
    with the tiles of those that Triton compiles."""
    form = compiled(form, table.library, COMPILED[source]) if source in COMPILED else form
    return form if table.library in ROTATES else unrotated(form)


def encoder_build(base: Attention, form: Form) -> Build:
    """The kernel of rows without a mask."""

    def build(shapes: pandas.DataFrame) -> list[Part]:
        s = arrays(shapes)
        a = base._replace(B=s["batch_size"], S=s["isl"], H=s["num_heads"], Hkv=s["num_heads"])
        return whole(shapes, replayed([attention("attention", a, form=form)]))

    return build


def read_encoder(table: Table) -> Iterator[Series]:
    """One series per kernel and head width: no mask, no cache."""
    require(table, (*ENCODER_SHAPE, "kernel_source", "attn_dtype", "latency"))
    for (source, computed, width), rows in table.frame.groupby(["kernel_source", "attn_dtype", "head_dim"]):
        dtype = dtype_names(DTYPES, str(computed))
        base = Attention(
            B=1, S=1, P=0, H=1, Hkv=1, dk=int(str(width)), dv=int(str(width)), bidirectional=True, dtype=dtype, kv=dtype
        )
        yield from series(
            table,
            rows,
            ENCODER_SHAPE,
            encoder_build(base, bounded(table, PREFILL, str(source))),
            family=PREFILL.family,
            kernel=str(source),
            instance=attention("attention", base).instance,
            phase="prefill",
            tokens="isl",
        )


TABLES = {"context_attention": read_context, "encoder_attention": read_encoder}
