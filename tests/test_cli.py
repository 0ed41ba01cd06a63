"""The command line: what each option does, in all formats, on stdout and stderr, with its exit code."""

import csv
import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import costmodel
from costmodel.cli import app
from costmodel.report.columns import shows
from costmodel.report.layout import text_table

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
LLAMA = ("--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--library", "prior")
KEYS = {
    "arch",
    "hw",
    "library",
    "phase",
    "batch",
    "context",
    "new_tokens",
    "time_s",
    "time_low_s",
    "time_high_s",
    "roofline_s",
    "serial_s",
    "bound",
    "basis",
    "flops",
    "hbm_bytes",
    "cache_bytes",
    "weight_bytes",
    "memory_bytes",
    "fits",
    "tokens_per_s",
    "energy_j",
}
KERNEL_KEYS = {"kernel", "family", "count", "time_s", "share", "bound", "flops", "hbm_bytes"}


@pytest.fixture(autouse=True)
def _no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "user"))
    monkeypatch.delenv("COSTMODEL_DEBUG", raising=False)


def run(*arguments: str, code: int = 0) -> Result:
    """A command that must end with this exit code, without a traceback."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.output}"
    assert "Traceback" not in result.output
    return result


def rows(*arguments: str) -> list[dict[str, Any]]:
    """The rows of a command's JSON."""
    return json.loads(run(*arguments, "--format", "json").stdout)["rows"]


def test_json_is_one_object_with_the_agreed_keys() -> None:
    whole = json.loads(run("predict", *LLAMA, "--context", "8k,16k", "--breakdown", "--format", "json").stdout)
    assert set(whole) == {"schema", "command", "version", "inputs", "calibration", "rows"}
    assert (whole["schema"], whole["command"], whole["version"]) == (1, "predict", costmodel.__version__)
    assert whole["inputs"]["context"] == [8192, 16384]
    assert whole["calibration"] is None
    assert [row["context"] for row in whole["rows"]] == [8192, 16384]
    for row in whole["rows"]:
        assert set(row) >= KEYS | {"breakdown"}
        assert all(set(kernel) >= KERNEL_KEYS for kernel in row["breakdown"])
        assert sum(kernel["share"] for kernel in row["breakdown"]) == pytest.approx(1)


def test_json_without_breakdown_has_none() -> None:
    assert "breakdown" not in rows("predict", *LLAMA, "--context", "8k")[0]


def test_csv_holds_the_same_numbers_as_json() -> None:
    table = list(csv.DictReader(io.StringIO(run("predict", *LLAMA, "-c", "8k,1M", "-f", "csv").stdout)))
    for written, row in zip(table, rows("predict", *LLAMA, "-c", "8k,1M"), strict=True):
        assert set(written) >= KEYS
        assert float(written["time_s"]) == row["time_s"]
        assert written["fits"] == str(row["fits"])


def test_csv_of_a_breakdown_has_a_row_for_each_kernel() -> None:
    table = list(csv.DictReader(io.StringIO(run("predict", *LLAMA, "-c", "8k", "--breakdown", "-f", "csv").stdout)))
    kernels = rows("predict", *LLAMA, "-c", "8k", "--breakdown")[0]["breakdown"]
    assert [row["kernel"] for row in table] == [kernel["kernel"] for kernel in kernels]
    assert set(table[0]) >= KERNEL_KEYS | {"arch", "hw", "context"}


def test_markdown_is_a_table_with_as_many_cells_in_every_line() -> None:
    lines = run("predict", *LLAMA, "-c", "8k,16k", "-f", "markdown").stdout.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4  # heading, rule, two contexts
    assert len({line.count("|") for line in table}) == 1


def test_several_architectures_devices_and_phases_give_every_combination() -> None:
    found = rows(
        *("predict", "--arch", "llama-3.1-8b,qwen3-8b", "--arch", "mamba2-2.7b", "--hw", "h100-sxm,a100-sxm"),
        *("--context", "8k", "--phase", "all"),
    )
    assert len(found) == 3 * 2 * 3
    assert len({(row["arch"], row["hw"], row["phase"]) for row in found}) == 18


def test_ranges_double_and_prefixes_are_enough() -> None:
    found = rows("predict", "--arch", "kimi-lin", "--hw", "h200", "--context", "4k..32k,100")
    assert [row["context"] for row in found] == [4096, 8192, 16384, 32768, 100]
    assert {row["arch"] for row in found} == {"kimi-linear-48b-a3b"}
    assert {row["hw"] for row in found} == {"h200-sxm"}


