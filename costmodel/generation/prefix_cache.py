"""Fast-dLLM's prefix cache: keys and values of what stands before the block are reused within the block.

Source: arXiv:2505.22618, section 3.2; NVlabs/Fast-dLLM, llada/generate.py, generate_with_prefix_cache.

Each block begins with a pass over all L positions, which denoises once and refreshes the cache. Its other
s − 1 steps process the x positions from the block's start to the end (the masked tokens behind the block
change with it) against the cached ones before it: x·L pairs. The cache is approximate: a cached key was
computed from tokens that have changed since. The answer is made of whole blocks.

>>> plan = Plan(P0=4, T=4, b=2, s=3)
>>> passes(plan), token_passes(plan), pair_sum(plan)
(6, 28, 224)
"""

from costmodel.algebra import Quantity, ceil_div
from costmodel.generation import Plan, Repeated
from costmodel.pairs import triangle
from costmodel.step import Step

NAME = "prefix-cache"
ALIASES = ("fast-dllm-prefix",)
TITLE = "Diffusion, prefix cache"
SUMMARY = "one full pass per block, then passes from the block to the end"
SOURCES = ("arXiv:2505.22618, section 3.2 (Fast-dLLM)", "NVlabs/Fast-dLLM, llada/generate.py")
ORDER = "Θ(T/b·L² + K·T·L) attention in total"
DENOISES = True
FP64_SAMPLING = True


def blocks(plan: Plan) -> Quantity:
    """Blocks of the answer."""
    return ceil_div(plan.T, plan.b)


def length(plan: Plan) -> Quantity:
    """Prompt and whole blocks."""
    return plan.P0 + blocks(plan) * plan.b


def refreshes(plan: Plan) -> Repeated:
    """The first pass of every block."""
    return Repeated(Step(B=plan.B, S=length(plan), P=0, bidirectional=True), count=blocks(plan))


def steps(plan: Plan) -> list[Repeated]:
    """Refreshes, and the other steps of each block, which have b fewer positions from block to block."""
    run = [refreshes(plan)]
    if plan.s > 1:
        first = Step(B=plan.B, S=blocks(plan) * plan.b, P=plan.P0, bidirectional=True)
        run.append(Repeated(first, count=plan.s - 1, positions=blocks(plan), advance=plan.b, shrink=plan.b))
    return run


def passes(plan: Plan) -> Quantity:
    """One per denoising step."""
    return blocks(plan) * plan.s


def _recomputed(plan: Plan) -> Quantity:
    """Positions from the block's start to the end, summed over the blocks: b·(1 + 2 + … + n)."""
    return plan.b * triangle(blocks(plan))


def token_passes(plan: Plan) -> Quantity:
    """n·L in the refreshes, x in every other step."""
    return blocks(plan) * length(plan) + (plan.s - 1) * _recomputed(plan)


def pair_sum(plan: Plan) -> Quantity:
    """Every processed position sees all L."""
    return token_passes(plan) * length(plan)


def decisions(plan: Plan) -> Quantity:
    """Every pass commits tokens."""
    return passes(plan)


def cache_tokens(plan: Plan) -> Quantity:
    """A refresh writes all positions."""
    return length(plan)
