"""Fast-dLLM's dual cache: keys and values before and behind the block are reused within the block.

Source: arXiv:2505.22618, section 3.2; NVlabs/Fast-dLLM, llada/generate.py, generate_with_dual_cache.

Each block begins with a pass over all L positions, which denoises once and refreshes the cache; its other
s − 1 steps process the b tokens of the block alone against the L − b cached ones: b·L pairs. Quadratic in
the context once per block instead of once per step.

>>> plan = Plan(P0=4, T=4, b=2, s=3)
>>> passes(plan), token_passes(plan), pair_sum(plan)
(6, 24, 192)
"""

from costmodel.algebra import Quantity
from costmodel.generation import Plan, Repeated
from costmodel.generation.prefix_cache import blocks, cache_tokens, decisions, length, passes, refreshes
from costmodel.step import Step

NAME = "dual-cache"
ALIASES = ("fast-dllm", "fast-dllm-dual")
TITLE = "Diffusion, dual cache"
SUMMARY = "one full pass per block, then passes over the block alone"
SOURCES = ("arXiv:2505.22618, section 3.2 (Fast-dLLM)", "NVlabs/Fast-dLLM, llada/generate.py")
ORDER = "Θ(T/b·L² + K·b·L) attention in total"
DENOISES = True
FP64_SAMPLING = True

__all__ = ["cache_tokens", "decisions", "pair_sum", "passes", "steps", "token_passes"]


def steps(plan: Plan) -> list[Repeated]:
    """Refreshes, and the other steps of all blocks, which are alike."""
    run = [refreshes(plan)]
    if plan.s > 1:
        inside = Step(B=plan.B, S=plan.b, P=length(plan) - plan.b, bidirectional=True)
        run.append(Repeated(inside, count=blocks(plan) * (plan.s - 1)))
    return run


def token_passes(plan: Plan) -> Quantity:
    """n·L in the refreshes, b in every other step."""
    return blocks(plan) * (length(plan) + (plan.s - 1) * plan.b)


def pair_sum(plan: Plan) -> Quantity:
    """Every processed position sees all L."""
    return token_passes(plan) * length(plan)
