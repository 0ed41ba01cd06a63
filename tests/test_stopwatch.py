"""Timing calls: when to stop, graph or single calls, cold or warm, the split by kernels, and the canary."""

import itertools
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from types import SimpleNamespace

import numpy
import pytest
import torch

from costmodel.errors import BadInput
from validation import canary as canary_module
from validation import cuda_clock
from validation.canary import Canary, Reading, beside_drift, canary, drifts
from validation.cuda_clock import CudaClock
from validation.device import DeviceFacts, facts
from validation.kernel_split import agrees, kernels_of_trace, split
from validation.stopwatch import MOST_COPIES, copies_for, enough, keep_freed_memory, measure, on_device

GPU = DeviceFacts(
    "cuda:0", "cuda", "X", "NVIDIA", (9, 0), 132, 1.98e9, 80 * 2**30, 3.35e12, 50 * 2**20, None, "", "", {}, "", ""
)


@dataclass
class FakeDevice:
    """A device whose calls last as long as they say; `launch_s` is what each costs when no graph holds it."""

    launch_s: float = 0.0
    capturable: bool = True
    now: float = 0.0
    flushed: int = 0
    ran: list[str] = field(default_factory=list)

    def call(self, name: str, *durations: float) -> Callable[[], None]:
        lasting = itertools.cycle(durations)

        def run() -> None:
            self.ran.append(name)
            self.now += next(lasting)

        return run

    def seconds(self, run: Callable[[], object], lead_s: float = 0.0) -> float:
        before, calls = self.now, len(self.ran)
        run()
        launched = 0 if lead_s else len(self.ran) - calls
        return self.now - before + launched * self.launch_s

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return run

    def flush(self) -> None:
        self.flushed += 1


def test_short_calls_are_timed_in_a_graph_without_their_launches() -> None:
    device = FakeDevice(launch_s=30e-6)
    timing = on_device([device.call("a", 100e-6)], "warm", device, budget_s=0.3, warm_up_s=0.0)
    assert timing.median_s == pytest.approx(100e-6)
    assert timing.method == "graph of 16 calls over the same inputs"  # 2 ms of 130 µs, the estimate with launches
    assert device.flushed == 0


def test_a_cold_graph_goes_round_through_all_sets_equally_often() -> None:
    device = FakeDevice()
    calls = [device.call(name, 1e-6) for name in "abc"]
    timing = on_device(calls, "cold", device, budget_s=0.3, warm_up_s=0.0)
    assert timing.method == "graph of 513 calls over 3 sets of inputs"
    assert device.ran[-513:] == ["a", "b", "c"] * 171
    assert timing.mode == "cold"


def test_a_graph_lasts_long_enough_though_launching_its_calls_takes_ten_times_as_long() -> None:
    device = FakeDevice(launch_s=50e-6)
    timing = on_device([device.call("a", 5e-6)], "warm", device, budget_s=0.3, warm_up_s=0.0)
    assert timing.method == "graph of 400 calls over the same inputs"  # 2 ms of 5 µs; of 55 µs it were 37 calls


def test_long_calls_are_timed_one_by_one_and_flushed_when_cold() -> None:
    for mode, flushed in (("cold", True), ("warm", False)):
        device = FakeDevice()
        timing = on_device([device.call("a", 3e-3)], mode, device, budget_s=0.3, warm_up_s=0.0)
        assert timing.median_s == pytest.approx(3e-3)
        assert timing.n == 5
        assert device.flushed == (5 if flushed else 0)
        assert timing.method.startswith("single calls")


def test_what_cannot_be_captured_is_timed_one_by_one_and_says_so() -> None:
    device = FakeDevice(capturable=False)
    timing = on_device([device.call("a", 50e-6)], "cold", device, budget_s=0.3, warm_up_s=0.0)
    assert timing.median_s == pytest.approx(50e-6)
    assert timing.method.endswith("cache flushed (no graph: operation not permitted when stream is capturing)")
    assert timing.refused
    again = on_device([device.call("a", 50e-6)], "cold", device, 0.3, 0.0, capture=False)
    assert again.method.endswith("cache flushed (no graph: refused before)")
    assert not again.refused


