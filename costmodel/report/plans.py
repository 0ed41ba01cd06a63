"""`plan`: the question as plain inputs, the search, and what is printed and written of it."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from costmodel.errors import Impossible
from costmodel.loading import check_folder, write_atomically
from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.assess import Assessment, assess
from costmodel.planning.candidates import Candidate
from costmodel.planning.closest import assess_closest
from costmodel.planning.confirm import replayed, workers
from costmodel.planning.launch import launches
from costmodel.planning.load import Load
from costmodel.planning.parallel_search import evaluator_of
from costmodel.planning.plan_row import plan_row
from costmodel.planning.prices import prices_for
from costmodel.planning.question import Loaded, Question, load
from costmodel.planning.search import Found, exceeded, search
from costmodel.report.columns import Column, number_text, percent, shows, value_text
from costmodel.report.output import as_json, emit, note, print_csv, print_table
from costmodel.report.progress import Progress
from costmodel.report.remarks import note_drafter, note_snapshots
from costmodel.units import format_span

Inputs = Mapping[str, Any]
REPLAYED = 2_000
"""Requests of the replay that confirms a plan, unless told."""
MOST_POINTS = 12
"""Points of a device's frontier that a table shows; JSON has all."""


def plan_and_print(form: str, asked: Inputs, out: str | None, plot: str | None) -> None:
    """Search, assess the best of each device, confirm it, and print.

    asked: the options of the command; times and the rate as texts. Raises Impossible, at the end, where nothing holds
    the service level: with the closest point and what blocks it.
    """
    inputs = read_inputs(asked)
    for path in (out, plot):
        check_folder(path)
    load_of = Load({**inputs, "requests": inputs["requests"] or REPLAYED})
    question = question_of(inputs, load_of)
    progress = Progress()
    evaluator = evaluator_of(inputs["engine"], inputs["jobs"], inputs["scheduler"])
    found = search(question, evaluator, partial(progress.at, "layouts"))
    progress.close()
    known = load(question)
    under, assessed = known, [assess(known, plan) for plan in found.best]
    if found.closest is not None:
        under, reached = assess_closest(known, found.closest)
        assessed = [reached]
    rows = [{**plan_row(under, each), "within_level": bool(found.best)} for each in assessed]
    frontier = [_point(question, point) for point in found.frontier]
    confirmed = assessed if inputs["confirm"] and found.best else []
    checks = [replayed(known, each, load_of, inputs["seed"]) for each in confirmed]
    starts = [
        {"hw": each.plan.hw, **launch._asdict()}
        for each, row in zip(assessed, rows, strict=True)
        if not row["saturated"]
        for worker in workers(under, each)
        for launch in launches(worker)
    ]
    whole = {
        "frontier": frontier,
        "replays": checks,
        "launch": starts,
        "dimensions": [dimension._asdict() for dimension in found.dimensions],
        "space": [count._asdict() for count in found.counts],
        "closest": [] if found.best or not rows else rows,
    }
    shown = {**inputs, "prices": question.prices, "gpus": list(question.gpus)}
    text = as_json("plan", shown, rows if found.best else [], None, **whole)
    if plot is not None and (frontier or found.cloud):
        from costmodel.report.plan_plot import draw_plan

        draw_plan(plot, known.model.name, question, [_point(question, point) for point in found.cloud], frontier, rows)
        note(f"note: wrote {plot}")
    if out is not None:
        write_atomically(Path(out), text.encode() + b"\n")
        note(f"note: wrote {out}")
    _print(form, text, known.model.name, question, load_of, rows, frontier, checks, starts, found)
    note_snapshots(known.model, load_of, inputs["snapshot_tokens"])
    _remarks(known, question, assessed, checks, inputs)
    if not found.best:
        _refuse(known.model.name, question, assessed)


