"""The replay against theory, against an engine that runs iteration by iteration, and against its own books."""

import json
import math
import random
import tracemalloc
from collections import deque
from itertools import count, pairwise

import pytest

from costmodel.errors import BadInput, Impossible
from costmodel.planning.cache import SequenceCache
from costmodel.planning.engine import Engine
from costmodel.planning.measures import Measures, ServiceLevel
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.step_times import Line, StepTimes
from costmodel.planning.timeline import Timeline
from costmodel.planning.traffic import Lengths, Request, drawn
from tests.recorded_timeline import RecordedTimeline


def linear_times(
    base: float = 5e-3,
    sequence: float = 2e-5,
    token: float = 4e-8,
    prompt: float = 2e-5,
    new_tokens: int = 1,
) -> StepTimes:
    """base + sequence·n + token·n·L for decoding, and prompt for every token of a prompt: no grid to be wrong on."""
    n, L = [1.0, 1024.0], [1.0, 300.0, 1000.0, 3000.0, 10_000.0, 1e6]
    return StepTimes(
        new_tokens=new_tokens,
        host_s=base,
        tokens=(Line([0.0, 1.0], [0.0, 0.0]), Line([0.0, 1.0], [0.0, prompt])),
        rows=Line([0.0, 1.0], [0.0, 0.0]),
        decode=(n, L, [[sequence * b + token * b * c for c in L] for b in n]),
        prefill=([1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [[[0.0, 0.0]] * 2] * 2),
    )


def constant_times(seconds: float) -> StepTimes:
    return linear_times(base=seconds, sequence=0.0, token=0.0, prompt=0.0)


def engine(**changes) -> Engine:
    settings = {"times": linear_times(), "max_sequences": 64, "max_batched_tokens": 2048}
    return Engine(**{**settings, **changes})


BYTES = SequenceCache(token_bytes=1.0)


def latencies(timeline: RecordedTimeline) -> dict[int, tuple[float, float, float]]:
    """Sent, first token and last token of every request, in seconds, from the timeline."""
    found: dict[int, dict[str, float]] = {}
    for event in timeline.events:
        if event["ph"] in "be":
            found.setdefault(event["id"], {})[event["ph"] + event["name"]] = event["ts"] / 1e6
    return {
        index: (times["bfirst token"], times["efirst token"], times["eother tokens"]) for index, times in found.items()
    }


def one_by_one(of: Engine, requests: list[Request]) -> dict[int, tuple[float, float, float]]:
    """The same engine, written down again: every iteration for itself, pages counted sequence by sequence."""
    now, found, waiting, running = 0.0, {}, deque(), []
    coming = deque(enumerate(requests))
    pages = lambda tokens: -(-tokens // of.page_tokens)  # noqa: E731
    capacity = of.cache_bytes / (of.page_tokens * of.cache.token_bytes)
    order = count()
    while coming or waiting or running:
        if not waiting and not running and coming[0][1].arrival_s > now:
            now = coming[0][1].arrival_s
        while coming and coming[0][1].arrival_s <= now:
            index, request = coming.popleft()
            waiting.append({"index": index, "r": request, "target": request.input, "got": 0, "sent": request.arrival_s})
        for entry in waiting:
            entry.setdefault("kept", 0)

        def held(entry) -> int:
            return pages(max(entry["target"], entry["kept"]))

        def growth(decoding) -> int:
            return sum(pages(entry["kept"] + 1) - pages(entry["kept"]) for entry in decoding)

        while True:
            decoding = [entry for entry in running if entry["kept"] >= entry["target"]]
            if not decoding or sum(map(held, running)) + growth(decoding) <= capacity:
                break
            last = max(running, key=lambda entry: entry["order"])
            running.remove(last)
            # All tokens so far are the new prompt, the last one among them, which is in no cache yet.
            last["target"] = last["r"].input + last["got"]
            last["kept"] = 0
            waiting.appendleft(last)
        budget = of.max_batched_tokens - len(decoding)
        chunks = []
        for entry in sorted(running, key=lambda entry: entry["order"]):
            if entry["kept"] < entry["target"] and budget > 0:
                chunks.append((entry, min(budget, entry["target"] - entry["kept"])))
                budget -= chunks[-1][1]
        while waiting and budget > 0 and len(running) < of.max_sequences:
            head = waiting[0]
            if sum(map(held, running)) + growth(decoding) + pages(head["target"] + 1) > capacity:
                break
            head["order"] = next(order)
            running.append(waiting.popleft())
            chunks.append((head, min(budget, head["target"])))
            budget -= chunks[-1][1]
        n = len(decoding)
        context = sum(entry["kept"] for entry in decoding) / n + 1 if n else 0.0
        size = sum(tokens for _, tokens in chunks)
        now += of.times.step_s(n, context, len(chunks), size / max(len(chunks), 1), 0)
        for entry in decoding:
            entry["kept"] += 1
        for entry, tokens in chunks:
            entry["kept"] += tokens
        for entry in [*decoding, *(entry for entry, _ in chunks if entry["kept"] == entry["target"])]:
            entry["got"] += 1
            entry.setdefault("first", now)
            if entry["got"] == entry["r"].output:
                running.remove(entry)
                found[entry["index"]] = (entry["sent"], entry["first"], now)
    return found


@pytest.mark.parametrize("capacity", [math.inf, 12_000, 6_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_many_iterations_at_once_are_the_same_as_one_by_one(capacity: float, seed: int) -> None:
    draw = random.Random(seed)
    requests = [
        Request(arrival, draw.randint(1, 3000), draw.randint(1, 300))
        for arrival in sorted(draw.uniform(0, 30) for _ in range(150))
    ]
    of = engine(cache=BYTES, cache_bytes=capacity, max_sequences=12)
    timeline = RecordedTimeline()
    measures = replay(Deployment(of), requests, timeline=timeline)
    assert (measures.preemptions > 0) == (capacity < math.inf)
    expected, found = one_by_one(of, requests), latencies(timeline)
    assert found.keys() == expected.keys()
    for index, times in expected.items():
        assert found[index] == pytest.approx(times, rel=1e-9), index


def total_gap(timeline: RecordedTimeline) -> float:
    return sum(last - first for _, first, last in latencies(timeline).values())


@pytest.mark.parametrize(
    ("changes", "split"),
    [
        ({}, False),
        ({"mixed": False}, False),
        ({"cache_bytes": 5000.0}, False),
        ({"cache_bytes": 5000.0, "chunk_pages": True}, False),
        ({"cache_bytes": 5000.0, "mixed": False}, False),
        ({"cache_bytes": 5000.0}, True),
    ],
)
def test_every_token_is_counted_once(changes: dict, split: bool) -> None:
    requests = list(drawn(300, Lengths.parse("1..1500"), Lengths.parse("1..200"), rate=12.0, seed=5))
    timeline = RecordedTimeline()
    of = engine(cache=BYTES, **changes)
    deployment = Deployment(of, prefill=engine(cache=BYTES) if split else None, link_bandwidth=1e6)
    measures = replay(deployment, requests, timeline=timeline)
    assert measures.answered == 300
    assert measures.output_tokens == sum(request.output for request in requests)
    assert measures.prefilled == sum(request.input for request in requests) + measures.recomputed
    assert (measures.recomputed > 0) == (measures.preemptions > 0) == ("cache_bytes" in changes)
    # One gap before every token but the first, and together they are the time from the first to the last.
    assert measures.itl.count == measures.output_tokens - 300
    assert measures.itl.total == pytest.approx(total_gap(timeline), rel=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_wait_of_one_server_is_that_of_pollaczek_and_khinchine(load: float) -> None:
    service = 0.01
    of = engine(times=constant_times(service), max_sequences=1)
    requests = drawn(40_000, Lengths.parse("1"), Lengths.parse("1"), rate=load / service, seed=11)
    measures = replay(Deployment(of), requests)
    waited = measures.ttft.mean - service
    # M/D/1: W = ρ·s / (2·(1 − ρ)).
    assert waited == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)
    assert not measures.saturated


def test_the_number_under_way_is_rate_times_latency() -> None:
    requests = list(drawn(4000, Lengths.parse("500"), Lengths.parse("50..150"), rate=20.0, seed=2))
    measures = replay(Deployment(engine()), requests)
    under_way = sum((row["waiting"] + row["running"]) * row["spent_s"] for row in measures.engines[0])
    assert under_way == pytest.approx(measures.e2e.total, rel=0.01)
    closed = replay(Deployment(engine()), drawn(4000, Lengths.parse("500"), Lengths.parse("100"), seed=2), clients=40)
    throughput = closed.answered / closed.window_s
    assert throughput * closed.e2e.mean == pytest.approx(40, rel=0.02)


def test_one_client_sees_front_end_prefill_and_the_sum_of_decode_steps() -> None:
    times = linear_times()
    of = Deployment(engine(times=times), front_end_s=0.004)
    measures = replay(of, drawn(2000, Lengths.parse("1000"), Lengths.parse("64")), clients=1)
    # Each request draws its way, 4 ms on average.
    assert measures.ttft.mean == pytest.approx(0.004 + times.prefill_s(1000), rel=0.02)
    steps = [times.decode_s(1, 1000 + i) for i in range(1, 64)]
    # The last token is on its way as long as the first one, on average.
    assert measures.tpot.mean == pytest.approx(sum(steps) / 63)
    assert measures.itl.most == pytest.approx(max(steps), rel=1e-3)


def test_clients_that_ask_again_later_find_the_prompts_of_others_in_front() -> None:
    # 8 clients in step, a prompt in each iteration: one whose answer ended asks again before the next one's ends.
    of = engine(times=linear_times(base=5e-3, prompt=5e-5), max_batched_tokens=1032)

    def waits(front_end_s: float) -> float:
        requests = drawn(400, Lengths.parse("1024"), Lengths.parse("64"))
        return replay(Deployment(of, front_end_s=front_end_s), requests, clients=8).ttft.mean - front_end_s

    assert waits(0.03) > 1.3 * waits(0.0)


def test_pages_taken_chunk_by_chunk_are_computed_again_and_again() -> None:
    requests = [Request(0.0, 4096, 512)] * 4
    of = engine(cache=BYTES, cache_bytes=4 * 4096 + 512)
    whole, chunks = (replay(Deployment(of._replace(chunk_pages=by_chunk)), requests) for by_chunk in (False, True))
    assert whole.answered == chunks.answered == 4
    assert whole.preemptions > 0
    assert chunks.preemptions > 5 * whole.preemptions
    assert chunks.recomputed > 5 * whole.recomputed
    assert chunks.window_s > whole.window_s
    enough = of._replace(cache_bytes=4 * 4608 + 64)
    without = [replay(Deployment(enough._replace(chunk_pages=by_chunk)), requests) for by_chunk in (False, True)]
    assert without[0].window_s == without[1].window_s
    assert without[1].preemptions == 0


def test_a_prompt_longer_than_the_budget_takes_several_iterations() -> None:
    times = linear_times()
    measures = replay(Deployment(engine(times=times)), [Request(0.0, 5000, 1)])
    assert measures.ttft.mean == pytest.approx(2 * times.prefill_s(2048) + times.prefill_s(904))


def test_a_cached_prefix_is_not_computed_and_states_only_where_snapshots_are() -> None:
    request = [Request(0.0, 1000, 1, cached_prefix=900)]
    times = linear_times()
    assert replay(Deployment(engine()), request).ttft.mean == pytest.approx(times.prefill_s(100))
    rounded = engine(snapshot_tokens=256)
    assert replay(Deployment(rounded), request).ttft.mean == pytest.approx(times.prefill_s(1000 - 768))
    whole = [Request(0.0, 1000, 1, cached_prefix=1000)]
    assert replay(Deployment(engine()), whole).ttft.mean == pytest.approx(times.prefill_s(1))


def test_snapshots_of_states_need_memory() -> None:
    states = SequenceCache(state_bytes=100.0)
    requests = [Request(0.0, 1024, 8)] * 20

    def most_running(snapshots: int | None) -> float:
        of = engine(cache=states, cache_bytes=1000.0, snapshot_tokens=snapshots, max_batched_tokens=10**5)
        return max(row["running"] for row in replay(Deployment(of), requests).engines[0])

    # 100 bytes of state each, then 2 or 4 snapshots beside it.
    assert (most_running(None), most_running(512), most_running(256)) == (10, 3, 2)


def test_accepted_drafts_shorten_answers_by_the_tokens_per_verification() -> None:
    requests = list(drawn(200, Lengths.parse("100"), Lengths.parse("400")))
    plain = replay(Deployment(engine(times=constant_times(0.01))), requests, clients=1)
    base = {"sequence": 0.0, "token": 0.0, "prompt": 0.0}
    drafting = linear_times(base=0.01, new_tokens=4, **base)
    drafted = replay(Deployment(engine(times=drafting, acceptance=0.7)), requests, clients=1)
    gained = (1 - 0.7**4) / (1 - 0.7)  # arXiv:2211.17192, equation 1, three drafts
    assert plain.tpot.mean / drafted.tpot.mean == pytest.approx(gained, rel=0.02)
    assert drafted.e2e.quantile(0.9) > 1.02 * drafted.e2e.quantile(0.5)
    assert drafted.output_tokens == plain.output_tokens


def test_prompts_alone_hold_up_those_that_decode() -> None:
    requests = [Request(0.0, 10, 400), Request(0.5, 2000, 5)]
    times = linear_times()
    alone = replay(Deployment(engine(mixed=False)), requests)
    mixed = replay(Deployment(engine()), requests)
    step = times.decode_s(1, 100)
    assert alone.itl.most == pytest.approx(times.prefill_s(2000) + step, rel=0.01)
    assert mixed.itl.most == pytest.approx(times.step_s(1, 100, 1, 2000, 0), rel=0.01)


def test_caches_travel_one_after_another_at_the_links_bandwidth() -> None:
    of = engine(times=constant_times(0.01), cache=BYTES)
    deployment = Deployment(of, prefill=of, link_bandwidth=1e4, link_s=0.002)
    timeline = RecordedTimeline()
    replay(deployment, [Request(0.0, 1000, 1), Request(0.0, 1000, 1)], timeline=timeline)
    firsts = sorted(first for _, first, _ in latencies(timeline).values())
    # Both prompts take one iteration of 10 ms; each transfer takes 1000 B / 10 kB/s = 100 ms.
    assert firsts == pytest.approx([0.01 + 0.1 + 0.002, 0.01 + 0.2 + 0.002])


def test_least_loaded_routing_avoids_the_engine_with_the_long_request() -> None:
    requests = [Request(0.0, 100, 2000), *(Request(1.0 + i / 10, 100, 2) for i in range(20))]
    of = engine(max_sequences=1)
    turns = replay(Deployment(of, replicas=2), requests)
    spread = replay(Deployment(of, replicas=2, routing="least-loaded"), requests)
    assert spread.ttft.quantile(0.9) < 0.1 < turns.ttft.quantile(0.9)


def test_two_engines_serve_twice_as_much() -> None:
    requests = list(drawn(2000, Lengths.parse("500"), Lengths.parse("100")))
    one, two = (replay(Deployment(engine(), replicas=n), requests, clients=64 * n) for n in (1, 2))
    assert two.answered / two.window_s == pytest.approx(2 * one.answered / one.window_s, rel=0.03)


def saturated(load: float, *, requests: int = 5000, burstiness: float = 1.0, **changes) -> Measures:
    of = engine(times=constant_times(0.01), max_sequences=1, **changes)
    stream = drawn(requests, Lengths.parse("1"), Lengths.parse("1"), rate=100 * load, burstiness=burstiness, seed=4)
    return replay(Deployment(of), stream)


@pytest.mark.parametrize("load", [1.1, 1.5, 10.0])
def test_a_load_above_the_capacity_is_saturated_and_has_no_latency(load: float) -> None:
    found = saturated(load)
    assert found.saturated
    assert found.growth == pytest.approx(1 - 1 / load, abs=0.03)
    assert {value for values in found.latencies().values() for value in values.values()} == {None}
    assert found.answered / found.window_s == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize(("load", "burstiness"), [(0.5, 1.0), (0.9, 1.0), (0.6, 0.2), (0.97, math.inf)])
def test_a_load_below_the_capacity_is_not(load: float, burstiness: float) -> None:
    assert not saturated(load, burstiness=burstiness).saturated


def test_a_line_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costmodel.planning.replay.MOST_WAITING", 10_000)
    of = engine(times=constant_times(10.0), max_sequences=1)
    measures = replay(Deployment(of), drawn(10**6, Lengths.parse("1"), Lengths.parse("1"), rate=1e5))
    assert measures.gave_up
    assert measures.saturated
    assert measures.arrivals < 12_000


def test_warm_up_is_served_but_not_measured() -> None:
    requests = list(drawn(100, Lengths.parse("10..900"), Lengths.parse("1..100"), rate=5.0, seed=8))
    measures = replay(Deployment(engine()), requests, warmup=30)
    assert (measures.answered, measures.measured, measures.ttft.count) == (100, 70, 70)
    assert measures.output_tokens == sum(request.output for request in requests[30:])


def test_goodput_counts_requests_within_both_levels() -> None:
    requests = list(drawn(400, Lengths.parse("10..2000"), Lengths.parse("2..50"), rate=20.0, seed=8))
    timeline = RecordedTimeline()
    level = ServiceLevel(ttft_s=0.03, tpot_s=0.008)
    measures = replay(Deployment(engine()), requests, level=level, timeline=timeline)
    good = sum(
        first - sent <= 0.03 and (last - first) / (requests[index].output - 1) <= 0.008
        for index, (sent, first, last) in latencies(timeline).items()
    )
    assert 0 < measures.good < 400
    assert measures.good == good


def test_a_request_that_no_engine_could_hold_is_refused() -> None:
    of = engine(cache=BYTES, cache_bytes=1000.0)
    with pytest.raises(
        Impossible, match="request 2 of 900 \\+ 200 tokens needs 1104 bytes of cache; an engine has 1000"
    ):
        replay(Deployment(of), [Request(0.0, 900, 50), Request(0.0, 900, 200)])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="did you mean 'round-robin'"):
        replay(Deployment(engine(), routing="round-robbin"), [])
    with pytest.raises(BadInput, match="clients 0"):
        replay(Deployment(engine()), [], clients=0)


def test_the_seed_decides_the_whole_run() -> None:
    def once() -> str:
        timeline = RecordedTimeline()
        of = engine(times=linear_times(new_tokens=3), acceptance=0.5, cache=BYTES, cache_bytes=9000.0)
        stream = drawn(200, Lengths.parse("10..900"), Lengths.parse("1..100"), rate=30.0, seed=8)
        replay(Deployment(of, replicas=2, routing="least-loaded"), stream, seed=8, timeline=timeline)
        return timeline.text()

    assert once() == once()


def test_a_timeline_has_what_perfetto_reads() -> None:
    timeline = RecordedTimeline()
    replay(Deployment(engine()), drawn(20, Lengths.parse("100"), Lengths.parse("20"), rate=10.0), timeline=timeline)
    events = json.loads(timeline.text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C", "b", "e"}
    spans = [event for event in events if event["ph"] == "X"]
    assert all(span["dur"] > 0 and "ts" in span and "pid" in span for span in spans)
    for before, after in pairwise(spans):
        assert before["ts"] + before["dur"] <= after["ts"] + 1e-3
    assert sum(event["ph"] == "b" for event in events) == sum(event["ph"] == "e" for event in events) == 40


def test_a_timeline_of_a_long_run_is_cut_off_between_requests_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costmodel.planning.timeline.MOST_EVENTS", 120)
    timeline = RecordedTimeline()
    replay(Deployment(engine()), drawn(90, Lengths.parse("100"), Lengths.parse("20"), rate=10.0), timeline=timeline)
    whole = json.loads(timeline.text())
    assert 115 < len(whole["traceEvents"]) <= 120
    assert 0 < whole["otherData"]["cut_off_at_s"] < 9
    open_spans = {(e["id"], e["name"]) for e in whole["traceEvents"] if e["ph"] == "b"}
    assert open_spans == {(e["id"], e["name"]) for e in whole["traceEvents"] if e["ph"] == "e"}


def test_a_timeline_takes_no_memory_for_what_it_has_written() -> None:
    written = 0

    def count(text: str) -> None:
        nonlocal written
        written += len(text)

    timeline = Timeline(count)
    tracemalloc.start()
    for index in range(4_000):
        timeline.request(index, float(index), index + 0.1, index + 1.0, (1000, 100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written > 1_000_000
    assert peak < 200_000
