"""Mechanisms that fold chunks into states: log-linear attention (one per level), power attention (a large one)."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.level_scan import live_before, state_reads, triangular_products
from costmodel.mixers import gdn, gqa, log_linear, mamba2, power
from costmodel.step import Phase, Precision, Step

BF16 = Precision()
MODULES: dict[type, Any] = {module.Dims: module for module in (gdn, gqa, log_linear, mamba2, power)}
LEVELS = log_linear.Dims(Hk=1, Hv=80, dk=128, dv=64)  # the dimensions of Mamba2-2.7B
DELTA = log_linear.Dims(Hk=16, Hv=32, dk=128, dv=128, base="gdn")
POWER = power.Dims(H=24, Hkv=2, dk=128, dv=128)  # PowerCoder-3B


def run(d: Any, step: Step, D: Any = 2560) -> list[Kernel]:
    return list(MODULES[type(d)].kernels(d, D, step, BF16))


def prefill(S: int, P: int = 0, B: int = 1) -> Step:
    return Step(B=B, S=S, P=P)


def decode(L: int, B: int = 1, S: int = 1) -> Step:
    return Step(B=B, S=S, P=L - S, phase="decode")


def core(d: Any, step: Step) -> list[Kernel]:
    return [k for k in run(d, step) if k.family in ("chunk-scan", "recurrent-step", "decode-attention")]


def flops(kernels: list[Kernel]) -> Any:
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)


# Log-linear attention


def live(i: int, levels: int) -> int:
    """Set bits below the last level, and one for all that is older."""
    return (i % 2 ** (levels - 1)).bit_count() + (i >= 2 ** (levels - 1))


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_states_read_equal_counting(levels: int) -> None:
    for n in (0, 1, 5, 64, 77, 300):
        assert live_before(n, levels) == sum(live(i, levels) for i in range(n))
    for P, S, C in ((0, 100, 8), (37, 1, 8), (63, 130, 16), (5, 3, 4)):
        assert state_reads(P, S, C, levels) == sum(live(t // C, levels) for t in range(P, P + S))


def test_a_chunk_reads_half_of_the_levels_on_average() -> None:
    for bits in (3, 8, 11):
        assert live_before(2**bits, 12) == 2**bits * bits / 2  # ½·log₂n
    assert live_before(2**12, 12) - live_before(2**12 - 1, 12) == 12  # at most all of them


def test_product_of_triangles_counts_its_multiply_adds() -> None:
    def one(n: int) -> int:
        return sum(i - j + 1 for i in range(n) for j in range(i + 1))

    for n, C in ((64, 64), (100, 16), (7, 8)):
        assert triangular_products(n, C) == (n // C) * one(C) + one(n % C)


def test_prefill_of_fitting_length_adds_half_a_state_product_per_level() -> None:
    # 2·dk·dv per state read, ½·log₂(S/C) of them: dk·dv·log₂(S/C) per head and token.
    S = 64 * 2**8
    more = flops(core(LEVELS, prefill(S))) - flops(core(replace(LEVELS, M=1), prefill(S)))
    one = 2 * 128 * 64 * 80
    assert more == one * (S * 8 / 2 - (S - 64))  # a single level is read by every chunk but the first


def test_prefill_grows_as_l_log_l_where_levels_grow_with_the_context() -> None:
    def reads(bits: int) -> Any:
        return state_reads(0, 64 * 2**bits, 64, bits)

    for bits in (4, 8, 16):
        assert reads(bits) == 64 * 2**bits * bits / 2
    fixed = [state_reads(0, 64 * 2**bits, 64, 8) for bits in (20, 21)]
    assert fixed[1] / fixed[0] == pytest.approx(2, rel=1e-4)


def test_decode_reads_the_states_of_the_set_bits() -> None:
    state = 4 * 80 * 128 * 64

    def states(P: int) -> Any:
        (walk,) = [k for k in core(LEVELS, decode(P + 1)) if k.name == "chunk and level states"]
        (fresh,) = [k for k in core(LEVELS, decode(P % 64 + 1)) if k.name == "chunk and level states"]
        return (walk.ideal.read - fresh.ideal.read) / state

    assert [states(64 * i + 5) for i in (0, 1, 2, 3, 7, 85, 128, 255)] == [0, 1, 1, 2, 3, 4, 1, 8]
    mean = sum(states(64 * i + 5) for i in range(256)) / 256
    assert mean == 8 / 2  # ½·log₂(L/C)


def test_states_are_written_only_when_a_chunk_is_folded() -> None:
    def written(P: int) -> Any:
        return sum(k.ideal.written for k in core(LEVELS, decode(P + 1)))

    state = 4 * 80 * 128 * 64
    row = (128 + 80 * 64) * 2 + 4 * 80
    assert written(100) == 80 * 64 * 2 + row  # the output, and the token's row of the open chunk
    assert written(64 * 7 - 1) == 80 * 64 * 2 + row + 3 * state  # seven chunks: states of 1, 2 and 4


def test_cache_holds_a_state_per_level_and_the_open_chunk() -> None:
    def kept(d: log_linear.Dims) -> Any:
        return log_linear.cache(d, BF16).fixed

    assert kept(replace(LEVELS, M=9)) - kept(LEVELS) == 4 * 80 * 128 * 64
    alone = mamba2.cache(mamba2.Dims(H=80, p=64, N=128), BF16).fixed
    assert kept(LEVELS) == alone + 7 * 4 * 80 * 128 * 64 + 64 * ((128 + 80 * 64) * 2 + 4 * 80)


def test_levels_are_weighted_inside_chunks_too() -> None:
    assert log_linear.gates(LEVELS) == 7 + 8  # tokens 64 apart or less, and the states: 16,384 tokens in all
    own = sum(p.parameters for p in log_linear.projections(LEVELS, 2560))
    base = sum(p.parameters for p in mamba2.projections(mamba2.Dims(H=80, p=64, N=128), 2560))
    assert own - base == 2560 * 80 * 15


def test_one_level_is_mamba2() -> None:
    single, base = replace(LEVELS, M=1), mamba2.Dims(H=80, p=64, N=128, C=64)
    S = 64 * 20
    first_chunk = 2 * 64 * 128 * 64 * 80  # the base multiplies its empty state as well
    assert flops(core(base, prefill(S))) - flops(core(single, prefill(S))) == first_chunk
    assert flops(core(base, prefill(S))) == flops(core(single, prefill(S, P=640)))


def test_transitions_of_the_delta_rule_act_on_every_live_state() -> None:
    # Per folded chunk and live state w·M and kᵀ·(w·M), per token and live state the read: three times a decay's cost.
    S = 64 * 2**8
    more = flops(core(DELTA, prefill(S))) - flops(core(replace(DELTA, M=1), prefill(S)))
    assert more == 3 * 2 * 128 * 128 * 32 * (S * 8 / 2 - (S - 64))


def test_decoded_tokens_cost_what_their_rows_cost_in_prefill() -> None:
    for d in (LEVELS, DELTA):
        tokens = sum(flops(core(d, decode(L))) for L in range(1, 200))
        assert tokens == flops(core(d, prefill(199)))


def test_published_kernel_computes_whole_chunks_for_one_token() -> None:
    (walk,) = [k for k in core(LEVELS, decode(300)) if k.name == "chunk and level states"]
    (state,) = [k for k in core(LEVELS, decode(64 * 4)) if k.name == "chunk and level states"]
    assert walk.executed.tensor["bf16"] > 30 * walk.ideal.tensor["bf16"]
    assert state.executed.tensor["bf16"] >= state.ideal.tensor["bf16"]


# Power attention


def test_features_of_a_head_are_its_products_of_two_elements() -> None:
    assert power.features(replace(POWER, dk=64)) == 2080  # 64 · 65 / 2
    assert power.features(POWER) == 8256
    (fold,) = [k for k in core(POWER, prefill(4096)) if k.name == "fold into states"]
    assert sum(fold.executed.tensor.values()) / fold.ideal.flops == 9216 / 8256  # 16 × 16 blocks, the diagonal's whole


def test_state_of_a_key_head_has_4_26_mb() -> None:
    assert power.state_bytes(POWER) == 2 * 4 * 8256 * 129 == 2 * 4_260_096
    kept = power.cache(POWER, BF16)
    assert kept.bytes(10**6) == 2 * 4_260_096 + 1024 * 2 * 256 * 2  # and keys and values of an open chunk
    assert kept.bytes(10**6) == kept.bytes(1024)


def per_token(d: Any, L: int) -> float:
    """FLOPs of the core of a token at L, averaged over the chunk that begins there."""
    chunk = power.scan(d, prefill(1024, P=L), BF16) if isinstance(d, power.Dims) else core(d, prefill(1024, P=L))
    return float(flops(chunk) / 1024)


def softmax_per_token(H: int, Hkv: int, L: float) -> float:
    return 2 * H * L * (128 + 128)


@pytest.mark.parametrize(("Hkv", "crossover"), [(2, 4.47e3), (24, 8.26e3)])
def test_softmax_is_cheaper_up_to_half_the_features(Hkv: int, crossover: float) -> None:
    # 4·H·d·L = 2·D_φ·(d + 1)·(H + Hkv) + in-chunk pairs  →  L ≈ D_φ/2·(1 + Hkv/H) + C/2
    d = replace(POWER, Hkv=Hkv)
    L = 8256 / 2 * (1 + Hkv / 24) * 129 / 128 + 1025 / 2
    assert L - 1025 / 2 == pytest.approx(crossover, rel=0.01)
    assert per_token(d, 102_400) == pytest.approx(softmax_per_token(24, Hkv, L), rel=1e-9)


@pytest.mark.parametrize(("Hkv", "crossover"), [(2, 8.94e3), (24, 16.5e3)])
def test_whole_prefill_breaks_even_at_twice_that_length(Hkv: int, crossover: float) -> None:
    d = power.Dims(H=24, Hkv=Hkv, dk=128, dv=128, C=64)  # a short chunk, whose own pairs hardly count
    full = gqa.Dims(H=24, Hkv=Hkv, dk=128, dv=128)

    def softmax(S: int) -> Any:
        return flops([k for k in run(full, prefill(S)) if k.family == "prefill-attention"])

    S = next(S for S in range(1024, 40_000, 64) if flops(power.scan(d, prefill(S), BF16)) < softmax(S))
    assert S == pytest.approx(crossover, rel=0.02)


def test_below_the_switch_over_it_is_attention_with_a_cache() -> None:
    for step in (prefill(1000), decode(1000)):
        full = gqa.Dims(H=24, Hkv=2, dk=128, dv=128)
        attention = [k for k in run(full, step) if k.family in ("prefill-attention", "decode-attention")]
        assert flops(core(POWER, step)) == flops(attention)
        assert sum(k.ideal.read for k in core(POWER, step)) == attention[0].ideal.read


def test_fold_happens_once_per_chunk() -> None:
    def folding(L: int) -> Kernel:
        return next(k for k in core(POWER, decode(L)) if k.name == "fold into states")

    assert [folding(L).ideal.flops > 0 for L in (1023, 1024, 1025, 2047, 2048)] == [False, True, False, False, True]
    assert folding(2048).ideal.flops == 2 * 1024 * 2 * 8256 * 129
    assert (folding(2048).launches, folding(2000).launches) == (1, 0)
    assert folding(2048).ideal.written == power.state_bytes(POWER)
    mean = sum(flops(core(POWER, decode(L))) for L in range(4097, 5121)) / 1024
    assert mean == per_token(POWER, 4096)


def test_decode_reads_the_state_and_the_open_chunk() -> None:
    L = 1024 * 5 + 100
    read = sum(k.ideal.read for k in core(POWER, decode(L)))
    assert read == power.state_bytes(POWER) + 24 * 128 * 2 + 100 * 2 * 256 * 2


def test_cost_of_a_decoded_token_stops_growing() -> None:
    near, far = (flops(core(POWER, decode(1024 * n + 500))) for n in (2, 2000))
    assert near == far


# Readings


def numbers(work: Work) -> dict[str, Any]:
    plain = {name: value for name, value in work._asdict().items() if name != "tensor"}
    return plain | {f"tensor {dtype}": count for dtype, count in work.tensor.items()}


STEPS = [
    prefill(1),
    prefill(777, P=5001, B=2),
    prefill(3000),
    decode(3),
    decode(64),
    decode(9000, B=4, S=3),
    Step(1, 300, 0, phase="train"),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("d", [LEVELS, DELTA, POWER], ids=["mamba2", "gdn", "power"])
def test_executed_work_is_at_least_the_ideal(d: Any, step: Step) -> None:
    for kernel in run(d, step):
        backward = kernel.form.backward(kernel) if step.phase == "train" else ()
        for one in (kernel, *backward):
            ideal, executed = numbers(one.ideal), numbers(one.executed)
            assert all(executed[name] >= ideal[name] for name in ideal), (one.name, ideal, executed)


@pytest.mark.parametrize("d", [LEVELS, DELTA, POWER], ids=["mamba2", "gdn", "power"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_ints_arrays_and_symbols_read_the_same(d: Any, phase: Phase) -> None:
    numpy, symbolic = pytest.importorskip("numpy"), pytest.importorskip("costmodel.analysis.symbolic")
    points = [(1, 1, 31), (2, 3, 4000), (1, 513, 1999), (3, 4096, 128)]
    B, S, P = (numpy.array(column, dtype=float) for column in zip(*points, strict=True))
    swept = run(d, Step(B, S, P, phase=phase))
    B, S, P = (symbolic.Size(name, 7) for name in "BSP")
    explained = run(symbolic.symbolic_dims(MODULES[type(d)], d), Step(B, S, P, phase=phase))
    for index, point in enumerate(points):
        exact = run(d, Step(*point, phase=phase))
        at = dict(zip("BSP", point, strict=True))
        for one, many, symbols in zip(exact, swept, explained, strict=True):
            for reading in ("ideal", "executed"):
                expected = numbers(getattr(one, reading))
                array, formula = numbers(getattr(many, reading)), numbers(getattr(symbols, reading))
                for name, value in expected.items():
                    assert numpy.broadcast_to(array[name], len(points))[index] == pytest.approx(value, rel=1e-12)
                    assert symbolic.evaluate(formula[name], at) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("d", [LEVELS, DELTA, POWER], ids=["mamba2", "gdn", "power"])
def test_chunks_of_a_prefill_sum_to_the_whole_wherever_they_are_cut(d: Any) -> None:
    cuts = [0, 1, 63, 64, 700, 1024, 1025, 3000]
    parts = sum(flops(core(d, prefill(end - start, P=start))) for start, end in itertools.pairwise(cuts))
    assert parts == flops(core(d, prefill(3000)))


def test_impossible_dimensions_are_named() -> None:
    assert log_linear.check(LEVELS) == log_linear.check(DELTA) == power.check(POWER) == []
    assert log_linear.check(replace(LEVELS, C=48)) == ["chunk 48 is not a power of two"]
    assert log_linear.check(replace(DELTA, Hk=5)) == ["v_heads 32 is not a multiple of k_heads 5"]
    assert power.check(replace(POWER, Hkv=5)) == ["heads 24 is not a multiple of kv_heads 5"]
