"""Published figures of whole deployments: the claims about them, and the parts that explain each difference.

Every figure that is compared is a claim (`validation/papers/`), judged as all others are; a part is a number from the
same set-up, or one that follows from what was published. `docs/published-serving.md` discusses them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from costmodel.analysis.claims import Claim, judge, load_claims
from costmodel.analysis.claims.setups import SetUp, device_of, model_of, precision_of, sequences
from costmodel.analysis.claims.steps import cache_bytes, token_rate
from costmodel.parallel.layout import Layout
from costmodel.planning.deployment import Served, Settings
from costmodel.planning.deployment import engine as engine_of
from costmodel.planning.engine_constants import engine_constants
from costmodel.planning.measures import Measures
from costmodel.planning.replay import Deployment as Engines
from costmodel.planning.replay import replay
from costmodel.planning.traffic import Lengths, drawn

NODE = 8
"""Devices of one node."""
DAY = 86_400.0
"""Seconds."""
LIBRARIES = ("sglang", "vllm", "trtllm")
"""Whose kernels may stand for DeepSeek's own; the claims take the first, which runs them."""


class Part(NamedTuple):
    """A number that explains. of: what has it, such as a model or a library; published: where it was (None: not)."""

    what: str
    of: str
    here: float
    unit: str
    published: float | None = None


class Deployment(NamedTuple):
    """A published deployment: the claims about it, by their ids, and what gives its parts."""

    name: str
    title: str
    claims: tuple[str, ...]
    parts: Callable[[], Iterator[Part]]


class Published(NamedTuple):
    """DeepSeek's day. Tokens of all requests; hits: share of the input in the cache; *_per_s: of a node; speed_per_s:
    of a user, 20 to 22; cached: tokens in the cache while one comes out, on average.

    Source: deepseek-ai/open-infra-index, day 6.
    """

    input: float = 608e9
    hits: float = 0.563
    output: float = 168e9
    nodes: float = 226.75
    prefill_with_hits_per_s: float = 73_700.0
    decode_per_s: float = 14_800.0
    speed_per_s: float = 21.0
    cached: float = 4989.0

    @property
    def new(self) -> float:
        """Share of the input that is computed."""
        return 1.0 - self.hits

    @property
    def answer(self) -> float:
        """Tokens of an answer, if all requests were alike: a prompt and half of its answer are cached on average."""
        return self.cached / (self.input / self.output + 0.5)

    @property
    def prompt(self) -> float:
        """Tokens of a prompt, if all requests were alike."""
        return self.answer * self.input / self.output

    @property
    def spread_prompt(self) -> float:
        """Mean tokens of a prompt, if prompts and answers had exponential lengths, whatever each other's: while a token
        comes out, the mean prompt is cached then, and as many tokens as the mean answer has."""
        return self.cached / (1.0 + self.output / self.input)

    @property
    def prefilling_nodes(self) -> float:
        """Nodes that prefill, averaged over the day."""
        return self.input / DAY / self.prefill_with_hits_per_s

    @property
    def decoding_nodes(self) -> float:
        """Nodes that decode, averaged over the day."""
        return self.output / DAY / self.decode_per_s

    @property
    def users(self) -> float:
        """Users of a device that decodes."""
        return self.decode_per_s / self.speed_per_s / NODE


DAY_6 = Published()


def variants(setup: SetUp) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What is asked of DeepSeek's prefill, and how the claim's set-up changes for it.

    Prompts of exponential lengths have as many pairs as half as many that are all twice as long.
    """
    prompt = 2 * DAY_6.spread_prompt
    spread = {"context": round(prompt), "new_tokens": round(prompt * DAY_6.new), "batch": int(setup.batch) // 2}
    met = _claim("sglang-prefill").condition
    assert met is not None
    uneven = met.setup
    yield "prefill, a busy node", {}
    yield "prefill, experts loaded as in sglang-prefill", uneven
    yield "prefill, if lengths were exponential", spread
    yield "prefill, both", {**uneven, **spread}
    yield "prefill, if exchanges held no processors", {"exchange_units": None}
    yield "prefill, if no communication hid", {"overlap": 0.0}


@cache
def _claims() -> dict[str, Claim]:
    """All claims by their ids: reading them takes longer than judging some."""
    return {claim.id: claim for claim in load_claims()}


def _claim(name: str) -> Claim:
    return _claims()[name]


def _setup(name: str) -> SetUp:
    """The set-up of a claim of one number."""
    found = _claim(name)
    return found.setup.changed(found.points[0])


def _node_rate(setup: SetUp) -> float:
    """Tokens per second of a node."""
    return NODE * token_rate(setup).value


def deepseek() -> Iterator[Part]:
    """DeepSeek-V3 on H800 nodes: what follows from the day's totals, and a node by whose kernels stand for its own."""
    day = DAY_6
    yield Part("nodes that prefill, on average", "the day's totals", day.prefilling_nodes, "nodes")
    yield Part("nodes that decode, on average", "the day's totals", day.decoding_nodes, "nodes")
    both = day.prefilling_nodes + day.decoding_nodes
    yield Part("both together", "the day's totals", both, "nodes", day.nodes)
    yield Part("tokens of a prompt", "the day's totals", day.prompt, "tokens")
    yield Part("of these, new", "the day's totals", day.prompt * day.new, "tokens")
    yield Part("tokens of an answer", "the day's totals", day.answer, "tokens")
    yield Part("users of a device that decodes", "the day's totals", day.users, "users")
    prefill, decode = _setup("day6-prefill"), _setup("day6-decode")
    for library in LIBRARIES:
        rate = _node_rate(decode._replace(library=library))
        yield Part("decode", library, rate, "tok/s/node", day.decode_per_s)
        yield Part("decode, of one user", library, rate / NODE / day.users, "tok/s", day.speed_per_s)
    published = day.prefill_with_hits_per_s * day.new
    busy = {library: _node_rate(prefill._replace(library=library)) for library in LIBRARIES}
    for library, rate in busy.items():
        with_hits = day.prefill_with_hits_per_s
        yield Part("prefill, a busy node, with cache hits", library, rate / day.new, "tok/s/node", with_hits)
    for what, changes in variants(prefill):
        for library in LIBRARIES:
            rate = _node_rate(prefill._replace(library=library, **changes))
            yield Part(what, library, rate, "tok/s/node", published)
    for library, rate in busy.items():
        yield Part("the day's average over a busy node", library, published / rate, "x")
    profile = _claim("profile-prefill").claimed[0]
    yield Part("the day's average over a busy node", "DeepSeek's own profile", published / profile, "x")


