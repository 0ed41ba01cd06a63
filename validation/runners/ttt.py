"""TTT-Linear without its outer norm: a sequence in mini-batches that train the state, and one token of an open one.

Tensors are q, k, v [B, S, H, d], rates [B, S, H, 1], scale and shift of the inner norm [H, d], W [B, H, d, d] and
b [B, H, d]; in decode also the gradients of both that the open mini-batch has summed, G and h. Outputs are what each
token's model says of its query, before the norm and the residual, which are kernels of their own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.mixers import ttt
from costmodel.step import Phase, Step
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
from validation.runners._linear import in_chunks, in_order

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

C = 16
"""Tokens of a mini-batch."""


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """The walk that trains and the outputs, or the step."""
    B, S, H, d = (number(shape, name) for name in ("batch", "new_tokens", "heads", "head_dim"))
    step = Step(B=B, S=S, P=number(shape, "context") - S, phase=phase)
    return (ttt.stepwise if phase == "decode" else ttt.scan)(ttt.Dims(H=H, d=d, C=C), step, precision(shape))


def inputs(phase: Phase, shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal numbers, rates below 0.1, and a state by which outputs are as large as the queries.

    A mini-batch has one rate per head: the paper weighs a gradient by the rate of the token that it comes from, fla's
    kernels by that of the token that reads it.
    """
    import torch

    B, S, H, d = (number(shape, name) for name in ("batch", "new_tokens", "heads", "head_dim"))
    dtype = torch_dtype(str(shape["dtype"]))

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    rates = 0.1 * torch.sigmoid(drawn(B, -(-S // C), H, 1))
    given = {name: drawn(B, S, H, d) for name in "qkv"} | {"scale": 1 + 0.1 * drawn(H, d), "shift": 0.1 * drawn(H, d)}
    found = {name: x.to(dtype) for name, x in given.items()} | {"eta": rates.repeat_interleave(C, 1)[:, :S]}
    found |= {"W": drawn(B, H, d, d) * d**-0.5, "b": drawn(B, H, d)}
    return found | ({"G": drawn(B, H, d, d), "h": drawn(B, H, d)} if phase == "decode" else {})


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Head by head, a mini-batch at a time, or by token."""
    import torch

    from validation.references import ttt as plain

    x, first = inputs, number(shape, "context") - number(shape, "new_tokens")
    B, H = (number(shape, name) for name in ("batch", "heads"))
    found = []
    for b in range(B):
        for h in range(H):
            rows = (x[name][b, :, h] for name in ("q", "k", "v", "eta"))
            data = (*rows, x["scale"][h], x["shift"][h], x["W"][b, h], x["b"][b, h])
            sums = (x["G"][b, h], x["h"][b, h]) if "G" in x else None
            found.append(plain.walked(data, C) if sums is None else plain.stepped(data, *sums, first, C))
    out, *state = (torch.stack(each).reshape(B, H, *each[0].shape) for each in zip(*found, strict=True))
    return out.transpose(1, 2), *state


def gradient(said: Any, target: Any, scale: Any, shift: Any) -> Any:
    """The gradient of half the squared distance between the normed rows and the target, at the rows."""
    import torch

    width = (said.shape[-1],)
    unit, mean, over = torch.native_layer_norm(said, width, None, None, 1e-6)
    outer = (torch.addcmul(shift, unit, scale) - target) * scale
    mask = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(outer, said, width, mean, over, None, None, mask)[0]


def chunked(shape: Shape, inputs: Inputs) -> Outputs:
    """The walk over the mini-batches, then all outputs at once."""
    import torch

    x = {name: each.float() for name, each in inputs.items()}
    S, W, b = number(shape, "new_tokens"), x["W"], x["b"][:, :, None]
    q, k, v, eta = (in_chunks(x[name], C) for name in ("q", "k", "v", "eta"))
    scale, shift = (x[name][:, None] for name in ("scale", "shift"))
    place = 1 / torch.arange(1, C + 1, device=W.device)[:, None]
    whole = [C] * (S // C) + [S % C] * (S % C > 0)
    target, models, biases, gradients = v - k, [], [], []
    for i, tokens in enumerate(whole):
        models.append(W)
        biases.append(b)
        g = eta[:, :, i] * gradient(torch.matmul(k[:, :, i], W) + b, target[:, :, i], scale, shift)
        W = W - k[:, :, i].mT @ g / tokens
        b = b - g.sum(-2, keepdim=True) / tokens
        gradients.append(g)
    # A gradient moves W by its key, and b by itself.
    moved = (q @ k.mT + 1).tril() @ torch.stack(gradients, 2)
    out = q @ torch.stack(models, 2) + torch.stack(biases, 2) - place * moved
    return in_order(out, S).to(inputs["q"].dtype), W, b[:, :, 0]


def step(shape: Shape, inputs: Inputs) -> Outputs:
    """One token of an open mini-batch: its gradient joins the sum, by which the model is moved."""
    x = {name: each.float() for name, each in inputs.items()}
    place = 1 / ((number(shape, "context") - 1) % C + 1)
    W, b, q, k, v, eta = x["W"], x["b"], *(x[name][:, 0] for name in ("q", "k", "v", "eta"))
    said = (k[..., None, :] @ W)[..., 0, :] + b
    g = eta * gradient(said, v - k, x["scale"], x["shift"])
    G, h = x["G"] + k[..., None] * g[..., None, :], x["h"] + g
    out = (q[..., None, :] @ W - place * (q[..., None, :] @ G))[..., 0, :] + b - place * h
    return out[:, None].to(inputs["q"].dtype), G, h


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Chains of mini-batches in few and in many heads; of one token, sequences. Decode is within a mini-batch."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64}
        fit, held_out = [(1, 4, 64), (1, 4, 256), (1, 4, 1024), (1, 1, 512), (2, 4, 128)], [(1, 4, 512), (1, 2, 768)]
        sweep, inside = [(1, 4, 2048)], 1000
        batches, held_batches, more = [1, 2, 8, 32, 64], [4, 16], [128]
    else:
        common = {"dtype": "bf16", "head_dim": 64}
        fit, held_out = [(1, 16, 64), (1, 32, 2048), (8, 32, 512), (1, 4, 16384)], [(4, 32, 8192), (1, 32, 65536)]
        sweep, inside = [(1, 32, 2**n) for n in (8, 10, 13, 15, 18)], 8200
        batches, held_batches, more = [1, 8, 64, 512], [32, 256], [2, 16, 128, 1024]
    if phase == "decode":
        heads = 4 if facts.kind == "cpu" else 32
        rows = ([(b, heads, inside, 1) for b in each] for each in (batches, held_batches, more if full else []))
    else:
        rows = ([(*each, each[2]) for each in table] for table in (fit, held_out, sweep if full else []))
    return planned(*(shapes(common, "batch heads context new_tokens", *each) for each in rows))


def small(shape: Shape) -> Shape:
    """Two heads; three mini-batches, or the token."""
    tokens = min(number(shape, "new_tokens"), 3 * C)
    context = number(shape, "context") if tokens == 1 else tokens
    return {**shape, "batch": min(number(shape, "batch"), 2), "heads": 2, "context": context, "new_tokens": tokens}


RUN: tuple[tuple[Phase, str, str, Callable[[Shape, Inputs], Outputs]], ...] = (
    ("prefill", "chunk-scan", "torch-mini-batches", chunked),
    ("decode", "recurrent-step", "torch-step", step),
)
RUNNERS = tuple(
    Runner(
        name=f"ttt-{phase}",
        family=family,
        mechanism="ttt",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=partial(inputs, phase),
        reference=reference,
        implementations=(Implementation(name, ("cpu", "cuda"), run),),
        points=partial(points, phase),
        small=small,
    )
    for phase, family, name, run in RUN
)
