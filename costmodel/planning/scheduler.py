"""One engine that batches continuously: a queue, a budget of tokens per iteration, pages of cache, preemption.

An iteration first advances every decoding sequence, then fills the budget with chunks of prompts that are under way,
then with those of waiting requests, first come first served, as long as a place and pages for the prompt are free.
When the pages of the next iteration are missing, the sequence admitted last gives all of its own back and computes its
tokens again later. Engines that do not mix run the prompts alone, while decoding sequences wait.

Where pages of a prompt are taken chunk by chunk, a request starts when its first chunk has pages, and so does one that
has just lost its own: where memory is short it comes and goes, and computes its tokens over and over. An iteration that
took pages away starts none. Source: vllm-project/vllm, vllm/v1/core/sched/scheduler.py. With its prefix cache, which
finds what was just given back, vLLM computes as little again as an engine that waits for pages of the whole prompt.

While no prompt is under way, nothing changes from iteration to iteration but the context: so many iterations as have
no event between them (a completion, a missing page, the next node of the time table) pass at once, in closed form.
"""

import heapq
import math
import random
from bisect import bisect_right

from costmodel.errors import Impossible
from costmodel.planning.cache import Pages
from costmodel.planning.engine import Engine, Sequence, Watcher
from costmodel.planning.histogram import Course, LogHistogram
from costmodel.planning.step_times import mean_chunk
from costmodel.planning.waiting import Waiting

COURSE = ("waiting", "running", "cache_share")


