"""What a relative's calibration misses, and what lies outside the measured range: how intervals grow."""

import math
from pathlib import Path

import numpy
import pandas
import pytest

from costmodel import transfers
from costmodel.calibration import PRIOR, from_fits
from costmodel.calibration_entry import read_entry
from costmodel.calibration_files import own_calibration, relatives_calibration
from costmodel.errors import BadInput
from costmodel.fit import EXTRAPOLATION_SPREADS, TRANSFER_SPREAD, prior_fit
from costmodel.fitting.least_squares import Points
from costmodel.fitting.series import Part, Series, whole
from costmodel.hardware import load_hardware
from costmodel.kernels.attention import PREFILL, Attention, attention
from costmodel.kernels.gemm import FORM as GEMM
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.timing import Z80
from costmodel.transfers import ANY_FAMILY, transfer_spreads
from validation.transfers import FEWEST, Gaps, known, missing_spread, nearest_first, spreads_of, text_of

MEASURED = {
    "a100-sxm": {"h100-sxm": {"gemm": 0.3}, "l40s": {"gemm": 0.9}},
    "h100-sxm": {"a100-sxm": {"gemm": 0.4, "moe": 0.2}, "l40s": {"gemm": 0.5, "top-k": 0.1}},
    "l40s": {"h100-sxm": {"gemm": 0.5}},
}


def written(path: Path) -> Path:
    path.write_text(text_of(MEASURED), encoding="utf-8")
    return path


def test_a_device_never_vouches_for_its_own_interval(tmp_path: Path) -> None:
    """Nothing that was measured on it, and nothing that was predicted from it."""
    expected = transfer_spreads("h100-sxm", written(tmp_path / "t.yaml"))
    assert expected["gemm"] == pytest.approx(0.9)  # a100 from l40s; of l40s from h100 nothing is left
    assert "moe" not in expected


def test_a_new_device_takes_the_mean_square_of_all_each_from_its_nearest_relative(tmp_path: Path) -> None:
    expected = transfer_spreads("h20", written(tmp_path / "t.yaml"))
    assert expected["gemm"] == pytest.approx(math.sqrt((0.3**2 + 0.4**2 + 0.5**2) / 3))
    assert expected["top-k"] == 0.1  # the nearest relative has none
    assert expected[ANY_FAMILY] == 0.2  # the median of 0.41, 0.2 and 0.1


def test_intervals_of_another_generation_hold_what_transfers_were_found_to_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "transfers_path", lambda: written(tmp_path / "t.yaml"))
    kernel = attention("a", Attention(B=1, S=4096, P=0, H=32, Hkv=8, dk=128, dv=128))
    within = load_hardware("h200-sxm")
    beyond = within._replace(generation="another")
    own = own_calibration(load_hardware("h100-sxm"), "vllm")
    assert own is not None
    spread = own.fit(kernel).model_spread
    same, moved = (relatives_calibration(one, "vllm").fit(kernel) for one in (within, beyond))
    assert same.transferred
    assert same.model_spread == pytest.approx(TRANSFER_SPREAD * spread)
    assert moved.transferred
    # No transfer of this family was measured: the median of all.
    assert moved.spread_for(kernel) == pytest.approx(math.hypot(spread, 0.2), rel=1e-3)


def test_what_a_relative_misses_does_not_grow_with_the_distance_from_what_was_measured() -> None:
    """It was measured beside the model error, which does."""
    near, far = (attention("a", Attention(B=1, S=tokens, P=0, H=32, Hkv=8, dk=128, dv=128)) for tokens in (4096, 2**22))
    fit = relatives_calibration(load_hardware("rtx-5090"), "vllm").fit(near)
    assert fit.missed > 0.0
    own = fit._replace(missed=0.0)
    for kernel in (near, far):
        assert fit.spread_for(kernel) == pytest.approx(math.hypot(own.spread_for(kernel), fit.missed))
    assert own.spread_for(far) > own.spread_for(near)


def test_the_shipped_spreads_speak_of_every_family_that_a_calibration_holds() -> None:
    expected = transfer_spreads("h20")
    assert {"gemm", "prefill-attention", "decode-attention", "moe", "collective", ANY_FAMILY} <= set(expected)
    assert all(0.0 <= spread < 3.0 for spread in expected.values())


@pytest.mark.parametrize("text", ["schema: 2\nspreads: {}", "schema: 1\nspreads: {a: {b: {gemm: wide}}}", "schema: 1"])
def test_a_file_without_spreads_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="spreads"):
        transfer_spreads("h20", path)


