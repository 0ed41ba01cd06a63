"""RWKV-6: RWKV-5 with a decay for every token and low-rank mixes; compared with its step-by-step recurrence."""

from costmodel.mixers.rwkv6 import MIXES, Dims
from costmodel.step import Step
from validation.references.plain import difference, linear, random
from validation.references.rwkv5 import chunked, heads, inputs, recurrent


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    inner = d.H * d.d
    for _ in range(step.B):
        x = random(step.S, D)
        linear(x, MIXES * d.rm)
        for _ in range(MIXES):
            linear(random(step.S, d.rm), D)
        for _ in range(4):
            linear(x, inner)
        linear(linear(x, d.rw), inner)
        linear(heads(d, step, streamed=True), D)


def compare(d: Dims) -> float:
    """Chunks, the last one ragged, against the recurrence; output and final state."""
    data = inputs(d, 2 * d.C + 3, streamed=True)
    plain, expected = chunked(data, d.C), recurrent(data)
    return max(difference(*pair) for pair in zip(plain, expected, strict=True))
