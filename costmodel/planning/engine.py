"""An engine's settings, a request on its way through it, and who watches."""

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

from costmodel.generation.speculative import tokens_per_verification
from costmodel.planning.cache import SequenceCache
from costmodel.planning.step_times import StepTimes
from costmodel.planning.traffic import Request

if TYPE_CHECKING:
    from costmodel.planning.scheduler import Replica


class Engine(NamedTuple):
    """An engine's iteration times, its memory for caches, and its settings, by their names in vLLM.

    max_sequences: sequences that decode or are prefilled at a time (max_num_seqs); max_batched_tokens: tokens of an
    iteration (max_num_batched_tokens); page_tokens: tokens of a page (block_size); mixed: prompts and decoding
    sequences share iterations; snapshot_tokens: where states are recurrent, a prefix is found only at multiples of
    this, and every such place of a prompt keeps a copy of the states; acceptance: probability that a draft token is
    accepted (drafts per step: times.new_tokens − 1).

    whole_prompts: a prompt is not cut in chunks unless it alone exceeds an iteration. reserve_output: a request is
    admitted when its whole answer has memory, so that nothing is ever preempted. poll_iterations: while sequences
    decode, new requests are looked for only after so many iterations. gather_iterations, gather_tokens: while
    sequences decode, prompts wait for others, at most so many iterations, or until they have so many tokens.

    ahead: an iteration is scheduled while the one before it runs, so that a request which comes meanwhile joins the one
    after that.

    chunk_pages: pages of a prompt are taken chunk by chunk, and no prefix cache finds what was given back.
    """

    times: StepTimes
    cache: SequenceCache = SequenceCache()
    cache_bytes: float = math.inf
    max_sequences: int = 1024
    max_batched_tokens: int = 8192
    page_tokens: int = 16
    mixed: bool = True
    snapshot_tokens: int | None = None
    acceptance: float = 0.0
    whole_prompts: bool = False
    reserve_output: bool = False
    poll_iterations: int = 1
    gather_iterations: int = 0
    gather_tokens: int = 0
    ahead: bool = False
    chunk_pages: bool = False

    @property
    def pace(self) -> float:
        """Tokens that a sequence gains in a decode iteration, on average."""
        return float(tokens_per_verification(self.times.new_tokens - 1, self.acceptance))

    def cached(self, request: Request) -> int:
        """Tokens of the prompt that need not be computed; at least one always is."""
        found = min(request.cached_prefix, request.input - 1)
        return found if self.snapshot_tokens is None else found - found % self.snapshot_tokens

    def reserved_bytes(self, request: Request) -> float:
        """Bytes that the request holds from its admission to its end, besides pages."""
        snapshots = 0 if self.snapshot_tokens is None else request.input // self.snapshot_tokens
        held = self.cache.reserved(request.input + request.output) + snapshots * self.cache.state_bytes
        if self.reserve_output:
            pages = -(-(request.input + request.output) // self.page_tokens)
            held += pages * self.page_tokens * self.cache.token_bytes
        return held


class Sequence:
    """A request on its way. target: tokens to prefill, done: those prefilled, held: those that have pages, left: tokens
    that it has yet to get."""

    __slots__ = (
        "cached",
        "dial",
        "done",
        "finish",
        "first_s",
        "held",
        "index",
        "last_s",
        "left",
        "order",
        "request",
        "reserved",
        "sent_s",
        "slot",
        "start",
        "target",
    )

    def __init__(self, request: Request, index: int, sent_s: float) -> None:
        self.request, self.index, self.sent_s = request, index, sent_s
        self.target, self.left = request.input, request.output
        self.done = self.cached = self.held = self.order = self.slot = self.dial = self.start = 0
        self.finish = -1
        self.reserved = 0.0
        self.first_s = self.last_s = -1.0


class Watcher(Protocol):
    """Who wants to know what happens on an engine."""

    def prefilled(self, replica: "Replica", sequence: Sequence, now: float) -> None:
        """A prompt is done on an engine that only prefills."""

    def first_token(self, sequence: Sequence, now: float) -> None:
        """The client gets the first token."""

    def completed(self, sequence: Sequence, now: float) -> None:
        """The client gets the last token."""

    def span(self, replica: "Replica", begin: float, seconds: float, decoding: int, iterations: int, new: int) -> None:
        """Iterations have passed: so many sequences decoded in each, and so many tokens of prompts were computed."""
