"""Errors that the command line turns into one message and an exit code (2: bad input, 1: impossible)."""

from collections.abc import Iterable


class BadInput(ValueError):
    """Input that cannot be understood; the message names the place, the value and what is allowed."""

    exit_code = 2


class Impossible(Exception):
    """A question that was understood and has no answer, such as a dtype without an engine."""

    exit_code = 1


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, else an empty text.

    >>> suggestion("peek", ["peak", "clock"])
    "; did you mean 'peak'?"
    >>> suggestion("zzz", ["peak"])
    ''
    """
    import difflib

    near = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.55)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not among the known ones.

    >>> print(unknown("phase", "prefil", ["prefill", "decode"]))
    unknown phase 'prefil'; did you mean 'prefill'? (known: decode, prefill)
    """
    names = sorted(known)
    listed = ", ".join(names[:40]) + (f", … {len(names) - 40} more" if len(names) > 40 else "")
    shown = word if len(word) <= 80 else word[:77] + "…"
    return BadInput(f"unknown {kind} {shown!r}{suggestion(word, names)} (known: {listed})")
