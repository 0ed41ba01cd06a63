"""Plans: the steady state beside the replay's tables, the search and its bounds, flags, prices, and other engines."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from typer.testing import CliRunner

from costmodel.cli import app
from costmodel.errors import BadInput
from costmodel.hardware import load_hardware
from costmodel.parallel.layout import Layout, parse_layout
from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.assess import assess, difference, spread
from costmodel.planning.candidates import evaluate
from costmodel.planning.confirm import replayed, workers
from costmodel.planning.deployment import engine
from costmodel.planning.engines import Engines
from costmodel.planning.launch import Worker, documented, launches
from costmodel.planning.load import Load
from costmodel.planning.operating import line, places_wait
from costmodel.planning.plan_row import plan_row
from costmodel.planning.points import named, rank, undominated
from costmodel.planning.pools import Pools, certainly_beaten
from costmodel.planning.prices import default_prices, prices_for
from costmodel.planning.question import OBJECTIVES, Loaded, Question, load
from costmodel.planning.search import BEATEN, Found, evaluate_batch, search
from costmodel.planning.snapshots import recurrent, snapshot_tokens
from costmodel.planning.space import Tasks, layouts
from costmodel.planning.traffic import Request
from costmodel.planning.workload import means
from costmodel.prediction import loaded
from costmodel.report.columns import value_text
from costmodel.step import Step

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULTS: dict[str, Any] = {
    "arch": ["llama-3.1-8b"], "hw": ["h100-sxm"], "gpus": (1, 2, 4), "input": "2k", "output": "256", "trace": None,
    "skip_bad_lines": False, "rate": "8/s", "burstiness": 1.0, "concurrency": None, "ttft_s": "1s", "tpot_s": "20ms",
    "optimize": "cost", "price": [], "layout": [], "pools": ["aggregated", "disaggregated"], "context_parallel": False,
    "weights": ["own"], "kv": ["own"], "activations": None, "max_batched_tokens": [2048, 8192], "max_sequences": None,
    "page_tokens": None, "prefix_hit": 0.0, "snapshot_tokens": None, "draft_tokens": [0], "accepted": 0.7,
    "utilisation": None, "headroom": 0.1,
    "overlap": 0.0, "imbalance": 1.0, "link_bandwidth": None, "requests": 600, "warmup": 0,
    "seed": 0, "library": None, "set": [], "mechanism": [],
}  # fmt: skip


def asked(**changes: Any) -> Question:
    inputs = read_inputs({**DEFAULTS, **changes})
    return question_of(inputs, Load(inputs))


def load_of(**changes: Any) -> Load:
    return Load(read_inputs({**DEFAULTS, **changes}))


def planned(**changes: Any) -> tuple[Question, Loaded, Found]:
    question = asked(**changes)
    return question, load(question), search(question)


@pytest.mark.parametrize(
    ("arch", "layout", "overlap"),
    [
        ("llama-3.1-8b", "tp2", 0.0),
        ("llama-3.1-8b", "pp2", 0.0),
        ("kimi-linear-48b-a3b", "dp4ep4", 0.0),
        ("deepseek-v3", "tp8", 0.0),
        ("kimi-linear-48b-a3b", "dp4ep4", 1.0),
        ("llama-3.1-8b", "tp8", 1.0),
    ],
)
@pytest.mark.parametrize("links", ["1x", "0.05x"])
def test_curves_equal_the_tables_of_the_replay(arch: str, layout: str, overlap: float, links: str) -> None:
    # Two ways to the same iterations: arrays for one workload here, tables over all contexts there.
    changed = [f"hw.links.scale_up.bandwidth={links}"]
    question = asked(arch=[arch], hw=["h200-sxm"], gpus=(8,), input="3k", output="200", overlap=overlap, set=changed)
    known, only = load(question), numpy.array([0])
    one = parse_layout(layout)
    assert isinstance(one, Layout)
    engines = Engines(known, Tasks("h200-sxm", None, None, 0, (one,)))
    curves = engines.curves(only, engines.times(only), numpy.array([32.0])).of(0)
    model = known.engine(*engines.tasks[0])
    times = engine(model.served, model.layout, question.settings("h200-sxm", 8192, 0, 64)).times
    work = question.work
    for count in (1, 4, 32):
        row = int(numpy.flatnonzero(curves.n == count)[0])
        assert curves.decode[row] == pytest.approx(times.decode_s(count, work.context), rel=0.06)
        alone = times.decode_s(count - 1, work.context) if count > 1 else 0.0
        step = times.step_s(count - 1, work.context, 1, work.computed, work.position - work.computed / 2)
        assert curves.added[1, row] + curves.alone[row] == pytest.approx(step, rel=0.06)
        assert curves.alone[row] == pytest.approx(alone, rel=0.06)


def test_a_rank_of_data_parallelism_takes_a_mean_number_of_prompts_as_one_device_does() -> None:
    known = load(asked(arch=["qwen3-30b-a3b"], gpus=(2,)))
    step = Step(B=numpy.float64(1.25), S=numpy.float64(512.0), P=numpy.float64(0.0), phase="prefill")
    one, two = (
        [
            kernel.executed
            for kernel in known.engine("h100-sxm", None, None, 0, parse_layout(layout)).kernels(step)
            if kernel.family == "prefill-attention"
        ]
        for layout in ("tp1", "dp2ep2")
    )
    assert one
    assert one == two


@pytest.mark.parametrize("rate", ["3/s", "12/s", "24/s"])
def test_the_steady_state_is_near_the_replay(rate: str) -> None:
    _, known, found = planned(rate=rate, ttft_s="2s", tpot_s="40ms")
    check = replayed(known, assess(known, found.best[0]), load_of(rate=rate, requests=1500))
    assert not check["saturated"]
    assert abs(check["tpot_off"]) < 15
    assert abs(check["ttft_off"]) < 40


def test_means_of_a_load_are_those_of_its_requests() -> None:
    found = means([Request(0.0, 10, 3, 4), Request(1.0, 30, 1)], 40)
    assert (found.input, found.computed, found.output) == (20.0, 18.0, 2.0)
    # Prompt one: 6 tokens after 4, at 7 on average; prompt two: 30 at 15. Both weighted with their tokens.
    assert found.position == pytest.approx((6 * 7 + 30 * 15) / 36)
    assert found.context == pytest.approx((11 + 12) / 2 + 0.5)


def test_waiting_grows_without_bound_towards_saturation() -> None:
    used = numpy.array([0.1, 0.5, 0.9, 0.99, 1.0])
    one = numpy.ones(5)
    # M/M/1: ρ/(1 − ρ) service times.
    assert line(used, one)[:4] == pytest.approx(used[:4] / (1 - used[:4]))
    assert numpy.isinf(line(used, one)[-1])
    # With one place, Sakasegawa's form is exact for M/M/1.
    assert places_wait(used, one, one)[:4] == pytest.approx(used[:4] / (1 - used[:4]))
    many = places_wait(20 * used, 20 * one, one)
    assert (many[:4] < line(used, one)[:4]).all()


def test_every_plan_holds_the_service_level_and_the_best_is_the_cheapest() -> None:
    question, known, found = planned()
    assert found.best
    tasks = [Tasks("h100-sxm", None, None, 0, (layout,)) for layout in layouts(known.model, question.gpus)]
    plans = [plan for one in tasks for outcome in evaluate(known, one) for plan in outcome.plans]
    for plan in [*found.best, *plans]:
        assert plan.ttft_s <= 1.0
        assert plan.tpot_s <= 0.02
        assert plan.gpus <= 4
    assert all(rank(found.best[0], "cost") <= rank(plan, "cost") for plan in plans)


def test_bounds_exclude_no_plan_that_could_be_the_best() -> None:
    question = asked(arch=["llama-3.1-70b"], rate="1/s", ttft_s="600ms", tpot_s="16ms", gpus=(1, 2, 4, 8))
    known = load(question)
    tasks = Tasks("h100-sxm", None, None, 0, tuple(layouts(known.model, question.gpus)))
    (bounded,) = evaluate(known, tasks)
    excluded = [
        layout
        for layout, reason in zip(tasks.layouts, bounded.excluded, strict=True)
        if reason.startswith(("TPOT", "TTFT"))
    ]
    assert excluded
    (free,) = evaluate(known, tasks._replace(layouts=tuple(excluded)), bounds=False)
    assert not any(free.excluded)
    assert not free.plans


def test_a_looser_service_level_never_costs_more() -> None:
    cost = []
    for tpot in ("8ms", "12ms", "20ms", "40ms"):
        _, _, found = planned(tpot_s=tpot, rate="20/s", gpus=(1, 2, 4, 8))
        cost.append(found.best[0].usd_per_hour if found.best else float("inf"))
    assert cost == sorted(cost, reverse=True)
    assert cost[-1] < cost[0]


@pytest.mark.parametrize("optimize", OBJECTIVES)
def test_each_objective_is_best_in_what_it_is_for(optimize: str) -> None:
    _, _, found = planned(optimize=optimize)
    best = {other: planned(optimize=other)[2].best[0] for other in OBJECTIVES}
    first = found.best[0]
    if optimize == "throughput":
        assert first.tokens_per_s_gpu == max(point.tokens_per_s_gpu for point in found.frontier)
        return
    value = {
        "cost": lambda plan: plan.usd_per_hour / plan.rate,
        "gpus": lambda plan: plan.gpus,
        "latency": lambda plan: plan.e2e_s,
    }[optimize]
    assert all(value(first) <= value(plan) * (1 + 1e-9) for plan in best.values())


def test_no_point_of_the_frontier_is_beaten_by_another() -> None:
    _, _, found = planned()
    edge = found.frontier
    assert len(edge) > 5
    for point in edge:
        assert not any(
            other.tpot_s <= point.tpot_s and other.tokens_per_s_gpu > point.tokens_per_s_gpu
            for other in named(found.cloud)
            if other.ttft_s <= 1.0 and other.gpus <= 4
        )
    assert undominated(edge, "h100-sxm") == list(edge)


def test_pools_that_others_beat_are_dropped() -> None:
    def pools(ttft: list[float], rate: list[float], gpus: list[float], replicas: list[float]) -> Pools:
        place, zero = numpy.arange(len(ttft)), numpy.zeros(len(ttft))
        columns = (numpy.array(values) for values in (replicas, gpus))
        return Pools((), place, place, *columns, zero, numpy.array(ttft), zero, numpy.array(rate), zero)

    # A good one, a slow one, a large one, the good one again; and the slow one as a pool of known size.
    found = pools([1.0, 2.0, 0.5, 1.0, 2.0], [8.0] * 5, [4.0, 4.0, 8.0, 4.0, 4.0], [0.0] * 4 + [1.0]).undominated()
    assert found.layout.tolist() == [2, 0, 4]


def test_no_pool_is_left_out_before_it_is_built_that_no_other_beats() -> None:
    random = numpy.random.default_rng(5)
    gpus, rate, slow = random.integers(1, 40, 300) * 1.0, random.uniform(1, 9, 300), random.uniform(0.01, 2, 300)
    place, zero = numpy.arange(300), numpy.zeros(300)
    best = Pools((), place, place, zero, gpus, zero, slow, zero, rate, zero).undominated().layout
    left = numpy.flatnonzero(~certainly_beaten(rate / gpus, gpus, slow))
    assert len(best) > 5
    assert len(left) < 150
    assert set(best) <= set(left)


def test_the_space_counts_everything() -> None:
    question = asked(arch=["deepseek-v3"], hw=["h100-sxm"], gpus=(8, 16), rate="1/s", tpot_s="30ms", ttft_s=None)
    found = search(question)
    engines = {count.why: count.number for count in found.counts if count.what == "engines"}
    total = engines.pop("in the space: device, formats, drafts, layout")
    assert total == sum(engines.values())
    assert total == len(set(layouts(load(question).model, (8, 16))))
    assert any(why.startswith("excluded: memory") for why in engines)


def test_models_without_experts_have_no_ranks_of_data_parallelism() -> None:
    (dense, experts), _ = loaded(["llama-3.1-8b", "deepseek-v3"], "h100-sxm", ())
    assert {layout.dp for layout in layouts(dense, (8,))} == {1}
    assert Layout(dp=8, ep=8) in set(layouts(experts, (8,)))
    assert {layout.cp for layout in layouts(experts, (8,), context_parallel=True)} == {1, 2, 4, 8}


def test_prefix_hits_and_drafts_help_and_are_inputs() -> None:
    _, known, plain = planned(ttft_s=None, tpot_s=None, layout=["tp1"], pools=["aggregated"])
    row = plan_row(known, assess(known, plain.best[0]))
    _, known, cached = planned(ttft_s=None, tpot_s=None, layout=["tp1"], pools=["aggregated"], prefix_hit=0.5)
    hit = plan_row(known, assess(known, cached.best[0]))
    assert hit["ttft_s"] < row["ttft_s"]
    assert hit["capacity_per_s"] > row["capacity_per_s"]
    changes = {"ttft_s": None, "tpot_s": None, "layout": ["tp1"], "pools": ["aggregated"], "accepted": 0.9}
    _, known, drafted = planned(**changes, draft_tokens=[2])
    assert plan_row(known, assess(known, drafted.best[0]))["tpot_s"] < row["tpot_s"]


def test_each_rate_of_prefix_hits_has_its_answer(tmp_path: Path) -> None:
    answers = []
    for number, hits in enumerate(("0,0.5", "0", "0.5")):
        path = tmp_path / f"{number}.json"
        result = run("--rate", "5/s", "--ttft", "1s", "--no-confirm", "--prefix-hit", hits, "--out", str(path))
        assert result.exit_code == 0, result.output
        answers.append(json.loads(path.read_text()))
    both, *each = answers
    for name in ("rows", "frontier", "launch"):
        assert both[name] == each[0][name] + each[1][name]
        assert {row["prefix_hit"] for row in both[name]} == {0.0, 0.5}
    counts = [{(entry["what"], entry["why"]): entry["number"] for entry in answer["space"]} for answer in answers]
    assert counts[0] == {key: counts[1][key] + counts[2][key] for key in counts[0]}
    assert run("--rate", "5/s", "--prefix-hit", "0,0.5", "--plot", str(tmp_path / "x.svg")).exit_code == 2


def test_prefixes_of_a_hybrid_are_found_where_states_are_kept() -> None:
    hybrid = {"arch": ["kimi-linear-48b-a3b"], "input": "8k", "prefix_hit": 0.5}
    assert (asked(**hybrid).snapshot_tokens, asked(**hybrid, snapshot_tokens=512).snapshot_tokens) == (1888, 512)
    assert asked(**hybrid).work.computed == 8192 - 2 * 1888
    assert asked(**hybrid).work.snapshots == 4
    assert asked(**{**hybrid, "prefix_hit": 0.0}).snapshot_tokens is None
    assert asked(**hybrid, library="sglang").snapshot_tokens is None
    assert asked(**hybrid, library="sglang").work.computed == 8192 - 4096
    assert asked(prefix_hit=0.5).snapshot_tokens is None


def test_pages_are_as_long_as_a_state_is_large() -> None:
    models, _ = loaded(["nemotron-3-super-120b-a12b", "mamba2-2.7b", "deepseek-v4-pro", "llama-3.1-8b"], "h100-sxm", ())
    hybrid, pure, windows, attention = models
    # vllm-project/vllm issue 48401: 8,320 tokens, with keys and values in fp8.
    assert snapshot_tokens(hybrid._replace(kv="fp8")) == 8320
    assert [recurrent(model) for model in models] == [True, True, False, False]
    assert [snapshot_tokens(model) for model in (pure, windows, attention)] == [None] * 3


def test_errors_that_two_plans_share_cancel_in_their_ratio() -> None:
    _, known, found = planned()
    one = assess(known, found.best[0])
    assert spread(one.errors["tpot_s"]) > 0.02
    assert spread(difference(one.errors["tpot_s"], one.errors["tpot_s"])) == 0
    _, other, again = planned(input="4k", ttft_s=None, tpot_s=None)
    two = assess(other, again.best[0])
    together = spread(difference(one.errors["tpot_s"], two.errors["tpot_s"]))
    assert together < spread(one.errors["tpot_s"])


def test_prices_are_dated_sourced_and_inputs() -> None:
    for price in default_prices().values():
        assert price.usd > 0
        assert re.match(r"20\d\d", price.date)
        assert price.source
    assert prices_for(["h100-sxm"], ["2.5"])["h100-sxm"].usd == 2.5
    assert prices_for(["h100-sxm", "b200-sxm"], ["b200-sxm=4"])["b200-sxm"].usd == 4
    with pytest.raises(BadInput, match="did you mean 'h100-sxm'"):
        prices_for(["h100-sxm"], ["h100-sxn=2"])
    with pytest.raises(BadInput, match="give --price gaudi3=USD"):
        prices_for(["gaudi3"], [])


def worker(layout: str, **changes: Any) -> Worker:
    base = Worker("both", 1, parse_layout(layout), 64, 8192, 9216, 16, True, 0.9, None, None, 0, False)  # type: ignore[arg-type]
    return base._replace(**changes)


@pytest.mark.parametrize("layout", ["tp1", "tp8", "tp4pp2", "dp8ep8", "tp8ep8", "dp4tp2ep8", "tp2cp4"])
@pytest.mark.parametrize("role", ["both", "prefill", "decode"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv": "fp8", "weights": "fp8", "draft_tokens": 2, "prefix_cache": True},
        {"draft_tokens": 2, "own_drafts": False, "recurrent": True},
    ],
)
def test_every_flag_is_one_that_the_engine_documents(layout: str, role: str, changes: dict[str, Any]) -> None:
    known = documented()
    for launch in launches(worker(layout, role=role, page_tokens=64, **changes)):
        assert launch.command or launch.remarks
        own = known[launch.engine]
        flags = re.findall(r"(?<=\s)--[a-z0-9_-]+", launch.command.removeprefix(own["command"]))
        assert set(flags) <= set(own["options"])
        assert all(re.match(r"20\d\d-\d\d-\d\d", str(own[key])) for key in ("read",))
        assert own["source"]


def test_flags_mean_the_layout() -> None:
    by_engine = {launch.engine: launch.command for launch in launches(worker("dp8ep8"))}
    assert "--data-parallel-size 8 --enable-expert-parallel" in by_engine["vllm"]
    # SGLang's and TensorRT-LLM's tensor-parallel size counts the ranks of attention data parallelism too.
    assert "--tp-size 8 --dp-size 8 --enable-dp-attention --ep-size 8" in by_engine["sglang"]
    assert "--tp_size 8 --ep_size 8" in by_engine["tensorrt-llm"]
    refused = {launch.engine: launch.remarks for launch in launches(worker("dp4tp2ep8")) if not launch.command}
    assert list(refused) == ["tensorrt-llm"]


def test_a_model_that_cannot_draft_is_launched_with_a_drafter_of_its_own() -> None:
    own, other = (launches(worker("tp2", draft_tokens=3, own_drafts=has)) for has in (True, False))
    told = {launch.engine: f"{launch.command} {launch.config}" for launch in other}
    assert '"method": "mtp"' in own[0].command
    assert '"method": "eagle", "model": "DRAFT_MODEL"' in told["vllm"]
    assert "--speculative-algorithm EAGLE --speculative-draft-model-path DRAFT_MODEL" in told["sglang"]
    assert "speculative_model: DRAFT_MODEL" in told["tensorrt-llm"]
    assert all(any("DRAFT_MODEL" in remark for remark in launch.remarks) for launch in other)
    assert not any("DRAFT_MODEL" in f"{launch.command}{launch.config}{launch.remarks}" for launch in own)
    _, known, found = planned(ttft_s=None, tpot_s=None, pools=["aggregated"], draft_tokens=[3])
    assert not workers(known, assess(known, found.best[0]))[0].own_drafts


def test_sglang_mixes_prompts_with_decoding_only_where_it_does_not_draft() -> None:
    plain, drafting = (launches(worker("tp2", draft_tokens=count))[1] for count in (0, 2))
    assert "--enable-mixed-chunk" in plain.command
    assert "--enable-mixed-chunk" not in drafting.command
    assert any("prompts alone" in remark for remark in drafting.remarks)


def test_prefix_caches_stay_on_unless_copies_of_states_would_take_memory_that_is_not_counted() -> None:
    off = ("--no-enable-prefix-caching", "--disable-radix-cache", "enable_block_reuse: false")
    cases = [({}, False), ({"recurrent": True}, True), ({"recurrent": True, "prefix_cache": True}, False)]
    for changes, without in cases:
        for launch, flag in zip(launches(worker("tp2", **changes)), off, strict=True):
            assert (flag in f"{launch.command} {launch.config}") == without
    _, known, found = planned(arch=["mamba2-2.7b"], ttft_s=None, tpot_s=None, pools=["aggregated"])
    assert workers(known, assess(known, found.best[0]))[0].without_prefixes


def test_a_drafter_that_the_model_does_not_have_is_noted() -> None:
    result = run("--rate", "1/s", "--draft-tokens", "3", "--no-confirm")
    assert "llama-3.1-8b has no layers that predict further tokens" in result.stderr
    assert "whether an engine knows the model is not checked" in result.stderr
    assert "predict further tokens" not in run("--rate", "1/s", "--no-confirm").stderr


def test_engines_that_only_decode_take_no_chunks_of_prompts() -> None:
    _, known, found = planned(ttft_s=None, tpot_s=None, pools=["disaggregated"], draft_tokens=[2])
    best = assess(known, found.best[0])
    prefill, decode = workers(known, best)
    assert prefill.budget == best.plan.budget
    assert decode.budget == 3 * decode.sequences * decode.layout.pp
    by_engine = {launch.engine: launch.command for launch in launches(decode)}
    assert f"--max-num-batched-tokens {decode.budget} " in by_engine["vllm"]
    assert f"--max_num_tokens {decode.budget} " in by_engine["tensorrt-llm"]
    assert "--chunked-prefill-size" not in by_engine["sglang"]
    assert (
        f"--chunked-prefill-size {prefill.budget}"
        in {each.engine: each for each in launches(prefill)}["sglang"].command
    )


COMMAND = ["plan", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--gpus", "1..2", "--input", "1k", "--output", "64"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*COMMAND, *arguments])


def test_the_answer_does_not_depend_on_which_engines_are_evaluated_together() -> None:
    formats = ["own", "fp8"]
    question = asked(gpus=(1, 2, 4, 8), weights=formats, kv=formats, pools=["aggregated"], max_batched_tokens=[2048])

    def one_by_one(question: Question, batches: Any, bounds: bool) -> Any:
        for batch in batches:
            for place in range(len(batch.layouts)):
                yield evaluate_batch(question, batch.of(slice(place, place + 1)), bounds)

    together, apart = search(question), search(question, one_by_one)
    assert next(count.number for count in together.counts) > 4
    assert named(apart.cloud) == named(together.cloud)
    assert apart._replace(cloud=()) == together._replace(cloud=())


def test_processes_and_a_dask_cluster_give_the_same_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    # As many batches as in a search of many engines: one of each pair of formats.
    for name in ("candidates.FEW", "candidates.MANY", "parallel_search.PIECE"):
        monkeypatch.setattr(f"costmodel.planning.{name}", 3)
    answers = []
    for number, how in enumerate(([], ["--jobs", "2"], ["--engine", "dask", "--jobs", "2"])):
        path = tmp_path / f"{number}.json"
        result = run("--rate", "5/s", "--tpot", "20ms", "--no-confirm", "--out", str(path), *how)
        assert result.exit_code == 0, result.output
        found = json.loads(path.read_text())
        # How many points better ones stand before depends on who found these.
        found["space"] = [
            count for count in found["space"] if BEATEN not in count["why"] and "within" not in count["why"]
        ]
        answers.append({key: value for key, value in found.items() if key != "inputs"})
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [
        (("--rate", "5/s", "--tpot", "100us"), "TPOT"),
        (("--rate", "5/s", "--ttft", "1ms"), "TTFT"),
        (("--rate", "1000/s"), "saturated"),
    ],
)
def test_what_cannot_be_held_names_the_closest_point_and_what_blocks_it(
    arguments: tuple[str, ...], blocks: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert "the closest is" in result.stderr
    assert blocks in result.stderr.rpartition("what blocks it")[2]


@pytest.mark.parametrize(
    "load",
    [
        ("--rate", "10/s", "--ttft", "20ms", "--tpot", "2ms"),
        ("--rate", "1000/s"),
        ("--concurrency", "64", "--ttft", "20ms", "--tpot", "2ms"),
        ("--concurrency", "64", "--tpot", "2ms", "--pools", "disaggregated"),
    ],
)
def test_the_closest_point_is_the_same_in_table_json_and_error(load: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "closest.json"
    result = run(*load, "--out", str(path))
    assert result.exit_code == 1
    found = json.loads(path.read_text())
    (row,) = found["closest"]
    assert found["launch"]
    assert not row["saturated"]
    told = [
        f"TTFT {value_text('time_s', row['ttft_s'])}, TPOT {value_text('time_s', row['tpot_s'])}",
        f"at {row['load_per_s']:.4g} requests/s",
    ]
    assert " ".join(told) in result.stderr
    assert f"the closest that can be reached, {told[1]}" in result.stdout
    assert f"{value_text('time_s', row['tpot_s'])} " in result.stdout


def test_a_closest_point_whose_queue_grows_is_called_saturated_and_not_launched(tmp_path: Path) -> None:
    path = tmp_path / "closest.json"
    result = run("--rate", "1000/s", "--max-sequences", "1", "--out", str(path))
    found = json.loads(path.read_text())
    assert found["closest"][0]["saturated"]
    assert found["closest"][0]["ttft_s"] is None
    assert not found["launch"]
    assert "the closest that can be reached, saturated" in result.stdout
    assert "inf" not in result.stdout


def test_points_of_full_engines_have_no_time_to_the_first_token_of_open_loads() -> None:
    result = run("--rate", "5/s", "--no-confirm", "--pools", "aggregated")
    assert "saturated" in result.stdout.partition("Pareto")[2]
    assert "inf" not in result.stdout
    assert "\u240a" not in run("--rate", "1000/s").stdout


def test_formats_without_an_engine_are_the_reason_that_is_told() -> None:
    result = run("--rate", "1/s", "--weights", "nvfp4", "--kv", "nvfp4")
    assert result.exit_code == 1
    assert "can serve it (no engine (nvfp4 on h100-sxm" in result.stderr


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("load_of", [{}, {"rate": None, "concurrency": 64}])
def test_chunks_that_find_no_room_warn_nobody(load_of: dict[str, Any]) -> None:
    assert planned(draft_tokens=[2], max_batched_tokens=[256], max_sequences=1024, **load_of)[2].best


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rate", "1/s", "--optimize", "speed"), "unknown objective 'speed'"),
        (("--rate", "1/s", "--output", "1", "--tpot", "20ms"), "--tpot: answers of one token have no time per further"),
        (("--concurrency", "4", "--output", "1"), "--concurrency: answers of one token are planned for a rate"),
        (("--rate", "1/s", "--prefix-hit", "0,1"), "'1' is not a share"),
        (("--rate", "1/s", "--prefix-hit", "half"), "'half' is not a share"),
        (("--rate", "1/s", "--weights", "fp9"), "did you mean 'fp8'"),
        (("--rate", "1/s", "--pools", "disagregated"), "did you mean 'disaggregated'"),
        (("--rate", "1/s", "--engine", "dusk"), "did you mean 'dask'"),
        (("--rate", "1/s", "--layout", "prefill:1xtp1,decode:1xtp1"), "name the layouts of workers"),
        (("--rate", "1/s", "--ttft", "0s"), "cannot be held"),
        (("--rate", "1/s", "--out", "/no/such/folder/x.json"), "does not exist"),
        (("--rate", "1/s", "--scheduler", "tcp://x:1"), "needs --engine dask"),
        (("--rate", "1/s", "--concurrency", "4"), "one of them"),
        (("--rate", "1/s", "--price", "cheap"), "expected DEVICE=USD"),
    ],
)
def test_bad_input_is_told_and_leaves_with_2(arguments: tuple[str, ...], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def heed_interrupts() -> None:
    """What is started in the background ignores them, and so does what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_search_writes_nothing(tmp_path: Path) -> None:
    out, figure = tmp_path / "plan.json", tmp_path / "plan.png"
    command = [
        sys.executable, "cli.py", "plan", "--arch", "deepseek-v3", "--hw", "h100-sxm,b200-sxm", "--gpus", "1..512",
        "--input", "8k", "--output", "1k", "--rate", "10/s", "--requests", "1000000", "--out", str(out),
        "--plot", str(figure),
    ]  # fmt: skip
    # A million requests are replayed for minutes: the interrupt meets a plan at work on a machine of any speed.
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts
    )
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tpot_s": "8ms", "ttft_s": None}, "TPOT"),
        ({"tpot_s": None, "ttft_s": "100ms"}, "TTFT"),
        ({"tpot_s": None, "ttft_s": None, "max_sequences": 16}, "max sequences"),
        ({"tpot_s": None, "ttft_s": None, "input": "64k", "rate": "0.2/s"}, "memory"),
        ({"pools": ["disaggregated"]}, "prefill: TTFT; decode: TPOT"),
    ],
)
def test_a_plan_says_which_limit_a_fuller_engine_meets_first(changes: dict[str, Any], expected: str) -> None:
    _, known, found = planned(**{"pools": ["aggregated"], **changes})
    assert plan_row(known, assess(known, found.best[0]))["limited_by"] == expected


