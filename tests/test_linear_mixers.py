"""Linear recurrences with a matrix state: published sizes, exact FLOPs, traffic of the pipelines, the serial chain."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.base import Kernel, Work, replayed
from costmodel.kernels.chunk_scan import FORM, Pipeline, inverse_tiles, lower_tiles, substitution
from costmodel.mixers import gdn, gla, jet, kda, lightning, mamba2, retnet, rwkv7
from costmodel.step import Phase, Precision, Step

BF16 = Precision()
MODULES: dict[type, Any] = {module.Dims: module for module in (gdn, kda, mamba2, rwkv7)}
QWEN = gdn.Dims(Hk=16, Hv=64, dk=128, dv=128)  # Qwen3.5-397B-A17B
KIMI = kda.Dims(H=32, dk=128, dv=128, r=128, rg=128)  # Kimi-Linear-48B-A3B
MAMBA = mamba2.Dims(H=80, p=64, N=128)  # Mamba2-2.7B
RWKV = rwkv7.Dims(H=40, d=64, rw=96, ra=96, rv=64, rg=320)  # RWKV-7 2.9B
MODELS = [QWEN, KIMI, MAMBA, RWKV]
IDS = ["gdn", "kda", "mamba2", "rwkv7"]
every_model = pytest.mark.parametrize("d", MODELS, ids=IDS)


def run(d: Any, step: Step, D: Any = 2560) -> list[Kernel]:
    return list(MODULES[type(d)].kernels(d, D, step, BF16))


def prefill(S: Any, B: Any = 1, P: Any = 0) -> Step:
    return Step(B=B, S=S, P=P)


def decode(S: int = 1, B: int = 1, P: int = 100) -> Step:
    return Step(B=B, S=S, P=P, phase="decode")


def family(d: Any, step: Step, name: str) -> list[Kernel]:
    return [kernel for kernel in run(d, step) if kernel.family == name]


def scan(d: Any, step: Step) -> list[Kernel]:
    return family(d, step, "chunk-scan")


def launches(d: Any, step: Step) -> list[Kernel]:
    """The launches of a scan, of which gdn, kda and mamba2 make one kernel."""
    return [one for k in scan(d, step) for one in (k.shape.stages if isinstance(k.shape, Pipeline) else (k,))]


def flops(kernels: list[Kernel]) -> Any:
    return sum(kernel.ideal.flops for kernel in kernels)


def states(d: Any) -> Any:
    """Bytes of all heads' states: the cache without what convolution or token shift keep."""
    alone = replace(d, shift=0) if isinstance(d, rwkv7.Dims) else replace(d, conv=1)
    return MODULES[type(d)].cache(alone, BF16).fixed


def moved(d: Any, S: int, reading: str = "executed") -> Any:
    """Bytes of the chunked pipeline without the states that enter and leave it."""
    return sum(getattr(k, reading).hbm_bytes for k in scan(d, prefill(S))) - 2 * states(d)


# Published sizes


def test_states_have_the_published_sizes() -> None:
    assert states(KIMI) == 32 * 64 * 1024 == 2 * 2**20  # 128 · 128 · 4 bytes = 64 KiB per head, 2 MiB per layer
    assert states(QWEN) == 4 * 2**20  # 64 value heads · 64 KiB
    assert states(MAMBA) == 2_621_440  # 4 · 80 · 64 · 128 bytes = 2.6 MB
    assert states(RWKV) == 4 * 64 * 2560  # 4 bytes · head_dim · model width


def test_cache_holds_the_last_inputs_of_the_convolution_or_of_the_token_shift() -> None:
    assert gdn.cache(QWEN, BF16).fixed - states(QWEN) == 3 * (2 * 16 * 128 + 64 * 128) * 2
    assert kda.cache(KIMI, BF16).fixed - states(KIMI) == 3 * (3 * 32 * 128) * 2
    assert mamba2.cache(MAMBA, BF16).fixed - states(MAMBA) == 3 * (80 * 64 + 2 * 128) * 2
    assert rwkv7.cache(RWKV, BF16).fixed - states(RWKV) == 2 * 2560 * 2  # two mixes · width · bytes
    for d in MODELS:
        cache = MODULES[type(d)].cache(d, BF16)
        assert cache.bytes(1) == cache.bytes(10**6)


