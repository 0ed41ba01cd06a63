"""TTT-Linear in the dual form, a mini-batch at a time; compared with gradient steps by automatic differentiation."""

import torch

from costmodel.mixers.ttt import Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.gdn import apply_lower, lower
from validation.references.plain import difference, linear, random, short_conv

Data = tuple[torch.Tensor, ...]
"""One head: q, k, v [S, d]; rates eta [S, 1]; scale and shift of the inner norm [d]; W [d, d] and b [d]."""


def normed(z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """LayerNorm."""
    centred = z - z.mean(-1, keepdim=True)
    return scale * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + shift


def gradient(z: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The gradient of ½·|LayerNorm(z) − target|² at z, per row."""
    width = z.shape[-1]
    centred = z - z.mean(-1, keepdim=True)
    std = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    unit = centred / std
    g = (scale * unit + shift - target) * scale
    return (width * g - g.sum(-1, keepdim=True) - unit * (g * unit).sum(-1, keepdim=True)) / (width * std)


def places(n: int) -> torch.Tensor:
    """The weight of each place in a mini-batch: the mean of the gradients up to it."""
    return 1 / torch.arange(1, n + 1, dtype=torch.float64)[:, None]


def chunked(data: Data, C: int) -> torch.Tensor:
    """The outputs, a mini-batch at a time."""
    return data[0] + normed(walked(data, C)[0], *data[4:6])


def walked(data: Data, C: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the models say of the queries, a mini-batch at a time, and the last W and b."""
    q, k, v, eta, scale, shift, W, b = data
    rows = []
    for first in range(0, len(q), C):
        part = slice(first, first + C)
        queries, keys = q[part], k[part]
        place = places(len(queries))
        g = eta[part] * gradient(keys @ W + b, v[part] - keys, scale, shift)
        moved = queries @ W - place * apply_lower(lower(queries, keys, 1), g, 1)
        rows.append(moved + b - place * g.cumsum(0))
        W = W - place[-1] * (keys.T @ g)
        b = b - place[-1] * g.sum(0)
    return torch.cat(rows), W, b


def recurrent(data: Data, C: int) -> torch.Tensor:
    """The same, token by token."""
    sums = torch.zeros_like(data[6]), torch.zeros_like(data[7])
    return data[0] + normed(stepped(data, *sums, 0, C)[0], *data[4:6])


def stepped(
    data: Data, G: torch.Tensor, h: torch.Tensor, first: int, C: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the models say of the queries from token `first` on, and the gradients G and h summed in the open batch."""
    q, k, v, eta, scale, shift, W, b = data
    rows = []
    for t in range(len(q)):
        place = places((first + t) % C + 1)[-1]
        with vector():
            held = k[t : t + 1] @ W
        g = eta[t] * gradient(held + b, v[t : t + 1] - k[t : t + 1], scale, shift)
        with vector():
            G = torch.addmm(G, k[t : t + 1].T, g)
        h = h + g[0]
        with vector():
            scaled = place * G
            now = W - scaled
            out = q[t : t + 1] @ now
        rows.append(out + b - place * h)
        if (first + t + 1) % C == 0:
            W, b = now, b - place * h
            G, h = torch.zeros_like(W), torch.zeros_like(b)
    return torch.cat(rows), G, h


def trained(data: Data, C: int) -> torch.Tensor:
    """The same with autograd: every token's model is W and b minus the mean of the mini-batch's gradients up to it."""
    q, k, v, eta, scale, shift, W, b = data
    rows = []
    for first in range(0, len(q), C):
        sums = [torch.zeros_like(W), torch.zeros_like(b)]
        now = (W, b)
        for t in range(first, min(first + C, len(q))):
            parameters = [W.clone().requires_grad_(), b.clone().requires_grad_()]
            predicted = k[t] + normed(k[t] @ parameters[0] + parameters[1], scale, shift)
            loss = 0.5 * (predicted - v[t]).square().sum()
            for total, found in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total += eta[t] * found
            place = 1 / (t - first + 1)
            now = (W - place * sums[0], b - place * sums[1])
            rows.append(q[t] + normed(q[t] @ now[0] + now[1], scale, shift))
        W, b = now
    return torch.stack(rows)


def inputs(d: Dims, S: int) -> Data:
    """Rates in (0, 0.1): the steps of trained models are small."""
    eta = 0.1 * torch.sigmoid(random(S, 1))
    norm = 1 + 0.1 * random(d.d), 0.1 * random(d.d)
    return random(S, d.d), random(S, d.d), random(S, d.d), eta, *norm, random(d.d, d.d), random(d.d)


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data."""
    inner = d.H * d.d
    for _ in range(step.B):
        x = random(step.S, D)
        for _ in range((3 if d.conv is None else 2) + (1 if d.gate else 0)):
            linear(x, inner)
        linear(x, d.H)
        if d.conv is not None:
            short_conv(random(step.S, 2 * inner), d.conv)
        heads = []
        for _ in range(d.H):
            data = inputs(d, step.S)
            heads.append((recurrent if step.decoding else chunked)(data, d.C))
        linear(torch.cat(heads, -1), D)


def compare(d: Dims) -> float:
    """Dual form and sums of gradients against automatic differentiation; the last mini-batch is not full."""
    data = inputs(d, 2 * d.C + 3)
    expected = trained(data, d.C)
    return max(difference(chunked(data, d.C), expected), difference(recurrent(data, d.C), expected))
