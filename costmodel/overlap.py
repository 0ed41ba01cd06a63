"""Communication behind computation: how much of what is meant to hide does.

A share of each exchange is meant to pass behind computation. It can only where there is computation to pass behind: of
H seconds that should hide and C seconds of computation, max(H − C, 0) show. Kernels that exchange may also hold
processors meanwhile: computation then runs on the rest, and H seconds in which a share h of the processors is taken
cost it h·H seconds. Both add up to

    T = exposed + max(C + h·H, H) = exposed + C + max(H − C, h·H)

over a whole step: which exchange passes behind which kernel is not asked, and exchanges follow one another, whichever
links they use.

Source: deepseek-ai/profile-data, README (two micro-batches; exchanges of prefill occupy SMs, those of decode do not);
deepseek-ai/DeepEP, docs/legacy.md (set_num_sms; receiving hooks without SMs); lmsys.org/blog/2025-05-05-large-scale-ep
(kernels that are slower beside communication).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import NamedTuple

from costmodel.algebra import Quantity, maximum
from costmodel.kernels.base import Kernel

EXCHANGE = "collective"
"""The family of kernels that communicate: behind anything else, communication may hide."""


def is_meant_to_hide(kernel: Kernel) -> bool:
    """Whether a share of the kernel's time is meant to pass behind others."""
    return not (isinstance(kernel.hidden, int | float) and kernel.hidden == 0)


def exposed_parts(kernels: Iterable[Kernel]) -> list[Kernel]:
    """The kernels without what is meant to hide."""
    return [kernel._replace(count=kernel.exposed, hidden=0.0, holds=0.0) for kernel in kernels]


def hidden_parts(kernels: Iterable[Kernel]) -> list[Kernel]:
    """What is meant to hide of the kernels, and nothing else of them."""
    return [
        kernel._replace(count=kernel.count * kernel.hidden, hidden=1.0)
        for kernel in kernels
        if is_meant_to_hide(kernel)
    ]


class InParts(NamedTuple):
    """Seconds of a part of a step. Those of all parts add up, and only then say how much of it shows (`total`).

    exposed: of what is not meant to hide; short: of what is, beyond those of computation; held: that it costs
    computation by the processors that it holds.
    """

    exposed: Quantity
    short: Quantity
    held: Quantity

    def plus(self, other: "InParts") -> "InParts":
        """Both in the same step."""
        return InParts(*(own + more for own, more in zip(self, other, strict=True)))

    @property
    def shown(self) -> Quantity:
        """Seconds that hidden communication costs all the same: what finds no computation, or what that is slowed by.

        >>> InParts(5.0, 3.0 - 5.0, 0.0).shown, InParts(2.0, 3.0 - 2.0, 0.0).shown, InParts(5.0, 3.0 - 5.0, 0.5).shown
        (0.0, 1.0, 0.5)
        """
        return maximum(self.short, self.held)

    def total(self) -> Quantity:
        """Seconds of the step that these are all parts of."""
        return self.exposed + self.shown


NOTHING = InParts(0.0, 0.0, 0.0)


def split(kernel: Kernel, seconds: Quantity) -> InParts:
    """The seconds of all launches of a kernel, as if nothing hid, in parts."""
    if kernel.family != EXCHANGE:
        return InParts(seconds, -seconds, 0.0)
    if not is_meant_to_hide(kernel):
        return InParts(seconds, 0.0, 0.0)
    behind = seconds * kernel.hidden
    return InParts(seconds - behind, behind, behind * kernel.holds)


def in_parts(kernels: Iterable[Kernel], seconds: Callable[[Sequence[Kernel]], Quantity]) -> InParts:
    """The seconds of a part of a step, by a function that prices kernels."""
    bare = ((kernel, kernel._replace(hidden=0.0, holds=0.0)) for kernel in kernels)
    return reduce(InParts.plus, (split(kernel, seconds([one])) for kernel, one in bare), NOTHING)


def shown_share(times: Sequence[tuple[Kernel, Quantity]]) -> Quantity:
    """The share of hidden communication that shows all the same. times: kernels with the seconds of all launches."""
    hidden: Quantity = sum(seconds * kernel.hidden for kernel, seconds in times if is_meant_to_hide(kernel))
    parts = reduce(InParts.plus, (split(kernel, seconds) for kernel, seconds in times), NOTHING)
    return parts.shown / maximum(hidden, 1e-30)
