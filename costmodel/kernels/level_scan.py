"""Linear recurrences whose past is kept in several states, one per level of a Fenwick tree over chunks.

Chunks of C tokens are folded into states as a binary counter counts: after i chunks, level ℓ holds the 2^ℓ chunks that
bit ℓ of i stands for. A token reads the states of the bits that are set, half of the levels on average, each with a
weight of its own; inside its open chunk it meets the earlier tokens one by one. The last of the `levels` states takes
all that is older, so that one level is the recurrence itself.

Chunks start at multiples of C in the sequence, not in the call: a decoded token is a row of its chunk. Contexts that
are powers of two are the dearest in decode: all bits are set, and the token completes a chunk.

Source: arXiv:2506.04761, section 3; fla-org/flash-linear-attention, fla/ops/log_linear_attn/chunk.py.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, floor_div, half, maximum, minimum, named, nominal, third
from costmodel.kernels.chunk_scan import Scan, lower_tiles, substitution
from costmodel.pairs import chunked

LEVELS = 8
"""Levels where a formula is read without a number for them."""


def live_before(n: Quantity, levels: Quantity) -> Quantity:
    """States that chunks 0 … n − 1 read, summed: the set bits of i, those from the last level on counted once.

    With more levels than bits that is n/2·log₂n for a power of two.

    >>> [live_before(i + 1, 8) - live_before(i, 8) for i in (0, 1, 5, 7)], live_before(64, 8) == 64 // 2 * 6
    ([0, 1, 2, 3], True)
    """
    count = int(nominal(levels, LEVELS))
    total = maximum(n - 2 ** (count - 1), 0)
    for level in range(count - 1):
        block = 2**level
        whole = floor_div(n, 2 * block)
        total = total + block * whole + maximum(n - 2 * block * whole - block, 0)
    return total


def state_reads(P: Quantity, S: Quantity, C: Quantity, levels: Quantity) -> Quantity:
    """(token, state) pairs of S tokens after P.

    >>> state_reads(0, 64, 8, 8) == 8 * (0 + 1 + 1 + 2 + 1 + 2 + 2 + 3)
    True
    """

    def until(n: Quantity) -> Quantity:
        q = floor_div(n, C)
        here = live_before(q + 1, levels) - live_before(q, levels)
        return C * live_before(q, levels) + (n - C * q) * here

    return until(P + S) - until(P)


def triangular_products(n: Quantity, C: Quantity) -> Quantity:
    """Multiply-adds of the product of two lower triangular matrices in every chunk, diagonals included.

    >>> triangular_products(3, 4), triangular_products(4, 4)  # 1 + 3 + 6, + 10
    (10, 20)
    """

    def triples(rows: Quantity) -> Quantity:
        return third(half(rows * (rows + 1) * (rows + 2)))

    whole = floor_div(n, C)
    return whole * triples(C) + triples(n - whole * C)


class Levels(NamedTuple):
    """S tokens after P, in chunks of C, with `levels` states per head."""

    P: Quantity
    S: Quantity
    C: Quantity
    levels: Quantity

    @property
    def rows_in(self) -> Quantity:
        """Tokens of the first chunk that were there before."""
        return chunked(self.P, 1, self.C) - 1

    @property
    def rows_out(self) -> Quantity:
        """Tokens of the chunk that stays open."""
        return chunked(self.P + self.S, 1, self.C) - 1

    @property
    def states_in(self) -> Quantity:
        """States that hold something when the call begins."""
        return state_reads(self.P, 1, self.C, self.levels)

    @property
    def states_out(self) -> Quantity:
        """States that are written: those that hold something when the call ends, if it completed a chunk."""
        first, last = floor_div(self.P, self.C), floor_div(self.P + self.S, self.C)
        # After each completed chunk the states of the next; the sum is zero without one, else not below the last.
        after = live_before(last + 1, self.levels) - live_before(first + 1, self.levels)
        return minimum(after, state_reads(self.P + self.S, 1, self.C, self.levels))

    def sizes(self, scan: Scan) -> dict[str, Quantity]:
        """The axes of einsum expressions.

        pairs, strict: in-chunk pairs with and without a token's own; triples, full_triples: multiply-adds of the
        inverse and of a triangular product; reads: (token, state) pairs; folded, carried: tokens of completed chunks,
        and these times the states that were live; n, padded, square, lower, padded_reads, padded_carried: of whole
        chunks, as the kernels compute them.
        """
        P, S, C = self.P, self.S, self.C
        L = P + S
        first = floor_div(P, C)
        pairs, n = named("pairs", chunked(P, S, C)), named("chunks", ceil_div(self.rows_in + S, C))
        carried = C * (live_before(floor_div(L, C), self.levels) - live_before(first, self.levels))
        touched = C * (live_before(first + n, self.levels) - live_before(first, self.levels))
        return {
            "B": scan.B,
            "S": S,
            "dk": scan.dk,
            "dv": scan.dv,
            "C": C,
            "n": n,
            "pairs": pairs,
            "strict": pairs - S,
            "triples": named("triples", substitution(L, C) - substitution(P, C)),
            "full_triples": named("full_triples", triangular_products(L, C) - triangular_products(P, C)),
            "reads": named("state_reads", state_reads(P, S, C, self.levels)),
            "folded": named("folded", C * (floor_div(L, C) - first)),
            "carried": named("carried", carried),
            "padded": n * C,
            "square": n * C * C,
            "lower": n * lower_tiles(C),
            "padded_reads": named("padded_reads", touched),
        }
