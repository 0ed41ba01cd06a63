"""What engines of a search share: the same times as each engine computed alone, in an array or by itself."""

from typing import Any

import numpy
import pytest

from costmodel.overlap import InParts, in_parts
from costmodel.parallel.exchanges import Group
from costmodel.parallel.layout import Layout
from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.candidates import evaluate
from costmodel.planning.engine_model import EngineModel
from costmodel.planning.engines import Engines
from costmodel.planning.grid import chunk_step
from costmodel.planning.kernel_kinds import Kinds, kinds, named
from costmodel.planning.kernel_prices import Prices
from costmodel.planning.kernel_works import Works
from costmodel.planning.load import Load
from costmodel.planning.points import Candidate, exceeded, first_of, rank
from costmodel.planning.pools import Pools
from costmodel.planning.question import Loaded, Question, load
from costmodel.planning.room import Written, largest_results, written_bytes
from costmodel.planning.search import BEATEN, Found, search
from costmodel.planning.side_by_side import Groups
from costmodel.planning.space import Count, Tasks, layouts
from costmodel.planning.stacks import lookup
from costmodel.step import Step
from costmodel.timing import roofline
from tests.test_plan import DEFAULTS


def asked(**changes: Any) -> Question:
    inputs = read_inputs({**DEFAULTS, **changes})
    return question_of(inputs, Load(inputs))


def side_by_side(known: Loaded, kv: str | None, context_parallel: bool, drafts: int = 0) -> Engines:
    """All engines of a space."""
    spread = layouts(known.model, known.question.gpus, context_parallel)
    return Engines(known, Tasks("h100-sxm", None, kv, drafts, tuple(spread)))


SPACES = [
    pytest.param("deepseek-v3", False, {}, id="experts"),
    pytest.param("deepseek-v3", True, {"overlap": 0.5, "imbalance": 1.2}, id="exchanges that hide"),
    pytest.param("qwen3-30b-a3b", True, {}, id="split caches"),
    pytest.param("kimi-linear-48b-a3b", True, {}, id="states"),
    pytest.param("deepseek-v4-pro", False, {}, id="residual streams"),
    pytest.param("llama-3.1-70b", True, {}, id="groups of heads"),
]


def of_kind(engine: EngineModel, step: Step, kind: Kinds, wanted: str) -> Any:
    """Seconds of an engine's kernels of one kind, each priced by itself, without what hides."""
    run = [kernel for key, kernel in named(engine.kernels(step)).items() if kind.get(key, "") == wanted]
    return InParts(
        *(numpy.zeros_like(step.tokens) + part for part in in_parts(run, lambda some: engine.seconds([*some])))
    )


def rows_of(parts: InParts, rows: slice) -> InParts:
    return InParts(*(part[rows] for part in parts))


@pytest.mark.parametrize(("arch", "context_parallel", "changes"), SPACES)
def test_times_of_layouts_side_by_side_are_those_of_each_alone(
    arch: str, context_parallel: bool, changes: dict[str, Any]
) -> None:
    known = load(asked(arch=[arch], gpus=(4, 16), context_parallel=context_parallel, **changes))
    for kv in (None, "fp8"):
        engines = side_by_side(known, kv, context_parallel)
        assert len(engines.tasks) > 5
        times = engines.times(numpy.arange(len(engines.tasks)))
        at, found, results = known.grid("h100-sxm", 0), times.whole.of(times.split), engines.results()
        for place in range(0, len(engines.tasks), 5):
            engine = known.engine(*engines.tasks[place])
            kind, N = kinds(engine.kernels), len(at.n)
            tokens = of_kind(engine, at.tokens.all, kind, "token").plus(of_kind(engine, at.rows.all, kind, "row"))
            own = of_kind(engine, at.decoding.all, kind, "")
            full = rows_of(tokens, slice(0, N)).plus(rows_of(own, slice(0, N))).total()
            assert found.decode[place] == pytest.approx(full, rel=1e-9)
            fewer = InParts(*(numpy.interp(at.n - 1.0, at.n, part, left=0.0) for part in rows_of(own, slice(0, N))))
            without = rows_of(tokens, slice(N, 2 * N)).plus(fewer).total()
            beside = InParts(*(numpy.tile(part, len(at.left)) for part in fewer))
            mixed = (
                rows_of(tokens, slice(2 * N, -1)).plus(of_kind(engine, at.prompts.all, kind, "")).plus(beside).total()
            )
            added = mixed.reshape(at.left.shape) - numpy.where(at.n > 1, without, 0.0)
            assert found.added[place] == pytest.approx(numpy.where(at.left >= 1, added, numpy.inf), rel=1e-9)
            first, later = (
                sum(roofline(kernel, engine.served.hardware) * kernel.exposed for kernel in engine.kernels(step))
                for step in (at.decoding.all, at.prompts.all)
            )
            assert found.token_peak[place] == pytest.approx(first[0], rel=1e-9)
            later = later.reshape(at.left.shape) * at.chunks / at.together
            assert found.prompt_peak[place] == pytest.approx(later[:, 0].min(), rel=1e-9)
            samples = rows_of(tokens, slice(-1, None)).exposed + rows_of(own, slice(-1, None)).exposed
            assert sum(values[place] for values in found.samples.values()) == pytest.approx(samples[0], rel=1e-9)
            chunk = engine.kernels(chunk_step(known.question.budgets, known.question.work.longest))
            chunk = [kernel._replace(group="") for kernel in chunk]
            written = written_bytes(chunk, 1, numpy.arange(len(known.question.budgets)))
            largest = largest_results([Written(numpy.zeros(1, dtype=int), written[""])])
            assert results[place] == pytest.approx(largest[0], rel=1e-12)