@every_model
def test_state_in_16_bits_is_half_as_large(d: Any) -> None:
    half = replace(d, state_dtype="bf16")
    assert 2 * states(half) == states(d)
    saved = [sum(k.ideal.hbm_bytes for k in run(one, step)) for step in (decode(), prefill(99)) for one in (d, half)]
    assert saved[0] - saved[1] == saved[2] - saved[3] == states(d)  # read and written once, at half the bytes


def test_rwkv7_2_9b_has_its_published_parameters() -> None:
    V, D, layers = 65_536, 2560, 32
    mixer = sum(p.parameters for p in rwkv7.projections(RWKV, D)) + rwkv7.extra_parameters(RWKV, D)
    channel_mix, norms = 8 * D * D + D, 4 * D
    total = 2 * V * D + 4 * D + layers * (mixer + channel_mix + norms)
    assert total == 2 * V * D + 4 * D + layers * (12 * D * D + 2 * D * (96 + 96 + 64 + 320) + 19 * D)
    assert total == pytest.approx(2.948e9, rel=1e-3)


def test_mamba2_2_7b_has_its_published_parameters() -> None:
    V, D, layers = 50_288, 2560, 64
    mixer = sum(p.parameters for p in mamba2.projections(MAMBA, D)) + mamba2.extra_parameters(MAMBA, D)
    assert V * D + layers * (mixer + D) + D == pytest.approx(2.70e9, rel=2e-3)  # tied embedding, one norm per layer


def test_output_gate_of_kda_is_low_rank_or_whole() -> None:
    def parameters(d: kda.Dims) -> Any:
        return sum(p.parameters for p in kda.projections(d, 2304))

    assert parameters(replace(KIMI, rg=None)) - parameters(KIMI) == 2304 * 4096 - 128 * (2304 + 4096)


# FLOPs


def test_matrix_flops_of_kda_exceed_the_papers_count_by_its_two_missing_products() -> None:
    # Kimi Linear, equation 13: 6·T·d² + 3·T·C·d + T·C² per head. The chunked form has five triangular products of
    # C·d per token (k·kᵀ, q·kᵀ, w, u and the one with v'), two more than the paper counts; its inverse by forward
    # substitution takes C²/3, not C².
    T, C, d = 64 * 100, 64, 128
    ours = flops(scan(KIMI, prefill(T))) / (T * 32)
    paper = 6 * d * d + 3 * C * d + C * C
    assert paper == 126_976
    assert ours == 6 * d * d + (5 * C + 3) * d + (C - 1) * (C - 2) / 3 == 140_950  # inclusive pairs add 3·d
    assert ours - paper == pytest.approx(2 * C * d - 2 * C * C / 3, rel=0.03)


def test_decode_flops_per_state_element() -> None:
    for d, operations in zip(MODELS, (7, 7, 5, 9), strict=True):
        (step,) = family(d, decode(), "recurrent-step")
        assert step.ideal.vector == operations * states(d) / 4
        assert step.ideal.tensor == {}


