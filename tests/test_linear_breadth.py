"""More linear recurrences: published sizes, exact FLOPs, relations between mechanisms, traffic, the serial chain."""

from dataclasses import replace
from typing import Any

import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.chunk_scan import Pipeline
from costmodel.mixers import (
    deltanet,
    gated_delta_product,
    gdn,
    gla,
    jet,
    lightning,
    mamba1,
    mamba2,
    mamba3,
    retnet,
    rwkv4,
    rwkv5,
    rwkv6,
    swa,
    ttt,
)
from costmodel.step import Precision, Step

BF16 = Precision()
LISTED = (mamba1, mamba3, retnet, lightning, gla, deltanet, gated_delta_product, rwkv4, rwkv5, rwkv6, jet, ttt)
MODULES: dict[type, Any] = {module.Dims: module for module in (*LISTED, gdn, mamba2, swa)}

MAMBA = mamba1.Dims(inner=5120, N=16, rank=160)  # Mamba-2.8B
SISO = mamba3.Dims(H=64, p=64, N=128)  # Mamba-3 1.5B
MIMO = mamba3.Dims(H=64, p=64, N=128, R=4, C=16)
RETNET = retnet.Dims(H=8, dk=256, dv=512)  # D = 2048
MINIMAX = lightning.Dims(H=64, d=128)  # MiniMax-Text-01
GLA = gla.Dims(H=4, dk=256, dv=512)  # D = 2048
DELTA = deltanet.Dims(H=16, dk=128, dv=128)
PRODUCT = gated_delta_product.Dims(H=16, dk=128, dv=128, n=2)
RWKV4 = rwkv4.Dims(inner=2560)  # RWKV-4 3B
RWKV5 = rwkv5.Dims(H=32, d=64)
RWKV6 = rwkv6.Dims(H=32, d=64, rm=32, rw=64)  # RWKV-6 1.6B
JET = jet.Dims(H=12, dk=96, dv=256)  # Jet-Nemotron-2B
TTT = ttt.Dims(H=32, d=64)
MODELS = [MAMBA, SISO, MIMO, RETNET, MINIMAX, GLA, DELTA, PRODUCT, RWKV4, RWKV5, RWKV6, JET, TTT]
IDS = ["mamba1", "siso", "mimo", "retnet", "lightning", "gla", "deltanet", "product", "4", "5", "6", "jet", "ttt"]
CHUNKED = [d for d in MODELS if hasattr(d, "C")]
every_model = pytest.mark.parametrize("d", MODELS, ids=IDS)
every_chunked = pytest.mark.parametrize("d", CHUNKED, ids=lambda d: type(d).__module__.rpartition(".")[2])


def run(d: Any, step: Step, D: Any = 2048) -> list[Kernel]:
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
    """The launches of a scan, also where they are one kernel."""
    return [one for k in scan(d, step) for one in (k.shape.stages if isinstance(k.shape, Pipeline) else (k,))]


def stepped(d: Any, step: Step | None = None) -> Kernel:
    (kernel,) = family(d, step or decode(), "recurrent-step")
    return kernel


def flops(kernels: list[Kernel]) -> Any:
    return sum(kernel.ideal.flops for kernel in kernels)


def kept(d: Any) -> Any:
    return MODULES[type(d)].cache(d, BF16).fixed


def moved(d: Any, S: int, state: Any, reading: str = "executed") -> Any:
    """Bytes of the chunked pipeline without the states that enter and leave it."""
    return sum(getattr(k, reading).hbm_bytes for k in scan(d, prefill(S))) - 2 * state


def parameters(d: Any, D: int) -> Any:
    module = MODULES[type(d)]
    return sum(p.parameters for p in module.projections(d, D)) + module.extra_parameters(d, D)


# Published sizes


def test_states_have_the_published_sizes() -> None:
    assert kept(replace(MAMBA, conv=1)) == 5120 * 16 * 4 == 327_680  # 328 KB per layer
    assert 64 * kept(MAMBA) == 21.875 * 2**20  # with 3 · 5120 inputs in 16 bit per layer
    assert kept(MINIMAX) == 64 * 128 * 128 * 4 == 4 * 2**20  # 64 KiB per head, 4 MiB per layer
    assert kept(GLA) == 2048**2 / 2  # 4 heads of D/8 × D/4 in fp32: D²/2 bytes
    assert kept(RWKV6) == 4 * 64 * 2048 + 2 * 2048 * 2  # 4 bytes · head_dim · width, and two tokens
    assert kept(RWKV4) == 3 * 4 * 2560 + 2 * 2560 * 2
    assert kept(JET) == 4 * 12 * 96 * 256 + 3 * 12 * 256 * 2  # only the values are convolved
    assert kept(TTT) == 2 * (4 * 32 * 64 * 64 + 4 * 32 * 64)  # W and b, and the gradients of both


