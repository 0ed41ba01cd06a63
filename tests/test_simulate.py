"""The command `simulate`: formats, exit codes, files."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from costmodel.cli import app
from costmodel.planning.load import OPEN_REQUESTS, Load, per_second, seconds

LLAMA = ("simulate", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--library", "prior")
SMALL = (*LLAMA, "--input", "512", "--output", "64", "--requests", "300")
LATENCIES = {
    f"{name}_{key}_s" for name in ("ttft", "tpot", "itl", "e2e") for key in ("mean", "p50", "p90", "p95", "p99")
}
KEYS = {
    "arch",
    "hw",
    "gpus",
    "requests",
    "duration_s",
    "requests_per_s",
    "output_tokens_per_s",
    "output_tokens_per_s_gpu",
    "saturated",
    "capacity_per_s",
    "good_share",
    "goodput_per_s",
    "waiting_mean",
    "running_mean",
    "cache_share_mean",
    "preemptions",
    *LATENCIES,
}


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_the_json_object_has_every_key_and_the_course_of_the_run() -> None:
    question = ("--rate", "10/s", "--front-end", "0s", "--ttft", "100ms", "--tpot", "10ms")
    found = json.loads(run(*SMALL, *question, "--format", "json").stdout)
    assert (found["schema"], found["command"]) == (1, "simulate")
    (row,) = found["rows"]
    assert set(row) >= KEYS
    assert all(row[key] > 0 for key in LATENCIES)
    assert row["requests"] == 300
    assert row["goodput_per_s"] == pytest.approx(row["good_share"] * row["requests_per_s"])
    course = found["over_time"]
    assert {"arch", "hw", "engine", "time_s", "waiting", "running", "cache_share", "spent_s"} == set(course[0])
    under_way = sum((entry["waiting"] + entry["running"]) * entry["spent_s"] for entry in course)
    assert under_way == pytest.approx(row["e2e_mean_s"] * 300, rel=0.01)


def test_a_table_and_csv_say_the_same() -> None:
    load = ("--concurrency", "16")
    (row,) = csv.DictReader(io.StringIO(run(*SMALL, *load, "--format", "csv").stdout))
    table = run(*SMALL, *load).stdout
    assert "300 requests of 512 + 64 tokens, 16 clients" in table
    assert f"{float(row['output_tokens_per_s']):,.0f}" in table
    assert "| llama-3.1-8b | h100-sxm | TTFT |" in run(*SMALL, *load, "--format", "markdown").stdout


def test_one_row_for_each_architecture_and_device() -> None:
    arguments = ("--arch", "llama-3.1-8b,qwen3-0.6b", "--hw", "h100-sxm,b200-sxm", "--concurrency", "4")
    found = json.loads(run("simulate", *arguments, "--input", "64", "--output", "8", "--format", "json").stdout)
    assert len({(row["arch"], row["hw"]) for row in found["rows"]}) == 4


def test_the_seed_decides() -> None:
    load = ("--rate", "20", "--format", "csv")
    once, again, other = (run(*SMALL, *load, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert once == again != other


def test_a_load_that_cannot_be_sustained_is_said_so_with_exit_1_and_without_latencies() -> None:
    result = run(*SMALL, "--requests", "3000", "--rate", "500", "--ttft", "1s", "--format", "json", code=1)
    assert re.search(r"saturated: 500 requests/s arrive, at most \d\d\.\d+/s", result.stderr)
    assert "without bound" in result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert row["saturated"] is True
    assert {row[key] for key in LATENCIES} == {None}
    assert row["goodput_per_s"] is None
    assert row["requests_per_s"] == pytest.approx(row["capacity_per_s"], rel=0.1)


@pytest.mark.parametrize("requests", ["100", "2000"])
def test_a_little_too_much_is_told_from_a_little_less_however_long_the_run(requests: str) -> None:
    load = (*SMALL, "--requests", requests, "--format", "json")
    (row,) = json.loads(run(*load, "--rate", "1").stdout)["rows"]
    limit = row["capacity_per_s"]
    run(*load, "--rate", str(0.95 * limit))
    assert "saturated" in run(*load, "--rate", str(1.05 * limit), code=1).stderr


def test_a_trace_is_replayed_or_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input,output,cached_prefix\n0,100,10,0\n0.1,200,10,90\nx,1,1,0\n", encoding="utf-8")
    refused = run(*LLAMA, "--trace", str(path), code=2)
    assert "line 4: arrival_s 'x' is not a number" in refused.stderr
    assert not refused.stdout
    assert "leave out --input" in run(*LLAMA, "--trace", str(path), "--skip-bad-lines", "--input", "5", code=2).stderr
    first = run(*LLAMA, "--trace", str(path), "--skip-bad-lines", "--requests", "1", "--format", "json")
    assert json.loads(first.stdout)["rows"][0]["requests"] == 1
    result = run(*LLAMA, "--trace", str(path), "--skip-bad-lines", "--format", "json")
    assert "1 bad lines were skipped" in result.stderr
    assert json.loads(result.stdout)["rows"][0]["requests"] == 2


def test_clients_without_a_request_are_told() -> None:
    assert "3 requests are fewer than the 8 clients" in run(*SMALL, "--concurrency", "8", "--requests", "3").stderr
    assert "fewer than" not in run(*SMALL, "--concurrency", "8", "--requests", "8").stderr


def test_exchanges_of_an_engine_hide_and_hold_processors() -> None:
    def ttft(*more: str) -> float:
        arguments = (
            "--arch",
            "qwen3-30b-a3b",
            "--hw",
            "h200-sxm",
            "--layout",
            "dp4ep4",
            "--rate",
            "5",
            "--requests",
            "40",
        )
        lengths = ("--input", "2k", "--output", "8", "--format", "json")
        return float(json.loads(run("simulate", *arguments, *lengths, *more).stdout)["rows"][0]["ttft_mean_s"])

    hidden, held = ttft("--overlap", "1"), ttft("--overlap", "1", "--exchange-units", "40")
    assert hidden < held < ttft()


def test_a_timeline_is_written(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    result = run(*SMALL, "--rate", "10", "--timeline", str(path))
    assert f"wrote {path}" in result.stderr
    assert {event["ph"] for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]} == set("MXCbe")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("costmodel.planning.scheduler.Replica.end_span", interrupted)
    path = tmp_path / "timeline.json"
    result = run(*SMALL, "--rate", "10", "--timeline", str(path), code=130)
    assert not result.stdout
    assert not list(tmp_path.iterdir())


BAD = {
    ("--rate", "10", "--concurrency", "4"): "one of them; given: --rate and --concurrency",
    (): "given: none of them",
    ("--rate", "-1"): "--rate '-1' is not a number of requests per second",
    ("--rate", "5", "--warmup", "300"): "--warmup 300 leaves none of 300 requests",
    ("--rate", "5", "--ttft", "soon"): "--ttft 'soon' is not a time",
    ("--rate", "5", "--input", "20..10"): "goes down",
    ("--rate", "5", "--routing", "least-load"): "did you mean 'least-loaded'",
    ("--rate", "5", "--prefix-hit", "1"): "prefix hit rate",
    ("--rate", "5", "--accepted", "2", "--draft-tokens", "2"): "acceptance rate",
    ("--rate", "5", "--max-batched-tokens", "2M"): "max batched tokens 2097152 is outside",
    ("--concurrency", "1000000000"): "clients",
    ("--rate", "5", "--arch", "llama-3.1-8b,qwen3-0.6b", "--timeline", "x.json"): "a file holds one run",
}


@pytest.mark.parametrize(("arguments", "message"), BAD.items())
def test_a_question_without_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = run(*SMALL, *arguments, code=2)
    assert message in result.stderr
    assert not result.stdout


def test_what_does_not_fit_is_impossible() -> None:
    arguments = ("--arch", "llama-3.1-70b", "--hw", "h100-sxm", "--rate", "1", "--input", "10", "--output", "10")
    assert "does not fit on one h100-sxm" in run("simulate", *arguments, code=1).stderr
    long = run(*LLAMA, "--rate", "1", "--input", "1M", "--output", "10", "--requests", "5", code=1)
    assert "request 1 of 1048576 + 10 tokens needs" in long.stderr


def test_options_are_read_with_their_units() -> None:
    assert (seconds("2s", ""), seconds("30 ms", ""), seconds("4us", "")) == (2.0, 0.03, 4e-6)
    assert (per_second("10/s"), per_second("0.5")) == (10.0, 0.5)
    inputs = dict.fromkeys(("trace", "rate", "concurrency", "requests"), None)
    inputs |= {"rate": 3.0, "input": "1k", "output": "lognormal:100:0.5", "warmup": 0}
    load = Load(inputs)
    assert load.count == OPEN_REQUESTS
    assert 1024 + 600 < load.longest < 1024 + 700


def test_the_commands_of_the_document_run_as_written() -> None:
    document = Path(__file__).resolve().parent.parent / "docs" / "replay.md"
    (block,) = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "costmodel"
        assert "end to end" in run(*arguments).stdout


def test_prefixes_of_recurrent_models_count_up_to_the_last_state_that_is_kept(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input,output,cached_prefix\n" + "0,4000,2,3000\n9,4000,2,3000\n")
    arguments = ("simulate", "--hw", "h100-sxm", "--trace", str(trace), "--format", "json")
    told = run(*arguments, "--arch", "qwen3.5-27b")
    assert "prefixes are found at multiples of 784 tokens" in told.stderr

    def ttft(result: Result) -> float:
        return float(json.loads(result.stdout)["rows"][0]["ttft_mean_s"])

    own, less = (run(*arguments, "--arch", "qwen3.5-27b", "--snapshot-tokens", tokens) for tokens in ("784", "1500"))
    assert ttft(told) == ttft(own) > ttft(less)
    assert "prefixes are found" not in own.stderr
    # SGLang keeps them where requests ended: the whole prefix is found, whatever a page holds.
    sglang = (*arguments, "--arch", "qwen3.5-27b", "--library", "sglang")
    ends, paged = run(*sglang), run(*sglang, "--snapshot-tokens", "784")
    assert "SGLang keeps recurrent states where requests ended" in " ".join(ends.stderr.split())
    assert ttft(ends) < ttft(paged)
    pure = run(*arguments, "--arch", "mamba2-2.7b")
    assert "copies of recurrent states take no memory" in pure.stderr


def test_the_keys_of_a_replay_are_documented() -> None:
    found = json.loads(run(*SMALL, "--rate", "5", "--format", "json").stdout)
    text = (Path(__file__).parent.parent / "docs" / "replay.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z0-9_]+)`", text))
    for name in ("rows", "over_time"):
        assert {name, *found[name][0]} <= told
