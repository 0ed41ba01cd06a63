"""What is measured of one step: its kernels' time, FLOPs and bytes, and what follows from them, in SI units."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from costmodel.analysis.claims.compiled import after_clearing, as_compiled
from costmodel.analysis.claims.setups import (
    SetUp,
    calibration_of,
    capacity,
    device_of,
    layout_of,
    model_of,
    precision_of,
    sequences,
)
from costmodel.analysis.claims.values import Value, counted, weaker
from costmodel.analysis.crossover import model_precision
from costmodel.dtypes import element_bytes
from costmodel.errors import BadInput
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Pipeline
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.gemm import without_quantisation
from costmodel.parallel.options import Options
from costmodel.parallel.rows import predict_layout
from costmodel.planning.cache import sequence_cache
from costmodel.planning.deployment import host_seconds
from costmodel.planning.engine_constants import engine_constants
from costmodel.planning.step_times import HostTime
from costmodel.prediction import make_step, served
from costmodel.step import Step
from costmodel.timing import time_step
from costmodel.transfers import ANY_FAMILY, between_libraries


def named(setup: SetUp, entries: Sequence[Any], names: Callable[[Any], Collection[str]]) -> list[Any]:
    """The kernels, or rows of a breakdown, that the set-up names. Raises BadInput where a name means none of them."""
    for name in (*setup.kernels, *setup.without):
        if not any(name in names(entry) for entry in entries):
            known = dict.fromkeys(next(iter(names(entry))) for entry in entries)
            raise BadInput(f"kernel {name!r} is none of {', '.join(known)}, nor a family or block of them")
    kept = [entry for entry in entries if not any(name in names(entry) for name in setup.without)]
    if setup.kernels:
        kept = [entry for entry in kept if any(name in names(entry) for name in setup.kernels)]
    return kept


def chosen(setup: SetUp, kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels of one device that the set-up names, of the pass that it names: a launch of a pipeline by its own
    name."""
    kernels = [part for kernel in kernels for part in launches(kernel, setup.kernels)]
    found: list[Kernel] = named(
        setup, kernels, lambda kernel: (kernel.name, kernel.name.removesuffix(" backward"), kernel.family, kernel.group)
    )
    if setup.part != "both":
        found = [kernel for kernel in found if kernel.gradient == (setup.part == "backward")]
    return [kernel for kernel in found if kernel.count]


def launches(kernel: Kernel, names: Collection[str]) -> Sequence[Kernel]:
    """The launches of a pipeline that bear one of these names; the kernel as it is where none does.

    They are priced by themselves, with the parameters of the whole.
    """
    if not isinstance(kernel.shape, Pipeline):
        return [kernel]
    found = [stage for stage in kernel.shape.stages if stage.name in names]
    return [
        stage._replace(count=kernel.count, group=kernel.group, module=kernel.module, instance=kernel.instance)
        for stage in found
    ] or [kernel]


def kernels_of(setup: SetUp) -> list[Kernel]:
    """The kernels of the step on one device, those that the set-up names."""
    if not setup.context:
        raise BadInput("the set-up names no context")
    model = model_of(setup)
    step = make_step(model, setup.phase, setup.context, sequences(setup), setup.new_tokens)
    kernels = list(model.kernels(step, precision_of(setup)))
    if setup.concatenated and step.decoding:
        kernels.append(concatenation(setup, step))
    found = served(chosen(setup, kernels), setup.caches)
    found = [as_compiled(setup, kernel) for kernel in found]
    return [without_quantisation(kernel) for kernel in found] if setup.quantised else found


def concatenation(setup: SetUp, step: Step) -> Kernel:
    """The copies of all keys and values to where the new ones follow them, `torch.cat` in every layer; states that do
    not grow are not copied.

    Source: huggingface/transformers, src/transformers/cache_utils.py, DynamicLayer.update.
    """
    model, precision = model_of(setup), precision_of(setup)
    cache = sequence_cache(model, precision)
    growing = {name for name, block in model.mixers.items() if block.module.cache(block.dims, precision).per_token}
    layers = sum(count for name, count in model.counts()[0].items() if name in growing)
    # Keys and values are a launch each.
    copied = step.B * (cache.bytes(step.L) - cache.state_bytes) / (2 * layers)
    return elementwise("concatenation", read=copied, written=copied)._replace(count=2 * layers)


