"""What an explanation tells: formulas of every kernel, totals with leading terms; as rows, or as a page to read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from costmodel.analysis.leading import Leading
from costmodel.analysis.printing import grouped, latex, numbers, order_text, text
from costmodel.analysis.symbolic import definitions, evaluate, factored, labels
from costmodel.architecture import Block
from costmodel.coverage import doubt_of
from costmodel.dims import fields_by_name

MOST_PARTS = 4
"""Kernels named in a leading term."""


QUANTITIES = {
    "tensor_flops": "FLOP",
    "vector_flops": "FLOP vector",
    "flops": "FLOP",
    "hbm_bytes": "HBM bytes",
    "executed_flops": "executed FLOP",
    "cache_bytes": "cache bytes",
    "tensor_time": "tensor time",
}
"""How the quantities are written."""


TOTALS = {
    "flops": ("tensor_flops", "vector_flops"),
    "hbm_bytes": ("hbm_bytes",),
    "executed_flops": ("executed_flops",),
    "cache_bytes": ("cache_bytes",),
    "tensor_time": ("tensor_flops",),
}
"""The quantities that each total adds up."""


@dataclass(frozen=True, slots=True)
class Formula:
    """One quantity of one kernel (or of a block's cache), for one layer."""

    block: str
    kind: str
    layers: int
    kernel: str
    family: str
    quantity: str
    dtype: str | None
    expression: sympy.Expr
    value: float
    leading: Leading

    @property
    def label(self) -> str:
        """What stands before the equals sign."""
        return f"FLOP {self.dtype}" if self.quantity == "tensor_flops" else QUANTITIES[self.quantity]


@dataclass(frozen=True, slots=True)
class Total:
    """A quantity of the whole step: its value, its leading term in the context, and which kernel carries that.

    shares lists the kernels of the leading term with what each adds to the coefficient, the largest first;
    rates the price of a FLOP by dtype, for the tensor time.
    """

    quantity: str
    unit: str
    value: float
    power: Any
    log_power: Any
    coefficient: float
    shares: tuple[tuple[Formula, float], ...]
    rates: Mapping[str, float] | None = None

    @property
    def carrier(self) -> str:
        """The kernel with the largest part of the leading term."""
        if not self.shares:
            return ""
        formula = self.shares[0][0]
        return f"{formula.block}: {formula.kernel}"

    @property
    def order(self) -> str:
        """The growth as text."""
        return order_text(self.power, self.log_power)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Formulas of every kernel with numbers and results, totals with leading terms, and sources.

    times gives the seconds of a kernel in one layer on the hardware, and what bounds it, by block and name.
    """

    name: str
    title: str
    phase: str
    context: int
    batch: int
    blocks: tuple[tuple[Block, int], ...]
    D: int
    formulas: tuple[Formula, ...]
    totals: tuple[Total, ...]
    sources: tuple[str, ...]
    hardware: str | None = None
    times: Mapping[tuple[str, str], tuple[float, str]] | None = None
    shown_with: str | None = None
    quadratic_context: int | None = None
    of_model: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """One mapping of plain values per formula, then one per total (kernel `total`)."""
        rows = []
        unmeasured = {block.kind for block, _ in self.blocks if doubt_of(block)}
        for formula in self.formulas:
            shown = labels(definitions(formula.expression))
            rows.append(
                {
                    "name": self.name,
                    "phase": self.phase,
                    "context": self.context,
                    "batch": self.batch,
                    "block": formula.block,
                    "kind": formula.kind,
                    "layers": formula.layers,
                    "unmeasured": formula.kind in unmeasured,
                    "kernel": formula.kernel,
                    "family": formula.family,
                    "quantity": formula.quantity,
                    "dtype": formula.dtype,
                    "formula": text(formula.expression, shown),
                    "latex": latex(formula.expression, shown),
                    "definitions": {label: text(symbol.definition, shown) for symbol, label in shown.items()},
                    "numbers": numbers(formula.expression),
                    "value": formula.value,
                    **_growth_row(formula.leading.power, formula.leading.log_power),
                    "coefficient": text(factored(formula.leading.coefficient)),
                    "coefficient_value": evaluate(formula.leading.coefficient),
                    "carrier": None,
                    "carrier_share": None,
                    **self._time_row(formula),
                }
            )
        for total in self.totals:
            rows.append(
                {
                    "name": self.name,
                    "phase": self.phase,
                    "context": self.context,
                    "batch": self.batch,
                    "block": None,
                    "kind": None,
                    "layers": None,
                    "unmeasured": bool(unmeasured),
                    "kernel": "total",
                    "family": None,
                    "quantity": total.quantity,
                    "dtype": None,
                    "formula": None,
                    "latex": None,
                    "definitions": {},
                    "numbers": None,
                    "value": total.value,
                    **_growth_row(total.power, total.log_power),
                    "coefficient": _coefficient_text(total),
                    "coefficient_value": total.coefficient,
                    "carrier": total.carrier,
                    "carrier_share": total.shares[0][1] / total.coefficient if total.coefficient else None,
                    "time_s": None,
                    "bound": None,
                }
            )
        return rows

    def _time_row(self, formula: Formula) -> dict[str, Any]:
        seconds, bound = (self.times or {}).get((formula.block, formula.kernel), (None, None))
        return {"time_s": seconds, "bound": bound}

    def to_text(self, latex: bool = False) -> str:
        """The explanation for reading; with `latex` the formulas are LaTeX."""
        return "\n".join(_page(self, latex)) + "\n"


def _growth_row(power: Any, log_power: Any) -> dict[str, Any]:
    return {"order": float(power), "log_order": float(log_power), "growth": order_text(power, log_power)}


def _coefficient_text(total: Total, latex_text: bool = False) -> str:
    """The coefficient as a sum over the kernels of the leading term, those of several layers multiplied."""
    show = latex if latex_text else text
    times = r" \cdot " if latex_text else "·"
    parts = []
    for formula, _ in total.shares[:MOST_PARTS]:
        coefficient = factored(formula.leading.coefficient)
        shown = show(coefficient, labels(definitions(coefficient)))
        factors = [str(formula.layers)] if formula.layers > 1 else []
        if total.rates and formula.dtype and total.rates[formula.dtype] != 1:
            factors.append(f"{total.rates[formula.dtype]:.4g}")
        if factors and isinstance(coefficient, sympy.Add):
            shown = f"({shown})"
        parts.append(times.join([*factors, shown]))
    more = len(total.shares) - len(parts)
    return " + ".join(parts) + (f" + {more} smaller" if more else "")


def _page(e: Explanation, latex_text: bool) -> Iterator[str]:
    per_step = {"decode": "one decode step", "prefill": "prefill", "train": "one training step"}[e.phase]
    yield f"{e.name} · {e.title} · {per_step}, B = {e.batch}, L = {e.context:,}"
    if e.shown_with:
        yield f"sizes of {e.shown_with}, bf16"
    for block, layers in e.blocks:
        several = f" × {layers} layers" if e.of_model else ""
        yield ""
        yield f"{block.name} ({block.module.TITLE}){several}: {_sizes(block, e.D)}"
        if doubt_of(block):
            yield f"  {doubt_of(block)}: times of it rest on priors"
    group = None
    own: dict[tuple[str, str], list[Formula]] = {}
    for formula in e.formulas:
        own.setdefault((formula.block, formula.kernel), []).append(formula)
    for (block_name, kernel), formulas in own.items():
        if block_name != group:
            group = block_name
            layers = formulas[0].layers
            yield ""
            yield f"{block_name}, one of {layers} layers" if layers > 1 else block_name
        family = f"  [{formulas[0].family}]" if kernel != "cache" else ""
        if (block_name, kernel) in (e.times or {}):
            seconds, bound = (e.times or {})[block_name, kernel]
            family += f"  {seconds * 1e6:,.1f} µs on {e.hardware}, bound by {bound}"
        yield f"  {kernel}{family}"
        yield from _kernel_lines(formulas, latex_text)
    yield ""
    yield "totals of the step; leading term in the context L; the kernels that carry it"
    for total in e.totals:
        label = f"{QUANTITIES[total.quantity]}" + ("" if total.unit in ("FLOP", "B") else f" ({total.unit})")
        growth = "" if total.order == "1" else f"·{total.order}"
        yield f"  {label:<24} {grouped(total.value)}"
        yield f"  {'':<24} → {total.coefficient:.6g}{growth} = ({_coefficient_text(total, latex_text)}){growth}"
        yield f"  {'':<24}   {_carriers(total)}"
    if e.quadratic_context is not None:
        part = "the part that grows with L" if e.phase == "decode" and e.totals[0].power == 1 else "the L² part"
        yield f"  from L = {e.quadratic_context:,} on, {part} is most of the FLOPs"
    yield ""
    yield "sources"
    yield from (f"  {source}" for source in e.sources)


def _carriers(total: Total) -> str:
    whole = total.coefficient or 1.0
    shown = [f"{formula.block}: {formula.kernel} {part / whole:.0%}" for formula, part in total.shares[:3]]
    return ", ".join(shown) + (" …" if len(total.shares) > 3 else "")


def _sizes(block: Block, D: int) -> str:
    """The dimensions as `symbol = value field`."""
    shown = []
    for item in fields_by_name(block.module.Dims).values():
        value, meta = getattr(block.dims, item.name), item.metadata
        if meta["kind"] == "dim" and value is not None:
            shown.append(f"{item.name} = {value} {meta['name']}")
        elif meta["kind"] != "dim" and value:
            shown.append(meta["name"] if value is True else f"{meta['name']} {value}")
    return " · ".join([f"D = {D}", *shown])


def _kernel_lines(formulas: Sequence[Formula], latex_text: bool) -> Iterator[str]:
    show = latex if latex_text else text
    symbols = [symbol for formula in formulas for symbol in definitions(formula.expression)]
    names = labels(symbols)
    ideal = sum((formula.expression for formula in formulas if formula.quantity in TOTALS["flops"]), sympy.S.Zero)
    for formula in formulas:
        if formula.quantity == "executed_flops" and formula.expression == factored(ideal):
            yield f"    {formula.label:<14} as ideal"
            continue
        counted, result = numbers(formula.expression), grouped(formula.value)
        yield f"    {formula.label:<14} = {show(formula.expression, names)}"
        steps = [result] if counted == result.replace(",", "") else [counted, result]
        yield f"    {'':<14} = {' = '.join(steps)}"
    for symbol, label in names.items():
        yield f"    where {label} = {show(symbol.definition, names)} = {grouped(evaluate(symbol))}"