def _point(question: Question, point: Candidate) -> dict[str, Any]:
    """A point of the frontier: engines that are kept this full, and what the load would need of them."""
    work = question.work
    price = question.prices[point.hw]
    return {
        "hw": point.hw,
        "layout": point.layout,
        "weights": point.weights or "own",
        "kv": point.kv or "own",
        "draft_tokens": point.draft_tokens,
        "max_batched_tokens": point.budget,
        "sequences": point.sequences,
        "output_tokens_per_s_user": 1.0 / point.tpot_s,
        "output_tokens_per_s_gpu": point.tokens_per_s_gpu,
        "ttft_s": point.ttft_s,
        "tpot_s": point.tpot_s,
        "replicas": point.replicas,
        "gpus": point.gpus,
        "within_level": exceeded(question, point)[0] <= 1.0 + 1e-9,
        "usd_per_million_output_tokens_alone": 1e6 * price / 3600.0 / point.tokens_per_s_gpu,
        "limited_by": point.limited_by,
        "prompt_tokens": work.input,
    }


def _latency(latency: str, key: str) -> Column:
    return Column(key, lambda row: value_text("time_s", row[f"{latency}_{key}_s"]), group=latency.upper())


BEST = (
    shows("hw", right=False),
    shows("layout", right=False),
    shows("replicas"),
    shows("gpus", "GPUs"),
    Column("weights\nKV", lambda row: f"{row['weights']}, {row['kv']}", right=False),
    shows("draft_tokens", "drafts"),
    shows("max_batched_tokens", "chunk\nbudget"),
    shows("sequences", "batch"),
    Column("TTFT", lambda row: _seconds(row["ttft_s"])),
    Column("80 %", lambda row: _interval(row, "ttft"), group="interval"),
    Column("TPOT", lambda row: value_text("time_s", row["tpot_s"])),
    Column("80 % ", lambda row: format_span(row["tpot_low_s"], row["tpot_high_s"]), group="interval "),
    Column(
        "at most\nrequests/s", lambda row: _span(row, "capacity_low_per_s", "capacity_per_s", "capacity_high_per_s")
    ),
    shows("output_tokens_per_s_gpu", "tokens/s\nper GPU"),
    Column("GPUs\nneeded", lambda row: _ends(row["gpus_needed_low"], row["gpus_needed_high"])),
    Column("USD/h", lambda row: number_text(float(row["usd_per_hour"]))),
    Column("input", lambda row: _money(row, "input"), group="USD per million tokens"),
    Column("output", lambda row: _money(row, "output"), group="USD per million tokens"),
    shows("joules_per_output_token", "J per\noutput token"),
    shows("limited_by", "limited by", right=False),
    Column("decode, prefill\nbound by", lambda row: f"{row['decode_bound']}, {row['prefill_bound']}", right=False),
)
FRONTIER = (
    shows("hw", right=False),
    shows("layout", right=False),
    Column("weights, KV", lambda row: f"{row['weights']}, {row['kv']}", right=False),
    shows("max_batched_tokens", "chunk\nbudget"),
    shows("sequences", "batch"),
    shows("output_tokens_per_s_user", "tokens/s\nper user"),
    shows("output_tokens_per_s_gpu", "tokens/s\nper GPU"),
    Column("TTFT", lambda row: value_text("time_s", row["ttft_s"])),
    Column("TPOT", lambda row: value_text("time_s", row["tpot_s"])),
    shows("gpus", "GPUs for\nthe load"),
    shows("usd_per_million_output_tokens_alone", "USD per million\noutput tokens"),
    shows("limited_by", "limited by", right=False),
)
REPLAY = (
    shows("hw", right=False),
    shows("layout", right=False),
    shows("requests"),
    *(_latency(latency, key) for latency in ("ttft", "tpot") for key in ("mean", "p50", "p90", "p99")),
    Column("good", lambda row: "–" if row["good_share"] is None else percent(row["good_share"])),
    Column("TTFT", lambda row: _off(row["ttft_off"]), group="steady state off"),
    Column("TPOT", lambda row: _off(row["tpot_off"]), group="steady state off"),
)
SPACE = (
    shows("what", "of", right=False),
    Column("count", lambda row: f"{row['number']:,}"),
    shows("why", "", right=False),
)


