"""The page computes, in a browser, what the package computes in Python."""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from costmodel.analysis.claims import load_claims
from costmodel.calibration_files import find_calibration
from costmodel.errors import Impossible
from costmodel.hardware import load_hardware
from costmodel.model_file import load_architecture
from costmodel.prediction import predict
from costmodel.report.page.build import LARGEST, page
from costmodel.report.page.claims import asked_step, claim_about
from costmodel.report.page.data import Content, content
from costmodel.report.page.write import write_page
from tests.devtools import document

MODELS = (
    "llama-3.1-8b",
    "gemma-3-27b",
    "deepseek-v3.2",
    "kimi-linear-48b-a3b",
    "nemotron-h-8b",
    "minicpm4-8b",
    "rwkv7-7.2b",
    "hyena-1.3b",
    "llada-8b",
)
DEVICES = ("h100-sxm", "a100-sxm", "gh200", "rtx-5090", "mi300x", "tpu-v5p")
"""Two with calibrations of their own, two that borrow one, two without."""
POINTS = 400
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
SECONDS = 120
NO_BROWSER = (
    f"no browser: CHROMIUM is not set, none of {', '.join(BROWSERS)} on the path, and PyQt6-WebEngine, which has one "
    "in its wheels, is not installed (pip install '.[test]')"
)

EXACT = {
    "time": "time_s",
    "serial": "serial_s",
    "roofline": "roofline_s",
    "flops": "flops",
    "bytes": "hbm_bytes",
    "cache": "cache_bytes",
    "memory": "memory_bytes",
    "energy": "energy_j",
    "tokensPerSecond": "tokens_per_s",
    "bound": "bound",
    "basis": "basis",
    "fits": "fits",
}
"""What the page calls the values of a prediction."""

ASK = """
const each = ({ arch, hw, phase, batch, context, weights, kv }) => {
  const architecture = DATA.architectures.find((each) => each.name === arch);
  const device = DATA.devices.find((each) => each.name === hw);
  const precision = model.precisionOf(architecture, device, phase, weights, kv);
  if (precision === null) return null;
  const result = model.predict(architecture, device, { phase, B: batch, L: context, precision },
    { wantSpread: true, wantKernels: true });
  return { ...result, kernels: result.kernels.map(({ name, time, bound, basis }) => ({ name, time, bound, basis })) };
};
"""


CLAIM = {
    "id": "made-up",
    "mechanism": "kda",
    "what": "time per output token",
    "source": "arXiv:0000.00000",
    "setup": "as many sequences as fit",
    "claimed": [3.98, 6.3],
    "predicted": [3.6, 5.9],
    "low": [3.2, 5.2],
    "high": [4.0, 6.5],
    "ratio": [0.9, 0.94],
    "verdict": "reproduced-if",
    "reason": "only where memory is filled",
    "unit": "x",
    "at": ["128k", "1M"],
    "basis": "fitted",
    "kind": "figure",
    "fair": "equal batch",
    "fair_predicted": 2.2,
    "command": "python cli.py claims made-up",
    "about": ["kimi-linear-48b-a3b"],
    "asks": {"arch": "kimi-linear-48b-a3b", "hw": "h100-sxm", "phase": "decode", "context": 2**20, "batch": 6},
}
"""A claim as the page is given it."""


@pytest.fixture(scope="module")
def made() -> Content:
    devices = [load_hardware(name) for name in DEVICES]
    models = [load_architecture(name) for name in MODELS]
    calibrated = [(device, find_calibration(device, None)) for device in devices]
    return content(models, calibrated, claims=[CLAIM, {**CLAIM, "id": "other", "about": ["jet-nemotron-2b"]}])


@pytest.fixture(scope="module")
def text(made: Content) -> str:
    return page(made, MODELS[:3])


