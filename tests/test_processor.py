"""Time forms on a processor core: the same meaning, wide enough bounds, nothing padded."""

import pytest

from costmodel.calibration import from_fits
from costmodel.fit import prior_fit
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels import forms
from costmodel.kernels.attention import Attention
from costmodel.kernels.attention_walk import walk
from costmodel.kernels.decode_attention import DECODE, decode_attention
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.kernels.processor import for_device, on_processor
from costmodel.timing import time_step


@pytest.fixture
def core() -> Hardware:
    """An H100's numbers as those of a core."""
    return load_hardware("h100-sxm")._replace(name="cpu", generation="cpu")


@pytest.mark.parametrize("family", sorted(forms()))
def test_a_core_widens_what_is_known_and_moves_no_prior(family: str) -> None:
    form = forms()[family]
    wide = on_processor(form)
    assert for_device(form, "h100-sxm") is form
    assert wide.priors() == form.priors()
    for before, after in zip(form.parameters, wide.parameters, strict=True):
        assert after.low <= before.low <= before.high <= after.high
        assert after.low > 0
        assert after.spread >= before.spread
        if "overlap" in after.name:
            assert after.low >= 1.0  # below, doing two things at once would take longer than one after the other


def test_a_core_computes_the_keys_up_to_the_end_of_the_block_of_512_that_holds_the_diagonal() -> None:
    a = Attention(B=1, S=2048, P=0, H=2, Hkv=2, dk=64, dv=64, dtype="fp32", kv="fp32")
    blocks = sum(32 * 512 * -(-(row + 32) // 512) for row in range(0, 2048, 32))
    assert walk(a, "cpu", {"large_tiles": 0.5, "packing": 0.5}).pairs == pytest.approx(2 * blocks, rel=0.05)


def test_a_core_computes_each_window_slice_against_the_keys_that_any_of_its_queries_sees() -> None:
    a = Attention(B=1, S=1024, P=0, H=1, Hkv=1, dk=64, dv=64, w=128)
    slices = 128 * 128 + 7 * 128 * 255
    assert walk(a, "cpu", {"large_tiles": 0.5, "packing": 0.5}).pairs == pytest.approx(slices, rel=0.15)


def test_heads_that_share_a_key_cost_a_core_what_they_compute(core: Hardware) -> None:
    one, eight = (decode_attention("a", Attention(B=1, S=1, P=4095, H=heads, Hkv=1, dk=64, dv=64)) for heads in (1, 8))
    few, many = (DECODE.terms(kernel, core, DECODE.priors()).tensor for kernel in (one, eight))
    assert many == pytest.approx(8 * few)


def test_what_one_kernel_of_a_core_says_of_another_is_transferred() -> None:
    product = gemm("product", Gemm(m=64, n=64, k=64))
    pooled = prior_fit(product.form)._replace(key=("gemm", "", ""), flops=(0.0, 1e30), hbm_bytes=(0.0, 1e30))
    on_core = from_fits([pooled], hardware="cpu").fit(product)
    assert on_core.basis(product) == "transferred"
    assert on_core.model_spread > pooled.model_spread
    assert from_fits([pooled], hardware="h100-sxm").fit(product).basis(product) == "fitted"


def test_a_core_that_beats_its_measured_peak_keeps_its_time_inside_the_interval(core: Hardware) -> None:
    fit = prior_fit(forms()["gemm"])
    fast = fit._replace(values={**fit.values, "tensor_efficiency": 4.0}, flops=(0.0, 1e18), hbm_bytes=(0.0, 1e18))
    step = time_step([gemm("a", Gemm(4096, 4096, 4096))], core, from_fits([fast]))
    assert step.time_s < step.roofline_s
    assert step.low_s <= step.time_s < step.high_s
