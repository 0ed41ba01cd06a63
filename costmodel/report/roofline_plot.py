"""A device's roofline with measured operators under it: FLOP per second over FLOP per byte of HBM."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.loading import write_atomically
from costmodel.report.columns import Row
from costmodel.report.output import plot_format
from costmodel.report.plot import COLOURS, prepared_matplotlib
from costmodel.units import format_flops

MARKERS = ("o", "s", "^", "D", "v", "P")
DOWN, ASIDE = 1e-6, 3.0
"""What lies lower than this share of the highest ceiling is cut off; room left and right of the points."""


def draw_roofline(path: Path, hardware: Hardware, dtypes: Sequence[str], rows: Sequence[Row]) -> None:
    """Write the figure into a .png or .svg file.

    dtypes: whose peaks of the matrix engines are drawn. rows: of `validation.roofline`; those without FLOPs have no
    place in the figure. Raises BadInput without matplotlib, or where no row has FLOPs.
    """
    form = plot_format(str(path))
    prepared_matplotlib()
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row["flops"] > 0]
    if not drawn:
        raise BadInput("--plot: none of the points has FLOPs; a roofline has no place for them")
    ceilings = _ceilings(hardware, dtypes)
    figure = Figure(figsize=(9.5, 6.0), layout="constrained")
    axis = figure.subplots()
    left = min(row["intensity"] for row in drawn) / ASIDE
    right = max(*(row["intensity"] for row in drawn), max(ceilings.values()) / hardware.memory.hbm.bandwidth) * ASIDE
    _roofs(axis, hardware, ceilings, left, right)
    families = list(dict.fromkeys(row["family"] for row in drawn))
    for index, family in enumerate(families):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]
        for mode, face in (("cold", colour), ("warm", "none")):
            points = [
                (row["intensity"], row["reached_flop_per_s"])
                for row in drawn
                if row["family"] == family and row["mode"] == mode
            ]
            if points:
                across, up = zip(*points, strict=True)
                style: dict[str, Any] = {"marker": marker, "facecolors": face, "edgecolors": colour, "linewidths": 0.9}
                axis.scatter(across, up, s=16, **style)
        axis.scatter([], [], s=16, marker=marker, facecolors=colour, edgecolors=colour, label=family)
    top = max(ceilings.values())
    lowest = min(row["reached_flop_per_s"] for row in drawn)
    axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(max(lowest / ASIDE, top * DOWN), top * ASIDE))
    axis.set_xlabel("FLOP per byte of HBM that the formula needs")
    axis.set_ylabel("FLOP per second")
    axis.set_title(
        f"{hardware.name}: measured operators (filled: cold caches, open: warm) under the roofline", fontsize=10
    )
    axis.grid(alpha=0.2, linewidth=0.5)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150)
    write_atomically(path, buffer.getvalue())


def _ceilings(hardware: Hardware, dtypes: Sequence[str]) -> dict[str, float]:
    """Peaks by name; formats whose products are equally fast, and the vector lanes as well, share a name."""
    peaks = {**{dtype: hardware.tensor_peak(dtype) for dtype in dtypes}, "vector lanes": hardware.compute.vector}
    together: dict[float, list[str]] = {}
    for name, peak in peaks.items():
        together.setdefault(peak, []).append(name)
    return {", ".join(names): peak for peak, names in together.items()}


def _roofs(axis: Any, hardware: Hardware, ceilings: dict[str, float], left: float, right: float) -> None:
    """The slope of the memory up to the highest ceiling, and each ceiling from where it cuts the slope."""
    bandwidth, highest = hardware.memory.hbm.bandwidth, max(ceilings.values())
    axis.plot([left, highest / bandwidth], [left * bandwidth, highest], color="black", linewidth=1.2)
    axis.annotate(
        f"HBM {format_flops(bandwidth, 'B/s')}",
        (left * 1.3, left * 1.3 * bandwidth),
        xytext=(-4, 14),
        textcoords="offset points",
        fontsize=7,
    )
    for name, peak in ceilings.items():
        axis.plot([peak / bandwidth, right], [peak, peak], color="black", linewidth=1.2 if peak == highest else 0.7)
        axis.annotate(
            f"{name} {format_flops(peak, 'FLOP/s')}",
            (right, peak),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )
