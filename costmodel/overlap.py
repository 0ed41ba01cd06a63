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
from typing import Any, NamedTuple

from costmodel.algebra import Quantity, maximum
from costmodel.kernels.base import Kernel

EXCHANGE = "collective"
"""The family of kernels that communicate: behind anything else, communication may hide."""


def shown(hidden: Quantity, computed: Quantity, held: Quantity) -> Quantity:
    """Seconds that hidden communication costs all the same: what finds no computation, or what that is slowed by.

    >>> shown(3.0, 5.0, 0.0), shown(3.0, 2.0, 0.0), shown(3.0, 5.0, 0.5)
    (0.0, 1.0, 0.5)
    """
    return maximum(hidden - computed, held)


def is_meant_to_hide(kernel: Kernel) -> bool:
    """Whether a share of the kernel's time is meant to pass behind others."""
    return not (isinstance(kernel.hidden, int | float) and kernel.hidden == 0)


def shown_share(times: Sequence[tuple[Kernel, Quantity]]) -> Quantity:
    """The share of hidden communication that shows all the same. times: kernels with the seconds of all launches."""
    behind = [(kernel, seconds * kernel.hidden) for kernel, seconds in times if is_meant_to_hide(kernel)]
    if not behind:
        return 0.0
    hidden: Quantity = sum(seconds for _, seconds in behind)
    held: Quantity = sum(seconds * kernel.holds for kernel, seconds in behind)
    computed: Quantity = sum(seconds for kernel, seconds in times if kernel.family != EXCHANGE)
    return shown(hidden, computed, held) / maximum(hidden, 1e-30)


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

    def total(self) -> Quantity:
        """Seconds of the step that these are all parts of."""
        return self.exposed + maximum(self.short, self.held)


def in_parts(kernels: Sequence[Kernel], seconds: Callable[[Sequence[Kernel]], Any]) -> InParts:
    """The seconds of a part of a step, by a function that prices kernels."""
    behind = [kernel._replace(hidden=0.0, holds=0.0) for kernel in hidden_parts(kernels)]
    computing = [kernel for kernel in kernels if kernel.family != EXCHANGE]
    holding = [
        kernel._replace(count=kernel.count * kernel.holds, hidden=0.0, holds=0.0)
        for kernel in hidden_parts(kernels)
        if kernel.holds
    ]
    return InParts(seconds(exposed_parts(kernels)), seconds(behind) - seconds(computing), seconds(holding))
