"""The `cpu` profile: this machine, read when asked for.

Cores, instruction sets and clock come from the operating system; the peak is cores × clock × FLOPs per
cycle of the widest vector unit with two FMA ports (an assumption, marked unverified). The memory
bandwidth is measured by copying a buffer that no cache holds, for about a tenth of a second.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

COPY_BYTES = 64 * 2**20
FALLBACK_CLOCK_HZ = 2.0e9
LANES = (("avx512f", 16), ("avx2", 8), ("asimd", 4), ("neon", 4))
"""Instruction set → fp32 lanes of one register."""


def cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo, empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    entries: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        entries[key.strip().lower()] = value.strip()
    return entries


def clock_hz(info: dict[str, str]) -> tuple[float, str]:
    """The highest clock that the system states, with where it says so."""
    try:
        khz = int(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii"))
        return khz * 1e3, "cpufreq, highest clock"
    except (OSError, ValueError):
        pass
    try:
        return float(info["cpu mhz"]) * 1e6, "/proc/cpuinfo, current clock"
    except (KeyError, ValueError):
        return FALLBACK_CLOCK_HZ, "assumed, the system states no clock"


def _copy_bandwidth() -> float:
    """Bytes per second of copying: each copied byte is read once and written once."""
    source, target = bytearray(COPY_BYTES), bytearray(COPY_BYTES)
    into = memoryview(target)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        into[:] = source
        best = min(best, time.perf_counter() - start)
    return 2 * COPY_BYTES / best


def memory_bytes() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_host() -> dict[str, Any]:
    """The mapping of a profile for this machine, in the form of a profile's YAML file."""
    info = cpuinfo()
    cores = usable_cores()
    clock, clock_source = clock_hz(info)
    flags = set((info.get("flags") or info.get("features") or "").split())
    lanes = next((lanes for flag, lanes in LANES if flag in flags), 4)
    peak = f"{cores * clock * lanes * 2 * 2!r} FLOP/s"
    name = info.get("model name") or platform.processor() or platform.machine()
    return {
        "name": "cpu",
        "description": f"this machine: {name}, {cores} cores",
        "vendor": info.get("vendor_id", "unknown"),
        "generation": "cpu",
        "compute": {
            "units": cores,
            "clock": f"{clock!r} Hz",
            # 16-bit products are widened to fp32 first, so they run at its rate at best.
            "tensor": {"fp32": peak, "bf16": peak, "fp16": peak},
            "vector": peak,
            "special": "unknown",
        },
        "memory": {
            "hbm": {"capacity": f"{memory_bytes()} B", "bandwidth": f"{_copy_bandwidth()!r} B/s"},
            "l2": {"capacity": "unknown", "bandwidth": "unknown"},
            "shared_per_unit": "unknown",
        },
        "links": {
            "scale_up": {"bandwidth": "unknown", "devices": 1},
            "scale_out": {"bandwidth": "unknown"},
            "host": {"bandwidth": "unknown"},
        },
        "power": {"tdp": "unknown", "idle": "unknown"},
        "sources": {
            "compute.units": "operating system: processors this process may use",
            "compute.clock": clock_source,
            "compute.tensor": f"derived: cores × clock × {lanes} lanes × 2 FMA ports × 2",
            "compute.vector": "as compute.tensor",
            "memory.hbm.capacity": "operating system: physical pages",
            "memory.hbm.bandwidth": f"measured now: copy of {COPY_BYTES} bytes, best of 6",
            "links.scale_up.devices": "one machine",
        },
        "unverified": ["compute.tensor", "compute.vector", "compute.clock"],
        "notes": "Read from the running system; the copy bandwidth is one thread's, so a lower bound for all cores.",
    }
