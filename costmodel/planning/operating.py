"""Where an engine works: TTFT, TPOT and requests per second for every number of sequences that it keeps under way.

n sequences are in the engine. A prompt takes its chunks through iterations that the n − 1 others share, and every
prompt that comes while a sequence gets its tokens adds its own to that:

    own = chunks · alone + added,  passing = decode · (output − 1)/pace + prompts · added,  rate = n/(own + passing).

Of n clients that wait for their answers, the n − 1 others come once each in that time. Open arrivals come at their
rate whatever the engine does, rate · passing of them, and meet n sequences, not n − 1.

With open arrivals a request also waits for the prompts before it (Pollaczek and Khinchine's mean of a single server)
and, where the engine's places are nearly all taken, for a place (Sakasegawa's approximation for many servers). Both
grow without bound towards saturation. Clients that wait for their answers leave no such queue.

Source: Sakasegawa, "An approximation formula L_q ≃ α·ρ^β/(1 − ρ)", Ann. Inst. Stat. Math. 29 (1977); Kleinrock,
"Queueing Systems", volume 1, section 5.7.
"""

from typing import NamedTuple

import numpy

from costmodel.planning.curves import Curves, between
from costmodel.planning.engine_model import Array, EngineModel
from costmodel.planning.side_by_side import Indices
from costmodel.planning.workload import Workload

FULL = 1.0 - 1e-9
"""Share of its time from which a server counts as never free: rounding leaves a little of one that never is."""


class Operating(NamedTuple):
    """Engines, by chunk budget and batch size n: the last axes, as of `Curves`.

    ttft_s, tpot_s: means in seconds. rate: requests per second of the engine. prefill_share: of the engine's time that
    prompts take. base_s: of the TTFT, what is no waiting; line_s, place_s: waiting for prompts before and for a place,
    per unit of (variation of arrivals + variation of service)/2.
    """

    n: Array
    ttft_s: Array
    tpot_s: Array
    rate: Array
    prefill_share: Array
    base_s: Array
    line_s: Array
    place_s: Array

    def e2e_s(self, output: float) -> Array:
        """Seconds from sending a request to its last token."""
        return self.ttft_s + self.tpot_s * (output - 1.0)


class Running(NamedTuple):
    """The same engines before anybody waits: own_s: seconds in which a prompt takes its chunks; passing_s: in which a
    sequence gets its tokens; served_s: both; rate: requests per second."""

    own_s: Array
    passing_s: Array
    served_s: Array
    rate: Array

    def of(self, some: Indices) -> "Running":
        """Those of some engines."""
        return Running(*(values[some] for values in self))

    def tpot_s(self, output: float) -> Array:
        """Mean seconds of a token, of answers of so many."""
        return tpot_s(self.passing_s, output)


def tpot_s(passing_s: Array, output: float) -> Array:
    """Mean seconds of a token of so many that a sequence gets in some time."""
    return passing_s / max(output - 1.0, 1.0) if output > 1 else numpy.zeros_like(passing_s)


def running(model: EngineModel, work: Workload, found: Curves) -> Running:
    """Engines that prefill and decode; model: one of them."""
    n, decode = found.n[..., None, :], found.decode[..., None, :]
    iterations = (work.output - 1.0) / model.pace
    if work.gap_variation > 0:
        gaps = numpy.maximum(found.n[..., 1:] - found.n[..., :-1], 1.0)
        more = between(found.decode[..., :-1], found.decode[..., 1:], 1.0 / gaps)
        met = numpy.concatenate([more, found.decode[..., -1:]], axis=-1)[..., None, :]
        own = found.chunks * decode
        own += found.added
        passing = _passing(met * iterations, n, found.added, own)
    else:
        own = found.chunks * found.alone[..., None, :]
        own += found.added
        passing = (n - 1.0) * found.added
        passing += decode * iterations
    served = own + passing
    return Running(own, passing, served, n / served)


def operating(
    model: EngineModel,
    work: Workload,
    found: Curves,
    places: Array,
    engines: Array | int = 1,
    run: Running | None = None,
) -> Operating:
    """Engines that prefill and decode; model: one of them. places: sequences that each can have under way, by budget.
    engines: among so many arrivals are dealt out in turn, which makes those of each more regular. run: of the same."""
    run = running(model, work, found) if run is None else run
    n, iterations = found.n[..., None, :], (work.output - 1.0) / model.pace
    # A prompt that finds an iteration under way waits for half of it.
    busy = numpy.minimum((n - 1.0) / numpy.maximum(iterations, 1.0), 1.0)
    residual = (found.alone[..., None, :] + found.added / found.chunks * busy) / 2
    base = least_ttft_s(model, run) + residual
    in_line, for_place = line(run.rate, run.own_s), places_wait(n, places[..., None], run.served_s)
    ttft = base + waits(work, in_line, for_place, numpy.asarray(engines)[..., None, None])
    # Of a chunk that takes forever, no share is a number either.
    with numpy.errstate(invalid="ignore"):
        share = n * found.added / run.served_s
    return Operating(found.n, ttft, run.tpot_s(work.output), run.rate, share, base, in_line, for_place)


