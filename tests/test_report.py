"""The report of one question: what it says is what the commands say, and nothing in it can harm a reader."""

import re
from pathlib import Path

import pytest

from costmodel.errors import BadInput
from costmodel.hardware import load_hardware
from costmodel.prediction import predict
from costmodel.report.columns import shows
from costmodel.report.document import Command, Document, Items, Picture, Prose, Section, Table, to_html, to_markdown
from costmodel.report.errors_of_fits import errors_of_fits
from costmodel.report.question import command_of, report
from costmodel.units import format_bytes, format_seconds

QUESTION = {
    "arch": ["llama-3.1-8b", "qwen3-next-80b-a3b"],
    "hw": ["h100-sxm"],
    "context": [8192, 131072],
    "phase": ["decode"],
    "batch": 2,
    "weights": None,
    "kv": "fp8",
    "activations": None,
    "library": None,
    "set": [],
}

HOSTILE = "<script>alert(1)</script>|\x1b[31m"
DOCUMENT = Document(
    HOSTILE,
    [
        Section(
            HOSTILE,
            [
                Prose(HOSTILE),
                Items([HOSTILE]),
                Command(HOSTILE),
                Table([{"a": HOSTILE, "b": 1}], (shows("a", right=False), shows("b")), code=("a",)),
                Picture("x", b"<?xml version='1.0'?>\n<!DOCTYPE svg>\n<svg><path/></svg>", HOSTILE),
            ],
        )
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    report({**QUESTION, "out": str(out)})
    return out


def test_a_folder_gets_html_markdown_and_pictures(folder: Path) -> None:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["pictures/time-h100-sxm.svg", "report.html", "report.md"]
    text = (folder / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert named == ["pictures/time-h100-sxm.svg"]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_report_says_what_predict_says(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    for row in predict(QUESTION["arch"], "h100-sxm", [8192, 131072], batch=2, kv="fp8").rows:
        assert format_seconds(row.time_s) in text
        assert format_bytes(row.cache_bytes) in text
    assert "2·B·H·pairs·(dk + dv)" in text or "2·B·H·L·(dk + dv)" in text
    assert "arXiv:" in text
    assert "h100-sxm/vllm" in text


def test_claims_about_the_models_are_judged(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## What is claimed of them elsewhere" in text
    assert "qwen3-next-32k: " in text


def test_html_needs_no_other_file(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_the_command_in_the_report_gives_the_same_report(folder: Path) -> None:
    command = command_of({**QUESTION, "out": str(folder)})
    assert command in (folder / "report.md").read_text(encoding="utf-8")
    for part in ("--arch llama-3.1-8b,qwen3-next-80b-a3b", "--context 8k,128k", "--batch 2", "--kv fp8"):
        assert part in command


def test_what_comes_from_strangers_is_escaped() -> None:
    shown = to_html(DOCUMENT)
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert shown.count("&lt;script&gt;") == 8  # title twice, heading, prose, item, command, cell, description
    assert "<?xml" not in shown
    text = to_markdown(DOCUMENT, "pictures")
    assert "\x1b" not in text
    assert "| `<script>alert(1)</script>\\|" in text


def test_an_ending_that_means_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"report\.pdf"):
        report({**QUESTION, "out": str(tmp_path / "report.pdf")})
    assert not list(tmp_path.iterdir())


def test_errors_of_fits_are_those_of_the_calibration_file() -> None:
    from costmodel.calibration_files import find_calibration
    from costmodel.model_file import load_architecture
    from costmodel.prediction import make_precision, make_step

    device = load_hardware("h100-sxm")
    calibration = find_calibration(device, "vllm")
    model = load_architecture("llama-3.1-8b")
    kernels = model.kernels(make_step(model, "decode", 8192), make_precision(model, device))
    rows = errors_of_fits(calibration, kernels)
    assert len(rows) == len({calibration.fit(kernel).key for kernel in kernels})
    file = Path(calibration.place).read_text(encoding="utf-8")
    for row in rows:
        assert f"median_ape: {row['median_ape']}" in file
        assert row["basis"] == "fitted"
