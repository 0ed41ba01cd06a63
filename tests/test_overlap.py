"""Communication hides behind computation, behind no more of it than there is, and not for nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput, Impossible
from costmodel.parallel.layout import parse_layout
from costmodel.parallel.options import Options, Training
from costmodel.parallel.placement import local_step, place
from costmodel.parallel.stages import path_kernels, step_seconds
from costmodel.planning.step_times import StepTimes, tabulate
from costmodel.prediction import StepPrediction, loaded, make_precision, predict
from costmodel.step import Step
from costmodel.timing import total_seconds

SLOW = ("hw.links.scale_up.bandwidth=0.02x",)


def row(layout: str, phase: str = "prefill", settings: tuple[str, ...] = (), **how: Any) -> StepPrediction:
    batch = how.pop("batch", 64)
    options = Options(**how)
    found = predict(
        "deepseek-v3", "h200-sxm", 4096, phase=phase, batch=batch, layout=layout, options=options, settings=settings
    )
    return found.row


def parts(of: StepPrediction) -> tuple[float, float]:
    """Seconds of communication and of computation."""
    talk = sum(entry.time_s for entry in of.breakdown if entry.family == "collective")
    return talk, sum(entry.time_s for entry in of.breakdown) - talk


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_finds_no_computation_to_hide_behind_shows(phase: str, share: float) -> None:
    for settings in ((), SLOW):
        talk, compute = parts(row("tp8", phase, settings))
        found = row("tp8", phase, settings, overlap=share)
        assert found.time_s == pytest.approx((1 - share) * talk + max(share * talk, compute))
        assert sum(entry.time_s for entry in found.breakdown) == pytest.approx(found.time_s)
        assert found.roofline_s <= found.time_low_s <= found.time_s <= found.time_high_s
    if share == 1.0:  # on slow links, the limit is reached
        assert found.time_s == pytest.approx(talk)
        assert talk > compute


def test_no_overlap_makes_a_step_shorter_than_its_communication() -> None:
    talk, compute = parts(row("dp32ep32", settings=SLOW))
    assert talk > 3 * compute
    assert row("dp32ep32", settings=SLOW, overlap=1.0).time_s == pytest.approx(talk)


def test_exchanges_that_hold_processors_slow_the_computation_beside_them() -> None:
    talk, compute = parts(row("dp32ep32", exchange_units=33))
    assert talk < compute
    hidden = row("dp32ep32", overlap=1.0, exchange_units=33).time_s
    assert hidden == pytest.approx(compute + 33 / 132 * talk)
    assert row("dp32ep32", overlap=1.0).time_s < hidden < talk + compute
    # Low-latency exchanges of decode hold none.
    assert row("dp32ep32", "decode", overlap=1.0, exchange_units=33).time_s == pytest.approx(
        row("dp32ep32", "decode", overlap=1.0).time_s
    )
    with pytest.raises(Impossible, match="h200-sxm has 132"):
        row("dp32ep32", exchange_units=132)
    with pytest.raises(BadInput, match="exchange units 0"):
        row("dp32ep32", exchange_units=0)


def test_the_stages_of_a_pipeline_hide_what_their_own_computation_allows() -> None:
    (model,), (device,) = loaded("llama-3.1-70b", "h100-sxm", ["hw.links.scale_up.bandwidth=0.02x"])
    precision, calibration = make_precision(model, device), find_calibration(device, None)
    step = Step(B=4, S=2048, P=0, phase="prefill")

    def seconds(layout: str, overlap: float) -> float:
        placed = place(model, parse_layout(layout), "prefill", Options(overlap=overlap, microbatches=1))  # type: ignore[arg-type]
        return float(step_seconds(placed, step, precision, device, calibration).time_s)

    whole, halves = seconds("tp4", 1.0), seconds("tp4pp2", 1.0)
    assert halves == pytest.approx(whole, rel=0.03)  # stages follow one another: the same exchanges, and a hop
    assert halves < 0.95 * seconds("tp4pp2", 0.0)


def trained(share: float, batch: int, *settings: str) -> StepPrediction:
    options = Options(training=Training(zero=1, overlap_gradients=share))
    more: dict[str, Any] = {"batch": batch, "layout": "dp8", "options": options, "settings": settings}
    return predict("llama-3.1-8b", "h100-sxm", 2048, phase="train", **more).row


@pytest.mark.parametrize("links", ["1x", "0.01x"])
@pytest.mark.parametrize("microbatches", [1, 8])
def test_gradients_hide_behind_the_last_backward_pass_alone(links: str, microbatches: int) -> None:
    slow = f"hw.links.scale_up.bandwidth={links}"
    serial = trained(0.0, 8 * microbatches, slow)
    talk = {entry.kernel: entry.time_s for entry in serial.breakdown if entry.family == "collective"}
    assert talk.keys() == {"gradients reduce-scatter", "new weights all-gather"}
    computed = serial.time_s - sum(talk.values())
    (updating,) = (entry.time_s for entry in serial.breakdown if entry.kernel == "optimizer")
    (model,), (device,) = loaded("llama-3.1-8b", "h100-sxm")
    calibration = find_calibration(device, None)
    kernels = model.kernels(Step(B=1, S=2048, P=0, phase="train"), make_precision(model, device))
    forward = float(total_seconds([kernel for kernel in kernels if not kernel.gradient], device, calibration))
    backward = float(total_seconds([kernel for kernel in kernels if kernel.gradient], device, calibration))
    assert microbatches * (forward + backward) + updating == pytest.approx(computed)
    shown = max(talk["gradients reduce-scatter"] - backward, 0) + max(talk["new weights all-gather"] - forward, 0)
    assert trained(1.0, 8 * microbatches, slow).time_s == pytest.approx(computed + shown)
    assert (shown > computed) == (links == "0.01x")


def engine_times(overlap: float, *settings: str) -> tuple[StepTimes, Callable[[Step], float]]:
    """The tables of an engine, and the seconds of a step without them."""
    (model,), (device,) = loaded("deepseek-v3", "h200-sxm", settings)
    precision, calibration = make_precision(model, device), find_calibration(device, None)
    options = Options(overlap=overlap, exchange_units=20)
    placed = {phase: place(model, parse_layout("dp8ep8"), phase, options) for phase in ("prefill", "decode")}  # type: ignore[arg-type]
    pricing = partial(total_seconds, hardware=device, calibration=calibration)

    def kernels(step: Step) -> Any:
        of = placed[step.phase]
        return path_kernels(of, local_step(of, step._replace(B=step.B * 8)), precision, device)

    times = tabulate(kernels, pricing, most_sequences=64, most_context=2**14, most_tokens=4096)
    return times, lambda step: float(pricing(kernels(step)))


@pytest.mark.parametrize("settings", [(), SLOW])
def test_an_engines_iterations_hide_what_a_step_does(settings: tuple[str, ...]) -> None:
    times, exact = engine_times(1.0, *settings)
    serial, _ = engine_times(0.0, *settings)
    for n, L in ((2, 1000), (16, 4000), (64, 12_000)):
        decode = exact(Step(B=n, S=1, P=L - 1, phase="decode"))
        assert times.decode_s(n, L) == pytest.approx(decode, rel=0.01)
        assert times.decode_s(n, L) < serial.decode_s(n, L)
    chunk = exact(Step(B=1, S=2048, P=4096, phase="prefill"))
    assert times.prefill_s(2048, 4096) == pytest.approx(chunk, rel=0.02)
    mixed = times.step_s(16, 4000, 1, 2048, 4096)
    assert chunk < mixed < times.decode_s(16, 4000) + chunk
    assert mixed < serial.step_s(16, 4000, 1, 2048, 4096)
    moved = times.with_host(0.1, 0.0)
    assert moved.step_s(16, 4000, 1, 2048, 4096) == pytest.approx(mixed + 0.1)
