"""What a growth and a few predictions amount to, in words. Nothing here knows the name of a mechanism."""

import math
from typing import NamedTuple

from costmodel.analysis.gains import Kept, Room
from costmodel.analysis.orders import Term
from costmodel.units import format_bytes

SAME = 0.005
"""Coefficients that differ by less are called equal."""

LEAST_CAPACITY = 1.25
"""Gain at full memory from which on it is asked where the gain comes from."""


class Finding(NamedTuple):
    """What a verdict rests on.

    flops, bytes, time, cache: leading terms of the step and of a sequence's cache. coefficient: that of the term with
    full attention's order over full attention's (None where the step grows faster than full attention does).
    limit: gain in time over full attention as the context grows without end, None where it grows without end itself.
    kept: what a sequence keeps that does not grow; state_tokens: the tokens whose keys and values take as much, its
    own where its cache grows, else those of the same shape. chain_bound: whether the mixers' kernels without
    their projections wait most of their time for a serial chain. speedup: over full attention at equal batch; room:
    what fits in memory and what that gains. generation: how tokens come out, as the model's file says.
    """

    phase: str
    flops: Term
    bytes: Term
    time: Term
    cache: Term
    coefficient: float | None
    limit: float | None
    kept: Kept
    state_tokens: float
    chain_bound: bool
    speedup: float
    room: Room
    generation: str = "autoregressive"

    @property
    def top(self) -> Term:
        """The fastest growth among work, traffic and time."""
        return max((self.flops, self.bytes, self.time), key=lambda term: term.key)


def verdict(found: Finding) -> str:
    """The judgement of a mechanism or a model in one phase."""
    if found.generation == "diffusion":
        return _denoising(found)
    if found.generation == "block-diffusion" and found.phase == "decode":
        return f"steps × {_growing(found)}: a block takes several passes over the cache of those before"
    return _growing(found)


def _growing(found: Finding) -> str:
    whole = 1 if found.phase == "decode" else 2
    if found.top.key >= (whole, 0):
        text = _quadratic(found, "quadratic over a generation" if found.phase == "decode" else "quadratic")
    elif found.phase == "prefill" and found.top.key > (1, 0):
        text = f"subquadratic, {found.top.text[2:-1]}"
    else:
        return _linear(found)
    if found.room.speedup is not None and mostly_capacity(found.speedup, found.room.speedup, found.room.more):
        gains = f"{times(found.room.speedup)} with a batch that fills memory, {times(found.speedup)} at equal batch"
        return f"capacity effect: {gains}; {text}"
    return text


def mostly_capacity(speedup: float, filled: float, more: float) -> bool:
    """Whether half of the gain at full memory, in logarithms, is gone at equal batch, where more sequences do fit.

    >>> mostly_capacity(2.2, 6.3, 4.0), mostly_capacity(3.0, 6.3, 4.0), mostly_capacity(2.2, 6.3, 1.0)
    (True, False, False)
    """
    if min(filled, more) < LEAST_CAPACITY:
        return False
    return math.log(max(speedup, 1.0)) < 0.5 * math.log(filled)


def _quadratic(found: Finding, word: str) -> str:
    whole = 1 if found.phase == "decode" else 2
    where = ""
    if found.flops.key < (whole, 0):
        where = " in bytes" if found.bytes.key >= (whole, 0) else " in time"
        where += ", though not in FLOPs"
    if found.coefficient is None:
        return f"{word}{where}, and worse: {found.top.text}"
    if abs(found.coefficient - 1) < SAME:
        return f"{word}{where}, the constant of full attention"
    if found.coefficient > 1:
        return f"{word}{where}, {times(found.coefficient)} larger constant"
    if found.coefficient == 0:
        return f"{word}{where}"
    return f"{word}{where}, {times(1 / found.coefficient)} smaller constant{_limit(found)}"


def _limit(found: Finding) -> str:
    if found.limit is None or found.coefficient is None:
        return ""
    return f" ({times(found.limit)} in time at most)"


def _linear(found: Finding) -> str:
    if found.cache.key >= (1, 0):
        return f"linear, but its cache grows by {format_bytes(found.cache.coefficient)} per token"
    if not found.kept.whole:
        return "linear, without a state of its own"
    parts = [word for word, part in (("fixed state", found.kept.states), ("window", found.kept.windows)) if part]
    whole = round(found.state_tokens)
    tokens = f"≈ {whole:,} tokens" if whole > 1 else "≈ 1 token" if whole else "less than a token"
    text = f"{' and '.join(parts)} of {format_bytes(found.kept.whole)} ({tokens} of its own KV)"
    return f"linear but chain-bound; {text}" if found.chain_bound else f"linear, {text}"


def _denoising(found: Finding) -> str:
    order = "quadratic" if found.flops.key >= (2, 0) else found.flops.text
    if found.coefficient is None:
        return f"steps × {order}: each denoising step costs {found.flops.text}, where a step token by token costs O(L)"
    return f"steps × {order}: each denoising step costs {times(found.coefficient)} the attention of a causal prefill"


def times(factor: float) -> str:
    """A factor as text.

    >>> times(3.857), times(27.31), times(1.0), times(0.0421)
    ('3.86×', '27.3×', '1×', '0.0421×')
    """
    return f"{factor:.3g}×" if factor < 1000 else f"{factor:,.0f}×"
