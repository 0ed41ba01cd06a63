"""Requests in line at an engine: those that it knows of, and those that came since it last looked.

Some engines look for requests only every so many iterations while sequences decode, some schedule an iteration while
the one before it runs, and some let prompts wait for others that join them.
"""

from collections import deque

from costmodel.planning.engine import Engine, Sequence


class Waiting:
    """The line. known: requests that may start, the first of them first; unseen: those that came since the engine last
    looked; seen: those that it saw when the next iteration was scheduled already."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.known: deque[Sequence] = deque()
        self.unseen: deque[Sequence] = deque()
        self.seen: deque[Sequence] = deque()
        self.looks = engine.poll_iterations > 1 or engine.ahead
        self.looked = 0
        """Iteration at which it did."""
        self.gathering_since: int | None = None

    def __len__(self) -> int:
        return len(self.known) + len(self.seen) + len(self.unseen)

    def look(self, iteration: int, decoding: int, prefilling: bool) -> None:
        """See the requests that came, when it is time to: every so many iterations, and after every prompt.

        Where iterations are scheduled ahead, those seen now join the iteration after the next one.
        """
        every = self.engine.poll_iterations
        self.known.extend(self.seen)
        self.seen.clear()
        if not decoding or prefilling:
            self.looked = iteration
        passed = iteration - self.looked
        if passed % every == 0:
            late = self.engine.ahead and (decoding or prefilling)
            (self.seen if late else self.known).extend(self.unseen)
            self.unseen.clear()
        self.looked += passed - passed % every

    def until_look(self, iteration: int, least: int) -> int:
        """Iterations from now to the first look after at least so many of them."""
        every = self.engine.poll_iterations
        passed = iteration - self.looked
        return -(-(passed + least) // every) * every - passed

    def gathers(self, iteration: int, decoding: int) -> bool:
        """Whether prompts still wait for others to join them."""
        most = self.engine.gather_iterations
        if not most:
            return False
        if not decoding or sum(sequence.target for sequence in self.known) >= self.engine.gather_tokens:
            self.gathering_since = None
        elif self.gathering_since is None:
            self.gathering_since = iteration
        elif iteration - self.gathering_since >= most:
            self.gathering_since = None
            return False
        return self.gathering_since is not None

    def most(self, iteration: int, iterations: int) -> int:
        """So many of these iterations pass before somebody in line has to be thought of."""
        if self.seen:
            iterations = 1
        elif self.unseen:
            iterations = min(iterations, self.until_look(iteration, 1))
        if self.gathering_since is not None:
            iterations = min(iterations, self.gathering_since + self.engine.gather_iterations - iteration)
        return iterations
