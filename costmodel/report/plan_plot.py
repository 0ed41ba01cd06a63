"""A search as a figure: tokens/s per GPU over tokens/s of a user, coloured by layout, with the frontier."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.loading import write_atomically
from costmodel.planning.question import Question
from costmodel.report.output import plot_format
from costmodel.report.plot import COLOURS

MOST_LAYOUTS = 8
"""Layouts that have a colour of their own: those of the frontier, then those that come closest to it."""

Row = Mapping[str, Any]


def draw_plan(
    path: str, name: str, question: Question, cloud: Sequence[Row], frontier: Sequence[Row], plans: Sequence[Row]
) -> None:
    """Write the figure to a .png or .svg file, whole or not at all: a panel for each device.

    cloud: what each layout can do at its best; frontier: what no other beats; plans: those chosen for the load.
    Raises BadInput without matplotlib.
    """
    form = plot_format(path)
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib; install it with: pip install 'costmodel[plot]'") from None
    matplotlib.use("Agg")
    settings: dict[Any, Any] = {"svg.hashsalt": "costmodel", "svg.fonttype": "none", "font.size": 9}
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure = _figure(name, question, cloud, frontier, plans)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=160, bbox_inches="tight", metadata=metadata)
    write_atomically(Path(path), buffer.getvalue())


def split_of(layout: str) -> str:
    """How a layout splits the model, without how many workers there are.

    >>> split_of("prefill:3xtp2,decode:12xtp8"), split_of("tp8")
    ('prefill tp2, decode tp8', 'tp8')
    """
    parts = [part.partition(":") for part in layout.split(",")]
    if not parts[0][1]:
        return layout
    return ", ".join(f"{role} {workers.partition('x')[2]}" for role, _, workers in parts)


def _figure(name: str, question: Question, cloud: Sequence[Row], frontier: Sequence[Row], plans: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    devices = list(dict.fromkeys(row["hw"] for row in cloud))
    figure = Figure(figsize=(6.4 * len(devices), 5.2), layout="constrained")
    panels = figure.subplots(1, len(devices), squeeze=False, sharex=True, sharey=True)[0]
    for panel, device in zip(panels, devices, strict=True):
        own = [row for row in cloud if row["hw"] == device]
        edge = _edge(row for row in own if row["within_level"])
        _panel(panel, question, own, edge, [row for row in plans if row["hw"] == device])
        panel.set_title(f"{name} on {device}", loc="left", fontweight="bold")
        panel.set_xlabel("output tokens/s of a user (1/TPOT)")
    panels[0].set_ylabel("output tokens/s per GPU")
    return figure


def _edge(rows: Any) -> list[Row]:
    """The frontier of one device, the fastest for a user first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row["output_tokens_per_s_user"], -row["output_tokens_per_s_gpu"])):
        if not found or row["output_tokens_per_s_gpu"] > found[-1]["output_tokens_per_s_gpu"]:
            found.append(row)
    return found


def _panel(panel: Any, question: Question, rows: Sequence[Row], edge: Sequence[Row], plans: Sequence[Row]) -> None:
    shown = list(dict.fromkeys(split_of(row["layout"]) for row in edge))[:MOST_LAYOUTS]
    if len(shown) < MOST_LAYOUTS:
        rest = sorted(rows, key=lambda row: -row["output_tokens_per_s_gpu"] * row["output_tokens_per_s_user"])
        more = dict.fromkeys(split_of(row["layout"]) for row in rest)
        shown += [name for name in more if name not in shown][: MOST_LAYOUTS - len(shown)]
    others = [row for row in rows if split_of(row["layout"]) not in shown]
    _scatter(panel, others, "#C9C9C9", f"others ({len({split_of(row['layout']) for row in others})} layouts)", 6)
    for name, colour in zip(shown, COLOURS, strict=False):
        _scatter(panel, [row for row in rows if split_of(row["layout"]) == name], colour, name, 14)
    if edge:
        x, y = ([row[key] for row in edge] for key in ("output_tokens_per_s_user", "output_tokens_per_s_gpu"))
        panel.plot(x, y, color="#222222", linewidth=1.2, label="frontier within the service level", zorder=4)
    for row in plans:
        point = row["output_tokens_per_s_user"], row["output_tokens_per_s_gpu"]
        panel.plot(*point, marker="*", markersize=15, color="#222222", markerfacecolor="#FFD23F", zorder=6)
        panel.annotate(
            f"plan for the load:\n{row['layout']},\n{row['gpus']} GPUs",
            point,
            xytext=(0.98, 0.03),
            textcoords="axes fraction",
            ha="right",
            va="bottom",
            fontsize=8,
            fontweight="bold",
            arrowprops=dict(arrowstyle="-", color="#222222", linewidth=0.8, shrinkB=6),
            bbox=dict(boxstyle="round,pad=0.2", facecolor="white", edgecolor="none", alpha=0.85),
            zorder=7,
        )
    if question.level.tpot_s is not None:
        panel.axvline(1.0 / question.level.tpot_s, color="#B00020", linewidth=1.0, linestyle="--", zorder=3)
        panel.annotate(
            f"TPOT {question.level.tpot_s * 1e3:g} ms",
            (1.0 / question.level.tpot_s, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            color="#B00020",
            fontsize=8,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(color="#E4E4E4", linewidth=0.6, which="major")
    panel.set_axisbelow(True)
    panel.legend(fontsize=7, loc="lower left", framealpha=0.9)


def _scatter(panel: Any, rows: Sequence[Row], colour: str, label: str, size: float) -> None:
    """Filled where the service level holds, hollow where not."""
    if not rows:
        return
    for within in (True, False):
        some = [row for row in rows if row["within_level"] == within]
        panel.scatter(
            [row["output_tokens_per_s_user"] for row in some],
            [row["output_tokens_per_s_gpu"] for row in some],
            s=size,
            edgecolors=colour,
            facecolors=colour if within else "none",
            linewidths=0.7,
            label=label if within == any(row["within_level"] for row in rows) else None,
            zorder=2,
        )
