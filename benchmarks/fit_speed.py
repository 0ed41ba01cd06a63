"""How long it takes to fit every kernel of one device and library from a directory of measured tables.

    python benchmarks/fit_speed.py DIRECTORY [HARDWARE] [LIBRARY]

Budget: 10 minutes on 2 cores with at most 2,000 points per kernel instance. One core is used.
"""

import os
import sys
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from costmodel.fitting.calibrate import calibrate, silicon_sources
from costmodel.fitting.calibration_file import Header


def main() -> None:
    """Read the tables, fit them, and print seconds for both and per family."""
    directory = Path(sys.argv[1])
    hardware = sys.argv[2] if len(sys.argv) > 2 else "h100-sxm"
    library = sys.argv[3] if len(sys.argv) > 3 else "vllm"
    begun = time.perf_counter()
    (source,) = silicon_sources(directory, hardware, [library])
    read = time.perf_counter() - begun
    spent: dict[str, float] = {}
    last = ["", time.perf_counter()]

    def progress(name: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if last[0]:
            spent[str(last[0])] = spent.get(str(last[0]), 0.0) + now - float(last[1])
        last[:] = [name.split(" ")[0], now]

    begun = time.perf_counter()
    calibrated = calibrate(source, Header("benchmark", hardware, library, "", "benchmark"), progress=progress)
    fitted = time.perf_counter() - begun
    progress("", 0, 0)
    points = sum(len(one.seconds) for one in source.series)
    print(f"{hardware}, {library}: {len(calibrated.rows)} kernel instances, {points:,} points, one core")
    print(f"{'reading the tables':24} {read:7.1f} s")
    for family, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{family:24} {seconds:7.1f} s")
    print(f"{'fitting and judging':24} {fitted:7.1f} s")


if __name__ == "__main__":
    main()
