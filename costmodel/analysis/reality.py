"""The reality check: what a mechanism or a model claims, how it grows as implemented, and what that buys.

One row for each subject, device, phase and context. A mechanism is one layer with the dimensions that a well-known
model has; a model is all its layers. Both are measured against full attention in the same shape
(`analysis.full_attention`). Four gains that claims mix up stand apart: FLOPs, memory traffic, capacity (how many
sequences fit) and serial latency (launches and chains, which no faster engine shortens).

>>> from costmodel.hardware import load_hardware
>>> [row] = reality(["kimi-linear-48b-a3b"], [load_hardware("h100-sxm")], [1048576])
>>> row["claimed"], row["order_flops"], round(row["coefficient_vs_full"], 4)  # 7 of its 27 layers
('O(L) in 20 of 27 layers', 'O(L²)', 0.2593)
>>> row["verdict"]
'quadratic, 3.86× smaller constant (3.86× in time at most)'
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from costmodel.analysis.crossover import model_precision, quadratic_context, step_at
from costmodel.analysis.gains import (
    Priced,
    Room,
    chain_bound,
    kept_bytes,
    kernels_at,
    of_mixing,
    room,
    serial_seconds,
    weakest_basis,
    work_of,
)
from costmodel.analysis.orders import (
    CONSTANT,
    Place,
    Term,
    counted_order,
    local_exponent,
    quantity_order,
    time_order,
)
from costmodel.analysis.subjects import PHASES, Subject, subjects
from costmodel.analysis.symbolic import Size
from costmodel.analysis.verdict import Finding, verdict
from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.coverage import unmeasured
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware
from costmodel.prediction import MAX_BATCH, make_precision
from costmodel.step import Phase
from costmodel.timing import KernelTime


class Growing(NamedTuple):
    """How a model's step grows: FLOPs, executed HBM bytes, and the cache of a sequence."""

    flops: Term
    bytes: Term
    cache: Term


class Against(NamedTuple):
    """What holds at every context: own and full attention's growth, and their ratios.

    of_flops, of_bytes, of_time: coefficients over full attention's, see `relative`.
    """

    own: Growing
    full: Growing
    own_time: Term
    of_flops: float | None
    of_bytes: float | None
    of_time: float | None
    quadratic_context: int | None


def growing(model: Architecture, phase: Phase) -> Growing:
    """The leading terms of a model's step for one sequence, in its own number formats."""
    L = Size("L", 8192)
    precision = model_precision(model)
    kernels = model.kernels(step_at(model, phase, L), precision)
    memo: dict[Any, Any] = {}
    flops = counted_order(kernels, L, lambda kernel: kernel.ideal.flops, memo)
    moved = counted_order(kernels, L, lambda kernel: kernel.executed.hbm_bytes, memo)
    kept = CONSTANT if model.bidirectional else quantity_order(model.cache_bytes(L, precision), L)
    return Growing(flops, moved, kept)


def relative(own: Term, full: Term) -> float | None:
    """The coefficient of full attention's order in `own` over full attention's; None where `own` grows faster."""
    if own.key > full.key:
        return None
    return own.coefficient / full.coefficient if own.key == full.key else 0.0


