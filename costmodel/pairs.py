"""How many (query, key) pairs a mask admits: exact closed forms.

P tokens are cached, S new tokens are processed, a query sees its own position. Prefill (P = 0),
decode (S = 1), a speculative or diffusion block and the last chunk of a chunked prefill are the same
formula. Derivation: sums of arithmetic series; checked against brute force over positions in the tests.
"""

import math

from costmodel.algebra import Quantity, ceil_div, floor_div, half, maximum, minimum, named


def triangle(n: Quantity) -> Quantity:
    """1 + 2 + … + n.

    >>> triangle(4)
    10
    """
    return half(n * (n + 1))


def causal(P: Quantity, S: Quantity) -> Quantity:
    """Pairs of S new causal queries after P cached tokens.

    >>> causal(0, 4), causal(1023, 1)
    (10, 1024)
    """
    return S * P + half(S * (S + 1))


def bidirectional(P: Quantity, S: Quantity) -> Quantity:
    """Pairs when every query sees all P + S tokens.

    >>> bidirectional(4, 4)
    32
    """
    return S * (P + S)


def _capped(n: Quantity, w: Quantity) -> Quantity:
    """The sum of min(j, w) for j = 1 … n."""
    inside = minimum(n, w)
    return triangle(inside) + (n - inside) * w


def window(P: Quantity, S: Quantity, w: Quantity) -> Quantity:
    """Pairs when a query sees at most the last w tokens, its own included.

    >>> window(0, 6, 3), window(8191, 1, 1024)
    (15, 1024)
    """
    if type(S) is int and S == 1:
        # The same number; a lone query is explained as min(L, w), not as the difference of two sums.
        return minimum(P + 1, w)
    return _capped(P + S, w) - _capped(P, w)


def top_k(P: Quantity, S: Quantity, k: Quantity) -> Quantity:
    """Pairs when a query attends to at most k selected tokens: as many as a window of k.

    >>> top_k(0, 6, 3)
    15
    """
    return window(P, S, k)


def chunked(P: Quantity, S: Quantity, c: Quantity) -> Quantity:
    """Pairs when a query sees only its own chunk of c tokens, causally; chunks start at position 0.

    >>> chunked(0, 6, 4)
    13
    """

    def until(n: Quantity) -> Quantity:
        whole = floor_div(n, c)
        return whole * triangle(c) + triangle(n - whole * c)

    return until(P + S) - until(P)


def chunk_keys(P: Quantity, S: Quantity, c: Quantity) -> Quantity:
    """Keys from the start of the chunk that the first of the new tokens falls into.

    >>> chunk_keys(0, 6, 4), chunk_keys(10, 3, 4)
    (6, 5)
    """
    if type(P) is int and P == 0:
        return S
    # A lone query at that position sees its chunk up to itself; written so, the saw-tooth has its mean for large P.
    return named("chunk_keys", S - 1 + chunked(P, 1, c))


def _finished(n: Quantity, r: Quantity) -> Quantity:
    """The sum of ⌊j/r⌋ for j = 1 … n, for n ≥ −1."""
    q = floor_div(n, r)
    return half(r * q * (q - 1)) + q * (n - q * r + 1)


def compressed(P: Quantity, S: Quantity, r: Quantity) -> Quantity:
    """Pairs with finished blocks of r tokens, each compressed to one entry.

    >>> compressed(0, 8, 4), compressed(99, 1, 4)
    (6, 25)
    """
    if type(S) is int and S == 1:
        return floor_div(P + 1, r)
    return _finished(P + S, r) - _finished(P, r)


def capped_compressed(P: Quantity, S: Quantity, r: Quantity, k: Quantity) -> Quantity:
    """Pairs with at most k of the finished blocks of r tokens.

    >>> capped_compressed(0, 16, 4, 2)  # 0 0 0 1 1 1 1 2 2 2 …
    22
    """
    if type(S) is int and S == 1:
        return minimum(floor_div(P + 1, r), k)

    def until(n: Quantity) -> Quantity:
        inside = minimum(n, r * k)
        return _finished(inside, r) + (n - inside) * k

    return until(P + S) - until(P)


def pooled(P: Quantity, S: Quantity, width: Quantity, stride: Quantity) -> Quantity:
    """Pairs with entries pooled from `width` tokens every `stride` tokens; an entry is visible once complete.

    With width = stride these are the compressed blocks.

    >>> pooled(0, 8, 4, 2), pooled(65_535, 1, 32, 16)  # 0 0 0 1 1 2 2 3; 65,536/16 − 1
    (9, 4095)
    """
    if type(S) is int and S == 1:
        return floor_div(maximum(P + 1 - width, -stride), stride) + 1

    def until(n: Quantity) -> Quantity:
        since = maximum(n - width, -1)
        return _finished(since, stride) + since + 1

    return until(P + S) - until(P)


def earlier_blocks(P: Quantity, S: Quantity, b: Quantity, most: Quantity | None = None) -> Quantity:
    """Pairs of a query with the blocks of b tokens before its own, `most` of them if given.

    >>> earlier_blocks(0, 9, 4), earlier_blocks(0, 9, 4, most=1)  # 0 0 0 0 1 1 1 1 2
    (6, 5)
    """
    # The blocks before a token's own are those that were finished one token earlier.
    if type(S) is int and S == 1:
        before = floor_div(P, b)
        return before if most is None else minimum(before, most)
    first = maximum(P - 1, 0)
    new = P + S - 1 - first
    return compressed(first, new, b) if most is None else capped_compressed(first, new, b, most)


