"""Measured serving runs: reading them, fitting engine constants to them, scoring predictions of them."""

import csv
import json
import os
from pathlib import Path

import numpy
import pytest
from typer.testing import CliRunner, Result

from costmodel.cli import app
from costmodel.errors import BadInput
from costmodel.fitting.engine_fit import Response, fit_constants, predicted
from costmodel.hardware import load_hardware
from costmodel.parallel.layout import Layout
from costmodel.planning.benchmark_setups import speculative
from costmodel.planning.engine_constants import CONSTANTS, LIBRARY_PRIORS, engine_constants, prior_constants
from costmodel.planning.engine_settings import library_settings
from costmodel.planning.serving_fit import fit_responses
from costmodel.planning.serving_predictions import bounds, read_rows, replayed
from costmodel.planning.serving_rows import ServingRow
from costmodel.planning.step_times import HostTime

OWN = "library,arch,hw,layout,concurrency,input,output,requests_per_client,ttft_s,tpot_s"
RUNS = (
    ("vllm", "qwen3-0.6b", "h100-sxm", "tp1", 1, 256, 32),
    ("vllm", "qwen3-0.6b", "h100-sxm", "tp2", 8, 256, 32),
    ("vllm", "llama-3.1-8b", "h100-sxm", "tp1", 4, 512, 64),
    ("vllm", "llama-3.1-8b", "h100-sxm", "tp2", 16, 512, 32),
)
TRUE = HostTime(step_s=8e-4, layer_s=1.5e-5, sequence_s=1e-5, front_end_s=2e-2)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def measured(path: Path, host: HostTime = TRUE) -> Path:
    """A file of runs as an engine with these host times would show them."""
    path.write_text("\n".join([OWN, *(",".join(map(str, (*one, 5, 1, 1))) for one in RUNS)]) + "\n")
    lines = [OWN]
    for one, row in zip(RUNS, read_rows(path), strict=True):
        ttft, tpot = replayed(row, host)
        lines.append(",".join(map(str, (*one, 5, ttft, tpot))))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_constants_are_found_again_and_used_without_being_told(home: Path, tmp_path: Path) -> None:
    path = measured(tmp_path / "runs.csv")
    found = run("calibrate", "--from-serving", str(path), "--format", "json")
    assert {row["hw"] for row in json.loads(found.stdout)["rows"]} == {"any other", "h100-sxm"}
    assert (home / "engines" / "vllm.yaml").is_file()
    constants = engine_constants("vllm", load_hardware("h100-sxm"))
    assert constants.id == "engines/vllm"
    for row in read_rows(path):
        (_, before), (ttft, after) = (replayed(row, host) for host in (HostTime(**prior_constants()), constants.host))
        assert row.ttft_s == pytest.approx(ttft, rel=0.25)
        # Four runs move the priors a part of the way.
        assert abs(after / (row.tpot_s or 0) - 1) < 0.7 * abs(before / (row.tpot_s or 0) - 1)
    question = ("--concurrency", "4", "--input", "512", "--output", "64", "--requests", "20", "--format", "json")
    served = ("--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--library", "vllm")
    (answer,) = json.loads(run("simulate", *served, *question).stdout)["rows"]
    assert answer["tpot_mean_s"] == pytest.approx(replayed(read_rows(path)[2], constants.host)[1], rel=0.01)


