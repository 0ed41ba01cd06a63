"""What changes when a plan's question does, and what its assumptions move."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from costmodel.cli import app
from costmodel.planning.whatif import CHANGES

PLAN = ["plan", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--gpus", "1..4", "--input", "2k", "--output", "128"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    more = ["--rate", "6/s", "--ttft", "1s", "--tpot", "20ms", "--no-confirm", "--kv", "own", "--out", str(path)]
    result = CliRunner().invoke(app, [*PLAN, *more])
    assert result.exit_code == 0, result.output
    return path


def answer(plan: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["whatif", str(plan), *arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_change_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "planning.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^`--change` takes (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert set(CHANGES) == set(re.findall(r"`([a-z_]+)`", told))


def test_the_plan_itself_comes_back_as_it_was(plan: Path) -> None:
    written = json.loads(plan.read_text())["rows"][0]
    again = answer(plan)["rows"][0]
    for key in ("layout", "gpus", "ttft_s", "tpot_s", "capacity_per_s", "usd_per_hour"):
        assert again[key] == pytest.approx(written[key], rel=1e-9) if isinstance(written[key], float) else written[key]


def test_a_plan_is_read_with_the_rate_of_prefix_hits_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    more = ["--rate", "6/s", "--ttft", "1s", "--no-confirm", "--kv", "own", "--prefix-hit", "0.5,0", "--out", str(path)]
    assert CliRunner().invoke(app, [*PLAN, *more]).exit_code == 0
    written = json.loads(path.read_text())["rows"][0]
    assert written["prefix_hit"] == 0.5
    assert answer(path)["rows"][0]["ttft_s"] == pytest.approx(written["ttft_s"], rel=1e-9)


def test_a_change_that_changes_nothing_has_ratio_one_without_doubt(plan: Path) -> None:
    row = answer(plan, "--change", "rate=6/s")["rows"][1]
    for name in ("ttft", "tpot", "capacity_per", "usd_per_output_token"):
        ends = [row[f"{name}_ratio{ending}"] for ending in ("", "_low", "_high")]
        assert ends == pytest.approx([1.0, 1.0, 1.0])


def test_intervals_of_ratios_are_narrower_than_those_of_the_sides(plan: Path) -> None:
    found = answer(plan, "--change", "kv=fp8")["rows"]
    alone = found[0]["tpot_high_s"] / found[0]["tpot_low_s"]
    assert found[1]["tpot_ratio"] < 1
    assert found[1]["tpot_ratio_high"] / found[1]["tpot_ratio_low"] < alone


@pytest.mark.parametrize(
    "change",
    [
        "hw=b200-sxm",
        "kv=fp8,weights=fp8",
        "context=16k",
        "arch=qwen3-8b",
        "layout=tp2",
        "replicas=2",
        "concurrency=8",
        "hw.memory.hbm.bandwidth=2x",
        "price=1",
    ],
)
def test_every_kind_of_change_is_answered(plan: Path, change: str) -> None:
    row = answer(plan, "--change", change)["rows"][1]
    assert row["change"] == change
    assert row["problem"] == ""
    assert row["gpus"] >= 1


def test_a_price_scales_the_bill_and_nothing_else(plan: Path) -> None:
    found = answer(plan, "--change", "price=5.9")["rows"]
    assert found[1]["usd_per_output_token_ratio"] == pytest.approx(5.9 / found[0]["usd_per_gpu_hour"])
    assert found[1]["tpot_ratio"] == 1


def test_twice_the_bandwidth_halves_at_most_the_time_per_token(plan: Path) -> None:
    row = answer(plan, "--change", "hw.memory.hbm.bandwidth=2x")["rows"][1]
    assert 0.5 <= row["tpot_ratio"] < 0.8


def test_what_cannot_be_is_said_beside_the_rest(plan: Path) -> None:
    found = answer(plan, "--change", "arch=llama-3.1-405b", "--change", "kv=fp8")["rows"]
    assert "weights and buffers leave" in found[1]["problem"]
    assert found[2]["problem"] == ""


def test_assumptions_come_in_the_order_of_what_they_move(plan: Path) -> None:
    table = answer(plan)["sensitivity"]
    effects = [row["largest_effect"] for row in table]
    assert effects == sorted(effects, reverse=True)
    by_name = {row["assumption"]: row for row in table}
    assert by_name["price of a device"]["usd_per_output_token_ratio_high"] == pytest.approx(1.2)
    assert by_name["memory bandwidth"]["tpot_ratio_low"] > 1 > by_name["memory bandwidth"]["tpot_ratio_high"]
    assert {"tokens of prompts", "requests/s", "host time", "memory that engines take"} <= set(by_name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("weight=fp8", "did you mean 'weights'"),
        ("kv", "expected NAME=VALUE"),
        ("context=64", "the answer alone has 128 tokens"),
        ("hw=h300", "unknown hardware"),
        ("rate=0", "above 0"),
        ("overlap=much", "expected a number"),
    ],
)
def test_bad_changes_are_told(plan: Path, change: str, told: str) -> None:
    result = CliRunner().invoke(app, ["whatif", str(plan), "--change", change])
    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"schema": 1, "command": "plan", "inputs": {}, "rows": []}'])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    result = CliRunner().invoke(app, ["whatif", str(path)])
    assert result.exit_code == 2
    assert "plan.json" in result.stderr


def test_a_file_that_is_no_json_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    path.write_text("x")
    result = CliRunner().invoke(app, ["whatif", str(path)])
    assert result.exit_code == 2
    assert "plan.csv: not valid JSON" in result.output.replace("\n", "")


def test_the_keys_of_an_answer_are_documented(plan: Path) -> None:
    found = answer(plan, "--change", "kv=fp8")
    text = (Path(__file__).resolve().parent.parent / "docs" / "planning.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z0-9_]+)`", text))
    for name in ("rows", "sensitivity"):
        keys = {name, *(key for row in found[name] for key in row)}
        assert {re.sub(r"_ratio_(low|high)$", "_ratio", key) for key in keys} <= told


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pools") / "plan.json"
    more = ["--rate", "6/s", "--pools", "disaggregated", "--no-confirm", "--kv", "own", "--out", str(path)]
    result = CliRunner().invoke(app, [*PLAN, *more])
    assert result.exit_code == 0, result.output
    return path


def test_another_pool_that_limits_is_told_where_ratios_stop_cancelling(pools: Path) -> None:
    long, short = "input=8k,output=64", "input=256,output=2k"
    found = answer(pools, "--change", long, "--change", short)["rows"]
    assert [row["bottleneck"] for row in found[1:]] == ["prefill", "decode"]
    moved = [row["bottleneck"] != found[0]["bottleneck"] for row in found]
    assert [row["bottleneck_moved"] for row in found] == moved
    assert sum(moved) == 1
    shown = CliRunner().invoke(app, ["whatif", str(pools), "--change", long, "--change", short])
    (change,) = (row["change"] for row in found if row["bottleneck_moved"])
    assert f"note: {change}: the pool that limits is" in shown.stderr
    assert ", moved" in shown.stdout


def test_a_plan_of_one_kind_of_engine_has_no_pool_that_limits(plan: Path) -> None:
    row = answer(plan, "--change", "kv=fp8")["rows"][1]
    assert (row["bottleneck"], row["bottleneck_moved"]) == (None, False)


def test_an_answer_is_written_whole_or_not_at_all(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    result = CliRunner().invoke(app, ["whatif", str(plan), "--change", "kv=fp8", "--out", str(path)])
    assert result.exit_code == 0
    assert json.loads(path.read_text())["command"] == "whatif"
    refused = CliRunner().invoke(app, ["whatif", str(plan), "--out", str(tmp_path / "no" / "x.json")])
    assert refused.exit_code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer.json"]


def test_a_change_planned_anew_holds_the_service_level(plan: Path) -> None:
    rows = answer(plan, "--change", "rate=40/s", "--replan")["rows"]
    assert rows[2]["change"] == "rate=40/s, planned anew"
    assert rows[2]["tpot_s"] <= 0.02
    assert rows[2]["gpus"] >= rows[0]["gpus"]
