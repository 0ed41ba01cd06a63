"""Every output says where a device's times are from that has no calibration of its own."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel.cli import app

RELATIVE = "h200-sxm: transferred: measured on a relative of this device"
PRIORS = "mi300x: prior: parameters and intervals are priors"
SIMULATE = (
    "simulate",
    "--arch",
    "llama-3.1-8b",
    "--rate",
    "2/s",
    "--input",
    "1k",
    "--output",
    "16",
    "--requests",
    "20",
)
EXPLAIN = ("explain", "llama-3.1-8b", "--phase", "decode", "--context", "4k")
PLAN = (
    "plan",
    "--arch",
    "llama-3.1-8b",
    "--gpus",
    "1..1",
    "--rate",
    "1/s",
    "--input",
    "1k",
    "--output",
    "16",
    "--price",
    "3",
)


@pytest.mark.parametrize("command", [SIMULATE, EXPLAIN, PLAN], ids=lambda command: command[0])
@pytest.mark.parametrize(("device", "told"), [("h200-sxm", RELATIVE), ("mi300x", PRIORS), ("h100-sxm", "")])
def test_a_command_says_whose_measurements_its_times_rest_on(command: tuple[str, ...], device: str, told: str) -> None:
    result = CliRunner().invoke(app, [*command, "--hw", device, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    assert told in result.stderr
    assert (RELATIVE in result.stderr, PRIORS in result.stderr) == (told == RELATIVE, told == PRIORS)
    named = {"h200-sxm": "h100-sxm/vllm-0.24.0", "mi300x": None, "h100-sxm": "h100-sxm/vllm-0.24.0"}[device]
    answer = json.loads(result.stdout)
    assert answer["calibration"] == named
    if command is not EXPLAIN:
        assert {row["basis"] for row in answer["rows"]} <= {"transferred", "prior", "fitted", "extrapolated"}


def test_a_change_to_a_device_without_measurements_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert CliRunner().invoke(app, [*PLAN, "--hw", "h100-sxm", "--out", str(path)]).exit_code == 0
    result = CliRunner().invoke(app, ["whatif", str(path), "--change", "hw=h200-sxm"])
    assert RELATIVE in result.stderr


def test_a_picture_of_transferred_times_says_so(tmp_path: Path) -> None:
    path = tmp_path / "times.svg"
    question = ["predict", "--arch", "llama-3.1-8b", "--context", "1k,4k", "--plot", str(path), "--hw"]
    drawn = {}
    for device in ("h200-sxm", "h100-sxm"):
        assert CliRunner().invoke(app, [*question, device]).exit_code == 0
        drawn[device] = "transferred" in path.read_text(encoding="utf-8")
    assert drawn == {"h200-sxm": True, "h100-sxm": False}