def test_the_keys_of_a_plan_are_documented(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert run("--rate", "5/s", "--tpot", "20ms", "--requests", "200", "--out", str(path)).exit_code == 0
    found = json.loads(path.read_text())
    text = (REPOSITORY / "docs" / "planning.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z0-9_]+)`", text))
    for name in ("rows", "frontier", "replays", "launch", "space", "dimensions"):
        assert found[name], name
        assert {name, *found[name][0]} <= told, name
    assert {value for of in found["dimensions"] for value in of["values"]} >= {"h100-sxm", "tp1", "tp2", "2048"}


def test_a_figure_shows_a_panel_for_each_device(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    arguments = [*COMMAND[:3], "--hw", "h100-sxm,b200-sxm", *COMMAND[5:], "--rate", "5/s", "--tpot", "20ms"]
    result = CliRunner().invoke(app, [*arguments, "--no-confirm", "--plot", str(path)])
    assert result.exit_code == 0, result.output
    text = path.read_text(encoding="utf-8")
    for word in ("llama-3.1-8b on h100-sxm", "llama-3.1-8b on b200-sxm", "output tokens/s per GPU", "TPOT 20 ms"):
        assert word in text


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    arguments = ["plan", "--arch", "llama-3.1-70b", "--hw", "h100-sxm", "--gpus", "1", "--weights", "own"]
    result = CliRunner().invoke(app, [*arguments, "--input", "1k", "--output", "64", "--rate", "1/s"])
    assert result.exit_code == 1
    # 141 GB of weights: about 60 GiB more than 90 % of 80 GiB.
    assert re.search(r"tp1 on h100-sxm lacks the least: 6\d(\.\d+)? GiB", result.stderr)
    assert "would fit" in result.stderr.rpartition("one sequence taking")[2]


def test_one_machine_cannot_be_asked_for_a_model_that_denoises() -> None:
    result = CliRunner().invoke(app, ["plan", "--arch", "llada-8b", *COMMAND[3:], "--rate", "1/s"])
    assert result.exit_code == 1
    assert "denoises" in result.stderr


def test_devices_of_a_question_are_loaded_under_their_names() -> None:
    assert load(asked(hw=["h100-s"])).devices == {"h100-sxm": load_hardware("h100-sxm")}
