"""`roofline`: measured points, their distance from the roofline, and the steps that lead to the measured time."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from costmodel.calibration import PRIOR
from costmodel.hardware import load_hardware
from costmodel.kernels.base import Form, Grid, Kernel, Work, no_backward, unit_terms
from costmodel.timing import expected

pytest.importorskip("torch")

from validation.measurements import Measurement, kernels_of, to_csv
from validation.roofline import FROM_L2, IDLE, LAUNCH, LIMITS, MORE, UNEXPLAINED, causes, roofline_rows
from validation.runners import runner

REPOSITORY = Path(__file__).resolve().parent.parent
H100 = load_hardware("h100-sxm")
LARGE = {"dtype": "bf16", "batch": 1, "context": 8192, "n": 8192, "k": 8192}
THIN = {"dtype": "bf16", "batch": 1, "context": 1, "n": 8192, "k": 8192}
ROW = Measurement(
    runner="gemm", implementation="torch.mm", mode="cold", role="fit", family="gemm", shape=LARGE, seconds=1.6e-3
)


def test_a_large_product_stands_under_the_engines_and_a_thin_one_under_the_memory() -> None:
    large, thin = (
        {row["shape"]: row for row in roofline_rows([ROW, replace(ROW, shape=THIN, seconds=60e-6)], H100, PRIOR)}[shape]
        for shape in (" ".join(f"{name}={size}" for name, size in each.items()) for each in (LARGE, THIN))
    )
    flops = 2 * 8192**3
    assert (large["under"], large["flops"]) == ("tensor", flops)
    assert large["roofline_s"] == pytest.approx(flops / H100.tensor_peak("bf16"))
    assert large["share"] == pytest.approx(large["roofline_s"] / 1.6e-3)
    assert large["intensity"] == pytest.approx(8192 / 3)  # 2·n³ over three matrices of 2 bytes an element
    assert thin["under"] == "memory"
    assert thin["roofline_s"] == pytest.approx(2 * (8192**2 + 2 * 8192) / H100.memory.hbm.bandwidth)


@pytest.mark.parametrize("mode", ["cold", "warm"])
@pytest.mark.parametrize("name", ["gemm", "prefill-attention", "decode-attention", "gdn-prefill", "dense-model-decode"])
def test_the_steps_lead_from_the_roofline_to_the_measured_time(name: str, mode: str) -> None:
    from validation.absent_device import described

    for point in runner(name).points(described("sm_90"), "quick")[:3]:
        row = replace(ROW, runner=name, family=runner(name).family, shape=point.shape, mode=mode, seconds=3e-4)
        (found,) = roofline_rows([row], H100, PRIOR)
        assert found["roofline_s"] + sum(found["steps_s"].values()) == pytest.approx(3e-4)
        kernels = kernels_of(runner(name), mode == "warm", point.shape, H100)
        predicted = sum(float(entry.time_s) for entry in expected(kernels, H100, PRIOR))
        assert found["steps_s"][UNEXPLAINED] == pytest.approx(3e-4 - predicted)


def test_causes_are_those_that_the_model_was_given() -> None:
    def steps(shape: dict[str, int | str], mode: str = "cold") -> dict[str, float]:
        return roofline_rows([replace(ROW, shape=shape, mode=mode)], H100, PRIOR)[0]["steps_s"]

    assert LIMITS["tensor"] in steps(LARGE)
    assert LIMITS["memory"] in steps(THIN)
    assert steps({**THIN, "n": 4096, "k": 2048}, "warm")[FROM_L2] < 0
    narrow = steps({**LARGE, "context": 64, "n": 64})
    assert narrow[LAUNCH] > 0
    sizes = {"heads": 32, "kv_heads": 8, "head_dim": 128, "context": 4096, "new_tokens": 4096}
    causal = replace(ROW, runner="prefill-attention", shape={"dtype": "bf16", "batch": 1, **sizes})
    assert roofline_rows([causal], H100, PRIOR)[0]["steps_s"][MORE] > 0  # whole tiles on the diagonal


def test_half_of_the_units_take_twice_the_rooflines_time() -> None:
    work = Work(tensor={"bf16": 1e12})
    form = Form("test", "", (), unit_terms, no_backward)
    half = Kernel("half", form, ideal=work, executed=work, grid=Grid(blocks=66))
    ((cause, seconds),) = causes(expected([half], H100, PRIOR), H100).items()
    assert (cause, seconds) == (IDLE, pytest.approx(1e12 / H100.tensor_peak("bf16")))


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [sys.executable, "cli.py", "roofline", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "COSTMODEL_DATA": "/nonexistent"},
    )
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    return found


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Rows of an H100 in a folder of its name, one of them without a time."""
    folder = tmp_path / "h100-sxm"
    folder.mkdir()
    failed = replace(ROW, shape={**LARGE, "context": 4}, status="oom", seconds=None, detail="no memory")
    rows = [ROW, replace(ROW, shape=THIN, seconds=60e-6), failed]
    (folder / "measurements.csv").write_text(to_csv(rows))
    return folder


def test_the_command_prints_every_format_and_draws(stored: Path) -> None:
    pytest.importorskip("matplotlib")
    place = ("--measurements", str(stored))
    printed = run(*place, "--plot", str(stored / "roofline.png"))
    assert "in between" in printed.stdout
    assert (stored / "roofline.png").stat().st_size > 10_000
    told = json.loads(run(*place, "--format", "json").stdout)
    assert told["command"] == "roofline"
    assert len(told["rows"]) == 2
    assert run(*place, "--format", "csv").stdout.count("\n") == 3
    assert "| " in run(*place, "--format", "markdown").stdout
    (worst,) = json.loads(run(*place, "--worst", "1", "--format", "json").stdout)["rows"]
    assert worst["share"] == min(row["share"] for row in told["rows"])
    (thin,) = json.loads(run(*place, "--context", "1..4", "--format", "json").stdout)["rows"]
    assert thin["under"] == "memory"


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--family", "gem"), "did you mean 'gemm'"),
        (("--family", "norm"), "no measured point to show"),
        (("--hw", "h100-sxm,a100-sxm"), "give one name"),
        (("--plot", "x.pdf"), "must end in .png or .svg"),
        (("--format", "tabel"), "did you mean 'table'"),
    ],
)
def test_bad_questions_are_refused(stored: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in run("--measurements", str(stored), *arguments, code=2).stderr


def test_rows_without_a_device_ask_for_it(stored: Path, tmp_path: Path) -> None:
    other = tmp_path / "somewhere"
    stored.rename(other)
    assert "--hw" in run("--measurements", str(other), code=2).stderr
    assert "no measurements*.csv" in run("--measurements", str(tmp_path), code=2).stderr
    run("--measurements", str(other), "--hw", "h100-sxm")