def questions() -> list[dict[str, Any]]:
    """Random questions over everything that the page lets people choose."""
    chance = random.Random(7)
    found = []
    for _ in range(POINTS):
        phase = chance.choice(["prefill", "decode", "decode", "train"])
        formats = {"weights": [None, "bf16", "fp8", "int4", "nvfp4"], "kv": [None, "bf16", "fp8"]}
        chosen = {name: None if phase == "train" else chance.choice(values) for name, values in formats.items()}
        found.append(
            {
                "arch": chance.choice(MODELS),
                "hw": chance.choice(DEVICES),
                "phase": phase,
                "batch": chance.choice([1, 2, 7, 64, 300]),
                "context": round(2 ** chance.uniform(0, 26.5)),
                **chosen,
            }
        )
    return found


def expected(question: dict[str, Any]) -> Any:
    """The row of the package; None where it refuses."""
    try:
        return predict(
            question["arch"],
            question["hw"],
            question["context"],
            **{name: question[name] for name in ("phase", "batch", "weights", "kv")},
        ).row
    except Impossible:
        return None


def chromium() -> str | None:
    """The program that CHROMIUM names, or one on the path."""
    return os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)


def has_web_engine() -> bool:
    """Whether the browser in the wheels of PyQt6-WebEngine is there."""
    return bool(importlib.util.find_spec("PyQt6") and importlib.util.find_spec("PyQt6.QtWebEngineWidgets"))


