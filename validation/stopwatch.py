"""How long a call takes: device time by CUDA graphs and events, or the CPU time of one thread.

Short calls are captured into one graph and replayed between two events, so that the host's launches cost nothing; long
ones are timed one by one, queued behind a spinning kernel. On a processor, which other programs slow down for seconds
at a time, a call is timed in several passes with other calls between them (`validation.passes`). Cold means that a call
finds its inputs in main memory: the graph goes round through copies of them that together exceed the last cache
(`copies_for`), or the cache is flushed before a single call. Warm means the same inputs again and again. Outputs reuse
memory in both. Clocks are never set.

Source: the practice of triton.testing.do_bench, flashinfer.testing.bench_gpu_time and NVBench.
"""

import ctypes
import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from math import ceil, sqrt
from typing import NamedTuple, Protocol

import numpy

from costmodel.errors import unknown
from validation import core_pace
from validation.cuda_clock import CudaClock, Run
from validation.device import DeviceFacts

MODES = ("cold", "warm")
LONG_S = 2e-3
"""Calls from here on are timed one by one; a replayed graph lasts at least this long."""
CALLS_IN_GRAPH = (4, 64)
"""Fewest and most calls of a graph, beyond the copies that it goes round through."""
MOST_AGAIN = 512
"""Most calls of a graph once a first one has said how long a call takes that no launch delays."""
MOST_COPIES = 512
CACHES_OF_COPIES = 4
"""Copies of the inputs together are this many times the last cache."""
COPIES_ON_CPU_BYTES = 256 * 2**20
"""A virtual machine's share of a server's last cache is far less than its size, and random numbers take time."""
UNKNOWN_CACHE_BYTES = 64 * 2**20
FEWEST, MOST = 5, 200
FEWEST_OF_LONG, VERY_LONG_S = 3, 0.1
PRECISION = 0.005
LEAD_S = 50e-6
CPU_SAMPLE_S = 1e-3
LONG_ON_CPU_S = 10e-3
"""A call that takes longer goes through more memory than a core's caches keep of it, from the first run on."""
FEWEST_IN_PASS = 2
"""Samples of a pass on a processor: there are two passes or more."""
NO_GRAPH, REFUSED_BEFORE = "no graph", "refused before"
"""How a timing's method says that a graph was refused, and why none was tried."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's mallopt (malloc.h)."""


class Timing(NamedTuple):
    """Seconds of one call: median and tenths of n samples; whether its inputs were cold or warm; how it was timed.

    pace_s: on a processor, of `core_pace`'s product, before or after the samples, whichever was slower. refused: a
    graph was tried, and the attempt may have left the process's allocator of no use.
    """

    median_s: float
    p10_s: float
    p90_s: float
    n: int
    mode: str
    method: str
    pace_s: float | None = None
    refused: bool = False


class Clock(Protocol):
    """What `CudaClock` offers, described there."""

    def seconds(self, run: Run, lead_s: float = 0.0) -> float:
        """Device seconds of a run."""

    def capture(self, run: Run) -> Run:
        """A graph of a run."""

    def flush(self) -> None:
        """Empty the cache of what a call left there."""


