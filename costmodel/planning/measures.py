"""What a run showed: latencies, throughput, goodput, queue and cache over time, and whether the load is sustainable."""

import math
from collections.abc import Sequence as SequenceOf
from typing import Any, NamedTuple

from costmodel.planning.engine import Sequence
from costmodel.planning.histogram import MOST_SAMPLES, Course, LogHistogram
from costmodel.planning.scheduler import Replica

CHANCE = 3.0
"""Standard deviations by which a queue must grow before it counts as more than chance."""


class ServiceLevel(NamedTuple):
    """Most seconds to the first token, and per token after it; None: any."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def holds(self, ttft_s: float, tpot_s: float | None) -> bool:
        """Whether a request was served well. One with a single token has no time per token."""
        first = self.ttft_s is None or ttft_s <= self.ttft_s
        return first and (self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s)


class Measures:
    """Everything measured, while it happens. Times in seconds; latencies as clients see them.

    TTFT: from sending a request to its first token. TPOT: (last token − first token) / (tokens − 1). ITL: from one
    iteration's token to the next one's. Requests with an index below `warmup` are served but not measured.
    """

    def __init__(self, level: ServiceLevel | None = None, warmup: int = 0) -> None:
        self.level, self.warmup = level, warmup
        self.ttft, self.tpot, self.itl, self.e2e = (LogHistogram() for _ in range(4))
        self.arrivals = self.answered = self.measured = self.good = 0
        self.input_tokens = self.output_tokens = 0
        self.decoded = self.prefilled = self.iterations = 0
        self.busy_s = 0.0
        self.first_s, self.last_s, self.end_s = math.inf, 0.0, 0.0
        self.line = Course(("waiting", "in_flight"), interval=1.0)
        self.answered_s: list[float] = []
        """When every `stride`-th request was answered."""
        self.stride = 1
        self.first_arrival_s = self.last_arrival_s = 0.0
        self.squares = 0.0
        self.gave_up = self.closed = False
        self.capacity_per_s: float | None = None
        """Requests per second that the engines can answer at most, where it was asked for."""
        self.rate_per_s: float | None = None
        """Requests per second that were meant to arrive, where they were drawn at a rate."""
        self.preemptions = self.recomputed = 0
        self.engines: list[list[dict[str, Any]]] = []

    def arrived(self, sequence: Sequence, waiting: int, in_flight: int) -> None:
        """A request is there, on its own time; so many were waiting, and under way, before it."""
        if not self.arrivals:
            self.first_arrival_s = sequence.sent_s
        else:
            self.squares += (sequence.sent_s - self.last_arrival_s) ** 2
        self.last_arrival_s = sequence.sent_s
        self.line.add(self.arrivals, 1.0, waiting, in_flight)
        self.arrivals += 1

    def worked(self, seconds: float, decoding: int, iterations: int, new: int) -> None:
        """An engine was busy for so long."""
        self.busy_s += seconds
        self.iterations += iterations or 1
        self.decoded += decoding * iterations
        self.prefilled += new

    def first_token(self, sequence: Sequence, now: float) -> None:
        """A client has its first token."""
        if sequence.index >= self.warmup:
            self.ttft.add(now - sequence.sent_s)

    def completed(self, sequence: Sequence, now: float) -> None:
        """A client has its last token."""
        if not self.answered % self.stride:
            self.answered_s.append(now)
            if len(self.answered_s) > MOST_SAMPLES:
                self.answered_s, self.stride = self.answered_s[::2], 2 * self.stride
        self.answered += 1
        if sequence.index < self.warmup:
            return
        request = sequence.request
        self.measured += 1
        self.input_tokens += request.input
        self.output_tokens += request.output
        self.first_s, self.last_s = min(self.first_s, sequence.sent_s), now
        self.e2e.add(now - sequence.sent_s)
        tpot = None
        if request.output > 1:
            tpot = (now - sequence.first_s) / (request.output - 1)
            self.tpot.add(tpot)
        if self.level is not None and self.level.holds(sequence.first_s - sequence.sent_s, tpot):
            self.good += 1

    def close(self, now: float, replicas: SequenceOf[Replica], closed: bool) -> None:
        """The run is over."""
        self.end_s, self.closed = now, closed
        self.preemptions = sum(replica.preemptions for replica in replicas)
        self.recomputed = sum(replica.recomputed for replica in replicas)
        self.engines = [replica.course.samples() for replica in replicas]

    @property
    def window_s(self) -> float:
        """From the first measured request's sending to the last one's end."""
        return self.last_s - self.first_s if self.measured else 0.0

    @property
    def arrival_rate(self) -> float | None:
        """Requests per second that arrived; None where they came all at once."""
        spent = self.last_arrival_s - self.first_arrival_s
        return (self.arrivals - 1) / spent if spent > 0 else None

    @property
    def growth(self) -> float:
        """Requests by which the line grew for each that arrived, 0 where chance explains it.

        Compared are the means of the middle and the last third of the arrivals. Chance is a random walk of as many
        arrivals as a third, with the variation that their gaps have. Requests under way count too, once arrivals last
        long enough to tell a line from a batch that fills.
        """
        rows, rate = self.line.samples(), self.arrival_rate
        if self.closed or rate is None or len(rows) < 9:
            return 0.0
        third = len(rows) // 3
        gaps = self.arrivals - 1
        variation = max(self.squares * rate**2 / gaps - 1.0, 0.0)
        chance = CHANCE * math.sqrt(max(variation, 0.1) * self.arrivals / 3)
        long = self.e2e.mean is not None and (gaps / rate) > 6 * self.e2e.mean
        for key in ("waiting", "in_flight") if long else ("waiting",):
            middle, last = (
                sum(row[key] for row in part) / len(part) for part in (rows[third : 2 * third], rows[2 * third :])
            )
            if last - middle > chance:
                return (last - middle) / (self.arrivals / 3)
        return 0.0

    @property
    def overloaded(self) -> bool:
        """Whether more requests arrive than the engines can answer; of a trace, if it lasts long enough to tell."""
        rate, limit = self.arrival_rate, self.capacity_per_s
        if self.closed or rate is None or limit is None:
            return False
        if self.rate_per_s is not None:
            return self.rate_per_s > limit
        return self.e2e.mean is not None and rate > limit and self.arrivals > 2 * self.e2e.mean * limit

    @property
    def saturated(self) -> bool:
        """Whether the queue grows without bound: then latencies say only how long the run was."""
        return self.gave_up or self.overloaded or self.growth > 0

    def rate_between(self, first: float, last: float) -> float:
        """Answers per second from one share of all answers to another."""
        places = len(self.answered_s) - 1
        begin, end = int(first * places), int(last * places)
        return (end - begin) * self.stride / (self.answered_s[end] - self.answered_s[begin])

    def latencies(self) -> dict[str, dict[str, float | None]]:
        """Mean and percentiles of each latency; nothing where the load is not sustained."""
        found = {"ttft_s": self.ttft, "tpot_s": self.tpot, "itl_s": self.itl, "e2e_s": self.e2e}
        if self.saturated:
            return {name: dict.fromkeys(values.summary()) for name, values in found.items()}
        return {name: values.summary() for name, values in found.items()}
