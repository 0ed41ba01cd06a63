"""A plan put to the test: an event replay of its engines under its load, and how far the steady state was off."""

import math
from typing import Any

from costmodel.parallel.layout import Disaggregated, Layout, parse_layout
from costmodel.planning.assess import Assessment, Role
from costmodel.planning.deployment import deployment
from costmodel.planning.launch import Worker
from costmodel.planning.load import Load
from costmodel.planning.measures import ServiceLevel
from costmodel.planning.question import Loaded
from costmodel.planning.replay import replay
from costmodel.planning.snapshots import recurrent


def replayed(loaded: Loaded, found: Assessment, load: Load, seed: int = 0) -> dict[str, Any]:
    """What the replay says beside the steady state; latencies are null where the queue grows without bound."""
    asked, plan = loaded.question, found.plan
    engines = deployment(
        found.roles[-1].engine.served,
        parse_layout(plan.layout),
        asked.settings(
            plan.hw, plan.budget, plan.draft_tokens, max(places(loaded, found, role) for role in found.roles)
        ),
        replicas=plan.replicas,
        link_bandwidth=asked.link_bandwidth,
    )
    level = asked.level if asked.level != ServiceLevel() else None
    measured = replay(engines, load.requests(), clients=load.clients, level=level, seed=seed)
    measured.rate_per_s = asked.work.rate
    row: dict[str, Any] = {"hw": plan.hw, "layout": plan.layout, "requests": measured.measured}
    row |= {"saturated": measured.saturated, "preemptions": measured.preemptions}
    for name, values in measured.latencies().items():
        if name in ("ttft_s", "tpot_s"):
            row |= {f"{name[:-2]}_{key}_s": value for key, value in values.items()}
            own, mean = getattr(found.state, name), values["mean"]
            row[f"{name[:-2]}_off"] = None if not mean else 100.0 * (own / mean - 1.0)
    good = level is not None and not measured.saturated and measured.measured
    row["good_share"] = measured.good / measured.measured if good else None
    return row


def places(loaded: Loaded, found: Assessment, role: Role) -> int:
    """Sequences that an engine may have under way: the plan's and four standard deviations of chance, if they fit.

    An engine that only prefills has a few prompts at a time.
    """
    most = int(role.places[role.column])
    if role.name == "prefill":
        asked = loaded.question
        # Short prompts of one token each fill a chunk together.
        together = math.ceil(found.plan.budget / asked.work.computed) if asked.work.prefill_only else 0
        return min(max(16, 2 * together), most)
    n = max(found.state.sequences, 1.0)
    return max(1, min(most, math.ceil(n + 4.0 * math.sqrt(n))))


def workers(loaded: Loaded, found: Assessment) -> list[Worker]:
    """What the engines of a plan are started with."""
    asked, plan = loaded.question, found.plan
    layout = parse_layout(plan.layout)
    parts: list[tuple[str, int, Layout]] = [("both", plan.replicas, layout)] if isinstance(layout, Layout) else []
    if isinstance(layout, Disaggregated):
        parts = [("prefill", *layout.prefill), ("decode", *layout.decode)]
    model = loaded.model

    def budget(role: Role, part: Layout) -> int:
        """Tokens of an iteration; of an engine that only decodes, those of its sequences."""
        new = places(loaded, found, role) * part.pp * (plan.draft_tokens + 1)
        return new if role.name == "decode" else plan.budget

    return [
        Worker(
            role=name,
            replicas=replicas,
            layout=part,
            sequences=places(loaded, found, role),
            budget=budget(role, part),
            longest=asked.work.longest,
            page_tokens=asked.engines[plan.hw].page_tokens,
            mixed=asked.engines[plan.hw].mixed,
            utilisation=asked.engines[plan.hw].utilisation,
            weights=plan.weights,
            kv=plan.kv,
            draft_tokens=plan.draft_tokens,
            prefix_cache=asked.work.computed < asked.work.input,
            own_drafts=model.mtp is not None,
            recurrent=recurrent(model),
            model=model.hf_id or "MODEL",
        )
        for (name, replicas, part), role in zip(parts, found.roles, strict=True)
    ]
