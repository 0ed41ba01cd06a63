"""The accuracy tables of the documents, written from the rows of `validate --silicon`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.calibration_files import relatives
from costmodel.errors import BadInput
from costmodel.fitting.goals import UNSEEN_GPU, UNSEEN_SHAPE, Pair, aim, goal
from costmodel.fitting.scoring import FAMILIES
from costmodel.fitting.splits import parse_split
from costmodel.hardware import load_hardware
from costmodel.loading import write_atomically
from costmodel.report.columns import shows
from costmodel.report.layout import markdown_table

Row = Mapping[str, Any]
DEVICES = ("h100-sxm", "a100-sxm", "b200-sxm", "l40s")
ATTENTION = ("prefill-attention", "window-attention", "decode-attention")
LEFT_OUT_RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "head widths, H100 vLLM": ("unseen-head-dim", ("h100-sxm",), ("vllm",), ATTENTION),
    "L40S vLLM": ("unseen-head-dim", ("l40s",), ("vllm",), ATTENTION),
    "groups, H100 vLLM": ("unseen-group", ("h100-sxm",), ("vllm",), ATTENTION),
    "A100": ("unseen-group", ("a100-sxm",), (), ("prefill-attention", "decode-attention")),
}
"""Column of the table: split, systems, libraries and families of its run."""
BASELINES = ("costmodel+table", "table", "boosting", "roofline/0.75+3us", "roofline")
LONG = ", ≥ 128k tokens"
NOTHING = "–"


class Measured(NamedTuple):
    """What one run of `validate` says: rows of families and of kernels, and the figures of all points together."""

    families: list[dict[str, Any]]
    kernels: list[dict[str, Any]]
    together: dict[str, float | None]


def transfer_split(device: str, few: bool) -> str:
    """The split that predicts a device from the others, alone or with 20 points.

    >>> transfer_split("l40s", True)
    'unseen-gpu=l40s:points=20'
    """
    return f"unseen-gpu={device}" + (":points=20" if few else "")


def pair(errors: Sequence[float] | None, digits: int = 1) -> str:
    """Median / 90th percentile.

    >>> pair((4.26, 15.4)), pair(None)
    ('4.3 / 15', '–')
    """
    return NOTHING if errors is None else f"{errors[0]:.{digits}f} / {errors[1]:.0f}"


def aimed(wanted: Pair | None) -> str:
    """An aim as it was set.

    >>> aimed((1.5, 5))
    '1.5 / 5'
    """
    return NOTHING if wanted is None else f"{wanted[0]:g} / {wanted[1]:g}"


def judged(errors: Sequence[float] | None, wanted: Pair | None) -> str:
    """A pair, marked where it misses what was aimed at.

    >>> judged((6.2, 14.0), (6, 14)), judged((5.0, 14.0), (6, 14))
    ('6.2 / 14 ✗', '5.0 / 14')
    """
    missed = errors is not None and wanted is not None and not (errors[0] <= wanted[0] and errors[1] <= wanted[1])
    return pair(errors) + (" ✗" if missed else "")


def share(row: Row | None) -> str:
    """The share of points inside the 80 % interval."""
    return NOTHING if row is None or row["coverage80"] is None else f"{row['coverage80']:.0f}"


def table(heads: Sequence[str], left: int, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of texts whose first columns stand left and whose others stand right.

    >>> print(table(("a", "b"), 1, [("x", "1")]))
    | a | b |
    |---|---:|
    | x | 1 |
    """
    columns = [shows(str(place), head, right=place >= left) for place, head in enumerate(heads)]
    return markdown_table([{str(place): text for place, text in enumerate(row)} for row in rows], columns)


def replaced(text: str, title: str, new: str, where: str) -> str:
    """A document with the table under a heading replaced that begins with the same first row as the new one.

    Raises BadInput where there is no such table.

    >>> replaced("## A\\n\\n| a | b |\\n|---|\\n| old | 1 |\\n\\nend", "## A", "| a | b |\\n|---|\\n| new | 2 |", "x")
    '## A\\n\\n| a | b |\\n|---|\\n| new | 2 |\\n\\nend'
    """
    lines = text.split("\n")
    first = new.split("\n", 1)[0]
    try:
        start = lines.index(first, lines.index(title))
    except ValueError:
        raise BadInput(f"{where}: no table {first[:60]!r} under {title!r}") from None
    end = next((index for index in range(start, len(lines)) if not lines[index].startswith("|")), len(lines))
    return "\n".join([*lines[:start], new, *lines[end:]])


