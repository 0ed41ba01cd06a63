"""The question that a plan answers, as plain values that can be sent to other processes, and what it means loaded."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.dtypes import OWN, element_bytes
from costmodel.errors import BadInput, Impossible, unknown
from costmodel.generation.speculative import tokens_per_verification
from costmodel.hardware import Hardware
from costmodel.parallel.layout import Layout
from costmodel.parallel.options import Options
from costmodel.parallel.pipeline import stage_cuts
from costmodel.planning.deployment import LONGEST, Served, Settings
from costmodel.planning.engine_constants import EngineConstants
from costmodel.planning.engine_model import EngineModel, Places, places
from costmodel.planning.grid import Grid, grid
from costmodel.planning.kernel_prices import Prices
from costmodel.planning.kernel_works import Works
from costmodel.planning.measures import ServiceLevel
from costmodel.planning.spread import Spread, spread
from costmodel.planning.workload import Workload
from costmodel.prediction import loaded, make_precision
from costmodel.step import Precision

OBJECTIVES = ("cost", "throughput", "gpus", "latency")


class Question(NamedTuple):
    """What is asked, as plain values.

    arch: name or path; changes: as for `--set`; work: the load; level: what must be held on average; gpus: sizes that
    a replica may have, the largest being the most that the whole may have. budgets: tokens of an iteration. prices: USD
    per GPU and hour by device. host: what engines add, engines: how they batch and what memory they take, both by
    device. modes: aggregated, disaggregated. headroom: of what engines could answer at most, the part that an open load
    must leave. every_point: whether the points of each layout are kept, not those alone that no other layout beats. The
    rest as the options of `simulate`.
    """

    arch: str
    hw: tuple[str, ...]
    work: Workload
    level: ServiceLevel
    optimize: str
    gpus: tuple[int, ...]
    weights: tuple[str, ...]
    kv: tuple[str, ...]
    activations: str | None
    budgets: tuple[int, ...]
    drafts: tuple[int, ...]
    acceptance: float
    modes: tuple[str, ...]
    prices: Mapping[str, float]
    library: str | None
    changes: tuple[str, ...]
    host: Mapping[str, EngineConstants]
    overlap: float
    imbalance: float
    engines: Mapping[str, Settings]
    snapshot_tokens: int | None
    headroom: float
    link_bandwidth: float | None
    layouts: tuple[Layout, ...] = ()
    context_parallel: bool = False
    mechanisms: tuple[str, ...] = ()
    exchange_units: int | None = None
    every_point: bool = True

    @property
    def options(self) -> Options:
        """How layouts are run."""
        return Options(overlap=self.overlap, imbalance=self.imbalance, exchange_units=self.exchange_units)

    def checked(self) -> "Question":
        """This question. Raises BadInput for values outside their range."""
        if self.optimize not in OBJECTIVES:
            raise unknown("objective", self.optimize, OBJECTIVES)
        for mode in self.modes:
            if mode not in (*MODES, PREFILL):
                raise unknown("mode", mode, MODES)
        self.options.checked()
        for hw in self.engines:
            for draft in self.drafts:
                self.settings(hw, max(self.budgets), draft).checked()
        if not 0 <= self.headroom < 1:
            raise BadInput(f"--headroom {self.headroom:g} is not a share from 0 to below 1")
        for name, value in (("--ttft", self.level.ttft_s), ("--tpot", self.level.tpot_s)):
            if value is not None and value <= 0:
                raise BadInput(f"{name}: a service level of {value:g} s cannot be held; it is above 0")
        return self

    def settings(self, hw: str, budget: int, draft_tokens: int = 0, sequences: int | None = None) -> Settings:
        """What an engine on a device is told. Prompts are cut in chunks, whatever the library does unless told."""
        engine = self.engines[hw]
        return engine._replace(
            max_sequences=engine.max_sequences if sequences is None else sequences,
            max_batched_tokens=budget,
            whole_prompts=False,
            snapshot_tokens=self.snapshot_tokens,
            draft_tokens=draft_tokens,
            acceptance=self.acceptance,
            longest=min(max(self.work.longest, 1024), 1024 * LONGEST),
        )

    @property
    def usable(self) -> float:
        """The part of what engines could answer at most that a load may take; clients that wait leave none over."""
        return 1.0 if self.work.rate is None else 1.0 - self.headroom

    @property
    def most(self) -> int:
        """GPUs that the whole may have."""
        return max(self.gpus)


MODES = ("aggregated", "disaggregated")
PREFILL = "prefill"
"""The mode of engines that answer with one token, whatever was asked for."""


class Loaded(NamedTuple):
    """The model and devices of a question, and what engines that split alike have in common (filled as it is found)."""

    question: Question
    model: Architecture
    devices: Mapping[str, Hardware]
    calibrations: Mapping[str, Calibration]
    kept: dict[tuple[Any, ...], Any]

    def precision(self, hw: str, weights: str | None, kv: str | None) -> Precision:
        """Number formats; None keeps the model's own. Raises Impossible without an engine for them."""
        return self._once(
            ("precision", hw, weights, kv),
            lambda: make_precision(self.model, self.devices[hw], weights, kv, self.question.activations),
        )

    def engine(self, hw: str, weights: str | None, kv: str | None, draft_tokens: int, layout: Layout) -> EngineModel:
        """One engine. Raises Impossible where the model cannot be split or computed so."""
        options = self.question.options
        placed = places(self.model, layout._replace(pp=1), options, draft_tokens > 0)
        return self.engine_of((hw, weights, kv, draft_tokens), placed.in_stages(stage_cuts(self.model, layout.pp)))

    def engine_of(self, of: tuple[str, str | None, str | None, int], placed: Places) -> EngineModel:
        """The engine of a placed model, or of one that is placed in several ways side by side. of: device, formats of
        weights and of caches, drafted tokens."""
        hw, weights, kv, draft_tokens = of
        asked = self.question
        served = Served(
            self.model,
            self.devices[hw],
            self.precision(hw, weights, kv),
            asked.library,
            asked.host[hw].host,
            asked.options,
        )
        accepted = asked.acceptance if draft_tokens else 0.0
        layout = placed.decode.layout
        return EngineModel(served, layout, *placed, self.calibrations[hw], draft_tokens, accepted)

    def spread(self, layouts: tuple[Layout, ...], drafts: bool) -> Spread:
        """The layouts by which the model divides."""
        return self._once(
            ("spread", layouts, drafts), lambda: spread(self.model, layouts, self.question.options, drafts)
        )

    def grid(self, hw: str, draft_tokens: int) -> Grid:
        """The batch sizes and chunk budgets of engines on a device."""
        asked = self.question
        most = asked.engines[hw].max_sequences
        pace = float(tokens_per_verification(draft_tokens, asked.acceptance if draft_tokens else 0.0))
        return self._once(
            ("grid", draft_tokens, most), lambda: grid(asked.work, asked.budgets, most, draft_tokens, pace)
        )

    def prices(self, hw: str) -> Prices:
        """The prices of kernels on a device."""
        hides, works = self.question.overlap > 0, self._once(("works",), Works)
        return self._once(("prices", hw), lambda: Prices(self.devices[hw], self.calibrations[hw], hides, works))

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]


