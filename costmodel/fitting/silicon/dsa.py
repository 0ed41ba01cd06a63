"""DeepSeek sparse attention, whole blocks: `dsa_context_module` and `dsa_generation_module`.

Rows hold everything from the down projections to o_proj of DeepSeek-V3.2 or a GLM-5, for the heads of one rank. In
generation tables `step` counts the tokens cached before, except that vLLM counts the new one as well. Names of
SGLang's kernels tell the branch: dense below top-k, a selection of its own, or that of an earlier layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import pandas

from costmodel.algebra import minimum, where
from costmodel.fitting.series import Floats, Part, Series, by_columns
from costmodel.fitting.silicon import Read, Table, dtype_names, flag, flag_outdone, require, series
from costmodel.kernels.base import Kernel, replayed
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.indexer import indexer
from costmodel.kernels.sparse_attention import SparseAttention, sparse_attention
from costmodel.kernels.top_k import SERVED_SHARE, Selection, top_k
from costmodel.mixers import dsa
from costmodel.step import Phase, Precision, Step

GEMMS = {"bfloat16": "bf16", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
CACHES = {"bfloat16": "bf16", "fp8": "fp8"}
NARROW = ("trtllm", "FLASHINFER", "default")
"""Parts of the names of kernels that multiply in fp8 where the cache is fp8; the others widen its rows."""
COLUMNS = ("model", "batch_size", "isl", "step", "num_heads", "gemm_type", "kv_cache_dtype", "kernel_source", "latency")
SHAPE = ("batch_size", "new_tokens", "cached", "num_heads", "d_model")
TOP_K = 2048
FEW_HEADS = 32
"""Below so many heads vLLM runs FlashMLA's decode kernel on an fp8 cache in prefill too, else it widens the cache."""
MOST_ROWS = 65_535
"""Tokens of a batch, beyond which FlashInfer runs another kernel: a grid has no more blocks in its second dimension."""
HOST_FACTOR = 1.2
"""Rows of an eager benchmark up to so much slower than the fastest ones show the host."""
REPEATED = 1.05
"""By how much the host's own time varies from row to row."""
DISTURBED = 1.3
"""A row so much slower than one that has more work waited for something else."""
WIDE_TABLES = 131_072
"""Context from which SGLang's host builds the page tables of every sequence at the width of a longer model."""
REPLAYED = 65_536
"""Cached tokens beyond which SGLang's benchmark makes the metadata of each step within its time."""
METADATA, METADATA_OF_SEQUENCE = 14, 2
"""Launches that this takes, and those for each sequence, as rows of the same work on either side show."""
EAGER_FACTOR = 2.2
"""A doubled batch that costs so much more in the median of short rows is one that no graph was captured for."""


def geometry(d_model: int, heads: Any, **branch: Any) -> dsa.Dims:
    """DeepSeek-V3.2 (hidden 7168) or GLM-5 (6144) with so many heads on this device."""
    if d_model == 7168:
        return dsa.Dims(H=heads, q_l=1536, c=512, dn=128, dr=64, dv=128, HI=64, dI=128, k=TOP_K, **branch)
    return dsa.Dims(H=heads, q_l=2048, c=512, dn=192, dr=64, dv=256, HI=32, dI=128, k=TOP_K, **branch)


def precision(table: Table, source: str, gemm: str, kv: str) -> Precision:
    """The number formats of a row."""
    product, cache = dtype_names(GEMMS, gemm), dtype_names(CACHES, kv)
    narrow = cache == "fp8" and any(part in source for part in NARROW)
    return Precision(product, {"default": product}, kv=cache, attention="fp8" if narrow else "bf16")


def kernels(
    d: dsa.Dims, D: int, step: Step, formats: Precision, *, short: bool, every_slot: bool, ties: bool
) -> list[Kernel]:
    """The mixer's kernels, as a library runs them.

    short: no more tokens than top-k, where the indexer only stores its keys; every_slot: attention goes through all k
    slots even then; ties: constant inputs make the scores equal.
    """
    found = []
    for kernel in dsa.kernels(d, D, step, formats):
        if short and kernel.family in ("indexer", "top-k"):
            continue
        if every_slot and isinstance(kernel.shape, SparseAttention):
            kernel = sparse_attention(kernel.name, kernel.shape._replace(slots=d.k))
        if ties and kernel.family == "top-k":
            kernel = top_k(kernel.name, kernel.shape._replace(ties=True))
        found.append(kernel)
    return found


