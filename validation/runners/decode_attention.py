"""Softmax attention of one new token per sequence over its cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.kernels.decode_attention import decode_attention
from validation.runners import Implementation, Inputs, Outputs, Planned, Runner, Shape, number, planned, shapes
from validation.runners import _attention as shared
from validation.runners._tails import single_queries

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """The kernel that splits the keys."""
    return [decode_attention("attention", shared.attention_of(shape))]


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """The last token sees the whole cache."""
    return shared.attend(shape, inputs, [0], [number(shape, "context")])


def packed(shape: Shape, inputs: Inputs) -> Outputs:
    """The query heads of a key head as rows of one product, so that the cache is read once."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    out = shared.sdpa(q.reshape(k.shape[0], k.shape[1], -1, q.shape[-1]), k, v)
    return (out.reshape(*q.shape[:3], -1),)


def everything(shape: Shape) -> shared.Mask:
    """No mask: FlexAttention splits the keys of few queries by itself."""

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return k >= 0

    return visible


def one_token(*rows: tuple[int, int, int, int]) -> list[tuple[int, ...]]:
    """Rows (batch, heads, kv_heads, context) of one new token each."""
    return [(*row, 1) for row in rows]


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From a cache that no split needs to one that fills the memory's bandwidth; few and many sequences."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64}
        fit = [(1, 4, 2, 256), (1, 4, 2, 4096), (1, 4, 2, 65536), (4, 4, 2, 1024), (16, 4, 2, 512), (16, 4, 2, 4096)]
        held_out = [(1, 4, 2, 1024), (1, 4, 2, 8192), (8, 4, 2, 2048), (4, 4, 2, 8192)]
        return planned(
            shapes(common, shared.COLUMNS, *one_token(*fit, (4, 4, 2, 16384), (32, 2, 1, 128))),
            shapes(common, shared.COLUMNS, *one_token(*held_out, (1, 4, 2, 32768))),
            shapes(common, shared.COLUMNS, *one_token((1, 2, 2, 262144))) if full else (),
        )
    common = {"dtype": "bf16", "head_dim": 128}
    fit = [(1, 32, 8, 64), (1, 32, 8, 8192), (1, 32, 8, 131072), (16, 32, 8, 2048), (64, 32, 8, 8192)]
    fit += [(256, 32, 8, 128), (64, 8, 1, 8192)]
    held_out = [(8, 32, 8, 4096), (1, 8, 1, 2**20), (1, 32, 8, 2**20), (128, 32, 8, 1024), (32, 32, 32, 4096)]
    sweep = [(1, 32, 8, 2**n) for n in (9, 11, 15, 18, 19, 21, 22, 23, 24)]
    sweep += [(4, 32, 8, 16384), (32, 32, 8, 16384), (128, 32, 8, 16384)]
    return planned(
        shapes(common, shared.COLUMNS, *one_token(*fit)),
        shapes(common, shared.COLUMNS, *one_token(*held_out, (64, 32, 1, 16384))),
        shapes(common, shared.COLUMNS, *one_token(*sweep)) if full else (),
    )


RUNNER = Runner(
    name="decode-attention",
    family="decode-attention",
    mechanism="gqa",
    phase="decode",
    kernels=kernels,
    inputs=shared.inputs,
    reference=reference,
    implementations=(
        Implementation("torch.sdpa-packed", ("cpu", "cuda"), packed),
        *shared.backends(shared.bidirectional, shared.any_length),
        shared.flex_implementation(everything),
    ),
    points=points,
    small=shared.small,
    tail=single_queries,
)
