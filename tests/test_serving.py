"""Closed loops against sums and steady states, engines of real models, and other simulators' interfaces."""

import math
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from costmodel.errors import BadInput, Impossible
from costmodel.planning.deployment import Settings, one_device
from costmodel.planning.engine import Engine
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.serving import capacity, closed_loop, steady_state
from costmodel.planning.simulators import FEATURES, StepPredictor
from costmodel.planning.step_times import HostTime
from costmodel.planning.traffic import Lengths, drawn
from costmodel.prediction import predict

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "serving-simulators.md"


@pytest.fixture(scope="module")
def llama() -> Engine:
    return one_device("llama-3.1-8b", "h100-sxm", Settings(max_sequences=256, longest=16384))


def fixed(tokens: int) -> Lengths:
    return Lengths("fixed", tokens)


def test_one_client_meets_the_predictions_of_single_steps(llama: Engine) -> None:
    found = closed_loop(Deployment(llama, front_end_s=0.004), 1, fixed(2048), fixed(512), per_client=400)
    prefill = predict("llama-3.1-8b", "h100-sxm", 2048, phase="prefill").time_s
    decode = predict("llama-3.1-8b", "h100-sxm", 2048 + 256).time_s
    assert found.ttft.mean == pytest.approx(0.004 + prefill, rel=0.01)
    assert found.tpot.mean == pytest.approx(decode, rel=0.01)


@pytest.mark.parametrize(
    ("clients", "input", "output"), [(1, 1024, 256), (32, 1024, 512), (128, 512, 512), (16, 8192, 256)]
)
def test_the_steady_state_agrees_with_the_replay(llama: Engine, clients: int, input: int, output: int) -> None:
    deployment = Deployment(llama)
    found = closed_loop(deployment, clients, fixed(input), fixed(output))
    sums = steady_state(deployment, clients, input, output)
    assert found.tpot.mean == pytest.approx(sums.tpot_s, rel=0.07)
    assert found.measured / found.window_s == pytest.approx(sums.requests_per_s, rel=0.1)


def test_clients_beyond_the_places_wait_by_littles_law(llama: Engine) -> None:
    few = llama._replace(max_sequences=16)
    found = closed_loop(Deployment(few), 128, fixed(512), Lengths.parse("32..96"), per_client=20)
    sums = steady_state(Deployment(few), 128, 512, 64)
    assert found.ttft.quantile(0.5) == pytest.approx(sums.ttft_s, rel=0.1)
    assert found.tpot.mean == pytest.approx(sums.tpot_s, rel=0.07)


@pytest.mark.parametrize(("input", "output"), [("460..512", "110..128"), ("820..1024", "200..256"), ("4096", "16")])
def test_the_capacity_is_what_a_load_without_end_gets(llama: Engine, input: str, output: str) -> None:
    lengths = Lengths.parse(input), Lengths.parse(output)
    limit = capacity(Deployment(llama), lambda: drawn(2000, *lengths))
    endless = replay(Deployment(llama), drawn(12_000, *lengths, rate=3 * limit, seed=1))
    assert endless.rate_between(0.4, 0.9) == pytest.approx(limit, rel=0.05)
    assert capacity(Deployment(llama, replicas=3), lambda: drawn(2000, *lengths)) == pytest.approx(3 * limit)


def test_lengths_that_vary_spread_the_wave_of_prompts(llama: Engine) -> None:
    same = closed_loop(Deployment(llama), 64, fixed(1024), fixed(512))
    varied = closed_loop(Deployment(llama), 64, Lengths.parse("820..1024"), Lengths.parse("410..512"))
    assert varied.ttft.quantile(0.5) < 0.7 * same.ttft.quantile(0.5)
    assert varied.tpot.mean == pytest.approx(same.tpot.mean, rel=0.1)


def test_host_time_and_drafts_reach_the_engine() -> None:
    host = HostTime(step_s=1e-3, layer_s=1e-5, moe_layer_s=3e-5)
    settings = Settings(max_sequences=8, longest=4096)
    plain = one_device("llama-3.1-8b", "h100-sxm", settings)
    slow = one_device("llama-3.1-8b", "h100-sxm", settings, host=host)
    assert slow.times.decode_s(4, 1000) - plain.times.decode_s(4, 1000) == pytest.approx(1e-3 + 32 * 1e-5)
    experts = [one_device("mixtral-8x7b", "b200-sxm", settings, host=of).times.host_s for of in (HostTime(), host)]
    assert experts == [0.0, pytest.approx(1e-3 + 32 * 4e-5)]
    drafting = one_device("llama-3.1-8b", "h100-sxm", settings._replace(draft_tokens=3, acceptance=0.8))
    assert drafting.pace == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert plain.times.decode_s(4, 1000) < drafting.times.decode_s(4, 1000) < 2 * plain.times.decode_s(4, 1000)


