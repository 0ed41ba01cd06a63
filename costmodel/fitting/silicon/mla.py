"""Latent attention in DeepSeek-V3's geometry: bare kernels and whole blocks.

`context_mla`, `generation_mla`: the core; which form runs, and what runs beside it, depends on the library's kernel.
`mla_context_module`, `mla_generation_module`, `wideep_context_mla`, `wideep_generation_mla`: the block from the down
projections to o_proj, without the norm before it and the residual. In generation tables `step` counts the tokens
cached before, except that vLLM's modules count the new one as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas

from costmodel.fitting.inside_modules import measured_elsewhere
from costmodel.fitting.series import Part, Series, arrays, by_columns, whole
from costmodel.fitting.silicon import Table, dtype_names, flag_outdone, flag_plateau, flag_spikes, require, series
from costmodel.kernels.base import Form, Kernel, replayed
from costmodel.kernels.key_splits import WITHOUT_XQA
from costmodel.kernels.mla_decode import (
    FLASH,
    FLASHINFER_GENERATED,
    GENERATED,
    ONE_BLOCK,
    SGLANG_TRITON_MLA,
    vllm_triton,
)
from costmodel.kernels.mla_prefill import NARROW, WIDE
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import mla
from costmodel.step import Phase, Precision, Step

GEMMS = {"bfloat16": "bf16", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "fp8": "fp8"}
CACHES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_e4m3": "fp8"}
WHOLE = "block"
"""The one instance of a module: its number formats share what belongs to all of them, such as the launches."""
HIDDEN = 7168
"""Width of DeepSeek-V3's residual stream."""
COLUMNS = ("batch_size", "isl", "step", "num_heads", "mla_dtype", "kv_cache_dtype", "kernel_source", "latency")
SHAPE = ("batch_size", "new_tokens", "cached", "num_heads")

EAGER = ("0.14.0",)
"""Versions of vLLM's collector that launch bare MLA kernels one by one, with the products around them."""
PLATEAU_S = 3.0e-4
"""Below this, such rows show how fast the host launches."""
NEAR_FASTEST = 1.4
"""Prefills of wide expert parallelism are launched one by one as well; rows this near the fastest show the host."""
UNORDERED = 1.3
"""A row so much slower than one with at least as much of everything was disturbed."""
GENERATED_BY = {
    ("trtllm", "default"): GENERATED,
    ("sglang", "trtllm_mla"): FLASHINFER_GENERATED,
    ("vllm", "FLASHINFER_MLA"): FLASHINFER_GENERATED,
}
"""Libraries' names of TensorRT-LLM's generated kernels for Blackwell, and their form by what launches them."""
INSIDE_ONLY = (("vllm", "FLASHINFER_MLA"),)
"""Those that a library has no table of but inside its module."""
ABSORBED = ("flash_attention", "triton")
"""SGLang's names of prefill kernels that attend to the latents themselves."""
SHORT = ("FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA", "FLASHINFER_MLA")
"""vLLM's decode kernels, which run short prefills as well: absorbed."""
SWITCH = {"vllm_flash_attn_mla": 512, "vllm_flashmla": 128, "vllm_triton_mla": 1}
"""vLLM 0.14's decode kernels run prefills of up to so many tokens, absorbed (`reorder_batch_threshold`)."""
EXPANDED, NAMED_AFTER = "vllm_flash_attn", ("vllm_flash_attn_mla", "vllm_flashmla")
"""The kernel of its longer prefills on Hopper, and the decode kernels that its tables name them after: they take the
same time.

Source: vllm-project/vllm, vllm/v1/attention/backends/mla/common.py (`flash_attn_varlen_func`)."""
GENERATED_PREFILL = (("trtllm", "default"), ("sglang", "trtllm_mla"), ("vllm", "TRTLLM_RAGGED"))
"""Libraries' names of TensorRT-LLM's generated prefill kernels for Blackwell, which multiply in 8 bits beside an 8-bit
cache.

Source: NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/common/attentionOp.cpp (`mFP8ContextMLA`)."""


def geometry(heads: Any, form: str = "auto") -> mla.Dims:
    """DeepSeek-V3 with so many heads on this device."""
    return mla.Dims(H=heads, q_l=1536, c=512, dn=128, dr=64, dv=128, form=form)