def test_defaults_are_decode_at_4k_to_128k() -> None:
    found = rows("predict", *LLAMA)
    assert [row["context"] for row in found] == [4096 * 2**power for power in range(6)]
    assert {(row["phase"], row["batch"], row["new_tokens"]) for row in found} == {("decode", 1, 1)}


def test_batch_new_tokens_and_number_formats_reach_the_model() -> None:
    (plain,) = rows("predict", *LLAMA, "-c", "8k")
    (batched,) = rows("predict", *LLAMA, "-c", "8k", "--batch", "2k", "--new-tokens", "4")
    assert (batched["batch"], batched["new_tokens"]) == (2048, 4)
    assert batched["cache_bytes"] == 2048 * plain["cache_bytes"]
    (narrow,) = rows("predict", *LLAMA, "-c", "8k", "--weights", "fp8", "--kv", "fp8", "--activations", "bf16")
    assert narrow["cache_bytes"] == plain["cache_bytes"] / 2
    assert narrow["weight_bytes"] < 0.6 * plain["weight_bytes"]


def test_settings_change_architecture_and_device() -> None:
    (plain,) = rows("predict", *LLAMA, "-c", "8k")
    (changed,) = rows("predict", *LLAMA, "-c", "8k", "--set", "kv_heads=4", "--set", "hw.memory.hbm.bandwidth=2x")
    assert changed["cache_bytes"] == plain["cache_bytes"] / 2
    assert changed["roofline_s"] < 0.6 * plain["roofline_s"]


def test_table_says_what_it_rests_on() -> None:
    text = run("predict", *LLAMA, "-c", "8k").stdout
    assert "llama-3.1-8b on h100-sxm · decode · batch 1" in text
    assert "prior: parameters and intervals are priors, not measurements" in text
    for heading in ("80 % interval", "no overlap", "bound", "FLOP/byte", "tokens/s", "energy"):
        assert heading in text


def test_breakdown_lists_the_kernels_by_time() -> None:
    text = run("predict", *LLAMA, "-c", "8k", "--breakdown").stdout
    assert "decode at 8k: kernels by time" in text
    shares = [float(share) for share in re.findall(r"([\d.]+) %  ", text.partition("kernels by time")[2])]
    assert len(shares) > 5
    assert shares == sorted(shares, reverse=True)


def test_what_does_not_fit_is_a_note_and_still_exit_0() -> None:
    result = run("predict", "--arch", "llama-3.1-405b", "--hw", "h100-sxm", "-c", "8k", "-f", "json")
    assert json.loads(result.stdout)["rows"][0]["fits"] is False
    assert re.search(r"does not fit in the 80 GiB of one h100-sxm: 8k by [\d.]+ GiB", result.stderr)


def test_unverified_facts_are_a_note() -> None:
    result = run("predict", "--arch", "llama-3.1-8b", "--hw", "h20", "-c", "8k")
    assert "h20: unverified: compute.clock" in result.stderr
    assert "unverified" not in result.stdout


def test_output_has_no_escape_sequences() -> None:
    for command in (("predict", *LLAMA, "-c", "8k"), ("predict", "--help"), ("list", "hardware")):
        assert "\x1b" not in run(*command).output


def test_equal_questions_give_equal_answers_byte_for_byte() -> None:
    question = ("predict", *LLAMA, "-c", "4k..64k", "-p", "all", "--breakdown", "-f", "json")
    assert run(*question).stdout_bytes == run(*question).stdout_bytes


@pytest.mark.parametrize("width", [40, 80, 120])
def test_narrow_terminals_get_all_columns_below_each_other(width: int) -> None:
    columns = [shows("context"), *(shows(f"number_{index}") for index in range(20))]
    table = [{"context": 4096 * 2**power, **{f"number_{index}": index for index in range(20)}} for power in range(3)]
    text = text_table(table, columns, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"number {index}" in text for index in range(20))
    assert text.count("16k") == len(text.split("\n\n"))


