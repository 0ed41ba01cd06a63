"""How engines take requests in: whole prompts, reserved answers, looks every so many iterations, gathering."""

import pytest

from costmodel.planning.cache import SequenceCache
from costmodel.planning.engine import Engine
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.step_times import Line, StepTimes
from costmodel.planning.traffic import Request
from tests.recorded_timeline import RecordedTimeline

STEP = 1.0


def times(per_token: float = 0.0) -> StepTimes:
    """Every iteration takes a second, and so much for each token of a prompt."""
    flat = Line([0.0, 1.0], [0.0, 0.0])
    prompt = [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    return StepTimes(
        new_tokens=1,
        host_s=STEP,
        tokens=(flat, Line([0.0, 1.0], [0.0, per_token])),
        rows=flat,
        decode=([1.0, 2.0], [1.0, 2.0], [[0.0, 0.0], [0.0, 0.0]]),
        prefill=([1.0, 2.0], [1.0, 2.0], [0.0, 1.0], prompt),
    )


def first_tokens(engine: Engine, *requests: tuple[float, int, int]) -> list[float]:
    """When each request, given as (arrival, input, output), has its first token."""
    timeline = RecordedTimeline()
    replay(Deployment(engine), [Request(*one) for one in requests], timeline=timeline)
    begins = {e["id"]: e["ts"] for e in timeline.events if e["name"] == "other tokens" and e["ph"] == "b"}
    return [round(begins[index] * 1e-6, 6) for index in range(len(requests))]


def test_a_request_joins_the_next_iteration_or_where_they_are_scheduled_ahead_the_one_after() -> None:
    long, late = (0.0, 10, 100), (5.5, 10, 5)
    assert first_tokens(Engine(times()), long, late) == [1.0, 7.0]
    assert first_tokens(Engine(times(), ahead=True), long, late) == [1.0, 8.0]


def test_an_idle_engine_that_schedules_ahead_starts_at_once() -> None:
    assert first_tokens(Engine(times(), ahead=True), (0.0, 10, 2), (50.0, 10, 2)) == [1.0, 51.0]


def test_requests_are_looked_for_every_so_many_iterations_while_others_decode() -> None:
    engine = Engine(times(), poll_iterations=10)
    # The prompt ends at 1 s and the next look is at 11; one follows that prompt at 12, and the next is at 22.
    assert first_tokens(engine, (0.0, 10, 100), (2.5, 10, 5), (12.5, 10, 5)) == [1.0, 12.0, 23.0]
    assert first_tokens(engine, (0.0, 10, 2), (50.0, 10, 5)) == [1.0, 51.0]


def test_prompts_wait_for_others_until_enough_tokens_or_iterations_have_come() -> None:
    engine = Engine(times(), gather_iterations=20, gather_tokens=100)
    alone = first_tokens(engine, (0.0, 10, 100), (5.5, 60, 5))
    assert alone == [1.0, 6.0 + 20 + 1.0]
    assert first_tokens(engine, (0.0, 10, 100), (5.5, 60, 5), (9.5, 60, 5)) == [1.0, 11.0, 11.0]


def test_whole_prompts_are_not_cut_unless_one_alone_exceeds_an_iteration() -> None:
    two = ((0.0, 60, 5), (0.0, 60, 5))
    assert first_tokens(Engine(times(), max_batched_tokens=100), *two) == [1.0, 2.0]
    timeline = RecordedTimeline()
    engine = Engine(times(), max_batched_tokens=100, whole_prompts=True)
    replay(Deployment(engine), [Request(*one) for one in two], timeline=timeline)
    prefilled = [e["args"]["prompt tokens"] for e in timeline.events if e["ph"] == "X"]
    assert prefilled[:2] == [60, 60]
    assert first_tokens(engine, (0.0, 250, 2)) == [3.0]


def test_an_engine_that_reserves_answers_never_preempts() -> None:
    cache = SequenceCache(token_bytes=1.0)
    requests = [Request(0.0, 16, 48) for _ in range(8)]
    tight = Engine(times(), cache, cache_bytes=256.0, page_tokens=16)
    eager = replay(Deployment(tight), requests)
    careful = replay(Deployment(tight._replace(reserve_output=True)), requests)
    assert eager.preemptions > 0 == careful.preemptions
    assert careful.answered == 8
    assert max(row["running"] for row in careful.engines[0]) <= 4  # 256 bytes of 64 each


def test_host_time_of_sequences_adds_to_each_iteration() -> None:
    plain = times()
    slow = plain.with_host(STEP, 0.5)
    assert slow.decode_s(4, 2) - plain.decode_s(4, 2) == pytest.approx(2.0)
    assert slow.step_s(4, 2, 2, 5, 0) - plain.step_s(4, 2, 2, 5, 0) == pytest.approx(3.0)