def test_rank_keeps_the_state_of_mamba3_and_widens_its_last_key() -> None:
    assert kept(SISO) == 4 * 64 * (64 * 128 + 32) + 2 * 64 * (128 + 64)  # state and 32 angles; last B and x
    assert kept(MIMO) - kept(SISO) == 2 * 64 * 3 * 128


@every_model
def test_nothing_grows_with_the_context(d: Any) -> None:
    cache = MODULES[type(d)].cache(d, BF16)
    assert cache.bytes(1) == cache.bytes(10**6) > 0


def test_mamba_2_8b_and_falcon_mamba_have_the_weights_of_their_checkpoints() -> None:
    assert 64 * (parameters(MAMBA, 2560) + 2560) + 2560 + 50_280 * 2560 == 2_768_345_600
    falcon = mamba1.Dims(inner=8192, N=16, rank=256)
    assert 64 * (parameters(falcon, 4096) + 4096) + 4096 + 2 * 65_024 * 4096 == 7_272_665_088


def test_rwkv_has_its_published_parameters() -> None:
    D, V = 2048, 65_536
    mixer, channel_mix, norms = parameters(RWKV6, D), 2 * D * 7168 + D * D + 2 * D, 4 * D
    assert mixer == 5 * D * D + 2 * D * (5 * 32 + 64) + 10 * D
    assert 24 * (mixer + channel_mix + norms) + 2 * V * D + 4 * D == pytest.approx(1.60e9, rel=2e-3)
    mixer = parameters(RWKV4, 2560)  # channel mix of 4·D with a receptance
    total = 32 * (mixer + 9 * 2560**2 + 2 * 2560 + 4 * 2560) + 2 * 50_277 * 2560 + 4 * 2560
    assert total == pytest.approx(2.985e9, rel=1e-3)


