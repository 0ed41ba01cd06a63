"""One step of a softmax whose scores arrive tile by tile (arXiv:1805.02867), used by every attention kernel here."""

import triton
import triton.language as tl


@triton.jit
def online_softmax(scores, highest, total):
    """Weights exp2(scores − m) of a tile [rows, keys], the factor for what was summed before, new m and sum.

    highest [rows] is the maximum m so far (−inf before the first visible key), total [rows] the sum of weights.
    Scores are in units of log 2; masked ones are −inf.
    """
    raised = tl.maximum(highest, tl.max(scores, 1))
    # A row that has seen no key yet would compute −inf − (−inf).
    base = tl.where(raised == float("-inf"), 0.0, raised)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(highest - base)
    return weights, shrink, raised, total * shrink + tl.sum(weights, 1)


@triton.jit
def normalised(summed, total):
    """Values divided by the sum of their weights; 0 for a row without a key."""
    return summed / tl.where(total == 0.0, 1.0, total)[:, None]
