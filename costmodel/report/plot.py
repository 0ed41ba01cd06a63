"""Time over context as a figure: expected time, 80 % interval, both bounds, and where architectures cross."""

import io
import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.errors import BadInput
from costmodel.loading import write_atomically
from costmodel.report.columns import Row
from costmodel.report.output import plot_format
from costmodel.units import format_count, format_seconds

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, which colour-blind readers tell apart."""
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.4, 1.2, 1.4)))
MOST_CROSSINGS = 8


class Curve(NamedTuple):
    """One line: its label, what groups it is in, and its rows by increasing context."""

    arch: str
    hw: str
    phase: str
    rows: Sequence[Row]

    def values(self, key: str) -> list[float]:
        """One key of every row."""
        return [row[key] for row in self.rows]


class Crossing(NamedTuple):
    """Where two curves meet between computed points, by straight lines in the logarithms."""

    context: float
    time_s: float


def curves(rows: Sequence[Row]) -> list[Curve]:
    """The rows by architecture, device and phase."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["arch"], row["hw"], row["phase"]), []).append(row)
    return [Curve(*key, sorted(members, key=lambda row: row["context"])) for key, members in found.items()]


def crossings(first: Curve, second: Curve) -> Iterator[Crossing]:
    """Where the times of two curves over the same contexts change their order.

    >>> a = Curve("a", "h", "decode", [{"context": 1, "time_s": 1.0}, {"context": 100, "time_s": 100.0}])
    >>> b = Curve("b", "h", "decode", [{"context": 1, "time_s": 10.0}, {"context": 100, "time_s": 10.0}])
    >>> [round(point.context, 6) for point in crossings(a, b)]
    [10.0]
    """
    others = {row["context"]: row["time_s"] for row in second.rows}
    shared = [
        (math.log(row["context"]), row["time_s"], others[row["context"]])
        for row in first.rows
        if row["context"] in others
    ]
    for (x0, a0, b0), (x1, a1, b1) in pairwise(shared):
        before, after = math.log(a0 / b0), math.log(a1 / b1)
        if before * after < 0:
            part = before / (before - after)
            y = math.log(a0) + part * (math.log(a1) - math.log(a0))
            yield Crossing(math.exp(x0 + part * (x1 - x0)), math.exp(y))


