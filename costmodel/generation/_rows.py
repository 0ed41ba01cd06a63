"""From a request to one row per method: validation, the plan of each method, its price, and what was assumed."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from costmodel.algebra import ceil, ceil_div
from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.coverage import unmeasured_in
from costmodel.dims import fields_by_name
from costmodel.errors import BadInput
from costmodel.generation import Method, Plan, Repeated, method
from costmodel.generation._pricing import (
    FP64_GUMBEL_BYTES,
    FP64_SOFTMAX_BYTES,
    Cost,
    Model,
    flops,
    price,
    weighted,
)
from costmodel.generation.block import generated_blocks
from costmodel.hardware import Hardware
from costmodel.model_file import load_architecture
from costmodel.prediction import MAX_BATCH, loaded, make_precision
from costmodel.units import MAX_CONTEXT

ACCEPTANCE = 0.7
"""Acceptance rate where none is given: the middle of table 2 of arXiv:2211.17192. An assumption."""

MAX_DRAFT = 1024


def rows(
    architecture: str | Architecture,
    hardware: str | Hardware,
    *,
    prompt: int,
    new_tokens: int,
    methods: str | Sequence[str],
    block: int,
    steps: int | None,
    draft_tokens: int,
    accepted: float | None,
    draft: float | str | Architecture | None,
    merge_clean: bool,
    temperature: float,
    batch: int,
    weights: str | None,
    kv: str | None,
    activations: str | None,
    library: str | None,
    settings: Sequence[str],
) -> list[dict[str, Any]]:
    """The rows of `costmodel.generation.generate`."""
    chosen = [method(name) for name in ([methods] if isinstance(methods, str) else methods)]
    if not chosen:
        raise BadInput("methods: none given")
    for name, value, most in (
        ("prompt", prompt, MAX_CONTEXT),
        ("new tokens", new_tokens, MAX_CONTEXT),
        ("block", block, MAX_CONTEXT),
        ("steps", steps, MAX_CONTEXT),
        ("draft tokens", draft_tokens, MAX_DRAFT),
        ("batch", batch, MAX_BATCH),
    ):
        if not (name == "steps" and value is None):
            _whole(name, value, most)
    if prompt + new_tokens > MAX_CONTEXT:
        raise BadInput(f"prompt {prompt} and new tokens {new_tokens} together exceed {MAX_CONTEXT}")
    rate, per_step = _accepted(accepted, steps, chosen)
    if not _real(temperature) or not 0 <= temperature < float("inf"):
        raise BadInput(f"temperature {str(temperature)[:60]!r} is not a number from 0 up")

    (asked,), (device,) = loaded(architecture, hardware, settings)
    calibration = find_calibration(device, library)
    # Where a pass is bidirectional its step says so; the model's own mask would apply to prompt passes too.
    causal = masked(asked)
    model = Model(causal, make_precision(asked, device, weights, kv, activations))
    plan = Plan(P0=prompt, T=new_tokens, B=batch, b=block, k=draft_tokens, a=rate, merge_clean=merge_clean)

    found: list[dict[str, Any]] = []
    known: dict[object, Cost] = {}
    for module in chosen:
        own, notes = _plan_of(module, plan, steps, per_step)
        if asked.denoises != module.DENOISES:
            kind = "a diffusion" if asked.denoises else "an autoregressive"
            notes.insert(0, f"{asked.name} is {kind} model: this prices its shape")
        if module.NAME == "speculative" and accepted is None:
            notes.append(f"acceptance rate {ACCEPTANCE} assumed")
        fp64 = FP64_SOFTMAX_BYTES + (FP64_GUMBEL_BYTES if temperature > 0 else 0) if module.FP64_SAMPLING else 0
        drafting = None
        if any(run.draft for run in module.steps(own)):
            drafting = _draft(draft, model, device, (weights, kv, activations))
        row = _row(module, own, model._replace(fp64_bytes=fp64), drafting, device, calibration, known, notes)
        row["ratio"] = row["time_s"] / (found[0]["time_s"] if found else row["time_s"])
        row["note"] = "; ".join(notes) or None
        found.append(row)
    return found


def masked(architecture: Architecture) -> Architecture:
    """The model with causal attention in every layer that has the choice."""
    blocks = {
        name: block._replace(dims=_causal(block.dims)) if hasattr(block.dims, "causal") else block
        for name, block in architecture.mixers.items()
    }
    return architecture._replace(mixers=blocks)


def _causal(dims: Any) -> Any:
    values = {item.name: getattr(dims, item.name) for item in fields_by_name(type(dims)).values()}
    return type(dims)(**{**values, "causal": True})


def one_layer(architecture: Architecture) -> Architecture:
    """The draft of multi-token prediction: the model's own layer for it, else its last mixer and FFN.

    Final norm, embedding and head come along.
    """
    mtp = architecture.mtp
    if mtp is not None:
        pair = (mtp.mixer.name if mtp.mixer else None, mtp.ffn.name if mtp.ffn else None)
        return architecture._replace(name=f"{architecture.name} (prediction layer)", layers=(pair,))
    layers = architecture.layers
    start = len(layers) - 1
    while start > 0 and not all(any(layer[part] is not None for layer in layers[start:]) for part in (0, 1)):
        start -= 1
    return architecture._replace(name=f"{architecture.name} (last layer)", layers=layers[start:])


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{name} {str(value)[:60]!r} is not a whole number")
    if not 1 <= value <= most:
        raise BadInput(f"{name} {value} is outside 1 to {most}")


def _accepted(accepted: Any, steps: int | None, chosen: Sequence[Method]) -> tuple[float, float]:
    """Acceptance rate of drafts and tokens committed per denoising step: the two readings of one number."""
    if accepted is None:
        return ACCEPTANCE, 1
    if not _real(accepted) or not 0 <= accepted <= MAX_CONTEXT:
        raise BadInput(f"accepted {str(accepted)[:60]!r} is neither a rate from 0 to 1 nor tokens from 1 up")
    speculates = any(module.NAME == "speculative" for module in chosen)
    denoises = any(module.DENOISES for module in chosen)
    if accepted > 1 and not denoises:
        raise BadInput(f"accepted {accepted}: the acceptance rate of draft tokens is from 0 to 1")
    if accepted < 1 and not speculates:
        raise BadInput(f"accepted {accepted}: a denoising step commits at least 1 token")
    if accepted > 1 and steps is not None:
        raise BadInput(f"accepted {accepted} and steps {steps}: the tokens per step and their number; give one of them")
    return (accepted if accepted <= 1 else ACCEPTANCE), (accepted if accepted >= 1 else 1)


def _plan_of(module: Method, plan: Plan, steps: int | None, per_step: float) -> tuple[Plan, list[str]]:
    """The plan with the denoising steps of this method, and what had to be rounded.

    Steps are cut evenly over the blocks, rounded up; tokens per step fill blocks, or the whole answer.
    """
    if not module.DENOISES:
        return plan, []
    if module.NAME == "full":
        return plan._replace(K=steps or ceil(plan.T / per_step)), []
    count = generated_blocks(plan) if module.NAME == "block" else ceil_div(plan.T, plan.b)
    if steps is not None and steps < count:
        raise BadInput(f"steps {steps} are fewer than the {count} blocks of {module.NAME}; a block takes at least one")
    s = ceil(plan.b / per_step) if steps is None else ceil_div(steps, count)
    notes = []
    if count * plan.b != plan.T:
        notes.append(f"{count} whole blocks: {count * plan.b} positions are denoised for {plan.T} new tokens")
    if steps is not None and s * count != steps:
        notes.append(f"{s} steps in each of {count} blocks: {s * count} instead of {steps}")
    return plan._replace(s=s, K=s * count), notes


def _draft(
    draft: float | str | Architecture | None,
    model: Model,
    device: Hardware,
    dtypes: tuple[str | None, str | None, str | None],
) -> Model:
    """The model that drafts: a share of the model, another architecture, or the model's own last layer."""
    if draft is None:
        return model._replace(architecture=one_layer(model.architecture))
    if _real(draft):
        share = float(draft)  # type: ignore[arg-type]
        if not 0 <= share <= 1:
            raise BadInput(f"draft {draft}: as a share of the model's own cost it is from 0 to 1")
        return model._replace(scale=share)
    if not isinstance(draft, str | Architecture):
        raise BadInput(f"draft {str(draft)[:60]!r} is neither a share nor an architecture")
    architecture = draft if isinstance(draft, Architecture) else load_architecture(draft)
    return Model(masked(architecture), make_precision(architecture, device, *dtypes))