def dom(page_text: str, folder: Path, script: str, hash: str = "") -> str:
    """What the page is after a script has run in it, in a headless browser without network.

    The script may use DATA and model, and leaves its result in `answer`.
    """
    asking = f"""<script>(async () => {{
        const ready = () => window.costmodel && document.documentElement.dataset.ready === "1";
        while (!ready()) await new Promise((done) => setTimeout(done, 20));
        const {{ DATA, model }} = window.costmodel;
        {script}
        return answer;
    }})().catch((error) => ({{ error: String(error) }})).then((answer) => {{
        const place = document.createElement("pre");
        place.id = "answers";
        place.textContent = JSON.stringify(answer);
        document.body.append(place);
    }});</script></body>"""
    file = folder / "page.html"
    file.write_text(page_text.replace("</body>", asking), encoding="utf-8")
    url = f"{file.as_uri()}#{hash}"
    program = chromium()
    if program is not None:
        return document(program, url, "answers", folder / "profile", SECONDS)
    assert has_web_engine(), NO_BROWSER
    command = [sys.executable, str(Path(__file__).with_name("web_engine.py")), url, "answers", str(SECONDS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    if missing := re.search(r"ImportError: (\S+): cannot open shared object file", run.stderr):
        # Wheels do not bring libraries of the system (NSS, ALSA, X11), and tests do not install them.
        pytest.skip(f"no browser can start: {missing[1]} is missing; install Chromium, or name one in CHROMIUM")
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def answers_of(found: str) -> Any:
    match = re.search(r'<pre id="answers">(.*?)</pre>', found, re.DOTALL)
    assert match
    found = json.loads(unescape(match[1]))
    assert not (isinstance(found, dict) and "error" in found and len(found) == 1), found
    return found


def test_the_page_predicts_what_python_predicts(text: str, tmp_path: Path) -> None:
    asked = questions()
    found = answers_of(dom(text, tmp_path, f"{ASK}const answer = {json.dumps(asked)}.map(each);"))
    ends: list[float] = []
    for question, answer in zip(asked, found, strict=True):
        row = expected(question)
        assert (answer is None) == (row is None), question
        if row is None:
            continue
        for name, ours in EXACT.items():
            value = getattr(row, ours)
            exact = isinstance(value, str | bool) or value is None
            assert answer[name] == (value if exact else pytest.approx(value, rel=1e-9)), (question, name)
        ends += [abs(answer["low"] / row.time_low_s - 1), abs(answer["high"] / row.time_high_s - 1)]
        times = {kernel["name"]: kernel["time"] for kernel in answer["kernels"]}
        for kernel in row.breakdown:
            if [other.kernel for other in row.breakdown].count(kernel.kernel) == 1:
                assert times[kernel.kernel] == pytest.approx(kernel.time_s, rel=1e-9), (question, kernel.kernel)
    assert len(ends) > POINTS
    # Deviations of parameters are written with four digits. Where shifted parameters fill a wave of thread blocks
    # exactly, the last bit of an exponential decides whether another wave starts.
    assert sorted(ends)[int(0.98 * len(ends))] < 1e-3
    assert max(ends) < 0.05


def test_a_link_asks_its_question_again(text: str, tmp_path: Path) -> None:
    hash = "a=kimi-linear-48b-a3b,llama-3.1-8b&hw=a100-sxm&p=prefill&c=1000000&b=4&usd=2"
    found = dom(text, tmp_path, "const answer = [window.costmodel.state(), location.hash];", hash)
    state, link = answers_of(found)
    assert state["a"] == ["kimi-linear-48b-a3b", "llama-3.1-8b"]
    assert [state[name] for name in ("hw", "p", "c", "b", "usd")] == ["a100-sxm", "prefill", 1000000, 4, 2]
    assert set(link.removeprefix("#").split("&")) == set(hash.split("&"))
    shown = predict("llama-3.1-8b", "a100-sxm", 1000000, phase="prefill", batch=4).row
    assert f"<b>{shown.time_s / 60:.3g} min</b>" in found
    assert found.count("<svg") >= 3


def test_a_link_with_nonsense_shows_the_default(text: str, tmp_path: Path) -> None:
    hash = "a=%3Cscript%3E,no-such-model&hw=nothing&p=sleep&c=-5&b=NaN&w=fp99&usd=abc"
    found = dom(text, tmp_path, "const answer = window.costmodel.state();", hash)
    state = answers_of(found)
    assert "at $2 per hour (an example: say yours)" in found
    assert state["a"] == list(MODELS[:3])
    assert [state[name] for name in ("hw", "p", "c", "b", "w")] == ["h100-sxm", "decode", 131072, 1, ""]


def test_memory_filled_takes_the_largest_batch_that_fits(text: str, tmp_path: Path) -> None:
    script = """
    const architecture = DATA.architectures[0], device = DATA.devices[0];
    const question = { phase: "decode", L: 8192, precision: 0 };
    const answer = model.largestBatch(architecture, device, question);
    """
    batch = answers_of(dom(text, tmp_path, script))
    assert predict(MODELS[0], DEVICES[0], 8192, batch=batch).row.fits
    assert not predict(MODELS[0], DEVICES[0], 8192, batch=batch + 1).row.fits


def test_every_control_has_a_name_and_every_chart_a_description(text: str, tmp_path: Path) -> None:
    script = """
    const named = (each) => each.labels?.length || each.getAttribute("aria-label") || each.textContent.trim();
    const controls = [...document.querySelectorAll("input, select, button")];
    const answer = {
      unnamed: controls.filter((each) => !named(each)).map((each) => each.id),
      charts: [...document.querySelectorAll("svg[role=img]")].map((each) => each.getAttribute("aria-label")),
      headings: [...document.querySelectorAll("h1, h2, h3")].map((each) => Number(each.tagName[1])),
      ids: [...document.querySelectorAll("[id]")].map((each) => each.id),
      wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    };
    """
    found = answers_of(dom(text, tmp_path, script, "usd=2"))
    assert found["unnamed"] == []
    assert len(found["charts"]) >= 3
    assert all(MODELS[0] in description for description in found["charts"])
    assert found["headings"][0] == 1
    assert all(after - before <= 1 for before, after in zip(found["headings"], found["headings"][1:], strict=False))
    assert len(set(found["ids"])) == len(found["ids"])
    assert not found["wide"]


def test_three_clicks_lead_from_a_claim_to_its_batch_kernel_formula_and_measured_error(
    text: str, tmp_path: Path
) -> None:
    script = """
    const drawn = () => new Promise((done) => setTimeout(done, 800));
    const claims = [...document.querySelectorAll("#claims > details")];
    claims[0].querySelector("summary").click();
    const told = claims[0].textContent;
    claims[0].querySelector("button").click();
    await drawn();
    const asked = window.costmodel.state();
    const shown = document.getElementById("shown").value;
    const rows = [...document.querySelectorAll("#kernels > .scroll:first-child tbody tr")];
    const names = rows.map((row) => `${row.cells[1].textContent}: ${row.cells[0].textContent}`);
    rows[names.indexOf("mla: attention")].querySelector("button").click();
    await drawn();
    const lines = [...document.querySelectorAll("#kernels tr.found")].map((row) => row.cells[2].textContent);
    const open = document.querySelector("#kernels details[open]").dataset.block;
    const others = claims.at(-1).querySelector("summary").textContent;
    const errors = rows.map((row) => row.cells[8].textContent);
    const answer = { told, asked, shown, lines, open, others, errors };
    """
    found = answers_of(dom(text, tmp_path, script, "a=kimi-linear-48b-a3b"))
    for part in (
        "claimed 3.98, 6.3×, predicted 3.6, 5.9×: reproduced-if",
        "3.2 … 4, 5.2 … 6.5×",
        "as many sequences as fit",
        "equal batch",
    ):
        assert part in found["told"]
    asked = found["asked"]
    assert (asked["b"], asked["c"], asked["p"], asked["hw"]) == (6, 2**20, "decode", "h100-sxm")
    assert (found["shown"], found["open"]) == ("kimi-linear-48b-a3b", "mla")
    assert any("2·B·H·pairs·(2·c + dr)" in line for line in found["lines"])
    assert found["others"] == "1 about others"
    assert any(re.fullmatch(r"[\d.]+ % \(\d+ points\)", error) for error in found["errors"])


def test_a_claim_belongs_to_its_model_or_to_every_model_with_its_mechanism_and_asks_for_its_own_set_up() -> None:
    models = [load_architecture(name) for name in ("kimi-linear-48b-a3b", "llama-3.1-8b")]
    devices = [load_hardware("h800")]
    [filled] = load_claims(["kimi-tpot-1m"])
    assert claim_about(filled, models) == ["kimi-linear-48b-a3b"]
    asked = asked_step(filled, models, devices)
    assert asked is not None
    assert {name: asked[name] for name in ("hw", "phase", "context", "fill")} == {
        "hw": "h800",
        "phase": "decode",
        "context": 2**20,
        "fill": True,
    }
    assert asked_step(filled, models, []) is None
    assert asked_step(filled, models[1:], devices) is None
    kernels = next(claim for claim in load_claims(["flashkda"]) if claim.setup.mixer)
    assert claim_about(kernels, models) == ["kimi-linear-48b-a3b"]
    assert asked_step(kernels, models, devices) is None


def test_the_formula_of_what_takes_the_time_stands_beside_the_curves_and_moves_with_the_context(
    text: str, tmp_path: Path
) -> None:
    script = """
    const beside = () => document.getElementById("beside").textContent;
    const before = beside();
    const slider = document.getElementById("context");
    slider.value = "26";
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => setTimeout(done, 500));
    const answer = [before, beside()];
    """
    before, after = answers_of(dom(text, tmp_path, script, "a=kimi-linear-48b-a3b&c=4096"))
    assert "attention (mla)" not in before
    assert "of the time is attention (mla)" in after
    assert "2·B·H·pairs·(2·c + dr)" in after


def test_the_page_needs_nothing_but_itself(text: str) -> None:
    assert len(text.encode()) < LARGEST
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!#)""", text)
    assert "fetch(" not in text
    assert "/*DATA*/" not in text


def test_the_same_question_gives_the_same_page(made: Content) -> None:
    assert page(made, MODELS[:1]) == page(made, MODELS[:1])


def test_formats_without_an_engine_are_refused_in_words(tmp_path: Path) -> None:
    out = tmp_path / "explorer.html"
    asked = {"arch": ["deepseek-v3.2"], "hw": ["a100-sxm"], "library": None, "set": [], "out": str(out)}
    write_page(asked)
    found = dom(out.read_text(encoding="utf-8"), tmp_path, "const answer = 1;")
    assert "a100-sxm has no engine for the number formats of deepseek-v3.2" in found
    assert "growth of the indexer with the context" in found
