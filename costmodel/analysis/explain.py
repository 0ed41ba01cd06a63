"""What a mechanism or a model costs, as formulas in the paper's symbols, then with numbers, then as results.

The formulas are those of the prediction, read with symbols: nothing is written down twice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sympy

from costmodel import ffns, mixers
from costmodel.analysis.crossover import meeting_context, model_precision
from costmodel.analysis.explanation import TOTALS, Explanation, Formula, Total
from costmodel.analysis.leading import growth, leading_of
from costmodel.analysis.lone_blocks import blocks_of, find_module, lone_block, typical_block
from costmodel.analysis.symbolic import Size, evaluate, factored, symbolic_dims, symbolic_step
from costmodel.architecture import Architecture, Block
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.base import Kernel
from costmodel.loading import available
from costmodel.model_file import load_architecture
from costmodel.prediction import make_precision, make_step
from costmodel.settings import split_settings
from costmodel.step import Precision, Step
from costmodel.timing import expected

DEFAULT_CONTEXT = 8192

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
    kinds = {name: block.module.NAME for name, block in blocks_of(model)}
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
    blocks = tuple((block, counts[name]) for name, block in blocks_of(model) if name in counts)
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
    [(name, block)] = blocks_of(model)
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