def least_ttft_s(model: EngineModel, run: Running) -> Array:
    """Seconds to the first token of a prompt that never waits."""
    return _front_s(model) + run.own_s


def waits(work: Workload, line_s: Array, place_s: Array, engines: Array | float) -> Array:
    """Mean seconds of waiting, where arrivals are dealt out in turn among so many engines, which makes those of each
    more regular. Clients that wait for their answers leave no queue."""
    if work.gap_variation == 0:
        return numpy.zeros_like(line_s)
    arrivals = work.gap_variation / engines
    return line_s * (arrivals + work.input_variation) / 2 + place_s * (arrivals + work.output_variation) / 2


def _front_s(model: EngineModel) -> float:
    """From the client to the queue, without waiting."""
    return model.served.host.front_end_s


def _passing(decoding: Array, n: Array, added: Array, own: Array) -> Array:
    """The p that solves p = decoding + prompts · p/(own + p): all n prompts of a stay, the part that falls into p."""
    # A chunk that decoding sequences leave no room for takes forever: ∞ − ∞ is no number, and such points are dropped.
    with numpy.errstate(invalid="ignore"):
        rest = n * added
        rest += decoding
        rest -= own
        root = 4.0 * decoding * own
        root += rest * rest
        rest += numpy.sqrt(root, out=root)
    rest *= 0.5
    return rest


class Prefilling(NamedTuple):
    """Engines that only prefill: mean seconds to the first token, and requests per second of each."""

    ttft_s: Array
    rate: Array


def prefilling(
    model: EngineModel, work: Workload, own_s: Array, load: Array, send_s: Array | float, engines: Array | int
) -> Prefilling:
    """Engines that only prefill, at shares of their time that prompts take, element by element; model: one of them.
    own_s: of a prompt. send_s: of a cache. engines: how many there are of each."""
    rate = load / own_s
    wait = waits(work, line(rate, own_s), numpy.zeros_like(rate), engines)
    return Prefilling(_front_s(model) + own_s + send_s + wait, rate)


def decoding(model: EngineModel, work: Workload, found: Curves, places: Array) -> Operating:
    """Engines that only decode; model: one of them. Chunk budgets do not matter, so there is one."""
    n, decode = found.n[..., None, :], found.decode[..., None, :]
    served = decode * (work.output - 1.0) / model.pace
    zero, wait = numpy.zeros_like(served), numpy.zeros_like(served)
    if work.gap_variation > 0:
        # Prefill engines hand caches over at odd times: as varied as Poisson arrivals at most.
        variation = min(work.gap_variation, 1.0) + work.output_variation
        wait = places_wait(n, places[..., :1, None], served) * variation / 2
    tpot = (served + wait) / max(work.output - 1.0, 1.0)
    return Operating(found.n, zero, tpot, n / numpy.maximum(served, 1e-12), zero, zero, zero, zero)


def line(rate: Array, each_s: Array) -> Array:
    """Mean seconds in the line before one server, over (c_a² + c_s²)/2: ρ/(1 − ρ)·s; infinite from ρ = 1 on."""
    with numpy.errstate(invalid="ignore", divide="ignore"):
        used = rate * each_s
        return numpy.where(used < FULL, used / (1.0 - used) * each_s, numpy.inf)


def places_wait(n: Array, places: Array, each_s: Array) -> Array:
    """Mean seconds until one of so many places is free, n of them being taken on average, over (c_a² + c_s²)/2."""
    used = n / numpy.maximum(places, 1.0)
    power = used ** (numpy.sqrt(2.0 * (places + 1.0)) - 1.0)
    with numpy.errstate(invalid="ignore", divide="ignore"):
        wait = power / (places * (1.0 - used)) * each_s
    return numpy.where(used < FULL, wait, numpy.inf)


def settled(rate: float, at: Operating, column: int) -> float:
    """The sequences that an engine has under way at a rate of its own, between 0 and the most that it can.

    Below one sequence, rate times the time of a request alone (Little's law).
    """
    rates = at.rate[column]
    good = numpy.isfinite(rates)
    rising = numpy.maximum.accumulate(numpy.where(good, rates, 0.0))
    if rate <= rising[0]:
        return float(rate / rising[0] * at.n[0])
    return float(numpy.interp(rate, rising, at.n))


def at_point(values: Array, at: Operating, column: int, n: float) -> float:
    """A measure at a number of sequences between those that were evaluated."""
    return float(numpy.interp(n, at.n, values[column]))
