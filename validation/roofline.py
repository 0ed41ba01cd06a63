"""Measured operators on their device's roofline: how far each is from it, and what the model says is in between.

From the roofline to the measured time in steps that add up: the work that the kernel executes beyond the formula's,
the share of its largest limit that it reaches, limits that do not overlap wholly, launches, and what the model does
not explain. A step may be negative, as where operands come from L2 instead of HBM.

Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from costmodel.calibration import Calibration
from costmodel.hardware import Hardware
from costmodel.kernels.base import OVERLAPPING, Kernel
from costmodel.timing import KernelTime, expected, roofline
from validation.measurements import Measurement, kernels_of, seconds_of
from validation.runners import runners

LIMITS = {
    "tensor": "share of the matrix engines' peak",
    "vector": "share of the vector lanes' peak",
    "special": "exponentials and other special functions",
    "memory": "share of HBM's bandwidth",
    "l2": "traffic between L2 and the units",
    "chain": "chain of steps in a thread block",
    "network": "share of the links' bandwidth",
}
"""What keeps a kernel whose largest term this is from the roofline."""
FROM_L2 = "operands found in L2"
IDLE = "units without a thread block"
MORE, OVERLAP, LAUNCH = "work beyond the formula's", "limits that overlap in part", "launches"
UNEXPLAINED = "not explained by the model"
TOLD, TENTH = 3, 0.1
"""At most so many causes are told, of those that make up a tenth of the way from roofline to measured time."""


def roofline_rows(rows: Sequence[Measurement], hardware: Hardware, calibration: Calibration) -> list[dict[str, Any]]:
    """One row per measured point, by operator and intensity.

    share: of the roofline that was reached, above 1 where replayed operands came from L2. steps_s: seconds by cause,
    which with roofline_s add up to measured_s. cause: the largest of them in words.
    """
    found = []
    for row in rows:
        seconds = seconds_of(row, hardware)
        if row.status != "ok" or not seconds:
            continue
        kernels = kernels_of(runners()[row.runner], row.mode == "warm", row.shape, hardware)
        times = expected(kernels, hardware, calibration._replace(source=row.implementation))
        bound = sum(float(roofline(kernel, hardware) * kernel.count) for kernel in kernels)
        flops = sum(float(kernel.ideal.flops * kernel.count) for kernel in kernels)
        hbm_bytes = sum(float(kernel.ideal.hbm_bytes * kernel.count) for kernel in kernels)
        steps = causes(times, hardware)
        predicted = sum(float(entry.time_s) for entry in times)
        steps[UNEXPLAINED] = seconds - predicted
        found.append(
            {
                "system": hardware.name,
                "operator": row.runner,
                "family": row.family,
                "mechanism": row.mechanism or None,
                "phase": row.phase,
                "implementation": row.implementation,
                "mode": row.mode,
                "shape": " ".join(f"{name}={value}" for name, value in row.shape.items()),
                "flops": flops,
                "hbm_bytes": hbm_bytes,
                "intensity": flops / hbm_bytes,
                "measured_s": seconds,
                "reached_flop_per_s": flops / seconds,
                "reached_bytes_per_s": hbm_bytes / seconds,
                "roofline_s": bound,
                "under": under(kernels, hardware),
                "share": bound / seconds,
                "predicted_s": predicted,
                "steps_s": steps,
                "cause": in_words(steps),
            }
        )
    return sorted(found, key=lambda each: (each["operator"], each["implementation"], each["mode"], each["intensity"]))


def under(kernels: Sequence[Kernel], hardware: Hardware) -> str:
    """What makes up most of the roofline: the slope of the memory, or one of the ceilings."""
    spent: dict[str, float] = {}
    for kernel in kernels:
        work = kernel.ideal
        sides = {
            "memory": float(work.hbm_bytes / hardware.memory.hbm.bandwidth),
            "vector": float(work.vector / hardware.compute.vector),
            "tensor": float(sum(flops / hardware.tensor_peak(dtype) for dtype, flops in work.tensor.items())),
        }
        name = max(sides, key=lambda side: sides[side])
        spent[name] = spent.get(name, 0.0) + sides[name] * float(kernel.count)
    return max(spent, key=lambda side: spent[side])


def causes(times: Sequence[KernelTime], hardware: Hardware) -> dict[str, float]:
    """Seconds between the roofline and the prediction, by cause."""
    found: dict[str, float] = {}
    for entry in times:
        kernel, terms, count = entry.kernel, entry.terms, float(entry.kernel.count)
        ideal = float(roofline(kernel, hardware))
        executed = float(roofline(kernel._replace(ideal=kernel.executed), hardware))
        limits = {name: float(getattr(terms, name)) for name in OVERLAPPING}
        name = max(limits, key=lambda each: limits[each])
        one = float(terms.total())
        steps = {
            MORE: executed - ideal,
            _limit(name, limits[name] - executed, kernel, hardware): limits[name] - executed,
            OVERLAP: one - float(terms.launch) - limits[name],
            LAUNCH: float(terms.launch),
        }
        for cause, seconds in steps.items():
            found[cause] = found.get(cause, 0.0) + seconds * count
    return {cause: seconds for cause, seconds in found.items() if seconds}


def _limit(name: str, seconds: float, kernel: Kernel, hardware: Hardware) -> str:
    if seconds < 0:
        return FROM_L2 if kernel.circulating is not None else LIMITS[name]
    few = kernel.grid is not None and float(kernel.grid.blocks) < hardware.compute.units
    return IDLE if few and name in ("tensor", "vector", "special") else LIMITS[name]


def in_words(steps: Mapping[str, float]) -> str:
    """The largest steps, each with its share of the way from the roofline to the measured time.

    >>> in_words({LAUNCH: 6e-6, MORE: 3e-6, OVERLAP: 0.5e-6, UNEXPLAINED: -0.5e-6})
    "launches 60 %, work beyond the formula's 30 %"
    """
    whole = sum(abs(seconds) for seconds in steps.values())
    ranked = sorted(steps.items(), key=lambda step: -abs(step[1]))[:TOLD]
    told = [(cause, seconds / whole) for cause, seconds in ranked if whole and abs(seconds) >= TENTH * whole]
    return ", ".join(f"{cause} {'−' if share < 0 else ''}{abs(share) * 100:.0f} %" for cause, share in told)
