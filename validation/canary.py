"""The same product and the same copy, again and again during a run: whether the device is still as fast as it was."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from validation.cuda_clock import CudaClock
from validation.device import DeviceFacts

EVERY_S = 30.0
LIMITS = {"cuda": 0.03, "cpu": 0.15}
"""Drift beyond which rows are flagged; CPU time itself spreads by several percent on a machine with other work."""
GEMM_SIDE = {"cuda": 8192, "cpu": 512}
COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 32 * 2**20}
SMALL_MEMORY_BYTES = 16 * 2**30
REPEATS = 5
WARM_UP_S = 0.25


class Reading(NamedTuple):
    """Seconds of the product and of the copy, at a time of the system's clock (seconds since 1970)."""

    at_s: float
    gemm_s: float
    copy_s: float


class Canary:
    """Takes a reading when one is due, and says how far the last is from the others.

    take: seconds of the product and of the copy. readings: earlier ones of the same run, where it goes on.
    """

    def __init__(
        self,
        take: Callable[[], tuple[float, float]],
        limit: float,
        every_s: float = EVERY_S,
        readings: Sequence[Reading] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self.readings = list(readings)
        self.limit = limit
        self._take, self._every_s, self._now = take, every_s, now
        self._last_s: float | None = None

    def tick(self) -> Reading | None:
        """Take a reading if there is none yet in this process, or the last is older than `every_s`."""
        if self._last_s is not None and self._now() - self._last_s < self._every_s:
            return None
        gemm_s, copy_s = self._take()
        self._last_s = self._now()
        self.readings.append(Reading(self._last_s, gemm_s, copy_s))
        return self.readings[-1]

    @property
    def drift(self) -> float:
        """How far the last reading is from the median of all, as a share: of product or copy, whichever is further."""
        return drifts(self.readings)[-1] if self.readings else 0.0

    def flagged(self, times_s: Sequence[float]) -> tuple[bool, ...]:
        """For each row's time, whether a reading beside it drifted."""
        return around_drift(self.readings, times_s, self.limit)


def drifts(readings: Sequence[Reading]) -> list[float]:
    """The drift of each reading from the median of all.

    >>> [round(drift, 3) for drift in drifts([Reading(0, 1.0, 2.0), Reading(30, 1.0, 2.0), Reading(60, 1.05, 2.02)])]
    [0.0, 0.0, 0.05]
    """
    if not readings:
        return []
    gemm, copy = median(reading.gemm_s for reading in readings), median(reading.copy_s for reading in readings)
    return [max(abs(reading.gemm_s / gemm - 1), abs(reading.copy_s / copy - 1)) for reading in readings]


def around_drift(readings: Sequence[Reading], times_s: Sequence[float], limit: float) -> tuple[bool, ...]:
    """For each time, whether the last reading before it or the first after it drifted by more than the limit.

    >>> seen = [Reading(0, 1.0, 1.0), Reading(30, 1.0, 1.0), Reading(60, 1.1, 1.0), Reading(90, 1.0, 1.0)]
    >>> around_drift(seen, [10, 40, 70, 95], 0.03)
    (False, True, True, False)
    """
    drifted = dict(zip(readings, drifts(readings), strict=True))
    flags = []
    for at_s in times_s:
        before = max((reading for reading in readings if reading.at_s <= at_s), default=None, key=lambda r: r.at_s)
        after = min((reading for reading in readings if reading.at_s > at_s), default=None, key=lambda r: r.at_s)
        flags.append(any(drifted[reading] > limit for reading in (before, after) if reading is not None))
    return tuple(flags)


def canary(device: DeviceFacts, every_s: float = EVERY_S, readings: Sequence[Reading] = ()) -> Canary:
    """The canary of a device: a bf16 product of 8192³ and a copy of 2 GiB on a GPU, in fp32 and small on a CPU.

    Its buffers live only while a reading is taken (about 40 ms on an H100), so that measured points find the memory
    free.
    """
    take = _cpu_reading if device.kind == "cpu" else lambda: _cuda_reading(device)
    return Canary(take, LIMITS[device.kind], every_s, readings)


def _cuda_reading(device: DeviceFacts) -> tuple[float, float]:
    import torch

    clock = CudaClock(device.device)
    side, size = GEMM_SIDE["cuda"], COPY_BYTES["cuda"]
    if device.memory_bytes < SMALL_MEMORY_BYTES:
        side, size = side // 2, size // 8
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device.device) for _ in range(2))
    source, target = (torch.empty(size, dtype=torch.uint8, device=device.device) for _ in range(2))
    product = torch.empty_like(a)
    begun = time.perf_counter()
    while time.perf_counter() - begun < WARM_UP_S:
        # An idle device has lowered its clock: a reading of it would flag all that is measured after.
        clock.seconds(lambda: torch.mm(a, b, out=product))
    gemm = [clock.seconds(lambda: torch.mm(a, b, out=product)) for _ in range(1 + REPEATS)]
    copy = [clock.seconds(lambda: target.copy_(source)) for _ in range(1 + REPEATS)]
    return median(gemm[1:]), median(copy[1:])


def _cpu_reading() -> tuple[float, float]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(2, GEMM_SIDE["cpu"], GEMM_SIDE["cpu"])
        source, target = torch.zeros(2, COPY_BYTES["cpu"] // 4)
        gemm = [_thread_seconds(lambda: torch.mm(a, b)) for _ in range(1 + REPEATS)]
        copy = [_thread_seconds(lambda: target.copy_(source)) for _ in range(1 + REPEATS)]
    finally:
        torch.set_num_threads(threads)
    return median(gemm[1:]), median(copy[1:])


def _thread_seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start
