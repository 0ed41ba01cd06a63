"""The composer: bounds, intervals, memory, energy, precision, calibrations that drop in."""

import itertools
import math
from pathlib import Path

import pytest
import yaml

from costmodel import predict
from costmodel.calibration import SEPARATOR, check_calibration, read_calibration
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput, Impossible
from costmodel.fit import prior_fit
from costmodel.hardware import load_hardware
from costmodel.kernels import forms
from costmodel.kernels.base import BOUNDS, waves
from costmodel.kernels.gemm import FORM, Gemm, gemm
from costmodel.model_file import load_architecture
from costmodel.prediction import StepPrediction, make_precision, make_step
from costmodel.report.predictions import formats_text
from costmodel.timing import expected, roofline

MODELS = ("llama-3.1-8b", "gpt-oss-120b", "deepseek-v3.2", "kimi-linear-48b-a3b", "mamba2-2.7b", "rwkv7-2.9b")
CONTEXTS = (1, 127, 4096, 131_072, 10_000_000)


@pytest.fixture(autouse=True)
def _no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "user"))


def rows(model: str) -> tuple[StepPrediction, ...]:
    return predict(model, "h100-sxm", CONTEXTS, phase="all").rows


@pytest.mark.parametrize("model", MODELS)
def test_expected_time_lies_between_the_bounds_and_inside_its_interval(model: str) -> None:
    for row in rows(model):
        assert 0 < row.roofline_s <= row.time_s <= row.serial_s * (1 + 1e-12)
        assert row.time_low_s < row.time_s < row.time_high_s
        assert row.bound in BOUNDS


@pytest.mark.parametrize("model", MODELS)
def test_time_and_work_never_fall_as_the_context_grows(model: str) -> None:
    for phase in ("prefill", "decode", "train"):
        times = [row for row in rows(model) if row.phase == phase]
        for before, after in itertools.pairwise(times):
            assert after.flops >= before.flops
            assert after.hbm_bytes >= before.hbm_bytes
            assert after.time_s >= before.time_s * 0.999


@pytest.mark.parametrize("model", MODELS)
def test_breakdown_sums_to_the_row(model: str) -> None:
    for row in rows(model):
        assert sum(kernel.time_s for kernel in row.breakdown) == pytest.approx(row.time_s)
        assert sum(kernel.flops for kernel in row.breakdown) == pytest.approx(row.flops)
        assert sum(kernel.share for kernel in row.breakdown) == pytest.approx(1)


