"""Sliding-window attention, row by row; compared with dense attention under a band mask."""

from costmodel.mixers.swa import Dims
from costmodel.step import Step
from validation.references import gqa


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    gqa.counted(d, D, step, w=d.w)


def compare(d: Dims) -> float:
    """Against dense attention with a band mask."""
    return gqa.compare(d, w=d.w)
