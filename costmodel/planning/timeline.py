"""A run as a timeline that Perfetto (ui.perfetto.dev) opens: the Chrome trace format, times in microseconds.

Events are written as they come, so that a run of any length needs no memory for them.

Source: "Trace Event Format", Google, 2016: complete events (X), counters (C), asynchronous spans (b, e), metadata (M).
"""

import json
from collections.abc import Callable
from typing import Any

MOST_EVENTS = 200_000
"""What a viewer loads within seconds; a longer run is cut off there, and the file says so."""


REQUESTS, FIRST_ENGINE = 1, 2
"""Process numbers of the tracks: 0 would be the idle process."""


class Timeline:
    """Events of a run: a track of iterations for each engine, a counter of its sequences, a span for each request.

    write: takes the file's text piece by piece, from its head until `close`.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._count = write, 0
        self.cut_s: float | None = None
        write('{"traceEvents": [\n')
        self._add(0.0, {"ph": "M", "pid": REQUESTS, "name": "process_name", "args": {"name": "requests"}})

    def _add(self, begin: float, *events: dict[str, Any]) -> None:
        """Write events that belong together, or none of them."""
        if self.cut_s is not None:
            return
        if self._count + len(events) > MOST_EVENTS:
            self.cut_s = begin
            return
        for event in events:
            self._write((",\n" if self._count else "") + json.dumps(event))
            self._count += 1

    def close(self) -> None:
        """Write the end of the file."""
        cut = {} if self.cut_s is None else {"cut_off_at_s": self.cut_s}
        self._write(f'],\n"displayTimeUnit": "ms", "otherData": {json.dumps(cut)}}}\n')

    def engine(self, number: int, name: str) -> None:
        """Name the track of an engine."""
        self._add(0.0, {"ph": "M", "pid": FIRST_ENGINE + number, "name": "process_name", "args": {"name": name}})

    def iterations(self, number: int, begin: float, seconds: float, decoding: int, count: int, new: int) -> None:
        """`count` iterations of so many decoding sequences, and so many new tokens of prompts."""
        parts = [f"decode {decoding} × {count}"] if count else []
        parts += [f"prefill {new}"] if new else []
        arguments = {"decoding": decoding, "iterations": count, "prompt tokens": new}
        event = {"ph": "X", "pid": FIRST_ENGINE + number, "tid": 0, "ts": begin * 1e6, "dur": seconds * 1e6}
        self._add(begin, {**event, "name": " + ".join(parts), "args": arguments})

    def counters(self, number: int, now: float, waiting: int, running: int) -> None:
        """Requests that wait and run on an engine."""
        values = {"waiting": waiting, "running": running}
        self._add(now, {"ph": "C", "pid": FIRST_ENGINE + number, "ts": now * 1e6, "name": "requests", "args": values})

    def request(self, index: int, sent: float, first: float, last: float, counts: tuple[int, int]) -> None:
        """A request: the wait for its first token, then the others."""
        shared = {"cat": "request", "id": index, "pid": REQUESTS, "tid": 0}
        arguments = {"input": counts[0], "output": counts[1]}
        self._add(
            sent,
            *(
                event
                for name, begin, end in (("first token", sent, first), ("other tokens", first, last))
                for event in (
                    {**shared, "ph": "b", "ts": begin * 1e6, "name": name, "args": arguments},
                    {**shared, "ph": "e", "ts": end * 1e6, "name": name},
                )
            ),
        )
