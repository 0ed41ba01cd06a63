"""Absorbed latent attention of one new token: all heads read the one latent of every token, which is the value too.

Tensors are q [B, H, c + r] and the latents [B, L, c + r], of which the first c are the values.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.mla_decode import mla_decode
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
    shapes,
    torch_dtype,
)
from validation.runners._tails import attended

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

COLUMNS = "batch heads context latent rope"


def kernels(shape: Shape) -> list[Kernel]:
    """The kernel that splits the keys."""
    c, r = number(shape, "latent"), number(shape, "rope")
    B, H, L = (number(shape, name) for name in ("batch", "heads", "context"))
    dtype = str(shape["dtype"])
    a = Attention(B, 1, L - 1, H, 1, dk=c + r, dv=c, shared_kv=True, dtype=dtype, kv=dtype)
    return [mla_decode("attention", a)]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries over latents, and normal latents."""
    B, H, L, c, r = (number(shape, name) for name in COLUMNS.split())
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = {"q": (B, H, c + r), "latents": (B, L, c + r)}
    return {name: normal(size, dtype, device, generator) for name, size in sizes.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Sequence by sequence and head by head."""
    import torch

    from validation.references import gqa

    c, L = number(shape, "latent"), number(shape, "context")
    rows = [
        gqa.attend(q[:, None], latents[None], latents[None, :, :c], [0], [L])
        for q, latents in zip(inputs["q"], inputs["latents"], strict=True)
    ]
    return (torch.cat(rows).reshape(len(rows), number(shape, "heads"), c),)


def absorbed(shape: Shape, inputs: Inputs) -> Outputs:
    """Two products around a softmax."""
    import torch

    q, latents = inputs["q"], inputs["latents"]
    scores = q @ latents.mT * q.shape[-1] ** -0.5
    share = torch.softmax(scores.float(), -1).to(q.dtype)
    return (share @ latents[..., : number(shape, "latent")],)


def every_head(shape: Shape, inputs: Inputs, outputs: Outputs) -> tuple[Outputs, Outputs]:
    """All outputs, keys block by block in fp32."""
    import torch

    H, L, c = (number(shape, name) for name in ("heads", "context", "latent"))
    rows = zip(inputs["q"], inputs["latents"], strict=True)
    return outputs, (torch.stack([attended(q, each, each[:, :c], [(0, L)] * H) for q, each in rows]),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """DeepSeek's 512 + 64 on a GPU, 128 + 32 on a CPU; few and many heads per device."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "latent": 128, "rope": 32}
        fit = [(1, 8, 256), (1, 8, 4096), (4, 8, 1024), (4, 16, 4096), (16, 8, 512), (1, 16, 16384)]
        held_out, sweep = [(1, 8, 2048), (4, 8, 2048), (8, 16, 2048)], [(1, 8, 65536)]
    else:
        common = {"dtype": "bf16", "latent": 512, "rope": 64}
        fit = [(1, 128, 64), (1, 128, 32768), (64, 16, 8192), (64, 128, 8192), (256, 128, 256)]
        held_out = [(16, 128, 65536), (1, 16, 2**20), (1, 128, 2**22)]
        sweep = [(1, 128, 4096), (8, 64, 16384), (32, 128, 32768), (1, 128, 2**18), (1, 16, 2**24)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, "batch heads context", *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Two sequences of few tokens."""
    return {**shape, "batch": min(number(shape, "batch"), 2), "context": min(number(shape, "context"), 200)}


RUNNER = Runner(
    name="mla-decode",
    family="mla-decode",
    mechanism="mla",
    phase="decode",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-absorbed", ("cpu", "cuda"), absorbed),),
    points=points,
    small=small,
    tail=every_head,
)
