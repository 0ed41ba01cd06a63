"""A run as a timeline that Perfetto (ui.perfetto.dev) opens: the Chrome trace format, times in microseconds.

Source: "Trace Event Format", Google, 2016: complete events (X), counters (C), asynchronous spans (b, e), metadata (M).
"""

import json
from typing import Any

MOST_EVENTS = 200_000
"""What a viewer loads within seconds; a longer run is cut off there, and the file says so."""


REQUESTS, FIRST_ENGINE = 1, 2
"""Process numbers of the tracks: 0 would be the idle process."""


class Timeline:
    """Events of a run: a track of iterations for each engine, a counter of its sequences, a span for each request."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.cut_s: float | None = None

    def _add(self, event: dict[str, Any], begin: float) -> None:
        if len(self.events) < MOST_EVENTS:
            self.events.append(event)
        elif self.cut_s is None:
            self.cut_s = begin

    def engine(self, number: int, name: str) -> None:
        """Name the track of an engine."""
        self._add({"ph": "M", "pid": FIRST_ENGINE + number, "name": "process_name", "args": {"name": name}}, 0.0)

    def iterations(self, number: int, begin: float, seconds: float, decoding: int, count: int, new: int) -> None:
        """`count` iterations of so many decoding sequences, and so many new tokens of prompts."""
        parts = [f"decode {decoding} × {count}"] if count else []
        parts += [f"prefill {new}"] if new else []
        arguments = {"decoding": decoding, "iterations": count, "prompt tokens": new}
        self._add(
            {
                "ph": "X",
                "pid": FIRST_ENGINE + number,
                "tid": 0,
                "ts": begin * 1e6,
                "dur": seconds * 1e6,
                "name": " + ".join(parts),
                "args": arguments,
            },
            begin,
        )

    def counters(self, number: int, now: float, waiting: int, running: int) -> None:
        """Requests that wait and run on an engine."""
        values = {"waiting": waiting, "running": running}
        self._add({"ph": "C", "pid": FIRST_ENGINE + number, "ts": now * 1e6, "name": "requests", "args": values}, now)

    def request(self, index: int, sent: float, first: float, last: float, counts: tuple[int, int]) -> None:
        """A request: the wait for its first token, then the others."""
        shared = {"cat": "request", "id": index, "pid": REQUESTS, "tid": 0}
        arguments = {"input": counts[0], "output": counts[1]}
        for name, begin, end in (("first token", sent, first), ("other tokens", first, last)):
            self._add({**shared, "ph": "b", "ts": begin * 1e6, "name": name, "args": arguments}, begin)
            self._add({**shared, "ph": "e", "ts": end * 1e6, "name": name}, begin)

    def to_json(self) -> str:
        """The file's text."""
        cut = {} if self.cut_s is None else {"cut_off_at_s": self.cut_s}
        requests = {"ph": "M", "pid": REQUESTS, "name": "process_name", "args": {"name": "requests"}}
        return json.dumps({"traceEvents": [requests, *self.events], "displayTimeUnit": "ms", "otherData": cut})
