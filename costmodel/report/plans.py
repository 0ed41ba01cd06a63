"""`plan`: the question as plain inputs, the search, and what is printed and written of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.errors import BadInput, Impossible
from costmodel.loading import check_folder, write_atomically
from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.assess import Assessment, assess
from costmodel.planning.closest import assess_closest
from costmodel.planning.confirm import replayed, workers
from costmodel.planning.launch import launches
from costmodel.planning.load import Load
from costmodel.planning.parallel_search import evaluator_of
from costmodel.planning.plan_row import plan_row
from costmodel.planning.points import Candidate, exceeded, named
from costmodel.planning.prices import prices_for
from costmodel.planning.question import Loaded, Question, load
from costmodel.planning.search import Evaluator, Found, search
from costmodel.planning.space import Count, Dimension
from costmodel.report.columns import percent, value_text
from costmodel.report.output import as_json, emit, note, print_csv
from costmodel.report.plan_tables import (
    latency_text,
    print_frontier,
    print_launches,
    print_plans,
    print_replays,
    print_space,
)
from costmodel.report.predictions import common_calibration
from costmodel.report.progress import Progress
from costmodel.report.remarks import note_drafter, note_snapshots, note_transferred, note_unmeasured

Inputs = Mapping[str, Any]
Rows = list[dict[str, Any]]
REPLAYED = 2_000
"""Requests of the replay that confirms a plan, unless told."""


class Answer(NamedTuple):
    """A search at one rate of prefix hits (None: those of a trace) as flat values: plans or the closest, frontier,
    replays and launch commands."""

    hit: float | None
    question: Question
    known: Loaded
    load: Load
    found: Found
    assessed: list[Assessment]
    rows: Rows
    frontier: Rows
    checks: Rows
    starts: Rows


def plan_and_print(form: str, asked: Inputs, out: str | None, plot: str | None) -> None:
    """Search, assess the best of each device at each rate of prefix hits, confirm it, and print.

    asked: the options of the command; times and the rate as texts. Raises Impossible, at the end, where nothing holds
    the service level: with the closest point and what blocks it.
    """
    inputs = read_inputs(asked)
    for path in (out, plot):
        check_folder(path)
    if plot is not None and len(inputs["prefix_hit"]) > 1:
        raise BadInput("--plot: a figure is of one --prefix-hit")
    evaluator = evaluator_of(inputs["engine"], inputs["jobs"], inputs["scheduler"])
    answers = [_answer({**inputs, "prefix_hit": hit}, evaluator, plot is not None) for hit in inputs["prefix_hit"]]
    first = answers[0]
    name = first.known.model.name
    dimensions, counts = _space(answers)
    best = [row for answer in answers if answer.found.best for row in answer.rows]
    lists = {
        "frontier": [row for answer in answers for row in answer.frontier],
        "replays": [row for answer in answers for row in answer.checks],
        "launch": [row for answer in answers for row in answer.starts],
        "dimensions": [{"name": name, "values": [str(value) for value in values]} for name, values in dimensions],
        "space": [count._asdict() for count in counts],
        "closest": [row for answer in answers if not answer.found.best for row in answer.rows],
    }
    shown = {**inputs, "prices": first.question.prices, "gpus": list(first.question.gpus)}
    text = as_json("plan", shown, best, common_calibration(best), **lists)
    cloud = [] if plot is None else [_point(first.question, first.hit, each) for each in named(first.found.cloud)]
    if plot is not None and (first.frontier or cloud):
        from costmodel.report.plan_plot import draw_plan

        draw_plan(plot, name, first.question, cloud, first.frontier, first.rows)
        note(f"note: wrote {plot}")
    if out is not None:
        write_atomically(Path(out), text.encode() + b"\n")
        note(f"note: wrote {out}")
    if form == "json":
        emit(text)
    elif form == "csv":
        print_csv([row for answer in answers for row in answer.rows])
    else:
        print_space(form, dimensions, counts)
        _print_answers(form, answers, best)
        print_frontier(form, lists["frontier"])
        print_replays(form, lists["replays"])
        print_launches(form, lists["launch"])
    note_transferred(row for answer in answers for row in answer.rows)
    note_unmeasured([row for answer in answers for row in answer.rows])
    loads = [answer.load for answer in answers if answer.load.has_prefixes]
    for load_of in loads[:1]:
        note_snapshots(first.known.model, load_of, inputs["snapshot_tokens"], inputs["library"])
    _remarks(first.known, first.question, [each for answer in answers for each in answer.assessed], lists, inputs)
    if refused := [_refusal(name, answer) for answer in answers if not answer.found.best]:
        raise Impossible("\n".join(refused))


def _answer(inputs: Inputs, evaluator: Evaluator, plotted: bool) -> Answer:
    """The search at one rate of prefix hits, and what is told of it. plotted: whether its points are to be drawn."""
    load_of = Load({**inputs, "requests": inputs["requests"] or REPLAYED})
    question = question_of(inputs, load_of)._replace(every_point=plotted)
    if plotted and question.work.prefill_only:
        raise BadInput("--plot: the figure is of tokens/s of a user, which answers of one token do not have")
    progress = Progress()
    found = search(question, evaluator, partial(progress.at, "layouts"))
    progress.close()
    hit = inputs["prefix_hit"] if inputs["trace"] is None else None
    known = load(question)
    under, assessed = known, [assess(known, plan) for plan in found.best]
    if found.closest is not None:
        under, reached = assess_closest(known, found.closest)
        assessed = [reached]
    rows = [{**plan_row(under, each), "prefix_hit": hit, "within_level": bool(found.best)} for each in assessed]
    confirmed = assessed if inputs["confirm"] and found.best else []
    starts = [
        {"hw": each.plan.hw, "prefix_hit": hit, **launch._asdict()}
        for each, row in zip(assessed, rows, strict=True)
        if not row["saturated"]
        for worker in workers(under, each)
        for launch in launches(worker)
    ]
    return Answer(
        hit,
        question,
        known,
        load_of,
        found,
        assessed,
        rows,
        [_point(question, hit, point) for point in found.frontier],
        [{**replayed(known, each, load_of, inputs["seed"]), "prefix_hit": hit} for each in confirmed],
        starts,
    )


def _space(answers: Sequence[Answer]) -> tuple[list[Dimension], list[Count]]:
    """What was searched at all rates together."""
    numbers = Counter[tuple[str, str]]()
    for answer in answers:
        numbers.update({(count.what, count.why): count.number for count in answer.found.counts})
    hits = tuple("of the trace" if answer.hit is None else f"{answer.hit:g}" for answer in answers)
    dimensions = [*answers[0].found.dimensions, Dimension("prefix hits", hits)]
    return dimensions, [Count(what, number, why) for (what, why), number in numbers.items()]


def _point(question: Question, hit: float | None, point: Candidate) -> dict[str, Any]:
    """A point of the frontier: engines that are kept this full, and what the load would need of them."""
    work = question.work
    price = question.prices[point.hw]
    return {
        "hw": point.hw,
        "layout": point.layout,
        "weights": point.weights or "own",
        "kv": point.kv or "own",
        "draft_tokens": point.draft_tokens,
        "prefix_hit": hit,
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


def _print_answers(form: str, answers: Sequence[Answer], best: Rows) -> None:
    """A table of the best, and one of the closest of each rate at which nothing is."""
    missed = [answer for answer in answers if not answer.found.best and answer.rows]
    if best or not missed:
        print_plans(form, _title(answers), best)
    for place, answer in enumerate(missed):
        if best or place:
            emit("")
        (row,) = answer.rows
        reached = "saturated" if row["saturated"] else f"at {row['load_per_s']:.4g} requests/s"
        print_plans(form, f"{_title([answer])}; the closest that can be reached, {reached}", answer.rows)


def _title(answers: Sequence[Answer]) -> str:
    question, load_of = answers[0].question, answers[0].load
    level = ", ".join(
        f"{which} {value_text('time_s', value)}"
        for which, value in zip(("TTFT", "TPOT"), question.level, strict=True)
        if value is not None
    )
    work = question.work
    how = f"{load_of.clients} clients" if load_of.clients else f"{work.rate:.4g} requests/s"
    lengths = f"{work.input:,.0f} + {work.output:,.0f} tokens"
    shares = [1 - answer.question.work.computed / answer.question.work.input for answer in answers]
    cached = f", {', '.join(f'{share:.0%}' for share in shares)} of prompts cached" if any(shares) else ""
    return f"{question.arch}: {how} of {lengths}{cached}; service level: {level or 'none'}; best by {question.optimize}"


def _remarks(
    known: Loaded,
    question: Question,
    assessed: Sequence[Assessment],
    lists: Mapping[str, Rows],
    inputs: Inputs,
) -> None:
    checks = lists["replays"]
    prices = prices_for(tuple(known.devices), inputs["price"])
    for name, price in prices.items():
        if price.source != "given":
            note(f"note: {name} at {price.usd:g} USD/h ({price.source}; {price.date}); --price changes it")
    for hw, weights, kv in dict.fromkeys((each.plan.hw, each.plan.weights, each.plan.kv) for each in assessed):
        changed = [name for name, value in (("weights", weights), ("KV cache", kv)) if value]
        if changed:
            note(
                f"note: {hw}: {' and '.join(changed)} narrower than the model's own, which changes answers; "
                "--weights own --kv own keeps them"
            )
    if question.work.prefill_only:
        note(
            "note: answers of one token come with the end of their prompts: engines that only process prompts are "
            "planned, one prompt after another; --pools and --draft-tokens change nothing"
        )
    if any(each.plan.draft_tokens for each in assessed):
        note_drafter(known.model)
    if lists["launch"]:
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


def _refusal(name: str, answer: Answer) -> str:
    """Nothing holds the service level: what comes closest, and what blocks it."""
    question = answer.question
    if not answer.assessed:
        return f"{name}: no layout holds the service level with at most {question.most} GPUs"
    plan = answer.assessed[0].plan
    factor, blocks = exceeded(question, plan)
    ttft, tpot = f"TTFT {latency_text(plan.ttft_s)}", f"TPOT {latency_text(plan.tpot_s)}"
    latencies = ttft if question.work.prefill_only else f"{ttft}, {tpot}"
    told = {
        "TTFT": ttft,
        "TPOT": tpot,
        "rate": f"saturated: {plan.rate:.4g} requests/s can be answered",
        "GPUs": f"{plan.gpus} GPUs",
    }
    return (
        f"{name}: no layout holds the service level with at most {question.most} GPUs; the closest is {plan.layout} on "
        f"{plan.hw} ({plan.gpus} GPUs): {latencies} at {plan.rate:.4g} requests/s; what blocks it is the {blocks}, "
        f"missed by a factor of {factor:.3g} ({told[blocks]})"
    )