def precision_of(table: Table, kv: str, computed: str = "", gemm: str = "bfloat16") -> Precision:
    """The number formats of a row, as a prediction for the same formats takes them.

    computed: `mla_dtype` where the table tells kernels apart by it, else what multiplies follows from the cache.
    """
    cache, product = dtype_names(CACHES, kv), dtype_names(GEMMS, gemm)
    narrow = cache == "fp8" and table.hardware.has_engine("fp8") and computed != "bfloat16"
    return Precision(activations=product, weights={"default": product}, kv=cache, attention="fp8" if narrow else "bf16")


def step_of(s: Mapping[str, Any], phase: Phase) -> Step:
    """The step of some rows."""
    return Step(B=s["batch_size"], S=s["new_tokens"], P=s["cached"], phase=phase)


Kernels = Callable[[mla.Dims, Step, Precision], Sequence[Kernel]]


def block(d: mla.Dims, step: Step, precision: Precision) -> Sequence[Kernel]:
    """The whole block."""
    return mla.kernels(d, HIDDEN, step, precision)


def core(d: mla.Dims, step: Step, precision: Precision) -> Sequence[Kernel]:
    """The attention kernel alone."""
    if mla.absorbs(d, step):
        return [mla.latent_core(d, step, precision)]
    return [mla.expanded_core(d, step, precision)]


def core_with_rotation(d: mla.Dims, step: Step, precision: Precision) -> Sequence[Kernel]:
    """The core after the rotation of queries and keys and the write of the latent (TensorRT-LLM fuses these)."""
    return [mla.cache_write(d, step, precision)._replace(launches=1), *core(d, step, precision)]


def core_of_one_head(d: mla.Dims, step: Step, precision: Precision) -> Sequence[Kernel]:
    """The expanded kernel as SGLang benchmarks it on Blackwell: all heads read the keys of one."""
    return [mla.expanded_core(d, step, precision, key_heads=1)]


def core_with_products(d: mla.Dims, step: Step, precision: Precision) -> Sequence[Kernel]:
    """The core with kv_b before it, or with the absorbing products around it."""
    if mla.absorbs(d, step):
        return mla.absorbed(d, step, precision, mla.latent_core(d, step, precision))
    kv_b = Projection("kv_b_proj", d.c, d.H * (d.dn + d.dv))
    expanded = mla.expanded_core(d, step, precision)
    return [projection(kv_b, step, precision), mla.assemble(d, step, precision), expanded]


def read(table: Table, phase: Phase, module: bool) -> Iterator[Series]:
    """One series per kernel and number formats."""
    require(table, COLUMNS)
    frame = table.frame.assign(gemm_type=table.frame.get("gemm_type", "bfloat16"))
    decoding = phase == "decode"
    wide = table.name.startswith("wideep")
    if decoding:
        # Wide expert parallelism writes the history into isl.
        history = frame["isl"] + frame["step"] if wide else frame["step"]
        counted = module and table.library == "vllm"
        frame = frame.assign(new_tokens=1, cached=history - 1 if counted else history)
    else:
        frame = frame.assign(new_tokens=frame["isl"], cached=frame["step"])
    frame = frame.assign(length=frame["cached"] + frame["new_tokens"])
    served = wide and not decoding
    eager = served or (table.library == "vllm" and table.version in EAGER)
    for (source, computed, kv, gemm), rows in frame.groupby(
        ["kernel_source", "mla_dtype", "kv_cache_dtype", "gemm_type"]
    ):
        rows = rows.copy()
        if eager:
            flag_plateau(rows, NEAR_FASTEST * rows["latency"].min() * 1e-3 if served else PLATEAU_S)
            flag_outdone(rows, UNORDERED, ("batch_size", "length", "num_heads"))
        elif decoding:
            flag_spikes(rows, "cached", ("batch_size", "num_heads"))
        told = str(computed) if table.frame["mla_dtype"].nunique() > 1 else ""
        precision = precision_of(table, str(kv), told, str(gemm))
        form, run = chosen(table, str(source), phase, module)
        short = rows["new_tokens"] <= (SWITCH.get(str(source), 0) if phase == "prefill" else 0)
        for form_of_rows, some in (("absorbed", rows[short]), (form, rows[~short])):
            yield from series(
                table,
                some,
                SHAPE,
                builder(form_of_rows, ruled(run, form_of_kernel(table, str(source), phase, module)), phase, precision),
                family=f"mla-{phase}",
                kernel=EXPANDED
                if phase == "prefill" and str(source) in NAMED_AFTER and form_of_rows == form
                else str(source),
                instance=WHOLE
                if module
                else core(geometry(1, form_of_rows), Step(1, 1, 0, phase), precision)[0].instance,
                phase=phase,
                tokens="length",
                mechanism="mla" if module else "",
                tuned=("elementwise", "gemm") if module else (),
                eager=eager,
            )