def test_a_model_is_scored_by_constants_that_have_not_seen_it(home: Path, tmp_path: Path) -> None:
    path = measured(tmp_path / "runs.csv")
    run("calibrate", "--from-serving", str(path))
    device = load_hardware("h100-sxm")
    whole, without = (engine_constants("vllm", device, without=name).host for name in (None, "llama-3.1-8b"))
    assert whole != without
    assert engine_constants("vllm", device, without="a model of which no run was there").host == whole
    answer = run("validate", "--serving", str(path), "--worst", "3", "--format", "json", "--jobs", "1")
    found = json.loads(answer.stdout)
    keys = {"system", "library", "model", "mode", "metric", "method", "n", "flagged", "unscored", "median_ape"}
    keys |= {"mean_ape", "p90_ape", "median_log_error", "bias", "coverage80"}
    assert all(set(row) == keys for row in found["rows"])
    assert {row["method"] for row in found["rows"]} == {"costmodel", "generic constants", "roofline"}
    errors = {
        (row["method"], row["metric"]): row for row in found["summary"] if row["library"] == row["model"] == "all"
    }
    assert errors["costmodel", "tpot"]["n"] == len(RUNS)
    assert errors["costmodel", "tpot"]["median_ape"] < errors["roofline", "tpot"]["median_ape"]
    assert errors["costmodel", "tpot"]["coverage80"] is not None
    assert errors["roofline", "tpot"]["bias"] < 0
    assert len(found["worst"]) == 3
    (llama,) = [
        row
        for row in found["rows"]
        if (row["model"], row["method"], row["metric"]) == ("llama-3.1-8b", "costmodel", "tpot")
    ]
    expected = [
        abs(replayed(row, without)[1] / (row.tpot_s or 0) - 1) for row in read_rows(path) if row.arch == "llama-3.1-8b"
    ]
    assert llama["median_ape"] == pytest.approx(100 * float(numpy.median(expected)), abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concurrency": ""}, "line 2: concurrency is missing"),
        ({"tpot_s": "-1"}, "line 2: tpot_s -1 is outside 0 to 1e+06 seconds"),
        ({"layout": "tq8"}, "line 2: layout 'tq8': unknown degree 'tq'"),
        ({"ttft_s": "", "tpot_s": ""}, "line 2: neither ttft_s nor tpot_s is given"),
    ],
)
def test_wrong_lines_are_refused_by_number(change: dict[str, str], message: str, home: Path, tmp_path: Path) -> None:
    entry = dict(zip(OWN.split(","), map(str, (*RUNS[0], 5, 0.1, 0.01)), strict=True)) | change
    path = tmp_path / "runs.csv"
    path.write_text(f"{OWN}\n{','.join(entry.values())}\n")
    for command in ("calibrate", "--from-serving"), ("validate", "--serving"):
        assert message in run(*command, str(path), code=2).stderr


def test_wrong_columns_files_and_options_are_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("library,arch,hw,concurency,input,output,ttft_s\nvllm,a,b,1,1,1,1\n")
    answer = run("validate", "--serving", str(path), code=2).stderr
    assert "missing column 'concurrency'" in answer
    assert "unknown column 'concurency'; did you mean 'concurrency'?" in answer
    assert "no such file" in run("validate", "--serving", str(tmp_path / "none.csv"), code=2).stderr
    assert "exclude each other" in run("validate", "--serving", str(path), "--silicon", "x", code=2).stderr
    assert "holds no line" in _refused(path, OWN + "\n")
    assert (
        "no such run; the file has vllm"
        in run("validate", "--serving", str(measured(path)), "--library", "sglang", code=2).stderr
    )


def _refused(path: Path, text: str) -> str:
    path.write_text(text)
    return run("validate", "--serving", str(path), code=2).stderr


def test_a_file_of_constants_with_problems_is_refused_with_all_of_them(home: Path) -> None:
    (home / "engines").mkdir(parents=True)
    text = "schema: 1\nlibrary: vllm\nconstants: {step_s: 7, layer: 0.1}\n"
    (home / "engines" / "vllm.yaml").write_text(text)
    with pytest.raises(BadInput, match="step_s: 7 is outside 0 to 0.005 seconds") as refused:
        engine_constants("vllm")
    assert "layer" in str(refused.value)
    assert "did you mean" in str(refused.value)


def test_priors_lie_inside_their_bounds_and_shipped_constants_too() -> None:
    for library in ("vllm", "sglang", "trtllm", "prior"):
        for name, value in prior_constants(library).items():
            (constant,) = [one for one in CONSTANTS if one.name == name]
            assert constant.low <= value <= constant.high
        for hw in ("h100-sxm", "b200-sxm", "h200-sxm", "l4"):
            assert engine_constants(library, load_hardware(hw)).host.front_end_s >= 0
    assert set(LIBRARY_PRIORS) == {"trtllm"}
    assert engine_constants("prior").id is None


