"""The load that the options of a command describe: a trace, a rate, or a number of clients."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.planning.serving import REQUESTS_PER_CLIENT
from costmodel.planning.traffic import Lengths, Request, Trace, drawn, read_trace
from costmodel.units import parse_quantity

OPEN_REQUESTS = 10_000
"""Requests of an open load unless told: enough that 5 % too much load shows."""


class Load:
    """The requests of a question, as often as they are wanted: for each architecture and device anew."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        given = [name for name in ("trace", "rate", "concurrency") if inputs[name] is not None]
        if len(given) != 1:
            told = " and ".join(f"--{name}" for name in given) or "none of them"
            raise BadInput(f"the load is --trace FILE, --rate or --concurrency, one of them; given: {told}")
        self.inputs = inputs
        self.clients: int | None = inputs["concurrency"]
        self.trace: Trace | None = None
        if inputs["trace"] is not None:
            if inputs["input"] is not None or inputs["output"] is not None or inputs["prefix_hit"]:
                raise BadInput("--trace says lengths and prefixes itself; leave out --input, --output and --prefix-hit")
            self.trace = read_trace(Path(inputs["trace"]), skip=inputs["skip_bad_lines"])
            self.count = min(len(self.trace), inputs["requests"] or len(self.trace))
            self.longest = self.trace.longest[1]
            self._check_warmup()
            return
        for name in ("input", "output"):
            if inputs[name] is None:
                raise BadInput(f"--{name} is missing: tokens as 1k, 800..1k or lognormal:1k:0.6")
        self.lengths = Lengths.parse(inputs["input"], "--input"), Lengths.parse(inputs["output"], "--output")
        default = OPEN_REQUESTS if self.clients is None else REQUESTS_PER_CLIENT * self.clients + inputs["warmup"]
        self.count = inputs["requests"] or default
        self.longest = sum(map(_longest, self.lengths))
        self._check_warmup()

    def _check_warmup(self) -> None:
        if self.inputs["warmup"] >= self.count:
            raise BadInput(f"--warmup {self.inputs['warmup']} leaves none of {self.count} requests to measure")

    @property
    def has_prefixes(self) -> bool:
        """Whether any prompt begins with what is cached."""
        return self.inputs["prefix_hit"] > 0 if self.trace is None else self.trace.has_prefixes

    def requests(self) -> Iterable[Request]:
        """All of them, in order."""
        if self.trace is not None:
            return islice(self.trace, self.count)
        inputs = self.inputs
        return drawn(
            self.count,
            *self.lengths,
            rate=inputs["rate"],
            burstiness=inputs["burstiness"],
            hit_rate=inputs["prefix_hit"],
            seed=inputs["seed"],
        )

    def __str__(self) -> str:
        """The load in a few words."""
        if self.trace is not None:
            return f"{self.count:,} requests of {self.inputs['trace']}"
        lengths = f"{self.inputs['input']} + {self.inputs['output']} tokens"
        how = f"{self.clients} clients" if self.clients is not None else f"{self.inputs['rate']:g} requests/s"
        return f"{self.count:,} requests of {lengths}, {how}"


def _longest(lengths: Lengths) -> int:
    """The longest that a distribution draws, but for one in ten thousand."""
    if lengths.kind == "lognormal":
        return int(lengths.a * math.exp(3.7 * lengths.b)) + 1
    return int(max(lengths.a, lengths.b))


def seconds(text: str | None, field: str) -> float | None:
    """A time such as 2s, 30ms or "4 ms".

    >>> seconds("30ms", "--tpot"), seconds(None, "--ttft")
    (0.03, None)
    """
    if text is None:
        return None
    try:
        value = parse_quantity(text, "s")
    except BadInput:
        raise BadInput(f"{field} {text[:40]!r} is not a time: write 2s, 30ms or 4us") from None
    if value < 0:
        raise BadInput(f"{field} {text[:40]!r} is below 0")
    return value


def per_second(text: str | None) -> float | None:
    """Requests per second, written 10 or 10/s.

    >>> per_second("2.5/s")
    2.5
    """
    if text is None:
        return None
    try:
        value = float(text.removesuffix("/s"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e9:
        raise BadInput(f"--rate {text[:40]!r} is not a number of requests per second above 0, such as 10 or 10/s")
    return value