class Documents(NamedTuple):
    """The documents of a checkout and the runs that their tables are written from, by name."""

    root: Path
    runs: Mapping[str, Measured]

    def write(self) -> list[Path]:
        """Replace every table whose runs are all there, and name the files that were written."""
        texts: dict[str, str] = {}
        for (document, title), tables in TABLES.items():
            for needs, build in tables:
                if all(name in self.runs for name in needs):
                    text = texts.get(document) or (self.root / document).read_text()
                    texts[document] = replaced(text, title, build(self), document)
        for run, title in MISSING.items():
            if run in self.runs:
                before, found, after = texts[ACCURACY].partition(f"{title}\n")
                texts[ACCURACY] = before + found + SENTENCE.sub(missing_sentence(self, run), after, count=1)
        for document, text in texts.items():
            write_atomically(self.root / document, text.encode())
        return [self.root / document for document in texts]

    def rows(self, run: str) -> dict[str, dict[str, Any]]:
        """The rows of a run by family, none for a run that was not made."""
        return {row["family"]: row for row in self.runs[run].families} if run in self.runs else {}


def main_table(documents: Documents) -> str:
    """What is reached on unseen shapes, beyond the lengths and with 20 points, beside what was aimed at."""
    shapes, long, few = (documents.rows(name) for name in ("shapes", "extrapolate", "points=20"))
    heads = (
        "family|points judged|left out|unseen shapes|floor|stretch|in 80 %|≤ 2k → ≥ 8k|aim|20 points|aim|with the table"
    )
    heads += "|table|boosting"

    def line(family: str) -> tuple[str, ...]:
        row, wanted = shapes[family], goal(family)
        others = row["others"]
        return (
            family,
            f"{row['n']:,}",
            f"{row['flagged']:,}",
            judged(row["reached"], row["floor"]),
            aimed(row["floor"]),
            aimed(row["stretch"]),
            share(row),
            judged(long[family]["reached"], long[family]["floor"]) if family in long else NOTHING,
            aimed(wanted.long if wanted else None),
            judged(few[family]["reached"], few[family]["floor"]) if family in few and wanted else NOTHING,
            aimed(wanted.few if wanted else None),
            *(pair(others.get(name)) for name in ("costmodel+table", "table", "boosting")),
        )

    return table(heads.split("|"), 1, (line(family) for family in sorted(FAMILIES) if family in shapes))


def lengths_and_points(documents: Documents) -> str:
    """Beyond the lengths and with 20 points, with the numbers of points and the coverage."""
    long, few = documents.rows("extrapolate"), documents.rows("points=20")
    heads = ("family", "≤ 2k → ≥ 8k", "points", "aim", "in 80 %", "20 points", "points", "aim", "in 80 %")

    def half(row: Row | None, wanted: Pair | None) -> tuple[str, ...]:
        if row is None or row["reached"] is None:
            return NOTHING, NOTHING, aimed(wanted), NOTHING
        return judged(row["reached"], wanted), f"{row['n']:,}", aimed(wanted), share(row)

    def lines() -> Iterator[tuple[str, ...]]:
        for family in sorted(FAMILIES):
            wanted = goal(family)
            if wanted is not None:
                yield (family, *half(long.get(family), wanted.long), *half(few.get(family), wanted.few))

    return table(heads, 1, lines())


def left_out_values(documents: Documents) -> str:
    """Head widths and groups that no fit has seen."""

    def cell(row: Row | None) -> str:
        if row is None:
            return NOTHING
        return f"{judged(row['reached'], UNSEEN_SHAPE)} ({row['n']:,}; {share(row)})"

    heads = ("family", *LEFT_OUT_RUNS)
    runs = [documents.rows(name) for name in LEFT_OUT_RUNS]
    return table(heads, 1, ((family, *(cell(run.get(family)) for run in runs)) for family in sorted(ATTENTION)))


def transfers(documents: Documents, few: bool) -> str:
    """A device from the others' calibrations: datasheet numbers alone, or with 20 points per kernel."""
    runs = {device: documents.rows(transfer_split(device, few)) for device in DEVICES}
    nearest = {device: relatives(load_hardware(device))[0].name for device in DEVICES}
    heads = ("family", *(device if few else f"{device} from {nearest[device]}" for device in DEVICES))

    def cell(row: Row | None) -> str:
        if row is None or row["reached"] is None:
            return NOTHING
        said = judged(row["reached"], UNSEEN_GPU) if few else pair(row["reached"], 0)
        return f"{said} ({share(row)})"

    def lines() -> Iterator[tuple[str, ...]]:
        for family in sorted(FAMILIES):
            cells = tuple(cell(runs[device].get(family)) for device in DEVICES)
            # With points, only families with an aim of their own are judged.
            if any(one != NOTHING for one in cells) and not (few and goal(family) is None):
                yield (family, *cells)
        if not few:
            together = [documents.runs[transfer_split(device, few)].together for device in DEVICES]
            yield ("**all**", *(f"{pair((one['median_ape'] or 0.0, one['p90_ape'] or 0.0), 0)} ({share(one)})"
                                for one in together))  # fmt: skip

    return table(heads, 1, lines())


def beside_baselines(documents: Documents, run: str) -> str:
    """The calibration beside the baselines on the same points."""
    rows = documents.rows(run)
    lines = (
        (family, pair(rows[family]["reached"]), *(pair(rows[family]["others"].get(name)) for name in BASELINES))
        for family in sorted(FAMILIES)
        if family in rows
    )
    return table(("family", "costmodel", *BASELINES), 1, lines)


