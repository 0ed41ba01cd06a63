"""Autoregression: one pass over the prompt, then one token per pass over a growing cache.

The prompt's pass yields the first new token, so T tokens take T passes, and the last token is never
processed. Every decode pass reads all weights and the whole cache for a single token.

>>> plan = Plan(P0=4, T=3)
>>> passes(plan), token_passes(plan), pair_sum(plan)
(3, 6, 21)
"""

from costmodel.algebra import Quantity
from costmodel.generation import Plan, Repeated
from costmodel.pairs import causal
from costmodel.step import Step

NAME = "autoregressive"
ALIASES = ("ar", "next-token")
TITLE = "Autoregression"
SUMMARY = "one token per pass, keys and values cached"
SOURCES = ("arXiv:1706.03762, section 3.2.3", "arXiv:1911.02150, section 2.4 (incremental decoding and its cache)")
ORDER = "Θ(L) attention per token, Θ(L²) in total"
DENOISES = False
FP64_SAMPLING = False


def steps(plan: Plan) -> list[Repeated]:
    """The prompt's pass and T − 1 decode passes."""
    run = [Repeated(Step(B=plan.B, S=plan.P0, P=0), prompt=True)]
    if plan.T > 1:
        first = Step(B=plan.B, S=1, P=plan.P0, phase="decode")
        run.append(Repeated(first, positions=plan.T - 1, advance=1))
    return run


def passes(plan: Plan) -> Quantity:
    """One per new token."""
    return plan.T


def token_passes(plan: Plan) -> Quantity:
    """Every token but the last, once."""
    return plan.L - 1


def pair_sum(plan: Plan) -> Quantity:
    """As many as one causal pass over all of it."""
    return causal(0, plan.L - 1)


def decisions(plan: Plan) -> Quantity:
    """Every pass commits a token."""
    return plan.T


def cache_tokens(plan: Plan) -> Quantity:
    """Prompt and new tokens."""
    return plan.L
