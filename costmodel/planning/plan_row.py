"""A plan as flat values: the keys of `plan --format json` (docs/planning.md says what each one means)."""

import math
from typing import Any

from costmodel.coverage import unmeasured_in
from costmodel.energy import energy_joules
from costmodel.fit import BASES
from costmodel.planning.assess import Assessment, Role, interval, spread
from costmodel.planning.question import Loaded
from costmodel.timing import Z80

HOUR = 3600.0


def plan_row(loaded: Loaded, found: Assessment) -> dict[str, Any]:
    """Everything that is told of a plan."""
    asked, plan, state = loaded.question, found.plan, found.state
    work, load = asked.work, state.load_per_s
    low, high = interval(state.capacity_per_s, found.errors["capacity_per_s"])
    needed = [_needed(found, sign) for sign in (0.0, 1.0, -1.0)]
    price = asked.prices[plan.hw]
    share = _prefill_cost(found)
    tokens = {"input": load * work.input, "output": load * work.output}
    watts = _watts(found)
    row: dict[str, Any] = {
        "arch": loaded.model.name,
        "hw": plan.hw,
        "layout": plan.layout,
        "replicas": plan.replicas,
        "gpus": plan.gpus,
        "weights": plan.weights or "own",
        "kv": plan.kv or "own",
        "draft_tokens": plan.draft_tokens,
        "max_batched_tokens": plan.budget,
        "sequences": state.sequences,
        "load_per_s": load,
        "saturated": load > (1 + 1e-9) * state.most_per_s or not math.isfinite(state.ttft_s),
    }
    for name in ("ttft_s", "tpot_s"):
        value = getattr(state, name)
        told = not (work.prefill_only and name == "tpot_s")
        row |= _with_interval(name, value, interval(value, found.errors[name]) if told else None)
    row |= {
        "e2e_s": state.ttft_s + state.tpot_s * (work.output - 1.0),
        **_with_interval("capacity_per_s", state.capacity_per_s, (low, high)),
        "load_share": load / state.capacity_per_s if state.capacity_per_s else None,
        "gpus_needed": needed[0],
        "gpus_needed_low": needed[1],
        "gpus_needed_high": needed[2],
        "output_tokens_per_s": tokens["output"],
        "output_tokens_per_s_gpu": tokens["output"] / plan.gpus,
        "output_tokens_per_s_user": 1.0 / state.tpot_s if state.tpot_s else None,
        "usd_per_gpu_hour": price,
        "usd_per_hour": plan.usd_per_hour,
    }
    for name, part in (("input", share), ("output", 1.0 - share)):
        for ending, gpus in zip(("", "_low", "_high"), (plan.gpus, *needed[1:]), strict=True):
            key = f"usd_per_million_{name}_tokens{ending}"
            priced = not (work.prefill_only and name == "output")
            row[key] = 1e6 * gpus * price / HOUR * part / tokens[name] if priced and gpus is not None else None
    row |= {
        "power_w": watts,
        "joules_per_output_token": watts and watts / tokens["output"],
        "joules_per_token": watts and watts / (tokens["input"] + tokens["output"]),
        "limited_by": limit(loaded, found),
        "decode_bound": _bound(found, "decode"),
        "prefill_bound": _bound(found, "prompt"),
        "basis": max((step.basis for step in found.steps.values()), key=BASES.index),
        "cache_share": _cache_share(found),
        "calibration": found.roles[0].engine.calibration.id,
        "unmeasured": unmeasured_in(loaded.model, found.roles[0].engine.calibration),
    }
    return row


def _with_interval(name: str, value: float, ends: tuple[float, float] | None) -> dict[str, float | None]:
    """A value and the ends of its interval; without them, there is none."""
    unit = "_per_s" if name.endswith("_per_s") else "_s"
    stem = name.removesuffix(unit)
    low, high = (None, None) if ends is None else ends
    return {name: None if ends is None else value, f"{stem}_low{unit}": low, f"{stem}_high{unit}": high}


def _needed(found: Assessment, sign: float) -> int | None:
    """GPUs for the load in whole replicas of every role, each as fast as expected (0) or at an end of its interval;
    None where a role can take nothing."""
    total = 0
    for role, capacity in zip(found.roles, found.state.capacities, strict=True):
        each = capacity / role.replicas * math.exp(sign * Z80 * spread(found.errors[role.name]))
        if not each > 0:
            return None
        total += role.engine.layout.gpus * math.ceil(found.state.load_per_s / each - 1e-9)
    return total


def _prefill_cost(found: Assessment) -> float:
    """The part of the GPUs' time that prompts take."""
    if len(found.roles) == 1:
        return 1.0 if found.roles[0].name == "prefill" else found.state.prefill_share
    front, _ = found.roles
    return front.replicas * front.engine.layout.gpus / found.plan.gpus


def _watts(found: Assessment) -> float | None:
    """Power of all devices: those that wait draw what they draw when idle."""
    total = 0.0
    for role in found.roles:
        hardware = role.engine.served.hardware
        busy = min(found.state.sequences, 1.0) if role.name != "prefill" else found.state.prefill_share
        part = {"both": found.state.prefill_share, "prefill": 1.0, "decode": 0.0}[role.name]
        power = 0.0
        for kind, of_time in (("decode", 1.0 - part), ("prompt", part)):
            step = found.steps.get((role.name, kind))
            if step is None or not of_time:
                continue
            joules = energy_joules(hardware, step.time_s, step.roofline_s)
            if joules is None:
                return None
            power += of_time * joules / step.time_s
        idle = energy_joules(hardware, 1.0, 0.0) or 0.0
        total += role.replicas * role.engine.layout.gpus * (busy * power + (1.0 - busy) * idle)
    return total


def _bound(found: Assessment, kind: str) -> str | None:
    return next((step.bound for (_, of), step in found.steps.items() if of == kind), None)


def _cache_share(found: Assessment) -> float | None:
    """The part of the memory for caches that is used, on the fullest device."""
    role = found.roles[-1]
    free = float(role.room.free[role.column])
    return found.state.sequences * role.room.each / free if math.isfinite(free) and free > 0 else None


def limit(loaded: Loaded, found: Assessment) -> str:
    """What keeps an engine from taking more: the first limit that is met as its batch grows."""
    parts = [_role_limit(loaded, role) for role in found.roles]
    return parts[0] if len(parts) == 1 else f"prefill: {parts[0]}; decode: {parts[1]}"


def _role_limit(loaded: Loaded, role: Role) -> str:
    level, at = loaded.question.level, role.at(loaded)
    column = 0 if len(at.rate) == 1 else role.column
    over = {
        "TTFT": at.ttft_s[column] > (math.inf if level.ttft_s is None or role.name == "decode" else level.ttft_s),
        "TPOT": at.tpot_s[column] > (math.inf if level.tpot_s is None or role.name == "prefill" else level.tpot_s),
    }
    first = {name: int(where.argmax()) for name, where in over.items() if where.any()}
    if first:
        return min(first, key=lambda name: first[name])
    if role.name == "prefill":
        return "throughput"
    if float(role.places[role.column]) < loaded.question.engines[role.engine.served.hardware.name].max_sequences:
        return "memory"
    return "max sequences"
