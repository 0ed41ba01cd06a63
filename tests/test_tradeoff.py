"""Efficiency against capability: what is predicted, what is published, what is bounded, and what is not ranked."""

import itertools
import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel.analysis.comparisons import comparison_names, load_comparison, papers_folder, read_comparison
from costmodel.analysis.tradeoff import answer_tokens, ranked, recall_bound, tradeoff
from costmodel.cli import app
from costmodel.errors import BadInput
from costmodel.generation import generate
from costmodel.hardware import load_hardware
from costmodel.prediction import predict

HARDWARE = load_hardware("h200-sxm")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", comparison_names())
def test_a_published_comparison_has_a_source_and_tells_its_budgets(name: str) -> None:
    found = load_comparison(name)
    assert found.source
    assert set(found.budgets) == set(found.models)
    assert found.matched == (not found.reason)
    assert any(found.baseline in metric.values for metric in found.metrics)
    if found.matched:
        assert len(set(found.budgets.values())) == 1
    for model in found.models.values():
        # What comes without a published size is a file beside the comparison, or a baseline derived from a model.
        assert model is None or model.parameters > 10**9


def test_the_three_models_of_the_kimi_report_have_one_size_and_their_own_layers() -> None:
    found = load_comparison("kimi-linear").models
    counts = {name: model.counts()[0] for name, model in found.items() if model is not None}
    assert counts["MLA"] == {"mla": 27}
    assert counts["GDN hybrid"] == {"gdn": 20, "mla": 7}
    assert counts["Kimi Linear"] == {"kda": 20, "mla": 7}


@pytest.mark.parametrize("model,billions", [("Transformer", 8.53), ("Mamba-2", 8.24), ("Mamba-2-Hybrid", 8.66)])
def test_the_models_of_nvidias_study_have_8_billion_parameters(model: str, billions: float) -> None:
    found = load_comparison("nvidia-8b").models[model]
    assert found is not None
    assert found.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    layers = len(found.layers)
    if model == "Mamba-2-Hybrid":  # 43 % Mamba-2, 7 % attention, 50 % feed-forward
        mixers, ffns = found.counts()
        assert [round(100 * count / layers) for count in (*mixers.values(), *ffns.values())] == [43, 7, 50]


def test_rows_hold_predictions_bytes_and_published_scores_side_by_side() -> None:
    rows = tradeoff([HARDWARE], [131072], comparisons=["kimi-linear"], batch=2)
    by_model = {row["model"]: row for row in rows}
    kimi, mla = by_model["Kimi Linear"], by_model["MLA"]
    step = predict("kimi-linear-48b-a3b", HARDWARE, 131072, batch=2).row
    assert kimi["decode_s"] == step.time_s
    assert kimi["cache_bytes"] == step.cache_bytes / 2
    assert kimi["decode_gain"] == mla["decode_s"] / kimi["decode_s"]
    assert mla["decode_gain"] == mla["prefill_gain"] == 1
    assert kimi["capability"]["MRCR"] == {"value": 29.6, "delta": 7.0, "unit": "points", "second_hand": False}
    assert (kimi["recall_pairs"], mla["recall_pairs"]) == (None, None)
    assert kimi["evidence"]["capability"] == "published"
    assert kimi["evidence"]["decode_s"] == "predicted"
    assert kimi["evidence"]["recall_pairs"] == "bounded"


def test_the_bound_on_recall_is_where_answers_outnumber_states() -> None:
    for bits, words in itertools.product((8, 16, 40), (2, 3, 10)):
        most = recall_bound(bits / 8, words)
        pairs = int(most + 1e-9)
        assert words**pairs <= 2**bits < words ** (pairs + 1)


def test_only_a_state_that_does_not_grow_is_bounded() -> None:
    rows = {row["arch"]: row for row in tradeoff([HARDWARE], [131072], architectures=["mamba2-2.7b", "qwen3-8b"])}
    # 64 layers of 80 · 64 · 128 fp32 numbers and 3 columns of 80 · 64 + 2 · 128 channels in bf16; 50,288 words.
    state = 64 * (80 * 64 * 128 * 4 + 3 * (80 * 64 + 2 * 128) * 2)
    assert rows["mamba2-2.7b"]["state_bytes"] == state
    assert rows["mamba2-2.7b"]["recall_pairs"] == pytest.approx(8 * state / 15.61792, rel=1e-5)
    assert rows["mamba2-2.7b"]["capability"] == {}
    assert rows["qwen3-8b"]["recall_pairs"] is None
    assert rows["qwen3-8b"]["comparison"] is None