def test_long_cells_are_broken_at_spaces() -> None:
    text = text_table([{"name": "a", "summary": "word " * 40}], [shows("name"), shows("summary", right=False)], 60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("word") == 40


def numbers_apart(text: str) -> tuple[list[str], list[float]]:
    """The words of a transcript, and its numbers."""
    words = re.sub(r"─+", "─", text).split()
    is_number = [bool(re.fullmatch(r"[\d.,]+", word)) for word in words]
    values = [float(word.replace(",", "")) for word, number in zip(words, is_number, strict=True) if number]
    return [word for word, number in zip(words, is_number, strict=True) if not number], values


@pytest.mark.parametrize("name", ["predict", "compare", "breakdown"])
def test_transcript(name: str) -> None:
    """Words exactly, numbers within a factor; COSTMODEL_UPDATE_GOLDEN=1 writes the files anew."""
    path = GOLDEN / f"{name}.txt"
    command, _, before = path.read_text(encoding="utf-8").partition("\n")
    output = run(*command.removeprefix("$ costmodel ").split()).stdout
    if os.environ.get("COSTMODEL_UPDATE_GOLDEN") == "1":
        path.write_text(f"{command}\n{output}", encoding="utf-8")
        return
    words, values = numbers_apart(output)
    words_before, values_before = numbers_apart(before)
    assert words == words_before
    assert values == pytest.approx(values_before, rel=0.35)


def test_plot_writes_png_and_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    question = ("predict", "--arch", "llama-3.1-8b,mistral-7b-v0.1", "--hw", "h100-sxm", "-c", "1k..16k")
    for name, magic in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        path = tmp_path / name
        result = run(*question, "--plot", str(path))
        assert path.read_bytes().startswith(magic)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert f"wrote {path}" in result.stderr
        assert "context" in result.stdout
    first = path.read_bytes()
    run(*question, "--plot", str(path))
    assert path.read_bytes() == first
    assert "mistral-7b-v0.1" in first.decode()


def test_plot_marks_where_architectures_cross(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.svg"
    run(
        "predict",
        "--arch",
        "llama-3.1-8b,kimi-linear-48b-a3b",
        "--hw",
        "h100-sxm",
        "-p",
        "prefill",
        "-c",
        "1k..16k",
        "--library",
        "prior",
        "--plot",
        str(path),
    )
    assert len(re.findall(r"≈ [\d.]+k", path.read_text(encoding="utf-8"))) == 1


def test_plot_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("predict", *LLAMA, "-c", "8k", "--plot", str(tmp_path / "a.png"), code=2)
    assert "costmodel[plot]" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_compare_adds_ratio_and_crossovers() -> None:
    question = ("compare", "--arch", "llama-3.1-8b,kimi-linear-48b-a3b", "--hw", "h100-sxm", "-c", "8k,64k")
    whole = json.loads(run(*question, "-f", "json").stdout)
    assert all(set(row) >= KEYS | {"ratio", "crossover_context"} for row in whole["rows"])
    assert {row["kind"] for row in whole["crossovers"]} == {"quadratic_context", "flops_crossover", "time_crossover"}
    text = run(*question).stdout
    assert "kimi-linear-48b-a3b" in text.splitlines()[3]
    assert "time_crossover" in text


def test_compare_wants_two_architectures() -> None:
    assert "at least two" in run("compare", *LLAMA, "-c", "8k", code=2).stderr


def test_generate_has_a_row_for_each_method_and_prompt() -> None:
    question = ("generate", "--arch", "llada-8b", "--hw", "h100-sxm", "--new-tokens", "64")
    found = rows(*question, "--method", "full,block", "--block", "16", "--prompt", "1k,2k", "--steps", "32")
    assert [(row["prompt"], row["method"]) for row in found] == [
        (1024, "full"),
        (1024, "block"),
        (2048, "full"),
        (2048, "block"),
    ]
    assert {row["new_tokens"] for row in found} == {64}
    drafted = rows(
        "generate", *LLAMA, "--method", "speculative", "--accepted", "0.8", "--draft", "0.1", "--draft-tokens", "3"
    )
    assert drafted[0]["tokens_per_step"] > 1
    assert "full:" in run(*question, "--method", "full").stdout


@pytest.mark.parametrize(
    "arguments", [(), ("--latex",), ("--phase", "prefill", "--context", "32k", "--batch", "4"), ("--hw", "h100-sxm")]
)
def test_explain_shows_the_formula(arguments: tuple[str, ...]) -> None:
    text = run("explain", "gqa", *arguments).stdout
    assert "attention" in text
    assert "pairs" in text


def test_explain_as_rows() -> None:
    assert len(rows("explain", "swa", "--set", "window=64")) > 3


@pytest.mark.parametrize("kind", ["mechanisms", "architectures", "hardware", "kernels", "ffns", "methods"])
def test_list_has_name_and_summary(kind: str) -> None:
    found = rows("list", kind)
    assert len(found) >= 3
    assert all(row["name"] and row["summary"] for row in found)
    assert found[0]["name"] in run("list", kind).stdout


def test_list_leaves_out_a_broken_file_of_the_user_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "user" / "hardware_profiles"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine\n", encoding="utf-8")
    result = run("list", "hardware")
    assert "left out" in result.stderr
    assert "h100-sxm" in result.stdout


@pytest.mark.parametrize(
    "name,expected",
    [
        ("h20", ["compute.tensor.bf16", "148 TFLOP/s", "unverified", "unknown", "[1] compute"]),
        ("llama-3.1-8b", ["mixers.attn.heads", "query heads", "8,030,261,248", "128 KiB"[:3], "arXiv:2407.21783"]),
        ("kimi-linear", ["6 × (2 × kda+moe, mla+moe, kda+moe)"]),
        ("gqa", ["Hkv", "kv_heads", "arXiv:1706.03762"]),
        ("gemm", ["launch_s", "prior", "spread", "tensor_efficiency", "source:"]),
        ("swiglu", ["d_ff", "inner width"]),
        ("block", ["order", "source:"]),
        ("cpu", ["compute.units"]),
        ("hardware_profiles/h20.yaml", ["148 TFLOP/s"]),
        ("architectures/llama-3.1-8b.yaml", ["8,030,261,248"]),
    ],
)
def test_show_prints_the_numbers_behind_a_name(name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = run("show", name).stdout
    for part in expected:
        assert part in text


def test_show_gives_si_numbers_to_programs() -> None:
    by_entry = {row["entry"]: row for row in rows("show", "h100-sxm")}
    bandwidth = by_entry["memory.hbm.bandwidth"]
    assert (bandwidth["si"], bandwidth["unit"], bandwidth["value"]) == (3.35e12, "B/s", "3.35 TB/s")
    assert "datasheet" in bandwidth["source"]
    assert by_entry["memory.l2.bandwidth"]["mark"] == "unknown"


def test_cite_names_the_tool_and_the_sources() -> None:
    assert "@software{costmodel" in run("cite").stdout
    assert "eprint = {1706.03762}" in run("cite", "gqa").stdout
    assert [row["key"] for row in rows("cite", "gqa")][:2] == ["costmodel", "arXiv:1706.03762"]


def test_a_mechanism_of_ones_own_is_loaded_from_its_file(tmp_path: Path) -> None:
    own = (REPOSITORY / "costmodel" / "mixers" / "gqa.py").read_text(encoding="utf-8")
    own = own.replace('NAME = "gqa"', 'NAME = "mine"').replace('"full-attention"', '"my-attention"')
    (tmp_path / "mine.py").write_text(own, encoding="utf-8")
    model = (REPOSITORY / "architectures" / "llama-3.1-8b.yaml").read_text(encoding="utf-8")
    (tmp_path / "model.yaml").write_text(model.replace("kind: gqa", "kind: mine"), encoding="utf-8")
    question = ("predict", "--arch", str(tmp_path / "model.yaml"), "--hw", "h100-sxm", "-c", "8k", "--library", "prior")
    assert "unknown mechanism 'mine'" in run(*question, code=2).stderr
    try:
        (found,) = rows(*question, "--mechanism", str(tmp_path / "mine.py"))
    finally:
        sys.modules.pop("costmodel.mixers.mine", None)
    assert found["time_s"] == rows("predict", *LLAMA, "-c", "8k")[0]["time_s"]


def test_version_and_help() -> None:
    assert run("--version").stdout == f"costmodel {costmodel.__version__}\n"
    text = run("--help").stdout
    for command in ("predict", "compare", "explain", "generate", "list", "show", "cite"):
        assert command in text
        assert "--format" in run(command, "--help").stdout


def test_without_a_command_help_is_shown_and_the_code_says_so() -> None:
    assert "Commands:" in run(code=2).stderr


def test_internal_errors_are_one_line_unless_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kind: str) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("costmodel.report.listing.listed", broken)
    result = run("list", "hardware", code=70)
    assert "internal error: KeyError: 'a bug'" in result.stderr
    monkeypatch.setenv("COSTMODEL_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["list", "hardware"]).exception, KeyError)


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(kind: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("costmodel.report.listing.listed", interrupted)
    assert run("list", "hardware", code=130).output == ""


def in_a_process(arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python cli.py …` in a shell."""
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} cli.py {arguments}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_a_reader_that_stops_reading_is_no_error() -> None:
    result = in_a_process("list architectures | head -n 1; :")
    assert result.stdout.startswith("name")
    assert result.stderr == ""


def test_a_full_disk_is_one_message() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    result = in_a_process("list mechanisms > /dev/full")
    assert (result.returncode, result.stderr) == (2, "error: output: No space left on device\n")


def test_closed_streams_and_plain_encodings_are_served() -> None:
    assert in_a_process("list mechanisms >&-").returncode == 0
    plain = in_a_process("predict --arch llama-3.1-8b --hw h100-sxm -c 8k", PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stdout.isascii()) == (0, True)
    assert "ms" in plain.stdout
