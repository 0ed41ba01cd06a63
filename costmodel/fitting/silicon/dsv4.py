"""DeepSeek-V4 attention blocks: `dsv4_csa_*_module` and `dsv4_hca_*_module`, of the Flash and the Pro model.

Rows hold everything from the query projection to the grouped output projection on one rank of `tp_size`: num_heads are
the rank's own, the latent projections, the compressors and the indexer are replicated. The cache is fp8. A chunk of one
token runs vLLM's decode kernels, so it is a decode step there. Index scores are random or constant, not peaked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas

from costmodel.algebra import maximum, minimum, where
from costmodel.architecture import Architecture
from costmodel.fitting.series import Floats, Part, Series, by_columns
from costmodel.fitting.silicon import Read, Table, by_phase, dtype_names, require, series
from costmodel.kernels.base import Grid, Kernel, replayed
from costmodel.kernels.elementwise import elementwise
from costmodel.model_file import load_architecture
from costmodel.step import Phase, Precision, Step

MODELS = ("deepseek-v4-flash", "deepseek-v4-pro")
WEIGHTS = {"bfloat16": "bf16", "fp8_block": "fp8_block"}
COLUMNS = ("model", "gemm_type", "num_heads", "tp_size", "batch_size", "isl", "step", "kernel_source", "latency")
SHAPE = ("batch_size", "isl", "step", "num_heads", "d_model")
RATIO = 4
FULL_BIN, SPREAD = 2048, 32768
INSTRUCTIONS = 7
"""Of one comparison of two scores: loads, compares, and what becomes of the winner's place."""
TUNED = ("elementwise", "gemm", "indexer", "top-k")


def precision(weights: str) -> Precision:
    """Formats of a row: only the mixer's matrices are narrow, and the cache."""
    return Precision(weights, {"default": "bf16", "mixer": weights}, kv="fp8")


def kernels(
    architecture: Architecture, mixer: str, heads: Floats, step: Step, formats: Precision
) -> tuple[Kernel, ...]:
    """The kernels of one rank that has so many of the heads, and their share of the output groups."""
    block = architecture.mixers[mixer]
    dims = block.dims
    local = replace(dims, H=heads, g=maximum(dims.g * heads / dims.H, 1))
    return tuple(block.module.kernels(local, architecture.D, step, formats))


def ties(library: str, step: Step, k: int) -> tuple[Kernel, ...]:
    """What the benchmark's equal scores cost beside the top-k, as clear winners do not: the sorting of one full bin.

    vLLM's prefill kernel ranks up to 2,048 candidates of a bin by comparing each with each, in strides of its 512
    threads (csrc/topk.cu). SGLang's decode kernel ranks up to 512 candidates above k among the 4,096 of a bin in one
    thread block, unless it spreads 32,768 and more over several.
    """
    if library == "vllm" and not step.decoding:
        first, last = (minimum(maximum(end / RATIO, k), FULL_BIN) for end in (step.P, step.L))
        rows = step.B * RATIO * (last - first)
        threads = 512.0
        # Σ n·⌈n/512⌉ over the candidates n of the queries between the two.
        steps = (last * last * last - first * first * first) / (3.0 * threads) + (last * last - first * first) / 4.0
        compared, resident = step.B * RATIO * threads * steps, 2
    elif library == "sglang" and step.decoding:
        candidates = step.L / RATIO
        more = where(candidates < SPREAD, minimum(maximum(candidates - k, 0), 512.0), 0)
        rows, compared, resident = step.B * minimum(more, 1), step.B * more * 4096.0, 1
    else:
        return ()
    kernel = elementwise("sorting of equal scores", read=0, written=0, vector=INSTRUCTIONS * compared)
    grid = Grid(blocks=maximum(rows, 1), occupancy=resident)
    return (kernel._replace(instance="ties", grid=grid, launches=minimum(rows, 1)),)


def _build(library: str, mixer: str, phase: Phase, formats: Precision) -> Any:
    models = {model.D: model for model in map(load_architecture, MODELS)}

    def run(fixed: Mapping[str, Any], s: Mapping[str, Floats]) -> tuple[Kernel, ...]:
        step = Step(B=s["batch_size"], S=s["isl"], P=s["step"], phase=phase)
        model = models[int(fixed["d_model"])]
        extra = ties(library, step, model.mixers[mixer].dims.k) if mixer == "csa" else ()
        return replayed((*kernels(model, mixer, s["num_heads"], step, formats), *extra))

    def build(shapes: pandas.DataFrame) -> list[Part]:
        return by_columns(shapes, ("d_model",), run)

    return build


def _reader(mixer: str, phase: Phase) -> Read:
    def read(table: Table) -> Iterator[Series]:
        require(table, COLUMNS)
        flash, pro = (load_architecture(name).D for name in MODELS)
        frame = table.frame.assign(d_model=table.frame["model"].str.contains("Pro").map({True: pro, False: flash}))
        for (weights, source), rows in frame.groupby(["gemm_type", "kernel_source"]):
            formats = precision(dtype_names(WEIGHTS, str(weights)))
            for run, some in by_phase(table, rows, phase):
                yield from series(
                    table,
                    some,
                    SHAPE,
                    _build(table.library, mixer, run, formats),
                    family=f"{mixer}-{run}",
                    kernel=str(source),
                    instance="hd512-fp8",
                    phase=run,
                    tokens="tokens",
                    mechanism=mixer,
                    tuned=TUNED if mixer == "csa" else ("elementwise", "gemm"),
                )

    return read


TABLES = {
    "dsv4_csa_context_module": _reader("csa", "prefill"),
    "dsv4_csa_generation_module": _reader("csa", "decode"),
    "dsv4_hca_context_module": _reader("hca", "prefill"),
    "dsv4_hca_generation_module": _reader("hca", "decode"),
}
