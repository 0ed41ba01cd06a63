"""What a mechanism or a model costs, as formulas in the paper's symbols, then with numbers, then as results.

The formulas are those of the prediction, read with symbols: nothing is written down twice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from costmodel import ffns, mixers
from costmodel.analysis.crossover import meeting_context, model_precision
from costmodel.analysis.leading import Leading, growth, leading_of
from costmodel.analysis.printing import grouped, latex, numbers, order_text, text
from costmodel.analysis.symbolic import Size, definitions, evaluate, factored, labels, symbolic_dims, symbolic_step
from costmodel.architecture import Architecture, Block
from costmodel.calibration import find_calibration
from costmodel.coverage import doubt_of
from costmodel.dims import by_name, fields_by_name
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.base import Kernel
from costmodel.loading import Problems, available, data_folder
from costmodel.model_file import load_architecture, read_dims, setting_value
from costmodel.prediction import make_precision, make_step
from costmodel.settings import apply_settings, split_settings
from costmodel.step import Precision, Step
from costmodel.timing import expected

DEFAULT_CONTEXT = 8192

SHOWN_WITH = (
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "deepseek-v3",
    "deepseek-v3.2",
    "qwen3-next-80b-a3b",
    "kimi-linear-48b-a3b",
    "mamba2-2.7b",
    "rwkv7-7.2b",
)
"""Models whose blocks stand for a mechanism, the best known first; after them the others by name."""

RELATIVE_TIME = {
    "bf16": 1.0,
    "fp16": 1.0,
    "fp8": 0.5,
    "fp8_block": 0.5,
    "int8": 0.5,
    "mxfp4": 0.25,
    "nvfp4": 0.25,
    "tf32": 2.0,
    "fp32": 16.0,
}
"""Time of a FLOP over that of a bf16 FLOP, where no device is given: engines halve it with the width."""

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


def explanation(
    target: str | Architecture,
    *,
    phase: str = "decode",
    context: int | None = None,
    batch: int = 1,
    settings: Sequence[str] = (),
    hardware: str | Hardware | None = None,
) -> Explanation:
    """The formulas behind a mechanism (a mixer or an FFN, by name or alias) or an architecture.

    A mechanism is shown in bf16 with the block of a well-known model that uses it, else with its first example.
    context defaults to 8192. hardware gives the tensor time in seconds (without one it is counted in bf16 FLOPs),
    and the expected time and the bound of each kernel.

    Raises BadInput for what cannot be understood and Impossible when the hardware lacks an engine.

    >>> found = explanation("gqa")
    >>> [(row["formula"], row["value"]) for row in found.rows() if row["kernel"] == "attention"][0]
    ('2·B·H·pairs·(dk + dv)', 134217728)
    """
    of_model, of_hardware = split_settings(settings)
    model, mechanism, shown_with = _subject(target, of_model)
    device = load_hardware(hardware, of_hardware) if isinstance(hardware, str) else hardware
    length = DEFAULT_CONTEXT if context is None else context
    step = make_step(model, phase, length, batch)
    precision = make_precision(model, device) if device else model_precision(model)
    read = _symbolic_model(model)
    symbols = symbolic_step(step.phase, length, batch, bidirectional=step.bidirectional)
    counts = _layer_counts(model)
    kinds = {name: block.module.NAME for name, block in _blocks(model)}
    L = Size("L", length)
    memo: dict[Any, Any] = {}
    formulas = []
    kernels = _kernels(model, step, precision, mechanism)
    for symbolic, counted in zip(_kernels(read, symbols, precision, mechanism), kernels, strict=True):
        layers = counts.get(counted.group, 1)
        place = (counted.group, kinds.get(counted.group, counted.group), layers, counted.name, counted.family)
        for quantity, dtype, expression, value in _quantities(symbolic, counted, layers):
            found = leading_of(growth(expression, L, memo))
            formulas.append(Formula(*place, quantity, dtype, expression, value, found))
    for name, block in model.mixers.items():
        if name in counts:
            formulas += _cache(name, block, read.mixers[name], counts[name], symbols, step, precision, L, memo)
    order = {formula.block: index for index, formula in reversed(list(enumerate(formulas)))}
    formulas.sort(key=lambda formula: order[formula.block])
    totals = tuple(_totals(formulas, device))
    blocks = tuple((block, counts[name]) for name, block in _blocks(model) if name in counts)
    return Explanation(
        name=model.name,
        title=model.title,
        phase=step.phase,
        context=length,
        batch=batch,
        blocks=blocks,
        D=model.D,
        formulas=tuple(formulas),
        totals=totals,
        sources=_sources(model, blocks, formulas),
        hardware=device.name if device else None,
        times=_times(kernels, counts, device) if device else None,
        shown_with=shown_with,
        quadratic_context=None if mechanism else _quadratic(model, precision, step, totals),
        of_model=not mechanism,
    )


def _times(
    kernels: Sequence[Kernel], counts: Mapping[str, int], device: Hardware
) -> dict[tuple[str, str], tuple[float, str]]:
    """Seconds in one layer, and the bound, of each kernel that is launched."""
    calibration = find_calibration(device, None)
    return {
        (entry.kernel.group, entry.kernel.name): (float(entry.time_s) / counts.get(entry.kernel.group, 1), entry.bound)
        for entry in expected(kernels, device, calibration)
        if entry.time_s
    }


def _quadratic(model: Architecture, precision: Precision, step: Step, totals: Iterable[Total]) -> int | None:
    of_flops = next(total for total in totals if total.quantity == "flops")
    power = 1 if step.P != 0 or (step.phase == "decode" and not step.bidirectional) else 2
    if (of_flops.power, of_flops.log_power) != (power, 0):
        return None
    return meeting_context(model, precision, step.phase, of_flops.coefficient / step.B, power)


def _subject(target: str | Architecture, settings: Sequence[str]) -> tuple[Architecture, bool, str | None]:
    """The architecture to explain, whether it is a lone mechanism, and the model that its sizes are from."""
    if isinstance(target, Architecture):
        return target, False, None
    module = find_module(target)
    if module is not None:
        shown_with, dims, D = typical_block(module)
        return lone_block(module, dims, D, settings), True, shown_with
    try:
        return load_architecture(target, settings), False, None
    except BadInput as error:
        if str(error).startswith("unknown architecture"):
            known = [*mixers.names(), *ffns.names(), *available("architectures")]
            raise unknown("mechanism or architecture", target, known) from None
        raise


def find_module(target: str) -> Any:
    """The mixer or FFN of this name or alias, None when an architecture or nothing has the name."""
    if "/" in target or target.endswith((".yaml", ".yml", ".json")):
        return None
    file_name = target.replace("-", "_")
    if file_name not in (*mixers.names(), *ffns.names()) and target in available("architectures"):
        return None
    for find in (mixers.mixer, ffns.ffn):
        try:
            return find(target)
        except BadInput:
            continue
    return None


def typical_block(module: Any) -> tuple[str | None, Any, int]:
    """The model whose block stands for a mechanism, the block's dimensions, and the model's width."""
    folder = data_folder("architectures")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    spellings = [f"kind: {name}" for name in (module.NAME, module.NAME.replace("_", "-"), *module.ALIASES)]
    for name in [*(name for name in SHOWN_WITH if name in names), *names]:
        path = folder / f"{name}.yaml"
        if not any(spelling in path.read_text(encoding="utf-8") for spelling in spellings):
            continue
        model = load_architecture(str(path))
        for _, block in _blocks(model):
            if block.module is module:
                return name, block.dims, model.D
    return None, module.EXAMPLES[0], 64


def lone_block(module: Any, dims: Any, D: int, settings: Sequence[str] = ()) -> Architecture:
    """A model of one layer with this mechanism only; settings change its fields and `d_model`."""
    section = "mixers" if hasattr(module, "cache") else "ffns"
    raw: dict[str, Any] = {"d_model": D, section: {module.NAME: by_name(dims)}}
    apply_settings(raw, settings, "", module.NAME, quantity=setting_value)
    problems = Problems(module.NAME)
    width = problems.whole_number(raw["d_model"], "d_model", most=10**7)
    changed = read_dims(problems, module.Dims, raw[section][module.NAME], f"{section}.{module.NAME}")
    if changed is not None:
        for message in module.check(changed):
            problems.add(message)
    problems.raise_if_any()
    blocks = {module.NAME: Block(module.NAME, module, changed)}
    layer = (module.NAME, None) if section == "mixers" else (None, module.NAME)
    return Architecture(
        name=module.NAME,
        title=module.TITLE,
        D=width,
        V=1,
        tied_embeddings=True,
        max_context=None,
        mixers=blocks if section == "mixers" else {},
        ffns=blocks if section == "ffns" else {},
        layers=(layer,),
        weights={"default": "bf16"},
    )


def _blocks(model: Architecture) -> Iterator[tuple[str, Block]]:
    yield from model.mixers.items()
    yield from model.ffns.items()


def _layer_counts(model: Architecture) -> dict[str, int]:
    of_mixers, of_ffns = model.counts()
    return {**of_mixers, **of_ffns}


def _symbolic_model(model: Architecture) -> Architecture:
    """The model with a symbol for every dimension."""

    def read(blocks: Any) -> dict[str, Block]:
        return {name: block._replace(dims=symbolic_dims(block.module, block.dims)) for name, block in blocks.items()}

    width: Any = Size("D", model.D)
    words: Any = Size("V", model.V)
    return model._replace(D=width, V=words, mixers=read(model.mixers), ffns=read(model.ffns))


def _kernels(model: Architecture, step: Step, precision: Precision, mechanism: bool) -> list[Kernel]:
    """The kernels of the step; of a lone mechanism without the norms, embedding and head around it."""
    if not mechanism:
        return model.kernels(step, precision)
    [(name, block)] = _blocks(model)
    run = [kernel._replace(group=name) for kernel in block.module.kernels(block.dims, model.D, step, precision)]
    if step.phase == "train":
        run += [
            gradient._replace(group=name, count=kernel.count, gradient=True)
            for kernel in reversed(run)
            for gradient in kernel.form.backward(kernel)
        ]
    return run


def _quantities(symbolic: Kernel, counted: Kernel, layers: int) -> Iterator[tuple[str, str | None, sympy.Expr, float]]:
    """Quantity, dtype, formula and value of one layer's launches; those that are zero are left out."""
    found: list[tuple[str, str | None, Any, Any]] = [
        ("tensor_flops", dtype, flops, counted.ideal.tensor[dtype]) for dtype, flops in symbolic.ideal.tensor.items()
    ]
    found += [
        ("vector_flops", None, symbolic.ideal.vector, counted.ideal.vector),
        ("hbm_bytes", None, symbolic.ideal.hbm_bytes, counted.ideal.hbm_bytes),
        ("executed_flops", None, symbolic.executed.flops, counted.executed.flops),
    ]
    for quantity, dtype, formula, value in found:
        expression = sympy.sympify(formula) * sympy.sympify(symbolic.count) / layers
        total = value * counted.count
        if expression != 0 and total != 0:
            yield quantity, dtype, factored(expression), _whole(total / layers if total % layers else total // layers)


def _whole(value: Any) -> Any:
    """An int where the value is one."""
    return int(value) if float(value).is_integer() else float(value)


def _cache(
    name: str,
    block: Block,
    symbolic: Block,
    layers: int,
    symbols: Step,
    step: Step,
    precision: Precision,
    L: Size,
    memo: dict[Any, Any],
) -> list[Formula]:
    """The cache or state of one layer for the whole batch; training and denoising steps keep none."""
    if step.phase == "train" or step.bidirectional:
        return []
    expression = factored(symbols.B * symbolic.module.cache(symbolic.dims, precision).bytes(symbols.L))
    value = step.B * block.module.cache(block.dims, precision).bytes(step.L)
    place = (name, block.module.NAME, layers, "cache", "cache", "cache_bytes", None)
    return [Formula(*place, expression, _whole(value), leading_of(growth(expression, L, memo)))] if value else []


TOTALS = {
    "flops": ("tensor_flops", "vector_flops"),
    "hbm_bytes": ("hbm_bytes",),
    "executed_flops": ("executed_flops",),
    "cache_bytes": ("cache_bytes",),
    "tensor_time": ("tensor_flops",),
}
"""The quantities that each total adds up."""


def _totals(formulas: Sequence[Formula], device: Hardware | None) -> Iterator[Total]:
    dtypes = {formula.dtype for formula in formulas if formula.dtype}
    rates = {dtype: 1 / device.tensor_peak(dtype) if device else RELATIVE_TIME[dtype] for dtype in sorted(dtypes)}
    units = {"hbm_bytes": "B", "cache_bytes": "B", "tensor_time": "s" if device else "bf16 FLOP"}
    for quantity, parts in TOTALS.items():
        own = [formula for formula in formulas if formula.quantity in parts]
        if not own:
            continue
        timed = quantity == "tensor_time"
        weights = [formula.layers * (rates[formula.dtype] if timed and formula.dtype else 1) for formula in own]
        key = max(formula.leading.key for formula in own)
        shares = [
            (formula, float(evaluate(formula.leading.coefficient)) * weight)
            for formula, weight in zip(own, weights, strict=True)
            if formula.leading.key == key
        ]
        shares.sort(key=lambda share: -share[1])
        yield Total(
            quantity=quantity,
            unit=units.get(quantity, "FLOP"),
            value=_whole(sum(formula.value * weight for formula, weight in zip(own, weights, strict=True))),
            power=key[0],
            log_power=key[1],
            coefficient=sum(part for _, part in shares),
            shares=tuple(shares),
            rates=rates if timed else None,
        )


def _sources(model: Architecture, blocks: Sequence[tuple[Block, int]], formulas: Sequence[Formula]) -> tuple[str, ...]:
    from costmodel.kernels import forms

    found = [f"{block.module.NAME}: {source}" for block, _ in blocks for source in block.module.SOURCES]
    known = forms()
    for family in dict.fromkeys(formula.family for formula in formulas):
        if family in known:
            found += [f"{family}: {source}" for source in known[family].sources]
    return tuple(dict.fromkeys([*model.sources, *found]))


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