def test_the_missing_spread_makes_the_interval_hold_four_fifths() -> None:
    random = numpy.random.default_rng(1)
    gaps = numpy.abs(0.5 * random.standard_normal(20_000))
    expected = numpy.full(len(gaps), 0.3)
    missing = missing_spread(gaps, expected, numpy.ones(len(gaps)))
    assert missing == pytest.approx(0.4, rel=0.03)  # 0.5² = 0.3² + 0.4²
    assert numpy.mean(gaps <= Z80 * numpy.hypot(expected, missing)) == pytest.approx(0.8, abs=0.01)


def gaps(family: str, count: int, target: str = "a100-sxm") -> Gaps:
    return Gaps(target, "h100-sxm", family, numpy.full(count, 0.5), numpy.zeros(count), numpy.ones(count))


def test_a_pair_of_devices_says_nothing_of_a_family_with_few_points() -> None:
    found = [gaps("gemm", FEWEST - 1), gaps("moe", FEWEST), gaps("gemm", FEWEST, "l40s")]
    spreads = spreads_of(found)
    assert list(spreads["a100-sxm"]["h100-sxm"]) == ["moe"]
    assert spreads["l40s"]["h100-sxm"]["gemm"] == pytest.approx(0.5 / Z80, rel=1e-4)
    # Two series of a family count together.
    assert "gemm" in spreads_of([*found, gaps("gemm", 1)])["a100-sxm"]["h100-sxm"]


def test_a_kernel_that_the_relative_has_never_run_tells_nothing_of_its_transfers() -> None:
    def build(shapes: pandas.DataFrame) -> list[Part]:
        return whole(shapes, [gemm("p", Gemm(m=1, n=1, k=1))._replace(instance="bf16")])

    one = Series(
        system="l40s",
        library="own",
        version="1",
        family="gemm",
        kernel="p",
        instance="bf16",
        phase="",
        shapes=pandas.DataFrame({"m": [1.0]}),
        seconds=numpy.ones(1),
        flags=numpy.array([""]),
        tokens=numpy.ones(1),
        build=build,
    )
    fit = prior_fit(GEMM)._replace(flops=(0.0, 1e30), hbm_bytes=(0.0, 1e30))
    points = Points(one, one.used)
    assert known(points, from_fits([fit._replace(key=("gemm", "bf16", ""))]))
    assert known(points, from_fits([fit._replace(key=("gemm", "", ""))]))
    # The family is there, and yet the prior would answer.
    assert not known(points, from_fits([fit._replace(key=("gemm", "fp8", ""))]))
    assert not known(points, PRIOR)


def test_nothing_is_missing_where_the_interval_holds_enough_already() -> None:
    assert missing_spread(numpy.full(50, 0.1), numpy.full(50, 0.3), numpy.ones(50)) == 0.0


def test_the_model_error_grows_with_every_octave_outside_the_measured_range() -> None:
    def at(length: int) -> float:
        kernel = attention("a", Attention(B=8192 // length, S=length, P=0, H=1, Hkv=1, dk=64, dv=64))
        return float(fit.spread_for(kernel))

    fit = prior_fit(PREFILL)._replace(
        model_spread=0.1, flops=(0.0, 1e30), hbm_bytes=(0.0, 1e30), lengths=(64.0, 1024.0)
    )
    assert at(512) == at(1024) == pytest.approx(0.1)
    # As many tokens as before, in fewer and longer sequences: neither FLOPs nor bytes tell.
    assert at(2048) == pytest.approx(0.1 * (1 + EXTRAPOLATION_SPREADS[""]))
    assert at(8192) == pytest.approx(0.1 * (1 + 3 * EXTRAPOLATION_SPREADS[""]))
    fit = fit._replace(key=("prefill-attention", "", "msa-prefill"))
    assert at(2048) == pytest.approx(0.1 * (1 + EXTRAPOLATION_SPREADS["msa-prefill"]))
    assert at(2048) > 0.15, "this module's intervals were found to need more than others'"


def test_a_calibration_without_lengths_is_read_as_before() -> None:
    entry = "family: prefill-attention\nparameters: {launch_s: 1.0e-05}\ncovariance: '0.01'\nmodel_spread: 0.1\n"
    fit = read_entry("file", entry + "flops: [1.0, 1.0e+12]\nhbm_bytes: [1.0, 1.0e+12]\n", PREFILL)
    assert fit.lengths is None
    kernel = attention("a", Attention(B=1, S=1024, P=0, H=1, Hkv=1, dk=64, dv=64))
    assert fit.basis(kernel) == "fitted"


def test_the_devices_that_a_file_of_transfers_names_come_nearest_first() -> None:
    spreads = {"b200-sxm": {"l40s": {"gemm": 0.3}, "a100-sxm": {"gemm": 0.2}, "h100-sxm": {"gemm": 0.1}}}
    assert next(iter(nearest_first(spreads)["b200-sxm"])) == "h100-sxm"