@pytest.mark.parametrize(("arch", "drafts"), [("deepseek-v3", 0), ("qwen3-30b-a3b", 2)])
def test_engines_side_by_side_have_the_room_and_the_curves_of_each_alone(arch: str, drafts: int) -> None:
    known = load(asked(arch=[arch], gpus=(16, 32), context_parallel=True, draft_tokens=[0, 2]))
    engines = side_by_side(known, None, True, drafts)
    assert len({layout.pp for layout in engines.spread.layouts}) > 3
    every = numpy.arange(len(engines.tasks))
    # The most that each can hold lies between batch sizes, on one, at the first and at the last.
    most = numpy.resize([37.0, 1.0, 1024.0, 4.0, 700.0], len(every))
    together = engines.curves(every, engines.times(every), most)
    settings = known.question.settings("h100-sxm", 8192, drafts)
    room, send_s = engines.room(settings), engines.send_s()
    for place in every[::7]:
        one, only = Engines(known, Tasks(*engines.key, (engines.tasks[place].layout,))), numpy.array([0])
        alone = one.curves(only, one.times(only), most[place : place + 1])
        for mine, its in zip(together.of(place), alone.of(0), strict=True):
            assert mine == pytest.approx(its, rel=1e-12), engines.tasks[place].layout
        assert together.of(place).n[-1] == most[place]
        for values, its in zip(room.of(place), one.room(settings).of(0), strict=True):
            assert numpy.array_equal(values, its)
        assert send_s[place] == one.send_s()[0]


def test_weights_that_do_not_fit_leave_less_than_nothing_for_caches() -> None:
    known = load(asked(arch=["llama-3.1-70b"], gpus=(8,)))
    engines = Engines(known, Tasks("h100-sxm", None, None, 0, (Layout(), Layout(pp=3))))
    settings = known.question.settings("h100-sxm", 8192)
    whole, parts = engines.room(settings).free
    assert (whole < 0).all()
    assert (parts > 0).all()


def test_layouts_that_answer_a_question_differently_are_told_apart() -> None:
    groups = Groups([Group(size, 1) for size in (2, 3, 4, 8)], [0, 0, 0, 1])
    asked_of: list[int] = []

    def compute(beside: Group, places: Any) -> Any:
        asked_of.append(len(places))
        return beside.size * (2 if beside.size > 3 else 1)

    found = {tuple(places): numpy.ravel(of).tolist() for places, of in groups.each(compute)}
    assert found == {(0, 1): [2, 3], (2,): [8], (3,): [16]}
    assert sorted(map(len, groups.groups)) == [1, 1, 2]
    asked_of.clear()
    again = groups.each(compute, numpy.array([2, 2, 0]))
    assert {tuple(places): numpy.ravel(of).tolist() for places, of in again} == {(0, 1): [8], (2,): [2]}
    assert sorted(asked_of) == [1, 2]


def test_a_lookup_is_an_interpolation_of_each_engine() -> None:
    random = numpy.random.default_rng(3)
    nodes = numpy.sort(random.integers(0, 9, (4, 3, 12)).astype(float), axis=2)  # some of them equal
    values = random.random((4, 3, 12))
    lengths = random.integers(1, 13, (4, 3))
    used = numpy.arange(12) < lengths[..., None]
    engine, column = random.integers(0, 4, 200), random.integers(0, 3, 200)
    wanted = random.uniform(-1, 10, 200)
    wanted[::4] = numpy.round(wanted[::4])
    found = lookup(nodes, used, engine, column, wanted).at(values)
    for row in range(200):
        some = used[engine[row], column[row]]
        of = (each[engine[row], column[row], some] for each in (nodes, values))
        assert found[row] == pytest.approx(numpy.interp(wanted[row], *of), rel=1e-12)


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
    (outcome,) = evaluate(load(question), Tasks("h100-sxm", None, None, 0, tuple(Layout(tp=tp) for tp in (1, 2, 4))))
    assert outcome.cloud is not None
    points = outcome.cloud.candidates()
    assert len(points) > 20
    assert outcome.cloud.exceeded(question).tolist() == [exceeded(question, point)[0] for point in points]
    assert {point.limited_by for point in points} == {"TPOT", "speed per user"} | ({"TTFT"} if not load_of else set())


