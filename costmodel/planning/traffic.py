"""What clients ask for: lengths of prompts and answers, and when requests arrive.

Arrivals are a stream, so that a million requests need no memory. Everything drawn depends on the seed alone.

>>> [request.input for request in drawn(2, Lengths.parse("100"), Lengths.parse("5..9"), seed=1)]
[100, 100]
"""

import csv
import math
import random
from array import array
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

from costmodel.errors import BadInput, suggestion
from costmodel.units import parse_count

MOST_TOKENS = 2**30
"""Tokens of a prompt or an answer beyond which an entry is absurd."""

MOST_SECONDS = 1e9
"""Arrival times beyond which an entry is absurd (thirty years)."""

MOST_REQUESTS = 100_000_000
MOST_PROBLEMS = 20
COLUMNS = ("arrival_s", "input", "output")
OPTIONAL = "cached_prefix"


class Request(NamedTuple):
    """A prompt of `input` tokens that arrives at arrival_s and is answered by `output` tokens.

    cached_prefix: leading tokens of the prompt whose keys and values the engine has kept from earlier requests.
    """

    arrival_s: float
    input: int
    output: int
    cached_prefix: int = 0


class Lengths(NamedTuple):
    """A distribution of token counts: fixed (a), uniform (a to b), or lognormal (median a, ln-deviation b)."""

    kind: str
    a: float
    b: float = 0.0

    @classmethod
    def parse(cls, text: str, field: str = "length") -> "Lengths":
        """`1k` is fixed, `800..1k` uniform, `lognormal:1k:0.6` has that median and standard deviation of ln.

        Raises BadInput for anything else.
        """
        name, _, rest = text.strip().partition(":")
        if rest:
            median, _, sigma = rest.partition(":")
            try:
                deviation = float(sigma)
            except ValueError:
                deviation = math.nan
            if name != "lognormal" or not 0 < deviation <= 5:
                raise BadInput(
                    f"{field} {text[:60]!r} is not a distribution: write 1k, 800..1k, or lognormal:1k:0.6 (median, "
                    "and standard deviation of the logarithm up to 5)"
                )
            return cls("lognormal", parse_count(median, field, MOST_TOKENS), deviation)
        low, dots, high = text.strip().partition("..")
        first = parse_count(low, field, MOST_TOKENS)
        if not dots:
            return cls("fixed", first)
        last = parse_count(high, field, MOST_TOKENS)
        if first > last:
            raise BadInput(f"{field} range {text[:60]!r} goes down; write the smaller end first")
        return cls("uniform", first, last)

    def draw(self, generator: random.Random) -> int:
        """One count, at least 1."""
        if self.kind == "fixed":
            return int(self.a)
        if self.kind == "uniform":
            return int(self.a + generator.random() * (self.b - self.a + 1))
        return max(1, min(round(self.a * math.exp(generator.gauss(0.0, self.b))), MOST_TOKENS))

    @property
    def mean(self) -> float:
        """The expected count."""
        if self.kind == "fixed":
            return self.a
        return (self.a + self.b) / 2 if self.kind == "uniform" else self.a * math.exp(self.b**2 / 2)


def drawn(
    count: int,
    inputs: Lengths,
    outputs: Lengths,
    *,
    rate: float | None = None,
    burstiness: float = 1.0,
    hit_rate: float = 0.0,
    seed: int = 0,
) -> Iterator[Request]:
    """So many requests: at a rate per second, or (None) all at once, as clients that wait for answers send them.

    burstiness: shape of the gamma distribution of the gaps; 1 is a Poisson process, below 1 requests come in bursts,
    above 1 they are more regular, and math.inf makes all gaps equal. hit_rate: share of every prompt that is cached.
    """
    for name, value, most in (
        ("requests", count, MOST_REQUESTS),
        ("rate", rate, 1e9),
        ("burstiness", burstiness, None),
    ):
        if value is not None and not 0 < value <= (most or math.inf):
            raise BadInput(f"{name} {value} is not above 0" + (f" and at most {most:g}" if most else ""))
    if not 0 <= hit_rate < 1:
        raise BadInput(f"prefix hit rate {hit_rate} is not a share from 0 to below 1")
    return islice(_drawn(inputs, outputs, rate, burstiness, hit_rate, random.Random(seed)), count)


def _drawn(
    inputs: Lengths, outputs: Lengths, rate: float | None, burstiness: float, hit_rate: float, generator: random.Random
) -> Iterator[Request]:
    now = 0.0
    for _ in repeat(None):
        if rate is not None:
            mean = 1.0 / rate
            if burstiness == math.inf:
                now += mean
            elif burstiness == 1.0:
                now += generator.expovariate(rate)
            else:
                now += generator.gammavariate(burstiness, mean / burstiness)
        prompt = inputs.draw(generator)
        yield Request(now, prompt, outputs.draw(generator), int(prompt * hit_rate))


