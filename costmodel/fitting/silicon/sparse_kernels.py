"""Bare kernels of sparse attention: index scores, top-k, and attention to gathered rows.

`glm5_mqa_logits_module` (ragged) and `dsv4_paged_mqa_logits_module` (paged, 4 tokens to a key) score all visible
tokens; `glm5_topk_module` and `dsv4_csa_topk_calib` select; `glm5_dsa_attn_module` and `dsv4_hca_attn_module` attend.
Each holds one kernel at its native width: the heads that a rank keeps do not matter to it.

Source of the meanings: ai-dynamo/aiconfigurator, collector/sglang/glm5_dsa_sparse_modules.py and
deepseekv4_sparse_modules.py.
"""

from collections.abc import Iterator

import numpy
import pandas

from costmodel.algebra import floor_div, maximum, minimum
from costmodel.fitting.series import Build, Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, flag, require, series
from costmodel.kernels.base import Kernel, replayed
from costmodel.kernels.indexer import Indexer, indexer
from costmodel.kernels.sparse_attention import ROWS, SparseAttention, sparse_attention
from costmodel.kernels.top_k import Selection, top_k
from costmodel.pairs import capped_compressed, compressed

SHAPE = ("batch_size", "isl", "step")
NEEDED = (*SHAPE, "latency", "kernel_source")
GLM_HEADS, GLM_TOP_K, LATENT, LATENT_VALUE = 32, 2048, 576, 512
"""Index heads and top-k of GLM-5; width of a cached latent, and the part of it that is the value."""
V4_HEADS, V4_WIDTH, V4_ROW_BYTES, V4_WINDOW = 64, 512, 584, 128
"""Index heads of DeepSeek-V4; width and fp8 bytes of its rows, and its window."""

RANKING = "topk_transform_v2"
"""SGLang's kernel for one row per sequence, which ranks equal scores."""


def framed(table: Table) -> pandas.DataFrame:
    """The rows with the context after the step, by which extrapolation splits."""
    require(table, NEEDED)
    return table.frame.assign(context=table.frame["isl"] + table.frame["step"])


def by_source(table: Table, family: str, instance: str, build: Build) -> Iterator[Series]:
    """One series per name of the kernel."""
    for source, rows in framed(table).groupby("kernel_source"):
        yield from series(
            table,
            rows,
            SHAPE,
            build,
            family=family,
            kernel=str(source),
            instance=instance,
            phase="",
            tokens="context",
        )


def read_ragged_logits(table: Table) -> Iterator[Series]:
    """GLM-5's scores over the concatenated keys of all sequences."""

    def build(shapes: pandas.DataFrame) -> list[Part]:
        s = arrays(shapes)
        x = Indexer(B=s["batch_size"], S=s["isl"], P=s["step"], H=GLM_HEADS, d=128, k=GLM_TOP_K, packed=True, chunks=1)
        return whole(shapes, replayed([indexer("indexer", x)]))

    return by_source(table, "indexer", f"h{GLM_HEADS}-d128-fp8", build)


def read_paged_logits(table: Table) -> Iterator[Series]:
    """DeepSeek-V4's scores over keys in pages: every token is a row of its own, as long as what it sees."""

    def build(shapes: pandas.DataFrame) -> list[Part]:
        s = arrays(shapes)
        x = Indexer(B=s["batch_size"], S=s["isl"], P=s["step"], H=V4_HEADS, d=128, k=512, ratio=4, decoding=True)
        return whole(shapes, replayed([indexer("indexer", x)]))

    return by_source(table, "indexer", f"h{V4_HEADS}-d128-fp8", build)


def selection(shapes: pandas.DataFrame, k: int, ratio: int, ties: bool, ranked: bool = False) -> Kernel:
    """Query j of a sequence has ⌊j/ratio⌋ candidates, and chooses where these are more than k.

    ranked: the kernel ranks equal scores, where it meets them. Uncompressed keys lie side by side in prefill, and of
    one sequence alone for single queries.
    """
    s = arrays(shapes)
    B, S, P = s["batch_size"], s["isl"], s["step"]
    candidates = compressed(P, S, ratio)
    rows = minimum(S, maximum(P + S - (k + 1) * ratio + 1, 0))
    x = Selection(
        rows=B * S,
        logits=B * candidates,
        k=k,
        open_rows=B * rows,
        open_logits=B * (candidates - capped_compressed(P, S, ratio, k) + rows * k),
        ties=ties and not ranked,
        ranked=ties and ranked,
        width=numpy.where(S > 1, B * (P + S), P + S) if ratio == 1 else None,
    )
    return top_k("top-k", x)


