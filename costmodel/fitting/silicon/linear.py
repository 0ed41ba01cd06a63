"""Linear attention and state-space models: `gdn`, `kda` and `mamba2`, one table with all kernels of a mechanism.

A row is one launch sequence of a mixer: its convolution, its chunked scan (q and k normed before), its decode step,
or a decode step that a library fused with the convolution and the gated norm. Each is the part of that name of what the
mixer's own `kernels` gives. Where the code of a fused scan is the same for every number of heads, its fit is for the
mechanism; Triton's is compiled and tuned for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas

from costmodel.fitting.series import Floats, Part, Series, by_columns
from costmodel.fitting.silicon import Table, flag, require, series
from costmodel.kernels.base import Kernel, Work, replayed
from costmodel.kernels.recurrent_step import SLICE, Recurrence
from costmodel.kernels.short_conv import ShortConv, short_conv
from costmodel.mixers import gdn, kda, mamba2
from costmodel.step import Precision, Step

WIDTH = 1024
"""A model width for the mixers; the projections that it sizes are not in these tables."""

CONVOLUTION, SCAN, STEP = ("short conv",), ("chunk scan",), ("recurrent step",)
"""The kernels of a mixer that a row holds."""
WHOLE_STEP = ("short conv", "recurrent step", "gated norm")

ONE_LAUNCH = ("chunk_gated_delta_rule_flashinfer", "flashkda_fwd")
"""Scans in hand-written kernels, the same for every number of heads."""
WITH_CONVOLUTION = ("fused_kda_decode", "kda_fused_decode", "fused_kda_decode_mtp_dspark")

WHOLE_HEADS = ("fused_kda_decode_mtp_dspark",)
"""Kernels of which one thread block steps a whole head and fills a unit."""

SKIPS_FIRST = "fused_recurrent_kda_packed_decode"
"""vLLM's kernel leaves out the sequence whose state lies in slot 0, its null block; the benchmark numbers from 0."""

VECTOR = 8
"""Tokens that the CUDA convolution loads at once; it has another kernel for lengths that they do not divide."""

Dims = Callable[[Mapping[str, Any]], Any]


def parts(mixer: Any, d: Any, step: Step, names: Sequence[str]) -> list[Kernel]:
    """The kernels of a mixer that bear these names."""
    return [kernel for kernel in mixer.kernels(d, WIDTH, step, Precision()) if kernel.name in names]


def as_one(kernels: Sequence[Kernel]) -> Kernel:
    """Several kernels in the launch of the recurrent step: their work adds up."""
    (step,) = (kernel for kernel in kernels if kernel.family == "recurrent-step")

    def total(works: Sequence[Work]) -> Work:
        return Work(
            vector=sum(work.vector for work in works),
            special=sum(work.special for work in works),
            read=sum(work.read for work in works),
            written=sum(work.written for work in works),
            weights=sum(work.weights for work in works),
        )

    return step._replace(
        ideal=total([kernel.ideal for kernel in kernels]),
        executed=total([kernel.executed for kernel in kernels]),
        instance=f"{step.instance}-fused",
    )


def read_in_half(step: Kernel) -> Kernel:
    """The recurrent step of a library that keeps states in bf16 and writes what it stepped in fp32."""
    r: Recurrence = step.shape
    less = r.B * r.H * r.dk * r.dv * 2
    ideal, executed = step.ideal, step.executed
    return step._replace(
        ideal=ideal._replace(read=ideal.read - less),
        executed=executed._replace(read=executed.read - less),
        shape=r._replace(in_place=False),
    )


def cuda_convolution(table: Table) -> bool:
    """Whether a table's convolution is causal-conv1d's in CUDA; Gated DeltaNet's is then that of the keys alone, and
    its state bf16."""
    return table.library == "trtllm" or (table.library == "sglang" and table.version.startswith("0.5.10"))