def test_a_disturbed_run_does_not_rule_the_fit() -> None:
    known = bounds()
    slope = numpy.array([[1.0, 60, 0, 0, 16, 1.0], [1.0, 60, 0, 0, 16, 0.0]])
    base = numpy.array([0.08, 0.010])
    start = known.start("vllm")
    true = start + numpy.array([1e-4, 5e-6, 0, 0, 0, 0])
    one = Response("vllm", "h100-sxm", "a", base, slope, (0.1, 0.01))
    right = [one._replace(measured=tuple(predicted(one, true, start))) for _ in range(12)]
    wrong = [right[0]._replace(measured=(9.0, 0.011))]
    for runs in (right, right + wrong):
        found = fit_constants(runs, known).constants("vllm", "h100-sxm")
        assert predicted(one, found, start)[1] == pytest.approx(right[0].measured[1], rel=0.03)
    unmeasured = [run._replace(measured=(float("nan"), run.measured[1])) for run in right]
    assert numpy.isfinite(fit_constants(unmeasured, known).constants("vllm", "h100-sxm")).all()


def answers(library: str, model: str, ttft_s: float, hardware: str = "h100-sxm") -> list[Response]:
    """Runs whose TTFT is what a front end adds to 20 ms."""
    slope = numpy.zeros((2, len(CONSTANTS)))
    slope[0, [constant.name for constant in CONSTANTS].index("front_end_s")] = 1.0
    slope[1, 0] = 1.0
    base = numpy.array([0.05, 0.01])
    return [Response(library, hardware, model, base, slope, (ttft_s, 0.01))] * 20


def test_front_ends_leave_their_prior_only_where_unseen_models_are_met_better() -> None:
    agreed = fit_responses([one for name in "abc" for one in answers("vllm", name, 0.1)])
    assert agreed.without["a"].constants("vllm")[5] > 0.06
    # One model waits for seconds, which says nothing of the others.
    apart = fit_responses(
        [*answers("vllm", "a", 5.0), *(one for name in "bcde" for one in answers("vllm", name, 0.05))]
    )
    for name in "bcde":
        assert apart.without[name].constants("vllm")[5] == pytest.approx(0.03, abs=0.005)


def test_libraries_differ_only_as_far_as_unseen_models_are_met_better() -> None:
    step = [constant.name for constant in CONSTANTS].index("step_s")

    def runs(library: str, model: str, tpot_s: float) -> list[Response]:
        return [one._replace(measured=(0.05, tpot_s)) for one in answers(library, model, 0.05)]

    agreed = [one for name in "abc" for one in (*runs("vllm", name, 0.0101), *runs("sglang", name, 0.0112))]
    apart = [*runs("vllm", "a", 0.0101), *runs("vllm", "b", 0.0112), *runs("sglang", "b", 0.0101)]
    apart += [*runs("sglang", "c", 0.0112), *runs("vllm", "c", 0.0101), *runs("sglang", "a", 0.0112)]
    fits = fit_responses(agreed).whole, fit_responses(apart).whole
    gaps = [fit.constants("sglang")[step] - fit.constants("vllm")[step] for fit in fits]
    assert gaps[0] > 1e-4
    assert fits[0].bounds.of_library > fits[1].bounds.of_library


def test_a_front_end_is_the_same_before_every_device() -> None:
    runs = [*answers("vllm", "a", 0.1), *answers("vllm", "a", 0.06, "b200-sxm")]
    found = fit_constants(runs, bounds())
    here, there = (found.constants("vllm", hw) for hw in ("h100-sxm", "b200-sxm"))
    assert here[5] == there[5] > 0.03


def test_the_spread_weighs_models_not_runs() -> None:
    few = [*answers("vllm", "a", 0.05), *answers("vllm", "b", 0.05), *answers("vllm", "c", 0.2)]
    many = [*few, *answers("vllm", "a", 0.05), *answers("vllm", "b", 0.05)]
    one, other = (fit_responses(runs).spreads[""]["ttft"] for runs in (few, many))
    assert one == pytest.approx(other, rel=0.1)
    assert one > 0.5


SILICON = {
    "id": "x",
    "silicon_data_source": "source_file=2026-04-06.csv; silicon_concurrency=64; measured=2026-02-06T00:00:00.000Z",
    "backend": "sglang",
    "backend_version": "0.5.9",
    "model_path": "deepseek-ai/DeepSeek-R1",
    "system": "b200_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": "1024",
    "osl": "8192",
    "gemm_quant_mode": "fp8",
    "batch_size": "64",
    "tp_size": "8",
    "attention_dp_size": "1",
    "moe_tp_size": "8",
    "moe_ep_size": "1",
    "prefill_num_workers": "",
    "decode_num_workers": "",
    "prefill_tp_size": "",
    "decode_tp_size": "",
    "silicon_ttft_ms": "500",
    "silicon_tpot_ms": "20",
}