def test_a_retnet_layer_is_eight_squares_of_the_width_and_a_gla_layer_four() -> None:
    D = 2048
    assert parameters(RETNET, D) == 8 * D * D + 512  # q, k: 1 each; v, gate, output: 2 each
    assert parameters(GLA, D) == 4 * D * D + 16 * (D + D // 2) + D // 2 + 512  # q, k: 1/2 each; v, gate, output: 1


# FLOPs


@pytest.mark.parametrize(
    "d,operations,state",
    [
        (MAMBA, 5, 5120 * 16),
        (RETNET, 5, 8 * 256 * 512),
        (MINIMAX, 5, 64 * 128 * 128),
        (GLA, 5, 4 * 256 * 512),
        (DELTA, 6, 16 * 128 * 128),
        (JET, 7, 12 * 96 * 256),
        (SISO, 7, 64 * 64 * 128),
        (TTT, 8, 32 * 64 * 64),
    ],
    ids=lambda value: value if isinstance(value, int) else type(value).__module__,
)
def test_decode_flops_per_state_element(d: Any, operations: int, state: int) -> None:
    work = stepped(d).ideal
    assert work.vector == operations * state
    assert work.tensor == {}


def test_bonus_of_rwkv_adds_two_dot_products_per_head() -> None:
    for d in (RWKV5, RWKV6):
        assert stepped(d).ideal.vector == 32 * (5 * 64 * 64 + 4 * 64)
        assert stepped(d).executed.vector >= 7 * 32 * 64 * 64  # the kernel adds it element by element


def test_rank_multiplies_the_flops_of_mamba3_at_constant_state_bytes() -> None:
    one, four = stepped(SISO), stepped(MIMO)
    state = 64 * 64 * 128
    assert one.ideal.vector - state == 6 * state  # all but the decay
    assert four.ideal.vector - state == 4 * 6 * state
    # B, C and the last B grow with the rank, the state does not: three times the FLOPs per byte.
    assert 3 < four.intensity / one.intensity < 4
    S = 64 * 10  # the pairs of a token in a chunk of 64/R with R rows each: (64/R + 1)/2 · R² against 65/2
    through_state = 4 * S * 64 * 64 * 128
    inside = S * 64 * 2 * (64 + 128)
    assert flops(scan(SISO, prefill(S))) == through_state + inside * 65 / 2
    assert flops(scan(MIMO, prefill(S))) == 4 * through_state + inside * 4 * 68 / 2


def test_gated_delta_product_writes_like_gated_deltanet_over_n_times_the_sequence() -> None:
    S = 1000
    same = gdn.Dims(Hk=16, Hv=16, dk=128, dv=128)
    for n in (1, 2, 3):
        found = {k.name: k.ideal.flops for k in scan(replace(PRODUCT, n=n), prefill(S))}
        longer = {k.name: k.ideal.flops for k in launches(same, prefill(n * S))}
        for name in ("k·kᵀ, inverse", "w, u", "chunk states"):
            assert found[name] == longer[name]
        # Only the last state of a token is read, by one query.
        pairs = 15 * 64 * 65 // 2 + 40 * 41 // 2
        assert found["output"] == 16 * (2 * S * 128 * 128 + n * 2 * pairs * 256)
        assert stepped(replace(PRODUCT, n=n)).ideal.vector == (4 * n + 3) * 16 * 128 * 128
        assert stepped(replace(PRODUCT, n=n)).executed.vector >= 7 * n * 16 * 128 * 128


def test_one_householder_step_is_gated_deltanet() -> None:
    one, same = replace(PRODUCT, n=1), gdn.Dims(Hk=16, Hv=16, dk=128, dv=128)
    for mine, theirs in zip(launches(one, prefill(999))[1:], launches(same, prefill(999))[1:], strict=True):
        # Gated DeltaNet's launches norm q and k, eight operations a channel.
        norms = 8 * 999 * 16 * 128 if theirs.name == "k·kᵀ, inverse" else 0
        executed = theirs.executed._replace(vector=theirs.executed.vector - norms)
        assert (mine.ideal, mine.executed, mine.grid) == (theirs.ideal, executed, theirs.grid)
    assert stepped(one).ideal == stepped(same).ideal


def test_deltanet_multiplies_like_gated_deltanet_and_saves_its_gate() -> None:
    S, same = 999, gdn.Dims(Hk=16, Hv=16, dk=128, dv=128)
    assert flops(scan(DELTA, prefill(S))) == flops(scan(same, prefill(S)))
    assert stepped(same).ideal.vector - stepped(DELTA).ideal.vector == 16 * 128 * 128
    state = kept(replace(DELTA, conv=1))
    # The gate is summed (read and written) and read once more; fused it would be read once: 4 bytes each.
    assert moved(same, S, state) - moved(DELTA, S, state) == 3 * 4 * S * 16
    assert moved(same, S, state, "ideal") - moved(DELTA, S, state, "ideal") == 4 * S * 16


def test_lightning_attention_is_retention_with_heads_of_equal_width() -> None:
    same = retnet.Dims(H=64, dk=128, dv=128)
    for step, name in ((prefill(777), "chunk-scan"), (decode(), "recurrent-step")):
        mine, theirs = family(MINIMAX, step, name), family(same, step, name)
        assert [k.ideal for k in mine] == [k.ideal for k in theirs]
        assert [k.executed for k in mine] == [k.executed for k in theirs]


def test_linear_attention_in_chunks_takes_its_closed_form() -> None:
    S, C, dk, dv = 6400, 64, 256, 512
    per_token = 4 * dk * dv + (C + 1) * (dk + dv)  # state written and read; half a chunk of pairs, own ones included
    assert flops(scan(RETNET, prefill(S))) == 8 * S * per_token
    assert flops(scan(GLA, prefill(S))) == 4 * S * per_token


def test_a_decay_per_channel_moves_diagonal_blocks_to_the_vector_lanes() -> None:
    (products,) = (k for k in scan(GLA, prefill(64)) if k.name == "q·kᵀ")
    on = 4 * (16 * 17 // 2)  # four blocks of 16 rows on the diagonal of a chunk
    assert products.ideal.vector == 2 * 4 * 256 * on
    assert products.ideal.tensor["bf16"] == 2 * 4 * 256 * (64 * 65 // 2 - on)
    assert products.executed.tensor["bf16"] == 2 * 4 * 256 * 6 * 16 * 16  # six blocks below it
    assert products.executed.special >= 4 * 256 * 4 * 16 * 16  # one exp per pair and channel


def test_rwkv6_multiplies_like_gla_and_rwkv5_does_without_its_stream_of_decays() -> None:
    S = 500
    same = gla.Dims(H=32, dk=64, dv=64)
    assert flops(scan(RWKV6, prefill(S))) == flops(scan(RWKV5, prefill(S))) == flops(scan(same, prefill(S)))
    state = 4 * 32 * 64 * 64
    stream = S * 32 * 64 * 2
    assert moved(RWKV6, S, state, "ideal") - moved(RWKV5, S, state, "ideal") == stream
    assert stepped(RWKV6).ideal.read - stepped(RWKV5).ideal.read == 32 * 64 * 2


def test_jetblock_is_gated_deltanet_behind_a_convolution_that_reads_taps_per_token() -> None:
    same, S = gdn.Dims(Hk=12, Hv=12, dk=96, dv=256), 300
    assert [k.ideal for k in scan(JET, prefill(S))] == [k.ideal for k in scan(same, prefill(S))]
    (conv,) = family(JET, prefill(S), "short-conv")
    assert conv.ideal.vector == 2 * 4 * 3072 * S
    assert conv.ideal.hbm_bytes == 2 * 3072 * ((1 + 4 + 1) * S + 2 * 3)  # v, taps, output; the last inputs
    assert conv.ideal.weights == 0


def test_selective_scan_has_no_products_and_one_exp_per_state_element() -> None:
    S = 4096
    (kernel,) = family(MAMBA, prefill(S), "selective-scan")
    assert kernel.ideal.tensor == kernel.executed.tensor == {}
    assert kernel.ideal.vector == 5 * S * 5120 * 16
    assert kernel.executed.special == S * 5120 * (16 + 3)
    # x, Δ, z and the output; B and C; A, D and a bias in fp32; the state in and out
    assert kernel.ideal.hbm_bytes == S * (4 * 5120 + 2 * 16) * 2 + 18 * 5120 * 4 + 2 * 5120 * 16 * 4
    shared = S * 2 * 16 * 2
    assert kernel.executed.l2 - kernel.executed.hbm_bytes == 5119 * shared  # every channel's block reads B and C


def test_short_sequences_are_scanned_by_smaller_blocks_of_which_more_share_a_unit() -> None:
    grids = [family(MAMBA, prefill(S), "selective-scan")[0].grid for S in (512, 1024, 2048, 65_536)]
    assert [grid.occupancy for grid in grids if grid is not None] == [12, 6, 3, 3]


def test_rwkv4_updates_three_numbers_per_channel() -> None:
    (kernel,) = family(RWKV4, prefill(100), "selective-scan")
    assert kernel.ideal.vector == 9 * 100 * 2560
    assert stepped(RWKV4).ideal.vector == 9 * 2560
    assert kernel.executed.special == 5 * 100 * 2560
    assert kernel.grid is not None
    assert kernel.grid.chain_steps == 4 * 100  # a thread takes its four exps token by token


@every_model
def test_flops_are_additive_over_whole_chunks(d: Any) -> None:
    C = getattr(d, "C", 64)
    whole, rest = flops(run(d, prefill(5 * C))), flops(run(d, prefill(C // 2 + 1)))
    assert flops(run(d, prefill(1000 * C))) == 200 * whole
    assert flops(run(d, prefill(5 * C + C // 2 + 1))) == whole + rest


@every_model
def test_past_costs_nothing(d: Any) -> None:
    for reading in ("ideal", "executed"):
        for phase in ("prefill", "decode"):
            fresh, late = ([getattr(k, reading) for k in run(d, Step(2, 3, P, phase))] for P in (0, 123_457))
            assert fresh == late


@every_model
def test_two_tokens_of_a_block_decode_as_two_steps(d: Any) -> None:
    one, two = stepped(d), stepped(d, decode(2))
    assert two.ideal.vector == 2 * one.ideal.vector
    assert two.ideal.hbm_bytes < 2 * one.ideal.hbm_bytes  # the state moves once
    assert one.grid is not None
    assert two.grid is not None
    assert two.grid.chain_steps == 2 * one.grid.chain_steps


@every_model
def test_decode_does_a_few_flops_per_byte_at_any_batch(d: Any) -> None:
    for batch in (1, 512):
        assert 0.2 < stepped(d, decode(B=batch)).intensity < 3  # 25 FLOPs per 8 bytes of state at rank 4


# Traffic of the real pipelines


def test_bytes_of_the_retention_pipeline() -> None:
    S = 640
    # states: k 256, v 256, kept 512; output: q, k, v 768, kept 512, o 256
    assert moved(MINIMAX, S, kept(MINIMAX)) == (1024 + 1536) * S * 64
    assert moved(MINIMAX, S, kept(MINIMAX), "ideal") == 4 * 256 * S * 64


def test_bytes_of_the_gla_pipeline() -> None:
    S, d = 640, gla.Dims(H=8, dk=128, dv=128)
    # sums 256 + 512; q·kᵀ 2·(256 + 256 + 512) + 4·40; states 256 + 256 + 512 + 512; output 256 + 512 + 512 + 256 + 256
    # + 256: 6.4 KiB
    assert moved(d, S, kept(d)) == (768 + 2208 + 1536 + 2048) * S * 8
    assert moved(d, S, kept(d), "ideal") == 5 * 256 * S * 8


def test_bytes_of_the_rwkv6_pipeline() -> None:
    S, state = 640, 4 * 32 * 64 * 64
    # sums with and without the own decay 128 + 512; r·kᵀ 2·(128 + 128 + 512) + 160; states, kept in fp32, 768; output
    # 1152
    assert moved(RWKV6, S, state) == (640 + 1696 + 768 + 1152) * S * 32
    assert moved(RWKV5, S, state) == (768 + 1696 + 768 + 1152) * S * 32
    assert moved(RWKV6, S, state, "ideal") == 5 * 128 * S * 32


def test_bytes_of_the_ttt_pipeline_are_half_states() -> None:
    S = 640
    assert moved(TTT, S, kept(TTT) / 2) == (908 + 1036) * S * 32
    assert moved(TTT, S, kept(TTT) / 2, "ideal") == (4 * 128 + 4) * S * 32
    assert 2 * 2 * 64 * 64 / 16 / (908 + 1036) == pytest.approx(0.53, abs=0.01)  # written and read per mini-batch


def test_siso_kernel_stores_rotated_b_and_c_for_every_head() -> None:
    S = 640
    (main,) = (k for k in scan(SISO, prefill(S)) if k.name == "scan")
    state = 64 * (4 * 64 * 128 + 2 * (128 + 64))
    # x, z, output; decay, step size, weight in fp32; per group B and C
    assert main.ideal.hbm_bytes == S * (64 * (3 * 128 + 12) + 2 * 256) + 2 * state
    # written and read: 4 · 256; two more steps, the angles, three weights written, one read
    assert main.executed.hbm_bytes - main.ideal.hbm_bytes == S * 64 * (4 * 256 + 8 + 128 + 12 + 4)


def test_gated_delta_product_keeps_its_states_once_per_chunk_of_tokens() -> None:
    S, state = 6400, kept(replace(PRODUCT, conv=1))
    one, two = (moved(replace(PRODUCT, n=n), S, state) for n in (1, 2))
    # Per further pair: gate 3 · 4, inverse 256 + 8 + 208, w and u 640 + 512, states 768 + 256, output 512
    assert two - one == (12 + 472 + 1152 + 1024 + 512) * S * 16


# The serial chain


@every_chunked
def test_one_launch_walks_the_chunks_one_after_another(d: Any) -> None:
    pairs = getattr(d, "n", 1)
    chains = sorted((k.grid.chain_steps for k in scan(d, prefill(10 * d.C)) if k.grid is not None), reverse=True)
    assert chains[0] == (20 if d is SISO else 10 * pairs)  # SISO walks once to rotate and once to multiply
    assert not any(chains[1:])


def seconds(kernels: list[Kernel], device: str = "h100-sxm") -> float:
    hardware = load_hardware(device)
    return float(sum(k.form.terms(k, hardware, k.form.priors()).total() * k.count for k in kernels))


def test_selective_scan_takes_longer_with_a_larger_state_although_its_traffic_hardly_grows() -> None:
    small, large = (family(replace(MAMBA, N=N), prefill(16_384), "selective-scan") for N in (16, 64))
    assert large[0].ideal.hbm_bytes < 1.1 * small[0].ideal.hbm_bytes
    assert seconds(large) > 3 * seconds(small)


def test_serial_rwkv4_kernel_takes_as_long_for_one_sequence_as_for_eight() -> None:
    one, eight = (seconds(family(RWKV4, prefill(65_536, B=B), "selective-scan")) for B in (1, 8))
    assert eight < 1.5 * one
    (two_lengths,) = family(RWKV4, prefill(131_072), "selective-scan")
    assert seconds([two_lengths]) == pytest.approx(2 * one, rel=0.02)


def test_decode_of_samba_is_constant_once_its_window_is_full() -> None:
    mamba, window = mamba1.Dims(inner=4608, N=16, rank=144), swa.Dims(H=18, Hkv=18, dk=128, dv=128, w=2048)

    def totals(L: int) -> tuple[Any, ...]:
        step = decode(P=L - 1)
        kernels = [k for d in (mamba, window) for k in run(d, step, D=2304)]
        cache = sum(MODULES[type(d)].cache(d, BF16).bytes(L) for d in (mamba, window))
        return flops(kernels), sum(k.ideal.hbm_bytes for k in kernels), cache, seconds(kernels)

    full, later, last = totals(2048), totals(8192), totals(10**6)
    assert full[:3] == later[:3] == last[:3]
    # Some libraries split the whole context: splits outside the window end at once, but are launched.
    assert later[3] == pytest.approx(full[3], rel=0.01)
    assert last[3] == pytest.approx(later[3], rel=0.01)
    assert all(early < late for early, late in zip(totals(1024), full, strict=True))


# Training


@every_model
def test_training_differentiates_every_product_twice(d: Any) -> None:
    step = Step(B=1, S=640, P=0, phase="train")
    own = launches(d, step) + family(d, step, "selective-scan")
    assert own
    assert not family(d, step, "recurrent-step")
    for kernel in own:
        (gradient,) = kernel.form.backward(kernel)
        assert gradient.ideal.flops == 2 * kernel.ideal.flops
        again = kernel.family == "selective-scan" or kernel.shape.recomputed
        assert gradient.executed.flops == (3 if again else 2) * kernel.executed.flops
        assert gradient.ideal.hbm_bytes == 2 * kernel.ideal.read + kernel.ideal.written
    assert stepped(d).form.backward(stepped(d)) == ()


# Readings and errors


def numbers(work: Work) -> dict[str, Any]:
    plain = {name: value for name, value in work._asdict().items() if name != "tensor"}
    return plain | {f"tensor {dtype}": count for dtype, count in work.tensor.items()}


@pytest.mark.parametrize("step", [prefill(1), prefill(16, B=2), prefill(777, P=5), decode(), decode(S=3, B=2)], ids=str)
@every_model
def test_executed_work_is_at_least_the_ideal(d: Any, step: Step) -> None:
    for one in run(d, step):
        ideal, executed = numbers(one.ideal), numbers(one.executed)
        assert all(executed[name] >= ideal[name] for name in ideal), (one.name, ideal, executed)


@every_model
def test_exact_counts_stay_whole_and_arrays_read_the_same(d: Any) -> None:
    numpy = pytest.importorskip("numpy")
    points = [(1, 1), (2, 3), (1, 513), (3, 4096)]
    columns = (numpy.array(column, dtype=float) for column in zip(*points, strict=True))
    swept = run(d, Step(*columns, P=7))
    for index, point in enumerate(points):
        for one, many in zip(run(d, Step(*point, P=7)), swept, strict=True):
            for reading in ("ideal", "executed"):
                array = numbers(getattr(many, reading))
                for name, value in numbers(getattr(one, reading)).items():
                    assert reading == "executed" or isinstance(value, int) or float(value).is_integer()
                    taken = float(numpy.broadcast_to(array[name], len(points))[index])
                    assert taken == pytest.approx(float(value), rel=1e-12), (one.name, name)


def test_dimensions_are_symbols_too() -> None:
    sympy = pytest.importorskip("sympy")
    H, d, C, n = sympy.symbols("H d C n", positive=True, integer=True)
    whole = flops(scan(lightning.Dims(H=H, d=d, C=C), prefill(n * C)))
    expanded = whole.replace(lambda part: hasattr(part, "definition"), lambda part: part.definition)
    assert sympy.expand(sympy.simplify(expanded) - n * C * H * (4 * d * d + 2 * (C + 1) * d)) == 0


def test_inconsistent_dimensions_are_named() -> None:
    assert all(MODULES[type(d)].check(d) == [] for d in MODELS)
    assert mamba3.check(replace(SISO, G=3)) == ["heads 64 is not a multiple of groups 3"]
    assert mamba3.check(replace(SISO, rope=7)) == ["rope_dim 7 is not an even number within state 128"]
    assert jet.check(replace(JET, ratio=7)) == ["v is 3072 wide, not a multiple of generator_ratio 7"]