def blocks(P: Quantity, S: Quantity, b: Quantity, k: Quantity) -> Quantity:
    """Pairs when a query sees its own block of b tokens causally and k − 1 earlier blocks whole.

    The own block is half full on average: (k − ½)·b keys, not k·b.

    >>> blocks(0, 16, 4, 2) == (1 + 2 + 3 + 4) * 4 + 3 * 4 * 4
    True
    """
    return chunked(P, S, b) + b * earlier_blocks(P, S, b, k - 1)


def probed(P: Quantity, S: Quantity, probes: Quantity, lists: Quantity, k: Quantity | None = None) -> Quantity:
    """Expected pairs of a query with the keys of `probes` of `lists` equally filled lists, k of them at most if given.

    >>> probed(0, 8, 1, 4), probed(0, 8, 1, 4, k=1)  # 1/4 2/4 … 8/4
    (9.0, 6.5)
    """
    if k is None:
        return probes * causal(P, S) / lists
    if type(S) is int and S == 1:
        return minimum(probes * (P + 1) / lists, k)
    enough = floor_div(k * lists, probes)

    def until(n: Quantity) -> Quantity:
        inside = minimum(n, enough)
        return probes * triangle(inside) / lists + (n - inside) * k

    return until(P + S) - until(P)


def _seen_tiles(first: Quantity, M: Quantity, rows: int, columns: int) -> Quantity:
    """The sum of ⌈(first + m·rows)/columns⌉ for m = 1 … M, where gcd(rows, columns) divides `first`.

    Exact when, in units of that divisor, `rows` is a multiple of `columns` or one more than a multiple; otherwise
    the rounding counts by its mean over a period of the tiles, exact when `columns` divides M·rows.

    >>> _seen_tiles(0, 3, 128, 128), _seen_tiles(0, 4, 64, 128), _seen_tiles(0, 5, 128, 80)
    (6, 6, 26.0)
    """
    unit = math.gcd(rows, columns)
    n = columns // unit
    whole, extra = divmod(rows // unit, n)
    p = floor_div(first, unit)
    if extra == 0:
        return whole * triangle(M) + M * p

    def until(i: Quantity) -> Quantity:
        q = floor_div(i, n)
        return half(n * q * (q + 1)) + (i - q * n) * (q + 1)

    if extra == 1:
        return whole * triangle(M) + until(p + M) - until(p)
    return whole * triangle(M) + (M * p + extra * triangle(M) + half(M * (n - 1))) / n


def executed_causal(P: Quantity, S: Quantity, rows: int, columns: int) -> Quantity:
    """Pairs that a tiled causal kernel computes: tiles above the diagonal are skipped, tiles on it are whole.

    `rows` query rows and `columns` keys make a tile: rows·columns·⌈visible/columns⌉ over the ⌈S/rows⌉ query tiles,
    of which the last may be ragged. Rounding as in `_seen_tiles`.

    >>> executed_causal(0, 256, 128, 128) == 128 * 128 * (1 + 2)
    True
    """
    return rows * columns * _causal_tiles(P, S, rows, columns)


def _causal_tiles(P: Quantity, S: Quantity, rows: int, columns: int) -> Quantity:
    unit = math.gcd(rows, columns)
    M = ceil_div(S, rows)
    # A ragged last tile sees less than a whole one would.
    short = ceil_div(P + M * rows, columns) - ceil_div(P + S, columns)
    return _seen_tiles(unit * ceil_div(P, unit), M, rows, columns) - short


def executed_window(P: Quantity, S: Quantity, w: Quantity, rows: int, columns: int) -> Quantity:
    """Pairs that a tiled kernel computes for a window: every tile that touches the band, whole.

    The tiles of the causal kernel without those that lie wholly before the window of a tile's first query.

    >>> executed_window(8192, 128, 128, 128, 128) // 128
    256
    """
    unit = math.gcd(rows, columns)
    M = ceil_div(S, rows)
    # The first query tile whose window starts after token 0, and the tokens before that window.
    start = maximum(0, ceil_div(w - 1 - P, rows))
    before = P + start * rows - (w - 1)
    # ⌊x/columns⌋ = ⌈(x + 1)/columns⌉ − 1, in units that the tiles share.
    first = unit * floor_div(before, unit) + unit - columns - rows
    skipped = _seen_tiles(first, maximum(0, M - start), rows, columns)
    return rows * columns * (_causal_tiles(P, S, rows, columns) - skipped)


def executed_chunked(P: Quantity, S: Quantity, c: Quantity, rows: int, columns: int) -> Quantity:
    """Pairs that a tiled causal kernel computes when every chunk of c tokens is a sequence of its own.

    >>> executed_chunked(0, 512, 256, 128, 128) == 2 * executed_causal(0, 256, 128, 128)
    True
    """
    cached = P - c * floor_div(P, c)
    first = minimum(S, c - cached)
    whole = floor_div(S - first, c)
    last = S - first - whole * c
    return (
        executed_causal(cached, first, rows, columns)
        + whole * executed_causal(0, c, rows, columns)
        + executed_causal(0, last, rows, columns)
    )