def new_tokens_of(setup: SetUp) -> int:
    """New tokens of one sequence in the step."""
    return int(make_step(model_of(setup), setup.phase, setup.context, 1, setup.new_tokens).S)


def time(setup: SetUp) -> Value:
    """Seconds of the step, or of the kernels that the set-up names."""
    if layout_of(setup).gpus > 1:
        found = _placed_time(setup)
    else:
        run = after_clearing(setup, kernels_of(setup))
        step = time_step(run, device_of(setup), calibration_of(setup))
        found = Value(step.time_s, step.low_s, step.high_s, step.basis)
    return _with_host(setup, _of_another(setup, found))


def _of_another(setup: SetUp, found: Value) -> Value:
    """The time of kernels whose implementation was not measured: wider by what another library's kernel of the same
    kind was found to miss on one device, and no firmer than transferred."""
    if not setup.substitute or setup.calibration:
        return found
    missed = between_libraries()
    spreads = [missed.get(kernel.family, missed.get(ANY_FAMILY, 0.0)) for kernel in kernels_of(setup)]
    return found.widened(max(spreads))._replace(basis=weaker(found.basis, "transferred"))


def added_seconds(setup: SetUp) -> float:
    """What the set-up adds to a step: seconds of the host, and small launches, each of them as long as an elementwise
    kernel of no bytes."""
    if not setup.launches:
        return setup.host_s
    small = time_step([elementwise("", read=0, written=0)], device_of(setup), calibration_of(setup)).time_s
    return setup.host_s + setup.launches * small


def _with_host(setup: SetUp, found: Value) -> Value:
    """The step's time with what the host adds; of an engine, with what its predictions miss of unseen models' steps."""
    if not setup.engine:
        added_s = added_seconds(setup)
        return Value(found.value + added_s, found.low + added_s, found.high + added_s, found.basis)
    model, precision = model_of(setup), precision_of(setup)
    added = host_seconds(host_of(setup), model, lambda step: model.kernels(step, precision))
    host = added["host_s"] + added["sequence_s"] * sequences(setup) / layout_of(setup).dp
    missed = engine_constants(setup.engine, device_of(setup)).spread["tpot"]
    return Value(found.value + host, found.low + host, found.high + host, found.basis).widened(missed)


def host_of(setup: SetUp) -> HostTime:
    """Host times of the set-up's engine, with the seconds that the set-up adds to a step."""
    host = engine_constants(setup.engine, device_of(setup)).host if setup.engine else HostTime()
    return host._replace(step_s=host.step_s + added_seconds(setup))


def _placed_time(setup: SetUp) -> Value:
    model = model_of(setup)
    step = make_step(model, setup.phase, setup.context, sequences(setup), setup.new_tokens)
    options = Options(overlap=setup.overlap, imbalance=setup.imbalance, exchange_units=setup.exchange_units)
    row = predict_layout(
        model,
        layout_of(setup),
        device_of(setup),
        step,
        precision_of(setup),
        calibration_of(setup),
        setup.caches,
        None,
        options,
    )
    if setup.concatenated:
        raise BadInput("concatenated: copies of a cache are priced on one device alone")
    if setup.part != "both":
        raise BadInput(f"part {setup.part}: a layout of several devices is timed as a whole")
    factor = 1.0
    if setup.kernels or setup.without:
        kept = named(setup, row.breakdown, lambda entry: (entry.kernel, entry.family, entry.group))
        factor = sum(entry.time_s for entry in kept) / row.time_s
    return Value(row.time_s, row.time_low_s, row.time_high_s, row.basis).scaled(factor)


def time_per_token(setup: SetUp) -> Value:
    """Seconds of the step over its new tokens in all sequences."""
    return time(setup).scaled(1 / (sequences(setup) * new_tokens_of(setup)))


