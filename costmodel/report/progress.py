"""How far a long run is: a bar on stderr, where that is a terminal."""

import sys
import time

from costmodel.report.output import emit

AFTER_S = 1.0
WIDTH, NAME = 24, 44


class Progress:
    """A bar from the second second on; `total` is how many parts a run has that tells of each with `step`."""

    def __init__(self, total: int = 0) -> None:
        self.total, self.done, self.start, self.shown = total, 0, time.monotonic(), False

    def at(self, name: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts are done and the named one is at work."""
        if time.monotonic() - self.start < AFTER_S or not sys.stderr.isatty():
            return
        full = WIDTH * done // max(total, 1)
        emit(f"\r{'█' * full}{'░' * (WIDTH - full)} {done}/{total} {name[:NAME]:{NAME}s}", sys.stderr, end="")
        sys.stderr.flush()
        self.shown = True

    def step(self) -> None:
        """One more part is done."""
        self.done += 1
        self.at("", self.done, self.total)

    def close(self) -> None:
        """Wipe the line."""
        if self.shown:
            sys.stderr.write("\r" + " " * (WIDTH + NAME + 16) + "\r")
