"""Causal latent attention with expanded heads: keys wider than values by what carries the position."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.kernels.mla_prefill import mla_prefill
from validation.runners import Implementation, Inputs, Outputs, Planned, Runner, Shape, planned, shapes
from validation.runners import _attention as shared
from validation.runners._tails import last_queries
from validation.runners.prefill_attention import causal_keys, reference

if TYPE_CHECKING:
    from validation.device import DeviceFacts

COLUMNS = f"{shared.COLUMNS} head_dim v_head_dim"


def kernels(shape: Shape) -> list[Kernel]:
    """The fused kernel."""
    return [mla_prefill("attention", shared.attention_of(shape))]


def filled(shape: Shape, inputs: Inputs) -> Outputs:
    """Values filled with zeros up to the width of the keys, and the output cut again.

    On a CPU torch's fused kernel has one width for both; without it every score of the square is written and read back
    several times. Source: vllm-project/vllm, vllm/v1/attention/backends/mla/common.py (`_pad_v`), for the same reason.
    """
    import torch

    q, v = inputs["q"], inputs["v"]
    wide = torch.nn.functional.pad(v, (0, q.shape[-1] - v.shape[-1]))
    return (shared.sdpa(q, inputs["k"], wide, is_causal=True)[..., : v.shape[-1]],)


def expanded(key: int, value: int, *rows: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Rows (batch, heads, tokens), every head with keys and values of its own."""
    return [(batch, heads, heads, tokens, tokens, key, value) for batch, heads, tokens in rows]


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """DeepSeek's widths 192 and 128 on a GPU, 96 and 64 on a CPU."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32"}
        fit = [(1, 4, 256), (1, 4, 1024), (1, 2, 2048), (2, 4, 512), (4, 2, 128), (1, 2, 768)]
        held_out, sweep = [(1, 4, 512), (1, 2, 1536), (1, 4, 2048)], [(1, 2, 4096)]
        key, value = 96, 64
    else:
        common = {"dtype": "bf16"}
        fit = [(1, 128, 128), (1, 16, 4096), (1, 128, 4096), (1, 16, 32768), (8, 16, 1024), (1, 128, 1024)]
        held_out = [(1, 128, 16384), (1, 2, 2**19)]
        sweep = [(1, 16, 1024), (1, 16, 65536), (1, 4, 2**18), (1, 1, 2**20)]
        key, value = 192, 128
    tables = (fit, held_out, sweep if full else [])
    return planned(*(shapes(common, COLUMNS, *expanded(key, value, *rows)) for rows in tables))


RUNNER = Runner(
    name="mla-prefill",
    family="mla-prefill",
    mechanism="mla",
    phase="prefill",
    kernels=kernels,
    inputs=shared.inputs,
    reference=reference,
    implementations=(
        Implementation("torch.sdpa-filled", ("cpu",), filled, supports=shared.whole_sequence),
        *shared.backends(shared.causal, shared.whole_sequence),
    ),
    points=points,
    small=shared.small,
    tail=partial(last_queries, causal_keys),
)
