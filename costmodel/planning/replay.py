"""Requests meet engines: an event replay of a deployment, deterministic by seed.

Events are arrivals, ends of iterations, and ends of transfers, in a heap by time. Of every request only what is under
way is kept; latencies go to histograms, so that memory does not grow with the number of requests.
"""

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from costmodel.errors import BadInput, unknown
from costmodel.planning.engine import Engine, Sequence
from costmodel.planning.measures import Measures, ServiceLevel
from costmodel.planning.scheduler import Replica
from costmodel.planning.timeline import Timeline
from costmodel.planning.traffic import Request

ROUTINGS = ("round-robin", "least-loaded")
MOST_WAITING = 200_000
"""Requests in line from which a load counts as unsustainable without waiting for its end."""


class Deployment(NamedTuple):
    """Engines and how requests reach them.

    replicas of `engine`; or, with `prefill` given, that many engines that prefill and `replicas` of `engine` that
    decode, with caches sent at link_bandwidth bytes per second (one transfer at a time from each) after link_s seconds.
    front_end_s: on the way between a client and the engine's queue, both ways together, on average; each request draws
    its own (exponential). It passes between an answer's last token and the engine's sight of the client's next request,
    too. devices: accelerators of all engines together.
    """

    engine: Engine
    replicas: int = 1
    routing: str = "round-robin"
    prefill: Engine | None = None
    prefill_replicas: int = 1
    link_bandwidth: float = 50e9
    link_s: float = 0.0
    front_end_s: float = 0.0
    devices: int = 1