def load(question: Question) -> Loaded:
    """The model, devices and calibrations of a question."""
    if question.mechanisms:
        from pathlib import Path

        from costmodel.extensions import load_mechanism

        for path in question.mechanisms:
            load_mechanism(Path(path))
    (model,), devices = loaded(question.arch, list(question.hw), question.changes)
    if model.bidirectional:
        raise Impossible(f"{model.name} denoises whole sequences; plans are of engines that decode token by token")
    by_name = {device.name: device for device in devices}
    found = {name: find_calibration(device, question.library) for name, device in by_name.items()}
    return Loaded(question, model, by_name, found, {})


def weight_formats(model: Architecture, device: Hardware, asked: tuple[str, ...]) -> list[str | None]:
    """The weight formats to try: `own` is the model's; beside it, others only where they are narrower and multiplied
    by an engine of the device. What is asked for without `own` is tried in any case."""
    widest = max(element_bytes(model.weights.get(role, model.weights["default"])) for role in ("mixer", "experts"))
    return [
        None if dtype == OWN else dtype
        for dtype in dict.fromkeys(asked)
        if dtype == OWN or OWN not in asked or (_narrower(dtype, widest) and device.has_engine(dtype))
    ]


def cache_formats(model: Architecture, asked: tuple[str, ...]) -> list[str | None]:
    """The cache formats to try, in the same way."""
    return [
        None if dtype == OWN else dtype
        for dtype in dict.fromkeys(asked)
        if dtype == OWN or OWN not in asked or _narrower(dtype, element_bytes(model.kv))
    ]


def _narrower(dtype: str, width: float) -> bool:
    """By more than the scales of a block format."""
    return element_bytes(dtype) < 0.9 * width


def ratio(value: float, most: float | None) -> float:
    """How many times a limit a value is; 0 without a limit."""
    if most is None:
        return 0.0
    return value / most if math.isfinite(value) else math.inf
