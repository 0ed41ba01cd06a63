"""Index scores of compressed entries, by which a CSA layer chooses: index keys are pooled, then met by every query.

Every `ratio` tokens make one index key, pooled from `overlap` blocks of tokens under learned gates. Tensors are tokens
[B, T, 2·overlap·d], the values and gates of the new tokens and of what an overlapping block needs of those before them;
bias [ratio, overlap, d]; the keys of entries that were finished before, past [B, P/ratio, d]; q [B, S, H, d] and head
weights w [B, S, H]. Logits Σ_h w[h] · ReLU(q[h] · k) are [B, S, ⌊L/ratio⌋] in fp32, 0 where an entry is not finished.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.layers.compressor import compress
from costmodel.mixers import csa
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
from validation.runners.compressed_attention import finished
from validation.runners.indexer import SCORES
from validation.runners.own_triton import sixteen_bits, slots

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


TOP = 512
"""Entries that are selected afterwards; the scores do not depend on it."""


def kernels(shape: Shape) -> list[Kernel]:
    """The logits, and the pooling of the index keys that the step finishes."""
    S, formats = number(shape, "new_tokens"), precision(shape)
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S)
    H, dI, r, m = (number(shape, name) for name in ("heads", "head_dim", "ratio", "overlap"))
    d = csa.Dims(H=1, q_l=1, dh=1, dr=0, g=1, o=1, r=r, m=m, HI=H, dI=dI, k=TOP, index_dtype=str(shape["dtype"]))
    by_name = {kernel.name: kernel for kernel in csa.select(d, 1, step, formats)}
    keys = compress(csa.index_compressor(d), dI * formats.hidden_bytes, step, formats)
    return [by_name["indexer"], keys]


def before(shape: Shape) -> int:
    """Tokens before the new ones that the first new entry is pooled from as well."""
    P = number(shape, "context") - number(shape, "new_tokens")
    return min(P, number(shape, "ratio") * (number(shape, "overlap") - 1))


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal numbers; both the cached and the new tokens are whole entries."""
    B, S, H, d, r, m = (
        number(shape, name) for name in ("batch", "new_tokens", "heads", "head_dim", "ratio", "overlap")
    )
    dtype, past = torch_dtype(str(shape["dtype"])), (number(shape, "context") - S) // r
    sizes = {
        "tokens": (B, S + before(shape), 2 * m * d),
        "bias": (r, m, d),
        "past": (B, past, d),
        "q": (B, S, H, d),
    }
    drawn = {name: normal(size, dtype, device, generator) for name, size in sizes.items()}
    return {**drawn, "w": normal((B, S, H), torch_dtype("fp32"), device, generator)}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Entry by entry, and query by query over its finished entries."""
    import torch

    from validation.references import dsa
    from validation.references.hca import pool

    S, L, r, m = (number(shape, name) for name in ("new_tokens", "context", "ratio", "overlap"))
    out = torch.zeros(number(shape, "batch"), S, L // r, dtype=inputs["q"].dtype)
    for b, tokens in enumerate(inputs["tokens"]):
        new = pool(tokens, inputs["bias"], r, m)[before(shape) // r :]
        keys = torch.cat([inputs["past"][b], new])
        for i, count in enumerate(finished(shape, keys.device)):
            out[b, i, :count] = dsa.score(inputs["q"][b, i], keys[:count, None], inputs["w"][b, i])
    return (out,)


def pooled(shape: Shape, inputs: Inputs) -> "torch.Tensor":
    """All index keys [B, ⌊L/ratio⌋, d]: an entry's series s comes from the block overlap − 1 − s before its own."""
    import torch

    bias, tokens = inputs["bias"], inputs["tokens"]
    r, m, d = bias.shape
    values, gates = tokens.unflatten(1, (-1, r)).unflatten(-1, (2, m, d)).unbind(3)  # [B, blocks, r, m, d]
    gates, missing = gates + bias, (0, 0, 0, 0, 0, 0, m - 1 - before(shape) // r, 0)
    values, gates = (torch.nn.functional.pad(x, missing, value=v) for x, v in ((values, 0.0), (gates, -torch.inf)))
    count = values.shape[1] - m + 1
    values, gates = (torch.cat([x[:, s : s + count, :, s] for s in range(m)], 2) for x in (values, gates))
    return torch.cat([inputs["past"], (torch.softmax(gates, 2) * values).sum(2)], 1)


def sliced(shape: Shape, inputs: Inputs) -> Outputs:
    """Slices of queries against the keys that the last of them sees."""
    import torch

    q, w, keys, ends = inputs["q"], inputs["w"], pooled(shape, inputs), inputs["ends"]
    (B, S, H), count = q.shape[:3], keys.shape[1]
    out = torch.zeros(B, S, count, dtype=torch.float32, device=q.device)
    step = max(1, SCORES["cpu" if q.device.type == "cpu" else "cuda"] // (B * H * count))
    for first in range(0, S, step):
        last = min(first + step, S)
        seen = (number(shape, "context") - S + last) // number(shape, "ratio")
        products = q[:, first:last].flatten(1, 2) @ keys[:, :seen].mT
        scores = torch.relu(products).reshape(B, last - first, H, seen)
        logits = (w[:, first:last, None].to(q.dtype) @ scores)[:, :, 0]
        hidden = torch.arange(seen, device=q.device) >= ends[first:last, None]
        out[:, first:last, :seen] = logits.masked_fill(hidden, 0.0)
    return (out,)


def counts(shape: Shape, inputs: Inputs) -> Inputs:
    """How many entries each query finds finished."""
    return {"ends": finished(shape, inputs["q"].device)}


def splits(shape: Shape, inputs: Inputs) -> Inputs:
    """The same for the own kernel of logits, and as many splits as fill the device."""
    import torch

    from validation.triton_kernels.indexer_logits import ROWS
    from validation.triton_kernels.mla_decode import split_count

    B, S, H, _ = inputs["q"].shape
    device, ends = inputs["q"].device, finished(shape, inputs["q"].device)
    programs = B * -(-S // max(1, ROWS // H))
    room = slots(device, "indexer_logits", "bf16")
    count = split_count(programs, number(shape, "context") // number(shape, "ratio"), room, 512)
    return {"rows": ends.to(torch.int32).expand(B, S).contiguous(), "splits": count}


def with_own_logits(shape: Shape, inputs: Inputs) -> Outputs:
    """Pooling by torch, the logits by the own kernel."""
    from validation.triton_kernels.indexer_logits import indexer_logits

    q, w, keys = inputs["q"], inputs["w"], pooled(shape, inputs)
    return (indexer_logits(q, keys, w, inputs["rows"], splits=inputs["splits"], hidden=0.0),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Chunks of a prefill from nothing cached to far more cached than new."""
    columns = "batch context new_tokens"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "heads": 4, "head_dim": 64, "ratio": 4, "overlap": 2}
        fit = [(1, 2048, 128), (1, 8192, 128), (1, 32768, 128), (1, 1024, 1024), (2, 4096, 256)]
        held_out, sweep = [(1, 16384, 128), (1, 4096, 512)], [(1, 4096, 4096)]
    else:
        common = {"dtype": "bf16", "heads": 64, "head_dim": 128, "ratio": 4, "overlap": 2}
        fit = [(1, 1024, 1024), (1, 8192, 8192), (1, 32768, 4096), (1, 131072, 2048), (4, 4096, 4096)]
        held_out, sweep = [(1, 2**18, 4096), (1, 2**20, 2048)], [(1, 16384, 16384), (1, 2**19, 2048)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few entries, after some cached tokens if there are any."""
    S, L, r = (number(shape, name) for name in ("new_tokens", "context", "ratio"))
    return {**shape, "new_tokens": 12 * r, "context": (12 if L == S else 25) * r}


RUNNER = Runner(
    name="csa-index",
    family="indexer",
    mechanism="csa",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-pooled-keys", ("cpu", "cuda"), sliced, prepare=counts),),
    points=points,
    small=small,
)
IMPLEMENTATIONS = {
    "csa-index": (
        Implementation(
            "triton-logits-pooled",
            ("cuda",),
            with_own_logits,
            requires=("triton",),
            prepare=splits,
            supports=sixteen_bits,
        ),
    )
}
