"""The attention block of MiniMax-M3: `msa_context_module` and `msa_generation_module`.

Rows hold everything from the fused projection to o_proj; num_heads are one rank's own, with a key head and an index
head per 16 of them, at least one. A chunk of one token runs vLLM's decode kernels, so it is a decode step there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas

from costmodel.algebra import ceil_div
from costmodel.architecture import Architecture
from costmodel.fitting.series import Floats, Part, Series, by_columns
from costmodel.fitting.silicon import Read, Table, by_phase, dtype_names, flag, require, series
from costmodel.kernels.base import Kernel, replayed
from costmodel.kernels.elementwise import elementwise
from costmodel.mixers import msa
from costmodel.model_file import load_architecture
from costmodel.step import Phase, Precision, Step

MODEL = "minimax-m3"
WEIGHTS = {"bfloat16": "bf16", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
KV = {"bfloat16": "bf16", "fp8": "fp8"}
COLUMNS = ("gemm_type", "kv_cache_dtype", "num_heads", "batch_size", "isl", "step", "kernel_source", "latency")
SHAPE = ("batch_size", "isl", "step", "num_heads")
TUNED = ("elementwise", "gemm", "indexer", "top-k")
REFERENCE = "default"
"""What TensorRT-LLM calls the path without a kernel of its own: plain PyTorch operations, up to minutes."""
PLANNED = "msa_fmha_sm100"
"""A kernel that TensorRT-LLM's prefill plans on the host, one request at a time."""
PLATEAU = 1.2
"""Rows of an eager benchmark within so much of what a single token takes show the host."""


def precision(weights: str, kv: str) -> Precision:
    """Formats of a row; index keys and queries are bf16."""
    return Precision(weights, {"default": "bf16", "mixer": weights}, kv=kv)


def kernels(
    architecture: Architecture, heads: Floats, single: bool, step: Step, formats: Precision
) -> tuple[Kernel, ...]:
    """The kernels of one rank that has so many of the heads, of a single key head or of several."""
    block = architecture.mixers["msa"]
    keys = 1 if single else heads * block.dims.Hkv / block.dims.H
    local = replace(block.dims, H=heads, Hkv=keys, HI=keys)
    return tuple(block.module.kernels(local, architecture.D, step, formats))


def pool_copy(step: Step, d: msa.Dims, formats: Precision) -> Kernel:
    """What TensorRT-LLM's decode of one key head does beside its kernels: it copies the whole pool of index keys.

    The kernel takes them contiguous (`cache_view_to_msa_paged`). Pages of index keys are as large as those of a single
    key head, so that they lie between pages of keys and values; with more heads they have a pool of their own, and
    nothing is copied. The pool is as large as the benchmark makes it: twice what a step needs and two blocks more.

    Source: NVIDIA/TensorRT-LLM 1.3.0rc23, _torch/attention_backend/sparse/minimax_m3/msa_utils.py, and
    ai-dynamo/aiconfigurator, collector/trtllm/collect_msa_module.py (create_kv_cache_and_metadata).
    """
    pages = 2 * step.B * (ceil_div(step.L + 1, d.b) + 2)
    moved = pages * d.b * d.dI * formats.kv_bytes
    return elementwise("copy of the index keys", read=moved, written=moved, vector=0)._replace(instance="pool")


def _build(library: str, phase: Phase, formats: Precision) -> Any:
    architecture = load_architecture(MODEL)

    def run(fixed: Mapping[str, Any], s: Mapping[str, Floats]) -> tuple[Kernel, ...]:
        step = Step(B=s["batch_size"], S=s["isl"], P=s["step"], phase=phase)
        found = kernels(architecture, s["num_heads"], bool(fixed["single"]), step, formats)
        if library == "trtllm" and step.decoding and fixed["single"]:
            found = (*found, pool_copy(step, architecture.mixers["msa"].dims, formats))
        return replayed(found)

    def build(shapes: pandas.DataFrame) -> list[Part]:
        dims = architecture.mixers["msa"].dims
        return by_columns(shapes.assign(single=shapes["num_heads"] * dims.Hkv <= dims.H), ("single",), run)

    return build


def flag_defects(table: Table, rows: pandas.DataFrame, phase: str) -> None:
    """Mark rows that are no measurement of a kernel: PyTorch fallbacks, planning on the host, an eager plateau."""
    flag(rows, rows["kernel_source"] == REFERENCE, "reference path")
    if phase == "prefill":
        flag(rows, rows["kernel_source"] == PLANNED, "erratic: planned on the host")
        if table.library == "sglang":
            single = rows.loc[(rows["isl"] * rows["batch_size"] == 1) & (rows["step"] <= 4096), "latency"]
            flag(rows, rows["latency"] <= PLATEAU * single.median(), "host plateau")


def _reader(phase: Phase) -> Read:
    def read(table: Table) -> Iterator[Series]:
        require(table, COLUMNS)
        frame = table.frame.copy()
        flag_defects(table, frame, phase)
        for (weights, kv, source), rows in frame.groupby(["gemm_type", "kv_cache_dtype", "kernel_source"]):
            cache = dtype_names(KV, str(kv))
            formats = precision(dtype_names(WEIGHTS, str(weights)), cache)
            for run, some in by_phase(table, rows, phase):
                yield from series(
                    table,
                    some,
                    SHAPE,
                    _build(table.library, run, formats),
                    family=f"msa-{run}",
                    kernel=str(source),
                    instance="hd128",
                    phase=run,
                    tokens="tokens",
                    mechanism="msa",
                    tuned=TUNED,
                    eager=table.library == "sglang" and run == "prefill",
                )

    return read


TABLES = {"msa_context_module": _reader("prefill"), "msa_generation_module": _reader("decode")}