def test_what_a_sequence_keeps_is_what_predict_says() -> None:
    for name in ("llama-3.1-8b", "gpt-oss-20b", "kimi-linear-48b-a3b", "mamba2-2.7b"):
        engine = one_device(name, "b200-sxm", Settings(max_sequences=8, longest=4096))
        for length in (64, 5000, 131072):
            assert engine.cache.bytes(length) == predict(name, "b200-sxm", length).row.cache_bytes


def test_weights_that_leave_no_room_are_said_to_and_settings_without_sense_refused() -> None:
    with pytest.raises(Impossible, match=r"llama-3.1-70b does not fit on one h100-sxm: .* take 13\d"):
        one_device("llama-3.1-70b", "h100-sxm")
    for change in ({"max_sequences": 0}, {"acceptance": 1.5}, {"utilisation": 0.0}, {"snapshot_tokens": 0}):
        with pytest.raises(BadInput):
            one_device("llama-3.1-8b", "h100-sxm", Settings(**change))


def batch(*requests: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(reqs=[SimpleNamespace(extend_length=new, past_kv_length=past) for new, past in requests])


def features(requests: list[tuple[int, int]]) -> list[float]:
    """As the simulator's predictor computes them, from the names of the features."""
    new, past = [e for e, _ in requests], [p for _, p in requests]
    flops = sum(e * (p + e / 2) for e, p in requests)
    found = {
        "batch_size": len(requests),
        "sum_extend": sum(new),
        "max_extend": max(new),
        "min_extend": min(new),
        "sum_past": sum(past),
        "max_past": max(past),
        "min_past": min(past),
        "sum_extend_x_past": sum(e * p for e, p in requests),
        "sum_extend_squared": sum(e * e for e in new),
        "sum_past_squared": sum(p * p for p in past),
        "sum_attn_flops": flops,
        "sum_extend_x_max_past": sum(new) * max(past),
        "log1p_sum_past": math.log1p(sum(past)),
        "log1p_sum_attn_flops": math.log1p(flops),
        "batch_size_x_sum_extend": len(requests) * sum(new),
        "max_past_minus_min_past": max(past) - min(past),
        "is_decode": int(max(new) == 1),
        "is_prefill": int(max(new) > 1),
    }
    return [found[name] for name in FEATURES]


@pytest.mark.parametrize(
    "requests",
    [
        [(1, 4000)] * 20,
        [(1, 100), (1, 9000)],
        [(700, 0), (700, 512)],
        [(2048, 4096)],
        [(1, 3000)] * 30 + [(512, 0)],
        [(1, 3000)] * 30 + [(512, 256)] * 3,
    ],
)
def test_batches_and_their_features_take_the_same_time(llama: Engine, requests: list[tuple[int, int]]) -> None:
    predictor = StepPredictor(llama.times)
    seconds = predictor.seconds(requests)
    assert predictor.predict_infer_time(batch(*requests)) == seconds > 0
    assert predictor.predict([features(requests)])[0] == pytest.approx(seconds, rel=1e-9)
    known = SimpleNamespace(
        requests=[SimpleNamespace(num_processed_tokens=past) for _, past in requests],
        num_tokens=[new for new, _ in requests],
    )
    assert predictor.get_execution_time(known, 0).total_time == seconds


def test_features_of_unequal_chunks_come_near(llama: Engine) -> None:
    predictor, draw = StepPredictor(llama.times), random.Random(0)
    for _ in range(20):
        requests = [(1, draw.randint(10, 8000)) for _ in range(40)]
        requests += [(draw.randint(100, 2000), 0) for _ in range(draw.randint(1, 3))]
        assert predictor.predict([features(requests)])[0] == pytest.approx(predictor.seconds(requests), rel=0.05)


def test_an_empty_batch_takes_no_time(llama: Engine) -> None:
    predictor = StepPredictor(llama.times)
    assert predictor.predict_infer_time(batch()) == predictor.predict([[0.0] * 18])[0] == 0.0


def test_the_document_on_simulators_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joblib = pytest.importorskip("joblib")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
    own = names["CostmodelTimePredictor"](None, None, None)
    requests = [(1, 500)] * 7
    bundle = joblib.load(tmp_path / "costmodel.pkl")
    assert bundle["features"] == list(FEATURES)
    assert bundle["model"].predict([features(requests)])[0] == own.predict_infer_time(batch(*requests))
