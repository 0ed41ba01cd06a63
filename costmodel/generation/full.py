"""Full-sequence denoising: every step is a bidirectional pass over prompt and answer, and nothing is cached.

LLaDA and Dream as published; SEDD and MDLM before them. Cutting the answer into blocks that are denoised
one after another (LLaDA's semi-autoregressive sampling) changes which tokens are committed, not the cost:
each step still processes all L = P0 + T positions. With steps in proportion to the answer the total is
cubic in its length.

>>> plan = Plan(P0=4, T=4, K=2)
>>> passes(plan), token_passes(plan), pair_sum(plan)
(2, 16, 128)
"""

from costmodel.algebra import Quantity
from costmodel.generation import Plan, Repeated
from costmodel.pairs import bidirectional
from costmodel.step import Step

NAME = "full"
ALIASES = ("llada", "dream", "full-sequence")
TITLE = "Full-sequence diffusion"
SUMMARY = "every denoising step passes over prompt and answer, no cache"
SOURCES = ("arXiv:2502.09992, section 2.4 (LLaDA)", "ML-GSAI/LLaDA, generate.py", "arXiv:2508.15487 (Dream)")
ORDER = "Θ(K·L²) attention in total: cubic in the new tokens when the steps K grow with them"
DENOISES = True
FP64_SAMPLING = True


def steps(plan: Plan) -> list[Repeated]:
    """K equal passes."""
    return [Repeated(Step(B=plan.B, S=plan.L, P=0, bidirectional=True), count=plan.K)]


def passes(plan: Plan) -> Quantity:
    """One per denoising step."""
    return plan.K


def token_passes(plan: Plan) -> Quantity:
    """All positions in every step."""
    return plan.K * plan.L


def pair_sum(plan: Plan) -> Quantity:
    """K·L²: every query sees everything, in every step."""
    return plan.K * bidirectional(0, plan.L)


def decisions(plan: Plan) -> Quantity:
    """Every step commits tokens."""
    return plan.K


def cache_tokens(plan: Plan) -> Quantity:
    """Nothing is kept from step to step."""
    return 0
