"""Causal softmax attention of whole sequences, query heads sharing key heads in groups."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.kernels.attention import attention
from costmodel.kernels.base import Kernel
from validation.runners import Inputs, Outputs, Planned, Runner, Shape, number, planned, shapes
from validation.runners import _attention as shared
from validation.runners._tails import last_queries

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """The fused kernel."""
    return [attention("attention", shared.attention_of(shape))]


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Row by row, nothing above the diagonal computed."""
    S, L = number(shape, "new_tokens"), number(shape, "context")
    return shared.attend(shape, inputs, [0] * S, [L - S + i + 1 for i in range(S)])


def causal_keys(shape: Shape, i: int) -> tuple[int, int]:
    """First and one past the last key that query i sees."""
    return 0, number(shape, "context") - number(shape, "new_tokens") + i + 1


def square(*rows: tuple[int, int, int, int]) -> list[tuple[int, ...]]:
    """Rows (batch, heads, kv_heads, context) of sequences that are new as a whole."""
    return [(*row, row[3]) for row in rows]


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Short, long, few heads over many units, many sequences; judged up to lengths that no fit sees."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64}
        fit = [(1, 4, 4, 256), (1, 4, 2, 1024), (1, 4, 2, 2048), (1, 2, 2, 512), (4, 4, 2, 128), (2, 2, 1, 1024)]
        return planned(
            shapes(common, shared.COLUMNS, *square(*fit, (1, 8, 2, 64), (8, 4, 4, 64))),
            shapes(common, shared.COLUMNS, *square((1, 4, 2, 512), (1, 2, 2, 3072), (2, 4, 2, 768), (1, 4, 2, 4096))),
            shapes(common, shared.COLUMNS, *square((1, 4, 2, 8192))) if full else (),
        )
    common = {"dtype": "bf16", "head_dim": 128}
    fit = [(1, 32, 8, 128), (1, 32, 8, 1024), (1, 4, 1, 4096), (1, 32, 8, 4096), (8, 32, 8, 2048), (1, 32, 8, 32768)]
    # Tiles of 128 rows: 33 heads of 2048 tokens fill 132 units exactly four times, 34 a little more.
    waves = [(1, 33, 11, 2048), (1, 34, 17, 2048)]
    held_out = [(1, 8, 2, 16384), (4, 32, 8, 1024), (1, 8, 2, 131072), (1, 2, 1, 2**20)]
    sweep = [(1, 32, 8, 2**n) for n in (9, 11, 13, 14)] + [(1, 8, 2, 65536), (1, 4, 1, 2**18), (1, 2, 1, 2**19)]
    longest = [(1, 1, 1, 2**21), (1, 1, 1, 2**22)]
    narrow: Shape = {"dtype": "bf16", "head_dim": 64}
    return [
        *planned(
            shapes(common, shared.COLUMNS, *square(*fit, *waves)),
            shapes(common, shared.COLUMNS, *square(*held_out)),
            shapes(common, shared.COLUMNS, *square(*sweep, *longest)) if full else (),
        ),
        *planned((), (), shapes(narrow, shared.COLUMNS, *square((1, 32, 8, 4096), (8, 32, 8, 1024))) if full else ()),
    ]


RUNNER = Runner(
    name="prefill-attention",
    family="prefill-attention",
    mechanism="gqa",
    phase="prefill",
    kernels=kernels,
    inputs=shared.inputs,
    reference=reference,
    implementations=shared.implementations(shared.causal, shared.whole_sequence),
    points=points,
    small=shared.small,
    tail=partial(last_queries, causal_keys),
)