def test_training_step_of_a_dense_model_does_three_times_the_forward_flops() -> None:
    """Forward 1, backward 2 in the products; attention's backward recomputes its scores (2.5)."""
    forward = predict("llama-3.1-8b", "h100-sxm", 4096, phase="prefill").row
    train = predict("llama-3.1-8b", "h100-sxm", 4096, phase="train").row
    attention = 2 * 32 * 32 * (4096 * 4097 // 2) * 256  # 2 · layers · heads · pairs · (dk + dv)
    head = 2 * 4096 * 128_256  # the head runs on one position in prefill and on all in training
    products = forward.flops - attention - head + 4096 * head
    assert train.flops == pytest.approx(3 * products + 3.5 * attention)


def test_prefill_in_chunks_does_the_work_of_the_whole() -> None:
    whole = predict("llama-3.1-8b", "h100-sxm", 8192, phase="prefill").row
    head = 2 * 4096 * 128_256
    parts = [
        predict("llama-3.1-8b", "h100-sxm", end, phase="prefill", new_tokens=2048).row
        for end in (2048, 4096, 6144, 8192)
    ]
    assert sum(part.flops - head for part in parts) == whole.flops - head


def test_memory_counts_weights_cache_and_working_set() -> None:
    row = predict("llama-3.1-8b", "h100-sxm", 131_072, batch=2).row
    assert row.weight_bytes == 2 * 8_030_261_248
    assert row.cache_bytes == 2 * 131_072 * 131_072  # 128 KiB per token: 32 layers · 8 heads · 256 · 2 bytes
    assert row.memory_bytes == row.weight_bytes + row.cache_bytes + row.activation_bytes
    assert row.fits == (row.memory_bytes <= 80 * 2**30)


def test_cache_is_counted_once_and_not_again_as_what_attention_reads() -> None:
    row = predict("llama-3.1-8b", "h100-sxm", 131_072, batch=2).row
    # 2 sequences: the final norm writes residual and normed state, then come the logits; no layer's 1 GiB of cache.
    assert row.activation_bytes == 2 * 2 * 4096 * 2 + 2 * 128_256 * 2


def test_fp8_cache_halves_the_cache() -> None:
    half = predict("llama-3.1-8b", "h100-sxm", 8192, kv="fp8").row.cache_bytes
    assert 2 * half == predict("llama-3.1-8b", "h100-sxm", 8192).row.cache_bytes


def test_energy_lies_between_idle_and_limit() -> None:
    row = predict("llama-3.1-8b", "h100-sxm", 8192, phase="prefill").row
    assert row.energy_j is not None
    assert 0.15 * 700 * row.time_s < row.energy_j <= 700 * row.time_s


def test_narrow_weights_reach_the_engine_or_are_refused() -> None:
    faster = predict("llama-3.1-70b", "h100-sxm", 8192, weights="fp8").row
    assert faster.time_s < 0.65 * predict("llama-3.1-70b", "h100-sxm", 8192).row.time_s
    with pytest.raises(Impossible, match=r"fp8 on a100-sxm: no engine with fp8.*--activations bf16"):
        predict("llama-3.1-8b", "a100-sxm", 8192, weights="fp8")
    widened = predict("llama-3.1-8b", "a100-sxm", 8192, weights="fp8", activations="bf16").row
    assert widened.weight_bytes < 0.6 * predict("llama-3.1-8b", "a100-sxm", 8192).row.weight_bytes
    with pytest.raises(Impossible, match="int4 is a weight format"):
        predict("llama-3.1-8b", "a100-sxm", 8192, activations="int4")
    assert predict("llama-3.1-8b", "a100-sxm", 8192, weights="int4").row.weight_bytes < 6e9


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"context": 0}, "context 0 is outside 1 to 1000000000000"),
        ({"context": -5}, "outside"),
        ({"context": 1.5}, "not a whole number"),
        ({"context": True}, "not a whole number"),
        ({"context": 10**12 + 1}, "outside"),
        ({"batch": 0}, "batch 0 is outside"),
        ({"new_tokens": 9000}, "exceed the context"),
        ({"phase": "prefil"}, "did you mean 'prefill'"),
        ({"weights": "fp9"}, "did you mean 'fp8'"),
        ({"phase": "train", "new_tokens": 5}, "whole context"),
        ({"library": "vlm"}, "unknown library"),
    ],
)
def test_bad_arguments_name_the_field_the_value_and_what_is_allowed(arguments: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        predict("llama-3.1-8b", "h100-sxm", **{"context": 8192, **arguments})


def test_names_may_be_unique_prefixes() -> None:
    assert predict("kimi-lin", "b200", 4096).row.arch == "kimi-linear-48b-a3b"
    with pytest.raises(BadInput, match="ambiguous"):
        predict("llama-3.1", "b200", 4096)
    with pytest.raises(BadInput, match="did you mean 'llama-3.1-8b'"):
        predict("llama3.1-8b", "b200", 4096)


def test_settings_change_the_architecture() -> None:
    base = predict("llama-3.1-8b", "h100-sxm", 8192).row
    halved = predict("llama-3.1-8b", "h100-sxm", 8192, settings=["mixers.attn.kv_heads=4"]).row
    assert halved.cache_bytes == base.cache_bytes / 2
    assert predict("llama-3.1-8b", "h100-sxm", 8192, settings=["kv_heads=4"]).row.cache_bytes == halved.cache_bytes
    with pytest.raises(BadInput, match="heads 32 is not a multiple of kv_heads 5"):
        predict("llama-3.1-8b", "h100-sxm", 8192, settings=["kv_heads=5"])
    with pytest.raises(BadInput, match="did you mean 'kv_heads'"):
        predict("llama-3.1-8b", "h100-sxm", 8192, settings=["kv_head=5"])
    with pytest.raises(BadInput, match="ambiguous; candidates"):
        predict("gpt-oss-120b", "h100-sxm", 8192, settings=["kv_heads=4"])


def test_a_denoising_step_of_a_diffusion_model_processes_the_whole_context() -> None:
    row = predict("llada-8b", "h100-sxm", 1024, phase="decode").row
    assert row.new_tokens == 1024
    assert row.cache_bytes == 0
    attention = 4 * 32 * 32 * 128 * 1024**2  # 4 · layers · heads · width · L², no causal half
    assert sum(kernel.flops for kernel in row.breakdown if kernel.family == "diffusion-attention") == attention


def test_parameters_of_every_family_have_priors_inside_bounds() -> None:
    for form in forms().values():
        assert form.parameters
        for parameter in form.parameters:
            assert parameter.low <= parameter.prior <= parameter.high, (form.family, parameter.name)
            assert parameter.unit
            assert parameter.meaning
            if parameter.name.endswith("efficiency"):
                assert parameter.high == 1.0


def test_waves_are_whole_only_as_far_as_asked() -> None:
    assert waves(264, 132, 1.0) == 2
    assert waves(265, 132, 1.0) == 3
    assert waves(1, 132, 0.0) == 1
    assert waves(265, 132, 0.0) == pytest.approx(265 / 132)


def test_gemm_time_never_falls_as_a_size_grows() -> None:
    hardware = load_hardware("h100-sxm")

    def seconds(m: int, n: int, k: int) -> float:
        kernel = gemm("g", Gemm(m=m, n=n, k=k))
        return float(FORM.terms(kernel, hardware, FORM.priors()).total())

    for m in (1, 16, 64, 65, 128, 129, 1000, 4096):
        assert seconds(m, 4096, 4096) <= seconds(2 * m, 4096, 4096) * 1.0001
        assert roofline(gemm("g", Gemm(m=m, n=4096, k=4096)), hardware) < seconds(m, 4096, 4096)


def fitted(tmp_path: Path, **changes: object) -> Path:
    prior = prior_fit(FORM)
    names = list(prior.values)
    entry = {
        "family": "gemm",
        "instance": "bf16",
        "parameters": {**prior.values, "memory_efficiency": 0.5},
        "covariance": "\n".join(" ".join(["0.0"] * row + ["1e-4"]) for row in range(len(names))),
        "model_spread": 0.01,
        "points": 20,
        "flops": [1e3, 1e15],
        "hbm_bytes": [1e3, 1e12],
        **changes,
    }
    folder = tmp_path / "user" / "calibrations" / "h100-sxm"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vllm.yaml"
    header = {"schema": 1, "id": "mine", "hardware": "h100-sxm", "library": "vllm"}
    path.write_text(SEPARATOR.join(yaml.safe_dump(part, sort_keys=False).rstrip() for part in (header, entry)))
    return path


def test_a_users_calibration_drops_in_and_is_named(tmp_path: Path) -> None:
    before = predict("llama-3.1-8b", "h100-sxm", 1024, library="prior").row
    fitted(tmp_path)
    after = predict("llama-3.1-8b", "h100-sxm", 1024).row
    # GEMMs make up more than 90 % of the time here, so the sum is fitted; at 128k a relative's attention has its say.
    assert (after.calibration, after.library, after.basis) == ("mine", "vllm", "fitted")
    longer = predict("llama-3.1-8b", "h100-sxm", 131_072).row
    assert longer.basis == "transferred"
    assert any(text.startswith("decode-attention from ") for text in longer.borrowed)
    assert after.time_s > 1.3 * before.time_s
    assert {kernel.basis for kernel in after.breakdown if kernel.family == "gemm"} == {"fitted"}
    spread_before = math.log(before.time_high_s / before.time_s)
    assert math.log(after.time_high_s / after.time_s) < spread_before


def test_outside_the_measured_range_a_fit_says_extrapolated(tmp_path: Path) -> None:
    fitted(tmp_path, hbm_bytes=[1e3, 1e5])
    row = predict("llama-3.1-8b", "h100-sxm", 1024).row
    assert {kernel.basis for kernel in row.breakdown if kernel.family == "gemm"} == {"extrapolated"}


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"parameters": {"memory_efficiency": 1.7}, "covariance": "0.1"},
            "memory_efficiency: 1.7 is outside 0.05 to 1",
        ),
        ({"family": "gem"}, "did you mean 'gemm'"),
        ({"covariance": "1.0"}, "not the lower triangle of a positive"),
        ({"flops": 3}, "flops: expected"),
        ({"model_spread": -1}, "model_spread"),
    ],
)
def test_a_broken_calibration_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_calibration(read_calibration(fitted(tmp_path, **changes)), forms())


