"""What no measurement covers yet is said wherever a number of it is printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from costmodel.calibration import from_fits, read_calibration
from costmodel.coverage import SHIPPED, doubt, kinds_of, measured_phases, unmeasured, unmeasured_in
from costmodel.fit import prior_fit
from costmodel.mixers import names
from costmodel.model_file import load_architecture
from costmodel.prediction import predict

REPOSITORY = Path(__file__).resolve().parent.parent
CALIBRATIONS = sorted((REPOSITORY / "hardware_profiles" / "calibrations").glob("*/*.yaml"))


def test_what_counts_as_measured_is_what_the_shipped_calibrations_were_fitted_to() -> None:
    assert CALIBRATIONS
    assert set().union(*(kinds_of(read_calibration(path)) for path in CALIBRATIONS)) == SHIPPED


def test_mechanisms_without_a_fitted_kernel_are_unmeasured() -> None:
    assert {"gqa", "swa", "mla", "dsa", "csa", "hca", "msa", "gdn", "kda"} <= {
        name for name in names() if not doubt(name)
    }
    for name in ("hyena", "mamba1", "moba", "rwkv7", "retnet", "ttt"):
        assert measured_phases(name) == (), name
    assert measured_phases("mamba2") == ("prefill",)
    assert doubt("mamba2") == "no measurement covers its decode yet"


def test_the_readme_names_what_is_unmeasured() -> None:
    text = (REPOSITORY / "validation" / "README.md").read_text(encoding="utf-8")
    listed = text.partition("calibrations these are:")[2].partition(".")[0].replace("\n", " ")
    assert {name.strip(" ;") for name in listed.partition("; and")[0].split(",")} == {
        name for name in names() if not measured_phases(name)
    }
    assert [name for name in names() if len(measured_phases(name)) == 1] == ["mamba2"]


def test_a_calibration_of_ones_own_covers_what_it_was_fitted_to() -> None:
    model = load_architecture("rwkv7-0.1b")
    assert unmeasured_in(model) == ("rwkv7",)
    kernels = [kernel for kernel in kernels_of(model) if kernel.family in ("chunk-scan", "recurrent-step")]
    fits = [
        prior_fit(kernel.form)._replace(key=(kernel.family, "rwkv7-64x64", ""), flops=(1, 2), hbm_bytes=(1, 2))
        for kernel in kernels
    ]
    assert unmeasured_in(model, from_fits(fits)) == ()
    shared = from_fits(fit._replace(key=(fit.key[0], "", "")) for fit in fits)
    assert unmeasured_in(model, shared) == ("rwkv7",)  # what instances share is of others


def kernels_of(model: object) -> list[object]:
    from costmodel.step import Precision, Step

    steps = (Step(B=1, S=64, P=0), Step(B=1, S=1, P=63, phase="decode"))
    return [kernel for step in steps for kernel in model.kernels(step, Precision())]  # type: ignore[attr-defined]


def test_a_prediction_names_what_nobody_measured() -> None:
    assert predict("rwkv7-0.1b", "h100-sxm", 4096).row.unmeasured == ("rwkv7",)
    assert predict("llama-3.1-8b", "h100-sxm", 4096).row.unmeasured == ()
    assert predict("rwkv7-0.1b", "h100-sxm", 4096, phase="train").row.unmeasured == ("rwkv7",)
    assert predict("rwkv7-0.1b", "h100-sxm", 4096, layout="dp2").row.unmeasured == ("rwkv7",)
    assert unmeasured(()) == ()


SIZES = ("--input", "128", "--output", "16")
QUESTIONS = {
    "predict": ("predict", "--arch", "rwkv7-0.1b", "--hw", "h100-sxm", "--context", "4k"),
    "compare": ("compare", "--arch", "rwkv7-0.1b,llama-3.1-8b", "--hw", "h100-sxm", "--context", "4k"),
    "generate": ("generate", "--arch", "rwkv7-0.1b", "--hw", "h100-sxm"),
    "simulate": ("simulate", "--arch", "rwkv7-0.1b", "--hw", "h100-sxm", "--rate", "2/s", "--requests", "4", *SIZES),
    "plan": ("plan", "--arch", "rwkv7-0.1b", "--hw", "h100-sxm", "--rate", "2/s", "--no-confirm", *SIZES),
    "reality-check": ("reality-check", "--arch", "rwkv7", "--context", "128k"),
    "explain": ("explain", "rwkv7"),
    "show": ("show", "rwkv7"),
    "show architecture": ("show", "rwkv7-0.1b"),
    "list": ("list", "mechanisms"),
}


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COSTMODEL_DATA": str(home)}
    found = subprocess.run(
        [sys.executable, "cli.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
    return found


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_output_says_so(name: str, tmp_path: Path) -> None:
    printed = run(*QUESTIONS[name], home=tmp_path)
    if name == "list":
        (line,) = (line for line in printed.stdout.splitlines() if line.startswith("rwkv7 "))
        (other,) = (line for line in printed.stdout.splitlines() if line.startswith("gqa "))
        assert "prefill, decode" in other
        assert "prefill, decode" not in line
        return
    assert "no measurement covers" in printed.stdout + printed.stderr
    table = run(*QUESTIONS[name], "--format", "csv", home=tmp_path)
    assert "unmeasured" in table.stdout + table.stderr
    rows = json.loads(run(*QUESTIONS[name], "--format", "json", home=tmp_path).stdout)
    if name.startswith("show"):
        assert any("no measurement covers" in remark["text"] for remark in rows["remarks"])
        return
    told = [row["unmeasured"] for row in rows["rows"] if row.get("arch", "rwkv7-0.1b") == "rwkv7-0.1b"]
    assert told
    assert all(each in (True, ["rwkv7"]) or (name == "explain" and each is False) for each in told)
    assert any(told)


def test_a_plan_beside_its_changes_says_so(tmp_path: Path) -> None:
    file = str(tmp_path / "plan.json")
    run(*QUESTIONS["plan"], "--out", file, home=tmp_path)
    printed = run("whatif", file, "--change", "rate=4/s", "--format", "csv", home=tmp_path)
    assert "rwkv7-0.1b: no measurement covers rwkv7" in printed.stderr
    assert "unmeasured" in printed.stdout
