"""A plan looked at closely: what it does under its load, how sure that is, what limits it, what it draws and costs.

Errors of decode iterations and of prompts are those of `predict`, source by source. How much a latency or a capacity
moves with either is found by moving the iteration times themselves, so that queues amplify what they amplify. Sources
that two plans share are the same keys, and cancel in their ratio as far as both feel them alike.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy

from costmodel.errors import Impossible
from costmodel.parallel.layout import Disaggregated, Layout, parse_layout
from costmodel.planning.curves import Curves
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.engines import Engines
from costmodel.planning.operating import Operating, at_point, decoding, operating, prefilling, settled
from costmodel.planning.points import Candidate
from costmodel.planning.question import Loaded
from costmodel.planning.room import Room
from costmodel.planning.space import Task, Tasks
from costmodel.step import Step
from costmodel.timing import Z80, StepTime, errors, expected, time_step

Errors = dict[tuple[Any, ...], float]
"""Standard deviations of a logarithm by source, with sign."""

MOVE = 0.02
"""By how much iteration times are moved to see what follows from it."""


class Role(NamedTuple):
    """Engines of one kind in a plan: "both", "prefill" or "decode"; column: of its chunk budget."""

    name: str
    engine: EngineModel
    replicas: int
    curves: Curves
    room: Room
    places: Array
    column: int
    send_s: float = 0.0

    @property
    def engines(self) -> int:
        """All of them."""
        return self.replicas * self.engine.engines

    def at(self, loaded: Loaded, decode: float = 1.0, prompt: float = 1.0, share: Array | None = None) -> Operating:
        """Where an engine works, were decode iterations and prompts slower by these factors."""
        found = self.curves
        moved = found._replace(decode=found.decode * decode, alone=found.alone * decode, added=found.added * prompt)
        work = loaded.question.work
        if self.name == "prefill":
            shares = numpy.linspace(0.005, 0.995, 199) if share is None else share
            own = moved.added[:, :1]
            ttft, rate = prefilling(self.engine, work, own, shares, self.send_s, self.engines)
            zero = numpy.zeros_like(rate)
            return Operating(shares, ttft, zero, rate, numpy.ones_like(rate), ttft, zero, zero)
        if self.name == "decode":
            return decoding(self.engine, work, moved, self.places)
        return operating(self.engine, work, moved, self.places, self.engines)


class State(NamedTuple):
    """A plan under its load.

    Means in seconds; requests per second at most, within the service level and with the headroom asked for (capacity,
    and that of each role) and whatever the latency (most); sequences under way in each engine that decodes; the share
    of the time of engines with prompts that prompts take; and the load, requests per second.
    """

    ttft_s: float
    tpot_s: float
    capacity_per_s: float
    capacities: tuple[float, ...]
    most_per_s: float
    sequences: float
    prefill_share: float
    load_per_s: float


class Assessment(NamedTuple):
    """A plan, its engines and state, the step of each (role, "decode" | "prompt"), and the logarithmic errors of
    the state's TTFT, TPOT and capacity, and of the capacity of each role by its name."""

    plan: Candidate
    roles: list[Role]
    state: State
    steps: Mapping[tuple[str, str], StepTime]
    errors: Mapping[str, Errors]


def roles_of(loaded: Loaded, plan: Candidate) -> list[Role]:
    """The engines of a plan. Raises Impossible where the model does not fit or divide so."""
    layout = parse_layout(plan.layout)
    if isinstance(layout, Disaggregated):
        parts = [("prefill", *layout.prefill), ("decode", *layout.decode)]
        return [_role(loaded, plan, name, replicas * plan.replicas, part) for name, replicas, part in parts]
    name = "prefill" if loaded.question.work.prefill_only else "both"
    return [_role(loaded, plan, name, plan.replicas, layout)]


def _role(loaded: Loaded, plan: Candidate, name: str, replicas: int, layout: Layout) -> Role:
    asked = loaded.question
    task = Task(plan.hw, plan.weights, plan.kv, plan.draft_tokens, layout)
    engines = Engines(loaded, Tasks(*task[:4], (layout,)))
    if not engines.tasks:
        loaded.engine(*task)  # which says why not
    settings = asked.settings(plan.hw, plan.budget, plan.draft_tokens)
    held = engines.room(settings).of(0)
    column = asked.budgets.index(plan.budget)
    places = numpy.minimum(held.sequences, settings.max_sequences)
    if places[column] < 1:
        raise Impossible(
            f"{loaded.model.name} as {layout} on {plan.hw}: weights and buffers leave {held.free[column] / 2**30:.4g} "
            f"GiB for caches, and one sequence of {asked.work.context:.0f} tokens takes {held.each / 2**30:.4g} GiB"
        )
    only = numpy.zeros(1, dtype=numpy.intp)
    found = engines.curves(only, engines.times(only), places.max(keepdims=True)).of(0)
    send_s = 0.0 if asked.work.prefill_only else float(engines.send_s()[0])
    return Role(name, loaded.engine(*task), replicas, found, held, places, column, send_s)