def _row(
    module: Method,
    plan: Plan,
    model: Model,
    drafting: Model | None,
    device: Hardware,
    calibration: Calibration,
    known: dict[object, Cost],
    notes: list[str],
) -> dict[str, Any]:
    runs = module.steps(plan)

    def by(run: Repeated) -> Model:
        return drafting if run.draft and drafting is not None else model

    costs = [(run, price(by(run), run, device, calibration, known)) for run in runs]
    total = weighted((1.0, cost) for _, cost in costs)
    work = sum((flops(by(run), run) for run in runs), Fraction(0))
    whole = int(work) if work.denominator == 1 else float(work)
    passes, decisions = int(module.passes(plan)), int(module.decisions(plan))
    tokens = plan.B * plan.T
    kept = module.cache_tokens(plan)
    cache = plan.B * model.architecture.cache_bytes(kept, model.precision) if kept else 0
    held = model.architecture.weight_bytes(model.precision)
    weight_passes: float = passes
    if drafting is not None:
        share = drafting.scale * drafting.architecture.active_parameters / model.architecture.active_parameters
        weight_passes += share * sum(run.passes for run in runs if run.draft)
        if drafting.architecture is not model.architecture:
            cache += plan.B * drafting.architecture.cache_bytes(kept, drafting.precision)
    if held + cache > device.memory.hbm.capacity:
        notes.append("weights and cache exceed the memory of one device")
    longest = model.architecture.max_context
    if longest is not None and longest < plan.L:
        notes.append(f"beyond the model's {longest} tokens of context")
    return {
        "arch": model.architecture.name,
        "hw": device.name,
        "library": calibration.library,
        "method": module.NAME,
        "batch": plan.B,
        "prompt": plan.P0,
        "new_tokens": plan.T,
        "block": plan.b if module.DENOISES and module.NAME != "full" else None,
        "steps": decisions,
        "passes": passes,
        "time_s": total.time_s,
        "time_low_s": total.low_s,
        "time_high_s": total.high_s,
        "prefill_s": sum((cost.time_s for run, cost in costs if run.prompt), 0.0),
        "flops": whole,
        "hbm_bytes": total.hbm_bytes,
        "weight_passes": weight_passes,
        "cache_bytes": float(cache),
        "tokens_per_s": tokens / total.time_s,
        "tokens_per_step": plan.T / decisions,
        "energy_j": total.energy_j,
        "flops_per_token": whole / tokens,
        "order": module.ORDER,
        "bound": total.bound,
        "basis": total.basis,
        "calibration": calibration.id,
        "unmeasured": unmeasured_in(model.architecture, calibration),
    }
