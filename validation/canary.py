"""The same product and the same copy, again and again during a run: whether the device is still as fast as it was."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from validation.cuda_clock import CudaClock
from validation.device import DeviceFacts

EVERY_S = 30.0
PAUSE_S = 600.0
"""A device that was given nothing for longer has cooled, and settles anew. No point takes as long."""
GEMM_SIDE = {"cuda": 8192, "cpu": 512}
COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 32 * 2**20}
SMALL_MEMORY_BYTES = 16 * 2**30
REPEATS = 5
WARM_UP_S = 0.25


class Reading(NamedTuple):
    """Seconds of the product and of the copy."""

    gemm_s: float
    copy_s: float

    def apart(self, other: "Reading") -> float:
        """How far this reading is from another, as a share: of product or copy, whichever is further.

        >>> round(Reading(1.05, 2.0).apart(Reading(1.0, 2.02)), 3)
        0.05
        """
        return max(abs(self.gemm_s / other.gemm_s - 1), abs(self.copy_s / other.copy_s - 1))


class Canary:
    """Takes a reading whenever the last is `every_s` old. take: a reading."""

    def __init__(
        self, take: Callable[[], Reading], every_s: float = EVERY_S, now: Callable[[], float] = time.time
    ) -> None:
        self._take, self._every_s, self._now = take, every_s, now
        self._last: tuple[float, Reading] | None = None

    def reading(self) -> Reading:
        """The last reading, taken now if it is older than `every_s` or the first of this process."""
        if self._last is None or self._now() - self._last[0] >= self._every_s:
            reading = self._take()
            self._last = (self._now(), reading)
        return self._last[1]


def drifts(readings: Sequence[Reading], limit: float) -> list[float]:
    """How far each reading of a run, in the order of time, is from the state in which the run spent most of it.

    A device under load settles: a cool one keeps a high clock for minutes and then a lower one for as long as the load
    lasts, so that neither the first readings nor those up to any time tell its state; what most readings of the whole
    run agree on to within the limit does, and of several such states the latest. What was before it drifts.

    >>> cool, settled, disturbed = Reading(1.0, 2.0), Reading(1.05, 2.0), Reading(1.2, 2.1)
    >>> [round(drift, 2) for drift in drifts([cool, cool, settled, settled, disturbed, settled], 0.03)]
    [0.05, 0.05, 0.0, 0.0, 0.14, 0.0]
    """
    agreeing: list[Reading] = []
    for one in readings:
        found = [other for other in readings if other.apart(one) <= limit]
        if len(found) >= len(agreeing):
            agreeing = found
    if not agreeing:
        return []
    state = Reading(median(each.gemm_s for each in agreeing), median(each.copy_s for each in agreeing))
    return [reading.apart(state) for reading in readings]


def beside_drift(rows: Sequence[tuple[float, Reading]], limit: float) -> list[bool]:
    """For rows in the order of time, each with the last reading before it, whether it or the next reading drifted.

    Rows between a good reading and one that drifted may be of either state, so all of them are told. Where the device
    was given nothing for longer than PAUSE_S, another run begins.

    >>> good, other = Reading(1.0, 1.0), Reading(1.1, 1.0)
    >>> beside_drift([(5, good), (35, good), (36, good), (65, other), (95, good), (125, good)], 0.03)
    [True, True, True, True, False, False]
    """
    flags: list[bool] = []
    for run in _runs(rows):
        together = [(reading, len([*same])) for reading, same in itertools.groupby(reading for _, reading in run)]
        told = drifts([reading for reading, _ in together], limit)
        for (_, count), before, after in zip(together, told, [*told[1:], 0.0], strict=True):
            flags += [max(before, after) > limit] * count
    return flags


def _runs(rows: Sequence[tuple[float, Reading]]) -> list[list[tuple[float, Reading]]]:
    """Rows apart where nothing was measured for long."""
    runs: list[list[tuple[float, Reading]]] = []
    last_s = -math.inf
    for at_s, reading in rows:
        if at_s - last_s > PAUSE_S:
            runs.append([])
        runs[-1].append((at_s, reading))
        last_s = at_s
    return runs


def canary(device: DeviceFacts) -> Canary:
    """The canary of a device: a bf16 product of 8192³ and a copy of 2 GiB on a GPU, in fp32 and small on a CPU.

    Its buffers live only while a reading is taken (about 40 ms on an H100), so that measured points find the memory
    free.
    """
    return Canary(_cpu_reading if device.kind == "cpu" else lambda: _cuda_reading(device))


def _cuda_reading(device: DeviceFacts) -> Reading:
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
    return Reading(median(gemm[1:]), median(copy[1:]))


def _cpu_reading() -> Reading:
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
    return Reading(median(gemm[1:]), median(copy[1:]))


def _thread_seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start
