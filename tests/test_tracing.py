"""Formulas read with traced values compute what they compute with numbers."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from costmodel.algebra import ceil_div, floor_div, log2, maximum, minimum, power, root, where
from costmodel.analysis.javascript import body, condition, function
from costmodel.analysis.kernel_programs import (
    OUTPUTS,
    form_program,
    hardware_numbers,
    quantities,
    traced_step,
)
from costmodel.analysis.tracing import Graph
from costmodel.calibration_files import find_calibration
from costmodel.dtypes import ENGINES
from costmodel.hardware import load_hardware
from costmodel.kernels.base import BOUNDS, Kernel
from costmodel.model_file import load_architecture
from costmodel.prediction import make_precision, make_step
from costmodel.timing import roofline

MODELS = (
    "llama-3.1-8b",
    "gemma-3-27b",
    "deepseek-v3.2",
    "kimi-linear-48b-a3b",
    "qwen3-next-80b-a3b",
    "nemotron-h-8b",
    "minicpm4-8b",
    "rwkv7-7.2b",
    "hyena-1.3b",
    "llada-8b",
    "minimax-m3",
    "deepseek-v4-flash",
)
"""Together they launch every kernel family that a model has."""


def formula(x, y, p):  # type: ignore[no-untyped-def]
    tiles = ceil_div(x, 128) * floor_div(y, 3)
    busy = where(x > 2 * y, minimum(x, 7.5), maximum(log2(y), -x))
    return root(power(tiles, p) + power(busy, 2.0), p) + where((x < y) & (y <= 10), 1, tiles - 3 / y)


POINTS = [(1.0, 1.0, 2.0), (129, 3, 4), (1000, 64, 2.7), (5, 9, 1.3), (2**20, 17, 8.0)]


@pytest.mark.parametrize("x, y, p", POINTS)
def test_a_traced_formula_evaluates_to_what_it_is_fed_numbers(x: float, y: float, p: float) -> None:
    graph = Graph()
    traced = formula(graph.input("x"), graph.input("y"), graph.input("p"))
    assert graph.evaluate([traced], {"x": x, "y": y, "p": p}) == [pytest.approx(formula(x, y, p), rel=1e-14)]


def test_equal_operations_are_one_node() -> None:
    graph = Graph()
    x = graph.input("x")
    assert (x * 2 + x * 2 / 3).graph.nodes.count(("multiply", x.index, graph.of(2).index)) == 1
    assert ((x * 4) * 2).index == (x * 8).index
    assert (x + 0).index == (x * 1).index == (0 + x).index == x.index


def test_a_formula_cannot_choose_by_a_value_that_is_not_known() -> None:
    x = Graph().input("x")
    with pytest.raises(TypeError, match="not known when it is traced"):
        bool(x > 3)


def test_what_a_formula_chose_by_is_a_condition() -> None:
    graph = Graph()
    width = graph.input("width", 64)
    chosen = 128 if width <= 64 else 256
    assert chosen == 128
    assert graph.holds({"width": 32})
    assert not graph.holds({"width": 65})
    assert condition(graph, {"width": "k[0]"}) == "k[0]<=64"


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_javascript_computes_what_python_does() -> None:
    graph = Graph()
    result = formula(graph.input("x"), graph.input("y"), graph.input("p"))
    text = function("f", ("x", "y", "p", "o"), graph, {"o[0]": result, "o[1]": -result - (1 - result)})
    asked = json.dumps(POINTS)
    script = f"{text};console.log(JSON.stringify({asked}.map(q=>{{const o=[];f(...q,o);return o}})))"
    run = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    for (first, second), point in zip(json.loads(run.stdout), POINTS, strict=True):
        expected = formula(*point)
        assert first == pytest.approx(expected, rel=1e-14)
        assert second == pytest.approx(-expected - (1 - expected), rel=1e-12)


def test_javascript_keeps_the_order_of_operations() -> None:
    graph = Graph()
    a, b, c = (graph.input(name) for name in "abc")
    assert body(graph, {"o": a - (b - c)}) == "o=a-(b-c)"
    assert body(graph, {"o": a / (b * c) - (a - b)}) == "o=a/(b*c)-(a-b)"
    assert body(graph, {"o": a * (b / c)}) == "o=a*(b/c)"
    assert body(graph, {"o": (-a) ** 2 - -1 * b}) == "o=Math.pow(-a,2)-b*(-1)"


def kernels() -> Iterator[tuple[str, Kernel]]:
    """A kernel of every family and structure that the models launch on a device that has all their engines."""
    seen = set()
    for name in MODELS:
        model = load_architecture(name)
        precision = make_precision(model, load_hardware("b200-sxm"))
        for phase in ("prefill", "decode", "train"):
            for kernel in model.kernels(make_step(model, phase, 6000, 3), precision):
                place = (kernel.family, phase, kernel.instance)
                if place not in seen:
                    seen.add(place)
                    yield f"{name}-{phase}-{kernel.name}", kernel


KERNELS = dict(kernels())


def test_the_models_launch_most_families() -> None:
    assert len({kernel.family for kernel in KERNELS.values()}) >= 20


@pytest.mark.parametrize("hardware", ["b200-sxm", "h200-sxm", "mi300x", "l40s"])
def test_every_traced_form_gives_the_seconds_that_the_form_gives(hardware: str) -> None:
    device = load_hardware(hardware)
    calibration = find_calibration(device, None)
    for name, kernel in KERNELS.items():
        if any(not device.has_engine(dtype) for dtype in kernel.executed.tensor):
            continue
        theta = calibration.fit(kernel).values
        program = form_program(kernel, device, theta)
        inputs = {f"h.compute.tensor.{engine}": 0.0 for engine in ENGINES.values()}
        inputs |= {f"h.{path}": value for path, value in hardware_numbers(device).items()}
        inputs |= {f"t.{parameter}": value for parameter, value in theta.items()}
        inputs |= {f"k.{path}": value for path, value in quantities(kernel).items()}
        assert program.graph.holds(inputs), name
        found = dict(zip(OUTPUTS, program.graph.evaluate(program.outputs, inputs), strict=True))
        terms = kernel.form.terms(kernel, device, theta)
        limits = terms.limits()
        expected = {"total": terms.total(), "serial": terms.serial(), "roofline": roofline(kernel, device)}
        expected |= {bound: limits[bound] for bound in BOUNDS}
        assert found == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_a_traced_step_counts_what_the_step_counts(name: str, phase: str) -> None:
    model = load_architecture(name)
    precision = make_precision(model, load_hardware("b200-sxm"))
    traced = traced_step(model, phase, precision)  # type: ignore[arg-type]
    for context, batch in ((1, 1), (8191, 2), (131072, 7)):
        given = {"B": batch, "L": context}
        own = model.kernels(make_step(model, phase, context, batch), precision)
        for kernel, other in zip(own, traced.kernels, strict=True):
            values = quantities(other)
            numbers = traced.graph.evaluate([traced.graph.of(value) for value in values.values()], given)
            found, expected = dict(zip(values, numbers, strict=True)), quantities(kernel)
            # A quantity that is 0 or 1 in numbers is structure there.
            for path in found.keys() & expected.keys():
                assert found[path] == pytest.approx(expected[path], rel=1e-12), (kernel.name, path)