def measure(
    calls: Sequence[Run],
    device: str,
    mode: str,
    *,
    budget_s: float = 0.3,
    warm_up_s: float = 0.1,
    graph: bool | None = None,
    capture: bool = True,
) -> Timing:
    """The time of one call on a device.

    calls: the same operator over `copies_for` sets of inputs in cold mode, over one set in warm mode; the first run of
    each compiles and tunes, and is not timed. budget_s: sampling stops after this much time at the latest. graph: True
    asks for a CUDA graph, False for launches by the host, whose time then shows; None takes a graph where it is
    useful. capture: False where a graph of such a call was refused before, and is not tried again. Raises what a call
    raises, among it torch's OutOfMemoryError, and BadInput for an unknown mode.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if device == "cpu":
        return _on_cpu(calls, mode, budget_s)
    return on_device(calls, mode, CudaClock(device), budget_s, warm_up_s, graph, capture)


def copies_for(footprint_bytes: int, device: DeviceFacts, held_bytes: int = 0) -> int:
    """How many sets of inputs a cold measurement goes round through.

    footprint_bytes: what one call reads and writes. held_bytes: what one set takes of the memory, where that is more:
    a call that selects reads little of its inputs. What the sets' calls touch is four times the last cache, but the
    sets take at most a quarter of the memory (256 MiB on a CPU), and are at most 512: a call that touches less than a
    hundredth of the cache is never quite cold.
    """
    cache = device.l2_bytes or UNKNOWN_CACHE_BYTES
    allowed = COPIES_ON_CPU_BYTES if device.kind == "cpu" else device.memory_bytes // 4
    footprint = max(footprint_bytes, 1)
    wanted = ceil(CACHES_OF_COPIES * cache / footprint)
    return max(1, min(wanted, allowed // max(footprint, held_bytes), MOST_COPIES))


def on_device(
    calls: Sequence[Run],
    mode: str,
    clock: Clock,
    budget_s: float,
    warm_up_s: float,
    graph: bool | None = None,
    capture: bool = True,
) -> Timing:
    """Device time of one call, by a graph where that is possible and useful, or as `measure` is told."""
    for call in calls:
        call()
    estimate, host_s = _warmed_up(calls, clock, warm_up_s)
    refused = ""
    # A call that the host launches more slowly than the device runs it needs a graph however long it is.
    useful = estimate < LONG_S or host_s > estimate / 2
    if useful if graph is None else graph:
        try:
            if not capture:
                raise RuntimeError(REFUSED_BEFORE)
            replay, count = _captured(calls, clock, estimate)
        except RuntimeError as error:
            refused = (str(error).strip().splitlines() or [type(error).__name__])[0][:80]
        else:
            for _ in range(2):
                replay()
            samples = sampled(lambda: clock.seconds(replay, LEAD_S) / count, count, budget_s)
            return timing_of(samples, mode, f"graph of {_counted(count)} over {_sets(calls)}")
    each = itertools.cycle(calls)

    def one() -> float:
        if mode == "cold":
            clock.flush()
        return clock.seconds(next(each), 0.0 if graph is False else LEAD_S + 1.5 * host_s)

    launched = "launched by the host" if graph is False else "single calls"
    method = f"{launched} over {_sets(calls)}{', cache flushed' if mode == 'cold' else ''}"
    timing = timing_of(sampled(one, 1, budget_s), mode, method + (f" ({NO_GRAPH}: {refused})" if refused else ""))
    return timing._replace(refused=bool(refused) and capture)


def _captured(calls: Sequence[Run], clock: Clock, estimate_s: float) -> tuple[Run, int]:
    """A graph that lasts long enough, and the number of its calls.

    The estimate of a short call is what launching it takes. What a first graph takes says how many calls it should
    have had.
    """
    count = calls_in_graph(estimate_s, len(calls))
    replay = _graph(calls, clock, count)
    replay()
    wanted = calls_in_graph(clock.seconds(replay, LEAD_S) / count, len(calls), MOST_AGAIN)
    if wanted < 2 * count:
        return replay, count
    return _graph(calls, clock, wanted), wanted


def _graph(calls: Sequence[Run], clock: Clock, count: int) -> Run:
    """A graph of so many calls, which go round through the sets of inputs."""
    around = list(itertools.islice(itertools.cycle(calls), count))
    return clock.capture(lambda: _run_all(around))


def _counted(calls: int) -> str:
    return f"{calls} call{'s' if calls > 1 else ''}"


def _sets(calls: Sequence[Run]) -> str:
    return f"{len(calls)} sets of inputs" if len(calls) > 1 else "the same inputs"


def calls_in_graph(estimate_s: float, copies: int, most: int = CALLS_IN_GRAPH[1]) -> int:
    """Calls of one graph: 2 ms worth of them, at most so many, and each set of inputs equally often.

    >>> calls_in_graph(100e-6, 1), calls_in_graph(1e-6, 1), calls_in_graph(1e-3, 3), calls_in_graph(5e-3, 1)
    (20, 64, 6, 1)
    """
    if estimate_s >= LONG_S:
        return copies
    fewest = CALLS_IN_GRAPH[0]
    wanted = min(max(ceil(LONG_S / estimate_s), fewest), most)
    return ceil(wanted / copies) * copies


def _warmed_up(calls: Sequence[Run], clock: Clock, warm_up_s: float) -> tuple[float, float]:
    """Seconds of a call, and of launching it, after the device has been busy long enough to raise its clock."""
    begun = time.perf_counter()
    count = 1
    while True:
        seconds, host_s = _timed(list(itertools.islice(itertools.cycle(calls), count)), clock)
        if time.perf_counter() - begun >= warm_up_s:
            return max(seconds / count, 1e-9), host_s / count
        if seconds < LONG_S:
            count = min(2 * count, CALLS_IN_GRAPH[1])


def _timed(calls: Sequence[Run], clock: Clock) -> tuple[float, float]:
    """Seconds of these calls together, on the device and of the host that launches them."""
    launched: list[float] = []
    seconds = clock.seconds(lambda: launched.append(_run_all(calls)))
    return seconds, launched[0]


def _run_all(calls: Sequence[Run]) -> float:
    """Run them; the host's seconds for it."""
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def sampled(
    take: Callable[[], float], calls: int, budget_s: float, fewest: int = FEWEST, known: Sequence[float] = ()
) -> list[float]:
    """Samples until their median is known well enough, after those that are known already.

    take: seconds of one call, the mean over `calls` of them.
    """
    samples = list(known)
    spent = sum(samples) * calls
    while not enough(samples, spent, budget_s, fewest):
        samples.append(take())
        spent += samples[-1] * calls
    return samples


