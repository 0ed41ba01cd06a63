"""Products: `gemm` (m × k) · (n × k)ᵀ with operands of 16, 8 and 4 bits, and `mla_bmm`, one product per head.

Input and output are bf16, so that rows with narrow activations hold their quantisation too, all but SmoothQuant's.
Benchmarks of `gemm` rotate over several copies of the weights, and SGLang's over as many of the activations; outputs
are one buffer. A library that multiplies by several kernels, each for some shapes, is one series, as a user sees it.

`mla_bmm` is what MLA absorbs in decode: queries to latents ([T, 128] · [128, 512] per head) and latents to values
([T, 512] · [512, 128]).
"""

from collections.abc import Iterator

import pandas

from costmodel.algebra import Quantity, ceil_div, maximum, minimum
from costmodel.dtypes import element_bytes, product_name
from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.fitting.silicon import Table, dtype_names, flag_plateau, require, series
from costmodel.kernels.base import replayed
from costmodel.kernels.gemm import Gemm, gemm

WEIGHTS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "sq": "int8",
    "int8_wo": "int8",
    "int4_wo": "int4",
}
WEIGHT_ONLY = ("int8_wo", "int4_wo")
"""Formats whose activations stay in 16 bit."""

QUANTISED_BEFORE = ("sq",)
"""Formats whose activations arrive narrow: TensorRT-LLM's SmoothQuant plugin takes rows that a kernel before it has
written in 8 bits. Source: NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/plugins/smoothQuantGemmPlugin."""

EAGER = (("vllm", "fp8_block"),)
"""Library and format of the rows that were launched one by one."""

NEAR_PLATEAU = 1.3
"""An eager row within this factor of the lightest tenth of its kernel's rows shows the host, not the device."""

SHAPE = ("m", "n", "k")


def copies(library: str, format: str, weight_bytes: Quantity, l2: float) -> Quantity:
    """How many sets of weights a benchmark rotates over.

    >>> copies("trtllm", "fp8", 20e6, 50e6), copies("vllm", "fp8_block", 20e6, 50e6)
    (3.0, 1)
    """
    if library == "trtllm":
        return minimum(maximum(ceil_div(l2, weight_bytes), 1.0), 5.0)
    return 1 if library == "vllm" and format in ("fp8_block", "nvfp4") else 6


def without_plateau(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Eager rows with those flagged that their kernel's host time hides; each kernel has a launcher of its own."""
    parts = []
    for _, same in rows.groupby("kernel_source"):
        kernel = same.copy()
        work = kernel["m"] * kernel["n"] * kernel["k"]
        light = kernel.loc[work <= work.quantile(0.1), "latency"].median()
        flag_plateau(kernel, NEAR_PLATEAU * light * 1e-3)
        parts.append(kernel)
    return pandas.concat(parts)


def read_gemm(table: Table) -> Iterator[Series]:
    """One series per format of the operands, under the name of the kernel with most rows."""
    require(table, ("gemm_dtype", "m", "n", "k", "latency", "kernel_source"))
    l2 = table.hardware.memory.l2.capacity or 0.0
    for label, rows in table.frame.groupby("gemm_dtype"):
        format = str(label)
        eager = (table.library, format) in EAGER
        rows = without_plateau(rows) if eager else rows
        weights = dtype_names(WEIGHTS, format)
        activations = "bf16" if format in WEIGHT_ONLY else weights
        source = activations if format in QUANTISED_BEFORE else "bf16"

        def build(
            shapes: pandas.DataFrame,
            format: str = format,
            weights: str = weights,
            activations: str = activations,
            source: str = source,
        ) -> list[Part]:
            s = arrays(shapes)
            shape = Gemm(m=s["m"], n=s["n"], k=s["k"], activations=activations, weights=weights, source=source)
            product = gemm("gemm", shape)
            matrix = s["n"] * s["k"] * element_bytes(weights)
            sets = copies(table.library, format, matrix, l2)
            return whole(shapes, replayed([product], sets, inputs=table.library == "sglang"))

        yield from series(
            table,
            rows,
            SHAPE,
            build,
            family="gemm",
            kernel=str(rows["kernel_source"].mode().iloc[0]),
            instance=product_name(activations, weights),
            phase="",
            tokens="m",
            eager=eager,
        )


HEAD, LATENT = 128, 512
"""Widths of the heads' queries without position and of their values, and of the latent, in every row of `mla_bmm`."""

BATCHED = ("num_tokens", "num_heads", "into_latent")


def batched_formats(dtype: str, source: str) -> tuple[str, str]:
    """Activations and weights of a batched product; some kernels widen fp8 weights, some scale them by blocks.

    >>> batched_formats("bfloat16", "torch_bmm"), batched_formats("fp8", "bmm_out_dequant_bf16")
    (('bf16', 'bf16'), ('bf16', 'fp8'))
    """
    weights = dtype_names(WEIGHTS, dtype)
    if weights != "fp8":
        return weights, weights
    if "dequant" in source:
        return "bf16", weights
    return ("fp8_block", "fp8_block") if "block" in source else (weights, weights)


def read_batched(table: Table) -> Iterator[Series]:
    """One series per kernel and format: both products of a head."""
    require(table, ("op_name", "bmm_dtype", "num_tokens", "num_heads", "latency", "kernel_source"))
    frame = table.frame.assign(into_latent=(table.frame["op_name"] == "mla_gen_pre") * 1.0)
    for (dtype, source), rows in frame.groupby(["bmm_dtype", "kernel_source"]):
        activations, weights = batched_formats(str(dtype), str(source))

        def build(shapes: pandas.DataFrame, activations: str = activations, weights: str = weights) -> list[Part]:
            s = arrays(shapes)
            n = HEAD + (LATENT - HEAD) * s["into_latent"]
            shape = Gemm(
                m=s["num_tokens"],
                n=n,
                k=HEAD + LATENT - n,
                batch=s["num_heads"],
                activations=activations,
                weights=weights,
            )
            return whole(shapes, replayed([gemm("bmm", shape)]))

        yield from series(
            table,
            rows,
            BATCHED,
            build,
            family="gemm",
            kernel=str(source),
            instance=f"batched-{product_name(activations, weights)}",
            phase="",
            tokens="num_tokens",
        )


TABLES = {"gemm": read_gemm, "mla_bmm": read_batched}
