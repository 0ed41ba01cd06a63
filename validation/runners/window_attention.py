"""Causal attention in which a query sees its last `window` tokens."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.attention import attention
from costmodel.kernels.base import Kernel
from validation.runners import Implementation, Inputs, Outputs, Planned, Runner, Shape, number, planned, shapes
from validation.runners import _attention as shared
from validation.runners._tails import last_queries

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """The fused kernel, which skips what lies outside the window."""
    return [attention("attention", shared.attention_of(shape, w=number(shape, "window")))]


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Row by row."""
    S, L, w = (number(shape, name) for name in ("new_tokens", "context", "window"))
    last = [L - S + i + 1 for i in range(S)]
    return shared.attend(shape, inputs, [max(0, end - w) for end in last], last)


def window_keys(shape: Shape, i: int) -> tuple[int, int]:
    """First and one past the last key that query i sees."""
    end = number(shape, "context") - number(shape, "new_tokens") + i + 1
    return max(0, end - number(shape, "window")), end


def sliced(shape: Shape, inputs: Inputs) -> Outputs:
    """Slice by slice of as many queries as the window is wide, over the keys that any of them sees."""
    import torch

    q, k, v, w = inputs["q"], inputs["k"], inputs["v"], number(shape, "window")
    out = []
    for first in range(0, q.shape[2], w):
        end = min(first + w, q.shape[2])
        begin = max(0, first - w + 1)
        mask = inputs["band"][: end - first, w - 1 - (first - begin) : w - 1 + end - first]
        out.append(shared.sdpa(q[:, :, first:end], k[:, :, begin:end], v[:, :, begin:end], attn_mask=mask))
    return (torch.cat(out, 2),)


def band(shape: Shape, inputs: Inputs) -> Inputs:
    """The mask of one slice: row i sees the columns i … i + window − 1."""
    import torch

    w = number(shape, "window")
    ones = torch.ones(w, 2 * w - 1, dtype=torch.bool, device=inputs["q"].device)
    return {"band": ones.triu() & ones.tril(w - 1)}


def within(shape: Shape) -> shared.Mask:
    """The window, for FlexAttention."""
    w, past = number(shape, "window"), number(shape, "context") - number(shape, "new_tokens")

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q + past) & (k > q + past - w)

    return visible


def square(*rows: tuple[int, int, int, int, int]) -> list[tuple[int, ...]]:
    """Rows (batch, heads, kv_heads, context, window) of sequences that are new as a whole."""
    return [(*row[:4], row[3], row[4]) for row in rows]


COLUMNS = f"{shared.COLUMNS} window"


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Below the window as dense attention, beyond it linear."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64}
        fit = [(1, 4, 2, 256, 256), (1, 4, 2, 1024, 256), (1, 4, 2, 4096, 256), (1, 2, 2, 2048, 128)]
        fit += [(2, 4, 2, 512, 128), (1, 2, 1, 1024, 512), (4, 2, 2, 256, 64)]
        held_out = [(1, 4, 2, 2048, 256), (1, 2, 2, 4096, 512), (2, 2, 2, 1024, 128)]
        return planned(
            shapes(common, COLUMNS, *square(*fit)),
            shapes(common, COLUMNS, *square(*held_out)),
            shapes(common, COLUMNS, *square((1, 4, 2, 16384, 256))) if full else (),
        )
    common = {"dtype": "bf16", "head_dim": 128, "window": 4096}
    return planned(
        shapes(common, shared.COLUMNS, *[(1, 8, 2, n, n) for n in (1024, 8192, 32768)], (1, 32, 8, 8192, 8192)),
        shapes(common, shared.COLUMNS, *[(1, 8, 2, n, n) for n in (131072, 2**20)]),
        shapes(common, shared.COLUMNS, *[(1, 8, 2, 2**n, 2**n) for n in (12, 14, 16, 19)]) if full else (),
    )


def small(shape: Shape) -> Shape:
    """A window of at most 48 tokens in a short sequence."""
    return {**shared.small(shape), "window": min(number(shape, "window"), 48)}


RUNNER = Runner(
    name="window-attention",
    family="window-attention",
    mechanism="swa",
    phase="prefill",
    kernels=kernels,
    inputs=shared.inputs,
    reference=reference,
    implementations=(
        Implementation("torch.sdpa-sliced", ("cpu", "cuda"), sliced, supports=shared.whole_sequence, prepare=band),
        shared.flex_implementation(within),
    ),
    points=points,
    small=small,
    tail=partial(last_queries, window_keys),
)
