"""Published comparisons of capability: `validation/papers/<name>/capability.yaml`, facts with their source.

schema: 1
title: what is compared
source: where the numbers stand
matched: true                  # one budget, data and recipe, as far as the source says
budget: what all were trained on (matched), or budgets: {model: …} and reason: why they are not comparable
caveat: what differs all the same
baseline: the model that the others are compared with
models:
  A: {architecture: name or file}
  B: {full_attention_of: name}   # the same model with its own full attention in every layer
  C: {architecture: null}        # dimensions not public
metrics:
- {name: MMLU, values: {A: 71.6, B: 73.8}}     # higher is better; second_hand: true where not read in the source
notes: […]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.analysis.full_attention import with_full_attention
from costmodel.architecture import Architecture
from costmodel.errors import unknown
from costmodel.loading import Problems, data_folder, read_mapping
from costmodel.model_file import load_architecture

FIELDS = (
    "schema",
    "title",
    "source",
    "matched",
    "budget",
    "budgets",
    "reason",
    "caveat",
    "baseline",
    "models",
    "metrics",
    "notes",
)


class Metric(NamedTuple):
    """A published score by model; higher is better. second_hand: not read in the source itself."""

    name: str
    values: Mapping[str, float]
    unit: str
    second_hand: bool


class Comparison(NamedTuple):
    """Models whose capability was published side by side.

    budgets: what each was trained on. reason: why models of unmatched budgets cannot be ranked, "" where they can.
    """

    name: str
    title: str
    source: str
    matched: bool
    budgets: Mapping[str, str]
    reason: str
    caveat: str
    baseline: str
    models: Mapping[str, Architecture | None]
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]


def papers_folder() -> Path:
    """Where the facts of papers lie: inside the installed package, or in a checkout's `validation/`."""
    installed = data_folder("papers")
    return installed if installed.is_dir() else installed.parent / "validation" / "papers"


def comparison_names() -> list[str]:
    """The papers with a comparison of capability."""
    return sorted(path.parent.name for path in papers_folder().glob("*/capability.yaml"))


def load_comparison(name: str) -> Comparison:
    """One comparison with its models. Raises BadInput for an unknown name, or with every problem of the file."""
    if name not in comparison_names():
        raise unknown("comparison", name, comparison_names())
    return read_comparison(papers_folder() / name / "capability.yaml")


def read_comparison(path: Path) -> Comparison:
    """The comparison that a file holds. Raises BadInput with every problem found."""
    raw = read_mapping(path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, FIELDS)
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    for field in ("title", "source", "baseline", "models", "metrics"):
        if not raw.get(field):
            problems.add(f"{field}: missing")
    matched = raw.get("matched")
    if not isinstance(matched, bool):
        problems.add(f"matched: {matched!r} is not true or false")
    needed = "budget" if matched else "reason"
    if not raw.get(needed):
        problems.add(f"{needed}: missing, which a comparison with matched: {str(matched).lower()} needs")
    models = problems.mapping(raw.get("models"), "models")
    budgets = problems.mapping(raw.get("budgets") or dict.fromkeys(models, str(raw.get("budget"))), "budgets")
    problems.unknown_keys(budgets, models, "budgets")
    for missing in models.keys() - budgets.keys():
        problems.add(f"budgets.{missing}: missing")
    if raw.get("baseline") not in models:
        problems.add(f"baseline: {raw.get('baseline')!r} is none of the models")
    metrics = [_metric(problems, entry, index, models) for index, entry in enumerate(raw.get("metrics") or [])]
    problems.raise_if_any()
    return Comparison(
        name=path.parent.name,
        title=str(raw["title"]),
        source=str(raw["source"]),
        matched=bool(matched),
        budgets={model: str(text) for model, text in budgets.items()},
        reason=str(raw.get("reason") or ""),
        caveat=str(raw.get("caveat") or ""),
        baseline=str(raw["baseline"]),
        models={model: _architecture(problems, path, model, entry) for model, entry in models.items()},
        metrics=tuple(metrics),
        notes=tuple(str(note) for note in raw.get("notes") or ()),
    )


def _metric(problems: Problems, entry: Any, index: int, models: Mapping[str, Any]) -> Metric:
    where = f"metrics.{index}"
    entry = problems.mapping(entry, where)
    problems.unknown_keys(entry, ("name", "values", "unit", "second_hand"), where)
    if not entry.get("name"):
        problems.add(f"{where}.name: missing")
    values = problems.mapping(entry.get("values"), f"{where}.values")
    problems.unknown_keys(values, models, f"{where}.values")
    scores = {model: problems.number(value, f"{where}.values.{model}") for model, value in values.items()}
    return Metric(str(entry.get("name")), scores, str(entry.get("unit") or "points"), bool(entry.get("second_hand")))


def _architecture(problems: Problems, path: Path, model: str, entry: Any) -> Architecture | None:
    given = problems.mapping(entry, f"models.{model}")
    problems.unknown_keys(given, ("architecture", "full_attention_of"), f"models.{model}")
    problems.raise_if_any()
    if given.get("full_attention_of"):
        return with_full_attention(load_architecture(str(given["full_attention_of"]))).model
    name = given.get("architecture")
    if name is None:
        return None
    beside = path.parent / str(name)
    return load_architecture(str(beside) if beside.is_file() else str(name))