@every_model
def test_flops_are_additive_over_whole_chunks(d: Any) -> None:
    C = d.C
    whole, rest = flops(run(d, prefill(5 * C))), flops(run(d, prefill(C // 2 + 1)))
    assert flops(run(d, prefill(1000 * C))) == 200 * whole
    assert flops(run(d, prefill(5 * C + C // 2 + 1))) == whole + rest


@every_model
def test_past_costs_nothing(d: Any) -> None:
    for reading in ("ideal", "executed"):
        fresh, late = ([getattr(k, reading) for k in run(d, prefill(300, P=P))] for P in (0, 123_457))
        assert fresh == late


@every_model
def test_every_kernel_has_an_intensity(d: Any) -> None:
    for step in (prefill(300), decode()):
        assert all(0 <= k.intensity < float("inf") for k in run(d, step))


@every_model
def test_two_tokens_of_a_block_decode_as_two_steps_but_move_the_state_once(d: Any) -> None:
    (one,), (two,) = (family(d, decode(S), "recurrent-step") for S in (1, 2))
    assert two.ideal.vector == 2 * one.ideal.vector
    assert two.grid is not None
    assert two.grid.chain_steps == 2
    assert two.ideal.hbm_bytes - 2 * states(d) == 2 * (one.ideal.hbm_bytes - 2 * states(d))


@every_model
def test_decode_is_one_flop_per_byte_at_any_batch(d: Any) -> None:
    for batch in (1, 512):
        (step,) = family(d, decode(B=batch), "recurrent-step")
        assert 0.5 < step.intensity < 9 / 8  # 5 to 9 FLOPs against 8 bytes per state element


def test_kda_multiplies_as_gated_deltanet_without_shared_keys() -> None:
    same = gdn.Dims(Hk=32, Hv=32, dk=128, dv=128)
    for S in (64, 1000):
        assert flops(scan(KIMI, prefill(S))) == flops(scan(same, prefill(S)))
    assert flops(family(KIMI, decode(), "recurrent-step")) == flops(family(same, decode(), "recurrent-step"))


def test_mamba2_multiplies_c_and_b_once_per_group() -> None:
    S = 256
    grown = flops(scan(replace(MAMBA, G=2), prefill(S))) - flops(scan(MAMBA, prefill(S)))
    assert grown == 2 * (256 * 257 // 2) * 128  # pairs · N of one more group


def test_convolution_is_a_multiply_and_an_add_per_tap() -> None:
    for step in (prefill(100), decode(S=100)):
        (conv,) = family(QWEN, step, "short-conv")
        assert conv.ideal.vector == 2 * 4 * (2 * 16 * 128 + 64 * 128) * 100


def test_forward_substitution_counts_triples_of_every_chunk() -> None:
    def triples(n: int) -> int:
        return sum(1 for i in range(n) for j in range(i) for _ in range(j + 1, i))

    for S, C in ((64, 64), (100, 16), (7, 3), (2, 8)):
        assert substitution(S, C) == (S // C) * triples(C) + triples(S % C)


def test_blocks_on_and_below_the_diagonal_are_computed_and_inverted() -> None:
    for C in (16, 64, 128, 40):
        m = -(-C // 16)
        blocks = [(i, j) for i in range(m) for j in range(i + 1)]
        assert lower_tiles(C) == 256 * len(blocks)
        assert inverse_tiles(C) == 16**3 * sum(1 if i == j else i - j + 1 for i, j in blocks)


# Traffic of the real pipelines


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_bytes_of_the_gated_deltanet_pipeline(shared: int) -> None:
    S, Hv = 640, 8
    d = gdn.Dims(Hk=Hv // shared, Hv=Hv, dk=128, dv=128)
    # cumsum 8; k·kᵀ and inverse 256/ρ + 8 + 128 + 80; w, u 256/ρ + 384 + 512; states 256/ρ + 512 + 768;
    # output 512/ρ + 768 + 256
    assert moved(d, S) == (3424 + 1280 / shared) * S * Hv
    assert moved(d, S, "ideal") == (520 + 512 / shared) * S * Hv  # q, k, v, o in 16 bit, g and β in fp32


def test_gated_deltanet_without_shared_keys_moves_4704_bytes_per_token_and_head() -> None:
    d = gdn.Dims(Hk=8, Hv=8, dk=128, dv=128)
    assert moved(d, 640) == 4704 * 640 * 8
    assert moved(d, 640) / moved(d, 640, "ideal") == pytest.approx(4.6, abs=0.05)


def test_vector_gate_nearly_doubles_the_bytes_of_kda() -> None:
    # cumsum 768; blocks 2120 + 352; w, u 1156 + 768; states 776 + 768; output 1664 + 256
    assert moved(KIMI, 640) == 8628 * 640 * 32
    assert moved(KIMI, 640, "ideal") == (5 * 256 + 4) * 640 * 32  # q, k, v, g, o in 16 bit, β in fp32


def test_bytes_of_the_mamba2_pipeline() -> None:
    S = 2560
    for G in (1, 8):
        # 6·64 + 26 + 12·128·64/256 = 794 per token and head; 8·128 + 8·256 = 3072 per token and group
        assert moved(replace(MAMBA, G=G), S) == (794 * 80 + 3072 * G) * S
        assert moved(replace(MAMBA, G=G), S, "ideal") == ((4 * 64 + 2) * 80 + 4 * 128 * G) * S


def test_without_a_norm_mamba2_s_scan_applies_the_gate() -> None:
    """z is read and the result written before and after the gate; the norm's kernel and scale are gone."""
    S, D, alone = 2560, 2560, replace(MAMBA, norm=False)
    inner = 2 * 80 * 64 * S
    assert moved(alone, S) - moved(MAMBA, S) == 2 * inner
    assert moved(alone, S, "ideal") - moved(MAMBA, S, "ideal") == inner
    step = Step(B=1, S=S, P=0)
    assert "gated norm" not in {kernel.name for kernel in mamba2.kernels(alone, D, step, BF16)}
    assert mamba2.extra_parameters(MAMBA, D) - mamba2.extra_parameters(alone, D) == 80 * 64


def test_bytes_of_the_rwkv7_pipeline() -> None:
    # cumsum 640; four C × C products 1728; inverse, w, u 128 + 640; states 1280; output 1088
    assert moved(RWKV, 1600) == 5504 * 1600 * 40
    assert moved(RWKV, 1600, "ideal") == 7 * 64 * 2 * 1600 * 40  # r, w, k, v, a, b, o in 16 bit


@pytest.mark.parametrize("d", [QWEN, KIMI, MAMBA], ids=["gdn", "kda", "mamba2"])
def test_a_scan_is_the_sum_of_its_launches(d: Any) -> None:
    (one,) = scan(d, prefill(1000))
    parts = launches(d, prefill(1000))
    assert len(parts) == 5 <= one.launches == sum(part.launches for part in parts)
    for name, count in numbers(one.executed).items():
        assert count == sum(numbers(part.executed).get(name, 0) for part in parts)
    assert flops([one]) == flops(parts)
    assert one.ideal.hbm_bytes == sum(part.ideal.hbm_bytes for part in parts) < one.executed.hbm_bytes


@pytest.mark.parametrize(("mixer", "d"), [(gdn, QWEN), (kda, KIMI), (jet, jet.EXAMPLES[0])], ids=["gdn", "kda", "jet"])
def test_norms_of_queries_and_keys_are_part_of_the_scan(mixer: Any, d: Any) -> None:
    """Measured scans hold them, as those of a decode step do: a launch of their own would count them twice."""
    names = {kernel.name for kernel in mixer.kernels(d, 4096, prefill(640), BF16)}
    assert "chunk scan" in names
    assert "q, k norm" not in names


# The serial chain


def test_small_tiles_of_a_state_share_a_unit() -> None:
    """64 × 64 tiles of a state leave room for four walks on a unit; lightning attention's own kernel for one."""

    def resident(kernels: list[Kernel]) -> int:
        [states] = [kernel for kernel in kernels if kernel.name == "chunk states"]
        assert states.grid is not None
        return states.grid.occupancy

    assert resident(gla.scan(gla.Dims(H=4, dk=128, dv=256), prefill(640), BF16)) == 4
    assert resident(retnet.scan(retnet.Dims(H=4, dk=128, dv=256), prefill(640), BF16)) == 4
    assert resident(list(lightning.kernels(lightning.Dims(H=4, d=128), 512, prefill(640), BF16))) == 1


@every_model
def test_one_launch_walks_the_chunks_one_after_another(d: Any) -> None:
    chains = [k.grid.chain_steps for k in launches(d, prefill(10 * d.C + 1)) if k.grid is not None]
    assert sorted(chains, reverse=True) == [11] + [0] * (len(chains) - 1)


def seconds(kernels: list[Kernel]) -> float:
    h100 = load_hardware("h100-sxm")
    return float(sum(k.form.terms(k, h100, k.form.priors()).total() * k.count for k in kernels))


def scan_seconds(heads: int, S: int, B: int = 1, **theta: float) -> float:
    """Seconds of Gated DeltaNet's scan on an H100 (132 units) with some parameters other than the priors."""
    (one,) = scan(gdn.Dims(Hk=heads, Hv=heads, dk=128, dv=128), prefill(S, B))
    values = {**FORM.priors(), **theta}
    return float(one.form.terms(one, load_hardware("h100-sxm"), values).total())


FUSED = {"materialised": 0.01, "overlap": 8.0, "wave_weight": 1.0, "tensor_efficiency": 1.0, "step_s": 4e-6}
"""About what a hand-written kernel of one launch has."""


def test_long_sequence_with_few_heads_takes_as_long_as_with_twice_as_many() -> None:
    assert 1024 * 4e-6 < scan_seconds(2, 65_536, **FUSED) < 1.1 * 1024 * 4e-6  # 65,536 / 64 chunks
    assert scan_seconds(4, 65_536, **FUSED) < 1.05 * scan_seconds(2, 65_536, **FUSED)


def test_chunks_that_run_apart_fill_the_units_with_few_heads_and_take_as_long_with_many() -> None:
    def ratio(heads: int) -> float:
        walked, apart = (
            seconds(mamba2.scan(mamba2.Dims(H=heads, p=64, N=64, apart=value), prefill(65_536), BF16))
            for value in (False, True)
        )
        return apart / walked

    assert ratio(4) < 0.6  # 256 chunks of one sequence: four units walk them, or all 132 run them
    assert ratio(1320) == pytest.approx(1.0, rel=0.01)  # ten whole waves of heads either way


def test_a_state_in_shared_memory_is_moved_three_times_in_each_step_of_16_tokens_of_the_chain() -> None:
    (scan,) = kda.scan(kda.Dims(H=4, dk=128, dv=128, r=128), prefill(8192), BF16)
    shared = scan._replace(shape=scan.shape._replace(scan=scan.shape.scan._replace(shared_state=True)))
    hardware, values = load_hardware("h100-sxm"), {**FORM.priors(), **FUSED}
    longer = FORM.terms(shared, hardware, values).chain - FORM.terms(scan, hardware, values).chain
    assert longer == pytest.approx(512 * 3 * 128 * 128 * 2 / (128 * hardware.compute.clock), rel=0.01)


def test_one_wave_of_heads_fits_on_the_units_and_the_next_head_starts_another() -> None:
    one, two = (scan_seconds(heads, 8192, **FUSED) for heads in (132, 133))
    assert two / one > 1.8
    assert scan_seconds(264, 8192, **FUSED) < 1.15 * two


def test_pipeline_that_passes_its_intermediates_through_memory_is_slower_than_one_that_fuses_them() -> None:
    shares = (0.01, 0.1, 0.5, 1.0)
    times = [scan_seconds(32, 8192, B=8, materialised=share) for share in shares]
    assert times == sorted(times)
    assert times[-1] > 1.5 * times[0]
    # Without tokens to speak of, launches are what is left: one when fused, six of the pipeline.
    assert scan_seconds(1, 1, launch_s=1e-3, **FUSED) == pytest.approx(1.05e-3, rel=0.02)  # 1 + 0.01 · 5
    assert scan_seconds(1, 1, launch_s=1e-3, materialised=1.0) == pytest.approx(6e-3, rel=0.02)


def test_scan_time_never_falls_as_tokens_heads_or_sequences_grow() -> None:
    for theta in ({}, FUSED):
        for grow in (
            [scan_seconds(16, S, **theta) for S in (1, 7, 63, 64, 65, 128, 1000, 1024, 4096, 100_000)],
            [scan_seconds(heads, 512, **theta) for heads in (1, 2, 64, 131, 132, 133, 500)],
            [scan_seconds(16, 512, B=B, **theta) for B in (1, 2, 8, 9, 64)],
        ):
            assert grow == sorted(grow)


def test_intermediates_are_found_in_l2_where_they_fit_replayed_or_not() -> None:
    (one,) = scan(gdn.Dims(Hk=16, Hv=16, dk=128, dv=128), prefill(512))
    l40s, values = load_hardware("l40s"), FORM.priors()
    cold = one.form.terms(one, l40s, values).memory
    assert cold < 0.7 * one.executed.hbm_bytes / (l40s.memory.hbm.bandwidth * values["memory_efficiency"])
    (hot,) = replayed([one])
    assert one.form.terms(hot, l40s, values).memory < cold  # and so are the inputs when the kernel is replayed


def test_a_block_of_tokens_keeps_the_state_after_each_and_is_a_kernel_of_its_own() -> None:
    (one,), (four,) = (family(KIMI, decode(S), "recurrent-step") for S in (1, 4))
    assert four.executed.written - four.ideal.written == 3 * states(KIMI)
    assert one.executed.written == one.ideal.written
    assert (one.instance, four.instance) == ("kda-128x128", "kda-128x128-block")


def test_convolution_of_decode_steps_is_another_kernel() -> None:
    found = [family(KIMI, step, "short-conv")[0].instance for step in (prefill(64), decode(1), decode(3))]
    assert found == ["w4", "w4-update", "w4-update-block"]


def test_short_sequences_are_bound_by_their_channels_where_each_has_a_thread_block() -> None:
    h100 = load_hardware("h100-sxm")

    def conv_seconds(S: int, B: int, channel_s: float, **others: float) -> float:
        (one,) = family(QWEN, prefill(S, B), "short-conv")
        return float(one.form.terms(one, h100, {**one.form.priors(), "channel_s": channel_s, **others}).total())

    assert conv_seconds(8, 64, 1e-7) == pytest.approx(conv_seconds(64, 64, 1e-7), rel=0.1)
    assert conv_seconds(64, 64, 1e-7) > 1.5 * conv_seconds(64, 64, 1e-10)
    # Where further chunks start for nothing, long sequences are bound by their bytes.
    long = [conv_seconds(4096, 64, channel_s, chunk_again=0.01) for channel_s in (1e-7, 1e-10)]
    assert long[0] == pytest.approx(long[1], rel=0.02)
    assert conv_seconds(4096, 64, 1e-7, chunk_again=1.0) > 1.1 * long[0]


def test_decode_time_follows_the_bytes_of_the_states() -> None:
    (step,) = family(QWEN, decode(B=256), "recurrent-step")
    streaming = 256 * 2 * 4 * 2**20 / (3.35e12 * 0.88)  # 256 sequences · 4 MiB read and written
    assert seconds([step]) == pytest.approx(streaming, rel=0.1)


# Training


@every_model
def test_training_runs_chunks_and_differentiates_every_product_twice(d: Any) -> None:
    step = Step(B=1, S=640, P=0, phase="train")
    assert not family(d, step, "recurrent-step")
    for kernel in launches(d, step):
        (gradient,) = kernel.form.backward(kernel)
        passes = 3 if kernel.shape.recomputed else 2
        assert gradient.ideal.flops == 2 * kernel.ideal.flops
        assert gradient.executed.flops == passes * kernel.executed.flops
        assert gradient.executed.hbm_bytes >= 2 * kernel.executed.read
    for kernel in scan(d, step):
        (gradient,) = kernel.form.backward(kernel)
        assert gradient.ideal.flops == 2 * kernel.ideal.flops
        assert gradient.executed.flops >= 2 * kernel.executed.flops
    recomputed = {k.name for k in launches(d, step) if k.shape.recomputed}
    assert "chunk states" in recomputed
    assert "output" not in recomputed
    (decoding,) = family(d, decode(), "recurrent-step")
    assert decoding.form.backward(decoding) == ()


# Readings and errors

STEPS = [prefill(1), prefill(16, B=2), prefill(777, P=5), decode(), decode(S=3, B=2), Step(1, 300, 0, phase="train")]


def numbers(work: Work) -> dict[str, Any]:
    plain = {name: value for name, value in work._asdict().items() if name != "tensor"}
    return plain | {f"tensor {dtype}": count for dtype, count in work.tensor.items()}


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("d", [*MODELS, *gdn.EXAMPLES, *kda.EXAMPLES, *mamba2.EXAMPLES, *rwkv7.EXAMPLES], ids=str)
def test_executed_work_is_at_least_the_ideal(d: Any, step: Step) -> None:
    for kernel in run(d, step):
        backward = kernel.form.backward(kernel) if step.phase == "train" else ()
        for one in (kernel, *backward):
            ideal, executed = numbers(one.ideal), numbers(one.executed)
            assert all(executed[name] >= ideal[name] for name in ideal), (one.name, ideal, executed)


@pytest.fixture
def plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named intermediates as their bare expressions."""
    evaluate = pytest.importorskip("costmodel.analysis.symbolic").evaluate
    bare = SimpleNamespace(name_expression=lambda name, value: value, evaluate=evaluate)
    monkeypatch.setitem(sys.modules, "costmodel.analysis.symbolic", bare)


@every_model
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_ints_arrays_and_symbols_read_the_same(d: Any, phase: Phase, plain_names: None) -> None:
    numpy, sympy = pytest.importorskip("numpy"), pytest.importorskip("sympy")
    points = [(1, 1), (2, 3), (1, 513), (3, 4096)]
    B, S = sympy.Symbol("B", positive=True), sympy.Symbol("S", positive=True)
    swept = run(d, Step(*(numpy.array(column, dtype=float) for column in zip(*points, strict=True)), P=7, phase=phase))
    explained = run(d, Step(B, S, P=7, phase=phase))
    for index, point in enumerate(points):
        exact = run(d, Step(*point, P=7, phase=phase))
        for one, many, symbolic in zip(exact, swept, explained, strict=True):
            for reading in ("ideal", "executed"):
                expected = {name: float(value) for name, value in numbers(getattr(one, reading)).items()}
                array, symbols = numbers(getattr(many, reading)), numbers(getattr(symbolic, reading))
                taken = {name: float(numpy.broadcast_to(value, len(points))[index]) for name, value in array.items()}
                found = {name: float(sympy.sympify(v).subs({B: point[0], S: point[1]})) for name, v in symbols.items()}
                assert taken == pytest.approx(expected, rel=1e-12)
                assert found == pytest.approx(expected, rel=1e-12)


def test_dimensions_are_symbols_too(plain_names: None) -> None:
    sympy = pytest.importorskip("sympy")
    H, dk, dv, C, n = sympy.symbols("H dk dv C n", positive=True, integer=True)
    whole = flops(scan(gdn.Dims(Hk=H, Hv=H, dk=dk, dv=dv, C=C), prefill(n * C)))
    per_token = 6 * dk * dv + (C + 1) * (2 * dk + 2 * dv) + (C - 1) * dk + (C - 1) * (C - 2) / 3
    assert sympy.expand(sympy.simplify(whole) - n * C * H * per_token) == 0


def test_heads_that_do_not_divide_are_named() -> None:
    assert all(MODULES[type(d)].check(d) == [] for d in MODELS)
    assert gdn.check(replace(QWEN, Hk=24)) == ["v_heads 64 is not a multiple of k_heads 24"]
    assert mamba2.check(replace(MAMBA, G=3)) == ["heads 80 is not a multiple of groups 3"]
