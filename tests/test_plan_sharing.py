"""What engines of a search share: the same times as each engine computed alone, in an array or by itself."""

from typing import Any

import numpy
import pytest

from costmodel.errors import Impossible
from costmodel.parallel.layout import Layout
from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.candidates import evaluate
from costmodel.planning.curves import engine_curves
from costmodel.planning.engine_model import EngineModel
from costmodel.planning.kernel_kinds import Kinds, kinds, named
from costmodel.planning.load import Load
from costmodel.planning.points import Candidate, exceeded, first_of, rank
from costmodel.planning.question import Loaded, Question, load
from costmodel.planning.room import chunk_step, largest_results, written_bytes
from costmodel.planning.space import Task, layouts
from costmodel.planning.stacks import lookup
from costmodel.step import Step
from costmodel.timing import roofline
from tests.test_plan import DEFAULTS


def asked(**changes: Any) -> Question:
    inputs = read_inputs({**DEFAULTS, **changes})
    return question_of(inputs, Load(inputs))


def everything(known: Loaded, context_parallel: bool) -> list[EngineModel]:
    """Every engine of a space, all of its times computed: what is shared is there."""
    found = []
    for kv in (None, "fp8"):
        for layout in layouts(known.model, known.question.gpus, context_parallel):
            try:
                found.append(known.engine("h100-sxm", None, kv, 0, layout))
            except Impossible:
                continue
    for engine in found:
        known.whole(engine)
        known.results(engine)
    return found


SPACES = [
    pytest.param("deepseek-v3", False, id="experts"),
    pytest.param("qwen3-30b-a3b", True, id="split caches"),
    pytest.param("kimi-linear-48b-a3b", True, id="states"),
    pytest.param("deepseek-v4-pro", False, id="residual streams"),
]


def of_kind(engine: EngineModel, step: Step, kind: Kinds, wanted: str) -> Any:
    """Seconds of an engine's kernels of one kind, each priced by itself."""
    run = [kernel for key, kernel in named(engine.kernels(step)).items() if kind.get(key, "") == wanted]
    return numpy.zeros_like(step.tokens) + engine.seconds(run)


@pytest.mark.parametrize(("arch", "context_parallel"), SPACES)
def test_times_that_layouts_share_are_those_of_each_alone(arch: str, context_parallel: bool) -> None:
    known = load(asked(arch=[arch], gpus=(4, 16), context_parallel=context_parallel))
    engines = everything(known, context_parallel)
    assert len(engines) > 20
    for engine in engines[::7]:
        shared, at, kind = known.whole(engine), known.grid(engine), kinds(engine.kernels)
        tokens = of_kind(engine, at.tokens, kind, "token") + of_kind(engine, at.rows, kind, "row")
        N = len(at.n)
        full, fewer, mixed = tokens[:N], tokens[N : 2 * N], tokens[2 * N : -1].reshape(at.left.shape)
        assert shared.decode == pytest.approx(full + of_kind(engine, at.decoding, kind, "")[:-1], rel=1e-9)
        added = mixed - numpy.where(at.n > 1, fewer, 0.0)[:, None] + of_kind(engine, at.prompts, kind, "")
        assert shared.added == pytest.approx(numpy.where(at.left >= 1, added, numpy.inf), rel=1e-9)
        first, later = (
            sum(roofline(kernel, engine.served.hardware) * kernel.exposed for kernel in engine.kernels(step))
            for step in (at.decoding, at.prompts)
        )
        assert shared.peak[0] == pytest.approx(first[0], rel=1e-9)
        assert shared.peak[1] == pytest.approx((later * at.chunks / at.together)[0].min(), rel=1e-9)
        samples = tokens[-1] + of_kind(engine, at.decoding, kind, "")[-1]
        assert sum(shared.samples.values()) == pytest.approx(samples, rel=1e-9)
        written = written_bytes(
            engine.kernels, chunk_step(known.question.budgets, known.question.work.longest), 2, by_group=False
        )
        assert known.results(engine).tolist() == largest_results(written[""]).tolist()


def test_engines_side_by_side_have_the_curves_of_each_alone() -> None:
    known = load(asked(arch=["deepseek-v3"], gpus=(16, 32)))
    engines = everything(known, False)
    assert len({engine.layout.pp for engine in engines}) > 3
    wholes = [known.whole(engine) for engine in engines]
    stretches = [known.stretch(engine) for engine in engines]
    # The most that each can hold lies between batch sizes, on one, at the first and at the last.
    most = numpy.resize([37.0, 1.0, 1024.0, 4.0, 700.0], len(engines))
    together = engine_curves(engines, wholes, stretches, known.question.work, most)
    for place, engine in enumerate(engines):
        alone = engine_curves(
            [engine], [wholes[place]], [stretches[place]], known.question.work, most[place : place + 1]
        )
        for mine, its in zip(together.of(place), alone.of(0), strict=True):
            assert numpy.array_equal(mine, its), engine.layout
        assert together.of(place).n[-1] == most[place]


def test_a_lookup_is_an_interpolation_of_each_engine() -> None:
    random = numpy.random.default_rng(3)
    nodes = numpy.sort(random.integers(0, 9, (4, 12, 3)).astype(float), axis=1)  # some of them equal
    values = random.random((4, 12, 3))
    lengths = random.integers(1, 13, (4, 3))
    used = numpy.arange(12)[None, :, None] < lengths[:, None, :]
    engine = random.integers(0, 4, 200)
    wanted = random.uniform(-1, 10, (200, 3))
    wanted[::4] = numpy.round(wanted[::4])
    found = lookup(nodes, used, engine, wanted).at(values)
    for row in range(200):
        for column in range(3):
            rows = used[engine[row], :, column]
            of = (each[engine[row], rows, column] for each in (nodes, values))
            assert found[row, column] == pytest.approx(numpy.interp(wanted[row, column], *of), rel=1e-12)


def test_the_best_of_many_are_those_that_come_first_in_rank() -> None:
    random = numpy.random.default_rng(5)
    cost = numpy.repeat(random.random(60), 3) * (1 + numpy.tile([0.0, 1e-12, 1e-6], 60))
    usd, e2e = random.integers(1, 4, 180).astype(float), random.random(180)
    plans = [
        Candidate(
            "x", None, None, 0, str(place), 1, 1.0, 1, 1, 1.0, 1.0, e2e[place], usd[place] / each, 1.0, usd[place]
        )
        for place, each in enumerate(cost)
    ]
    expected = sorted(range(180), key=lambda place: rank(plans[place], "cost"))[:3]
    exact = numpy.array([plan.usd_per_hour / plan.rate for plan in plans])
    assert first_of(exact, usd, e2e, 3) == expected


@pytest.mark.parametrize("load_of", [{}, {"rate": None, "concurrency": 64}])
def test_points_as_columns_miss_their_limits_by_as_much_as_each_alone(load_of: dict[str, Any]) -> None:
    question = asked(**load_of)
    outcome = evaluate(load(question), [Task("h100-sxm", None, None, 0, Layout(tp=tp)) for tp in (1, 2, 4)])
    assert outcome.cloud is not None
    points = outcome.cloud.candidates()
    assert len(points) > 20
    assert outcome.cloud.exceeded(question).tolist() == [exceeded(question, point)[0] for point in points]
    assert {point.limited_by for point in points} == {"TPOT", "speed per user"} | ({"TTFT"} if not load_of else set())
