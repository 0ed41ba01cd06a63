"""Attention of whole sequences under masks made of blocks: inside chunks (Llama 4), and causal from block to block, as
a block-diffusion model reads its prompt.

A block-causal query sees all blocks before its own and all of its own. Blocks are no longer than a kernel's tile, so
that what runs are the tiles of causal attention.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.attention import DIFFUSION, attention
from costmodel.kernels.base import Kernel
from validation.runners import Implementation, Inputs, Outputs, Planned, Runner, Shape, number, planned, shapes
from validation.runners import _attention as shared
from validation.runners._tails import last_queries

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def chunked_kernels(shape: Shape) -> list[Kernel]:
    """The fused kernel, which skips what lies outside the chunk."""
    return [attention("attention", shared.attention_of(shape, c=number(shape, "block")))]


def block_causal_kernels(shape: Shape) -> list[Kernel]:
    """The tiles of causal attention, with the pairs of the blocks on the diagonal whole."""
    S, b = number(shape, "new_tokens"), number(shape, "block")
    pairs = sum(last_of(i, b, S) for i in range(0, S, b) for _ in range(min(b, S - i)))
    causal = attention("attention", shared.attention_of(shape), form=DIFFUSION)
    tensor = {dtype: flops * pairs / (S * (S + 1) / 2) for dtype, flops in causal.ideal.tensor.items()}
    return [causal._replace(ideal=causal.ideal._replace(tensor=tensor), instance=f"{causal.instance}-blocks")]


def last_of(i: int, b: int, S: int) -> int:
    """The first token after the block of token i."""
    return min((i // b + 1) * b, S)


def keys_of_chunk(shape: Shape, i: int) -> tuple[int, int]:
    """First and one past the last key that query i sees inside of its chunk."""
    return i // number(shape, "block") * number(shape, "block"), i + 1


def keys_up_to_block(shape: Shape, i: int) -> tuple[int, int]:
    """First and one past the last key that query i sees up to the end of its block."""
    return 0, last_of(i, number(shape, "block"), number(shape, "new_tokens"))


def chunked_reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Row by row: from the beginning of the chunk to the query itself."""
    S, c = number(shape, "new_tokens"), number(shape, "block")
    return shared.attend(shape, inputs, [i // c * c for i in range(S)], [i + 1 for i in range(S)])


def block_causal_reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Row by row: from the first token to the end of the query's block."""
    S, b = number(shape, "new_tokens"), number(shape, "block")
    return shared.attend(shape, inputs, [0] * S, [last_of(i, b, S) for i in range(S)])


def by_chunks(shape: Shape, inputs: Inputs) -> Outputs:
    """Whole chunks as a batch of sequences of their own, then what is left."""
    import torch

    q, k, v, c = inputs["q"], inputs["k"], inputs["v"], number(shape, "block")
    B, whole = q.shape[0], q.shape[2] // c * c
    parts = []
    if whole:
        apart = [x[:, :, :whole].unflatten(2, (-1, c)).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        parts.append(shared.sdpa(*apart, is_causal=True).unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3))
    if whole < q.shape[2]:
        parts.append(shared.sdpa(*(x[:, :, whole:] for x in (q, k, v)), is_causal=True))
    return (torch.cat(parts, 2),)


SLICE = 256
"""Queries of a slice, about: as many whole blocks as fit."""


def sliced(shape: Shape, inputs: Inputs) -> Outputs:
    """Slices of whole blocks against the keys up to their last block, what lies beyond a query's own block masked."""
    import torch

    q, k, v, b = inputs["q"], inputs["k"], inputs["v"], number(shape, "block")
    rows = max(1, SLICE // b) * b
    out = []
    for first in range(0, q.shape[2], rows):
        last = min(first + rows, q.shape[2])
        mask = inputs["visible"][first:last, :last]
        out.append(shared.sdpa(q[:, :, first:last], k[:, :, :last], v[:, :, :last], attn_mask=mask))
    return (torch.cat(out, 2),)


def blocks_mask(shape: Shape, inputs: Inputs) -> Inputs:
    """Which keys every query sees."""
    import torch

    block = torch.arange(number(shape, "context"), device=inputs["q"].device) // number(shape, "block")
    return {"visible": block <= block[:, None]}


def in_chunk(shape: Shape) -> shared.Mask:
    """The chunk, for FlexAttention."""
    c = number(shape, "block")

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (k // c == q // c)

    return visible


def up_to_block(shape: Shape) -> shared.Mask:
    """The blocks before and the query's own, for FlexAttention."""
    width = number(shape, "block")

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return k // width <= q // width

    return visible


COLUMNS = f"{shared.COLUMNS} block"


def points(chunks: bool, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Chunks of thousands of tokens, or blocks of tens: below and beyond their length."""

    def rows(*told: tuple[int, int, int, int, int]) -> list[tuple[int, ...]]:
        return [(*row[:4], row[3], row[4]) for row in told]

    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64}
        width = 256 if chunks else 32
        fit = [(1, 4, 2, n, width) for n in (256, 1024, 2048)] + [(2, 2, 2, 512, width), (1, 2, 1, 1024, width)]
        held_out, sweep = [(1, 4, 2, 512, width), (1, 2, 2, 1536, width)], [(1, 4, 2, 4096, width)]
    else:
        common = {"dtype": "bf16", "head_dim": 128}
        width = 8192 if chunks else 32
        fit = [(1, 8, 2, n, width) for n in (2048, 8192, 32768)] + [(1, 32, 8, 4096, width), (4, 8, 2, 2048, width)]
        held_out, sweep = [(1, 8, 2, 131072, width), (1, 2, 1, 2**18, width)], [(1, 8, 2, 16384, width)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, COLUMNS, *rows(*each)) for each in tables))


def small(shape: Shape) -> Shape:
    """Blocks of 20 tokens, the last one ragged."""
    return {**shared.small(shape), "block": 20}


RUNNERS = (
    Runner(
        name="chunked-attention",
        family="window-attention",
        mechanism="chunked",
        phase="prefill",
        kernels=chunked_kernels,
        inputs=shared.inputs,
        reference=chunked_reference,
        implementations=(
            Implementation("torch.sdpa-chunks", ("cpu", "cuda"), by_chunks),
            shared.flex_implementation(in_chunk),
        ),
        points=partial(points, True),
        small=small,
        tail=partial(last_queries, keys_of_chunk),
    ),
    Runner(
        name="block-causal-attention",
        family="diffusion-attention",
        mechanism="gqa",
        phase="diffusion",
        kernels=block_causal_kernels,
        inputs=shared.inputs,
        reference=block_causal_reference,
        implementations=(
            Implementation("torch.sdpa-sliced", ("cpu",), sliced, prepare=blocks_mask),
            shared.flex_implementation(up_to_block),
        ),
        points=partial(points, False),
        small=small,
        tail=partial(last_queries, keys_up_to_block),
    ),
)
