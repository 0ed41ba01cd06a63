"""A plan once more with something changed, and how much each assumption moves it.

The plan stays: layout, replicas, chunk budget. What changes is what it is asked to do, with which model, on which
device. Ratios carry the errors that are left when what both sides share has cancelled.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from costmodel.errors import BadInput, Impossible, unknown
from costmodel.parallel.layout import Layout, parse_layout
from costmodel.planning.asked import question_of
from costmodel.planning.assess import Assessment, assess, difference, interval
from costmodel.planning.load import Load, per_second, seconds
from costmodel.planning.plan_row import plan_row
from costmodel.planning.points import Candidate
from costmodel.planning.question import Loaded, Question, load
from costmodel.planning.step_times import HostTime
from costmodel.planning.traffic import Lengths
from costmodel.units import parse_count

SAMPLE = 2_000
CHANGES = (
    "accepted",
    "activations",
    "arch",
    "concurrency",
    "context",
    "draft_tokens",
    "exchange_units",
    "headroom",
    "hw",
    "imbalance",
    "input",
    "kv",
    "layout",
    "library",
    "max_batched_tokens",
    "output",
    "overlap",
    "prefix_hit",
    "price",
    "rate",
    "replicas",
    "snapshot_tokens",
    "tpot",
    "ttft",
    "utilisation",
    "weights",
)
"""What can be changed by name; a name with a dot is an entry of the model or, after `hw.`, of the device."""
COUNTS = ("concurrency", "exchange_units", "snapshot_tokens")
SHARES = ("accepted", "headroom", "imbalance", "overlap", "prefix_hit", "utilisation")


class Case(NamedTuple):
    """A plan under a question: its inputs, the question loaded, and the plan."""

    inputs: Mapping[str, Any]
    loaded: Loaded
    plan: Candidate


class Compared(NamedTuple):
    """A case beside the plan: its row, and ratios to the plan with their 80 % intervals; why it cannot be, if so.

    bottleneck: the pool that answers the fewest requests. Errors of one pool do not cancel against those of another.
    """

    change: str
    row: Mapping[str, Any] | None
    ratios: Mapping[str, tuple[float, float, float]]
    problem: str = ""
    bottleneck: str | None = None


def case_of(inputs: Mapping[str, Any], row: Mapping[str, Any]) -> Case:
    """The plan that a row of a plan's file describes, under inputs that may differ from those it was made for."""
    own = {**inputs, "hw": [row["hw"]], "max_batched_tokens": [row["max_batched_tokens"]], "layout": []}
    own["gpus"] = [max(row["gpus"], 1)]
    own["requests"] = own["requests"] or SAMPLE
    question = question_of(own, Load(own))
    found = load(question)
    (name,) = found.devices
    layout = parse_layout(row["layout"])
    gpus = layout.gpus * row["replicas"]
    plan = Candidate(
        name,
        None if row["weights"] == "own" else row["weights"],
        None if row["kv"] == "own" else row["kv"],
        row["draft_tokens"],
        str(layout),
        row["max_batched_tokens"],
        row["sequences"],
        row["replicas"],
        gpus,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        gpus * question.prices[name],
    )
    return Case(own, found, plan)


