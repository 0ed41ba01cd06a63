"""Which kernels a call launches, and how long each runs: by torch's profiler, once per measured point."""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from validation.runners import Mark

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace that are device time."""
PROFILED_CALLS = 5
AGREEMENT = 0.05
BETWEEN_KERNELS_S = 1.5e-6
"""What a graph leaves between two kernels, at most."""
SPUN_CYCLES = 15_000_000
"""About 8 ms, in which the host queues a call's launches."""


class KernelSeconds(NamedTuple):
    """One kernel of a call: seconds of all its launches, how many, and what a launch takes up (0 where not stated).

    grid, block: blocks, and threads of each. registers: per thread. shared_bytes: per block. On a CPU a kernel is one
    of torch's operators, without those it calls.
    """

    name: str
    seconds: float
    launches: float
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    registers: int = 0
    shared_bytes: int = 0


def split(call: Callable[[], object], device: str, calls: int = PROFILED_CALLS) -> tuple[KernelSeconds, ...]:
    """The kernels of one call in the order of their first launch, with the median of some calls.

    Not a measurement of the call: the profiler delays the host. Raises RuntimeError when the device records nothing.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if calls > 1:
        call()
    if device == "cpu":
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(calls):
                call()
        return operators(recorded.key_averages(), calls)
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(calls):
                call()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    found = kernels_of_trace(trace["traceEvents"], calls)
    if not found:
        raise RuntimeError("the profiler recorded no kernel; the driver may reserve its counters for administrators")
    return found


def split_by_marks(
    run: Callable[[Mark], object], device: str, calls: int = PROFILED_CALLS
) -> tuple[KernelSeconds, ...]:
    """The parts of a call that tells their names as they end, in the order of their first: medians of some calls.

    On a GPU the parts are timed by events in the stream behind a spinning kernel, on a CPU by the thread's time.
    """
    told = [_marked(run, device) for _ in range(calls + min(calls - 1, 1))][-calls:]
    names = [name for name, _ in told[0]]
    spent = [median(call[index][1] for call in told) for index in range(len(names))]
    return tuple(
        KernelSeconds(name, sum(seconds for other, seconds in zip(names, spent, strict=True) if other == name), count)
        for name, count in Counter(names).items()
    )


def _marked(run: Callable[[Mark], object], device: str) -> list[tuple[str, float]]:
    """Every part of one call in its order, with its seconds."""
    if device == "cpu":
        ends = [("", time.thread_time())]
        run(lambda name: ends.append((name, time.thread_time())))
        return [(name, end - start) for (_, start), (name, end) in pairwise(ends)]
    import torch

    cuda: Any = torch.cuda

    def event() -> Any:
        found: Any = cuda.Event(enable_timing=True)
        found.record()
        return found

    with torch.cuda.device(device):
        cuda._sleep(SPUN_CYCLES)
        events = [("", event())]
        run(lambda name: events.append((name, event())))
        torch.cuda.synchronize()
    return [(name, start.elapsed_time(end) * 1e-3) for (_, start), (name, end) in pairwise(events)]


PART = re.compile(r"(?P<name>.*?) ×(?P<launches>[\d.e+-]+) (?P<seconds>[\d.e+-]+) s(?:; |$)")


def told(parts: Iterable[KernelSeconds]) -> str:
    """The parts as the text of a row.

    >>> told([KernelSeconds("rope, cache write", 1.25e-5, 2), KernelSeconds("attention", 3e-4, 2)])
    'rope, cache write ×2 1.25e-05 s; attention ×2 0.0003 s'
    """
    return "; ".join(f"{part.name[:80]} ×{part.launches:g} {part.seconds:.3g} s" for part in parts)


def parts_of(text: str) -> list[KernelSeconds]:
    """The parts that a row's text tells; none of a text that tells why there is no profile.

    >>> [tuple(part[:3]) for part in parts_of("rope, cache write ×2 1.25e-05 s; attention ×2 0.0003 s")]
    [('rope, cache write', 1.25e-05, 2.0), ('attention', 0.0003, 2.0)]
    >>> parts_of("no profile: RuntimeError")
    []
    """
    return [
        KernelSeconds(found["name"], float(found["seconds"]), float(found["launches"])) for found in PART.finditer(text)
    ]


def kernels_of_trace(events: Iterable[Mapping[str, Any]], calls: int) -> tuple[KernelSeconds, ...]:
    """The kernels in the events of a Chrome trace, which times in microseconds. calls: how many it holds."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    on_device = (event for event in events if event.get("cat") in ON_DEVICE and event.get("ph") == "X")
    for event in sorted(on_device, key=lambda event: float(event["ts"])):
        stated = event.get("args", {})
        grid, block = tuple(stated.get("grid", ())), tuple(stated.get("block", ()))
        groups.setdefault((event["name"], grid, block), []).append(event)
    return tuple(
        KernelSeconds(
            name=str(name),
            seconds=_per_call([float(event["dur"]) * 1e-6 for event in same], calls),
            launches=len(same) / calls,
            grid=grid,
            block=block,
            registers=int(same[0].get("args", {}).get("registers per thread", 0)),
            shared_bytes=int(same[0].get("args", {}).get("shared memory", 0)),
        )
        for (name, grid, block), same in groups.items()
    )


def _per_call(seconds: Sequence[float], calls: int) -> float:
    """The median over calls of their sums; the mean where calls launch a kernel unequally often.

    >>> _per_call([1.0, 2.0, 1.0, 8.0, 2.0, 3.0], 3), _per_call([1.0, 2.0], 4)
    (5.0, 0.75)
    """
    each, rest = divmod(len(seconds), calls)
    if rest:
        return sum(seconds) / calls
    return median(sum(seconds[call * each : (call + 1) * each]) for call in range(calls))


def operators(averages: Iterable[Any], calls: int) -> tuple[KernelSeconds, ...]:
    """The operators of a profile on the CPU, longest first."""
    found = (KernelSeconds(each.key, each.self_cpu_time_total * 1e-6 / calls, each.count / calls) for each in averages)
    return tuple(sorted(found, key=lambda kernel: -kernel.seconds))


def agrees(kernels: Sequence[KernelSeconds], whole_s: float) -> bool:
    """Whether the kernels together take as long as the call that was measured, to 5 % or 1.5 µs for each launch.

    >>> agrees([KernelSeconds("a", 8e-6, 1), KernelSeconds("b", 20e-6, 2)], 30e-6)
    True
    """
    launches = sum(kernel.launches for kernel in kernels)
    allowed = max(AGREEMENT * whole_s, launches * BETWEEN_KERNELS_S)
    return abs(sum(kernel.seconds for kernel in kernels) - whole_s) <= allowed
