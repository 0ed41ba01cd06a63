"""From a claim to a verdict: every number of it predicted under its set-up, and compared.

A claim of several numbers is reproduced when each of them is within the tolerance; how many are is told beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from costmodel.analysis.claims.curves import SHAPES
from costmodel.analysis.claims.files import UNITS, Change, Claim, load_claims
from costmodel.analysis.claims.quantities import QUANTITIES
from costmodel.analysis.claims.setups import SetUp
from costmodel.analysis.claims.values import COMPARISONS, COUNTED, Value, weaker
from costmodel.analysis.claims.wording import command, commands, point_text, setup_text, span
from costmodel.errors import BadInput, Impossible
from costmodel.fit import BASES

REPRODUCED, CONDITIONAL, CONTRADICTED, UNSTATED = "reproduced", "reproduced-if", "contradicted", "setup-unstated"
VERDICTS = (REPRODUCED, CONDITIONAL, CONTRADICTED, UNSTATED)


class Outcome(NamedTuple):
    """The predicted numbers of a claim in its unit, and each over the claimed one."""

    values: tuple[Value, ...]
    ratios: tuple[float, ...]
    holds: tuple[bool, ...]

    @property
    def all_hold(self) -> bool:
        """Whether every number is as claimed."""
        return all(self.holds)


def holds(ratio: float, relation: str, tolerance: float) -> bool:
    """Whether predicted over claimed is as the claim has it.

    >>> holds(1.14, "equals", 0.15), holds(0.84, "equals", 0.15), holds(2.0, "at-least", 0.15)
    (True, False, True)
    """
    low, high = 1 - tolerance <= ratio, ratio <= 1 + tolerance
    return {"equals": low and high, "at-least": low, "at-most": high}[relation]


def evaluate(claim: Claim, change: Change | None = None) -> Outcome:
    """The claim's numbers under its set-up, or under a changed one. Raises as predictions do."""
    quantity = QUANTITIES[(change.quantity if change else None) or claim.quantity]
    compared = (change.compared if change else None) or claim.compared
    values = []
    for point in claim.points:
        own = claim.setup.changed(point)
        changed = own.changed(change.setup) if change else own
        value = _measured(claim.shape, quantity, changed)
        if claim.baseline is not None and compared is not None:
            base = own.changed(claim.baseline)
            if change:
                # A condition holds for both, unless the baseline's own entries, or the condition's for it, say else.
                base = own.changed(change.setup).changed(claim.baseline).changed(change.baseline or {})
            value = COMPARISONS[compared](value, _measured(claim.shape, quantity, base))
        values.append(value)
    si = UNITS[claim.unit]
    ratios = tuple(
        _over(value.value, claimed, compared, si) for value, claimed in zip(values, claim.claimed, strict=True)
    )
    shown = tuple(value.scaled(1 / si) for value in values)
    return Outcome(shown, ratios, tuple(holds(ratio, claim.relation, claim.tolerance) for ratio in ratios))


def _over(predicted: float, claimed: float, compared: str | None, si: float) -> float:
    """Predicted over claimed; of what is saved, the part that is left, so that 90 % is not near 95 %.

    >>> _over(0.9, 95, "cut", 0.01), _over(2.0, 4.0, None, 1.0)
    (2.0, 0.5)
    """
    if compared == "cut":
        return round((1 - predicted) / (1 - claimed * si), 12)
    return predicted / (claimed * si)


def _measured(shape: str | None, quantity: Any, setup: SetUp) -> Value:
    return quantity(setup) if shape is None else SHAPES[shape](quantity, setup)


def judge(claim: Claim, fair: bool = True) -> dict[str, Any]:
    """The row of a claim: see `judged`. fair: also the fair set-up, which the verdict does not look at."""
    outcome, why_not = _tried(claim)
    conditional, refused = None, ""
    if claim.condition is not None and not (outcome and outcome.all_hold):
        conditional, refused = _tried(claim, claim.condition)
    aside = _tried(claim, claim.fair)[0] if fair and claim.fair else None
    if claim.unstated:
        verdict = UNSTATED
    elif outcome is not None and outcome.all_hold:
        verdict = REPRODUCED
    else:
        verdict = CONDITIONAL if conditional is not None and conditional.all_hold else CONTRADICTED
    reason = _reason(claim, outcome, why_not, conditional, refused)
    return _row(claim, outcome, conditional, aside, verdict, reason)