def _seconds(value: float) -> str:
    return value_text("time_s", value) if math.isfinite(value) else "saturated"


def _interval(row: Mapping[str, Any], latency: str) -> str:
    low, high = row[f"{latency}_low_s"], row[f"{latency}_high_s"]
    return format_span(low, high) if math.isfinite(high) else "–"


def _span(row: Mapping[str, Any], low: str, value: str, high: str) -> str:
    return f"{row[value]:.3g} ({row[low]:.3g} … {row[high]:.3g})"


def _ends(low: Any, high: Any) -> str:
    low, high = ("–" if end is None else str(end) for end in (low, high))
    return low if low == high else f"{low} … {high}"


def _money(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"usd_per_million_{name}_tokens{ending}"] for ending in ("", "_low", "_high"))
    if value is None:
        return "–"
    if low == high or low is None or high is None:
        return f"{value:.3g}"
    return f"{value:.3g} ({low:.3g} … {high:.3g})"


def _off(value: float | None) -> str:
    return "–" if value is None else f"{value:+.0f} %"


def _print(
    form: str,
    text: str,
    name: str,
    question: Question,
    load_of: Load,
    rows: Sequence[Mapping[str, Any]],
    frontier: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    starts: Sequence[Mapping[str, Any]],
    found: Found,
) -> None:
    if form == "json":
        emit(text)
        return
    if form == "csv":
        print_csv(rows)
        return
    _print_space(form, found)
    level = ", ".join(
        f"{which} {value_text('time_s', value)}"
        for which, value in zip(("TTFT", "TPOT"), question.level, strict=True)
        if value is not None
    )
    how = f"{load_of.clients} clients" if load_of.clients else f"{question.work.rate:.4g} requests/s"
    work = question.work
    lengths = f"{work.input:,.0f} + {work.output:,.0f} tokens"
    cached = f", {1 - work.computed / work.input:.0%} of prompts cached" if work.computed < work.input else ""
    title = (
        f"{question.arch}: {how} of {lengths}{cached}; service level: {level or 'none'}; best by {question.optimize}"
    )
    if not found.best and rows:
        reached = f"at {rows[0]['load_per_s']:.4g} requests/s"
        title += f"\nthe closest that can be reached, {'saturated' if rows[0]['saturated'] else reached}"
    print_table(form, title, rows, BEST, keys=2)
    if frontier:
        emit("")
        chosen = _thinned(frontier)
        more = f", {len(chosen)} of {len(frontier)} points" if len(chosen) < len(frontier) else ""
        print_table(form, f"Pareto frontier of each device within the service level{more}", chosen, FRONTIER, keys=2)
    if checks:
        emit("")
        print_table(form, "event replay of the plans", checks, REPLAY, keys=2)
    _print_launches(form, starts)


def _print_space(form: str, found: Found) -> None:
    sizes = [
        {"what": dimension.name, "number": len(dimension.values), "why": _few(dimension.values)}
        for dimension in found.dimensions
    ]
    counts = [count._asdict() for count in found.counts]
    print_table(form, "search space", [*sizes, *counts], SPACE)
    emit("")


