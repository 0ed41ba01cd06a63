"""A formula fed whole numbers, arrays and symbols says the same, and behaves as a cost must."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import ffns, mixers, pairs
from costmodel.analysis.symbolic import Size, evaluate, symbolic_dims
from costmodel.dims import fields_by_name
from costmodel.kernels.attention import tile
from costmodel.step import PHASES, Precision, Step

D = 48
FIELDS = ("vector", "special", "read", "written", "weights", "l2")
MODULES = {name: mixers.mixer(name) for name in mixers.names()} | {name: ffns.ffn(name) for name in ffns.names()}
CASES = [(name, index) for name, module in MODULES.items() for index in range(len(module.EXAMPLES))]

# A narrower stride or a coarser compression needs less work: these may fall when they are widened.
COARSER = ("ratio", "stride", "compress", "pool", "block", "rate", "kernel_size", "lists", "bands")

few = settings(max_examples=12, deadline=None, derandomize=True)
many = settings(max_examples=150, deadline=None, derandomize=True)


def run_of(module: Any, d: Any, width: Any, step: Step) -> list[Any]:
    """The kernels of one layer, those of the backward pass included in training."""
    forward = list(module.kernels(d, width, step, Precision()))
    if step.phase != "train":
        return forward
    return forward + [
        gradient._replace(count=kernel.count) for kernel in forward for gradient in kernel.form.backward(kernel)
    ]


def quantities(module: Any, d: Any, width: Any, step: Step) -> dict[str, Any]:
    """Sums over the kernels of ideal and executed work, and the cache."""
    found: dict[str, Any] = {}
    for kernel in run_of(module, d, width, step):
        for kind in ("ideal", "executed"):
            work = getattr(kernel, kind)
            for name, value in {"tensor": sum(work.tensor.values()), **{f: getattr(work, f) for f in FIELDS}}.items():
                found[f"{kind} {name}"] = found.get(f"{kind} {name}", 0) + value * kernel.count
    if hasattr(module, "cache"):
        found["cache"] = step.B * module.cache(d, Precision()).bytes(step.L)
    return found


KINDS = (*PHASES, "denoise")
"""The phases, and a step whose tokens all see each other."""


def step_of(kind: Any, B: Any, S: Any, P: Any) -> Step:
    if kind == "denoise":
        return Step(B=B, S=S, P=P, bidirectional=True)
    return Step(B=B, S=S, P=0 if kind == "train" else P, phase=kind)


@pytest.mark.parametrize("phase", KINDS)
@pytest.mark.parametrize("name,index", CASES)
def test_arrays_read_like_numbers(name: str, index: int, phase: str) -> None:
    module = MODULES[name]
    d = module.EXAMPLES[index]
    generator = numpy.random.default_rng(7)
    B, S, P = (generator.integers(1, most, 8) for most in (9, 3000, 9000))
    swept = quantities(module, d, D, step_of(phase, *(values.astype(numpy.float64) for values in (B, S, P))))
    for i in range(len(B)):
        counted = quantities(module, d, D, step_of(phase, int(B[i]), int(S[i]), int(P[i])))
        for key, value in counted.items():
            assert numpy.broadcast_to(swept[key], B.shape)[i] == pytest.approx(value, rel=1e-9), key


@pytest.mark.parametrize("phase", KINDS)
@pytest.mark.parametrize("name,index", CASES)
def test_symbols_read_like_numbers(name: str, index: int, phase: str) -> None:
    module = MODULES[name]
    d = module.EXAMPLES[index]
    point = {"B": 3, "S": 147, "P": 0 if phase == "train" else 1234}
    read = quantities(
        module,
        symbolic_dims(module, d),
        Size("D", D),
        step_of(phase, *(Size(key, value) for key, value in point.items())),
    )
    counted = quantities(module, d, D, step_of(phase, **point))
    for key, value in counted.items():
        assert evaluate(read[key]) == pytest.approx(value, rel=1e-12), key


@pytest.mark.parametrize("phase", KINDS)
@pytest.mark.parametrize("name,index", CASES)
def test_kernels_do_at_least_what_the_formula_needs(name: str, index: int, phase: str) -> None:
    module = MODULES[name]
    for B, S, P in ((1, 1, 0), (1, 1, 700), (2, 33, 95), (1, 512, 0), (3, 700, 1500)):
        for kernel in run_of(module, module.EXAMPLES[index], D, step_of(phase, B, S, P)):
            needed, done = kernel.ideal, kernel.executed
            assert sum(done.tensor.values()) >= sum(needed.tensor.values()) * (1 - 1e-12), kernel.name
            for field in FIELDS:
                assert getattr(done, field) >= getattr(needed, field) * (1 - 1e-12), (kernel.name, field)


def larger(module: Any, d: Any) -> Iterator[tuple[str, Any]]:
    """The example with one dimension a step and a factor larger."""
    for name, item in fields_by_name(module.Dims).items():
        value = getattr(d, item.name)
        if item.metadata["kind"] != "dim" or value is None or any(word in name for word in COARSER):
            continue
        for changed in (value + 1, 2 * value):
            values = {other.name: getattr(d, other.name) for other in fields_by_name(module.Dims).values()}
            yield f"{name} = {changed}", module.Dims(**{**values, item.name: changed})


def needs(module: Any, d: Any, width: int, step: Step) -> tuple[float, float]:
    found = quantities(module, d, width, step)
    return found["ideal tensor"] + found["ideal vector"], found["ideal read"] + found["ideal written"]


@pytest.mark.parametrize("phase", KINDS)
@pytest.mark.parametrize("name,index", CASES)
def test_more_never_costs_less(name: str, index: int, phase: str) -> None:
    module = MODULES[name]
    d = module.EXAMPLES[index]
    for B, S, P in ((1, 1, 40), (2, 37, 64), (3, 130, 1)):
        base = needs(module, d, D, step_of(phase, B, S, P))
        grown = [
            ("batch", needs(module, d, D, step_of(phase, B + 1, S, P))),
            ("width", needs(module, d, D + 1, step_of(phase, B, S, P))),
        ]
        for S2, P2 in ((S + 1, P), (2 * S, P), (S, P + 1), (S, 2 * P)):
            grown.append((f"S = {S2}, P = {P2}", needs(module, d, D, step_of(phase, B, S2, P2))))
        grown += [(changed, needs(module, e, D, step_of(phase, B, S, P))) for changed, e in larger(module, d)]
        for changed, (flops, moved) in grown:
            assert flops >= base[0] * (1 - 1e-12), changed
            assert moved >= base[1] * (1 - 1e-12), changed


@pytest.mark.parametrize("name,index", [case for case in CASES if case[0] in mixers.names()])
def test_prefill_in_chunks_adds_up_to_the_whole(name: str, index: int) -> None:
    """Products of the mixing itself; boundaries fall on multiples of all sizes, where state kernels begin anew."""
    module = MODULES[name]
    d = module.EXAMPLES[index]
    sizes = [getattr(d, item.name) for item in fields_by_name(module.Dims).values() if item.metadata["kind"] == "dim"]
    period = math.lcm(64, *(size for size in sizes if size))

    def core(S: int, P: int) -> int:
        run = module.kernels(d, D, Step(B=2, S=S, P=P), Precision())
        own = (kernel for kernel in run if kernel.family not in ("gemm", "elementwise", "moe"))
        return sum(sum(kernel.ideal.tensor.values()) * kernel.count for kernel in own)

    whole = core(5 * period + 3, 0)
    if whole == 0:
        pytest.skip("no products on the matrix engines")
    assert core(2 * period, 0) + core(period, 2 * period) + core(2 * period + 3, 3 * period) == whole


def visible(rule: Callable[[int, int], int], P: int, S: int) -> int:
    """Pairs counted one query position at a time; `rule` says how many keys the query at a position sees."""
    return sum(rule(position, P + S) for position in range(P + 1, P + S + 1))


small = {"P": st.integers(0, 90), "S": st.integers(1, 70), "size": st.integers(1, 40)}


@many
@given(**small)
def test_pair_counts_equal_counting(P: int, S: int, size: int) -> None:
    assert pairs.causal(P, S) == visible(lambda position, L: position, P, S)
    assert pairs.bidirectional(P, S) == visible(lambda position, L: L, P, S)
    assert pairs.window(P, S, size) == visible(lambda position, L: min(position, size), P, S)
    assert pairs.top_k(P, S, size) == visible(lambda position, L: min(position, size), P, S)
    assert pairs.chunked(P, S, size) == visible(lambda position, L: (position - 1) % size + 1, P, S)
    assert pairs.compressed(P, S, size) == visible(lambda position, L: position // size, P, S)


TILES = sorted(
    {tile(width, dtype) for width in (64, 128, 192, 256, 576) for dtype in ("bf16", "fp8")} | {(2, 256), (4, 256)}
)
PERIODIC = [(rows, columns) for rows, columns in TILES if rows % columns in (0, math.gcd(rows, columns))]
"""Tiles whose sums are exact at every length; the others are exact over whole periods of the tiles."""

length = {"P": st.integers(0, 20_000), "S": st.integers(1, 6000)}
width = st.sampled_from([128, 512, 1024, 4096]) | st.integers(1, 9000)


def tiled_pairs(P: int, S: int, w: int | None, rows: int, columns: int) -> int:
    """Pairs of every tile that holds a visible one, one query tile at a time."""
    total = 0
    for first in range(0, S, rows):
        last_seen = P + min(S, first + rows) - 1
        first_seen = 0 if w is None else max(0, P + first - w + 1)
        total += rows * columns * (last_seen // columns - first_seen // columns + 1)
    return total


def test_most_tiles_have_exact_sums() -> None:
    assert {(64, 64), (128, 128), (192, 128), (2, 256), (4, 256)} <= set(PERIODIC)


@many
@given(tiles=st.sampled_from(PERIODIC), **length)
def test_causal_tiles_equal_counting(tiles: tuple[int, int], P: int, S: int) -> None:
    assert pairs.executed_causal(P, S, *tiles) == tiled_pairs(P, S, None, *tiles)


@many
@given(tiles=st.sampled_from(PERIODIC), w=width, **length)
def test_window_tiles_equal_counting(tiles: tuple[int, int], P: int, S: int, w: int) -> None:
    assert pairs.executed_window(P, S, w, *tiles) == tiled_pairs(P, S, w, *tiles)


@few
@given(tiles=st.sampled_from(TILES), past=st.integers(0, 20), new=st.integers(1, 20))
def test_causal_tiles_equal_counting_over_whole_periods(tiles: tuple[int, int], past: int, new: int) -> None:
    P, S = past * math.lcm(*tiles), new * math.lcm(*tiles)
    assert pairs.executed_causal(P, S, *tiles) == tiled_pairs(P, S, None, *tiles)


@many
@given(tiles=st.sampled_from(TILES), P=st.integers(0, 20_000), S=st.integers(2048, 8192), w=st.integers(512, 9000))
def test_tiles_are_close_to_counting_at_every_length(tiles: tuple[int, int], P: int, S: int, w: int) -> None:
    assert pairs.executed_causal(P, S, *tiles) == pytest.approx(tiled_pairs(P, S, None, *tiles), rel=0.01)
    assert pairs.executed_window(P, S, w, *tiles) == pytest.approx(tiled_pairs(P, S, w, *tiles), rel=0.015)