def replay(
    deployment: Deployment,
    requests: Iterable[Request],
    *,
    clients: int | None = None,
    warmup: int = 0,
    level: ServiceLevel | None = None,
    timeline: Timeline | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Measures:
    """Serve the requests. clients: so many send the next request when their last is answered, whatever its arrival
    time says; None: requests arrive when they say.

    warmup: the first so many requests are served but not measured. level: what counts as good. progress: is called with
    the number of completed requests now and then. Raises Impossible for a request that no engine could hold.
    """
    if deployment.routing not in ROUTINGS:
        raise unknown("routing", deployment.routing, ROUTINGS)
    counts = (deployment.replicas, deployment.prefill_replicas, clients)
    for name, count in zip(("replicas", "prefill replicas", "clients"), counts, strict=True):
        if count is not None and not 1 <= count <= 100_000:
            raise BadInput(f"{name} {count} is outside 1 to 100000")
    run = _Run(deployment, iter(requests), clients, Measures(level, warmup), timeline, seed, progress)
    return run.finish()


class _Run:
    def __init__(
        self,
        deployment: Deployment,
        requests: Any,
        clients: int | None,
        measures: Measures,
        timeline: Timeline | None,
        seed: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.deployment, self.requests, self.clients = deployment, requests, clients
        self.measures, self.timeline, self.progress = measures, timeline, progress
        self.now, self.sent, self.pushed, self.waiting = 0.0, 0, 0, 0
        self.events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self.touched: dict[Replica, None] = {}
        self.links: dict[Replica, float] = {}
        self.turns: dict[str, int] = {"front": 0, "decode": 0}
        self.ways = random.Random(seed)

        generator = random.Random(seed)

        def engines(engine: Engine, count: int, role: str) -> list[Replica]:
            return [Replica(engine, self, measures.itl, generator, role) for _ in range(count)]

        split = deployment.prefill is not None
        self.decoders = engines(deployment.engine, deployment.replicas, "decode" if split else "both")
        self.front = self.decoders
        if deployment.prefill is not None:
            self.front = engines(deployment.prefill, deployment.prefill_replicas, "prefill")
        self.replicas = [*self.front, *self.decoders] if split else self.decoders
        self.number = {replica: index for index, replica in enumerate(self.replicas)}
        for replica, index in self.number.items():
            if timeline is not None:
                timeline.engine(index, f"engine {index}" + (f" ({replica.role})" if split else ""))

    def finish(self) -> Measures:
        """Run to the end."""
        for _ in range(self.clients or 1):
            self._next(0.0)
        events = self.events
        while not self.measures.gave_up:
            # What happens at one moment is known before anything begins: answers and the requests that follow them.
            while events and events[0][0] <= self.now:
                _, _, happen, of = heapq.heappop(events)
                happen(of)
            for replica in self.touched:
                self._begin(replica)
            self.touched.clear()
            if not events:
                break
            self.now = events[0][0]
        self.measures.close(self.now, self.replicas, closed=self.clients is not None)
        return self.measures

    def _push(self, time: float, happen: Callable[[Any], None], of: Any) -> None:
        self.pushed += 1
        heapq.heappush(self.events, (time, self.pushed, happen, of))

    def _next(self, now: float) -> None:
        """The next request is sent: now, or when it says."""
        request = next(self.requests, None)
        if request is None:
            return
        sequence = Sequence(request, self.sent, now if self.clients is not None else request.arrival_s)
        self.sent += 1
        if self.clients is not None:
            self._send(sequence)
        else:
            self._push(sequence.sent_s, self._send, sequence)

    def _send(self, sequence: Sequence) -> None:
        if self.clients is None:
            self._next(self.now)
            in_flight = sum(replica.load for replica in self.replicas)
            line = sum(replica.line for replica in self.replicas)
            self.measures.arrived(sequence, line, in_flight)
            self.measures.gave_up = line > MOST_WAITING
        # Tokens reach the client later too. On its clock, set back by that, the whole way lies before the queue.
        if self.deployment.front_end_s:
            way = self.deployment.front_end_s * self.ways.expovariate(1.0)
            self._push(self.now + way, self._arrive, sequence)
        else:
            self._arrive(sequence)

    def _arrive(self, sequence: Sequence) -> None:
        self._submit(self._route(self.front, "front"), sequence)

    def _route(self, replicas: list[Replica], side: str) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        if self.deployment.routing == "least-loaded":
            return min(replicas, key=lambda replica: replica.load)
        self.turns[side] += 1
        return replicas[(self.turns[side] - 1) % len(replicas)]

    def _submit(self, replica: Replica, sequence: Sequence) -> None:
        if replica.submit(sequence, self.now) or not replica.busy:
            self._wake(replica)

    def _wake(self, replica: Replica) -> None:
        """Let the engine decide anew: at once when it is idle, else after the iteration that runs now."""
        if not replica.busy:
            self.touched[replica] = None
        else:
            replica.version += 1
            self._push(max(replica.interrupt(self.now), self.now), self._end, (replica, replica.version))

    def _begin(self, replica: Replica) -> None:
        if replica.busy:
            return
        end = replica.begin_span(self.now)
        if end is not None:
            replica.busy = True
            replica.version += 1
            self._push(end, self._end, (replica, replica.version))

    def _end(self, of: tuple[Replica, int]) -> None:
        replica, version = of
        if version == replica.version:
            replica.busy = False
            replica.end_span(self.now)
            self.touched[replica] = None

    def span(self, replica: Replica, begin: float, seconds: float, decoding: int, iterations: int, new: int) -> None:
        self.measures.worked(seconds, decoding, iterations, new)
        if self.timeline is not None:
            number = self.number[replica]
            self.timeline.iterations(number, begin, seconds, decoding, iterations, new)
            self.timeline.counters(number, begin, replica.line, len(replica.active))

    def prefilled(self, replica: Replica, sequence: Sequence, now: float) -> None:
        """The cache goes to an engine that decodes, behind those that this engine sends already."""
        size = replica.engine.cache.bytes(sequence.target)
        free = max(now, self.links.get(replica, 0.0)) + size / self.deployment.link_bandwidth
        self.links[replica] = free
        self._push(free + self.deployment.link_s, self._transferred, (replica, sequence))

    def _transferred(self, of: tuple[Replica, Sequence]) -> None:
        """The decoding side has the cache and, with it, the first token, which the client gets."""
        replica, sequence = of
        replica.release(sequence)
        self._wake(replica)
        sequence.first_s = sequence.last_s = self.now
        self.first_token(sequence, self.now)
        sequence.left -= 1
        if sequence.left:
            self._submit(self._route(self.decoders, "decode"), sequence)
        else:
            self.completed(sequence, self.now)

    def first_token(self, sequence: Sequence, now: float) -> None:
        sequence.first_s = now
        self.measures.first_token(sequence, now)

    def completed(self, sequence: Sequence, now: float) -> None:
        self.measures.completed(sequence, now)
        if self.timeline is not None:
            counts = (sequence.request.input, sequence.request.output)
            self.timeline.request(sequence.index, sequence.sent_s, sequence.first_s, now, counts)
        if self.clients is not None:
            self._next(now)
        if self.progress is not None and self.measures.answered % 256 == 0:
            self.progress(self.measures.answered)
