"""TTFT and TPOT of a closed loop: so many clients, each of which sends its next request when the last is answered.

The replay gives the numbers; a steady state in a few lines stands beside it, so that either can be doubted.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from typing import NamedTuple

from costmodel.errors import BadInput
from costmodel.planning.measures import Measures
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.traffic import Lengths, Request, drawn

REQUESTS_PER_CLIENT = 10


class SteadyState(NamedTuple):
    """Means in a steady state: seconds to the first token and per further token, requests per second of the whole
    deployment, and sequences under way in each engine."""

    ttft_s: float
    tpot_s: float
    requests_per_s: float
    sequences: float


def closed_loop(
    deployment: Deployment,
    clients: int,
    inputs: Lengths,
    outputs: Lengths,
    *,
    per_client: int = REQUESTS_PER_CLIENT,
    seed: int = 0,
) -> Measures:
    """What a benchmark of a serving engine measures at a concurrency.

    Clients of such benchmarks (vLLM's benchmark_serving, SemiAnalysis InferenceX, AIPerf) send 2 requests each to warm
    up, wait until all are answered, then start together and send `per_client` each. All of the measured ones are
    replayed, the simultaneous start with its wave of prompts and the end with idle places included; a warm-up that is
    over leaves nothing behind that the replay knows of.
    """
    if per_client < 1:
        raise BadInput(f"requests per client {per_client} are below 1")
    requests = drawn(per_client * clients, inputs, outputs, seed=seed)
    return replay(deployment, requests, clients=clients, seed=seed)


def capacity(deployment: Deployment, requests: Callable[[], Iterable[Request]], *, seed: int = 0) -> float:
    """Requests per second that the deployment can answer at most: a replay in which some always wait.

    requests: such requests as come, as often as they are asked for; when they arrive does not matter. Answers are
    spread over time from the start (the first ones are cut short, each a little less), and counted in the middle half.
    Engines side by side answer as many times what one does.
    """
    one = deployment if deployment.prefill is not None else deployment._replace(replicas=1)
    engine = one.engine
    sample = list(islice(requests(), 1000))
    if not sample:
        raise BadInput("no requests to find a capacity with")
    longest = [engine.cache.bytes(request.input + request.output // 2) for request in sample]
    room = engine.cache_bytes * len(longest) / sum(longest) if sum(longest) else math.inf
    places = one.replicas * max(1, int(min(engine.max_sequences, room)))
    count = max(6 * places, 300)

    def spread() -> Iterator[Request]:
        for index, request in enumerate(islice(chain.from_iterable(requests() for _ in repeat(None)), count)):
            cut = min((index + 1) / places, 1.0)
            yield request._replace(output=max(1, round(request.output * cut)))

    found = replay(one, spread(), clients=places + places // 4 + 1, seed=seed)
    return found.rate_between(0.25, 0.75) * deployment.replicas / one.replicas


def steady_state(deployment: Deployment, clients: int, input: int, output: int) -> SteadyState:
    """The same from sums, without events, for engines that prefill and decode in the same iterations.

    n sequences decode at input + output/2 tokens on average. While a sequence gets its tokens, every other one is
    prefilled once, which adds the time that a prompt adds to an iteration: TPOT = decode + n/output · added. n is as
    many as clients, places or caches allow; clients beyond that wait, by Little's law.
    """
    if deployment.prefill is not None:
        raise BadInput("a steady state is known for engines that prefill and decode, not for separate pools")
    engine = deployment.engine
    times = engine.times
    page = engine.page_tokens
    each = engine.cache.token_bytes * page * math.ceil((input + output / 2) / page)
    each += engine.cache.reserved(input + output)
    room = engine.cache_bytes / each if each else math.inf
    places = clients / deployment.replicas
    n = max(1.0, min(places, engine.max_sequences, room))
    context = input + output / 2
    chunks = math.ceil(input / engine.max_batched_tokens)
    size = input / chunks
    # Seconds that each chunk adds to an iteration of the others, the chunks of a prompt one after another.
    others = max(round(n) - 1, 0)
    alone = times.decode_s(others, context) if others else 0.0
    added = sum(times.step_s(others, context, 1, size, i * size) - alone for i in range(chunks))
    decode = times.decode_s(max(round(n), 1), context)
    iterations = (output - 1) / engine.pace
    passing = decode * iterations + (n - 1) * added
    tpot = passing / (output - 1) if output > 1 else 0.0
    own = chunks * alone + added
    served = own + passing
    waiting = max(places / n - 1.0, 0.0) * served
    # A prompt that finds an iteration under way waits for half of it.
    residual = (alone + added * min(others / max(iterations, 1.0), 1.0)) / 2
    cycle = deployment.front_end_s + waiting + residual + served
    return SteadyState(deployment.front_end_s + waiting + residual + own, tpot, clients / cycle, n)
