"""Index scores of every visible token, for token selection: Σ_h w[h] · ReLU(q[h] · k).

Tensors are q [B, S, H, d], k [B, L, d] and w [B, S, H]; logits [B, S, L] in fp32, 0 where a token is not visible.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.kernels.indexer import Indexer
from costmodel.kernels.indexer import indexer as kernel
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    has_fp8,
    number,
    planned,
    shapes,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

TOP = 2048
"""Tokens that are selected afterwards; the scores do not depend on it."""
SCORES = {"cuda": 2**28, "cpu": 2**17}
"""Scores of all heads that are in memory at a time: on a processor, in its cache."""


def kernels(shape: Shape) -> list[Kernel]:
    """The logits kernel of many queries."""
    B, S, L, H, d = (number(shape, name) for name in ("batch", "new_tokens", "context", "heads", "head_dim"))
    return [kernel("indexer", Indexer(B, S, L - S, H, d, TOP, dtype=str(shape["dtype"])))]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, keys and head weights."""
    import torch

    B, S, L, H, d = (number(shape, name) for name in ("batch", "new_tokens", "context", "heads", "head_dim"))
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = {"q": (B, S, H, d), "k": (B, L, d), "w": (B, S, H)}
    drawn = {name: torch.randn(*size, device=device, generator=generator) for name, size in sizes.items()}
    return {name: x if name == "w" else x.to(dtype) for name, x in drawn.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Query by query."""
    import torch

    from validation.references import dsa

    S, L = number(shape, "new_tokens"), number(shape, "context")
    out = torch.zeros(number(shape, "batch"), S, L, dtype=inputs["q"].dtype)
    for b in range(len(out)):
        for i in range(S):
            end = L - S + i + 1
            out[b, i, :end] = dsa.score(inputs["q"][b, i], inputs["k"][b, :end, None], inputs["w"][b, i])
    return (out,)


def sliced(shape: Shape, inputs: Inputs) -> Outputs:
    """Slices of queries against the keys that the last of them sees."""
    import torch

    q, k, w = inputs["q"], inputs["k"], inputs["w"]
    B, S, H, d = q.shape
    L = k.shape[1]
    out = torch.zeros(B, S, L, dtype=torch.float32, device=q.device)
    step = max(1, SCORES["cpu" if q.device.type == "cpu" else "cuda"] // (B * H * L))
    for first in range(0, S, step):
        last = min(first + step, S)
        end = L - S + last
        products = q[:, first:last].reshape(B, -1, d) @ k[:, :end].mT
        scores = torch.relu(products).reshape(B, last - first, H, end)
        out[:, first:last, :end] = (w[:, first:last, None].to(scores.dtype) @ scores)[:, :, 0]
    return (out.tril(L - S),)


def last_query(shape: Shape, inputs: Inputs, outputs: Outputs) -> tuple[Outputs, Outputs]:
    """The logits of the last query, which sees all keys."""
    import torch

    q, k, w = (inputs[name][-1].float() for name in "qkw")
    return (outputs[0][-1, -1],), (w[-1] @ torch.relu(q[-1] @ k.T),)


def sixteen_bits_or_more(shape: Shape, facts: "DeviceFacts") -> str:
    """torch.bmm takes no 8-bit operands."""
    return "torch.bmm takes no 8-bit operands" if shape["dtype"] == "fp8" else ""


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Chunks of a prefill from nothing cached to far more cached than new."""
    columns = "batch new_tokens context"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "heads": 4, "head_dim": 64}
        fit = [(1, 256, 256), (1, 256, 1024), (1, 1024, 1024), (1, 256, 4096), (1, 16, 4096), (2, 512, 512)]
        held_out, sweep = [(1, 512, 2048), (1, 1024, 3072), (1, 64, 2048)], [(1, 2048, 4096)]
    else:
        common = {"dtype": "bf16", "heads": 64, "head_dim": 128}
        fit = [(1, 64, 1024), (1, 1024, 8192), (1, 4096, 32768), (1, 64, 131072), (1, 2048, 2048)]
        held_out, sweep = [(1, 2048, 131072), (1, 2048, 2**20)], [(1, 64, 2**20), (1, 8192, 8192), (1, 512, 2**20)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    dtypes = [str(common["dtype"])]
    if facts.kind == "cuda" and has_fp8(facts):
        dtypes.append("fp8")  # what serving runs
    return [
        point
        for dtype in dtypes
        for point in planned(*(shapes({**common, "dtype": dtype}, columns, *rows) for rows in tables))
    ]


def small(shape: Shape) -> Shape:
    """Few queries after some cached tokens, if there are any."""
    S, L = number(shape, "new_tokens"), number(shape, "context")
    tokens = min(S, 40)
    return {**shape, "new_tokens": tokens, "context": tokens if L == S else min(L, 100)}


RUNNER = Runner(
    name="indexer",
    family="indexer",
    mechanism="dsa",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-sliced", ("cpu", "cuda"), sliced, supports=sixteen_bits_or_more),),
    points=points,
    small=small,
    tail=last_query,
)