def test_covariance_is_carried_through_its_independent_directions(tmp_path: Path) -> None:
    """Two fully correlated parameters give one direction with both changes in it."""
    path = fitted(
        tmp_path,
        parameters={"launch_s": 2e-6, "tensor_efficiency": 0.8},
        covariance="0.04\n0.02 0.01",
    )
    (fit,) = read_calibration(path).fits(FORM)
    (only,) = fit.columns
    assert only == pytest.approx({"launch_s": 0.2, "tensor_efficiency": 0.1})


def test_prior_is_used_and_named_without_a_calibration() -> None:
    hardware = load_hardware("h100-sxm")
    calibration = find_calibration(hardware, "prior")
    architecture = load_architecture("llama-3.1-8b")
    step = make_step(architecture, "decode", 4096)
    kernels = architecture.kernels(step, make_precision(architecture, hardware))
    assert {entry.fit.basis(entry.kernel) for entry in expected(kernels, hardware, calibration)} == {"prior"}


def test_sweep_equals_single_predictions() -> None:
    numpy = pytest.importorskip("numpy")
    from costmodel.sweep import sweep

    contexts, batches = numpy.array([1, 1000, 70_000, 1_048_576]), numpy.array([1, 3, 64, 2])
    for model in MODELS:
        for phase in ("prefill", "decode"):
            flat = sweep(model, "h100-sxm", contexts, batches, phase=phase)
            single = [
                predict(model, "h100-sxm", int(length), batch=int(batch), phase=phase).time_s
                for length, batch in zip(contexts, batches, strict=True)
            ]
            assert flat == pytest.approx(single, rel=1e-9)
    grid = sweep("llama-3.1-8b", "h100-sxm", contexts[:, None], batches[None, :])
    assert grid.shape == (4, 4)
    assert numpy.diagonal(grid) == pytest.approx(sweep("llama-3.1-8b", "h100-sxm", contexts, batches))
    with pytest.raises(BadInput, match="not a whole number"):
        sweep("llama-3.1-8b", "h100-sxm", [1.5], [1])


def test_titles_name_the_models_formats_where_its_own_are_asked_for() -> None:
    model, hardware = load_architecture("deepseek-v3"), load_hardware("h100-sxm")
    own = dict.fromkeys(("weights", "kv", "activations"), "own")
    assert formats_text(model, hardware, own) == formats_text(model, hardware, dict.fromkeys(own))


def test_own_formats_are_the_models_as_they_are_in_plan() -> None:
    model, hardware = load_architecture("deepseek-v3"), load_hardware("h100-sxm")
    assert make_precision(model, hardware, "own", "own", "own") == make_precision(model, hardware)
    assert make_precision(model, hardware, "own", "bf16") == make_precision(model, hardware, None, "bf16")
    with pytest.raises(BadInput, match="did you mean 'own'"):
        make_precision(model, hardware, "onw")
