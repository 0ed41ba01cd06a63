"""Where costs meet, on the formula and on predicted times."""

import numpy
import pytest

from costmodel.analysis.compare import compare
from costmodel.analysis.crossover import (
    LARGEST,
    contexts,
    flops,
    flops_crossover,
    model_precision,
    quadratic_context,
    step_at,
    time_crossover,
)
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput
from costmodel.hardware import load_hardware
from costmodel.model_file import load_architecture
from costmodel.prediction import make_precision, predict
from costmodel.timing import total_seconds

HARDWARE = load_hardware("h100-sxm")


def test_quadratic_context_of_a_dense_model_is_the_root_of_its_polynomial() -> None:
    # Per layer 2 · (4096·6144 + 4096·4096 + 3·4096·14336) FLOP per token; 32 layers; pairs L(L + 1)/2.
    linear = 32 * 2 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    square = 32 * 32 * (128 + 128)
    head = 2 * 4096 * 128256

    def quadratic_is_most(L: int) -> bool:
        return square * L * L >= (linear + square) * L + head

    found = quadratic_context(load_architecture("llama-3.1-8b"))
    assert found == 53_250
    assert quadratic_is_most(found)
    assert not quadratic_is_most(found - 1)


@pytest.mark.parametrize(
    "name,expected",
    # Of the linear FLOPs per token over the quadratic ones per token², the head at the last position only.
    [("qwen3-30b-a3b", 13.9e3), ("kimi-linear-48b-a3b", 77e3), ("qwen3-next-80b-a3b", 68e3), ("deepseek-v3", 28.6e3)],
)
def test_quadratic_context_of_published_models(name: str, expected: float) -> None:
    assert quadratic_context(load_architecture(name)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["mamba2-2.7b", "rwkv7-2.9b", "mistral-7b-v0.1"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_what_never_grows_quadratically_has_no_quadratic_context(name: str, phase: str) -> None:
    assert quadratic_context(load_architecture(name), phase=phase) is None


def test_quadratic_context_of_decode_is_where_the_growing_part_is_half() -> None:
    model = load_architecture("llama-3.1-8b")
    found = quadratic_context(model, phase="decode")
    growing = 32 * 2 * 32 * (128 + 128)
    assert found is not None
    total = flops(model, step_at(model, "decode", found), model_precision(model))
    assert growing * found == pytest.approx(total / 2, rel=1e-4)


def test_flops_of_two_models_meet_where_their_order_changes() -> None:
    # Few experts per token, but 48 layers of attention.
    a, b = load_architecture("qwen3-30b-a3b"), load_architecture("llama-3.1-8b")
    for phase in ("prefill", "decode"):
        found = flops_crossover(a, b, phase)
        assert found is not None

        def fewer(L: int, phase: str = phase) -> bool:
            first, second = (flops(model, step_at(model, phase, L), model_precision(model)) for model in (a, b))
            return second < first

        assert not fewer(found - 1)
        assert all(fewer(L) for L in (found, 2 * found, LARGEST))
        assert flops_crossover(b, a, phase) == found


def test_flops_of_a_model_that_always_needs_fewer_never_meet() -> None:
    assert flops_crossover(load_architecture("llama-3.1-8b"), load_architecture("llama-3.1-70b"), "prefill") is None


def faster(a: str, b: str, L: int, phase: str) -> bool:
    return predict(a, "h100-sxm", L, phase=phase).row.time_s < predict(b, "h100-sxm", L, phase=phase).row.time_s


def test_time_crossover_is_bracketed_by_predicted_times() -> None:
    a, b = "deepseek-v3.2", "llama-3.1-8b"
    found = time_crossover(load_architecture(a), load_architecture(b), HARDWARE)
    assert found is not None
    assert found > 1
    assert not faster(a, b, found - 1, "decode")
    assert all(faster(a, b, L, "decode") for L in (found, 2 * found, 16 * found, LARGEST))


def test_time_crossover_is_one_for_the_always_faster_and_none_for_the_other() -> None:
    small, large = load_architecture("qwen3-0.6b"), load_architecture("llama-3.1-405b")
    assert time_crossover(small, large, HARDWARE) == 1
    assert time_crossover(large, small, HARDWARE) is None
    assert time_crossover(small, small, HARDWARE) is None


def test_times_of_arrays_are_those_of_numbers() -> None:
    calibration = find_calibration(HARDWARE, None)
    points = contexts()[::160]
    for name in ("kimi-linear-48b-a3b", "deepseek-v3.2", "mamba2-2.7b", "mistral-7b-v0.1", "rwkv7-2.9b"):
        model = load_architecture(name)
        precision = make_precision(model, HARDWARE)
        for phase in ("prefill", "decode", "train"):
            swept = total_seconds(model.kernels(step_at(model, phase, points), precision), HARDWARE, calibration)
            for L, seconds in zip(points, numpy.broadcast_to(swept, points.shape), strict=True):
                kernels = model.kernels(step_at(model, phase, int(L)), precision)
                assert total_seconds(kernels, HARDWARE, calibration) == pytest.approx(seconds, rel=1e-9)


def test_scanned_contexts_are_whole_and_reach_100m() -> None:
    points = contexts(7)
    assert points[0] == 7
    assert points[-1] == LARGEST == 104_857_600
    assert (points == numpy.round(points)).all()
    assert (numpy.diff(points) > 0).all()


def test_comparison_rows_are_predictions_with_ratios() -> None:
    names, lengths = ["llama-3.1-8b", "kimi-linear-48b-a3b"], [8192, 65536]
    found = compare(names, "h100-sxm", lengths, phase=["prefill", "decode"], batch=2)
    plain = predict(names, "h100-sxm", lengths, phase=["prefill", "decode"], batch=2)
    assert len(found.rows) == len(plain.rows) == 8
    firsts = {(row.phase, row.context): row.time_s for row in plain.rows if row.arch == names[0]}
    for row, expected in zip(found.rows, plain.rows, strict=True):
        assert row == {**row, **expected.to_dict()}
        assert row["ratio"] == row["time_s"] / firsts[row["phase"], row["context"]]
        assert row["arch"] != names[0] or (row["ratio"], row["crossover_context"]) == (1, None)


def test_comparison_lists_three_kinds_of_crossover() -> None:
    found = compare(["llama-3.1-8b", "deepseek-v3.2"], "h100-sxm", 8192)
    kinds = {(entry["kind"], entry["first"], entry["second"]): entry for entry in found.crossovers}
    assert set(kinds) == {
        ("quadratic_context", "llama-3.1-8b", None),
        ("quadratic_context", "deepseek-v3.2", None),
        ("flops_crossover", "llama-3.1-8b", "deepseek-v3.2"),
        ("time_crossover", "deepseek-v3.2", "llama-3.1-8b"),
    }
    time = kinds[("time_crossover", "deepseek-v3.2", "llama-3.1-8b")]
    assert time["context"] == found.rows[1]["crossover_context"]
    assert time["hw"] == "h100-sxm"
    assert "faster from here on" in time["note"]
    assert kinds[("flops_crossover", "llama-3.1-8b", "deepseek-v3.2")]["context"] is None


def test_comparison_refuses_what_it_cannot_tell_apart() -> None:
    with pytest.raises(BadInput, match="the same name twice"):
        compare(["llama-3.1-8b", "llama-3.1-8b"], "h100-sxm", 8192)
    with pytest.raises(BadInput, match="none given"):
        compare([], "h100-sxm", 8192)
    with pytest.raises(BadInput, match="new tokens 100 exceed the context 50"):
        compare(["llama-3.1-8b", "qwen3-8b"], "h100-sxm", 50, phase="prefill", new_tokens=100)