def test_scores_of_one_budget_are_ranked() -> None:
    rows = tradeoff([HARDWARE], [131072], comparisons=["kimi-linear"])
    found = {row["model"]: row["rank"] for row in ranked(rows, "LongBench-V2")}
    assert found == {"MLA": 1, "Kimi Linear": 2, "GDN hybrid": 3}
    assert [row["model"] for row in ranked(rows, "EvalPlus")] == ["GDN hybrid", "Kimi Linear", "MLA"]
    assert sorted(row["rank"] for row in ranked(rows, "MATH")) == [1, 1, 2]  # 54.7, 54.7, 54.1


@pytest.mark.parametrize(
    "comparisons,metric,message",
    [
        (["diffusion"], "MMLU", "unmatched budgets: tokens, data and starting points"),
        (["diffusion", "kimi-linear"], "MMLU", "unmatched budgets; choose one"),
        (["kimi-linear"], "MLU", "did you mean 'MMLU'"),
    ],
)
def test_scores_of_unmatched_budgets_are_not_ranked(comparisons: list[str], metric: str, message: str) -> None:
    rows = tradeoff([HARDWARE], [8192], comparisons=comparisons)
    with pytest.raises(BadInput, match=message):
        ranked(rows, metric)


def test_the_command_refuses_to_rank_with_a_reason_and_draws_what_it_may(tmp_path: Path) -> None:
    runner = CliRunner()
    refused = runner.invoke(app, ["tradeoff", "--comparison", "diffusion", "--rank", "MMLU", "--context", "8k"])
    assert refused.exit_code == 2
    assert "unmatched budgets" in refused.output
    picture = tmp_path / "tradeoff.svg"
    command = ["tradeoff", "--context", "8k", "--plot", str(picture)]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    drawn = picture.read_text()
    for text in ("Kimi Linear", "matched budgets", "budgets NOT matched", "MRCR"):
        assert text in drawn
    assert max(map(len, done.stdout.splitlines())) <= 160
    assert "capability published by others and never predicted" in done.stdout
    assert runner.invoke(app, command).exit_code == 0
    assert picture.read_text() == drawn


def test_json_tells_what_kind_of_knowledge_each_number_is() -> None:
    arguments = ["tradeoff", "--comparison", "nvidia-8b", "--context", "8k", "--format", "json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["model"] for row in rows] == ["Transformer", "Mamba-2", "Mamba-2-Hybrid"]
    assert rows[2]["capability"]["average of 12 tasks over the transformer"]["delta"] == 2.65
    assert rows[1]["capability"] == {}
    assert set(rows[0]["evidence"].values()) == {"predicted", "counted", "published", "bounded"}


def test_all_problems_of_a_comparison_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "capability.yaml"
    path.write_text(
        "schema: 1\ntitle: t\nsource: s\nmatched: false\nbaseline: C\nmodels: {A: {architecture: null}}\n"
        "metrics: [{name: m, values: {B: 1}}]\nbuget: x\n"
    )
    with pytest.raises(BadInput) as error:
        read_comparison(path)
    for message in ("unknown key 'buget'; did you mean 'budget'?", "reason: missing", "'C' is none", "values.B"):
        assert message in str(error.value)
    with pytest.raises(BadInput, match="unknown comparison 'kimi-liner'; did you mean 'kimi-linear'"):
        load_comparison("kimi-liner")


def test_the_facts_of_papers_travel_in_the_wheel() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["validation/papers"] == "costmodel/data/papers"
    assert papers_folder().is_dir()


def test_beside_a_diffusion_model_whole_answers_are_priced() -> None:
    """Its step sees everything and commits one token; a token-by-token model's step sees one token."""
    rows = {row["model"]: row for row in tradeoff([load_hardware("h100-sxm")], [2048], comparisons=["diffusion"])}
    assert {row["answer_tokens"] for row in rows.values()} == {256}
    for model, arch, method in (("LLaDA-8B", "llada-8b", "full"), ("Qwen2.5-7B", "qwen2.5-7b", "autoregressive")):
        [answer] = generate(arch, "h100-sxm", prompt=2048 - 256, new_tokens=256, methods=(method,))
        assert rows[model]["decode_s"] == pytest.approx(answer["time_s"] / 256)
    assert rows["LLaDA-8B"]["decode_gain"] < 1 / 3
    others = tradeoff([load_hardware("h100-sxm")], [2048], comparisons=["nvidia-8b"])
    assert {row["answer_tokens"] for row in others} == {None}
    assert answer_tokens(load_comparison("diffusion"), None, 100) == 50