def enough(samples: Sequence[float], spent_s: float, budget_s: float, fewest: int = FEWEST) -> bool:
    """Whether to stop: the median is known to 0.5 %, or the time is up, or there are 200.

    The spread of a median is taken as the median absolute deviation over √n. At least `fewest` samples, but no more
    than three of calls that last a tenth of a second.

    >>> enough([1.0e-3, 1.0e-3, 1.0e-3, 1.0e-3], 4e-3, 0.3), enough([1.0e-3] * 5, 5e-3, 0.3)
    (False, True)
    """
    n = len(samples)
    if n < min(FEWEST_OF_LONG, fewest):
        return False
    median = float(numpy.median(samples))
    if n < (min(FEWEST_OF_LONG, fewest) if median > VERY_LONG_S else fewest):
        return False
    spread = float(numpy.median(numpy.abs(numpy.asarray(samples) - median)))
    return n >= MOST or spent_s >= budget_s or spread < PRECISION * median * sqrt(n)


def timing_of(samples: Sequence[float], mode: str, method: str) -> Timing:
    """The timing of samples of one call."""
    p10, median, p90 = (float(value) for value in numpy.percentile(samples, (10, 50, 90)))
    return Timing(median, p10, p90, len(samples), mode, method)


def _on_cpu(calls: Sequence[Run], mode: str, budget_s: float) -> Timing:
    """CPU time of one call in one thread, which other programs on the machine disturb far less than wall-clock time."""
    import torch

    kept = keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        each = itertools.cycle(calls)
        before = core_pace.product_s()
        # Of a long call what the first run finds cold is lost in its length: each run of it is a sample.
        taken = [_thread_seconds(each, 1) for _ in calls]
        taken = taken if min(taken) > LONG_ON_CPU_S else [_thread_seconds(each, 1)]
        count = min(max(ceil(CPU_SAMPLE_S / max(taken[-1], 1e-9)), 1), 1000)
        known = taken if count == 1 else []
        samples = sampled(lambda: _thread_seconds(each, count) / count, count, budget_s, FEWEST_IN_PASS, known)
        pace_s = max(before, core_pace.product_s())
    finally:
        torch.set_num_threads(threads)
    load = "unknown"
    with suppress(OSError, AttributeError):
        load = f"{os.getloadavg()[0]:.1f}"
    memory = "freed memory kept" if kept else "freed memory returned"
    method = f"CPU time of one thread, {_counted(count)} per sample, {memory}, load {load}"
    return timing_of(samples, mode, method)._replace(pace_s=pace_s)


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; False where the C library has no such option.

    glibc returns large tensors to the system and asks for them again, page by page: an output of 64 MB then takes seven
    times as long as writing it, and whether one of 4 MB is returned is chance. No kernel's work is in that time.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError, TypeError):
        return False


def _thread_seconds(each: "itertools.cycle[Run]", count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        next(each)()
    return time.thread_time() - start
