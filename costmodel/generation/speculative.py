"""Speculation: a cheap draft proposes k tokens, one pass of the model verifies them all.

Source: arXiv:2211.17192, equation 1: with an acceptance rate a, independent from token to token, a
verification yields n = (1 − a^(k+1)) / (1 − a) tokens in expectation, the model's own next token included.
The context advances by n per pass; costs are linear in it (or nearly), so the passes stand at the expected
positions, which need not be whole. Rejected tokens are computed and thrown away: k + 1 positions per
pass whatever is accepted. The closed forms count the verifying model alone, the steps also the draft's
passes: k of one token per verification.

>>> round(tokens_per_verification(4, 0.8), 4), tokens_per_verification(4, 0), tokens_per_verification(4, 1)
(3.3616, 1, 5)
"""

from costmodel.algebra import Quantity, ceil_div, half, where
from costmodel.generation import Plan, Repeated
from costmodel.pairs import causal, triangle
from costmodel.step import Step

NAME = "speculative"
ALIASES = ("speculation", "mtp", "eagle")
TITLE = "Speculation"
SUMMARY = "k draft tokens verified by one pass of the model"
SOURCES = (
    "arXiv:2211.17192, equation 1",
    "arXiv:2302.01318",
    "arXiv:2412.19437, section 2.2 (multi-token prediction)",
    "arXiv:2401.15077 (one-layer draft)",
)
ORDER = "Θ(L) attention per token, Θ(L²) in total, (k + 1)/n times that of autoregression"
DENOISES = False
FP64_SAMPLING = False


def tokens_per_verification(k: Quantity, a: Quantity) -> Quantity:
    """Expected tokens that one verification yields: 1 + a + a² + … + aᵏ."""
    certain = a == 1
    n = where(certain, k + 1, (1 - a ** (k + 1)) / where(certain, 1, 1 - a))
    return int(n) if isinstance(n, float) and n.is_integer() else n


def verifications(plan: Plan) -> Quantity:
    """Passes that verify; the prompt's pass has already given the first token."""
    m = ceil_div(plan.T - 1, tokens_per_verification(plan.k, plan.a))
    return int(m) if isinstance(m, float) else m


def steps(plan: Plan) -> list[Repeated]:
    """Both models read the prompt; then k draft passes and one verification at each expected position."""
    m, n = verifications(plan), tokens_per_verification(plan.k, plan.a)
    prompt = Step(B=plan.B, S=plan.P0, P=0)
    run = [Repeated(prompt, prompt=True), Repeated(prompt, prompt=True, draft=True)]
    if m > 0:
        # The k draft tokens of a verification stand at their mean position: P0, P0 + 1, …, P0 + k − 1.
        drafting = Step(B=plan.B, S=1, P=plan.P0 + half(plan.k - 1), phase="decode")
        verifying = Step(B=plan.B, S=plan.k + 1, P=plan.P0, phase="decode")
        run.append(Repeated(drafting, count=plan.k, positions=m, advance=n, draft=True))
        run.append(Repeated(verifying, positions=m, advance=n))
    return run


def passes(plan: Plan) -> Quantity:
    """The prompt's and the verifications."""
    return 1 + verifications(plan)


def token_passes(plan: Plan) -> Quantity:
    """The prompt, and k + 1 positions per verification."""
    return plan.P0 + verifications(plan) * (plan.k + 1)


def pair_sum(plan: Plan) -> Quantity:
    """The sum of causal(P0 + i·n, k + 1) over the verifications i, and the prompt's."""
    m, n = verifications(plan), tokens_per_verification(plan.k, plan.a)
    cached = m * plan.P0 + n * half(m * (m - 1))
    return causal(0, plan.P0) + (plan.k + 1) * cached + m * triangle(plan.k + 1)


def decisions(plan: Plan) -> Quantity:
    """Every pass of the model commits at least one token."""
    return passes(plan)


def cache_tokens(plan: Plan) -> Quantity:
    """Prompt and new tokens."""
    return plan.L
