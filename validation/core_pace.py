"""How fast a processor's core is right now, by a product that stays in the core's own caches.

What shares a core with this process (another thread of the core, the host of a virtual machine) slows it down by a
quarter to three quarters, for seconds or minutes, in which every sample of a call is steady and wrong. The call itself
cannot show it; a product of known work beside it can.
"""

import time
from collections.abc import Callable

SIDE = 192
"""Of the product's matrices: three of them in fp32 take 432 KiB, less than a server core's second-level cache."""
CALLS, SAMPLES = 4, 3
CALM = 0.1
"""How much slower than at its fastest in a run the core may be while a call is timed. Clocks move by less."""


def product_s() -> float:
    """Seconds of one product, the fastest of three samples (about 1 ms of CPU time): an interruption slows one."""
    import torch

    a, b = torch.ones(2, SIDE, SIDE)
    torch.mm(a, b)
    return min(_sample_s(lambda: torch.mm(a, b)) for _ in range(SAMPLES))


def _sample_s(run: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        run()
    return (time.thread_time() - start) / CALLS


def is_calm(pace_s: float | None, fastest_s: float) -> bool:
    """Whether the core was as fast as it can be, by the product's seconds then and at its fastest.

    >>> is_calm(1.05e-4, 1.0e-4), is_calm(1.25e-4, 1.0e-4), is_calm(None, 1.0e-4)
    (True, False, True)
    """
    return pace_s is None or pace_s <= (1.0 + CALM) * fastest_s
