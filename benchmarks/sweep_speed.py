"""Full-model predictions per second on one core, over 10⁶ (context, batch) points, and the memory it takes.

    python benchmarks/sweep_speed.py [ARCHITECTURE] [HARDWARE]

Budget: 300,000 predictions per second on one core without intervals, under 1 GB.
"""

import os
import resource
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy

from costmodel import predict
from costmodel.sweep import sweep

POINTS = 10**6


def main() -> None:
    """Random points first, then a grid, which shares what depends on the batch alone."""
    architecture = sys.argv[1] if len(sys.argv) > 1 else "kimi-linear-48b-a3b"
    hardware = sys.argv[2] if len(sys.argv) > 2 else "h100-sxm"
    random = numpy.random.default_rng(0)
    side = int(POINTS**0.5)
    contexts = random.integers(1, 2**20, POINTS)
    batches = random.integers(1, 257, POINTS)
    cases = {
        "decode, random points": (contexts, batches, "decode"),
        "prefill, random points": (contexts, batches, "prefill"),
        "decode, grid 1000 × 1000": (contexts[:side, None], numpy.arange(1, side + 1)[None, :], "decode"),
    }
    print(f"{architecture} on {hardware}, {POINTS:,} points each, one core")
    print(f"{'sweep':28} {'CPU s':>7} {'predictions/s':>14} {'peak MB':>8}")
    for name, (length, batch, phase) in cases.items():
        start = time.process_time()
        seconds = sweep(architecture, hardware, length, batch, phase=phase)
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name:28} {spent:7.2f} {seconds.size / spent:14,.0f} {peak:8.0f}")
    start = time.process_time()
    repeats = 50
    for index in range(repeats):
        predict(architecture, hardware, int(contexts[index]), batch=int(batches[index]))
    spent = (time.process_time() - start) / repeats
    print(f"one prediction with interval, bounds and breakdown, files read anew: {spent * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
