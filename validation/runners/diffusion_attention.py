"""Attention of a diffusion block: its tokens see each other in both directions, and all tokens before the block.

With the cache as the context that is bidirectional attention of few queries (one denoising step of block diffusion);
with the whole sequence as one block, a step of full diffusion.
"""

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
    """The fused kernel without a mask."""
    return [attention("attention", shared.attention_of(shape, bidirectional=True))]


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Every token of the block sees everything."""
    S = number(shape, "new_tokens")
    return shared.attend(shape, inputs, [0] * S, [number(shape, "context")] * S)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Blocks of 32 and of 256 tokens over growing caches, and whole sequences."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64}
        fit = [(1, 4, 2, 512, 32), (1, 4, 2, 4096, 32), (1, 4, 2, 1024, 256), (1, 2, 2, 4096, 256), (4, 4, 2, 256, 64)]
        held_out = [(1, 4, 2, 2048, 32), (1, 4, 2, 2048, 256), (1, 2, 2, 768, 768)]
        return planned(
            shapes(common, shared.COLUMNS, *fit, (1, 2, 2, 512, 512), (1, 4, 2, 1024, 1024)),
            shapes(common, shared.COLUMNS, *held_out),
            shapes(common, shared.COLUMNS, (1, 4, 2, 16384, 32)) if full else (),
        )
    common = {"dtype": "bf16", "head_dim": 128}
    longest = [(1, 32, 8, 2**20, 32), (1, 2, 1, 2**18, 2**18)] if full else []
    return planned(
        shapes(
            common,
            shared.COLUMNS,
            *[(1, 32, 8, n, 32) for n in (1024, 32768)],
            *[(1, 8, 2, n, n) for n in (2048, 8192, 32768)],
            (16, 32, 8, 4096, 32),
        ),
        shapes(
            common, shared.COLUMNS, (1, 32, 8, 131072, 32), (1, 32, 8, 8192, 256), (1, 2, 1, 131072, 131072), *longest
        ),
        shapes(common, shared.COLUMNS, *[(1, 8, 2, 2**n, 2**n) for n in (12, 14, 16)]) if full else (),
    )


RUNNER = Runner(
    name="diffusion-attention",
    family="diffusion-attention",
    mechanism="gqa",
    phase="diffusion",
    kernels=kernels,
    inputs=shared.inputs,
    reference=reference,
    implementations=shared.implementations(shared.bidirectional, shared.any_length),
    points=points,
    small=shared.small,
    tail=partial(last_queries, lambda shape, i: (0, number(shape, "context"))),
)
