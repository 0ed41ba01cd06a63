"""Every accuracy table of the documents, measured again: `python -m validation.accuracy DIR [SPLIT …]`.

Each run of `validate --silicon` that a table rests on is made with the calibrations as they are, and its rows are kept
under `build/accuracy/`, so that an interrupted hour goes on where it stopped; then the tables of README.md and
validation/accuracy.md are written from what is kept. With SPLIT only those runs are made; `--tables` makes none.
Remove the folder after calibrations or forms have changed.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from costmodel.errors import BadInput
from costmodel.fitting import scoring
from costmodel.fitting.goals import GOALS
from costmodel.fitting.splits import parse_split
from costmodel.loading import write_atomically
from validation.accuracy_tables import DEVICES, LEFT_OUT_RUNS, Documents, Measured, transfer_split

KEPT = Path("build/accuracy")
LENGTHS = tuple(family for goal in GOALS if goal.long for family in goal.families if family != "recurrent-step")
"""Families with an aim beyond their measured lengths; the tables of recurrent steps hold no lengths."""


class Run(NamedTuple):
    """One run of `validate --silicon`: its name in the kept files, and what it is restricted to."""

    name: str
    split: str
    systems: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    methods: tuple[str, ...] = (scoring.MODEL,)


RUNS = (
    Run("shapes", "shapes", methods=scoring.METHODS),
    Run("extrapolate", "extrapolate", families=LENGTHS, methods=scoring.METHODS),
    Run("points=20", "points=20"),
    *(Run(transfer_split(device, few), transfer_split(device, few)) for few in (False, True) for device in DEVICES),
    *(Run(name, *asked) for name, asked in LEFT_OUT_RUNS.items()),
)


def measured(directory: Path, run: Run, processes: int) -> Measured:
    """What a run says: one row for each family, one for each kernel, and one over all points together."""
    split = parse_split(run.split)
    wanted = scoring.jobs(directory, run.systems, run.libraries, run.families, split, run.methods)
    outcomes, _ = scoring.run(
        wanted, processes, lambda name, left: print(f"{run.name}: {name} done, {left} left", file=sys.stderr)
    )
    own = [outcome for outcome in outcomes if outcome.method == scoring.MODEL and len(outcome.rows)]
    inside = numpy.concatenate([outcome.inside for outcome in own if outcome.inside is not None])
    return Measured(
        families=scoring.summaries(outcomes, split),
        kernels=[row._asdict() for row in scoring.scores(outcomes, split.text) if row.method == scoring.MODEL],
        together=scoring.statistics(numpy.concatenate([outcome.gaps for outcome in own]), inside),
    )


def kept(folder: Path) -> dict[str, Measured]:
    """What earlier runs left. Raises BadInput for a file that is none of ours."""
    found = {}
    for run in RUNS:
        path = folder / f"{run.name}.json"
        if path.exists():
            try:
                found[run.name] = Measured(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise BadInput(f"{path}: {error}; remove it to measure again") from None
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure what is not kept, and write the tables."""
    names = [run.name for run in RUNS]
    unknown = [name for name in arguments[1:] if name not in (*names, "--tables")]
    if not arguments or unknown:
        print(f"usage: python -m validation.accuracy DIR [--tables | {' | '.join(names)} …]", file=sys.stderr)
        return 2
    asked = [run for run in RUNS if run.name in (arguments[1:] or names)]
    try:
        found: dict[str, Any] = kept(KEPT)
        for run in asked:
            if run.name not in found:
                found[run.name] = measured(Path(arguments[0]), run, os.cpu_count() or 1)
                KEPT.mkdir(parents=True, exist_ok=True)
                write_atomically(KEPT / f"{run.name}.json", json.dumps(found[run.name]._asdict()).encode())
        for path in Documents(Path(), found).write():
            print(f"wrote {path}")
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
