"""Mixtures of experts on one rank: `moe`, and the expert compute of wide expert parallelism (`wideep_*_moe`).

A row holds the whole of one rank's routed experts: top-k from given router scores, sorting or permutation, both grouped
products, activation, weighted sum. Router product, shared experts and communication are not in it. The benchmarks make
the routing themselves; how many rows and experts reach rank 0 is recomputed here the way they do it.

Source: ai-dynamo/aiconfigurator, collector/helper.py (balanced_logits, power_law_logits_v3),
collector/*/collect_moe.py.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy
import pandas

from costmodel.dtypes import product_name
from costmodel.ffns import moe
from costmodel.fitting.series import Floats, Part, Series, arrays
from costmodel.fitting.silicon import Table, dtype_names, flag, flag_outdone, flag_plateau, flag_spikes, require, series
from costmodel.kernels.base import replayed
from costmodel.step import Precision

DTYPES = {
    "bfloat16": "bf16/bf16",
    "float16": "fp16/fp16",
    "fp8": "fp8/fp8",
    "fp8_block": "fp8_block/fp8_block",
    "nvfp4": "nvfp4/nvfp4",
    "int4_wo": "bf16/int4",
    "w4a16_mxfp4": "bf16/mxfp4",
    "w4a8_mxfp4_mxfp8": "fp8/mxfp4",
}
"""Activations and weights by the table's name of both."""

SHAPE = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
DRAWS = 8
"""Draws of a power law over which loads are averaged."""

OLD = frozenset({("vllm", "0.14.0"), ("sglang", "0.5.10"), ("trtllm", "1.0.0")})
"""Collections before non-gated experts were run as such."""


class Loads(NamedTuple):
    """What reaches rank 0: (token, expert) pairs, experts with at least one, and tokens with at least one."""

    pairs: float
    active: float
    tokens: float


@functools.cache
def loads(alpha: float, tokens: int, experts: int, topk: int, ranks: int) -> Loads:
    """The loads of rank 0; alpha is the exponent of the power law, 0 for even loads.

    >>> loads(0.0, 64, 8, 2, 1)
    Loads(pairs=128.0, active=8.0, tokens=64.0)
    >>> hot = loads(1.2, 64, 8, 2, 4)
    >>> hot.pairs > 128 / 4, hot.active <= 2
    (True, True)
    """
    if alpha == 0.0:
        return _of_rank_0(_even(tokens, experts, topk)[None, :], tokens, topk, ranks)
    return _of_rank_0(_power_law(alpha, tokens, experts, topk, ranks), tokens, topk, ranks)