def longest(documents: Documents) -> str:
    """Of the unseen shapes, those with the longest prefixes."""
    rows = {name.removesuffix(LONG): row for name, row in documents.rows("shapes").items() if name.endswith(LONG)}
    heads = ("family", "points", "error", "in 80 %")
    return table(
        heads, 1, ((name, f"{row['n']:,}", pair(row["reached"]), share(row)) for name, row in sorted(rows.items()))
    )


def wanted_of(family: str, run: str) -> Pair | None:
    """What a run asks of the kernels of a family."""
    return aim(family, parse_split(run).kind, parse_split(run).points)[0]


def missing_kernels(documents: Documents, run: str) -> list[dict[str, Any]]:
    """Kernels whose own points miss what a run asks of their family."""

    def over(row: Row) -> bool:
        wanted = wanted_of(row["family"], run)
        if wanted is None or not row["n"]:
            return False
        return bool(row["median_ape"] > wanted[0] or row["p90_ape"] > wanted[1])

    return [row for row in documents.runs[run].kernels if over(row)]


SENTENCE = re.compile(r"\d[\d,]* of \d[\d,]* kernels, holding \d[\d,]* of \d[\d,]* points\.")


def missing_sentence(documents: Documents, run: str) -> str:
    """How many kernels miss what is asked, and what part of all points they hold."""
    counted = [row for row in documents.runs[run].kernels if wanted_of(row["family"], run) and row["n"]]
    missing = missing_kernels(documents, run)
    points = (sum(row["n"] for row in rows) for rows in (missing, counted))
    return f"{len(missing):,} of {len(counted):,} kernels, holding {next(points):,} of {next(points):,} points."


def misses(documents: Documents, run: str) -> str:
    """The kernels that miss what a run asks, by family; bias: the median signed error."""
    heads = ("device", "library", "family", "kernel", "points", "error", "bias", "aim", "in 80 %")
    missing = missing_kernels(documents, run)
    ordered = sorted(missing, key=lambda row: (row["family"], row["system"], row["library"]))

    def line(row: Row) -> tuple[str, ...]:
        error = pair((row["median_ape"], row["p90_ape"]))
        library = f"{row['library']} {row['version']}".strip()
        own = (row["system"], library, row["family"], row["kernel"])
        wanted = aimed(wanted_of(row["family"], run))
        return (*own, f"{row['n']:,}", error, f"{row['bias']:+.0f}", wanted, share(row))

    return table(heads, 4, (line(row) for row in ordered))


def flagged(documents: Documents) -> str:
    """How many points the rules left out, by family, device and library."""
    counts: dict[str, dict[str, int]] = {}
    for row in documents.runs["shapes"].kernels:
        own = counts.setdefault(row["family"], {})
        place = f"{row['system']} {row['library']}"
        own[place] = own.get(place, 0) + row["flagged"]
    told = {
        family: ", ".join(f"{place} {number:,}" for place, number in sorted(own.items()) if number)
        for family, own in sorted(counts.items())
    }
    return table(("family", "points left out"), 2, ((family, text) for family, text in told.items() if text))


ACCURACY, README = "validation/accuracy.md", "README.md"
MISSING = {
    "shapes": "## Kernels that miss the floor on unseen shapes",
    "extrapolate": "## Kernels that miss the aim beyond the lengths",
    "points=20": "## Kernels that miss the aim with 20 points",
}
Build = Callable[[Documents], str]
MAIN: tuple[tuple[str, ...], Build] = (("shapes", "extrapolate", "points=20"), main_table)
TABLES: dict[tuple[str, str], list[tuple[tuple[str, ...], Build]]] = {
    (README, "## How right the times are"): [MAIN],
    (ACCURACY, "## Unseen shapes"): [MAIN],
    (ACCURACY, "## Longer than anything fitted, and 20 points per kernel"): [
        (("extrapolate", "points=20"), lengths_and_points)
    ],
    (ACCURACY, "## Head widths and groups that no fit has seen"): [(tuple(LEFT_OUT_RUNS), left_out_values)],
    (ACCURACY, "## A device that no fit has seen"): [
        (tuple(transfer_split(device, few) for device in DEVICES), partial(transfers, few=few)) for few in (False, True)
    ],
    (ACCURACY, "## Beside the baselines, on unseen shapes"): [(("shapes",), partial(beside_baselines, run="shapes"))],
    (ACCURACY, "## Beside the baselines, beyond the measured lengths"): [
        (("extrapolate",), partial(beside_baselines, run="extrapolate"))
    ],
    (ACCURACY, "## Contexts of 128k tokens and more"): [(("shapes",), longest)],
    **{(ACCURACY, title): [((run,), partial(misses, run=run))] for run, title in MISSING.items()},
    (ACCURACY, "## Points left out by rule"): [(("shapes",), flagged)],
}
"""Document and heading: the runs that each of its tables needs, and how it is written."""