def test_a_step_is_timed_in_a_graph_and_as_the_host_launches_it_where_that_is_asked_for() -> None:
    for graph, seconds, method in ((True, 3e-3, "graph of 1 call over"), (False, 3.03e-3, "launched by the host over")):
        device = FakeDevice(launch_s=30e-6)
        timing = on_device([device.call("a", 3e-3)], "cold", device, budget_s=0.1, warm_up_s=0.0, graph=graph)
        assert timing.median_s == pytest.approx(seconds)
        assert timing.method.startswith(method)


def test_a_noisy_call_is_sampled_until_its_time_is_up() -> None:
    device = FakeDevice()
    timing = on_device([device.call("a", 3e-3, 4e-3, 5e-3)], "warm", device, budget_s=0.1, warm_up_s=0.0)
    assert (timing.p10_s, timing.median_s, timing.p90_s) == pytest.approx((3e-3, 4e-3, 5e-3))
    assert timing.n == 25  # 0.1 s of 4 ms


def test_sampling_stops_by_precision_by_budget_or_by_count() -> None:
    noisy = [1.0e-3, 1.1e-3]
    assert not enough(noisy * 3, 6e-3, 0.3)  # 0.05/1.05 over √6 is 1.9 %
    assert enough([1.0e-3, 1.02e-3] * 2 + [1.01e-3], 5e-3, 0.3)  # 0.01/1.01 over √5 is 0.44 %
    assert enough(noisy * 3, 0.31, 0.3)
    assert enough(noisy * 100, 0.2, 0.3)
    assert enough([0.94, 0.95, 0.93], 2.8, 0.3)
    assert not enough([0.94, 0.95], 1.9, 0.3)


def test_copies_exceed_the_cache_four_times_within_the_memory() -> None:
    assert copies_for(20 * 2**20, GPU) == 10  # 200 MiB of 20
    assert copies_for(2**30, GPU) == 1
    assert copies_for(64, GPU) == MOST_COPIES
    assert copies_for(20 * 2**20, GPU._replace(memory_bytes=240 * 2**20)) == 3
    # A set that holds 2 GiB of which a call selects little: a quarter of the memory takes ten.
    assert copies_for(2**20, GPU, held_bytes=2 * 2**30) == 10
    cpu = facts("cpu")._replace(l2_bytes=2**30)
    assert copies_for(2**20, cpu) == 256


def test_cpu_time_is_that_of_the_work_and_not_of_waiting() -> None:
    def work_and_wait() -> None:
        start = time.thread_time()
        while time.thread_time() - start < 2e-3:
            pass
        time.sleep(0.01)

    timing = measure([work_and_wait], "cpu", "warm", budget_s=0.02)
    assert 2e-3 <= timing.median_s < 4e-3
    assert "one thread" in timing.method


def test_every_run_of_a_long_call_on_a_cpu_is_a_sample() -> None:
    def busy(seconds: float) -> Callable[[], None]:
        def work() -> None:
            ran.append(seconds)
            start = time.thread_time()
            while time.thread_time() - start < seconds:
                pass

        return work

    ran: list[float] = []
    timing = measure([busy(0.012)], "cpu", "warm", budget_s=0.02)
    assert len(ran) == timing.n == 2
    ran.clear()
    timing = measure([busy(0.002)], "cpu", "warm", budget_s=0.002)
    assert len(ran) == timing.n + 1  # the first finds nothing in the caches


