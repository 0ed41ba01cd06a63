"""Published claims as data: `validation/papers/<name>/claims.yaml`, facts in own words with their source.

schema: 1
title: whose claims they are
source: where they stand
tolerance: 0.15                # how far a predicted number may be from the claimed one, as a share of it
setups:                        # named set-ups that claims start from, see `setups.SetUp`
  node: {architecture: kimi-linear-48b-a3b, hardware: h800, layout: tp8}
published:                     # tables of a kernel that nobody else measured: for claims of other sources, all numbers
  fa2-h100.yaml: [fa2-h100-full]         # of these claims give its parameters, written to this file
claims:
- id: kimi-prefill
  mechanism: kda               # what the claim is about, in words
  what: prefill time           # what was measured
  kind: figure                 # text (stated in text, a table or a log) or figure (read off one)
  unstated: [hardware]         # what the source does not say; the set-up then holds what is taken instead
  uncertain: false             # true: second-hand or known to be flawed
  quantity: time               # one of `quantities.QUANTITIES`; shape: slope, knee or exponent of its curve
  setup: {from: node, phase: prefill}
  over: {context: [4096, 8192]}          # one value for each claimed number
  baseline: {full_attention: true}       # changes that give what it is compared with
  as: times-less                         # times-less, times-more or cut
  unit: s
  claimed: [0.103, 0.132]
  relation: equals             # or at-least, at-most
  condition: {text: …, setup: {…}, baseline: {…}}      # entries of the set-up under which it is asked again
                               # split: true: its calibration was fitted to every second number, from the first
  fair: {text: …, setup: {…}, baseline: {…}, quantity: …}
  why: what explains a difference, where something does
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.analysis.claims.curves import SHAPES
from costmodel.analysis.claims.quantities import QUANTITIES
from costmodel.analysis.claims.setups import SetUp, entries, entry
from costmodel.analysis.claims.values import COMPARISONS
from costmodel.analysis.comparisons import papers_folder
from costmodel.errors import unknown
from costmodel.loading import Problems, read_mapping

FILE = "claims.yaml"
FIELDS = ("schema", "title", "source", "tolerance", "setups", "published", "claims")
CLAIM_FIELDS = (
    "id",
    "mechanism",
    "what",
    "kind",
    "source",
    "uncertain",
    "unstated",
    "quantity",
    "shape",
    "setup",
    "over",
    "baseline",
    "as",
    "unit",
    "claimed",
    "relation",
    "tolerance",
    "condition",
    "fair",
    "why",
)
CHANGE_FIELDS = ("text", "setup", "baseline", "quantity", "as", "split")
KINDS = ("text", "figure")
RELATIONS = ("equals", "at-least", "at-most")
UNITS = {
    "": 1.0,
    "x": 1.0,
    "%": 0.01,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "tok/s": 1.0,
    "tok/s/GPU": 1.0,
    "tok/s/8 GPUs": 1 / 8,
    "TFLOPS": 1e12,
    "GB/s": 1e9,
    "TB/s": 1e12,
    "GFLOP": 1e9,
    "PFLOP": 1e15,
    "1e16 FLOP": 1e16,
    "B": 1.0,
    "MB": 1e6,
    "MiB": 2.0**20,
    "GB": 1e9,
    "GiB": 2.0**30,
    "$/M tokens": 1e-6,
    "$/M tokens/M context": 1e-12,
    "tokens": 1.0,
    "sequences": 1.0,
}
"""SI values of the units in which claims are written."""


class Change(NamedTuple):
    """A set-up that differs from the claim's: its own entries, those of the baseline, and what is asked of them.

    split: the parameters of its calibration come from every second number of the claim, from the first; the others
    judge them.
    """

    text: str
    setup: Mapping[str, Any]
    baseline: Mapping[str, Any] | None
    quantity: str | None
    compared: str | None
    split: bool = False


class Claim(NamedTuple):
    """One published claim. points: for each claimed number the entries of the set-up that belong to it."""

    id: str
    paper: str
    mechanism: str
    what: str
    kind: str
    source: str
    uncertain: bool
    unstated: tuple[str, ...]
    quantity: str
    shape: str | None
    setup: SetUp
    points: tuple[Mapping[str, Any], ...]
    baseline: Mapping[str, Any] | None
    compared: str | None
    unit: str
    claimed: tuple[float, ...]
    relation: str
    tolerance: float
    condition: Change | None
    fair: Change | None
    why: str


def claim_files() -> list[Path]:
    """The files with claims, one for each paper."""
    return sorted(papers_folder().glob(f"*/{FILE}"))


def load_claims(ids: Sequence[str] = ()) -> list[Claim]:
    """All claims, or those that names mean: a claim's id, a paper's folder, or the beginning of ids.

    Raises BadInput for an unknown name, or with every problem of a file.
    """
    known = [claim for path in claim_files() for claim in read_claims(path)]
    found: list[Claim] = []
    for name in ids:
        exact = [claim for claim in known if name in (claim.id, claim.paper)]
        meant = exact or [claim for claim in known if name and claim.id.startswith(name)]
        if not meant:
            names = dict.fromkeys(name for claim in known for name in (claim.paper, claim.id))
            raise unknown("claim", name, names)
        found += [claim for claim in meant if claim not in found]
    return found if ids else known


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file. Raises BadInput with every problem found."""
    raw = read_mapping(path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, FIELDS)
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    for field in ("title", "source", "tolerance", "claims"):
        if not raw.get(field):
            problems.add(f"{field}: missing")
    folder = path.parent
    named = {
        name: entries(problems, entry, f"setups.{name}", folder)
        for name, entry in problems.mapping(raw.get("setups") or {}, "setups").items()
    }
    tolerance = problems.number(raw.get("tolerance"), "tolerance", most=1.0)
    found, seen = [], set()
    for index, item in enumerate(raw.get("claims") or []):
        where = f"claims.{item.get('id', index) if isinstance(item, dict) else index}"
        reader = _Reader(problems, problems.mapping(item, where), where, folder, named)
        claim = reader.claim(folder.name, str(raw.get("source")), tolerance)
        if claim.id in seen:
            problems.add(f"{where}: stands twice")
        seen.add(claim.id)
        found.append(claim)
    problems.raise_if_any()
    return found