def read_top_k(table: Table) -> Iterator[Series]:
    """Top-k of either model under equal scores ("flat") and with clear winners ("top_last"), as serving has them."""
    require(table, ("score_mode", "model"))
    frame = framed(table)
    v4 = table.name.startswith("dsv4")
    ratio = 4 if v4 else 1
    frame["k"] = frame["model"].str.contains("Pro").map({True: 1024, False: 512}) if v4 else GLM_TOP_K
    # Up to k candidates there is nothing to choose: the collector writes 0 without running the kernel.
    flag(frame, frame["context"] // ratio <= frame["k"], "zero by construction")
    frame["ties"] = frame["score_mode"].str.endswith("flat")
    for (ties, source, k), rows in frame.groupby(["ties", "kernel_source", "k"]):

        def build(
            shapes: pandas.DataFrame, k: int = int(str(k)), ties: bool = bool(ties), ranked: bool = source == RANKING
        ) -> list[Part]:
            return whole(shapes, replayed([selection(shapes, k, ratio, ties, ranked)]))

        yield from series(
            table,
            rows,
            SHAPE,
            build,
            family="top-k",
            kernel=f"{source}{' on ties' if ties else ''}",
            instance=f"k{k}{'-ties' if ties else ''}",
            phase="",
            tokens="context",
        )


def read_latent(table: Table) -> Iterator[Series]:
    """GLM-5's attention: 2,048 slots per query whatever the context is, and 128 heads where the kernel has no fewer."""
    heads = 128 if table.hardware.generation == "blackwell" else 64

    def build(shapes: pandas.DataFrame) -> list[Part]:
        s = arrays(shapes)
        context = s["isl"] + s["step"]
        x = SparseAttention(
            B=s["batch_size"],
            S=s["isl"],
            H=heads,
            dk=LATENT,
            dv=LATENT_VALUE,
            pairs=s["isl"] * minimum(context, GLM_TOP_K),
            slots=GLM_TOP_K,
            # The benchmark's indices are the first k of a sequence for all of its queries.
            entries=minimum(context, GLM_TOP_K),
            row_bytes=2 * LATENT,
        )
        return whole(shapes, replayed([sparse_attention("attention", x)]))

    return by_source(table, "sparse-attention", f"hd{LATENT}-bf16", build)


def compressed_kernel(shapes: pandas.DataFrame, decoding: bool) -> Kernel:
    """The window and the finished entries of each query."""
    s = arrays(shapes)
    context = s["isl"] + s["step"]
    near = minimum(context, V4_WINDOW)
    x = SparseAttention(
        B=s["batch_size"],
        S=s["isl"],
        H=s["num_heads"],
        dk=V4_WIDTH,
        dv=V4_WIDTH,
        pairs=s["isl"] * near + compressed(s["step"], s["isl"], 128),
        slots=V4_WINDOW + ROWS * compressed(s["step"] + (ROWS - 1) * 128, s["isl"], 128 * ROWS) / s["isl"],
        entries=near + floor_div(context, 128),
        row_bytes=V4_ROW_BYTES,
        quantised=True,
        decoding=decoding,
    )
    return sparse_attention("attention", x)


def read_compressed(table: Table) -> Iterator[Series]:
    """DeepSeek-V4's attention to its window and to one entry of every 128 tokens.

    vLLM runs its decode kernel for single tokens, and else first copies every sequence out of its pages.
    """
    require(table, ("num_heads",))
    vllm = table.library == "vllm"
    frame = framed(table).assign(decoding=vllm & (table.frame["isl"] == 1))
    for (source, decoding), rows in frame.groupby(["kernel_source", "decoding"]):

        def build(shapes: pandas.DataFrame, decoding: bool = bool(decoding)) -> list[Part]:
            return whole(shapes, replayed([compressed_kernel(shapes, decoding)]))

        yield from series(
            table,
            rows,
            (*SHAPE, "num_heads"),
            build,
            family="sparse-attention",
            kernel=str(source),
            instance=f"hd{V4_WIDTH}-fp8{'-split' if decoding else ''}",
            phase="",
            tokens="context",
        )


TABLES = {
    "glm5_mqa_logits_module": read_ragged_logits,
    "dsv4_paged_mqa_logits_module": read_paged_logits,
    "glm5_topk_module": read_top_k,
    "dsv4_csa_topk_calib": read_top_k,
    "glm5_dsa_attn_module": read_latent,
    "dsv4_hca_attn_module": read_compressed,
}