def test_measuring_restores_the_threads_of_torch_also_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            measure([lambda: 1 // 0], "cpu", "warm")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_larger_products_take_longer() -> None:
    small, large = (
        measure([partial(torch.mm, *torch.randn(2, n, n))], "cpu", "warm", budget_s=0.05).median_s for n in (128, 512)
    )
    assert 10 < large / small < 250  # 64 times the work


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library always returns large memory to the system")
def test_outputs_do_not_cost_new_pages_in_every_call() -> None:
    x = torch.zeros(2**24)

    def new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        x.mul(2.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # 64 MiB are 16,384 pages. Now and then a call finds its place taken by what another thread or test has kept.
    assert median(new_pages() for _ in range(21)) < 100


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="warm"):
        measure([lambda: None], "cpu", "warmer")


def kernel_event(name: str, ts: float, dur: float, grid: tuple[int, int, int] = (132, 1, 1)) -> dict[str, object]:
    """An event as torch 2.x writes it on CUDA."""
    args = {"device": 0, "grid": list(grid), "block": [128, 1, 1], "registers per thread": 168, "shared memory": 49152}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur, "args": args}


def test_a_trace_is_read_into_kernels_per_call() -> None:
    events = [
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0.0, "dur": 9.0},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "step", "ts": 0.0, "dur": 99.0},
        kernel_event("combine", 12.0, 2.0),
        kernel_event("split_kv", 1.0, 10.0, (8, 4, 1)),
        kernel_event("split_kv", 21.0, 12.0, (8, 4, 1)),
        {"ph": "X", "cat": "gpu_memset", "name": "Memset (Device)", "ts": 33.5, "dur": 0.5, "args": {"bytes": 4}},
        kernel_event("combine", 34.0, 2.0),
    ]
    first, second, third = kernels_of_trace(events, calls=2)
    assert (first.name, first.launches, first.grid) == ("split_kv", 1.0, (8, 4, 1))
    assert (first.registers, first.shared_bytes, first.block) == (168, 49152, (128, 1, 1))
    assert [kernel.seconds for kernel in (first, second, third)] == pytest.approx([11e-6, 2e-6, 0.25e-6])
    assert agrees((first, second, third), 14e-6)
    assert not agrees((first, second, third), 20e-6)


def test_a_call_on_the_cpu_is_split_into_its_operators() -> None:
    a = torch.randn(256, 256)
    kernels = split(lambda: torch.softmax(a @ a, -1), "cpu")
    launches = {kernel.name: kernel.launches for kernel in kernels}
    assert launches["aten::mm"] == launches["aten::_softmax"] == 1
    assert kernels[0].seconds > 1e-5


def test_the_canary_sings_every_thirty_seconds() -> None:
    clock, taken = iter(range(0, 1000, 10)), itertools.count(1.0)
    bird = Canary(lambda: Reading(next(taken), 1.0), now=lambda: next(clock))
    heard = [bird.reading().gemm_s for _ in range(9)]
    assert heard == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0]