def state_of(loaded: Loaded, roles: list[Role], moves: Mapping[tuple[str, str], float] | None = None) -> State:
    """What happens under the load. moves: factors on ("both" | "prefill" | "decode", "decode" | "prompt")."""
    asked, work = loaded.question, loaded.question.work
    moves = moves or {}
    at = {
        role.name: role.at(loaded, moves.get((role.name, "decode"), 1.0), moves.get((role.name, "prompt"), 1.0))
        for role in roles
    }
    if len(roles) == 1:
        (role,) = roles
        if work.prefill_only:
            return _prefilling(loaded, role, at[role.name], moves.get((role.name, "prompt"), 1.0))
        found, column = at[role.name], role.column
        if work.rate is not None:
            n = settled(work.rate / role.engines, found, column)
            load = work.rate
        else:
            n = min((work.clients or 1) / role.engines, float(role.places[column]))
            load = at_point(found.rate, found, column, n) * role.engines
        most = role.engines * _within(found, column, float(role.places[column]), None, None)
        capacity = role.engines * _within(found, column, float(role.places[column]), *asked.level)
        capacity = min(capacity, asked.usable * most)
        return State(
            at_point(found.ttft_s, found, column, n),
            at_point(found.tpot_s, found, column, n),
            capacity,
            (capacity,),
            most,
            n,
            at_point(found.prefill_share, found, column, n),
            load,
        )
    front, back = roles
    own = float(at["prefill"].n[0] / at["prefill"].rate[front.column, 0])

    def under(load: float) -> tuple[float, float, float, float]:
        """TTFT, TPOT, sequences and the share of prompts at a load."""
        share = min(load / front.engines * own, 1.0)
        only = front.at(loaded, prompt=moves.get(("prefill", "prompt"), 1.0), share=numpy.array([max(share, 1e-6)]))
        n = settled(load / back.engines, at["decode"], 0)
        return float(only.ttft_s[front.column, 0]), at_point(at["decode"].tpot_s, at["decode"], 0, n), n, share

    def asked_for(load: float) -> float:
        ttft, tpot, _, _ = under(load)
        return (work.clients or 1) / (ttft + tpot * (work.output - 1.0))

    # The more requests are answered, the longer each takes and the fewer so many clients send: one load is both.
    low = high = work.rate if work.rate is not None else 0.0
    if work.rate is None:
        high = min(front.engines / own, float(at["decode"].rate[0].max()) * back.engines)
        while high - low > 1e-6 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if asked_for(middle) > middle else (low, middle)
    load = low if work.rate is None else work.rate
    ttft, tpot, n, share = under(load)
    held, limits = (
        (
            _within(at["prefill"], front.column, 1.0, first, None) * front.engines,
            _within(at["decode"], 0, float(back.places[0]), None, later) * back.engines,
        )
        for first, later in (asked.level, (None, None))
    )
    limits = front.engines / own, limits[1]
    within = min(held[0], asked.usable * limits[0]), min(held[1], asked.usable * limits[1])
    return State(ttft, tpot, min(within), within, min(limits), n, share, load)


def _prefilling(loaded: Loaded, role: Role, at: Operating, prompt: float) -> State:
    """Engines that answer with the token that ends a prompt. at: where they work at every share of their time."""
    asked, rate = loaded.question, loaded.question.work.rate
    assert rate is not None
    most = role.engines * float(at.rate[role.column, 0] / at.n[0])
    share = min(rate / most, 1.0)
    there = role.at(loaded, prompt=prompt, share=numpy.array([max(share, 1e-6)]))
    ttft = float(there.ttft_s[role.column, 0])
    held = role.engines * _within(at, role.column, 1.0, asked.level.ttft_s, None)
    capacity = min(held, asked.usable * most)
    return State(ttft, 0.0, capacity, (capacity,), most, rate / role.engines * ttft, share, rate)