def silicon(tmp_path: Path, *changes: dict[str, str]) -> list[ServingRow]:
    path = tmp_path / "sample.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, SILICON)
        writer.writeheader()
        writer.writerows({**SILICON, **change} for change in changes)
    return read_rows(path)


def test_layouts_that_the_export_mixed_up_are_read_again(tmp_path: Path) -> None:
    mixed = {"tp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"}
    ranks = {**mixed, "tp_size": "1", "attention_dp_size": "64"}
    rows = silicon(tmp_path, {}, mixed, ranks)
    assert [row.layout for row in rows] == [Layout(tp=8), Layout(tp=8, ep=8), Layout(dp=8, ep=8)]
    assert [row.reread for row in rows] == [False, True, True]


def test_lengths_formats_and_settings_follow_the_publisher(tmp_path: Path) -> None:
    own = {"silicon_data_source": "source_file=/x/h100.csv; silicon_concurrency=16", "model_path": "Qwen/Qwen3-32B"}
    own |= {"system": "h100_sxm", "gemm_quant_mode": "", "precision": "", "backend": "trtllm", "osl": "128"}
    nvidia, public = silicon(tmp_path, own, {})
    assert (public.inputs.kind, public.inputs.a, public.inputs.b, public.per_client) == ("uniform", 819, 1024, 10)
    assert (nvidia.inputs.kind, nvidia.outputs.a, nvidia.per_client) == ("fixed", 128, 10)
    assert public.settings.poll_iterations == 30
    # The generator of its deployments gives a chunk room for 512 sequences, a prompt and 1,500 tokens, in whole pages.
    told = {"max_sequences": 512, "max_batched_tokens": 3040, "utilisation": 0.8}
    assert nvidia.settings == library_settings("trtllm")._replace(**told)
    assert nvidia.settings.whole_prompts
    assert (public.formats.kv, nvidia.formats.kv) == ("fp8", None)


def test_equal_runs_count_once_and_what_cannot_be_scored_is_counted(tmp_path: Path) -> None:
    disaggregated = {"mode": "disagg", "prefill_tp_size": "8", "decode_tp_size": "8"}
    counted = {**disaggregated, "prefill_num_workers": "2", "decode_num_workers": "1"}
    rows = silicon(tmp_path, {}, {}, {"silicon_tpot_ms": "30"}, disaggregated, disaggregated, counted)
    merged = [row for row in rows if row.mode == "agg"]
    assert [(row.merged, row.tpot_s) for row in merged] == [(3, pytest.approx(0.025))]
    assert [row.unscored for row in rows if row.layout is None] == ["disaggregated, without worker counts"] * 2
    (full,) = [row for row in rows if row.mode == "disagg" and row.scored]
    assert str(full.layout) == "prefill:2xtp8,decode:1xtp8"


def test_runs_with_speculative_decoding_are_flagged_by_image_and_date(tmp_path: Path) -> None:
    assert speculative("trtllm", "deepseek-v3", "1.2.0rc6.post3", "")
    assert not speculative("trtllm", "deepseek-v3", "1.2.0rc6.post2", "2026-02-03")
    assert speculative("trtllm", "deepseek-v3", "1.1.0rc2.post2", "2026-01-14")
    assert not speculative("trtllm", "deepseek-v3", "1.1.0rc2.post2", "2025-12-15")
    (row,) = silicon(tmp_path, {"backend": "trtllm", "backend_version": "1.2.0rc6.post3"})
    assert "speculative" in row.flagged
    assert not row.scored


@pytest.mark.skipif("COSTMODEL_SILICON" not in os.environ, reason="no measured runs at hand")
def test_every_row_of_the_sample_is_read_and_accounted_for() -> None:
    path = Path(os.environ["COSTMODEL_SILICON"]) / "systems" / "silicon_sample.csv"
    if not path.is_file():
        pytest.skip("no measured runs at hand")
    rows = read_rows(path)
    with path.open(newline="") as stream:
        assert sum(row.merged for row in rows) == sum(1 for _ in csv.DictReader(stream))
    assert {row.arch for row in rows if row.scored} >= {"deepseek-v3", "llama-3.1-70b"}
