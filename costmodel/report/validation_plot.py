"""Validation as figures, one per family: predicted over measured time, and the error over the context."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from costmodel.loading import write_atomically
from costmodel.report.plot import COLOURS, prepared_matplotlib

MOST_DOTS = 4000
MARKERS = ("o", "^", "s", "D")
"""The next one where the colours are used up."""
LARGEST_ERROR = 150.0
"""Percent; larger ones are drawn at the edge and counted."""


def draw_validation(folder: Path, outcomes: Sequence[Any], split: str) -> Iterator[Path]:
    """Write one .png per family into a folder, and give their paths. Raises BadInput without matplotlib."""
    prepared_matplotlib()
    import numpy
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    own = [outcome for outcome in outcomes if outcome.method == "costmodel" and len(outcome.rows)]
    for family in sorted({outcome.series.family for outcome in own}):
        same = [outcome for outcome in own if outcome.series.family == family]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
        systems = sorted({outcome.series.system for outcome in same})
        beyond = 0
        for index, system in enumerate(systems):
            mine = [outcome for outcome in same if outcome.series.system == system]
            measured = numpy.concatenate([outcome.series.seconds[outcome.rows] for outcome in mine])
            predicted = numpy.concatenate([outcome.seconds for outcome in mine])
            tokens = numpy.concatenate([outcome.series.tokens[outcome.rows] for outcome in mine])
            few = numpy.random.default_rng(0).permutation(len(measured))[:MOST_DOTS]
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]
            style: dict[str, Any] = dict(s=3, alpha=0.35, color=colour, marker=marker, linewidths=0)
            left.scatter(measured[few], predicted[few], label=f"{system} ({len(measured):,})", **style)
            errors = 100 * (predicted / measured - 1)
            beyond += int((errors > LARGEST_ERROR).sum())
            right.scatter(tokens[few], errors[few].clip(max=LARGEST_ERROR), **style)
        low, high = left.get_xlim()
        low = max(low, 1e-7)
        left.plot([low, high], [low, high], color="black", linewidth=0.8)
        left.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, s", title=family)
        left.legend(markerscale=4, fontsize=8, frameon=False)
        right.axhline(0, color="black", linewidth=0.8)
        above = f", {beyond:,} points above {LARGEST_ERROR:g} %" if beyond else ""
        limits = (-100, LARGEST_ERROR + 5)
        right.set(xscale="log", xlabel="tokens", ylabel="error, %", ylim=limits, title=f"split {split}{above}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        pyplot.close(figure)
        path = folder / f"{family}.png"
        write_atomically(path, buffer.getvalue())
        yield path