def prepared_matplotlib() -> Any:
    """matplotlib, to draw into files. Raises BadInput without it."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib; install it with: pip install 'costmodel[plot]'") from None
    matplotlib.use("Agg")
    return matplotlib


def draw(path: str, rows: Sequence[Row]) -> None:
    """Write the figure to a .png or .svg file, whole or not at all.

    Raises BadInput for another ending, a path that cannot be written, or without matplotlib.
    """
    write_atomically(Path(path), picture(rows, plot_format(path)))


def picture(rows: Sequence[Row], form: str) -> bytes:
    """The figure as png or svg. Raises BadInput without matplotlib."""
    matplotlib = prepared_matplotlib()
    # The same question gives the same file, byte for byte.
    settings: dict[Any, Any] = {
        "svg.hashsalt": "costmodel",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure = _figure(curves(rows))
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=200, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _figure(lines: Sequence[Curve]) -> Any:
    """One panel for each phase, colours for architectures, dashes for devices."""
    from matplotlib.figure import Figure

    phases = list(dict.fromkeys(line.phase for line in lines))
    architectures = list(dict.fromkeys(line.arch for line in lines))
    devices = list(dict.fromkeys(line.hw for line in lines))
    figure = Figure(figsize=(6.4 if len(phases) == 1 else 4.4 * len(phases), 4.6), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    for panel, phase in zip(panels, phases, strict=True):
        for line in lines:
            if line.phase == phase:
                colour = COLOURS[architectures.index(line.arch) % len(COLOURS)]
                dash = DASHES[devices.index(line.hw) % len(DASHES)]
                _draw_curve(panel, line, colour, dash, len(devices) > 1)
        _dress(panel, [row for line in lines if line.phase == phase for row in line.rows])
        _mark_crossings(panel, [line for line in lines if line.phase == phase])
        shared = f"{phase} on {devices[0]}" if len(devices) == 1 else phase
        batches = {row["batch"] for line in lines for row in line.rows}
        # Measured devices need no word; of others a picture says it as the table beside it does.
        weak = [
            f"{hw}: {basis}"
            for hw, basis in dict.fromkeys((row["hw"], row["basis"]) for line in lines for row in line.rows)
            if basis in ("transferred", "prior")
        ]
        told = f"\n{', '.join(weak)}" if weak else ""
        panel.set_title(f"{shared}, batch {', '.join(map(str, sorted(batches)))}{told}", loc="left")
    panels[0].set_ylabel("time of a step")
    _legend(figure, panels[0])
    return figure


def _draw_curve(panel: Any, line: Curve, colour: str, dash: Any, name_device: bool) -> None:
    contexts = line.values("context")
    label = f"{line.arch} · {line.hw}" if name_device else line.arch
    marker = "o" if len(contexts) <= 24 else None
    for low, high, alpha in (("roofline_s", "serial_s", 0.07), ("time_low_s", "time_high_s", 0.18)):
        panel.fill_between(contexts, line.values(low), line.values(high), color=colour, alpha=alpha, linewidth=0)
    for bound in ("roofline_s", "serial_s"):
        panel.plot(contexts, line.values(bound), color=colour, linewidth=0.6, linestyle=dash, alpha=0.5)
    panel.plot(
        contexts,
        line.values("time_s"),
        color=colour,
        linewidth=1.8,
        linestyle=dash,
        marker=marker,
        markersize=3.2,
        label=label,
        clip_on=False,
    )
    if len(contexts) == 1:
        row = line.rows[0]
        spread = [[row["time_s"] - row["time_low_s"]], [row["time_high_s"] - row["time_s"]]]
        panel.plot(
            contexts * 2, [row["roofline_s"], row["serial_s"]], color=colour, marker="_", markersize=9, linestyle=""
        )
        panel.errorbar(contexts, [row["time_s"]], yerr=spread, color=colour, capsize=3, linewidth=1)


def _mark_crossings(panel: Any, lines: Sequence[Curve]) -> None:
    """A ring and the context where two architectures on one device change places."""
    points = [
        point for first, second in combinations(lines, 2) if first.hw == second.hw for point in crossings(first, second)
    ]
    points.sort(key=lambda point: point.context)
    floor, ceiling = panel.get_ylim()
    panel.set_ylim(floor / (ceiling / floor) ** 0.1 if points else floor, ceiling)
    floor, ceiling = panel.get_ylim()
    left, right = panel.get_xlim()
    for index, point in enumerate(points[:MOST_CROSSINGS]):
        panel.vlines(
            point.context, floor, point.time_s, color="#444444", linewidth=0.8, linestyle=(0, (1, 2)), zorder=4
        )
        panel.plot(
            [point.context],
            [point.time_s],
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor="#222222",
            clip_on=False,
            zorder=5,
        )
        beyond_middle = point.context * point.context > left * right
        panel.annotate(
            about(point.context),
            (point.context, floor * (ceiling / floor) ** (0.015 + 0.05 * (index % 3))),
            xytext=(-4 if beyond_middle else 4, 0),
            textcoords="offset points",
            ha="right" if beyond_middle else "left",
            va="bottom",
            fontsize=8,
            color="#222222",
            zorder=6,
        )


def about(context: float) -> str:
    """A context between computed points, to three digits.

    >>> about(13000), about(1046000), about(3.4e6), about(700)
    ('≈ 12.7k', '≈ 1021k', '≈ 3.24M', '≈ 700')
    """
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if context >= size:
            number = context / size
            return f"≈ {number:.3g}{unit}" if number < 1000 else f"≈ {number:.0f}{unit}"
    return f"≈ {context:.3g}"


def _dress(panel: Any, rows: Sequence[Row]) -> None:
    """Logarithmic axes whose ticks read 4k, 1M and 20 ms."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    contexts = sorted({row["context"] for row in rows})
    if contexts[0] < contexts[-1]:
        powers = range(math.floor(math.log2(contexts[0])), math.ceil(math.log2(contexts[-1])) + 1)
        step = max(1, math.ceil(len(powers) / 9))
        panel.set_xticks([2.0**power for power in powers[::step]])
        panel.set_xlim(contexts[0] / 1.08, contexts[-1] * 1.08)
    else:
        panel.set_xticks(contexts)
        panel.set_xlim(contexts[0] / 2, contexts[0] * 2)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    low, high = panel.get_ylim()
    decades = math.log10(high / low)
    numerals = (1.0,) if decades > 4 else (1.0, 3.0) if decades > 2 else (1.0, 2.0, 5.0)
    panel.yaxis.set_major_locator(LogLocator(base=10, subs=numerals, numticks=20))
    # The ticks are powers of ten, which minutes and hours would hide.
    panel.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_seconds(value) if value < 1 else f"{value:,.0f} s")
    )
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(which="major", color="#DDDDDD", linewidth=0.6)
    panel.set_xlabel("context (tokens)")


def _legend(figure: Any, panel: Any) -> None:
    """Below the panels: the architectures, and what the two shades mean."""
    from matplotlib.patches import Patch

    handles, labels = panel.get_legend_handles_labels()
    handles += [
        Patch(color="#777777", alpha=0.32, linewidth=0),
        Patch(facecolor="#77777718", edgecolor="#77777780", linewidth=0.6),
    ]
    labels += ["80 % interval", "bounds: no waiting … no overlap"]
    columns = max(1, int(figure.get_figwidth() / 2.1))
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower left", ncols=columns, handlelength=2.4)