def read(table: Table, mixer: Any, dims: Dims, shape: Sequence[str], heads: Sequence[str]) -> Iterator[Series]:
    """One series per kernel, and per number of heads where a kernel is compiled for it."""
    cuda = cuda_convolution(table)
    require(table, (*shape, "phase", "kernel_source", "latency"))
    for (phase, source), rows in table.frame.groupby(["phase", "kernel_source"]):
        source, decoding = str(source), phase != "context"
        convolution = source.startswith("causal_conv1d")
        names = (
            CONVOLUTION if convolution else SCAN if not decoding else WHOLE_STEP if source in WITH_CONVOLUTION else STEP
        )
        if table.library == "vllm" and source == "causal_conv1d_fn_qkv3":
            flag(rows, rows["latency"] > 0, "host builds lists of chunks")
        skips = table.library == "vllm" and source == SKIPS_FIRST
        if skips:
            flag(rows, rows["batch_size"] == 1, "its only sequence is skipped")
        if cuda and convolution and not decoding:
            flag(rows, rows["seq_len"] % VECTOR != 0, "scalar loads")

        def kernels(
            fixed: Mapping[str, Any],
            s: Mapping[str, Floats],
            names: Sequence[str] = names,
            source: str = source,
            decoding: bool = decoding,
            skipped: int = int(skips),
        ) -> Sequence[Kernel]:
            new = fixed["seq_len"] if decoding else s["seq_len"]
            step = Step(B=s["batch_size"] - skipped, S=new, P=0, phase="decode" if decoding else "prefill")
            d = dims(fixed)
            if cuda and names == SCAN:
                d = replace(d, state_dtype="bf16")
            run = parts(mixer, d, step, names)
            if names == CONVOLUTION and cuda and mixer is gdn:
                c = ShortConv(step.B, step.S, d.Hk * d.dk, d.conv, Precision().hidden_bytes)
                run = [short_conv("short conv", c, update=decoding)]
            if names == STEP and cuda:
                run = [read_in_half(kernel) for kernel in run]
            if names == WHOLE_STEP:
                run = [as_one(run)]
            if decoding and new > 1 and table.library == "sglang" and run[0].family == "recurrent-step":
                # The states after each draft token go to buffers of their own.
                run = [kernel._replace(shape=kernel.shape._replace(in_place=False)) for kernel in run]
            if source in ONE_LAUNCH:
                run = [kernel._replace(instance="") for kernel in run]
            return replayed(run)

        apart = list(heads) if names == SCAN and source not in ONE_LAUNCH else []
        for _, same in rows.groupby(apart) if apart else [((), rows)]:
            fixed = [name for name in shape if name != "batch_size" and (decoding or name != "seq_len")]

            def build(
                shapes: pandas.DataFrame, fixed: Sequence[str] = fixed, kernels: Callable[..., Any] = kernels
            ) -> list[Part]:
                return by_columns(shapes, fixed, kernels)

            for block in (False, True) if decoding else (False,):
                some = same[(same["seq_len"] > 1) == block] if decoding else same
                if some.empty:
                    continue
                first = build(some[list(shape)].astype(float).iloc[:1])[0].kernels[-1]
                slices = first.shape.dv // SLICE if source in WHOLE_HEADS else 0
                for one in series(
                    table,
                    some,
                    shape,
                    build,
                    family=first.family,
                    kernel=source,
                    instance=first.instance,
                    phase="decode" if decoding else "prefill",
                    tokens="seq_len",
                    mechanism=mixer.NAME if names == SCAN else "",
                ):
                    yield one._replace(occupancy=slices)


def read_gdn(table: Table) -> Iterator[Series]:
    """Gated DeltaNet."""

    def dims(s: Mapping[str, Any]) -> gdn.Dims:
        return gdn.Dims(
            Hk=int(s["num_k_heads"]), Hv=int(s["num_v_heads"]), dk=int(s["head_k_dim"]), dv=int(s["head_v_dim"])
        )

    shape = ("batch_size", "seq_len", "num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim")
    return read(table, gdn, dims, shape, ("num_k_heads", "num_v_heads"))


def read_kda(table: Table) -> Iterator[Series]:
    """Kimi Delta Attention."""

    def dims(s: Mapping[str, Any]) -> kda.Dims:
        return kda.Dims(H=int(s["num_v_heads"]), dk=int(s["head_k_dim"]), dv=int(s["head_v_dim"]), r=128)

    return read(
        table, kda, dims, ("batch_size", "seq_len", "num_v_heads", "head_k_dim", "head_v_dim"), ("num_v_heads",)
    )


def read_mamba2(table: Table) -> Iterator[Series]:
    """Mamba-2."""

    def dims(s: Mapping[str, Any]) -> mamba2.Dims:
        return mamba2.Dims(
            H=int(s["nheads"]),
            p=int(s["head_dim"]),
            N=int(s["d_state"]),
            G=int(s["n_groups"]),
            C=int(s["chunk_size"]),
            state_dtype="bf16",
        )

    shape = ("batch_size", "seq_len", "nheads", "head_dim", "n_groups", "d_state", "chunk_size")
    return read(table, mamba2, dims, shape, ())


TABLES = {"gdn": read_gdn, "kda": read_kda, "mamba2": read_mamba2}
