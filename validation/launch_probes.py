"""What launching costs on a GPU: kernels that do next to nothing, one after the other and in graphs."""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from validation.cuda_clock import CudaClock, Run
from validation.device import DeviceFacts
from validation.probe_rows import Row, attempted, line_of, row
from validation.stopwatch import Timing, timing_of

GRAPH_NODES = (1, 4, 16, 64, 256)
LAUNCHES = 500
"""Fewer than the launches that wait in a stream before the host is held up."""


def own(name: str) -> Any:
    """A function of the file of the same name among the Triton kernels. Raises ImportError without triton."""
    return getattr(importlib.import_module(f"validation.triton_kernels.{name}"), name)


def launch_rows(facts: DeviceFacts) -> Iterator[Row]:
    """Launches of kernels that do next to nothing: the host's time, the device's one after the other, and in graphs."""
    import torch

    smallest = torch.zeros(1, device=facts.device)
    kinds: dict[str, Callable[[], Run]] = {
        "torch": lambda: partial(smallest.add_, 1),
        "triton": lambda: partial(own("empty"), 1),
    }
    clock = CudaClock(facts.device)
    for name, make in kinds.items():
        calls: list[Run] = []

        def one(make: Callable[[], Run] = make, calls: list[Run] = calls) -> list[Run]:
            calls.append(make())
            return calls

        yield attempted("host-launch", name, LAUNCHES, 1, "1", one, partial(_host_seconds, clock=clock))
        if not calls:
            continue
        graphs = [
            attempted("graph", name, nodes, 1, "1", partial(list, calls), partial(_replayed, nodes=nodes, clock=clock))
            for nodes in GRAPH_NODES
        ]
        yield from graphs
        good = [each for each in graphs if each.n]
        if len(good) > 1:
            fixed, each_node = line_of([each.size for each in good], [each.seconds for each in good])
            method = f"line through graphs of {GRAPH_NODES[0]} to {GRAPH_NODES[-1]} nodes"
            for probe, seconds in (("graph-launch", fixed), ("graph-node", each_node)):
                if seconds > 0:
                    yield row(probe, name, len(good), 1, "1", timing_of([seconds], "warm", method))


def _host_seconds(calls: Sequence[Run], clock: CudaClock) -> Timing:
    """Host seconds of one launch into a stream that has room."""
    samples = []
    for _ in range(10):
        clock.seconds(lambda: None)
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            calls[0]()
        samples.append((time.perf_counter() - start) / LAUNCHES)
    return timing_of(samples[1:], "warm", "host time of launches in a row")


def _replayed(calls: Sequence[Run], nodes: int, clock: CudaClock) -> Timing:
    replay = clock.capture(lambda: [calls[0]() for _ in range(nodes)])
    samples = [clock.seconds(replay, 100e-6) for _ in range(22)]
    return timing_of(samples[2:], "warm", f"graph of {nodes} launches, whole")