def _few(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 12 else f"{', '.join(values[:4])} … {', '.join(values[-4:])}"


def _thinned(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """So many points of each device in equal steps, the ends among them."""
    found = []
    for hw in dict.fromkeys(point["hw"] for point in points):
        own = [point for point in points if point["hw"] == hw]
        if len(own) > MOST_POINTS:
            step = (len(own) - 1) / (MOST_POINTS - 1)
            own = [own[round(place * step)] for place in range(MOST_POINTS)]
        found += own
    return found


def _print_launches(form: str, starts: Sequence[Mapping[str, Any]]) -> None:
    """The commands of the best plan; those of the others are in the JSON output."""
    fence = form == "markdown"
    for start in starts:
        if start["hw"] != starts[0]["hw"]:
            break
        role = "" if start["role"] == "both" else f", {start['role']}"
        times = f", {start['replicas']} times" if start["replicas"] > 1 else ""
        if not start["command"]:
            emit(f"\n{start['engine']}{role}: {'; '.join(start['remarks'])}")
            continue
        emit(f"\n{start['engine']}{role} on {start['hw']}{times}:")
        _print_block(fence, "sh", "  ", start["command"])
        if start["config"]:
            _print_block(fence, "yaml", "    ", f"# CONFIG.yaml\n{start['config']}")
        for remark in start["remarks"]:
            emit(f"  ({remark})")


def _print_block(fence: bool, language: str, indent: str, text: str) -> None:
    if fence:
        emit(f"```{language}\n{text}\n```")
    else:
        emit("\n".join(f"{indent}{line}" for line in text.split("\n")))


def _remarks(
    known: Loaded,
    question: Question,
    assessed: Sequence[Assessment],
    checks: Sequence[Mapping[str, Any]],
    inputs: Inputs,
) -> None:
    prices = prices_for(tuple(known.devices), inputs["price"])
    for name, price in prices.items():
        if price.source != "given":
            note(f"note: {name} at {price.usd:g} USD/h ({price.source}; {price.date}); --price changes it")
    for each in assessed:
        changed = [name for name, value in (("weights", each.plan.weights), ("KV cache", each.plan.kv)) if value]
        if changed:
            note(
                f"note: {each.plan.hw}: {' and '.join(changed)} narrower than the model's own, which changes answers; "
                "--weights own --kv own keeps them"
            )
    if any(each.plan.draft_tokens for each in assessed):
        note_drafter(known.model)
    if assessed:
        note("note: launch commands are made of documented options; whether an engine knows the model is not checked")
    if not question.context_parallel:
        note("note: context parallelism is not searched, for engines launch it for few models; --context-parallel does")
    if assessed and inputs["confirm"] and not checks:
        return
    planned = {each.plan.hw for each in assessed}
    for name in known.devices:
        if name not in planned:
            note(f"note: {name}: nothing holds the service level with at most {question.most} GPUs")
    for check in checks:
        if check["saturated"]:
            note(f"note: {check['layout']} on {check['hw']}: in the replay the queue grows: too tight for the load")
        elif check["good_share"] is not None and check["good_share"] < 0.9:
            note(
                f"note: {check['layout']} on {check['hw']}: in the replay {percent(check['good_share'])} of the "
                "requests hold the service level; means do, and percentiles ask for more"
            )


def _refuse(name: str, question: Question, assessed: Sequence[Assessment]) -> None:
    """Nothing holds the service level: say what comes closest, and what blocks it."""
    if not assessed:
        raise Impossible(f"{name}: no layout holds the service level with at most {question.most} GPUs")
    plan = assessed[0].plan
    factor, blocks = exceeded(question, plan)
    ttft, tpot = f"TTFT {_seconds(plan.ttft_s)}", f"TPOT {_seconds(plan.tpot_s)}"
    told = {
        "TTFT": ttft,
        "TPOT": tpot,
        "rate": f"saturated: {plan.rate:.4g} requests/s can be answered",
        "GPUs": f"{plan.gpus} GPUs",
    }
    raise Impossible(
        f"{name}: no layout holds the service level with at most {question.most} GPUs; the closest is {plan.layout} on "
        f"{plan.hw} ({plan.gpus} GPUs): {ttft}, {tpot} at {plan.rate:.4g} requests/s; what blocks it is the {blocks}, "
        f"missed by a factor of {factor:.3g} ({told[blocks]})"
    )