class Trace:
    """Requests of a file, in order, packed into 32 bytes each; skipped: lines that were left out."""

    def __init__(self) -> None:
        self.arrivals, self.counts, self.skipped = array("d"), array("q"), 0

    def __len__(self) -> int:
        return len(self.arrivals)

    def __iter__(self) -> Iterator[Request]:
        counts = self.counts
        for index, arrival in enumerate(self.arrivals):
            yield Request(arrival, *counts[3 * index : 3 * index + 3])

    @property
    def longest(self) -> tuple[int, int]:
        """The longest prompt, and the most tokens of prompt and answer together."""
        totals = (self.counts[i] + self.counts[i + 1] for i in range(0, len(self.counts), 3))
        return max(self.counts[::3]), max(totals)

    @property
    def has_prefixes(self) -> bool:
        """Whether any prompt begins with what is cached."""
        return any(self.counts[2::3])


def read_trace(path: Path, *, skip: bool = False) -> Trace:
    """The requests of a CSV file with the columns arrival_s, input, output and, optionally, cached_prefix.

    Arrivals are at or above 0 and must not go back. Raises BadInput that names every bad line (the first 20);
    with skip, bad lines are left out and counted instead.
    """
    shown = str(path)[:200]
    if not path.is_file():
        raise BadInput(f"{shown}: no such file" if not path.exists() else f"{shown}: not a regular file")
    trace, problems, found = Trace(), list[str](), 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            places = _columns(next(reader, []), shown)
            previous = -math.inf
            for fields in reader:
                if not fields:
                    continue
                entry = _entry(fields, places, previous)
                if isinstance(entry, str):
                    found += 1
                    if len(problems) < MOST_PROBLEMS:
                        problems.append(f"{shown}: line {reader.line_num}: {entry}")
                    continue
                if len(trace) >= MOST_REQUESTS:
                    raise BadInput(f"{shown}: more than {MOST_REQUESTS:,} requests")
                previous = entry.arrival_s
                trace.arrivals.append(entry.arrival_s)
                trace.counts.extend(entry[1:])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not CSV in UTF-8"
        raise BadInput(f"{shown}: cannot be read ({reason})") from None
    if found and not skip:
        more = [f"{shown}: {found - len(problems)} more bad lines"] if found > len(problems) else []
        raise BadInput("\n".join([*problems, *more]))
    if not len(trace):
        raise BadInput(
            f"{shown}: holds no request" + (f" that can be used; {found} lines were skipped" if found else "")
        )
    trace.skipped = found
    return trace


def _columns(header: list[str], shown: str) -> list[int | None]:
    if header and header[0].lstrip().startswith(("{", "[")):
        raise BadInput(
            f"{shown}: line 1 is JSON; a trace is a CSV file of {', '.join(COLUMNS)} and, optionally, {OPTIONAL}"
        )
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise BadInput(f"{shown}: line 1: columns are separated by {name}; write commas")
    names = [name.strip() for name in header]
    missing = [name for name in COLUMNS if name not in names]
    strange = [name for name in names if name not in (*COLUMNS, OPTIONAL)]
    if missing or strange or len(set(names)) < len(names):
        told = [f"missing column {name!r}" for name in missing]
        told += [f"unknown column {name[:60]!r}{suggestion(name, (*COLUMNS, OPTIONAL))}" for name in strange[:5]]
        raise BadInput(f"{shown}: line 1: {'; '.join(told) or 'a column stands twice'}")
    return [names.index(name) if name in names else None for name in (*COLUMNS, OPTIONAL)]


def _entry(fields: list[str], places: list[int | None], previous: float) -> Request | str:
    """The request of a line, or what is wrong with it."""
    numbers = []
    for name, place in zip((*COLUMNS, OPTIONAL), places, strict=True):
        text = "0" if place is None else fields[place].strip() if place < len(fields) else ""
        if not text:
            return f"{name} is missing"
        try:
            value = float(text)
        except ValueError:
            return f"{name} {text[:40]!r} is not a number"
        most = MOST_SECONDS if name == "arrival_s" else MOST_TOKENS
        least = 1 if name in ("input", "output") else 0
        if not least <= value <= most:
            return f"{name} {text[:40]} is outside {least:g} to {most:g}"
        if name != "arrival_s" and not value.is_integer():
            return f"{name} {text[:40]} is not a whole number"
        numbers.append(value)
    if len(fields) > sum(place is not None for place in places):
        return f"{len(fields)} fields, but the heading has {sum(place is not None for place in places)}"
    if numbers[0] < previous:
        return f"arrival_s {numbers[0]:g} lies before the line above it ({previous:g})"
    if numbers[3] > numbers[1]:
        return f"cached_prefix {numbers[3]:g} exceeds the input {numbers[1]:g}"
    return Request(numbers[0], int(numbers[1]), int(numbers[2]), int(numbers[3]))