def _tried(claim: Claim, change: Change | None = None) -> tuple[Outcome | None, str]:
    """What comes out, or why nothing does. Raises BadInput, which names the claim, for a set-up with a mistake."""
    try:
        return evaluate(claim, change), ""
    except Impossible as error:
        return None, f"cannot be run: {error}"
    except BadInput as error:
        raise BadInput(f"{claim.paper}, claim {claim.id}: {error}") from None


def judged(
    ids: Sequence[str] = (), everything: bool = True, step: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """A row for each claim of these names (none: all), in the order of the files.

    everything: also claims that are uncertain or whose set-up is not stated. step: is called after each claim with the
    number of all. Keys: id, paper, mechanism, what, kind, source, uncertain, unstated, setup, unit, claimed, predicted,
    low, high (80 % interval), ratio (predicted over claimed; of a cut, what is left), verdict, reason, tolerance,
    points, points_within (points_within_if: under the condition, of the numbers that did not give its parameters),
    points_in_interval, basis, condition, condition_split (whether every second number gave them),
    condition_predicted, condition_ratio, fair, fair_predicted, fair_low, fair_high, command, commands. Of a claim of
    several numbers, claimed, predicted, low, high and the ratios are lists, and `at` names the points.

    Raises BadInput for an unknown name, or with every problem of a file.
    """
    claims = load_claims(ids)
    if not everything:
        claims = [claim for claim in claims if not claim.uncertain and not claim.unstated]
    rows = []
    for claim in claims:
        rows.append(judge(claim))
        if step is not None:
            step(len(claims))
    return rows


def tally(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How many claims there are and how they fare. The shares are of those that are certain and whose set-up is stated.

    setup_unstated_within: of the others, those of which every number comes out under the set-up that is taken instead.
    median_within: contradicted ones whose median number is within the tolerance all the same. points, points_within:
    numbers of these claims, and those within the tolerance under the set-up as stated; points_within_or_if: under that
    or the condition, whichever has more of a claim. reproduced_if_split: of reproduced_if, those whose kernel has
    parameters from every second number of the claim. points_timed, points_in_interval: numbers that are times or come
    from them, and those whose claimed value lies in the 80 % interval.
    """
    rows = list(rows)
    certain = [row for row in rows if not row["uncertain"]]
    stated = [row for row in certain if not row["unstated"]]
    counts = {verdict: sum(row["verdict"] == verdict for row in stated) for verdict in VERDICTS[:3]}
    n = len(stated)
    timed = [row for row in stated if row["basis"] not in (None, COUNTED)]
    return {
        "claims": len(rows),
        "stated_and_certain": n,
        **{name.replace("-", "_"): count for name, count in counts.items()},
        **{f"{name.replace('-', '_')}_share": count / n if n else None for name, count in counts.items()},
        "reproduced_if_split": sum(row["verdict"] == CONDITIONAL and row["condition_split"] for row in stated),
        "setup_unstated": sum(bool(row["unstated"]) for row in certain),
        "setup_unstated_within": sum(
            bool(row["unstated"]) and row["points_within"] == row["points"] for row in certain
        ),
        "uncertain": len(rows) - len(certain),
        "median_within": sum(_median_holds(row) for row in stated if row["verdict"] == CONTRADICTED),
        "points": sum(row["points"] for row in stated),
        "points_within": sum(row["points_within"] for row in stated),
        "points_timed": sum(row["points"] for row in timed),
        "points_in_interval": sum(row["points_in_interval"] for row in timed),
        "points_within_or_if": sum(max(row["points_within"], row["points_within_if"] or 0) for row in stated),
    }


def tally_by_basis(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tally of the claims that are certain and state their set-up, for each basis of their numbers."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["basis"] is not None and not row["uncertain"] and not row["unstated"]:
            found.setdefault(row["basis"], []).append(row)
    return [{"basis": basis, **tally(found[basis])} for basis in (COUNTED, *BASES) if basis in found]


def _median_holds(row: Mapping[str, Any]) -> bool:
    ratios = row["ratio"]
    if not isinstance(ratios, list):
        return False
    return holds(median(ratios), row["relation"], row["tolerance"])


def _shown(values: Sequence[Any]) -> Any:
    """One number as such, several as a list."""
    return values[0] if len(values) == 1 else list(values)


def _row(
    claim: Claim,
    outcome: Outcome | None,
    conditional: Outcome | None,
    fair: Outcome | None,
    verdict: str,
    reason: str,
) -> dict[str, Any]:
    values = outcome.values if outcome else ()
    inside = [value.low <= claimed <= value.high for value, claimed in zip(values, claim.claimed, strict=False)]
    return {
        "id": claim.id,
        "mechanism": claim.mechanism,
        "source": claim.source,
        "setup": setup_text(claim),
        "claimed": _shown(claim.claimed),
        "predicted": _shown([value.value for value in values]) if values else None,
        "low": _shown([value.low for value in values]) if values else None,
        "high": _shown([value.high for value in values]) if values else None,
        "ratio": _shown(outcome.ratios) if outcome else None,
        "verdict": verdict,
        "reason": reason,
        "paper": claim.paper,
        "what": claim.what,
        "kind": claim.kind,
        "uncertain": claim.uncertain,
        "unstated": list(claim.unstated),
        "unit": claim.unit,
        "relation": claim.relation,
        "at": [point_text(point) for point in claim.points] if len(claim.points) > 1 else None,
        "tolerance": claim.tolerance,
        "points": len(claim.claimed),
        "points_within": sum(outcome.holds) if outcome else 0,
        "points_within_if": sum(_judging(claim.condition, conditional.holds)) if conditional else None,
        "points_in_interval": sum(inside),
        "basis": weaker(*(value.basis for value in values)) if values else None,
        "condition": claim.condition.text if claim.condition else None,
        "condition_split": claim.condition is not None and claim.condition.split,
        "condition_predicted": _shown([value.value for value in conditional.values]) if conditional else None,
        "condition_ratio": _shown(conditional.ratios) if conditional else None,
        "fair": claim.fair.text if claim.fair else None,
        "fair_predicted": _shown([value.value for value in fair.values]) if fair else None,
        "fair_low": _shown([value.low for value in fair.values]) if fair else None,
        "fair_high": _shown([value.high for value in fair.values]) if fair else None,
        "command": command(claim),
        "commands": commands(claim),
    }


def _reason(claim: Claim, outcome: Outcome | None, why_not: str, conditional: Outcome | None, refused: str) -> str:
    """Why the verdict is what it is, from the numbers; then what the claim's file says of a difference."""
    parts = []
    found = _found(claim, outcome) if outcome else why_not
    if claim.unstated:
        parts.append(f"not stated: {', '.join(claim.unstated)}; with the set-up that is taken instead, {found}")
    else:
        parts.append(found)
    if claim.condition is not None and (conditional or refused):
        then = _found(claim, conditional, claim.condition) if conditional else refused
        parts.append(f"if {claim.condition.text}: {then}")
    if claim.why and not (outcome and outcome.all_hold):
        parts.append(claim.why)
    return "; ".join(parts)


def _judging(change: Change | None, holds: Sequence[bool]) -> Sequence[bool]:
    """Of a claim's numbers under a condition, those that its parameters were not fitted to."""
    return holds[1::2] if change is not None and change.split else holds


def _found(claim: Claim, outcome: Outcome, change: Change | None = None) -> str:
    n, within = len(outcome.holds), sum(outcome.holds)
    text = f"predicted is {span(outcome.ratios)} of claimed"
    if claim.relation != "equals":
        text += f", claimed as {claim.relation.replace('-', ' ')}"
    if n > 1:
        text += f", {within} of {n} within {claim.tolerance:.0%}"
        if change is not None and change.split:
            text += f", {n - n // 2} of which gave the parameters"
    basis = weaker(*(value.basis for value in outcome.values))
    return f"{text} ({basis})"