def test_a_device_whose_clock_settles_lower_loses_what_was_before_it_settled() -> None:
    """Two minutes at a cool clock, then 5 % slower for good: nothing after that is left out, whenever it was read."""
    random = numpy.random.default_rng(0)
    slower = [1.0] * 4 + [1.02, 1.04] + [1.05] * 14
    noise = 1.0 + 0.003 * random.standard_normal((len(slower), 2))
    readings = [Reading(share * gemm, copy) for share, (gemm, copy) in zip(slower, noise.tolist(), strict=True)]
    rows = [(15.0 * index, readings[index // 2]) for index in range(2 * len(readings))]  # two rows to a reading
    flags = beside_drift(rows, 0.03)
    assert flags[:8] == [True] * 8
    assert flags[12:] == [False] * 28


def test_a_disturbance_at_the_end_does_not_make_the_run_before_it_drift() -> None:
    readings = [Reading(1.0, 1.0)] * 12 + [Reading(1.2, 1.0)] * 5
    assert [drift > 0.03 for drift in drifts(readings, 0.03)] == [False] * 12 + [True] * 5


def test_a_device_that_has_cooled_settles_anew() -> None:
    """A part of a sweep on another day, in which the same device was given less power, is judged by itself."""
    first, second = Reading(1.0, 1.0), Reading(1.3, 1.0)
    rows = [(30.0 * index, first) for index in range(8)] + [(1e5 + 30.0 * index, second) for index in range(3)]
    assert not any(beside_drift(rows, 0.03))


def test_the_canary_of_a_cpu_reads_real_seconds() -> None:
    reading = canary(facts("cpu")).reading()
    assert 1e-4 < reading.gemm_s < 1
    assert 1e-4 < reading.copy_s < 1


def test_the_canary_of_a_gpu_reads_a_device_that_has_been_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle device has a low clock, and a first reading of it would flag the rows of a minute."""
    device = FakeDevice()
    clock = SimpleNamespace(seconds=lambda run: time.sleep(0.01) or device.seconds(run))
    monkeypatch.setattr(canary_module, "CudaClock", lambda name: clock)
    monkeypatch.setattr(canary_module, "GEMM_SIDE", {"cuda": 16})
    monkeypatch.setattr(canary_module, "COPY_BYTES", {"cuda": 1024})
    begun = time.perf_counter()
    canary(GPU._replace(device="cpu")).reading()
    assert time.perf_counter() - begun > canary_module.WARM_UP_S


class FakeCuda:
    """What `CudaClock` uses of torch.cuda; notes the order of what it is asked."""

    def __init__(self, refuses: bool = False) -> None:
        self.told: list[str] = []
        self.refuses = refuses
        self.now_ms = 0.0

    def Event(self, enable_timing: bool) -> "FakeEvent":
        assert enable_timing
        return FakeEvent(self)

    def Stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.told.append("wait"))

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: self.told.append("replay"))

    def current_stream(self) -> str:
        return "current"

    def synchronize(self) -> None:
        self.told.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        self.told.append(f"spin {cycles}")

    @contextmanager
    def device(self, device: object) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, graph: object, stream: object) -> Iterator[None]:
        self.told.append("capture")
        yield
        if self.refuses:
            raise RuntimeError("capture failed")


@dataclass
class FakeEvent:
    cuda: FakeCuda
    at_ms: float = 0.0

    def record(self) -> None:
        self.at_ms = self.cuda.now_ms
        self.cuda.told.append("record")

    def synchronize(self) -> None:
        self.cuda.told.append("wait for event")

    def elapsed_time(self, later: "FakeEvent") -> float:
        return later.at_ms - self.at_ms


def clock_of(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> CudaClock:
    monkeypatch.setattr(torch, "cuda", cuda)
    return CudaClock("cpu")


def test_a_run_stands_between_two_events_behind_a_spinning_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    clock = clock_of(monkeypatch, cuda)

    def run() -> None:
        cuda.told.append("run")
        cuda.now_ms += 2.5

    assert clock.seconds(run) == pytest.approx(2.5e-3)
    assert cuda.told == ["record", "run", "record", "wait for event"]
    assert clock.seconds(run, lead_s=60.0) == pytest.approx(2.5e-3)
    assert cuda.told[4] == "spin 15000000"  # 5 ms at most


def test_a_graph_is_captured_after_a_run_on_its_stream_and_a_refusal_leaves_the_device_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda()
    replay = clock_of(monkeypatch, cuda).capture(lambda: cuda.told.append("run"))
    replay()
    assert cuda.told == ["wait", "run", "synchronize", "capture", "run", "synchronize", "replay"]
    refusing = FakeCuda(refuses=True)
    with pytest.raises(RuntimeError, match="capture failed"):
        clock_of(monkeypatch, refusing).capture(lambda: None)
    assert refusing.told[-1] == "synchronize"


def test_a_cache_is_not_flushed_where_no_memory_is_left_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    CudaClock("cpu").flush()
    monkeypatch.undo()
    monkeypatch.setattr(cuda_clock, "FLUSH_BYTES", 4096)
    clock = CudaClock("cpu")
    clock.flush()
    clock.flush()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_timed_by_a_graph_and_its_kernels_explain_the_time() -> None:
    a, b = torch.randn(2, 2048, 2048, device="cuda", dtype=torch.bfloat16)
    timing = measure([lambda: a @ b], "cuda:0", "warm")
    assert timing.method.startswith("graph")
    assert agrees(split(lambda: a @ b, "cuda:0"), timing.median_s)
    waiting = measure([lambda: (a @ b).sum().item()], "cuda:0", "cold")
    assert "no graph" in waiting.method
    assert waiting.median_s > timing.median_s