def jet_nemotron() -> Iterator[Part]:
    """Jet-Nemotron-2B over Qwen3-1.7B on one H100, each with as many sequences as memory holds."""
    for claim in ("jet-47x", "jet-53x"):
        found = _claim(claim)
        assert found.baseline is not None
        own = _setup(claim)
        pair = {"jet-nemotron-2b": own, "qwen3-1.7b": own.changed(found.baseline)}
        caches = [cache_bytes(setup).value for setup in pair.values()]
        at = f"{own.context // 1024}k"
        for (name, setup), held in zip(pair.items(), caches, strict=True):
            yield Part(f"cache of a sequence of {at}", name, held / 2**20, "MiB")
            yield Part(f"sequences of {at} that fit", name, float(sequences(setup)), "sequences")
        of_caches, fits = caches[1] / caches[0], [sequences(setup) for setup in pair.values()]
        yield Part(f"ratio of the caches at {at}", "both", of_caches, "x", found.claimed[0])
        yield Part(f"ratio of the sequences at {at}", "both", fits[0] / fits[1], "x")


def mamba3_baseline() -> Iterator[Part]:
    """vLLM answers 128 prompts of 16k tokens with Llama-3.2-1B on one H100: with memory for half of their caches."""
    found = preempted(_setup("mamba3-answer-llama-16k"))
    yield Part("caches of all sequences", "16k", found["caches_bytes"] / 2**30, "GiB")
    yield Part("room for caches", "16k", found["room_bytes"] / 2**30, "GiB")
    published = _claim("mamba3-answer-llama-16k").claimed[0]
    yield Part("without a prefix cache", "16k", found["seconds"], "s", published)
    yield Part("preemptions", "without a prefix cache", found["preemptions"], "")
    yield Part("tokens computed again, over those of the prompts", "without a prefix cache", found["recomputed"], "x")
    yield Part("with a prefix cache", "16k", found["cached_s"], "s", published)
    yield Part("with memory without end", "16k", found["unlimited_s"], "s", published)


def preempted(setup: SetUp) -> Mapping[str, float]:
    """A batch of equal requests that comes at once, under vLLM on one device.

    seconds: without its prefix cache, where what loses its pages is computed again, recomputed times its prompt on
    average. cached_s: with the cache, which finds most of it. unlimited_s: with memory for all sequences.
    """
    tokens, requests = setup.prompt, int(setup.batch)
    host = engine_constants(setup.engine, device_of(setup)).host
    served = Served(model_of(setup), device_of(setup), precision_of(setup), setup.engine, host)
    ready = engine_of(served, Layout(), Settings(longest=tokens + setup.output))

    def run(**changes: Any) -> Measures:
        prompts, answers = Lengths("fixed", tokens), Lengths("fixed", setup.output)
        return replay(Engines(ready._replace(**changes)), drawn(requests, prompts, answers), clients=requests)

    found = run(chunk_pages=True)
    return {
        "seconds": found.window_s,
        "cached_s": run().window_s,
        "unlimited_s": run(cache_bytes=float("inf")).window_s,
        "preemptions": float(found.preemptions),
        "recomputed": found.recomputed / (requests * tokens),
        "caches_bytes": requests * ready.cache.bytes(tokens + setup.output),
        "room_bytes": ready.cache_bytes,
    }


DEPLOYMENTS = (
    Deployment(
        "deepseek",
        "DeepSeek-V3 on H800 nodes: 73.7k and 14.8k tokens per second",
        (
            "day6-decode",
            "day6-prefill",
            "profile-decode",
            "profile-prefill",
            "sglang-prefill-balanced",
            "sglang-prefill",
        ),
        deepseek,
    ),
    Deployment(
        "jet-nemotron",
        "Jet-Nemotron-2B over Qwen3-1.7B: 47 times",
        ("jet-47x", "jet-53x", "jet-cache"),
        jet_nemotron,
    ),
    Deployment(
        "mamba-3",
        "Mamba-3's baseline: 976 s",
        ("mamba3-answer-llama", "mamba3-answer-llama-16k"),
        mamba3_baseline,
    ),
)


def deployment_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each claim about these deployments, as `claims.judged` has it, with the deployment's name."""
    asked = [one for one in DEPLOYMENTS if one.name in names]
    return [{"deployment": one.name, **judge(_claim(name))} for one in asked for name in one.claims]


def part_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each part of these. Keys: deployment, what, of, unit, published (None: it was not), here, ratio."""
    rows = []
    for one in (one for one in DEPLOYMENTS if one.name in names):
        for part in one.parts():
            ratio = None if part.published is None else part.here / part.published
            rows.append({"deployment": one.name, **part._asdict(), "ratio": ratio})
    return rows
