"""Hyena: transforms of the right length, L·log L prefill, linear decode, traffic, gradients."""

import math
from dataclasses import replace
from typing import Any

import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.base import Kernel
from costmodel.kernels.fft_conv import Convolution, direct_convolution, fft_convolution
from costmodel.mixers import hyena
from costmodel.step import Precision, Step

BF16 = Precision()
SMALL = hyena.Dims(W=768)  # the 125M model of the paper
WIDE = 768


def run(d: hyena.Dims, step: Step, D: Any = WIDE) -> list[Kernel]:
    return list(hyena.kernels(d, D, step, BF16))


def prefill(S: int, P: int = 0, B: int = 1) -> Step:
    return Step(B=B, S=S, P=P)


def decode(L: int, B: int = 1, S: int = 1) -> Step:
    return Step(B=B, S=S, P=L - S, phase="decode")


def convolutions(d: hyena.Dims, step: Step) -> list[Kernel]:
    return [kernel for kernel in run(d, step) if kernel.family == "fft-conv"]


def flops(kernels: list[Kernel]) -> Any:
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)


def test_transforms_are_long_enough_for_the_outputs_that_count() -> None:
    def points(S: int, P: int) -> Any:
        return Convolution(B=1, S=S, P=P, channels=1).points

    assert points(1024, 0) == 2048  # zero padding to twice the length
    assert points(1025, 0) == 4096
    assert points(1, 1023) == 2048  # wrapped outputs 0 … 1023 − 2 may not reach position 1023
    assert points(128, 768) == 1024  # 768 + 2 · 128: twice the length is not needed for the last outputs alone
    for S, P in ((5, 0), (100, 77), (1, 200)):
        N = points(S, P)
        assert N >= P + 2 * S - 1  # the last index of the full result, 2L − 2, wraps to below P
        assert math.log2(N) % 1 == 0


def test_flops_of_a_channel() -> None:
    L = 8192
    N = 2 * L
    channel = 5 * N * 14 // 2  # 5/2 · N · log₂N, N = 2¹⁴
    batch = [kernel.ideal.vector for kernel in fft_convolution("c", Convolution(B=3, S=L, P=0, channels=7))]
    assert batch == [3 * 7 * channel, 7 * channel, 3 * 7 * 6 * (L + 1), 3 * 7 * channel]


def test_prefill_grows_as_l_log_l() -> None:
    def transforms(L: int) -> Any:
        return flops([k for k in convolutions(SMALL, prefill(L)) if "product" not in k.name])

    for bits in (10, 14, 20):
        assert transforms(2 ** (bits + 1)) / transforms(2**bits) == pytest.approx(2 * (bits + 2) / (bits + 1))
    whole = [flops(run(SMALL, prefill(2**bits))) for bits in (20, 30)]
    slope = math.log(whole[1] / whole[0]) / math.log(2**10)
    assert hyena.ORDER.prefill_flops < slope < 1.05


def test_decode_passes_over_the_whole_history() -> None:
    for L in (1000, 100_000):
        (token,) = convolutions(SMALL, decode(L))
        assert token.ideal.flops == 2 * L * 768
        assert token.ideal.read == L * 768 * 2 + L * 768 * 4  # inputs in 16 bit, filters in fp32
    many = convolutions(SMALL, decode(1000, B=8))[0]
    assert many.ideal.read == 8 * 1000 * 768 * 2 + 1000 * 768 * 4  # filters are shared by the batch


