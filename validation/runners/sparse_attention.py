"""Absorbed latent attention of every query to the rows that were selected for it.

Tensors are q [B, S, H, c + r], the latents [B, L, c + r] and indices [B, S, k] of rows before the query. With `ragged`
among the inputs, as inside of a whole model, −1 fills up the indices of a query that sees fewer rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.sparse_attention import SparseAttention
from costmodel.kernels.sparse_attention import sparse_attention as kernel
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    shapes,
    torch_dtype,
)
from validation.runners._tails import ROWS, attended

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

GATHERED = 2**26
"""Elements that are gathered at a time."""


def kernels(shape: Shape) -> list[Kernel]:
    """The gathering kernel; every query has as many rows to choose from as it takes."""
    B, S, L, H, c, r, k = (
        number(shape, name) for name in ("batch", "new_tokens", "context", "heads", "latent", "rope", "k")
    )
    dtype = str(shape["dtype"])
    x = SparseAttention(B, S, H, c + r, c, S * k, k, L, (c + r) * element_bytes(dtype), dtype)
    return [kernel("sparse attention", x)]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries and latents; every query's rows are drawn without repetition from all but the new tokens."""
    import torch

    B, S, L, H = (number(shape, name) for name in ("batch", "new_tokens", "context", "heads"))
    width, dtype = number(shape, "latent") + number(shape, "rope"), torch_dtype(str(shape["dtype"]))
    sizes = {"q": (B, S, H, width), "latents": (B, L, width)}
    drawn = {name: torch.randn(*size, device=device, generator=generator).to(dtype) for name, size in sizes.items()}
    k, past = number(shape, "k"), L - S
    # A random start and a random odd stride visit different rows: cheaper than a permutation per query.
    start = torch.randint(past, (B, S, 1), device=device, generator=generator)
    rows = (start + torch.arange(k, device=device) * (past // k)) % past
    return {**drawn, "indices": rows[..., torch.randperm(k, device=device, generator=generator)]}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Query by query."""
    import torch

    from validation.references import dsa

    c = number(shape, "latent")
    rows = [
        dsa.attend_selected(q.transpose(0, 1), latents, c, [each[each >= 0] for each in indices])
        for q, latents, indices in zip(inputs["q"], inputs["latents"], inputs["indices"], strict=True)
    ]
    return (torch.stack(rows),)


def gathered(shape: Shape, inputs: Inputs) -> Outputs:
    """Slices of queries: gather, product, softmax, product."""
    import torch

    q, latents, indices = inputs["q"], inputs["latents"], inputs["indices"]
    B, S, _, width = q.shape
    k, c = indices.shape[-1], number(shape, "latent")
    step = max(1, GATHERED // (k * width))
    out = []
    for b in range(B):
        for first in range(0, S, step):
            part = slice(first, first + step)
            chosen = indices[b, part]
            taken = chosen.clamp(min=0) if inputs.get("ragged") else chosen
            rows = latents[b].index_select(0, taken.reshape(-1)).reshape(-1, k, width)
            scores = q[b, part] @ rows.mT * width**-0.5
            if inputs.get("ragged"):
                scores = scores.masked_fill((chosen < 0)[:, None], -torch.inf)
            share = torch.softmax(scores.float(), -1).to(q.dtype)
            out.append((share @ rows[..., :c]).flatten(1))
    return (torch.cat(out).reshape(B, S, -1),)


def last_queries(shape: Shape, inputs: Inputs, outputs: Outputs) -> tuple[Outputs, Outputs]:
    """The last queries of the last sequence over the rows that were selected for them."""
    import torch

    k, c, H = (number(shape, name) for name in ("k", "latent", "heads"))
    q, indices, latents = inputs["q"][-1, -ROWS:], inputs["indices"][-1, -ROWS:], inputs["latents"][-1]
    rows = [
        attended(each, latents[chosen], latents[chosen, :c], [(0, k)] * H)
        for each, chosen in zip(q, indices, strict=True)
    ]
    return (outputs[0][-1, -ROWS:],), (torch.stack(rows).flatten(1),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Time must follow the queries, not the context."""
    columns = "batch new_tokens context heads"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "latent": 128, "rope": 32, "k": 128}
        fit = [(1, 16, 1024, 8), (1, 128, 1024, 8), (1, 256, 4096, 8), (1, 64, 4096, 16), (2, 64, 2048, 8)]
        held_out, sweep = [(1, 128, 4096, 8), (1, 192, 2048, 8), (1, 64, 8192, 8)], [(1, 512, 8192, 8)]
        fit += [(1, 32, 8192, 16)]
    else:
        common = {"dtype": "bf16", "latent": 512, "rope": 64, "k": 2048}
        fit = [(1, 64, 4096, 128), (1, 1024, 8192, 128), (1, 4096, 32768, 128), (1, 64, 131072, 128)]
        fit += [(1, 1024, 32768, 16)]
        held_out = [(1, 4096, 131072, 128), (1, 4096, 2**20, 128)]
        sweep = [(1, 256, 8192, 128), (1, 16384, 65536, 128)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few queries."""
    k = min(number(shape, "k"), 64)
    return {**shape, "batch": 1, "new_tokens": 6, "k": k, "context": 3 * k + 6}


RUNNER = Runner(
    name="sparse-attention",
    family="sparse-attention",
    mechanism="dsa",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-gather", ("cpu", "cuda"), gathered),),
    points=points,
    small=small,
    tail=last_queries,
)
