"""Native sparse attention without its window branch: pooled blocks are attended to and rated, the best are attended to.

Pooled and selected blocks have the same size, as in the public kernels. Tensors are q [B, H, S, d], k and v
[B, Hkv, S, d], and the gates of the two branches [B, S, 2, H]. Which blocks are always selected (the query's own, and
in fla the first and the one before) does not change how many are; outputs are compared where all are selected.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.kernels.block_sparse import block_sparse
from costmodel.kernels.elementwise import elementwise
from costmodel.mixers import nsa
from costmodel.mixers.moba import selected
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

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def dims(shape: Shape) -> nsa.Dims:
    """The mixer's dimensions."""
    H, Hkv, d, b, n = (number(shape, name) for name in ("heads", "kv_heads", "head_dim", "block", "k"))
    return nsa.Dims(H=H, Hkv=Hkv, dk=d, dv=d, l=b, ds=b, b=b, n=n, shared_kv=True)


def kernels(shape: Shape) -> list[Kernel]:
    """Pooling, both branches, the choice between them, and their gated sum."""
    S, d, formats = number(shape, "new_tokens"), dims(shape), precision(shape)
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S)
    outputs, gates, e = step.tokens * d.H * d.dv, step.tokens * 2 * d.H, formats.hidden_bytes
    return [
        block_sparse("selected attention", selected(d, step, formats, d.b, d.n, d.Hkv)),
        *nsa.compressed(d, step, formats),
        elementwise("gated sum", read=(2 * outputs + gates) * e, written=outputs * e, vector=3 * outputs),
    ]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, keys and values; gates between 0 and 1."""
    import torch

    B, S, H, Hkv, d = (number(shape, name) for name in ("batch", "new_tokens", "heads", "kv_heads", "head_dim"))
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = {"q": (B, H, S, d), "k": (B, Hkv, S, d), "v": (B, Hkv, S, d), "gates": (B, S, 2, H)}
    drawn = {name: torch.randn(*size, device=device, generator=generator) for name, size in sizes.items()}
    return {name: (torch.sigmoid(x) if name == "gates" else x).to(dtype) for name, x in drawn.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Row by row, as the mechanism's own reference, without the window."""
    import torch

    from validation.references import nsa as plain
    from validation.references.moba import attend_chosen

    d, rows = dims(shape), []
    for q, k, v, gates in zip(*(inputs[name] for name in ("q", "k", "v", "gates")), strict=True):
        low, chosen = plain.compress_and_select(q, plain.pooled(k, d.l, d.ds), plain.pooled(v, d.l, d.ds), d, 0)
        picked = attend_chosen(q, k, v, d.Hkv, lambda g, i, chosen=chosen: chosen[g][i])  # type: ignore[misc]
        branches = torch.stack([low, picked], 1).reshape(len(low), 2, d.H, -1)
        rows.append((branches * gates[..., None]).sum(1).flatten(1))
    return (torch.stack(rows),)


def dense_then_gathered(shape: Shape, inputs: Inputs) -> Outputs:
    """The pooled branch of all queries at once, then the chosen blocks of a block of queries at a time."""
    import torch

    q, k, v, gates = (inputs[name] for name in ("q", "k", "v", "gates"))
    (B, H, S, d), Hkv, b = q.shape, k.shape[1], number(shape, "block")
    whole, blocks = S // b, -(-S // b)
    grouped = q.reshape(B, Hkv, -1, S, d) * d**-0.5
    ck, cv = (x[:, :, : whole * b].reshape(B, Hkv, whole, b, d).mean(3) for x in (k, v))
    rows = torch.arange(S, device=q.device)[:, None]
    done = (torch.arange(whole, device=q.device) + 1) * b <= rows + 1
    scores = (grouped.flatten(2, 3) @ ck.mT).reshape(B, Hkv, -1, S, whole).masked_fill(~done, -torch.inf)
    share = torch.softmax(scores.float(), -1).nan_to_num(0.0).to(q.dtype)
    low = (share.flatten(2, 3) @ cv).reshape(B, H, S, d)
    rated = torch.nn.functional.pad(share.sum(2), (0, blocks - whole))  # [B, Hkv, S, blocks]
    number_of, own = torch.arange(blocks, device=q.device), rows // b
    rated = rated.masked_fill(number_of == own, torch.inf).masked_fill(number_of > own, -torch.inf)
    best = rated.topk(min(number(shape, "k"), blocks))
    keys, values = (torch.nn.functional.pad(x, (0, 0, 0, -S % b)).reshape(B, Hkv, -1, b, d) for x in (k, v))
    at = (torch.arange(B, device=q.device)[:, None, None, None], torch.arange(Hkv, device=q.device)[:, None, None])
    picked = []
    for first in range(0, S, b):
        part = slice(first, first + b)
        index, valid = best.indices[:, :, part], best.values[:, :, part] > -torch.inf
        position = (index[..., None] * b + torch.arange(b, device=q.device)).flatten(3)
        seen = (position <= rows[part]) & valid.repeat_interleave(b, -1)
        logits = grouped[:, :, :, part].transpose(2, 3) @ keys[*at, index].flatten(3, 4).mT
        logits = logits.masked_fill(~seen[:, :, :, None], -torch.inf).float()
        weights = torch.softmax(logits, -1).to(q.dtype)
        picked.append((weights @ values[*at, index].flatten(3, 4)).transpose(2, 3).reshape(B, H, -1, d))
    both = torch.stack([low, torch.cat(picked, 2)], 1).permute(0, 3, 1, 2, 4)  # [B, S, 2, H, d]
    return ((both * gates[..., None]).sum(2).flatten(2),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From as many blocks as are selected to many more; the pooled branch stays quadratic."""
    columns = "batch heads kv_heads context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64, "block": 32, "k": 4}
        fit = [(1, 4, 2, 256), (1, 4, 2, 1024), (1, 4, 2, 2048), (1, 2, 2, 512), (2, 4, 2, 512), (1, 2, 1, 1024)]
        held_out, sweep = [(1, 4, 2, 512), (1, 2, 2, 2048), (1, 4, 2, 1536)], [(1, 4, 2, 4096)]
    else:
        common = {"dtype": "bf16", "head_dim": 128, "block": 64, "k": 16}
        fit = [(1, 64, 4, 1024), (1, 64, 4, 4096), (1, 64, 4, 16384), (4, 64, 4, 2048)]
        held_out, sweep = [(1, 64, 4, 65536), (1, 16, 1, 2**19)], [(1, 64, 4, 2**n) for n in (11, 13, 15)]
        sweep += [(1, 16, 1, 2**18), (1, 16, 1, 2**20)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *((*row, row[3]) for row in rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Two whole blocks and a ragged one, all of which are selected; one group of heads."""
    tokens, group = 2 * number(shape, "block") + 7, number(shape, "heads") // number(shape, "kv_heads")
    return {**shape, "batch": 1, "heads": group, "kv_heads": 1, "context": tokens, "new_tokens": tokens}


RUNNER = Runner(
    name="nsa-prefill",
    family="block-sparse",
    mechanism="nsa",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-gather", ("cpu", "cuda"), dense_then_gathered),),
    points=points,
    small=small,
    counted=False,
)
