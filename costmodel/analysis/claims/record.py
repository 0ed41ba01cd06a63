"""The verdicts as they were last recorded, so that one that changes is seen: `validation/papers/verdicts.yaml`.

The file is written by `claims --record`, and holds no more than what a run found: nothing is judged by it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from costmodel.analysis.comparisons import papers_folder
from costmodel.loading import read_mapping

FILE = "verdicts.yaml"
HEAD = "# Written by `costmodel claims --record FILE`; `costmodel claims --check` compares.\nschema: 1\nverdicts:\n"


def record_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """The file that records the verdicts of these rows.

    >>> print(record_text([{"id": "a", "verdict": "reproduced"}]).splitlines()[-1])
      a: reproduced
    """
    return HEAD + "".join(f"  {row['id']}: {row['verdict']}\n" for row in rows)


def recorded() -> dict[str, str]:
    """Claim → verdict of the recorded file, empty where there is none."""
    path = papers_folder() / FILE
    return dict(read_mapping(path)["verdicts"]) if path.is_file() else {}


def changes(rows: Iterable[Mapping[str, Any]], before: Mapping[str, str]) -> list[str]:
    """What differs from the record, a line for each claim.

    >>> changes([{"id": "a", "verdict": "contradicted", "reason": "0.7 of claimed"}], {"a": "reproduced"})
    ['a: reproduced → contradicted (0.7 of claimed)']
    """
    return [
        f"{row['id']}: {before.get(row['id'], 'not recorded')} → {row['verdict']} ({row['reason']})"
        for row in rows
        if before.get(row["id"]) != row["verdict"]
    ]
