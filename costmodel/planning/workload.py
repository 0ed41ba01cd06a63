"""What a fleet has to do, as means: the requests of a load reduced to the numbers that a steady state needs.

Work that is linear in a length is exact with its mean; attention is linear in (query, key) pairs, whose mean position
is kept for prompts and for answers apart, so distributions of lengths cost what they do.
"""

from collections.abc import Iterable
from itertools import islice, pairwise
from typing import NamedTuple

from costmodel.errors import BadInput
from costmodel.planning.load import Load
from costmodel.planning.traffic import Request

SAMPLE = 4096
"""Requests that are drawn to know a distribution; of a trace, all are read."""


class Workload(NamedTuple):
    """Means over requests, in tokens.

    input, output: of the prompt and the answer. computed: of the prompt, without what is cached. position: keys before
    a computed token of a prompt. context: keys that a generated token sees. longest: of a whole sequence.
    snapshots: copies of recurrent states that a prompt leaves. input_variation, output_variation: squared coefficients
    of variation of computed and generated tokens. rate: requests per second, of an open load; clients: of a closed one.
    gap_variation: the same of the gaps between arrivals, 1 for Poisson and 0 for clients that wait.
    """

    input: float
    computed: float
    position: float
    output: float
    context: float
    longest: int
    snapshots: float = 0.0
    input_variation: float = 0.0
    output_variation: float = 0.0
    rate: float | None = None
    clients: int | None = None
    gap_variation: float = 1.0

    @property
    def prefill_only(self) -> bool:
        """Whether all answers are the one token that comes with the end of the prompt."""
        return self.output <= 1.0


def workload(load: Load, snapshot_tokens: int | None = None) -> Workload:
    """The means of a load. Raises BadInput for a trace whose requests all come at once, which has no rate, and for
    clients that wait for answers of one token."""
    found = means(
        load.requests() if load.trace is not None else islice(load.requests(), SAMPLE), load.longest, snapshot_tokens
    )
    if load.clients is not None:
        if found.prefill_only:
            raise BadInput(
                "--concurrency: answers of one token are planned for a rate; give --rate, or replay: simulate"
            )
        return found._replace(clients=load.clients, gap_variation=0.0)
    if load.trace is None:
        return found._replace(rate=load.inputs["rate"], gap_variation=1.0 / load.inputs["burstiness"])
    arrivals = [request.arrival_s for request in load.requests()]
    spent = arrivals[-1] - arrivals[0]
    if not spent > 0:
        raise BadInput(f"{load.inputs['trace']}: all requests arrive at once, which is no rate; use --concurrency")
    rate = (len(arrivals) - 1) / spent
    gaps = [(later - earlier) * rate for earlier, later in pairwise(arrivals)]
    return found._replace(rate=rate, gap_variation=sum(gap**2 for gap in gaps) / len(gaps) - 1.0)


def means(requests: Iterable[Request], longest: int, snapshot_tokens: int | None = None) -> Workload:
    """The means of requests, without their load.

    >>> means([Request(0.0, 100, 11, 20)], 111)[:6]
    (100.0, 80.0, 60.0, 11.0, 106.0, 111)
    """
    count = 0
    prompt = computed = pairs = output = decoded = seen = snapshots = computed_2 = output_2 = 0.0
    for request in requests:
        cached = min(request.cached_prefix, request.input - 1)
        if snapshot_tokens is not None:
            cached -= cached % snapshot_tokens
            snapshots += request.input // snapshot_tokens
        new, steps = request.input - cached, request.output - 1
        count += 1
        prompt += request.input
        computed += new
        computed_2 += new * new
        pairs += new * (cached + new / 2)
        output += request.output
        output_2 += request.output**2
        decoded += steps
        # Step i of the answer sees the prompt and i tokens: i = 1 … output − 1.
        seen += steps * (request.input + (steps + 1) / 2 + 0.5)
    if not count:
        raise BadInput("no requests to plan for")
    return Workload(
        input=prompt / count,
        computed=computed / count,
        position=pairs / computed,
        output=output / count,
        context=seen / decoded if decoded else prompt / count,
        longest=longest,
        snapshots=snapshots / count,
        input_variation=max(computed_2 * count / computed**2 - 1.0, 0.0),
        output_variation=max(output_2 * count / output**2 - 1.0, 0.0),
    )
