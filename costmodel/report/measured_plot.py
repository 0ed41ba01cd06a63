"""Measured points on the predicted curves: time over context with its 80 % band, one panel per operator."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.errors import BadInput
from costmodel.loading import write_atomically
from costmodel.report.output import plot_format
from costmodel.report.plot import COLOURS
from costmodel.units import format_count

COLUMNS = 4
PANEL_INCHES = (4.1, 3.1)
MOST_CURVES = 5
"""Curves of one panel; further ones are left out, those with the fewest points first."""


class Curve(NamedTuple):
    """Points that differ in their context alone, and the prediction along it.

    fields: what sets it apart, by name. points: context, expected seconds, and both ends of the 80 % interval.
    contexts, seconds: measured; held_out: which of them no fit saw.
    """

    fields: Mapping[str, str]
    points: Sequence[tuple[float, float, float, float]]
    contexts: Sequence[float]
    seconds: Sequence[float]
    held_out: Sequence[bool]


class Panel(NamedTuple):
    """One operator."""

    title: str
    curves: Sequence[Curve]


def draw_measured(place: Path, device: str, panels: Sequence[Panel]) -> Path:
    """Write the figure into a .png or .svg file, or as measured.png into a folder, and give its path.

    Raises BadInput without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib: pip install costmodel[plot]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = place if place.suffix else place / "measured.png"
    form = plot_format(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows
    # All panels have the same labels: margins of a fixed size take no second drawing to be found.
    margins = {"left": 0.65 / width, "right": 1 - 0.15 / width, "bottom": 0.45 / height, "top": 1 - 0.65 / height}
    spaces = {"wspace": 0.17, "hspace": 0.36}
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, gridspec_kw={**margins, **spaces}
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        _panel(axis, panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("seconds of one call")
    title = f"{device}: measured (filled: fitted, open: never seen) on the predicted curve with its 80 % band"
    figure.suptitle(title, y=1 - 0.15 / height)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=130)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
    return path


def labels(curves: Sequence[Curve]) -> list[str]:
    """What sets each curve of a panel apart from the others; of one alone, what it is.

    >>> base = Curve({"": "kernel", "heads": "4", "d": "64"}, [], [], [], [])
    >>> labels([base, base._replace(fields={**base.fields, "heads": "2"})])
    ['heads 4', 'heads 2']
    >>> labels([base])
    ['kernel']
    """
    names = dict.fromkeys(name for curve in curves for name in curve.fields)
    telling = [name for name in names if len({curve.fields.get(name) for curve in curves}) > 1] or [""]
    return [", ".join(f"{name} {curve.fields.get(name, '–')}".strip() for name in telling) for curve in curves]


def _panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    kept = sorted(panel.curves, key=lambda curve: -len(curve.contexts))[:MOST_CURVES]
    for curve, label, colour in zip(kept, labels(kept), COLOURS, strict=False):
        contexts, expected, low, high = (list(column) for column in zip(*curve.points, strict=True))
        axis.plot(contexts, expected, color=colour, linewidth=1.3, label=label)
        axis.fill_between(contexts, low, high, color=colour, alpha=0.15, linewidth=0)
        for held_out, face in ((False, colour), (True, "white")):
            points = [
                (context, seconds)
                for context, seconds, held in zip(curve.contexts, curve.seconds, curve.held_out, strict=True)
                if held is held_out
            ]
            if points:
                axis.scatter(*zip(*points, strict=True), s=20, facecolors=face, edgecolors=colour, zorder=3)
    axis.set(xscale="log", yscale="log", title=panel.title)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, place: format_count(round(value))))
    axis.tick_params(labelsize=7)
    axis.title.set_fontsize(9)
    axis.set_xlabel("tokens in the sequence (rows of a bare kernel)", fontsize=7)
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=6, frameon=False, loc="upper left")
    axis.grid(alpha=0.2, linewidth=0.5)
