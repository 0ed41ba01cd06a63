"""`calibrate` and `validate` from end to end, on tables that a known kernel wrote."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import yaml

from costmodel.calibration import SEPARATOR, check_calibration, read_calibration
from costmodel.errors import BadInput
from costmodel.fitting.device_sheet import hardware_of_sheet
from costmodel.fitting.measured_table import MeasuredTable
from costmodel.fitting.scoring import METHODS, MODEL, Outcome, summaries, unscored
from costmodel.fitting.series import Series
from costmodel.fitting.silicon import FLAG, data_root, flag_spikes, read_table, readers, tables
from costmodel.fitting.splits import parse_split
from costmodel.hardware import load_hardware
from costmodel.kernels import forms
from costmodel.kernels.base import replayed
from costmodel.kernels.gemm import FORM, Gemm, gemm
from costmodel.prediction import predict
from costmodel.report.calibrations import calibrate_and_print
from costmodel.report.progress import Progress
from costmodel.report.validation_plot import draw_validation

REPOSITORY = Path(__file__).resolve().parent.parent
TRUTH = {**FORM.priors(), "tensor_efficiency": 0.7, "memory_efficiency": 0.6}


def write_tables(root: Path, system: str = "h100_sxm", slower: float = 1.0) -> Path:
    """A checkout with one table of products, timed by the form itself with known parameters and 3 % noise."""
    random = numpy.random.default_rng(0)
    sizes = 2.0 ** numpy.arange(0, 14)
    shapes = pandas.DataFrame([(m, n, k) for m in sizes for n in sizes[8:] for k in sizes[8:]], columns=["m", "n", "k"])
    product = gemm("gemm", Gemm(m=shapes["m"].to_numpy(), n=shapes["n"].to_numpy(), k=shapes["k"].to_numpy()))
    (product,) = replayed([product], 6)  # as benchmarks of this library do, over six copies of the weights
    seconds = numpy.asarray(FORM.terms(product, load_hardware("h100-sxm"), TRUTH).total()) * slower
    frame = shapes.astype(int).assign(
        framework="VLLM",
        version="1.0.0",
        device="a device",
        op_name="gemm",
        kernel_source="cublas",
        gemm_dtype="bfloat16",
        latency=1e3 * seconds * numpy.exp(0.03 * random.standard_normal(len(shapes))),
    )
    folder = root / "systems" / "data" / system / "gemm" / "vllm" / "1.0.0"
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "gemm_perf.parquet")
    frame.to_parquet(folder / "unheard_of_perf.parquet")
    return root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("checkout"))


def run(*arguments: str, home: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "cli.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "COSTMODEL_DATA": str(home)},
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def calibrated(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The user's folder after a calibration, and what the command printed."""
    home = tmp_path_factory.mktemp("home")
    result = run("calibrate", "--from-silicon", str(checkout), "--hw", "h100-sxm", home=home)
    return home, result.stdout, result.stderr


def test_a_calibration_finds_the_kernels_parameters_and_predict_uses_it(calibrated: tuple[Path, str, str]) -> None:
    home, out, err = calibrated
    path = home / "calibrations" / "h100-sxm" / "vllm.yaml"
    calibration = read_calibration(path)
    check_calibration(calibration, forms())
    fit = calibration.fit(gemm("g", Gemm(m=512, n=512, k=512)))
    assert fit.values["memory_efficiency"] == pytest.approx(0.6, rel=0.05)
    assert fit.kernel == "cublas 1.0.0"
    assert "no reader for table unheard_of" in err
    assert "cublas" in out
    row = run("predict", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--context", "4k", "-f", "json", home=home)
    assert json.loads(row.stdout)["rows"][0]["calibration"] == "h100-sxm/vllm-1.0.0"


def test_a_calibration_says_where_it_comes_from(calibrated: tuple[Path, str, str]) -> None:
    text = (calibrated[0] / "calibrations" / "h100-sxm" / "vllm.yaml").read_text()
    header = text.split("\n---\n")[0]
    for word in ("aiconfigurator", "Apache-2.0", "seed: 0", "version: 1.0.0", "date:"):
        assert word in header
    assert "held_out" in text
    entry = yaml.safe_load(text.split(SEPARATOR)[1])
    bounds = {parameter.name: f"{parameter.low:g}..{parameter.high:g}" for parameter in FORM.parameters}
    assert entry["bounds"].split(", ") == [bounds[name] for name in entry["parameters"]]


def test_few_points_are_chosen_printed_and_enough(checkout: Path, tmp_path: Path) -> None:
    result = run(
        "calibrate",
        "--from-silicon",
        str(checkout),
        "--hw",
        "h100-sxm",
        "--points",
        "12",
        "--out",
        str(tmp_path),
        home=tmp_path,
    )
    assert "12 points, in the order of their worth" in result.stdout
    fit = read_calibration(tmp_path / "calibration.yaml").fit(gemm("g", Gemm(m=512, n=512, k=512)))
    assert fit.points == 12
    held_out = yaml.safe_load((tmp_path / "calibration.yaml").read_text().split(SEPARATOR)[1])["held_out"]
    assert held_out["n"] > 60
    assert held_out["median_ape"] < 8


def test_validate_scores_every_method_on_points_put_aside(checkout: Path, calibrated: tuple[Path, str, str]) -> None:
    result = run("validate", "--silicon", str(checkout), "-f", "json", "--worst", "3", home=calibrated[0])
    told = json.loads(result.stdout)
    by_method = {row["method"]: row for row in told["rows"]}
    assert set(by_method) == set(METHODS)
    own = by_method["costmodel"]
    assert own["median_ape"] < 4
    assert 70 < own["coverage80"] < 90
    assert own["median_ape"] < by_method["roofline/0.75+3us"]["median_ape"] < by_method["roofline"]["median_ape"]
    assert own["n"] == by_method["table"]["n"]
    assert {"system", "library", "version", "family", "kernel", "mechanism", "phase", "split", "flagged"} <= set(own)
    assert len(told["worst"]) == 3


def test_a_systems_prefix_is_enough_and_every_kernel_has_its_baselines_beside(
    checkout: Path, calibrated: tuple[Path, str, str]
) -> None:
    """`h100` alone is two profiles; in the folder it is one system."""
    result = run("validate", "--silicon", str(checkout), "--hw", "h100", "-f", "markdown", home=calibrated[0])
    head = next(line for line in result.stdout.splitlines() if line.startswith("|") and "kernel" in line)
    for name in ("version", "roofline/0.75+3us", "table", "boosting"):
        assert name in head
    assert "| 1.0.0 |" in result.stdout


@pytest.mark.parametrize("split", ["extrapolate", "points=10", "all", "unseen-gpu=h100-sxm"])
def test_every_split_says_its_name(checkout: Path, tmp_path: Path, split: str) -> None:
    result = run(
        "validate", "--silicon", str(checkout), "--split", split, "--methods", "costmodel", "-f", "json", home=tmp_path
    )
    assert {row["split"] for row in json.loads(result.stdout)["rows"]} == {split}


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("calibrate", "--hw", "h100-sxm"), "either --from-silicon DIR or --from-csv"),
        (("calibrate", "--hw", "h100-sxm", "--from-silicon", "nowhere"), "no tables found"),
        (("calibrate", "--hw", "h200-sxm", "--from-silicon", "{checkout}"), "unknown system"),
        (("calibrate", "--hw", "h100-sxm", "--from-silicon", "{checkout}", "--library", "vlm"), "did you mean 'vllm'"),
        (("validate", "--silicon", "{checkout}", "--split", "shape"), "did you mean 'shapes'"),
        (("validate", "--silicon", "{checkout}", "--methods", "rofline"), "did you mean 'roofline'"),
        (("validate", "--silicon", "{checkout}", "--family", "gem"), "did you mean 'gemm'"),
        (("validate", "--silicon", "{checkout}", "--hw", "h200-sxm"), "unknown system"),
        (("validate", "--silicon", "{checkout}", "--worst", "3", "-f", "csv"), "--worst: csv holds one table"),
        (("validate", "--silicon", "{checkout}", "--context", "4k"), "--context: only with --device or --measurements"),
        (("validate", "--silicon", "{checkout}", "--split", "all", "--refit"), "split all fits nothing"),
        (
            ("validate", "--silicon", "{checkout}", "--split", "unseen-gpu=h100-sxm", "--hw", "l40s"),
            "split unseen-gpu=h100-sxm is about h100-sxm",
        ),
        (("validate", "--device", "cpu", "--methods", "roofline", "--jobs", "1"), "--methods, --jobs: only with"),
        (("validate", "--serving", "runs.csv", "--split", "all", "--refit"), "--refit, --split: only with --silicon"),
        (("calibrate", "--device", "cpu", "--seed", "1"), "--device and --seed exclude each other"),
        (("predict", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--caches", "warm"), "served"),
        (("predict", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--table", "nowhere"), "no tables found"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    checkout: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    filled = [text.format(checkout=checkout) for text in arguments]
    assert message in run(*filled, home=tmp_path, code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_measured_table_corrects_inside_its_hull_and_leaves_the_trunk_outside(tmp_path: Path) -> None:
    """The table says 1.5 times the trunk's time: inside, so does the prediction; far outside, the trunk is left."""
    root = write_tables(tmp_path, slower=1.5)
    hardware = load_hardware("h100-sxm")
    from costmodel.calibration import PRIOR

    table = MeasuredTable(root, hardware, PRIOR)
    inside, outside = gemm("a", Gemm(m=96, n=3000, k=3000)), gemm("b", Gemm(m=2**40, n=2**40, k=2**40))
    near, far = table.corrections([inside, outside])
    assert near is not None
    assert far is not None
    assert near.inside
    assert not far.inside
    assert near.residual > 0.3
    assert abs(far.residual) < 0.2 * near.residual
    assert far.spread > near.spread
    row = predict("llama-3.1-8b", "h100-sxm", 2048, phase="prefill", library="prior", table=root).row
    assert row.basis in ("table", "prior")
    assert {entry.basis for entry in row.breakdown if entry.family == "gemm"} == {"table"}


def test_a_table_that_corrects_nothing_is_told(checkout: Path, tmp_path: Path) -> None:
    question = ("predict", "--arch", "llama-3.1-8b", "--table", str(checkout), "--phase", "prefill", "--context", "2k")
    told = "no kernel of these steps lies inside a table of this device"
    assert f"h200-sxm: {told}" in run(*question, "--hw", "h200-sxm", home=tmp_path).stderr
    assert told not in run(*question, "--hw", "h100-sxm", home=tmp_path).stderr


def test_replayed_caches_are_never_slower_than_cold_ones() -> None:
    cold, hot = (predict("qwen3-0.6b", "h100-sxm", 4096, caches=caches).row for caches in ("served", "benchmarked"))
    assert hot.time_s < cold.time_s


def test_a_system_without_a_profile_is_read_from_its_sheet(tmp_path: Path) -> None:
    sheet = tmp_path / "x.yaml"
    sheet.write_text(
        "gpu: {mem_bw: 1.0e+12, mem_capacity: 8.0e+10, bfloat16_tc_flops: 2.0e+14, fp8_tc_flops: 4.0e+14,"
        " sm_version: 90}\n"
        "node: {num_gpus_per_node: 8, intra_node_bw: 4.5e+11}\n"
    )
    device = hardware_of_sheet("x", sheet)
    assert device.memory.hbm.bandwidth == 1e12
    assert device.tensor_peak("fp8") == 4e14
    assert device.compute.units == 27  # 2e14 / (4096 FLOPs per clock · 1.8 GHz)
    assert "compute.units" in device.unverified
    with pytest.raises(BadInput, match="no device sheet"):
        hardware_of_sheet("x", tmp_path / "missing.yaml")


def test_tables_are_found_from_any_level_of_a_checkout(checkout: Path) -> None:
    for level in (checkout, checkout / "systems", checkout / "systems" / "data"):
        assert data_root(level) == checkout / "systems" / "data"
    assert [file.name for file in tables(checkout)] == ["gemm", "unheard_of"]


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "h100_sxm" / "gemm" / "vllm" / "1"
    folder.mkdir(parents=True)
    pandas.DataFrame({"m": [1]}).to_parquet(folder / "gemm_perf.parquet")
    with pytest.raises(BadInput, match="column"):
        read_table(tables(tmp_path)[0], load_hardware("h100-sxm"))


def test_spikes_stand_out_from_both_neighbours() -> None:
    rows = pandas.DataFrame({"m": [1, 2, 3, 4], "latency": [1.0, 9.0, 1.1, 5.0], FLAG: ""})
    flag_spikes(rows, "m", [])
    assert list(rows[FLAG]) == ["", "isolated spike", "", ""]


@pytest.mark.parametrize("encoding,bar", [("utf-8", "█" * 6 + "░" * 18), ("ascii", "#" * 6 + "-" * 18)])
def test_progress_is_shown_on_a_slow_terminal_and_wiped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, bar: str
) -> None:
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stderr", screen)
    Progress(4).step()
    assert raw.getvalue() == b""
    monkeypatch.setattr(screen, "isatty", lambda: True)
    progress = Progress(4)
    progress.step()
    progress.start -= 2
    progress.at("gemm cublas", 1, 4)
    shown = raw.getvalue().decode(encoding)
    assert shown.rstrip() == f"\r{bar} 1/4 gemm cublas"
    progress.close()
    screen.flush()
    wiped = raw.getvalue().decode(encoding)[len(shown) :]
    assert wiped.strip() == ""
    assert len(wiped) - 2 >= len(shown) - 1


def test_every_reader_names_its_tables_once() -> None:
    assert {"gemm", "context_attention", "generation_attention", "moe", "nccl"} <= set(readers())


@pytest.mark.parametrize("text", ["shape", "points=0", "points=x", "unseen-gpu=", "all:shapes", ""])
def test_an_unknown_split_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="unknown split"):
        parse_split(text)


def test_several_libraries_are_judged_in_processes_of_their_own(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "checkout")
    other = root / "systems" / "data" / "h100_sxm" / "gemm" / "sglang" / "1.0.0"
    other.mkdir(parents=True)
    first = root / "systems" / "data" / "h100_sxm" / "gemm" / "vllm" / "1.0.0" / "gemm_perf.parquet"
    (other / "gemm_perf.parquet").write_bytes(first.read_bytes())
    told = run("validate", "--silicon", str(root), "--refit", "--jobs", "2", "-f", "json", home=tmp_path / "home")
    assert {row["library"] for row in json.loads(told.stdout)["rows"]} == {"vllm", "sglang"}


def test_a_device_without_a_calibration_is_judged_by_its_relatives(tmp_path: Path) -> None:
    """Its own tables do not fit what they judge; only with --refit are they fitted, and the run says so."""
    root = write_tables(tmp_path / "checkout", "h200_sxm", slower=3.0)
    question = ("validate", "--silicon", str(root), "--methods", "costmodel", "--jobs", "1")
    transferred = run(*question, home=tmp_path / "home")
    assert "note: h200-sxm vllm: transferred from h100-sxm/vllm" in transferred.stderr
    answers = [
        json.loads(run(*question, *more, "-f", "json", home=tmp_path / "home").stdout) for more in ((), ("--refit",))
    ]
    by_relative, by_itself = (answer["rows"][0]["median_ape"] for answer in answers)
    assert by_relative > 30 > 10 > by_itself
    assert {"remark": "h200-sxm vllm: transferred from h100-sxm/vllm-0.24.0"} in answers[0]["remarks"]
    assert any("fitted in this run" in each["remark"] for each in answers[1]["remarks"])


def test_planned_points_are_told_in_every_format_that_can(checkout: Path, tmp_path: Path) -> None:
    question = ("calibrate", "--from-silicon", str(checkout), "--hw", "h100-sxm", "--points", "12")
    question = (*question, "--out", str(tmp_path / "out"))
    planned = json.loads(run(*question, "-f", "json", home=tmp_path).stdout)["planned"]
    assert len(planned) == 12
    assert planned[0].keys() == {"hw", "library", "family", "kernel", "instance", "shape", "bound"}
    markdown = run(*question, "-f", "markdown", home=tmp_path).stdout
    assert all(row["shape"] in markdown for row in planned)


def test_a_run_interrupted_in_a_later_library_keeps_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tables(tmp_path / "checkout")
    first = root / "systems" / "data" / "h100_sxm" / "gemm" / "vllm"
    shutil.copytree(first, first.parent / "sglang")
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "home"))
    asked = {"from_silicon": str(root), "from_csv": None, "hw": "h100-sxm", "library": [], "points": 12, "seed": 0}
    asked |= {"out": str(tmp_path / "out"), "source": None}
    saved: list[Path] = []

    def interrupted(calibrated: Any, path: Path) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(path)

    with monkeypatch.context() as patched:
        patched.setattr("costmodel.fitting.calibrate.save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate_and_print("csv", asked)
    notes = io.StringIO()
    monkeypatch.setattr(sys, "stderr", notes)
    calibrate_and_print("csv", asked)
    assert notes.getvalue().count("1 kernels taken from the interrupted run") == 2
    assert list((tmp_path / "out").rglob("*.partial")) == []


def test_plots_show_every_system_and_count_errors_beyond_their_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    labels: list[str] = []
    titles: list[str] = []
    scatter, dress = Axes.scatter, Axes.set

    def scattered(self: Any, *places: Any, **style: Any) -> Any:
        labels.extend([style["label"]] if "label" in style else [])
        return scatter(self, *places, **style)

    def dressed(self: Any, **settings: Any) -> Any:
        titles.append(settings["title"])
        return dress(self, **settings)

    monkeypatch.setattr(Axes, "scatter", scattered)
    monkeypatch.setattr(Axes, "set", dressed)
    shapes = pandas.DataFrame({"m": [1.0, 2.0]})
    seconds = numpy.array([1e-5, 2e-5])
    flags, rows = numpy.array(["", ""]), numpy.array([0, 1])
    outcomes = [
        Outcome(
            Series(
                f"gpu-{index}", "vllm", "1", "gemm", "k", "", "", shapes, seconds, flags, shapes["m"].to_numpy(), list
            ),
            MODEL,
            rows,
            seconds * numpy.array([1.0, 9.0]),
            None,
        )
        for index in range(9)
    ]
    assert [path.name for path in draw_validation(tmp_path, outcomes, "shapes")] == ["gemm.png"]
    assert labels == [f"gpu-{index} (2)" for index in range(9)]
    assert titles[-1] == "split shapes, 9 points above 150 %"


def test_a_kernel_that_is_flagged_whole_is_told_without_errors(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "checkout")
    path = root / "systems" / "data" / "h100_sxm" / "gemm" / "vllm" / "1.0.0" / "gemm_perf.parquet"
    frame = pandas.read_parquet(path)
    silent = frame[:30].assign(kernel_source="silent", gemm_dtype="fp8", latency=0.0)
    narrow = frame[:20].assign(gemm_dtype="fp8_block", latency=0.0)  # an instance of the kernel that is scored
    pandas.concat([frame, silent, narrow]).to_parquet(path)
    question = ("validate", "--silicon", str(root), "--refit")
    told = json.loads(run(*question, "-f", "json", home=tmp_path / "home").stdout)
    rows = {row["kernel"]: row for row in told["rows"] if row["method"] == "costmodel"}
    assert (rows["cublas"]["n"] > 0, rows["cublas"]["flagged"]) == (True, 20)
    assert (rows["silent"]["n"], rows["silent"]["flagged"]) == (0, 30)
    assert {rows["silent"][key] for key in ("median_ape", "mean_ape", "p90_ape", "bias", "coverage80")} == {None}
    assert {row["method"] for row in told["rows"] if row["kernel"] == "silent"} == set(METHODS)
    assert [(row["n"], row["flagged"]) for row in told["families"]] == [(rows["cublas"]["n"], 50)]
    (line,) = (line for line in run(*question, home=tmp_path / "home").stdout.splitlines() if "silent" in line)
    assert line.split()[-12:] == ["0", "30", *"––––––––––"]


def test_a_family_without_a_scored_point_meets_no_aim() -> None:
    shapes = pandas.DataFrame({"m": [1.0, 2.0]})
    series = Series(
        "a",
        "b",
        "1",
        "gemm",
        "c",
        "bf16",
        "",
        shapes,
        shapes["m"].to_numpy(),
        numpy.array(["no time", "no time"]),
        shapes["m"].to_numpy(),
        lambda shapes: [],
    )
    (row,) = summaries(unscored(series, METHODS), parse_split("shapes"))
    assert (row["n"], row["flagged"], row["reached"], row["met"], row["others"]) == (0, 2, None, "–", {})


def test_prefill_attention_has_a_goal_of_its_own_from_a_thousand_tokens_on() -> None:
    tokens = numpy.array([512.0, 1024.0, 4096.0])
    shapes = pandas.DataFrame({"isl": tokens})
    flags = numpy.array(["", "", ""])
    series = Series("a", "b", "1", "prefill-attention", "c", "bf16", "prefill", shapes, tokens, flags, tokens, list)
    outcome = Outcome(series, MODEL, numpy.arange(3), tokens * numpy.array([1.5, 1.02, 1.04]), None)
    whole, longer = summaries([outcome], parse_split("shapes"))
    assert (whole["family"], whole["n"], whole["stretch"]) == ("prefill-attention", 3, (4, 10))
    assert (longer["family"], longer["n"], longer["floor"]) == ("prefill-attention, ≥ 1k tokens", 2, None)
    assert (longer["stretch"], longer["met"], longer["reached"][0]) == ((3, 8), "stretch", pytest.approx(3.0))
    assert len(summaries([outcome], parse_split("extrapolate"))) == 1


def test_a_kernel_without_a_shape_is_placed_by_its_columns(tmp_path: Path) -> None:
    """A cast has no shape class of its own; the table still tells its points apart."""
    folder = tmp_path / "data" / "h100_sxm" / "quantize" / "vllm" / "1"
    folder.mkdir(parents=True)
    frame = pandas.DataFrame([(m, k) for m in (1, 16, 256, 4096) for k in (128, 1024, 8192)], columns=["m", "k"])
    frame.assign(kernel_source="cast", latency=2e-3 + frame["m"] * frame["k"] * 1e-9).to_parquet(
        folder / "scale_matrix_perf.parquet"
    )
    told = run("validate", "--silicon", str(tmp_path), "--refit", "-f", "json", home=tmp_path / "home")
    assert "costmodel+table" in {row["method"] for row in json.loads(told.stdout)["rows"]}


def test_a_shipped_calibration_is_read_whole_and_shown() -> None:
    from costmodel.calibration_files import calibration_path, libraries

    for device in ("h100-sxm", "a100-sxm", "b200-sxm", "l40s"):
        assert libraries(device) == ["sglang", "trtllm", "vllm"]
        for library in libraries(device):
            check_calibration(read_calibration(calibration_path(device, library)), forms())


def test_show_names_the_nearest_library(tmp_path: Path) -> None:
    assert "did you mean 'vllm'" in run("show", "h100-sxm/vlm", home=tmp_path, code=2).stderr
    out = run("show", "a100-sxm/vllm", home=tmp_path).stdout
    assert "tensor_efficiency" in out
    assert "prior" in out