def _within(at: Operating, column: int, most: float, ttft_s: float | None, tpot_s: float | None) -> float:
    """Requests per second of an engine at most, with what it holds and within these latencies; 0 where none are."""
    n = numpy.linspace(float(at.n[0]), min(float(at.n[-1]), most), 400)
    n = numpy.union1d(n, at.n[at.n <= n[-1]])
    rate, ttft, tpot = (
        numpy.interp(n, at.n, values[0 if len(values) == 1 else column]) for values in (at.rate, at.ttft_s, at.tpot_s)
    )
    good = numpy.isfinite(rate)
    good &= ttft <= (math.inf if ttft_s is None else ttft_s)
    good &= tpot <= (math.inf if tpot_s is None else tpot_s)
    good &= numpy.isfinite(ttft) & numpy.isfinite(tpot)
    return float(rate[good].max()) if good.any() else 0.0


def assess(loaded: Loaded, plan: Candidate) -> Assessment:
    """A plan in full. Raises Impossible where it does not fit."""
    roles = roles_of(loaded, plan)
    state = state_of(loaded, roles)
    steps = {(role.name, kind): step for role in roles for kind, step in _steps(loaded, role, state).items()}
    found: dict[str, Errors] = {}
    for key, (_, sources) in steps.items():
        up, down = (_moved(roles, state_of(loaded, roles, {key: 1.0 + move})) for move in (MOVE, -MOVE))
        for name in up:
            slope = _slope(up[name], down[name])
            of = found.setdefault(name, {})
            for source, error in sources.items():
                of[source] = of.get(source, 0.0) + slope * error
    _add_engine(loaded, plan, found)
    return Assessment(plan, roles, state, {key: step for key, (step, _) in steps.items()}, found)


def _add_engine(loaded: Loaded, plan: Candidate, found: dict[str, Errors]) -> None:
    """What engines have shown beyond the errors of kernels, on models that no fit saw: the rest of that spread."""
    constants = loaded.question.host[plan.hw]
    for name, sources in found.items():
        shown = constants.spread["ttft" if name == "ttft_s" else "tpot"]
        sources["engine", constants.library] = math.sqrt(max(shown**2 - spread(sources) ** 2, 0.0))


def _moved(roles: list[Role], state: State) -> dict[str, float]:
    """The values whose errors are told."""
    of_roles = {role.name: capacity for role, capacity in zip(roles, state.capacities, strict=True)}
    found = {name: getattr(state, name) for name in ("ttft_s", "tpot_s", "capacity_per_s")}
    return {**found, **of_roles}


def _slope(up: float, down: float) -> float:
    """d ln(value)/d ln(time); 1 where the value vanishes or is without bound."""
    if not (0 < up < math.inf and 0 < down < math.inf):
        return 1.0
    return (math.log(up) - math.log(down)) / (math.log1p(MOVE) - math.log1p(-MOVE))


def _steps(loaded: Loaded, role: Role, state: State) -> dict[str, tuple[StepTime, Errors]]:
    """A decode iteration at the plan's batch and a chunk of a prompt, with the sources of their errors."""
    engine, work = role.engine, loaded.question.work
    hardware, calibration = engine.served.hardware, engine.calibration
    S = engine.draft_tokens + 1
    runs = {}
    if role.name != "prefill":
        n = max(round(state.sequences), 1)
        runs["decode"] = engine.kernels(Step(B=n, S=S, P=max(round(work.context) - S, 0), phase="decode"))
    if role.name != "decode":
        size = max(round(work.computed / float(role.curves.chunks[role.column, 0])), 1)
        runs["prompt"] = engine.kernels(Step(B=1, S=size, P=max(round(work.position - size / 2), 0), phase="prefill"))
    whose = calibration.id or hardware.name
    found = {}
    for kind, run in runs.items():
        sources = errors(expected(run, hardware, calibration), hardware)
        named = {(whose, *key): float(value) for key, value in sources.items()}
        found[kind] = (time_step(run, hardware, calibration), named)
    return found


def spread(sources: Errors) -> float:
    """Standard deviation of the logarithm from all sources together."""
    return math.sqrt(sum(error**2 for error in sources.values()))


def difference(one: Errors, other: Errors) -> Errors:
    """The errors of a ratio: what both feel alike cancels."""
    return {key: one.get(key, 0.0) - other.get(key, 0.0) for key in {**one, **other}}


def interval(value: float, sources: Errors) -> tuple[float, float]:
    """The 80 % interval around a value."""
    factor = math.exp(Z80 * spread(sources))
    return value / factor, value * factor