def _of_rank_0(counts: Floats, tokens: int, topk: int, ranks: int) -> Loads:
    local = counts[:, : counts.shape[1] // ranks]
    pairs = float(local.sum(axis=1).mean())
    # Experts are handed out one after another, so that those of a rank meet few tokens twice.
    hit = float(numpy.minimum(local.sum(axis=1), tokens).mean())
    return (
        Loads(pairs, max(1.0, float((local > 0).sum(axis=1).mean())), max(1.0, hit)) if pairs else Loads(1.0, 1.0, 1.0)
    )


def _even(tokens: int, experts: int, topk: int) -> Floats:
    """Tokens per expert when token t takes the experts t, t + stride, t + 2·stride, … ."""
    stride = math.ceil(experts / topk)
    starts = numpy.arange(topk) * stride
    if tokens < stride:
        chosen = (numpy.arange(tokens)[:, None] * stride / tokens + starts).astype(int) % experts
        return numpy.bincount(chosen.ravel(), minlength=experts).astype(float)
    counts = numpy.full(experts, float(topk * (tokens // experts)))
    for start in starts:
        numpy.add.at(counts, (start + numpy.arange(tokens % experts)) % experts, 1.0)
    return counts


def _power_law(alpha: float, tokens: int, experts: int, topk: int, ranks: int) -> Floats:
    """Draws of tokens per expert, the rank with the most first."""
    random = numpy.random.default_rng(0)
    low, high = (1.0, tokens * 0.8) if tokens * topk > experts else (0.01, 2.0)
    ends = low ** (1 - alpha), high ** (1 - alpha)
    sample = ((ends[1] - ends[0]) * random.random((DRAWS, experts)) + ends[0]) ** (1 / (1 - alpha))
    counts = numpy.round(sample / sample.sum(axis=1, keepdims=True) * tokens * topk)
    counts = numpy.minimum(counts, tokens).reshape(DRAWS * ranks, experts // ranks)
    missing = tokens * topk - counts.reshape(DRAWS, -1).sum(axis=1, keepdims=True)
    sign = numpy.where(missing >= 0, 1.0, -1.0)
    each = (numpy.abs(missing) + numpy.arange(ranks)[::-1]) // ranks
    sign, each = numpy.broadcast_to(sign, each.shape).reshape(-1, 1), each.reshape(-1)
    counts = numpy.clip(sign * _filled(sign * counts, each), 0.0, tokens).reshape(DRAWS, ranks, experts // ranks)
    hottest = counts.sum(axis=2).argmax(axis=1)
    order = (numpy.arange(ranks)[None, :] + hottest[:, None]) % ranks
    return numpy.take_along_axis(counts, order[:, :, None], axis=1).reshape(DRAWS, experts)


def _filled(counts: Floats, more: Floats) -> Floats:
    """Each row with `more` units added one at a time, always where there is least."""
    order = numpy.argsort(counts, axis=1, kind="stable")
    least = numpy.take_along_axis(counts, order, axis=1)
    below = numpy.arange(1, counts.shape[1] + 1)
    level = numpy.floor((numpy.cumsum(least, axis=1) + more[:, None]) / below)
    # The common level is that of the largest number of bins that all lie below it.
    reach = numpy.maximum((level >= least).sum(axis=1) - 1, 0)
    filled = numpy.maximum(least, numpy.take_along_axis(level, reach[:, None], axis=1))
    left = more - (filled - least).sum(axis=1)
    filled += below <= left[:, None]
    result = numpy.empty_like(counts)
    numpy.put_along_axis(result, order, filled, axis=1)
    return result


def gated(table: Table, shapes: pandas.DataFrame) -> "pandas.Series[bool]":
    """Whether the experts of each row have a gate: Nemotron 3's (22 of 512 experts, or 1856 wide) have none."""
    without = (shapes["topk"] == 22) | ((shapes["hidden_size"] == 2688) & (shapes["inter_size"] == 1856))
    return ~without | ((table.library, table.version) in OLD)


def flag_badly_tuned(rows: pandas.DataFrame, factor: float = 2.0) -> None:
    """Mark rows that take `factor` times as long as one with as many tokens or more on as few devices or fewer.

    Such rows say which tactic an autotuner or a table of configurations has picked, not what the kernel can do.
    """
    same = ("kernel_source", "moe_dtype", "distribution", "hidden_size", "inter_size", "topk", "num_experts")
    devices, reason = ("moe_tp_size", "moe_ep_size"), "slower than twice a row with more work"
    flag_outdone(rows, factor, ("num_tokens",), devices, same, reason)


def rank_parts(table: Table, precision: Precision, s: Mapping[str, Floats], routing: moe.Routing) -> list[Part]:
    """The parts of rows with a gate and without, each the routed experts of one rank."""
    frame = pandas.DataFrame({name: s[name] for name in ("topk", "hidden_size", "inter_size")})
    parts = []
    for has_gate, rows in gated(table, frame).groupby(gated(table, frame)).indices.items():
        sizes: dict[str, Any] = {"E": s["num_experts"][rows], "k": s["topk"][rows]}
        sizes["F"] = s["inter_size"][rows] / s["moe_tp_size"][rows]
        d = moe.Dims(**sizes, gated=bool(has_gate))
        picked: list[Any] = [value[rows] if isinstance(value, numpy.ndarray) else value for value in routing]
        here = moe.Routing(*picked)
        run = moe.routed_experts(d, s["hidden_size"][rows], here, precision)
        parts.append(Part(numpy.asarray(rows), replayed(run)))
    return parts


def loads_of(alpha: float, s: Mapping[str, Floats], ranks: Floats) -> tuple[Floats, Floats, Floats]:
    """Pairs, active experts and tokens of rank 0 of every row."""
    columns = (s["num_tokens"], s["num_experts"], s["topk"], ranks)
    found = [loads(alpha, *(int(value) for value in row)) for row in zip(*columns, strict=True)]
    pairs, active, hit = numpy.array(found, dtype=numpy.float64).reshape(-1, 3).T
    return pairs, active, hit


def read_moe(table: Table) -> Iterator[Series]:
    """One series per kernel, dtype and distribution of loads; all distributions share the kernel's instance."""
    require(table, ("moe_dtype", "distribution", "kernel_source", "latency", *SHAPE))
    flag_spikes(table.frame, "num_tokens", ["kernel_source", "moe_dtype", "distribution", *SHAPE[1:]])
    flag_badly_tuned(table.frame)
    for (source, dtype, distribution), rows in table.frame.groupby(["kernel_source", "moe_dtype", "distribution"]):
        precision = precision_of(str(dtype))
        alpha = exponent(str(distribution))

        def build(
            shapes: pandas.DataFrame, source: str = str(source), alpha: float = alpha, precision: Precision = precision
        ) -> list[Part]:
            s = arrays(shapes)
            ranks, tokens = s["moe_ep_size"], s["num_tokens"]
            pairs, active, hit = loads_of(alpha, s, ranks)
            passed: Floats | None = None
            idle: Floats | int = 0
            if "triton" in source or "marlin" in source:
                if (table.library, table.version) == ("sglang", "0.5.10"):
                    # Only tokens of rank 0 are given to the kernel, and their other choices all go to its first expert.
                    tokens = numpy.where(ranks > 1, hit, tokens)
                    pairs = tokens * s["topk"]
                else:
                    # Rows of experts elsewhere are not multiplied, but the passes run over all of them.
                    passed = tokens * s["topk"]
                    idle = loads_of(alpha, s, numpy.ones(len(shapes)))[1] * (1 - 1 / ranks)
            here = moe.Routing(tokens, s["num_experts"] / ranks, pairs / tokens, active, alpha == 0.0, passed, idle)
            return rank_parts(table, precision, s, here)

        yield from series(
            table,
            rows,
            SHAPE,
            build,
            family="moe",
            kernel=str(source),
            instance=product_name(precision.activations, precision.weight("experts")),
            phase="",
            tokens="num_tokens",
        )


def precision_of(dtype: str) -> Precision:
    """The formats that a table's name of a dtype stands for."""
    activations, weights = dtype_names(DTYPES, dtype).split("/")
    return Precision(activations=activations, weights={"default": weights})


def exponent(distribution: str) -> float:
    """The exponent of the power law, 0 for even loads.

    >>> exponent("balanced"), exponent("power_law_1.01_eplb")
    (0.0, 1.01)
    """
    return float(distribution.removeprefix("power_law_").removesuffix("_eplb")) if "power_law" in distribution else 0.0


def read_wideep(table: Table) -> Iterator[Series]:
    """TensorRT-LLM's experts after dispatch: rank 0 sees only its own tokens; `_eplb` evens the ranks out."""
    shape = (*SHAPE, "num_slots")
    require(table, ("moe_dtype", "distribution", "kernel_source", "latency", *shape))
    flag_spikes(table.frame, "num_tokens", ["kernel_source", "moe_dtype", "distribution", *shape[1:]])
    for (source, dtype, distribution), rows in table.frame.groupby(["kernel_source", "moe_dtype", "distribution"]):
        precision, alpha = precision_of(str(dtype)), exponent(str(distribution))
        evened = str(distribution).endswith("_eplb")

        def build(
            shapes: pandas.DataFrame, precision: Precision = precision, alpha: float = alpha, evened: bool = evened
        ) -> list[Part]:
            s = arrays(shapes)
            ranks = s["moe_ep_size"]
            slots = s["num_slots"] / ranks
            if evened:
                # Every rank gets its share of the pairs, over as many of its slots as experts are hit at all.
                pairs, active, _ = loads_of(alpha, s, numpy.ones(len(shapes)))
                pairs = numpy.maximum(pairs / ranks, 1.0)
                active = numpy.minimum(numpy.maximum(active / s["num_experts"] * slots, 1.0), pairs)
            else:
                pairs, active, _ = loads_of(alpha, s, ranks)
            tokens = numpy.minimum(s["num_tokens"], pairs)
            here = moe.Routing(tokens, slots, pairs / tokens, active)
            return rank_parts(table, precision, s, here)

        yield from series(
            table,
            rows,
            shape,
            build,
            family="moe",
            kernel=str(source),
            instance=product_name(precision.activations, precision.weight("experts")),
            phase="",
            tokens="num_tokens",
        )


DEEPGEMM_ROWS = 128
"""Rows to which DeepEP's normal mode fills up what an expert receives."""


def read_deepep_experts(table: Table) -> Iterator[Series]:
    """SGLang's experts between DeepEP's dispatch and combine.

    Prefill was launched one by one, between two waits of the host. Its power laws fill each expert up to whole tiles;
    its even loads do not, which the kernel needs, so that they are no work of it.
    """
    prefill = "context" in table.name
    require(table, ("moe_dtype", "distribution", "kernel_source", "latency", *SHAPE))
    if prefill:
        flag(table.frame, table.frame["distribution"] == "uniform", "rows not filled up to tiles")
        flag_plateau(table.frame, 1.15e-3 * float(table.frame["latency"].min()))
    for (source, dtype, distribution), rows in table.frame.groupby(["kernel_source", "moe_dtype", "distribution"]):
        precision, alpha = precision_of(str(dtype)), exponent(str(distribution))

        def build(shapes: pandas.DataFrame, precision: Precision = precision, alpha: float = alpha) -> list[Part]:
            s = arrays(shapes)
            ranks = s["moe_ep_size"]
            pairs, active, _ = loads_of(alpha, s, ranks)
            if prefill:
                pairs = pairs + active * (DEEPGEMM_ROWS - 1) / 2
            tokens = numpy.minimum(s["num_tokens"], pairs)
            here = moe.Routing(tokens, s["num_experts"] / ranks, pairs / tokens, active)
            return rank_parts(table, precision, s, here)

        yield from series(
            table,
            rows,
            SHAPE,
            build,
            family="moe",
            kernel=f"{source}-{'prefill' if prefill else 'decode'}",
            instance=product_name(precision.activations, precision.weight("experts")),
            phase="",
            tokens="num_tokens",
            eager=prefill,
        )


TABLES = {
    "moe": read_moe,
    "wideep_moe": read_wideep,
    "wideep_context_moe": read_deepep_experts,
    "wideep_generation_moe": read_deepep_experts,
}