def of_one_forward(run: Sequence[Kernel], d: dsa.Dims, step: Step, memory: float, every_slot: bool) -> list[Kernel]:
    """A prefill's kernels as SGLang runs them on a device with so much memory, and as they were measured there.

    Queries are scored against the keys of all sequences side by side, in chunks where the logits outgrow their share of
    the memory. The cache was empty: all queries of a sequence select the same rows of it, so that time does not grow
    with the context where attention runs alone. The first queries of a prompt go through the rows that they see, where
    a kernel does not go through all slots (every_slot). Behind a long prefix each step also built the metadata of its
    forward pass, which takes launches for every sequence.

    Source: sgl-project/sglang, python/sglang/srt/layers/attention/dsa/dsa_indexer.py (`_get_topk_ragged`) and
    dsa_backend.py (`topk_transform`, `_cal_indexer_k_start_end`); ai-dynamo/aiconfigurator,
    collector/sglang/collect_mla_module.py (`use_module_eager_dsa_context`).
    """
    width = step.B * step.L
    chunks = Selection(step.tokens, 0, d.k, width=width, logits_share=SERVED_SHARE).chunks(memory).count
    found = []
    for kernel in run:
        if kernel.family == "top-k":
            kernel = top_k(kernel.name, kernel.shape._replace(logits_share=SERVED_SHARE))
        elif kernel.family == "indexer":
            kernel = indexer(kernel.name, kernel.shape._replace(chunks=chunks))
        elif isinstance(kernel.shape, SparseAttention):
            x = kernel.shape._replace(entries=minimum(kernel.shape.entries, d.k))
            kernel = sparse_attention(kernel.name, x if every_slot else x._replace(slots=x.pairs / x.S))
        found.append(kernel)
    metadata = elementwise("metadata of the forward pass", read=0, written=0)
    launches = where(step.P > REPLAYED, METADATA + METADATA_OF_SEQUENCE * step.B, 0)
    return [*found, metadata._replace(launches=launches)]


def goes_through_all(table: Table, source: str, formats: Precision) -> bool:
    """Whether attention goes through all k slots of a query that sees fewer tokens.

    FlashMLA's kernel for widened fp8 rows does, and SGLang's and TensorRT-LLM's calls of its bf16 kernel.
    """
    if "FLASHMLA" in source:
        return formats.kv == "fp8"
    return "flashmla" in source or (source == "default" and table.hardware.generation == "hopper")


def builder(table: Table, source: str, phase: Phase, formats: Precision) -> Any:
    """Rows to kernels: the model and the side of top-k are structure, everything else arrays."""
    branch: dict[str, Any] = {"runs": "skip" not in source}
    if "dense" in source:
        branch["form"] = "expanded"
    vllm = table.library == "vllm"
    every_slot = goes_through_all(table, source, formats)

    def run(fixed: Mapping[str, Any], s: Mapping[str, Floats]) -> tuple[Kernel, ...]:
        D = int(fixed["d_model"])
        d = geometry(D, s["num_heads"], **branch)
        step = Step(B=s["batch_size"], S=s["new_tokens"], P=s["cached"], phase=phase)
        short = bool(fixed["short"]) and not vllm
        found = kernels(d, D, step, formats, short=short, every_slot=every_slot, ties=vllm)
        if table.library == "sglang" and phase == "prefill":
            found = of_one_forward(found, d, step, table.hardware.memory.hbm.capacity, every_slot)
        return replayed(found)

    def build(shapes: pandas.DataFrame) -> list[Part]:
        short = shapes["cached"] + shapes["new_tokens"] <= TOP_K
        return by_columns(shapes.assign(short=short), ("d_model", "short"), run)

    return build


def flag_host(rows: pandas.DataFrame, classes: list["pandas.Series[Any]"]) -> None:
    """Mark the rows of an eager benchmark that are about as fast as the fastest of their class."""
    floor = rows.groupby(classes)["latency"].transform(lambda times: times.quantile(0.05))
    host = rows["latency"] <= HOST_FACTOR * floor
    flag(rows, host, "host plateau")
    flag(rows, slower_than_host(rows, host), "slower than a larger one on the host's plateau")


