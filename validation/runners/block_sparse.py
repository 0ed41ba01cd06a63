"""Attention of every query to a few selected blocks of keys and, causally, to its own: MoBA, MSA and InfLLM-v2.

Each head selects for itself (MoBA), or the heads of a key head together (MSA, InfLLM-v2). Tensors are q [B, H, S, d],
k and v [B, Hkv, S, d], and for each selecting head and query the numbers of its earlier blocks, [B, selectors, S, n];
−1 where a query has fewer. The selection is drawn at random: its own cost is that of other operators.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.kernels.block_sparse import BLOCK_SPARSE, MSA_PREFILL, block_sparse
from costmodel.mixers import gqa, moba
from costmodel.step import Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    precision,
    shapes,
    torch_dtype,
)
from validation.runners._tails import ROWS, attended

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def selectors(mechanism: str, shape: Shape) -> int:
    """Heads that select for themselves."""
    return number(shape, "heads" if mechanism == "moba" else "kv_heads")


def kernels(mechanism: str, shape: Shape) -> list[Kernel]:
    """The kernel with a program per query."""
    B, S, H, Hkv, d, b, k = (
        number(shape, name) for name in ("batch", "new_tokens", "heads", "kv_heads", "head_dim", "block", "k")
    )
    dims, step = gqa.Dims(H=H, Hkv=Hkv, dk=d, dv=d), Step(B=B, S=S, P=number(shape, "context") - S)
    x = moba.selected(dims, step, precision(shape), b, k, selectors(mechanism, shape))
    return [block_sparse("attention", x, form=MSA_PREFILL if mechanism == "msa" else BLOCK_SPARSE)]


def inputs(mechanism: str, shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, keys and values; blocks drawn without repetition from those before the query's own."""
    import torch

    B, S, H, Hkv, d, b, k = (
        number(shape, name) for name in ("batch", "new_tokens", "heads", "kv_heads", "head_dim", "block", "k")
    )
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = {"q": (B, H, S, d), "k": (B, Hkv, S, d), "v": (B, Hkv, S, d)}
    drawn = {name: torch.randn(*size, device=device, generator=generator).to(dtype) for name, size in sizes.items()}
    blocks = -(-S // b)
    own = torch.arange(S, device=device) // b
    scores = torch.rand(B, selectors(mechanism, shape), S, blocks, device=device, generator=generator)
    scores = scores.masked_fill(torch.arange(blocks, device=device) >= own[:, None], -1.0)
    best = scores.topk(min(k - 1, blocks))
    return {**drawn, "blocks": best.indices.masked_fill(best.values < 0, -1)}


def reference(mechanism: str, shape: Shape, inputs: Inputs) -> Outputs:
    """Query by query, over the positions of its blocks."""
    import torch

    from validation.references import moba as plain

    b = number(shape, "block")
    rows = []
    for sequence in range(number(shape, "batch")):
        chosen = inputs["blocks"][sequence]

        def choice(selector: int, i: int, chosen: Any = chosen) -> Any:
            earlier = chosen[selector, i][chosen[selector, i] >= 0]
            return plain.tokens_of(torch.cat([earlier, torch.tensor([i // b])]), b, i + 1)

        q, k, v = (inputs[name][sequence] for name in "qkv")
        rows.append(plain.attend_chosen(q, k, v, len(chosen), choice))
    return (torch.stack(rows),)


def gathered(mechanism: str, shape: Shape, inputs: Inputs) -> Outputs:
    """The queries of a block at a time: their selected blocks are gathered, their own is shared and masked."""
    import torch

    q, k, v, chosen = (inputs[name] for name in ("q", "k", "v", "blocks"))
    B, H, S, d = q.shape
    Hkv, b, n = k.shape[1], number(shape, "block"), chosen.shape[-1]
    padded = -S % b
    keys, values = (torch.nn.functional.pad(x, (0, 0, 0, padded)).reshape(B, Hkv, -1, b, d) for x in (k, v))
    group, picks = H // Hkv, chosen.shape[1]
    key_head = torch.arange(picks, device=q.device) * Hkv // picks
    batch = torch.arange(B, device=q.device)
    out = []
    for first in range(0, S, b):
        last = min(first + b, S)
        rows = q[:, :, first:last]
        own = rows.reshape(B, Hkv, -1, d) @ k[:, :, first:last].mT
        own = own.reshape(B, H, last - first, -1).masked_fill(
            inputs["upper"][: last - first, : last - first], -torch.inf
        )
        some = min(n, first // b)
        scores, found = [own], None
        if some:
            take = chosen[:, :, first:last, :some].clamp(min=0)
            where = (batch[:, None, None, None], key_head[None, :, None, None], take)
            each = rows.reshape(B, picks, H // picks, last - first, d).transpose(2, 3)  # [B, picks, rows, heads, d]
            found = values[where].flatten(3, 4)
            earlier = each @ keys[where].flatten(3, 4).mT  # [B, picks, rows, heads, some · b]
            scores.append(earlier.transpose(2, 3).reshape(B, H, last - first, -1))
        share = torch.softmax(torch.cat(scores, -1).float() * d**-0.5, -1).to(q.dtype)
        width = last - first
        mixed = share[..., :width].reshape(B, Hkv, group * width, width) @ v[:, :, first:last]
        mixed = mixed.reshape(B, H, width, d)
        if found is not None:
            weights = share[..., width:].reshape(B, picks, H // picks, width, -1).transpose(2, 3)
            mixed = mixed + (weights @ found).transpose(2, 3).reshape(B, H, width, d)
        out.append(mixed)
    return (torch.cat(out, 2).transpose(1, 2).flatten(2),)


def last_queries(shape: Shape, inputs: Inputs, outputs: Outputs) -> tuple[Outputs, Outputs]:
    """The last queries of the last head in the last sequence over their blocks and, up to themselves, their own."""
    import torch

    S, b, d = (number(shape, name) for name in ("new_tokens", "block", "head_dim"))
    q, k, v, chosen = (inputs[name][-1, -1] for name in ("q", "k", "v", "blocks"))
    inside, rows = torch.arange(b, device=q.device), []
    for i in range(max(0, S - ROWS), S):
        earlier = chosen[i][chosen[i] >= 0][:, None] * b + inside
        at = torch.cat([earlier.flatten(), torch.arange(i // b * b, i + 1, device=q.device)])
        rows.append(attended(q[i : i + 1], k[at], v[at], [(0, len(at))]))
    return (outputs[0][-1, -ROWS:, -d:],), (torch.cat(rows),)


def own_mask(shape: Shape, inputs: Inputs) -> Inputs:
    """What lies above the diagonal of a block."""
    import torch

    b = number(shape, "block")
    return {"upper": torch.ones(b, b, dtype=torch.bool, device=inputs["q"].device).triu(1)}


def points(mechanism: str, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From as many blocks as are selected to many more: time must turn from quadratic to linear."""
    columns = "batch heads kv_heads context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64, "block": 64, "k": 3}
        fit = [(1, 4, 2, 256), (1, 4, 2, 1024), (1, 4, 2, 2048), (1, 2, 2, 512), (2, 4, 2, 512), (1, 2, 1, 1024)]
        held_out, sweep = [(1, 4, 2, 512), (1, 2, 2, 2048), (1, 4, 2, 1536)], [(1, 4, 2, 4096)]
        if mechanism == "infllm2":
            common = {**common, "block": 32, "k": 4}
            fit = [(1, 4, 1, 128), (1, 4, 1, 512), (1, 4, 1, 1024), (1, 4, 2, 256), (2, 4, 1, 256)]
            held_out = [(1, 4, 1, 256), (1, 4, 1, 768)]
    elif mechanism == "infllm2":
        common = {"dtype": "bf16", "head_dim": 128, "block": 64, "k": 96}  # 64, and the 32 of its window
        fit = [(1, 32, 2, 8192), (1, 32, 2, 16384), (1, 32, 2, 65536), (2, 32, 2, 8192), (1, 64, 4, 16384)]
        held_out, sweep = [(1, 32, 2, 131072), (1, 16, 1, 2**18)], [(1, 32, 2, 2**15)]
    else:
        common = {"dtype": "bf16", "head_dim": 128, "block": 128, "k": 16}
        fit = [(1, 32, 4, 2048), (1, 32, 4, 8192), (1, 32, 4, 32768), (1, 64, 4, 4096), (4, 32, 4, 4096)]
        held_out, sweep = [(1, 32, 4, 131072), (1, 16, 2, 2**18)], [(1, 32, 4, 4096), (1, 32, 4, 16384)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *((*row, row[3]) for row in rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Four blocks of 12 tokens and a ragged one."""
    return {**shape, "batch": 1, "block": 12, "k": 3, "context": 55, "new_tokens": 55}


RUNNERS = tuple(
    Runner(
        name=f"{mechanism}-prefill",
        family="msa-prefill" if mechanism == "msa" else "block-sparse",
        mechanism=mechanism,
        phase="prefill",
        kernels=partial(kernels, mechanism),
        inputs=partial(inputs, mechanism),
        reference=partial(reference, mechanism),
        implementations=(
            Implementation("torch-gather", ("cpu", "cuda"), partial(gathered, mechanism), prepare=own_mask),
        ),
        points=partial(points, mechanism),
        small=small,
        tail=last_queries,
    )
    for mechanism in ("moba", "msa", "infllm2")
)