def published_tables() -> dict[Path, list[str]]:
    """The claims whose numbers all give a kernel's parameters for other sources' claims, by the calibration file."""
    found: dict[Path, list[str]] = {}
    for path in claim_files():
        for name, ids in (read_mapping(path).get("published") or {}).items():
            found[path.parent / str(name)] = [str(item) for item in ids]
    return found


class _Reader(NamedTuple):
    """A claim's mapping while it is read."""

    problems: Problems
    raw: Mapping[str, Any]
    where: str
    folder: Path
    named: Mapping[str, Mapping[str, Any]]

    def claim(self, paper: str, source: str, tolerance: float) -> Claim:
        """The claim, with problems noted."""
        raw, problems = self.raw, self.problems
        problems.unknown_keys(raw, CLAIM_FIELDS, self.where)
        for field in ("id", "mechanism", "what", "kind", "quantity", "setup", "claimed"):
            if raw.get(field) in (None, "", []):
                problems.add(f"{self.where}.{field}: missing")
        claimed = raw.get("claimed")
        numbers = claimed if isinstance(claimed, list) else [claimed]
        values = tuple(problems.number(value, f"{self.where}.claimed", least=1e-12) for value in numbers)
        compared = self._one_of("as", COMPARISONS) if raw.get("as") is not None else None
        if (compared is None) != (raw.get("baseline") is None):
            problems.add(f"{self.where}: baseline and as belong together")
        unstated = raw.get("unstated") or []
        if not isinstance(unstated, list):
            problems.add(f"{self.where}.unstated: {str(unstated)[:60]!r} is not a list")
        return Claim(
            id=str(raw.get("id")),
            paper=paper,
            mechanism=str(raw.get("mechanism")),
            what=str(raw.get("what")),
            kind=str(self._one_of("kind", KINDS)),
            source=str(raw.get("source") or source),
            uncertain=bool(raw.get("uncertain", False)),
            unstated=tuple(map(str, unstated)),
            quantity=str(self._one_of("quantity", QUANTITIES)),
            shape=self._one_of("shape", SHAPES) if raw.get("shape") is not None else None,
            setup=SetUp().changed(self._setup(raw.get("setup"), "setup")),
            points=self._points(len(values)),
            baseline=None if raw.get("baseline") is None else self._setup(raw["baseline"], "baseline"),
            compared=compared,
            unit=str(self._one_of("unit", UNITS) if raw.get("unit") is not None else ""),
            claimed=values,
            relation=str(self._one_of("relation", RELATIONS) if raw.get("relation") is not None else "equals"),
            tolerance=problems.number(raw.get("tolerance", tolerance), f"{self.where}.tolerance", most=1.0),
            condition=self._change("condition"),
            fair=self._change("fair"),
            why=str(raw.get("why") or ""),
        )

    def _one_of(self, field: str, known: Any, raw: Mapping[str, Any] | None = None) -> str | None:
        value = (self.raw if raw is None else raw).get(field)
        if value is not None and value not in known:
            self.problems.add(f"{self.where}.{field}: {unknown(field, str(value), known)}")
            return next(iter(known))
        return value

    def _setup(self, raw: Any, field: str) -> dict[str, Any]:
        """The entries of a set-up, which may start `from` a named one."""
        where = f"{self.where}.{field}"
        given = dict(self.problems.mapping({} if raw is None else raw, where))
        start = given.pop("from", None)
        if start is not None and start not in self.named:
            self.problems.add(f"{where}.from: {unknown('set-up', str(start), self.named)}")
        own = entries(self.problems, given, where, self.folder)
        base = dict(self.named.get(start, {})) if start is not None else {}
        if "settings" in own and "settings" in base:
            own["settings"] = (*base["settings"], *own["settings"])
        return {**base, **own}

    def _points(self, numbers: int) -> tuple[Mapping[str, Any], ...]:
        where = f"{self.where}.over"
        over = self.problems.mapping(self.raw.get("over") or {}, where)
        self.problems.unknown_keys(over, SetUp._fields, where)
        points: list[dict[str, Any]] = [{} for _ in range(numbers)]
        for name, values in over.items():
            if name not in SetUp._fields:
                continue
            if not isinstance(values, list) or len(values) != numbers:
                self.problems.add(f"{where}.{name}: needs one value for each of the {numbers} claimed numbers")
                continue
            for point, value in zip(points, values, strict=True):
                point[name] = entry(self.problems, name, value, f"{where}.{name}", self.folder)
        if not over and numbers > 1:
            self.problems.add(f"{where}: missing, which {numbers} claimed numbers need")
        return tuple(points)

    def _change(self, field: str) -> Change | None:
        if self.raw.get(field) is None:
            return None
        where = f"{self.where}.{field}"
        raw = self.problems.mapping(self.raw[field], where)
        self.problems.unknown_keys(raw, CHANGE_FIELDS, where)
        if not raw.get("text"):
            self.problems.add(f"{where}.text: missing")
        return Change(
            text=str(raw.get("text")),
            setup=self._setup(raw.get("setup"), f"{field}.setup"),
            baseline=None if raw.get("baseline") is None else self._setup(raw["baseline"], f"{field}.baseline"),
            quantity=self._one_of("quantity", QUANTITIES, raw),
            compared=self._one_of("as", COMPARISONS, raw),
            split=bool(raw.get("split", False)),
        )
