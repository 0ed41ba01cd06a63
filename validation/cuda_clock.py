"""Events, graphs and a cache flush on one CUDA or ROCm device: what the stopwatch reads device time with.

And what else a device is asked while it is measured: whether it still answers, and how much of its memory is taken.
"""

from collections.abc import Callable
from typing import Any

Run = Callable[[], object]
"""Something to be timed; what it returns is dropped."""
FLUSH_BYTES = 512 * 2**20
"""Twice the largest last cache of a GPU (MI300X, 256 MiB, of which torch does not tell)."""
LONGEST_LEAD_S = 5e-3
SPIN_HZ = 3.0e9
"""A spinning kernel counts cycles; with more per second than any device has, no wait is shorter than asked for."""


class CudaClock:
    """Device time of one device. Raises what torch raises, among it OutOfMemoryError."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device(device)
        self._flushing: tuple[Any, Any] | None = None

    def seconds(self, run: Run, lead_s: float = 0.0) -> float:
        """Seconds between an event before and an event after the run, on the device.

        lead_s: the device spins that long before the first event, so that the host can queue all its launches and none
        of its own time shows. At most 5 ms, so a run that waits for the device costs no more than that.
        """
        cuda = self._torch.cuda
        with cuda.device(self._device):
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            if lead_s > 0 and hasattr(cuda, "_sleep"):
                cuda._sleep(int(min(lead_s, LONGEST_LEAD_S) * SPIN_HZ))
            start.record()
            run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3

    def capture(self, run: Run) -> Run:
        """A graph of the run, to be replayed by calling it. Raises RuntimeError when the run cannot be captured.

        A run can be captured when it neither waits for the device nor compiles nor tunes anything.
        """
        cuda = self._torch.cuda
        with cuda.device(self._device):
            graph, stream = cuda.CUDAGraph(), cuda.Stream()
            stream.wait_stream(cuda.current_stream())
            try:
                with cuda.stream(stream):
                    # Libraries make their workspaces for a stream at the first call on it.
                    run()
                cuda.synchronize()
                with cuda.graph(graph, stream=stream):
                    run()
            finally:
                cuda.synchronize()
        return lambda: graph.replay()

    def flush(self) -> None:
        """Fill L2 with lines of a buffer that nothing else uses.

        The buffer is read, not written: changed lines would have to be written back during what is timed next. A call
        that leaves no memory for the buffer exceeds any cache itself.
        """
        torch = self._torch
        if self._flushing is None:
            options = {"dtype": torch.float32, "device": self._device}
            try:
                self._flushing = torch.zeros(FLUSH_BYTES // 4, **options), torch.zeros((), **options)
            except torch.OutOfMemoryError:
                return
        buffer, result = self._flushing
        torch.sum(buffer, dim=0, out=result)


def allocated(device: Any) -> int:
    """Bytes that this process's tensors take on a GPU; 0 on a CPU."""
    import torch

    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def answers(device: Any) -> bool:
    """Whether the device still works: after an error of its own, every later call of the process fails.

    A kernel that refuses a shape leaves the device well, and a new process would load everything anew. A graph whose
    capture failed may leave an allocator that gives and takes nothing any more.
    """
    import torch

    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.randn(1, device=device)
        return float(torch.ones(1, device=device).add_(1).item()) == 2.0
    except Exception:  # torch has several classes for what a device reports
        return False