@pytest.mark.parametrize(("arch", "context_parallel", "changes"), SPACES)
def test_kernels_priced_on_top_of_one_another_cost_what_each_costs_alone(
    arch: str, context_parallel: bool, changes: dict[str, Any]
) -> None:
    known = load(asked(arch=[arch], gpus=(1, 2, 4, 8), **changes))
    engines = side_by_side(known, None, context_parallel)
    at, alone = known.grid("h100-sxm", 0), known.prices("h100-sxm")
    together = Prices(alone.hardware, alone.calibration, alone.hides, Works())
    for part in engines.spread.parts(engines.hardware):
        run = [
            kernel
            for step in (at.tokens.different, at.prompts.different)
            for _, built in part.beside.each(lambda beside, places: part.kernels(engines.model(beside), step, None))  # noqa: B023
            for kernel in built
        ]
        together.learn(run)
        for kernel in run:
            for found, expected in zip(together.of(kernel), alone.of(kernel), strict=True):
                numpy.testing.assert_allclose(*numpy.broadcast_arrays(found, expected), rtol=1e-12)


@pytest.mark.parametrize("optimize", ["cost", "gpus", "latency", "throughput"])
@pytest.mark.parametrize("load_of", [{"rate": "40/s"}, {"rate": None, "concurrency": 256}])
def test_what_is_left_out_beside_better_ones_changes_no_answer(
    optimize: str, load_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = asked(gpus=(1, 2, 4, 8, 16), optimize=optimize, tpot_s="30ms", **load_of)
    for name, value in (("candidates.FEW", 3), ("candidates.MANY", 3), ("replicas.FEW", 5)):
        monkeypatch.setattr(f"costmodel.planning.{name}", value)
    some = search(question._replace(every_point=False))
    for name, value in (("candidates.FEW", 256), ("candidates.MANY", 256), ("replicas.FEW", 1 << 30)):
        monkeypatch.setattr(f"costmodel.planning.{name}", value)
    every = search(question)
    assert len(every.best) == 1
    assert some.best == every.best
    assert len(every.frontier) > 5
    assert some.frontier == every.frontier
    assert looked_at(some) == looked_at(every)


def looked_at(found: Found) -> list[Count]:
    """What is counted whatever better ones stand before."""
    return [count for count in found.counts if BEATEN not in count.why and "within" not in count.why]


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": ["deepseek-v3"], "gpus": (8, 16, 32), "tpot_s": "40ms", "ttft_s": "1s", "context_parallel": True},
        {"arch": ["kimi-linear-48b-a3b"], "gpus": (1, 2, 4, 8), "rate": "30/s", "kv": ["own", "fp8"]},
        {"arch": ["llama-3.1-8b"], "gpus": (1, 2, 4, 8), "rate": None, "concurrency": 64, "optimize": "latency"},
        {"arch": ["qwen3-30b-a3b"], "gpus": (1, 2, 4, 8), "draft_tokens": [0, 2], "optimize": "throughput"},
        {"arch": ["llama-3.1-8b"], "gpus": (1, 2, 4), "rate": "5/s", "tpot_s": "3ms"},
        {"arch": ["llama-3.1-8b"], "gpus": (1, 2, 4), "rate": "2000/s"},
    ],
)
def test_engines_that_better_ones_stand_before_are_counted_and_change_no_answer(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEW", "MANY"):
        monkeypatch.setattr(f"costmodel.planning.candidates.{name}", 4)
    question = asked(hw=["h100-sxm", "b200-sxm"], pools=["aggregated"], **changes)
    some, every = search(question._replace(every_point=False)), search(question)
    assert some.best == every.best
    assert some.frontier == every.frontier
    assert some.closest == every.closest
    assert looked_at(some) == looked_at(every)
    numbers = {count.why: count.number for count in some.counts}
    beaten = numbers.get(f"of them {BEATEN}", 0)
    assert beaten > 0 or question.arch != "deepseek-v3"
    within, of_all = (next(count.number for count in of.counts if "within" in count.why) for of in (some, every))
    assert within <= of_all <= beaten + within
    assert beaten + within <= numbers["of aggregated engines whose caches fit"]


@pytest.mark.parametrize("sizes", [3, 1000])
def test_of_many_pools_those_are_kept_that_none_beats(sizes: int) -> None:
    random = numpy.random.default_rng(11)
    count = 600
    gpus = random.integers(1, sizes + 1, count).astype(float)
    slow, rate = random.lognormal(size=count).round(1) + 0.1, (gpus * random.lognormal(size=count)).round(1) + 0.1
    place, zero = numpy.arange(count), numpy.zeros(count)
    found = Pools((), place, place, zero, gpus, zero, slow, zero, rate, zero).undominated().layout.tolist()
    each = rate / gpus
    order = numpy.lexsort((place, gpus, -each, slow)).tolist()
    kept = []
    for one in order:
        if not any(gpus[other] <= gpus[one] and each[other] >= each[one] for other in kept):
            kept.append(one)
    assert 2 < len(kept) < count / 4
    assert found == kept