def reality(
    names: Sequence[str | Subject],
    hardware: Sequence[Hardware],
    contexts: Sequence[int],
    *,
    phases: Sequence[str] = ("prefill",),
    batch: int = 1,
    library: str | None = None,
    settings: Sequence[str] = (),
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of `reality-check`, in the order subject, phase, device, context.

    names: mechanisms, models, "all", "mechanisms", "models", or subjects.
    Raises BadInput for what cannot be understood, Impossible for a number format without an engine.
    """
    asked = phases_asked(phases)
    if not 1 <= batch <= MAX_BATCH:
        raise BadInput(f"batch {batch} is outside 1 to {MAX_BATCH}")
    calibrations = [(device, find_calibration(device, library)) for device in hardware]
    for name in names:
        for subject in (name,) if isinstance(name, Subject) else subjects([name], settings):
            for phase in asked:
                own, full = growing(subject.model, phase), growing(subject.full.model, phase)
                first = quadratic_context(subject.model, phase=phase)
                for device, calibration in calibrations:
                    mine, theirs = (
                        Priced(
                            model, phase, make_precision(model, device, weights, kv, activations), device, calibration
                        )
                        for model in (subject.model, subject.full.model)
                    )
                    against = _against(own, full, mine, theirs, first, batch)
                    for L in contexts:
                        yield _row(subject, against, mine, theirs, L, batch)


def phases_asked(names: Sequence[str]) -> list[Phase]:
    """The phases of these names, `all` being both. Raises BadInput for another.

    >>> phases_asked(["decode", "all"])
    ['decode', 'prefill']
    """
    found: list[Phase] = []
    for name in names:
        if name not in (*PHASES, "all"):
            raise unknown("phase", name, [*PHASES, "all"])
        found += [phase for phase in PHASES if name in (phase, "all")]
    return list(dict.fromkeys(found))


def _against(
    own: Growing, full: Growing, mine: Priced, theirs: Priced, quadratic_context: int | None, batch: int
) -> Against:
    steps = [kernels_at(priced.model, mine.phase, priced.precision, batch) for priced in (mine, theirs)]
    own_time, full_time = (time_order(at, mine.hardware, mine.calibration) for at in steps)
    return Against(
        own=own,
        full=full,
        own_time=own_time,
        of_flops=relative(own.flops, full.flops),
        of_bytes=relative(own.bytes, full.bytes),
        of_time=relative(own_time, full_time),
        quadratic_context=quadratic_context,
    )


def _row(subject: Subject, against: Against, mine: Priced, theirs: Priced, L: int, batch: int) -> dict[str, Any]:
    own, full = against.own, against.full
    # A step of one token waits for memory, a whole sequence for arithmetic.
    by_bytes = mine.phase == "decode" and not mine.model.bidirectional
    coefficient = against.of_bytes if by_bytes else against.of_flops
    carried = max((own.bytes, own.flops) if by_bytes else (own.flops, own.bytes), key=lambda term: term.key)
    times, full_times = mine.times(L, batch), theirs.times(L, batch)
    seconds, full_seconds = (float(sum(entry.time_s for entry in each)) for each in (times, full_times))
    cache, full_cache = mine.cache_bytes(L), theirs.cache_bytes(L)
    fixed = kept_bytes(mine.model, mine.precision, L)
    state = fixed.whole
    serial, full_serial = (serial_seconds(each, mine.hardware, mine.calibration) for each in (times, full_times))
    # A hybrid has keys and values of its own to measure its states by.
    kept = own.cache if own.cache.key == (1, 0) else full.cache
    limit = 1 / against.of_time if against.of_time else None
    fits = room(mine, theirs, L, subject.layers) if by_bytes else None
    finding = Finding(
        phase=mine.phase,
        flops=own.flops,
        bytes=own.bytes,
        time=against.own_time,
        cache=own.cache,
        coefficient=coefficient,
        limit=limit,
        kept=fixed,
        state_tokens=state / kept.coefficient if kept.key == (1, 0) else 0.0,
        chain_bound=chain_bound(times, mine.model),
        speedup=full_seconds / seconds,
        room=fits or Room(1, None, None, None),
        generation=mine.model.generation,
    )
    return {
        "name": subject.name,
        "kind": subject.kind,
        "hw": mine.hardware.name,
        "context": L,
        "claimed": subject.claims[mine.phase],
        "order_flops": own.flops.text,
        "order_bytes": own.bytes.text,
        "order_cache": own.cache.text,
        "order_time": against.own_time.text,
        "carrier": _carrier(subject, carried.carrier),
        "coefficient_vs_full": coefficient,
        "quadratic_context": against.quadratic_context,
        "exponent": local_exponent(lambda length: mine.seconds(length, batch), L),
        "ceiling": _ceiling(full_seconds, times, mine.model, limit),
        "verdict": verdict(finding),
        "phase": mine.phase,
        "batch": batch,
        "library": mine.calibration.library,
        "calibration": mine.calibration.id,
        "basis": weakest_basis(times),
        "unmeasured": unmeasured([entry.kernel for entry in times], mine.calibration),
        "full_attention": subject.full.chosen,
        "sizes_of": subject.sizes_of,
        "claim_source": subject.claim_source,
        "time_s": seconds,
        "full_time_s": full_seconds,
        "speedup": finding.speedup,
        "limit": finding.limit,
        "coefficient_flops": against.of_flops,
        "coefficient_bytes": against.of_bytes,
        "coefficient_time": against.of_time,
        "flops_vs_full": work_of(times, "ideal", "flops") / work_of(full_times, "ideal", "flops"),
        "bytes_vs_full": work_of(times, "executed", "hbm_bytes") / work_of(full_times, "executed", "hbm_bytes"),
        "cache_vs_full": cache / full_cache if full_cache else None,
        "cache_bytes": cache,
        "state_bytes": state,
        "state_tokens": finding.state_tokens,
        "serial_s": serial,
        "serial_vs_full": serial / full_serial,
        "devices": fits.devices if fits else None,
        "best_batch": fits.batch if fits else None,
        "best_batch_full": fits.batch_full if fits else None,
        "capacity_speedup": fits.speedup if fits else None,
    }


def _ceiling(full_seconds: float, times: Sequence[KernelTime], model: Architecture, limit: float | None) -> float:
    """The most that a subject can gain at equal batch: the gain that its leading terms tend to, and at this context
    no more than if its mixing took no time beside its projections, FFNs and head."""
    seconds = sum(float(entry.time_s) for entry in times)
    rest = seconds - sum(float(entry.time_s) for entry in times if of_mixing(entry, model))
    free = full_seconds / rest
    # A gain that is there already is possible, though the leading terms tend to a smaller one.
    return free if limit is None else min(free, max(limit, full_seconds / seconds))


def _carrier(subject: Subject, place: Place) -> str:
    """The kernel, of a model with its block."""
    return place[1] if subject.kind == "mechanism" or not place[0] else f"{place[0]}: {place[1]}"