def test_generating_s_tokens_costs_s_squared() -> None:
    tokens = sum(flops(convolutions(SMALL, decode(L))) for L in range(1, 1001))
    assert tokens == 2 * 768 * (1000 * 1001 // 2)
    block = flops(convolutions(SMALL, decode(1000, S=1000)))
    assert tokens == block


def test_transforms_beat_direct_products_from_some_tokens_on() -> None:
    def direct(S: int) -> Any:
        return direct_convolution("d", Convolution(B=64, S=S, P=0, channels=8)).ideal.flops

    def transformed(S: int) -> Any:
        return flops(fft_convolution("f", Convolution(B=64, S=S, P=0, channels=8)))

    # S² against about 10·S·log₂(2S) + 6·S per channel
    assert direct(64) < transformed(64)
    assert direct(256) > transformed(256)


def test_cache_keeps_the_inputs_of_every_long_convolution() -> None:
    kept = hyena.cache(SMALL, BF16)
    assert kept.per_token == 768 * 2
    assert kept.fixed == 2 * (3 * 768) * 2  # two tokens of three branches
    assert hyena.cache(replace(SMALL, n=3), BF16).per_token == 2 * 768 * 2


def test_order_three_has_two_long_convolutions() -> None:
    for step in (prefill(500), decode(500)):
        two, three = (flops(convolutions(replace(SMALL, n=n), step)) for n in (2, 3))
        assert three == 2 * two
    inner = [k for k in run(replace(SMALL, n=3), prefill(500)) if k.name in ("gate", "skip")]
    assert sum(k.count for k in inner) == 2 + 2 + 1


def test_parameters_of_the_operator() -> None:
    D = 768
    own = sum(p.parameters for p in hyena.projections(SMALL, D)) + hyena.extra_parameters(SMALL, D)
    filters = (3 * 64 + 64) + 2 * (64 * 64 + 64) + 64 * D
    assert own == D * 3 * D + 3 * D + D * D + D + filters + 3 * D * (3 + 1) + D + 64


def test_filters_are_computed_once_for_the_batch_and_kept_in_decode() -> None:
    def layers(step: Step) -> Any:
        return flops([k for k in run(SMALL, step) if k.name.startswith("filter layer")])

    one = 2 * 4096 * (3 * 64 + 2 * 64 * 64 + 64 * 768)
    assert layers(prefill(4096)) == layers(prefill(4096, B=16)) == one
    assert layers(decode(4096)) == 0


def test_spectra_pass_through_memory_in_fp32() -> None:
    S = 2048
    c = Convolution(B=1, S=S, P=0, channels=100)
    there, spectrum, product, back = fft_convolution("c", c)
    bins = 8 * 100 * (S + 1)
    assert (there.executed.read, there.executed.written) == (100 * S * 2, bins)
    assert (spectrum.executed.read, spectrum.executed.written) == (100 * S * 4, bins)
    assert (product.executed.read, product.executed.written) == (2 * bins, bins)
    assert (back.executed.read, back.executed.written) == (bins, 100 * S * 2)
    # 2 + 8 + 8 + 8 + 8 + 2 bytes per token and channel, and 4 + 8 + 8 of the filter, which a batch shares
    total = sum(kernel.executed.hbm_bytes for kernel in (there, spectrum, product, back))
    assert total == pytest.approx((36 + 20) * 100 * S, rel=1e-3)
    # v and k in, y out
    assert sum(k.ideal.hbm_bytes for k in (there, spectrum, product, back)) == (2 + 4 + 2) * 100 * S


def test_long_transforms_take_several_passes() -> None:
    def written(S: int) -> Any:
        return fft_convolution("c", Convolution(B=1, S=S, P=0, channels=1))[0].executed.written / (8 * (S + 1))

    assert [written(2**bits) for bits in (12, 13, 24, 26)] == [1, 2, 2, 3]  # N = 2¹³ fits in shared memory


def test_gradient_of_a_transform_is_one_transform_and_of_the_product_two_products() -> None:
    for kernel in fft_convolution("c", Convolution(B=2, S=300, P=0, channels=10)):
        (gradient,) = kernel.form.backward(kernel)
        assert gradient.ideal.flops == (2 if "product" in kernel.name else 1) * kernel.ideal.flops
        assert gradient.executed.written == kernel.executed.read


def test_decode_is_bound_by_reading_history_and_filters() -> None:
    h100 = load_hardware("h100-sxm")
    (token,) = convolutions(SMALL, decode(2**20))
    terms = token.form.terms(token, h100, token.form.priors())
    assert terms.memory > 5 * terms.vector
    assert terms.memory == pytest.approx(2**20 * 768 * 6 / (3.35e12 * 0.70), rel=0.01)


def test_even_position_width_is_named() -> None:
    assert hyena.check(SMALL) == []
    assert "filter_emb 4 is even" in hyena.check(replace(SMALL, emb=4))[0]
