"""Plans for answers of one token: engines that only process prompts."""

from typing import Any

import numpy
import pytest

from costmodel.errors import BadInput, Impossible
from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.assess import assess
from costmodel.planning.closest import assess_closest
from costmodel.planning.confirm import replayed
from costmodel.planning.load import Load
from costmodel.planning.plan_row import plan_row
from costmodel.planning.question import Loaded, Question, load
from costmodel.planning.search import Found, search
from costmodel.report.plans import plan_and_print
from tests.test_plan import DEFAULTS

ONE_TOKEN: dict[str, Any] = {"output": "1", "tpot_s": None, "ttft_s": "400ms", "rate": "40/s", "input": "2k"}


def planned(**changes: Any) -> tuple[Question, Loaded, Found, Load]:
    inputs = read_inputs({**DEFAULTS, **ONE_TOKEN, **changes})
    load_of = Load(inputs)
    question = question_of(inputs, load_of)
    return question, load(question), search(question), load_of


@pytest.mark.parametrize("lengths", ["2k", "100..400"])
def test_the_plan_is_what_the_replay_does(lengths: str) -> None:
    _, known, found, load_of = planned(input=lengths, requests=600)
    checked = replayed(known, assess(known, found.best[0]), load_of)
    assert abs(checked["ttft_off"]) < 25.0
    assert checked["tpot_off"] is None


def test_prompts_pay_for_everything_and_there_is_no_time_per_further_token() -> None:
    _, known, found, _ = planned()
    plan = found.best[0]
    row = plan_row(known, assess(known, plan))
    assert row["tpot_s"] is row["tpot_low_s"] is row["usd_per_million_output_tokens"] is row["decode_bound"] is None
    assert row["ttft_s"] == row["e2e_s"] == pytest.approx(plan.ttft_s, rel=1e-9)
    tokens = 3600 * row["load_per_s"] * 2048
    assert row["usd_per_million_input_tokens"] == pytest.approx(1e6 * row["usd_per_hour"] / tokens)
    assert found.frontier == ()


def test_no_other_number_of_replicas_is_cheaper_and_holds_the_level() -> None:
    question, known, found, _ = planned(rate="150/s", gpus=(1, 2, 4, 8))
    plan = found.best[0]
    assert plan.ttft_s <= 0.4
    fewer = plan._replace(replicas=plan.replicas - 1)
    state = assess(known, fewer).state
    assert state.ttft_s > 0.4 or question.work.rate > question.usable * state.most_per_s


@pytest.mark.parametrize("optimize", ["latency", "gpus", "throughput"])
def test_each_objective_is_at_least_as_good_in_what_it_is_for(optimize: str) -> None:
    cost, other = (planned(optimize=name, gpus=(1, 2, 4))[2].best[0] for name in ("cost", optimize))
    of = {"latency": "ttft_s", "gpus": "gpus", "throughput": "tokens_per_s_gpu"}[optimize]
    sign = -1 if optimize == "throughput" else 1
    assert sign * getattr(other, of) <= sign * getattr(cost, of)


def test_where_nothing_holds_the_level_the_closest_is_told_at_the_load_that_it_can_answer() -> None:
    _, known, found, _ = planned(rate="5000/s")
    assert not found.best
    assert found.closest is not None
    under, reached = assess_closest(known, found.closest)
    assert reached.plan.rate < 5000
    assert numpy.isfinite(plan_row(under, reached)["ttft_s"])


def test_a_model_that_fits_nowhere_is_impossible_as_ever() -> None:
    with pytest.raises(Impossible, match="no layout of up to 1 GPUs"):
        planned(arch=["llama-3.1-70b"], gpus=(1,))


def test_a_figure_of_users_is_refused() -> None:
    asked = {**DEFAULTS, **ONE_TOKEN, "prefix_hit": [0.0], "engine": "local", "jobs": 1, "scheduler": None}
    with pytest.raises(BadInput, match="--plot"):
        plan_and_print("json", {**asked, "confirm": False}, None, "figure.png")
