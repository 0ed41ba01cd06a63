"""Efficiency against capability as a figure: one panel for each comparison, unmatched ones marked as such."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.comparisons import load_comparison
from costmodel.errors import BadInput
from costmodel.loading import write_atomically
from costmodel.report.columns import Row
from costmodel.report.output import plot_format
from costmodel.report.plot import COLOURS
from costmodel.report.predictions import groups
from costmodel.units import format_count

MOST_METRICS = 12


def points(rows: Sequence[Row]) -> list[tuple[str, str, float, float]]:
    """Model, metric, predicted gain in decode time, and published difference to the baseline in points.

    Only what has both is a point; the baseline itself is the origin (1, 0) and none.
    """
    found = []
    for row in rows:
        if row["decode_gain"] is None or row["model"] == row["baseline"]:
            continue
        for metric, score in list(row["capability"].items())[:MOST_METRICS]:
            if score["delta"] is not None and score["unit"] == "points":
                found.append((row["model"], metric, row["decode_gain"], score["delta"]))
    return found


def draw_tradeoff(path: str, rows: Sequence[Row]) -> list[str]:
    """Write the figure to a .png or .svg file, whole or not at all; the comparisons that have a panel.

    A point is a metric of a model: the predicted gain in the time of a decode step, or of a whole answer, over the
    comparison's baseline, and the published difference of the score. Raises BadInput where nothing can be drawn, and
    without matplotlib.
    """
    form = plot_format(path)
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib; install it with: pip install 'costmodel[plot]'") from None
    matplotlib.use("Agg")
    longest = max((row["context"] for row in rows), default=0)
    shown = [
        (name, hardware, members)
        for (name, hardware), members in groups(
            [row for row in rows if row["context"] == longest], ("comparison", "hw")
        )
        if name is not None and points(members)
    ]
    if not shown:
        raise BadInput("--plot: no model with both a predicted time and a published difference to a baseline")
    settings: dict[Any, Any] = {"svg.hashsalt": "costmodel", "svg.fonttype": "none", "font.size": 9}
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure = _figure(shown, longest)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=160, bbox_inches="tight", metadata=metadata)
    write_atomically(Path(path), buffer.getvalue())
    return [name for name, _, _ in shown]


def _figure(shown: Sequence[tuple[str, str, Sequence[Row]]], context: int) -> Any:
    from matplotlib.figure import Figure

    columns = min(len(shown), 2)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(5.6 * columns, 4.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, (name, hardware, members) in zip(panels, shown, strict=False):
        _panel(panel, name, members)
        answer = members[0]["answer_tokens"]
        step = "a decode step" if answer is None else f"an answer of {answer} tokens"
        panel.set_xlabel(f"predicted gain of {step} over the baseline\n{format_count(context)}, {hardware}")
    for panel in list(panels)[len(shown) :]:
        panel.set_axis_off()
    return figure


def _panel(panel: Any, name: str, rows: Sequence[Row]) -> None:
    comparison = load_comparison(name)
    models = list(dict.fromkeys(model for model, *_ in points(rows)))
    every = [1.0, *(point[2] for point in points(rows))]
    wide = max(every) / min(every) > 8
    middle = math.sqrt(max(every) * min(every)) if wide else (max(every) + min(every)) / 2
    for index, model in enumerate(models):
        own = [point for point in points(rows) if point[0] == model]
        colour = COLOURS[index % len(COLOURS)]
        filled = colour if comparison.matched else "none"
        gains, deltas = [point[2] for point in own], [point[3] for point in own]
        panel.scatter(gains, deltas, s=26, edgecolors=colour, facecolors=filled, linewidths=1.2, zorder=3)
        panel.annotate(
            model,
            (gains[0], max(deltas)),
            xytext=(0, 6 + 10 * index),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=colour,
            fontweight="bold",
        )
        # The extremes are named, what a reader asks for first, to the side where there is room.
        side = -1 if gains[0] > middle else 1
        for text, gain, delta in {(own[i][1], own[i][2], own[i][3]) for i in _extremes(deltas)}:
            place = dict(xytext=(5 * side, 0), ha="right" if side < 0 else "left", va="center")
            panel.annotate(text, (gain, delta), textcoords="offset points", fontsize=7, **place)
    panel.axhline(0, color="#444444", linewidth=0.8)
    panel.axvline(1, color="#444444", linewidth=0.8)
    panel.plot([1], [0], marker="s", color="#222222", markersize=5, zorder=4)
    # Its name stands on the side where the others are not.
    left = max(every) > 1.0
    panel.annotate(
        comparison.baseline,
        (1, 0),
        xytext=(-4 if left else 4, -4),
        ha="right" if left else "left",
        va="top",
        textcoords="offset points",
        fontsize=8,
    )
    if wide:
        panel.set_xscale("log")
    panel.margins(x=0.4, y=0.28)
    panel.grid(color="#E4E4E4", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_ylabel("published difference to the baseline, points")
    state = "matched budgets" if comparison.matched else "budgets NOT matched: no ranking"
    panel.set_title("\n".join(textwrap.wrap(f"{comparison.title} — {state}", 62)), loc="left", fontsize=9)


def _extremes(values: Sequence[float]) -> set[int]:
    places = range(len(values))
    return {min(places, key=lambda place: values[place]), max(places, key=lambda place: values[place])}
