"""Small whole models: their arithmetic, their caches, and the parts by which a step is explained."""

import time

import pytest

from costmodel.calibration import PRIOR
from costmodel.hardware import load_hardware

torch = pytest.importorskip("torch")

from validation.absent_device import described  # noqa: E402
from validation.counting import count  # noqa: E402
from validation.device import facts  # noqa: E402
from validation.kernel_split import split_by_marks  # noqa: E402
from validation.measurements import Measurement  # noqa: E402
from validation.models import MODELS, inputs, kernels  # noqa: E402
from validation.models.forward import forward  # noqa: E402
from validation.runners import Implementation, Mark, runner  # noqa: E402
from validation.runners.whole_model import GPU, PROCESSOR, by_references, operators  # noqa: E402
from validation.wholes import BETWEEN, IN_ONE, wholes  # noqa: E402

CPU = torch.device("cpu")


def shape_of(model: str, context: int, new_tokens: int, batch: int = 1) -> dict[str, int | str]:
    layers = 4 if model == "hybrid" else 2
    sizes = {"batch": batch, "context": context, "new_tokens": new_tokens, "width": 256, "layers": layers}
    return {"dtype": "fp32", **sizes, "vocabulary": 64}


def drawn(model: str, shape: dict[str, int | str]) -> dict[str, torch.Tensor]:
    return dict(inputs(model, shape, CPU, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("context,new_tokens", [(20, 20), (20, 1)])
def test_a_models_products_are_those_of_its_architecture(model: str, context: int, new_tokens: int) -> None:
    """The references do exactly the multiplications that the formulas claim, those of recurrences included."""
    shape = shape_of(model, context, new_tokens)
    exact = {name: x.double() if x.is_floating_point() else x for name, x in drawn(model, shape).items()}
    counts = count(lambda: forward(model, shape, exact, by_references))
    claimed = sum(sum(kernel.ideal.tensor.values()) * kernel.count for kernel in kernels(model, shape))
    assert counts.tensor == claimed


@pytest.mark.parametrize("model", MODELS)
def test_decoding_goes_on_where_prefill_stopped(model: str) -> None:
    tokens = 70  # a whole chunk of every recurrence, and a ragged one
    whole = drawn(model, shape_of(model, tokens, tokens))
    run = operators(PROCESSOR)
    expected = forward(model, shape_of(model, tokens, tokens), whole, run)
    begin = shape_of(model, tokens - 1, tokens - 1)
    tables = ("cos", "sin")
    cut = {name: x[: tokens - 1] if name in tables else x for name, x in whole.items()}
    _, *kept = forward(model, begin, {**cut, "tokens": whole["tokens"][:, :-1]}, run)
    last = drawn(model, shape_of(model, tokens, 1))
    remembered = [name for name in last if name.rpartition(".")[2] in ORDER]
    by_layer = sorted(remembered, key=lambda name: (int(name.partition(".")[0]), ORDER.index(name.rpartition(".")[2])))
    assert len(by_layer) == len(kept)
    given = {name: x[tokens - 1 :] if name in tables else x for name, x in whole.items()}
    for name, x in zip(by_layer, kept, strict=True):
        axis = GROWING.get(name.rpartition(".")[2])
        given[name] = x if axis is None else filled(last[name], x, axis)
    given["tokens"] = whole["tokens"][:, -1:]
    found = forward(model, shape_of(model, tokens, 1), given, run)
    assert (found[0] - expected[0]).norm() / expected[0].norm() < 1e-4


GROWING = {"keys": 2, "values": 2, "latents": 1, "index keys": 1}
ORDER = (*GROWING, "state", "history", "last", "last of the mlp")


def filled(cache: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A cache with what was remembered in its first places, and room for one more token."""
    cache.zero_().narrow(axis, 0, x.shape[axis]).copy_(x)
    return cache


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("new_tokens", [24, 1])
def test_the_parts_of_a_step_are_the_kernels_that_predict_lists(model: str, new_tokens: int) -> None:
    shape = shape_of(model, 24, new_tokens)
    parts: list[str] = []
    forward(model, shape, drawn(model, shape), operators(PROCESSOR), parts.append)
    predicted = {IN_ONE.get(kernel.family, kernel.name): 0 for kernel in kernels(model, shape)}
    assert set(parts) == set(predicted)
    counts = {kernel.name: kernel.count for kernel in kernels(model, shape) if kernel.family == "gemm"}
    groups = [kernel for kernel in kernels(model, shape) if kernel.family == "gemm"]
    for name in counts:
        assert parts.count(name) == sum(kernel.count for kernel in groups if kernel.name == name)


def test_parts_timed_apart_are_the_times_of_their_work() -> None:
    def work(seconds: float) -> None:
        start = time.thread_time()
        while time.thread_time() - start < seconds:
            pass

    def call(mark: Mark) -> None:
        for name, seconds in (("short", 1e-3), ("long", 8e-3), ("short", 1e-3)):
            work(seconds)
            mark(name)

    short, long = split_by_marks(call, "cpu")
    assert (short.name, short.launches, long.name) == ("short", 2, "long")
    assert 2e-3 <= short.seconds < 4e-3
    assert 8e-3 <= long.seconds < 12e-3


def test_a_step_is_explained_part_by_part() -> None:
    """What was measured is the prediction with one part made slower: the difference is found, and it alone."""
    hardware = load_hardware("h100-sxm")
    operator = runner("dense-model-decode")
    point = operator.points(described("sm_90"), "quick")[0]
    (plain,) = wholes([row_of(point.shape, 1.0, "")], hardware, PRIOR)
    parts = plain["parts"]
    assert plain["predicted_s"] == pytest.approx(sum(part["predicted_s"] for part in parts))
    slower = {"attention": 1e-3}
    text = "; ".join(f"{part['part']} ×1 {part['predicted_s'] + slower.get(part['part'], 0.0):.9g} s" for part in parts)
    whole = plain["predicted_s"] + 1e-3 + 2e-5
    (row,) = wholes([row_of(point.shape, whole, text)], hardware, PRIOR)
    gaps = {part["part"]: part["measured_s"] - part["predicted_s"] for part in row["parts"]}
    assert gaps["attention"] == pytest.approx(1e-3)
    assert gaps[BETWEEN] == pytest.approx(2e-5, rel=1e-3)
    assert row["parts_s"] == pytest.approx(whole - 2e-5)


def row_of(shape: object, seconds: float, kernels: str) -> Measurement:
    return Measurement(
        runner="dense-model-decode",
        implementation="cudnn, graph",
        mode="cold",
        role="held-out",
        family="whole-model",
        shape=shape,  # type: ignore[arg-type]
        seconds=seconds,
        kernels=kernels,
    )


@pytest.mark.parametrize("model", MODELS)
def test_on_a_gpu_every_operator_inside_a_model_has_its_implementation(model: str) -> None:
    stated = described("sm_90")
    for phase in ("prefill", "decode"):
        one = runner(f"{model}-model-{phase}")
        runs = [each for each in one.implementations if "cuda" in each.devices]
        shape = one.points(stated, "quick")[0].shape
        allowed = [each.name for each in runs if not each.supports(shape, stated)]
        assert allowed == ["cudnn, graph", "cudnn, eager"]
        older = [each.name for each in runs if not each.supports(shape, described("sm_80"))]
        assert older == ["flash, graph", "flash, eager"]
        assert [each.graph for each in runs] == [True, False, True, False]
    for name, implementation in {**GPU, "prefill-attention": "torch.sdpa-cudnn"}.items():
        assert implementation in {each.name for each in runner(name).implementations}
    for name, implementation in PROCESSOR.items():
        assert implementation in {each.name for each in runner(name).implementations}


def test_a_wrong_layer_is_found_before_it_is_timed() -> None:
    from validation.canary import canary
    from validation.worker import Bench

    stated = facts("cpu")
    bench = Bench(stated, canary(stated))
    operator = runner("dense-model-decode")
    (right,) = (each for each in operator.implementations if "cpu" in each.devices)
    shape = shape_of("dense", 24, 1)
    assert bench.check(operator, right, shape).status == "ok"
    wrong = Implementation(
        "wrong", ("cpu",), lambda shape, x: right.run(shape, {**x, "0.o_proj": x["0.o_proj"] * 1.01})
    )
    assert bench.check(operator, wrong, shape).status == "wrong"
