"""Attention over keys and values that are given, row by row; compared with dense attention under a mask."""

from costmodel.mixers import gqa as softmax
from costmodel.mixers.shared_kv import Dims
from costmodel.step import Step
from validation.references import gqa
from validation.references.plain import linear, random


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data; keys and values cost nothing."""
    for _ in range(step.B):
        linear(random(step.S, D), d.H * d.dk)
        q, k, v = random(d.H, step.S, d.dk), random(d.Hkv, step.L, d.dk), random(d.Hkv, step.L, d.dv)
        first, last = gqa.visible(step.S, step.P, d.w, step.bidirectional or not d.causal)
        linear(gqa.attend(q, k, v, first, last), D)


def compare(d: Dims) -> float:
    """As softmax attention."""
    return gqa.compare(softmax.Dims(H=d.H, Hkv=d.Hkv, dk=d.dk, dv=d.dv), w=d.w)