class Replica:
    """One engine at work. role: "both", or "prefill" or "decode" in a disaggregated deployment."""

    def __init__(
        self, engine: Engine, watcher: Watcher, itl: LogHistogram, generator: random.Random, role: str = "both"
    ) -> None:
        self.engine, self.watcher, self.itl, self.role, self.generator = engine, watcher, itl, role, generator
        self.name, self.version, self.busy = "", 0, False
        self.pace = engine.pace
        self.reserves = engine.cache.state_bytes > 0 or bool(engine.cache.limited) or engine.reserve_output
        growing = engine.cache.token_bytes > 0 and not engine.reserve_output
        self.page_bytes = engine.cache.token_bytes * engine.page_tokens if growing else 1.0
        self.pages = Pages(engine.page_tokens, engine.cache_bytes / self.page_bytes, self.pace if growing else 0.0)
        self.queue = Waiting(engine)
        self.waiting = self.queue.known
        self.took_away = False
        """Whether this iteration's pages were another sequence's."""
        self.prefilling: list[Sequence] = []
        self.active: dict[int, Sequence] = {}
        self.finishes: list[tuple[int, int, Sequence]] = []
        self.decoding, self.tokens, self.iteration, self.admitted = 0, 0.0, 0, 0
        self.preemptions = self.recomputed = 0
        self.since: list[tuple[float, int]] = []
        self.course = Course(COURSE)
        self.begin = self.seconds = self.first_s = self.growth_s = 0.0
        self.late_s = 0.0
        """Of requests that came during the iterations under way: the time in which they were not yet there."""
        self.iterations = 0
        self.chunks: list[tuple[Sequence, int]] = []

    @property
    def load(self) -> int:
        """Requests that are here, waiting or under way."""
        return self.line + len(self.active)

    @property
    def line(self) -> int:
        """Requests that wait."""
        return len(self.queue)

    def submit(self, sequence: Sequence, now: float) -> bool:
        """Queue a request. Whether it could start before the iterations end that are under way.

        Raises Impossible for a request that the cache could not hold even alone.
        """
        request = sequence.request
        sequence.cached = self.engine.cached(request)
        if self.reserves:
            sequence.reserved = self.engine.reserved_bytes(request) / self.page_bytes
        needed = self.pages.pages(self._longest(sequence)) + sequence.reserved
        if needed > self.pages.capacity:
            raise Impossible(
                f"request {sequence.index + 1} of {request.input} + {request.output} tokens needs "
                f"{needed * self.page_bytes:.4g} bytes of cache; an engine has {self.engine.cache_bytes:.4g}"
            )
        self.late_s += now - self.begin
        if self.queue.looks and (self.busy or self.decoding or self.prefilling):
            self.queue.unseen.append(sequence)
            return not self.chunks
        self.waiting.append(sequence)
        alone = len(self.waiting) == 1 or self.queue.gathering_since is not None
        return alone and not self.chunks and self._fits(sequence)

    def _longest(self, sequence: Sequence) -> int:
        """Tokens that this engine will have to keep of the sequence."""
        request = sequence.request
        return request.input if self.role == "prefill" else request.input + request.output

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there is a place, and pages for the sequence's next token beside those that the others need.

        Where pages are taken chunk by chunk: pages for its first chunk.
        """
        if len(self.active) >= self.engine.max_sequences:
            return False
        tokens = min(sequence.target + self.engine.times.new_tokens, self._longest(sequence))
        if self.engine.chunk_pages:
            tokens = min(tokens, sequence.cached + self._budget())
        used = self.pages.used + self.pages.needed(1)
        return used + self.pages.pages(tokens) + sequence.reserved <= self.pages.capacity

    def begin_span(self, now: float) -> float | None:
        """Decide what runs next. When it ends, None when there is nothing to do."""
        self.took_away = False
        while self.decoding and not self.pages.possible(1):
            self._preempt(now)
        if self.queue.looks:
            self.queue.look(self.iteration, self.decoding, bool(self.prefilling))
        if self.prefilling or (self.waiting and not self.queue.gathers(self.iteration, self.decoding)):
            self.chunks = self._schedule(now)
        if not self.chunks and not self.decoding:
            return None
        times, n = self.engine.times, self.decoding
        context = self.tokens / n + times.new_tokens if n else 0.0
        self.begin, self.late_s = now, 0.0
        if self.chunks:
            decoded = n if self.engine.mixed else 0
            self.iterations = 1 if decoded else 0
            length, prefix = mean_chunk([(size, sequence.done) for sequence, size in self.chunks])
            self.seconds = self.first_s = times.step_s(decoded, context, len(self.chunks), length, prefix)
            return now + self.seconds
        row, nodes = times.decode_row(n), times.contexts
        j = min(max(bisect_right(nodes, context) - 1, 0), len(nodes) - 2)
        slope = (row[j + 1] - row[j]) / (nodes[j + 1] - nodes[j])
        self.first_s, self.growth_s = row[j] + slope * (context - nodes[j]), slope * self.pace
        while self.finishes[0][2].finish != self.finishes[0][0]:
            heapq.heappop(self.finishes)  # was preempted
        iterations = self.finishes[0][0] - self.iteration
        if j + 2 < len(nodes):
            iterations = min(iterations, int((nodes[j + 1] - context) / self.pace) + 1)
        if self.engine.chunk_pages and self.took_away:
            iterations = 1
        iterations = self.queue.most(self.iteration, iterations)
        self.iterations = self.pages.possible(iterations)
        self.seconds = self._passed(self.iterations)
        return now + self.seconds

    def _passed(self, iterations: int) -> float:
        return iterations * self.first_s + self.growth_s * (iterations * (iterations - 1) / 2)

    def interrupt(self, now: float) -> float:
        """End the iterations under way with the one that runs now. When that is."""
        if not self.chunks and self.iterations > 1:
            passed, first, growth = now - self.begin, self.first_s, self.growth_s
            half = first - growth / 2
            root = math.sqrt(max(half * half + 2 * growth * passed, 0.0))
            count = max(1, math.ceil(2 * passed / (half + root) - 1e-9))
            if self.queue.unseen and not self.waiting and not self.queue.seen:
                count = self.queue.until_look(self.iteration, count)
            if count < self.iterations:
                self.iterations, self.seconds = count, self._passed(count)
        return self.begin + self.seconds

    def _budget(self) -> int:
        """Tokens of prompts that an iteration has room for."""
        decoded = self.decoding * self.engine.times.new_tokens if self.engine.mixed else 0
        return self.engine.max_batched_tokens - decoded

    def _schedule(self, now: float) -> list[tuple[Sequence, int]]:
        """The chunks of prompts of the next iteration."""
        engine = self.engine
        budget = self._budget()
        chunks = []
        for sequence in list(self.prefilling):
            size = min(budget, sequence.target - sequence.done)
            if size <= 0 or not self._extend(sequence, size, now):
                break
            chunks.append((sequence, size))
            budget -= size
        if engine.chunk_pages and self.took_away:
            return chunks
        while self.waiting and budget > 0 and self._fits(self.waiting[0]):
            if engine.whole_prompts and chunks and budget < self.waiting[0].target - self.waiting[0].cached:
                break
            sequence = self.waiting.popleft()
            sequence.held = sequence.target
            if engine.chunk_pages and sequence.done < sequence.target:
                sequence.held = min(sequence.target, sequence.cached + budget)
            self.pages.used += self.pages.pages(sequence.held) + sequence.reserved
            self.admitted += 1
            sequence.order = self.admitted
            self.active[sequence.order] = sequence
            if self.role == "decode" and sequence.done == sequence.target:
                self._decode(sequence)
                self.since.append((sequence.last_s, 1))
                continue
            sequence.done = sequence.cached
            self.prefilling.append(sequence)
            size = min(budget, sequence.target - sequence.done)
            chunks.append((sequence, size))
            budget -= size
        return chunks

    def _extend(self, sequence: Sequence, size: int, now: float) -> bool:
        """Take pages for the next chunk of a prompt, if need be from those admitted last. Whether it has them."""
        wanted = sequence.done + size
        if wanted <= sequence.held:
            return True
        more = self.pages.pages(wanted) - self.pages.pages(sequence.held)
        while self.pages.used + self.pages.needed(1) + more > self.pages.capacity:
            last = self.active[next(reversed(self.active))]
            self._preempt(now)
            if last is sequence:
                return False
        self.pages.used += more
        sequence.held = wanted
        return True

    def end_span(self, now: float) -> None:
        """What was decided has happened: tokens go to clients, places and pages become free."""
        iterations, n, chunks = self.iterations, self.decoding, self.chunks
        self.watcher.span(self, self.begin, self.seconds, n, iterations, sum(size for _, size in chunks))
        share = self.pages.used / self.pages.capacity
        waiting = self.line - self.late_s / self.seconds
        self.course.add(self.begin, self.seconds, waiting, len(self.active), share)
        if iterations:
            self._count_gaps(n, iterations)
            self.iteration += iterations
            self.tokens += n * iterations * self.pace
            self.pages.turn(iterations)
            while self.finishes and self.finishes[0][0] <= self.iteration:
                finish, _, sequence = heapq.heappop(self.finishes)
                if sequence.finish == finish:
                    self._leave(sequence)
                    self.watcher.completed(sequence, now)
            self.since = []
        begun = 0
        for sequence, size in chunks:
            sequence.done += size
            if sequence.done == sequence.target:
                begun += self._prefilled(sequence, now)
        if chunks:
            self.queue.looked = self.iteration
            self.chunks = []
            self.prefilling = [sequence for sequence in self.prefilling if sequence.done < sequence.target]
        if iterations:
            self.since = [(now, self.decoding)] if self.decoding else []
        elif begun:
            self.since.append((now, begun))

    def _count_gaps(self, n: int, iterations: int) -> None:
        """The time from token to token: from the last one to the first iteration's end, then from one to the next."""
        add = self.itl.add
        end = self.begin + self.first_s
        for since, count in self.since:
            add(end - since, count)
        if iterations > 1:
            steps = max(1, min(iterations - 1, int(abs(self.growth_s) * iterations / (0.002 * self.first_s))))
            for i in range(steps):
                low, high = 1 + (iterations - 1) * i // steps, 1 + (iterations - 1) * (i + 1) // steps
                add(self.first_s + self.growth_s * (low + high - 1) / 2, n * (high - low))

    def _prefilled(self, sequence: Sequence, now: float) -> int:
        """A prompt is done: its first token, or the next one after a preemption. 1 when it goes on to decode here."""
        if self.role == "prefill":
            self.watcher.prefilled(self, sequence, now)
            return 0
        if sequence.first_s < 0:
            sequence.first_s = now
            self.watcher.first_token(sequence, now)
        else:
            self.itl.add(now - sequence.last_s)
        sequence.left -= 1
        if not sequence.left:
            self.release(sequence)
            self.watcher.completed(sequence, now)
            return 0
        self._decode(sequence)
        return 1

    def _decode(self, sequence: Sequence) -> None:
        sequence.slot, sequence.dial = self.pages.join(sequence.target), int(self.pages.dial)
        sequence.start = self.iteration
        sequence.finish = self.iteration + self._iterations_for(sequence.left)
        heapq.heappush(self.finishes, (sequence.finish, sequence.order, sequence))
        self.decoding += 1
        self.tokens += sequence.target

    def _iterations_for(self, tokens: int) -> int:
        """Verifications that yield so many tokens: a sum of many, so normal, around its mean."""
        drafts, a = self.engine.times.new_tokens - 1, self.engine.acceptance
        if self.pace == 1.0 or a == 1.0:
            return math.ceil(tokens / self.pace)
        # With each verification 1 + X tokens, P(X ≥ j) = aʲ for j = 1 … drafts, E X² = Σ (2j − 1)·aʲ.
        square = sum((2 * j - 1) * a**j for j in range(1, drafts + 1))
        variance = square - (self.pace - 1.0) ** 2
        mean = tokens / self.pace
        drawn = self.generator.gauss(mean, math.sqrt(mean * variance) / self.pace)
        return max(math.ceil(tokens / (drafts + 1)), min(round(drawn), tokens))

    def _leave(self, sequence: Sequence) -> None:
        """A sequence decodes no more: its pages are free."""
        self.decoding -= 1
        self.tokens -= sequence.target + (self.iteration - sequence.start) * self.pace
        if not self.decoding:
            self.tokens = 0.0
        self.pages.leave(sequence.slot)
        grown = int(self.pages.dial) - sequence.dial
        self.pages.used -= self.pages.pages(sequence.target + grown) - self.pages.pages(sequence.target)
        sequence.finish = -1
        self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        """The pages of a prompt are free again, and its place."""
        self.pages.used -= self.pages.pages(sequence.held) + sequence.reserved
        del self.active[sequence.order]

    def _preempt(self, now: float) -> None:
        """The sequence admitted last starts over, with its tokens so far as the prompt."""
        sequence = self.active[next(reversed(self.active))]
        self.preemptions += 1
        self.took_away = True
        if sequence.finish < 0:
            self.recomputed += sequence.done - sequence.cached
            self.release(sequence)
            self.prefilling.remove(sequence)
        else:
            gained = min(int((self.iteration - sequence.start) * self.pace), sequence.left - 1)
            self._leave(sequence)
            sequence.last_s, count = self.since.pop()
            if count > 1:
                self.since.append((sequence.last_s, count - 1))
            sequence.target += gained + 1
            sequence.left -= gained
            self.recomputed += sequence.target - sequence.cached
        sequence.done = 0
        self.waiting.appendleft(sequence)
