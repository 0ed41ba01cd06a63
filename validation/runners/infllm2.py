"""How InfLLM-v2 rates blocks: attention to pooled keys, summed over the heads of a key head.

Keys are pooled at two levels; the coarse one gives the normaliser of the probabilities at the fine one, and a block
gets the largest of the pooled keys that touch it. Tensors are q [B, H, S, d] and k [B, Hkv, S, d], ratings
[B, Hkv, S, ⌈S/b⌉] in fp32, 0 where a block is not seen. Attention to the blocks that are chosen is another operator.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.mixers import infllm2
from costmodel.step import Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    normal,
    number,
    planned,
    precision,
    shapes,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

QUERIES = {"cpu": 64, "cuda": 1024}
"""Queries that are rated at a time: on a processor, their scores stay in its cache."""
SELECTION = "top-k"
"""The kernel of the first stage that is left to an operator of its own."""


def dims(shape: Shape) -> infllm2.Dims:
    """The mixer's dimensions; the pooled keys are as wide as two of their strides, as published."""
    H, Hkv, d, b, r = (number(shape, name) for name in ("heads", "kv_heads", "head_dim", "block", "stride"))
    return infllm2.Dims(H=H, Hkv=Hkv, dk=d, dv=d, l=2 * r, r=r, b=b, dense_len=0)


def kernels(shape: Shape) -> list[Kernel]:
    """The scores, and their normaliser, the pooling of both levels and the maxima of blocks."""
    S = number(shape, "new_tokens")
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S)
    stage = infllm2.stage_1(dims(shape), step, precision(shape))
    rating = [kernel for kernel in stage if kernel.name != SELECTION]
    return sorted(rating, key=lambda kernel: kernel.name != "block scores")


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries and keys."""
    B, S, H, Hkv, d = (number(shape, name) for name in ("batch", "new_tokens", "heads", "kv_heads", "head_dim"))
    sizes, dtype = {"q": (B, H, S, d), "k": (B, Hkv, S, d)}, torch_dtype(str(shape["dtype"]))
    return {name: normal(size, dtype, device, generator) for name, size in sizes.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Query by query and block by block, as the mechanism's own reference."""
    import torch

    from validation.references.infllm2 import rate
    from validation.references.nsa import pooled

    d, S = dims(shape), number(shape, "new_tokens")
    out = torch.zeros(number(shape, "batch"), d.Hkv, S, -(-S // d.b), dtype=inputs["q"].dtype)
    for b, (q, k) in enumerate(zip(inputs["q"], inputs["k"], strict=True)):
        fine, coarse = (pooled(k, times * d.l, times * d.r) for times in (1, infllm2.COARSER))
        for g, heads in enumerate(q.chunk(d.Hkv)):
            for i in range(S):
                found = rate(heads[:, i], fine, coarse, d, g, i + 1)
                out[b, g, i, : len(found)] = found
    return (out,)


def level(k: "torch.Tensor", width: int, stride: int) -> "torch.Tensor":
    """Means over `width` tokens of k every `stride` tokens, of which the width is a multiple."""
    import torch

    B, Hkv, S, d = k.shape
    strides = k[:, :, : S // stride * stride].reshape(B, Hkv, -1, stride, d).mean(3)
    count = complete(S, width, stride)
    return torch.stack([strides[:, :, i : i + count] for i in range(width // stride)]).mean(0)


def complete(end: int, width: int, stride: int) -> int:
    """Pooled keys that are complete after so many tokens."""
    return max(0, (end - width) // stride + 1)


def summed(d: infllm2.Dims, rows: "torch.Tensor", levels: Sequence["torch.Tensor"], first: int) -> "torch.Tensor":
    """What the heads of a key head give each pooled key, of queries [B, Hkv, heads, n, d] from `first` on: their
    probabilities under the coarse level's normaliser, which is 1 before its first key is complete."""
    import torch

    (B, Hkv, heads, n, _), found = rows.shape, []
    token = torch.arange(first, first + n, device=rows.device)[:, None]
    for keys, times in zip(levels, (1, infllm2.COARSER), strict=True):
        width, stride = times * d.l, times * d.r
        seen = complete(first + n, width, stride)
        hidden = torch.arange(seen, device=rows.device) * stride + width - 1 > token
        scores = (rows.flatten(2, 3) @ keys[:, :, :seen].mT).float().reshape(B, Hkv, heads, n, seen)
        found.append(scores.masked_fill(hidden, -torch.inf))
    fine, coarse = found
    total = torch.logsumexp(coarse, -1, keepdim=True) if coarse.shape[-1] else coarse.new_zeros(1)
    return torch.exp(fine - total.masked_fill(total == -torch.inf, 0.0)).sum(2)


def rated(shape: Shape, inputs: Inputs) -> Outputs:
    """Slices of queries against both levels, then the maxima of all blocks."""
    import torch

    d, q, k = dims(shape), inputs["q"], inputs["k"]
    B, S = q.shape[0], q.shape[2]
    grouped = q.reshape(B, d.Hkv, -1, S, d.dk) * d.dk**-0.5
    levels = [level(k, times * d.l, times * d.r) for times in (1, infllm2.COARSER)]
    # Block n is touched by the keys of its own strides, and by the last ones before that reach into it.
    reach, strides, count = (d.l - 1) // d.r, d.b // d.r, -(-S // d.b)
    step, out = QUERIES["cpu" if q.device.type == "cpu" else "cuda"], []
    for first in range(0, S, step):
        shares = summed(d, grouped[:, :, :, first : first + step], levels, first)
        shares = torch.nn.functional.pad(shares, (reach, count * strides - shares.shape[-1]))
        most = torch.nn.functional.max_pool1d(shares.flatten(0, 1), strides + reach, strides)
        out.append(most.reshape(B, d.Hkv, -1, count))
    return (torch.cat(out, 2),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From few pooled keys to many; their products stay quadratic."""
    columns = "batch heads kv_heads context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64, "block": 32, "stride": 8}
        fit = [(1, 4, 1, 256), (1, 4, 1, 768), (1, 4, 1, 1536), (1, 4, 2, 512), (2, 4, 1, 512)]
        held_out, sweep = [(1, 4, 1, 512), (1, 4, 1, 1024)], [(1, 4, 1, 4096)]
    else:
        common = {"dtype": "bf16", "head_dim": 128, "block": 64, "stride": 16}
        fit = [(1, 32, 2, 8192), (1, 32, 2, 16384), (1, 32, 2, 65536), (2, 32, 2, 8192), (1, 64, 4, 16384)]
        held_out, sweep = [(1, 32, 2, 131072), (1, 16, 1, 2**18)], [(1, 32, 2, 2**15)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *((*row, row[3]) for row in rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """A few blocks and a ragged one; one group of heads."""
    group = number(shape, "heads") // number(shape, "kv_heads")
    sizes = {"block": 16, "stride": 4, "context": 119, "new_tokens": 119}
    return {**shape, **sizes, "batch": 1, "heads": group, "kv_heads": 1}


RUNNER = Runner(
    name="infllm2-scores",
    family="indexer",
    mechanism="infllm2",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-pooled-levels", ("cpu", "cuda"), rated),),
    points=points,
    small=small,
)