def prefill_in_chunks(setup: SetUp) -> Value:
    """Seconds until a prompt is prefilled in chunks of new_tokens that follow one another through a pipeline.

    Each chunk takes an equal part of its time in each of pp stages; the next one is a stage behind it, the last one
    holds what is left.
    """
    stages, chunk = layout_of(setup).pp, setup.new_tokens or setup.context
    starts = range(0, setup.context, chunk)
    ends = [(min(start + chunk, setup.context), start) for start in starts]
    parts = [time(setup._replace(phase="prefill", context=end, new_tokens=end - start)) for end, start in ends]
    total = sum(part.value for part in parts) / stages + parts[-1].value * (stages - 1) / stages
    return parts[-1].scaled(total / parts[-1].value)


def token_rate(setup: SetUp) -> Value:
    """New tokens per second and device."""
    return time(setup).inverse(sequences(setup) * new_tokens_of(setup) / setup.gpus)


def cost_per_token(setup: SetUp) -> Value:
    """US dollars for a token at this place in the sequence."""
    return time_per_token(setup).scaled(setup.gpus * setup.usd_per_gpu_hour / 3600)


def kernel_share(setup: SetUp) -> Value:
    """The part of the step's time that the named kernels take."""
    part, whole = time(setup), time(setup._replace(kernels=(), without=()))
    share = part.value / whole.value
    # What part and whole have in common moves both: the interval is that of the part against the rest.
    rest = max(whole.value - part.value, 1e-12 * whole.value)
    odds = part.value / rest
    width = math.hypot(math.log(part.high / part.value), math.log(whole.high / whole.value))
    low, high = odds * math.exp(-width), odds * math.exp(width)
    return Value(share, low / (1 + low), high / (1 + high), whole.basis)


def flops(setup: SetUp) -> Value:
    """FLOPs of the step, or of the kernels that the set-up names: exact pairs, no padding."""
    return counted(float(sum(kernel.ideal.flops * kernel.count for kernel in _counted_kernels(setup))))


def fp8_flops(setup: SetUp) -> Value:
    """FLOPs of the step as so many in fp8: a product in bf16 counts twice, one in fp4 half, as their peaks have it."""
    work = [(kernel.ideal.tensor, kernel.count) for kernel in _counted_kernels(setup)]
    return counted(
        float(sum(flops * count * _over_fp8(dtype) for tensor, count in work for dtype, flops in tensor.items()))
    )


def _over_fp8(dtype: str) -> float:
    """Width of a number format over that of fp8, scales left out.

    >>> _over_fp8("bf16"), _over_fp8("fp8"), _over_fp8("mxfp4")
    (2.0, 1.0, 0.5)
    """
    return 2.0 ** round(math.log2(element_bytes(dtype)))


def hbm_bytes(setup: SetUp) -> Value:
    """HBM bytes that the step's kernels cannot avoid."""
    return counted(float(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in _counted_kernels(setup))))


def _counted_kernels(setup: SetUp) -> list[Kernel]:
    """As `kernels_of`, without a device: in the model's own number formats."""
    if setup.hardware:
        return kernels_of(setup)
    model = model_of(setup)
    step = make_step(model, setup.phase, setup.context, sequences(setup), setup.new_tokens)
    return chosen(setup, model.kernels(step, model_precision(model)))


def flop_rate(setup: SetUp) -> Value:
    """FLOP/s of the named kernels: exact pairs over predicted time."""
    return time(setup).inverse(flops(setup).value)


def byte_rate(setup: SetUp) -> Value:
    """Bytes per second of the named kernels: unavoidable HBM bytes over predicted time."""
    return time(setup).inverse(hbm_bytes(setup).value)


def cache_bytes(setup: SetUp) -> Value:
    """Bytes that one sequence keeps."""
    model = model_of(setup)
    precision = precision_of(setup) if setup.hardware else model_precision(model)._replace(kv=setup.kv or model.kv)
    return counted(float(model.cache_bytes(setup.context, precision)))


def batch_that_fits(setup: SetUp) -> Value:
    """Sequences that fit in memory."""
    return counted(capacity(setup))
