"""A run's timeline, kept instead of written to a file."""

import json
from typing import Any

from costmodel.planning.timeline import Timeline


class RecordedTimeline(Timeline):
    """Its events so far, and the whole text of its file."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        super().__init__(self.pieces.append)

    @property
    def events(self) -> list[dict[str, Any]]:
        return json.loads(self.text())["traceEvents"]

    def text(self) -> str:
        kept = list(self.pieces)
        self.close()
        whole, self.pieces[:] = "".join(self.pieces), kept
        return whole