def chosen(table: Table, source: str, phase: Phase, module: bool) -> tuple[str, Kernels]:
    """Which form a kernel runs, and what belongs to its rows."""
    if module:
        return "absorbed" if source in SHORT else "auto", block
    if table.library == "vllm":
        return "auto", core_with_products
    if phase == "prefill" and table.library == "sglang":
        return ("absorbed", core) if source in ABSORBED else ("expanded", core_of_one_head)
    return "auto", core_with_rotation if table.library == "trtllm" else core


def form_of_kernel(table: Table, source: str, phase: Phase, module: bool) -> Form | None:
    """The form with the rules of a kernel's source; None where fits choose.

    They are in how many bits a prefill multiplies, and how FlashMLA, vLLM's Triton kernel or TensorRT-LLM's generated
    ones split a decode's keys.
    """
    blackwell = table.hardware.generation in WITHOUT_XQA
    if phase == "prefill":
        if blackwell and (table.library, source) in GENERATED_PREFILL and not table.name.startswith("wideep"):
            return NARROW
        return WIDE if table.library == "vllm" and (source in ("FLASH_ATTN", *NAMED_AFTER)) else None
    if blackwell and (table.library, source) in GENERATED_BY:
        form = GENERATED_BY[table.library, source]
        return measured_elsewhere(form) if module and (table.library, source) in INSIDE_ONLY else form
    if table.hardware.generation == "hopper" and (table.library == "trtllm" or "flashmla" in source.lower()):
        # vLLM 0.14's times hold about twice the bytes of its 8-bit cache, as if it were widened beforehand.
        return ONE_BLOCK if table.library == "vllm" and table.version not in EAGER else FLASH
    if table.library == "vllm" and "triton" in source.lower():
        return vllm_triton(by_length=table.version not in EAGER)
    if table.library == "sglang" and source == "triton":
        return SGLANG_TRITON_MLA
    return None


def ruled(run: Kernels, form: Form | None) -> Kernels:
    """The same kernels, those of a form's family by that form."""
    if form is None:
        return run

    def kernels(d: mla.Dims, step: Step, precision: Precision) -> Sequence[Kernel]:
        return [one._replace(form=form) if one.family == form.family else one for one in run(d, step, precision)]

    return kernels


def builder(
    form: str, run: Kernels, phase: Phase, precision: Precision
) -> Callable[[pandas.DataFrame], Sequence[Part]]:
    """Rows of shapes to kernels, all sizes as arrays; only the tiles of an absorbed prefill depend on the heads."""

    def build(shapes: pandas.DataFrame) -> list[Part]:
        if form == "absorbed":
            return by_columns(
                shapes,
                ["num_heads"],
                lambda fixed, s: replayed(run(geometry(int(fixed["num_heads"]), form), step_of(s, phase), precision)),
            )
        s = arrays(shapes)
        return whole(shapes, replayed(run(geometry(s["num_heads"], form), step_of(s, phase), precision)))

    return build


TABLES = {
    "context_mla": lambda table: read(table, "prefill", False),
    "generation_mla": lambda table: read(table, "decode", False),
    "mla_context_module": lambda table: read(table, "prefill", True),
    "mla_generation_module": lambda table: read(table, "decode", True),
    "wideep_context_mla": lambda table: read(table, "prefill", True),
    "wideep_generation_mla": lambda table: read(table, "decode", True),
}
