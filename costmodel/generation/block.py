"""Block diffusion with an exact cache: blocks are generated one after another, a finished one never changes.

Source: BD3-LM, arXiv:2503.09573, section 3; SDAR, arXiv:2510.06303, and JetAstra/SDAR, generate.py; LLaDA2.

A token sees its own block and all earlier ones, so finished blocks are cached as in autoregression. Blocks
stand at absolute positions 0, b, 2b, …: the whole blocks of the prompt are read in one pass, its ragged
tail is denoised along with the first generated block, and the last block is generated whole. A block takes
s denoising passes and a clean one, which writes the keys and values of the finished tokens. Every block is
given all s steps; an engine that stops when no mask is left saves some in ragged blocks.

merge_clean: the clean pass of a block rides with the first denoising pass of the next (2b positions), and
the last block needs none. The positions stay, their weight passes go.

>>> plan = Plan(P0=70, T=128, b=32, s=32)
>>> generated_blocks(plan), passes(plan), token_passes(plan), pair_sum(plan)
(5, 166, 5344, 847872)
"""

from costmodel.algebra import Quantity, ceil_div, floor_div, half, minimum
from costmodel.generation import Plan, Repeated
from costmodel.pairs import triangle
from costmodel.step import Step

NAME = "block"
ALIASES = ("block-diffusion", "bd3-lm", "sdar", "llada2")
TITLE = "Block diffusion"
SUMMARY = "blocks denoised in turn, exact cache of finished ones"
SOURCES = (
    "arXiv:2503.09573, section 3 (BD3-LM)",
    "arXiv:2510.06303 (SDAR)",
    "JetAstra/SDAR, generate.py, block_diffusion_generate",
)
ORDER = "Θ(L) attention per step, Θ(L²) in total, s + 1 times the work of autoregression per token"
DENOISES = True
FP64_SAMPLING = False


def prompt_blocks(plan: Plan) -> Quantity:
    """Whole blocks of the prompt."""
    return floor_div(plan.P0, plan.b)


def all_blocks(plan: Plan) -> Quantity:
    """Blocks that hold prompt and new tokens."""
    return ceil_div(plan.L, plan.b)


def generated_blocks(plan: Plan) -> Quantity:
    """Blocks that are denoised."""
    return all_blocks(plan) - prompt_blocks(plan)


def steps(plan: Plan) -> list[Repeated]:
    """The prompt's whole blocks in one pass, then the passes of each block.

    The mask of the prompt's pass is causal from block to block: b·(b − 1)/2 pairs more per block than in a
    causal pass. In a merged pass the clean block does not see the noisy one: b² pairs fewer.
    """
    b, s, p, count = plan.b, plan.s, prompt_blocks(plan), generated_blocks(plan)
    run = []
    if p > 0:
        run.append(Repeated(Step(B=plan.B, S=p * b, P=0), extra_pairs=p * half(b * (b - 1)), prompt=True))
    first = Step(B=plan.B, S=b, P=p * b, bidirectional=True)
    if not plan.merge_clean:
        return [*run, Repeated(first, count=s + 1, positions=count, advance=b)]
    run.append(Repeated(first))
    if count > 1:
        merged = Step(B=plan.B, S=2 * b, P=p * b, bidirectional=True)
        run.append(Repeated(merged, positions=count - 1, advance=b, extra_pairs=-b * b))
    if s > 1:
        run.append(Repeated(first, count=s - 1, positions=count, advance=b))
    return run


def passes(plan: Plan) -> Quantity:
    """One for the prompt's whole blocks, and s + 1 per block (s when the clean pass is merged)."""
    per_block = plan.s if plan.merge_clean else plan.s + 1
    return minimum(prompt_blocks(plan), 1) + per_block * generated_blocks(plan)


def token_passes(plan: Plan) -> Quantity:
    """b per block of the prompt, and b·(s + 1) per generated one; merged, the last has no clean pass."""
    p, n = prompt_blocks(plan), all_blocks(plan)
    clean = n - p - 1 if plan.merge_clean else n - p
    return plan.b * (p + plan.s * (n - p) + clean)


def pair_sum(plan: Plan) -> Quantity:
    """Block j = 1, 2, … sees j blocks: b²·j pairs in each of its passes."""
    p, n = prompt_blocks(plan), all_blocks(plan)
    generated = triangle(n) - triangle(p)
    clean = generated - n if plan.merge_clean else generated
    return plan.b * plan.b * (triangle(p) + plan.s * generated + clean)


def decisions(plan: Plan) -> Quantity:
    """Denoising passes: the clean ones commit nothing."""
    return plan.s * generated_blocks(plan)


def cache_tokens(plan: Plan) -> Quantity:
    """All blocks, whole."""
    return all_blocks(plan) * plan.b
