"""The recipes of CONTRIBUTING.md, followed as written."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel import predict
from costmodel.cli import app
from costmodel.extensions import load_mechanism
from costmodel.step import Precision, Step

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("costmodel.mixers.running_mean", None)


def test_the_page_shows_the_three_files_of_its_recipes() -> None:
    assert set(FILES) == {
        "costmodel/mixers/running_mean.py",
        "validation/references/running_mean.py",
        "architectures/tiny-example.yaml",
    }


def test_the_made_up_mechanism_passes_what_every_mechanism_must_pass(recipe: Path) -> None:
    pytest.importorskip("torch")
    from validation.counting import count

    module = load_mechanism(recipe / "costmodel/mixers/running_mean.py")
    spec = importlib.util.spec_from_file_location("reference", recipe / "validation/references/running_mean.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for d in module.EXAMPLES:
        assert reference.compare(d) < 1e-9
        for step in (Step(2, 13, 0), Step(1, 1, 20, "decode"), Step(2, 3, 9, "decode")):
            counted = count(lambda d=d, step=step: reference.counted(d, 24, step))
            kernels = module.kernels(d, 24, step, Precision())
            assert counted.tensor == sum(sum(k.ideal.tensor.values()) for k in kernels)
            assert counted.vector == sum(k.ideal.vector for k in kernels)


def test_the_made_up_mechanism_is_judged_as_the_page_shows(recipe: Path) -> None:
    command, shown = re.findall(r"\$ python cli.py (reality-check .*)\n…\n(.*)\n", PAGE)[0]
    path = recipe / "costmodel/mixers/running_mean.py"
    result = CliRunner().invoke(app, command.replace("running_mean.py", str(path)).split())
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines().count(shown) == 2  # both phases


def test_the_model_of_the_recipe_is_predicted_from_its_path(recipe: Path) -> None:
    row = predict(str(recipe / "architectures/tiny-example.yaml"), "h100-sxm", 4096).row
    # 3 full layers · 2 KV heads · (64 + 64) · 2 bytes per token, and the state of 9 KDA layers
    state = 9 * 4 * (64 * 64 * 4 + 3 * 3 * 64 * 2)
    assert row.cache_bytes == 4096 * 3 * 2 * 128 * 2 + state


def test_a_copied_profile_is_predicted_from_its_path(tmp_path: Path) -> None:
    profile = Path(__file__).parent.parent / "hardware_profiles" / "h100-sxm.yaml"
    text = profile.read_text(encoding="utf-8")
    assert "name: h100-sxm\n" in text
    copy = tmp_path / "my-gpu.yaml"
    copy.write_text(
        text.replace("name: h100-sxm\n", "name: my-gpu\n").replace("3.35 TB/s", "6.70 TB/s"), encoding="utf-8"
    )
    mine, theirs = predict("llama-3.1-8b", [str(copy), "h100-sxm"], 8192).rows
    assert mine.hw == "my-gpu"
    assert mine.roofline_s < 0.6 * theirs.roofline_s
