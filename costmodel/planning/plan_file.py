"""The file that `plan --out` writes, read back."""

from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.loading import parse_mapping, read_text

SCHEMA = 1
NEEDED = ("hw", "layout", "replicas", "gpus", "weights", "kv", "draft_tokens", "max_batched_tokens", "sequences")


def read_plan(path: Path) -> dict[str, Any]:
    """The object of a plan's file. Raises BadInput for any other file, and for one without a plan."""
    whole = parse_mapping(read_text(path), path, json=True)
    shown = str(path)[:200]
    if whole.get("command") != "plan" or whole.get("schema") != SCHEMA or not isinstance(whole.get("inputs"), dict):
        raise BadInput(f"{shown}: is not a file that `plan --out` wrote")
    rows = whole.get("rows")
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{shown}: holds no plan: nothing held the service level")
    for row in rows:
        missing = [key for key in NEEDED if not isinstance(row, dict) or key not in row]
        if missing:
            raise BadInput(f"{shown}: rows: {missing[0]} is missing")
    return whole