def changed(
    inputs: Mapping[str, Any], row: Mapping[str, Any], change: str
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The inputs and the plan's row after a change such as "hw=b200-sxm" or "kv=fp8,context=1M", and its text.

    Raises BadInput, naming what can be changed.
    """
    own, plan = dict(inputs), dict(row)
    own["set"] = list(own["set"])
    for part in change.split(","):
        name, equals, value = (text.strip() for text in part.partition("="))
        if not equals or not name or not value:
            raise BadInput(f"--change {change[:80]!r}: expected NAME=VALUE, such as hw=b200-sxm or kv=fp8,context=1M")
        if "." in name:
            own["set"].append(f"{name}={value}")
            continue
        if name not in CHANGES:
            raise unknown("change", name, CHANGES)
        _apply(own, plan, name, value)
    return own, plan, change


def _apply(own: dict[str, Any], plan: dict[str, Any], name: str, value: str) -> None:
    if name == "arch":
        own["arch"] = [value]
    elif name in ("hw", "layout", "weights", "kv"):
        plan[name] = value
    elif name in ("replicas", "max_batched_tokens"):
        plan[name] = parse_count(value, name.replace("_", " "), 65_536 if name == "replicas" else 2**20)
    elif name == "draft_tokens":
        plan[name] = 0 if value == "0" else parse_count(value, "draft tokens", 64)
        own[name] = [plan[name]]
    elif name == "rate":
        own |= {"rate": per_second(value), "concurrency": None}
    elif name in ("ttft", "tpot"):
        own[f"{name}_s"] = seconds(value, name)
    elif name == "price":
        own["price"] = [value]
    elif name == "context":
        _set_context(own, parse_count(value, "context"))
    elif name in COUNTS:
        own[name] = parse_count(value, name.replace("_", " "))
        if name == "concurrency":
            own["rate"] = None
    elif name in SHARES:
        own[name] = _number(name, value)
    else:
        own[name] = value
    if name in ("input", "output", "context", "rate", "concurrency", "prefix_hit") and own["trace"] is not None:
        raise BadInput(f"--change {name}: the plan is of a trace, which says lengths, prefixes and times itself")
    if name == "hw":
        # Prices of the plan are kept with it; a device that it does not know takes the default.
        own["price"] = [text for text in own["price"] if text.partition("=")[0] == value or "=" not in text]


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadInput(f"--change {name}={value[:40]}: expected a number") from None


def _set_context(own: dict[str, Any], context: int) -> None:
    """Prompts as long as leaves room for the answer."""
    output = Lengths.parse(own["output"] or "1", "--output").mean
    if context <= output + 1:
        raise BadInput(f"--change context={context}: the answer alone has {output:.0f} tokens")
    own["input"] = str(round(context - output))


def compared(plan: Assessment, own: Loaded, change: str, inputs: Mapping[str, Any], row: Mapping[str, Any]) -> Compared:
    """A change beside the plan."""
    try:
        case = case_of(inputs, row)
        found = assess(case.loaded, case.plan)
    except Impossible as error:
        return Compared(change, None, {}, str(error))
    of_plan = ratios(plan, own.question, found, case.loaded.question)
    return Compared(change, plan_row(case.loaded, found), of_plan, bottleneck=bottleneck(found))


def bottleneck(found: Assessment) -> str | None:
    """The pool that answers the fewest requests per second; None where one kind of engine prefills and decodes."""
    if len(found.roles) == 1:
        return None
    return min(zip(found.state.capacities, found.roles, strict=True), key=lambda pool: pool[0])[1].name


def ratios(
    plan: Assessment, own: Question, other: Assessment, asked: Question
) -> dict[str, tuple[float, float, float]]:
    """TTFT, TPOT, requests/s at most and USD per output token of full engines: other over plan, with the interval."""
    found = {}
    for name in ("ttft_s", "tpot_s", "capacity_per_s"):
        one, two = getattr(plan.state, name), getattr(other.state, name)
        if one > 0 and 0 < two < math.inf:
            sources = difference(other.errors[name], plan.errors[name])
            found[name] = (two / one, *interval(two / one, sources))
    if "capacity_per_s" in found:
        money = other.plan.usd_per_hour * own.work.output / (plan.plan.usd_per_hour * asked.work.output)
        ratio, low, high = found["capacity_per_s"]
        found["usd_per_output_token"] = (money / ratio, money / high, money / low)
    return found


class Assumption(NamedTuple):
    """Something that a plan assumes, and two values beside it: names, and the changed inputs and rows."""

    name: str
    low: tuple[str, str]
    high: tuple[str, str]


def assumptions(case: Case) -> Iterator[Assumption]:
    """What a plan assumes, moved by stated amounts, as changes."""
    inputs, plan, work = case.inputs, case.plan, case.loaded.question.work
    device = case.loaded.devices[plan.hw]
    price = case.loaded.question.prices[plan.hw]
    yield Assumption("price of a device", ("−20 %", f"price={price * 0.8!r}"), ("+20 %", f"price={price * 1.2!r}"))
    if inputs["trace"] is None:
        if inputs["rate"] is not None:
            rate = inputs["rate"]
            yield Assumption("requests/s", ("−20 %", f"rate={rate * 0.8!r}"), ("+20 %", f"rate={rate * 1.2!r}"))
        else:
            clients = inputs["concurrency"]
            ends = (max(round(clients * 0.8), 1), math.ceil(clients * 1.2))
            yield Assumption("clients", ("−20 %", f"concurrency={ends[0]}"), ("+20 %", f"concurrency={ends[1]}"))
        for name, mean in (("input", work.input), ("output", work.output)):
            ends = (max(round(mean * 0.8), 1), round(mean * 1.2))
            yield Assumption(
                f"tokens of {'prompts' if name == 'input' else 'answers'}",
                ("−20 %", f"{name}={_scaled(inputs[name], 0.8)}"),
                ("+20 %", f"{name}={_scaled(inputs[name], 1.2)}"),
            )
        hit = inputs["prefix_hit"]
        yield Assumption(
            "cached part of prompts",
            (f"{max(hit - 0.1, 0.0):g}", f"prefix_hit={max(hit - 0.1, 0.0)!r}"),
            (f"{min(hit + 0.1, 0.99):g}", f"prefix_hit={min(hit + 0.1, 0.99)!r}"),
        )
    if plan.draft_tokens:
        accepted = inputs["accepted"]
        ends = (max(accepted - 0.1, 0.0), min(accepted + 0.1, 1.0))
        yield Assumption("accepted drafts", *((f"{end:g}", f"accepted={end!r}") for end in ends))
    bandwidth = "hw.memory.hbm.bandwidth={}x"
    yield Assumption("memory bandwidth", ("−10 %", bandwidth.format(0.9)), ("+10 %", bandwidth.format(1.1)))
    peaks = tuple(
        ",".join(f"hw.compute.tensor.{dtype}={factor}x" for dtype in device.compute.tensor) for factor in (0.9, 1.1)
    )
    yield Assumption("matrix engines' peak", ("−10 %", peaks[0]), ("+10 %", peaks[1]))
    layout = parse_layout(plan.layout)
    workers = [layout] if isinstance(layout, Layout) else [layout.prefill.layout, layout.decode.layout]
    if any(part.gpus > 1 for part in workers):
        yield Assumption("communication hidden", ("0", "overlap=0"), ("half", "overlap=0.5"))
        for name, link in (
            ("links in a domain", device.links.scale_up),
            ("links between hosts", device.links.scale_out),
        ):
            if link.bandwidth:
                where = f"hw.links.{'scale_up' if link is device.links.scale_up else 'scale_out'}.bandwidth"
                yield Assumption(name, ("−20 %", f"{where}=0.8x"), ("+20 %", f"{where}=1.2x"))
    if any(part.ep > 1 for part in workers):
        yield Assumption("load of the fullest experts", ("1", "imbalance=1"), ("1.3", "imbalance=1.3"))
    share = case.loaded.question.engines[plan.hw].utilisation
    ends = (max(share - 0.05, 0.05), min(share + 0.05, 1.0))
    yield Assumption("memory that engines take", *((f"{end:g}", f"utilisation={end!r}") for end in ends))
    yield Assumption("host time", ("−50 %", "host=0.5"), ("+50 %", "host=1.5"))


def _scaled(text: str, factor: float) -> str:
    """Lengths as they are written, so much longer.

    >>> _scaled("1k", 1.2), _scaled("800..1k", 0.5), _scaled("lognormal:4k:0.6", 0.5)
    ('1229', '400..512', 'lognormal:2048:0.6')
    """
    lengths = Lengths.parse(text)
    ends = [str(max(round(end * factor), 1)) for end in (lengths.a, lengths.b)]
    if lengths.kind == "lognormal":
        return f"lognormal:{ends[0]}:{lengths.b!r}"
    return ends[0] if lengths.kind == "fixed" else "..".join(ends)


def sensitivity(case: Case, plan: Assessment, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each assumption with what TTFT, TPOT, the most requests/s and the price of full engines become, as ratios.

    The one that moves the price the most comes first.
    """
    rows = []
    for assumption in assumptions(case):
        found: dict[str, Any] = {"assumption": assumption.name}
        largest = 0.0
        for end, (label, change) in (("low", assumption.low), ("high", assumption.high)):
            found[f"{end}_value"] = label
            moved = _moved(case, plan, row, change)
            for name in ("ttft_s", "tpot_s", "capacity_per_s", "usd_per_output_token"):
                ratio = moved.get(name)
                found[f"{name.removesuffix('_s')}_ratio_{end}"] = ratio
                if name == "usd_per_output_token" and ratio:
                    largest = max(largest, abs(math.log(ratio)))
        found["largest_effect"] = math.expm1(largest)
        rows.append(found)
    return sorted(rows, key=lambda found: -found["largest_effect"])


def _moved(case: Case, plan: Assessment, row: Mapping[str, Any], change: str) -> dict[str, float]:
    """Ratios to the plan after a change; those that have no value, such as the latency of a saturated load, are left
    out."""
    name, _, value = change.partition("=")
    if name == "host":
        question = case.loaded.question
        host = {
            hw: constants._replace(host=HostTime(*(part * float(value) for part in constants.host)))
            for hw, constants in question.host.items()
        }
        other = case._replace(loaded=load(question._replace(host=host)))
    else:
        inputs, moved, _ = changed(case.inputs, row, change)
        try:
            other = case_of(inputs, moved)
        except Impossible:
            return {}
    try:
        found = assess(other.loaded, other.plan)
    except Impossible:
        return {}
    return {key: ratio for key, (ratio, *_) in ratios(plan, case.loaded.question, found, other.loaded.question).items()}
