"""Token-wise communication of an engine's iterations that is meant to hide behind their computation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from costmodel.kernels.base import Kernel
from costmodel.overlap import computing, held_parts, hidden_parts, shown, unhidden


class OfTokens(Protocol):
    """A function of the tokens of an iteration."""

    def at(self, x: float) -> float:
        """Its value at so many tokens."""


class Behind(NamedTuple):
    """What is meant to hide, by tokens.

    short: its seconds beyond those of the token-wise computation (negative: fewer). held: seconds that it costs
    computation by the processors that it holds.
    """

    short: OfTokens
    held: OfTokens

    def shown(self, tokens: float, others_s: float) -> float:
        """Seconds that show all the same beside so many seconds of other computation."""
        return float(shown(self.short.at(tokens), others_s, self.held.at(tokens)))


def short_and_held(run: Sequence[Kernel], seconds: Callable[[Sequence[Kernel]], Any]) -> tuple[Any, Any] | None:
    """The values of `Behind` for kernels of an iteration; None where none is meant to hide."""
    behind = hidden_parts(run)
    if not behind:
        return None
    return seconds(unhidden(behind)) - seconds(computing(run)), seconds(held_parts(run))