def slower_than_host(rows: pandas.DataFrame, host: "pandas.Series[bool]") -> "pandas.Series[bool]":
    """Which rows are slower than one with as much work or more that the host bound: their device was faster than that
    one took, so that they show another state of the host."""
    found = pandas.Series(False, index=rows.index)
    for _, same in rows.groupby(["num_heads", "d_model"], sort=False):
        shown = same[host[same.index]]
        larger = numpy.ones((len(same), len(shown)), dtype=bool)
        for name in ("batch_size", "new_tokens", "length"):
            larger &= numpy.less_equal.outer(same[name].to_numpy(), shown[name].to_numpy())
        bound = numpy.where(larger, shown["latency"].to_numpy(), numpy.inf).min(axis=1, initial=numpy.inf)
        found[same.index] = same["latency"].to_numpy() > REPEATED * bound
    return found


def flag_uncaptured(rows: pandas.DataFrame) -> None:
    """Mark the batches from the first one on that leaps: graphs are captured up to some batch, and not beyond."""
    medians = rows[rows["length"] <= 64].groupby("batch_size")["latency"].median()
    leaps = medians.index[(medians / medians.shift(1) > EAGER_FACTOR).to_numpy()]
    if len(leaps):
        flag(rows, rows["batch_size"] >= leaps.min(), "no graph captured for the batch")


def tuned(table: Table, dense: bool) -> tuple[str, ...]:
    """The families that a block's rows decide; SGLang's top-k was measured alone, with the scores of serving.

    On Blackwell, blocks run other products in narrow formats than those of the table `gemm`.
    """
    sglang = table.library == "sglang"
    products = ("gemm",) if table.hardware.generation == "blackwell" else ()
    if dense:
        return ("elementwise", "mla-prefill", *products)
    return ("indexer", "sparse-attention", "elementwise", *products, *(() if sglang else ("top-k",)))


def _reader(phase: Phase) -> Read:
    def read(table: Table) -> Iterator[Series]:
        require(table, COLUMNS)
        decoding, sglang = phase == "decode", table.library == "sglang"
        eager = table.library in ("vllm", "sglang") and not decoding
        frame = table.frame.assign(
            d_model=table.frame["model"].str.contains("DeepSeek").map({True: 7168, False: 6144}),
            new_tokens=1 if decoding else table.frame["isl"],
            cached=table.frame["step"] - 1 if decoding and table.library == "vllm" else table.frame["step"],
        )
        frame["length"] = frame["cached"] + frame["new_tokens"]
        frame["side"] = numpy.where(sglang & (frame["length"] <= TOP_K), " below top-k", "")
        frame.loc[frame["kernel_source"].str.contains("dense"), "side"] = ""
        mixed = (frame["kernel_source"] == "FLASHMLA_SPARSE") & (frame["kv_cache_dtype"] == "fp8") & (not decoding)
        frame.loc[mixed & (frame["num_heads"] < FEW_HEADS), "side"] = " as decode"
        many = frame["kernel_source"].str.contains("FLASHINFER") & (
            frame["batch_size"] * frame["new_tokens"] > MOST_ROWS
        )
        frame.loc[many, "side"] = " beyond 65,535 tokens"
        for (source, side, gemm, kv), rows in frame.groupby(["kernel_source", "side", "gemm_type", "kv_cache_dtype"]):
            rows = rows.copy()
            if eager:
                # Where the host's work grows with the batch, each batch has a floor of its own.
                wide = rows["batch_size"].where(sglang & (rows["length"] >= WIDE_TABLES), 0)
                flag_host(rows, [wide])
                flag_outdone(rows, DISTURBED, ("batch_size", "new_tokens", "length"), within=("num_heads",))
            if decoding and sglang:
                flag_uncaptured(rows)
            dense = "dense" in str(source)
            yield from series(
                table,
                rows,
                SHAPE,
                builder(table, str(source), phase, precision(table, str(source), str(gemm), str(kv))),
                family=f"dsa-{phase}",
                kernel=f"{source}{side}",
                # All formats and models together, each kernel of them with parameters of its own.
                instance="block",
                phase=phase,
                tokens="length",
                mechanism="dsa",
                tuned=tuned(table, dense),
                eager=eager,
            )

    return read


TABLES = {"dsa_context_module": _reader("prefill"), "dsa_generation_module": _reader("decode")}
