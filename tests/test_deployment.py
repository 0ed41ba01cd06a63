"""Engines under layouts: their iterations are the layouts' steps, their caches what the layouts leave room for."""

import pytest

from costmodel.errors import BadInput, Impossible
from costmodel.parallel.layout import Layout, parse_layout
from costmodel.parallel.memory import max_concurrency
from costmodel.parallel.placement import place
from costmodel.planning.deployment import Served, Settings, deployment, engine
from costmodel.planning.replay import replay
from costmodel.planning.traffic import Lengths, Request, drawn
from costmodel.prediction import loaded, make_precision, predict

SETTINGS = Settings(max_sequences=256, longest=32768)


def served(name: str, hardware: str) -> Served:
    (model,), (device,) = loaded(name, hardware)
    return Served(model, device, make_precision(model, device))


CASES = [
    ("llama-3.1-70b", "h100-sxm", "tp8"),
    ("llama-3.1-70b", "h100-sxm", "tp2cp4"),
    ("kimi-linear-48b-a3b", "h100-sxm", "tp4"),
    ("deepseek-v3", "h200-sxm", "tp8"),
    ("deepseek-v3", "h200-sxm", "dp8ep8"),
]


@pytest.mark.parametrize(("name", "hardware", "text"), CASES)
def test_iterations_are_the_steps_of_the_layout(name: str, hardware: str, text: str) -> None:
    layout = parse_layout(text)
    assert isinstance(layout, Layout)
    times = engine(served(name, hardware), layout, SETTINGS).times
    for n, context in ((1, 8192), (17, 4000), (128, 2000)):
        step = predict(name, hardware, context, batch=n * layout.dp, layout=text).row
        assert times.decode_s(n, context) == pytest.approx(step.time_s, rel=0.01)
    prompt = predict(name, hardware, 6000, phase="prefill", batch=layout.dp, layout=text).row
    assert times.prefill_s(6000) == pytest.approx(prompt.time_s, rel=0.01)


@pytest.mark.parametrize(("name", "hardware", "text"), [*CASES, ("llama-3.1-70b", "h100-sxm", "tp4pp2")])
def test_caches_have_the_room_that_the_layout_leaves(name: str, hardware: str, text: str) -> None:
    layout, of = parse_layout(text), served(name, hardware)
    assert isinstance(layout, Layout)
    placed = place(of.architecture, layout, "decode")
    fits = max_concurrency(placed, 32768, of.precision, of.hardware)
    found = engine(of, layout, SETTINGS)
    each = found.cache_bytes / found.cache.bytes(32768)
    assert abs(each * layout.pp * layout.dp - fits) < layout.dp


def test_a_pipeline_is_an_engine_for_each_stage() -> None:
    of = served("llama-3.1-70b", "h100-sxm")
    found = deployment(of, Layout(tp=4, pp=2), SETTINGS, replicas=3)
    assert (found.replicas, found.devices) == (6, 24)
    step = predict("llama-3.1-70b", "h100-sxm", 4096, batch=64, layout="tp4pp2").row
    # The step of both halves waits for the fuller stage, which is a little slower than the mean.
    assert found.engine.times.decode_s(32, 4096) == pytest.approx(step.time_s, rel=0.03)


def test_more_devices_serve_more() -> None:
    of = served("llama-3.1-70b", "h100-sxm")
    requests = list(drawn(300, Lengths.parse("1000"), Lengths.parse("100")))

    def rate(text: str, clients: int) -> float:
        found = replay(deployment(of, parse_layout(text), SETTINGS), requests, clients=clients)
        return found.measured / found.window_s

    four, eight = rate("tp4", 32), rate("tp8", 32)
    assert 1.2 * four < eight < 2 * four
    assert rate("tp4pp2", 64) == pytest.approx(2 * four, rel=0.15)


def test_caches_go_from_prefill_to_decode_workers_over_each_devices_link() -> None:
    of = served("llama-3.1-70b", "h100-sxm")
    layout = parse_layout("prefill:2xtp4,decode:3xtp8")
    found = deployment(of, layout, SETTINGS, link_bandwidth=1e9)
    assert (found.prefill_replicas, found.replicas, found.devices) == (2, 3, 32)
    measures = replay(found, [Request(0.0, 8000, 2)])
    # 80 layers · 2 · 8 key heads / 4 devices · 128 · 2 bytes for each token that a device holds.
    transfer = 8000 * 80 * 2 * 2 * 128 * 2 / 1e9
    assert found.prefill is not None
    assert measures.ttft.mean == pytest.approx(found.prefill.times.prefill_s(8000) + transfer)


def test_what_does_not_fit_or_cannot_be_served_or_sent_is_told() -> None:
    with pytest.raises(Impossible, match="llada-8b denoises whole sequences"):
        engine(served("llada-8b", "h100-sxm"), Layout(), SETTINGS)
    with pytest.raises(Impossible, match=r"deepseek-v3 does not fit on tp8 of h100-sxm: .* further"):
        engine(served("deepseek-v3", "h100-sxm"), Layout(tp=8), SETTINGS)
    consumer = served("qwen3-0.6b", "rtx-4090")
    if not consumer.hardware.links.scale_out.bandwidth:
        with pytest.raises(BadInput, match="say --link-bandwidth"):
            deployment(consumer, parse_layout("prefill:tp1,decode:tp1"), SETTINGS)
