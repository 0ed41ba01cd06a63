"""Hyena with Fourier transforms of radix 2, operation by operation; compared with direct convolution.

Two real channels share one complex transform. Splitting and joining their spectra moves numbers about and is not
counted, as in the usual count of 5/2·N·log₂N for N real points.
"""

import math

import torch

from costmodel.mixers.hyena import INNER, Dims
from costmodel.step import Step
from validation.counting import vector
from validation.references.plain import difference, linear, random, short_conv

Complex = tuple[torch.Tensor, torch.Tensor]
"""Real and imaginary part."""


def multiply(a: Complex, b: Complex) -> Complex:
    """Six operations per product."""
    with vector():
        return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def transform(z: Complex, sign: int) -> Complex:
    """The unscaled transform along the last axis, a power of two long: ten operations per butterfly."""
    N = z[0].shape[-1]
    if N == 1:
        return z
    even, odd = (transform((z[0][..., i::2], z[1][..., i::2]), sign) for i in (0, 1))
    angle = sign * 2 * math.pi * torch.arange(N // 2, dtype=torch.float64) / N
    odd = multiply((torch.cos(angle), torch.sin(angle)), odd)
    with vector():
        parts = [torch.cat([e + o, e - o], -1) for e, o in zip(even, odd, strict=True)]
    return parts[0], parts[1]


def spectra(x: torch.Tensor, N: int) -> Complex:
    """Bins 0 … N/2 of real channels [2p, L], in pairs."""
    padded = torch.nn.functional.pad(x, (0, N - x.shape[-1]))
    re, im = transform((padded[0::2], padded[1::2]), -1)
    mirrored_re, mirrored_im = (part.flip(-1).roll(1, -1) for part in (re, im))
    first = ((re + mirrored_re) / 2, (im - mirrored_im) / 2)
    second = ((im + mirrored_im) / 2, (mirrored_re - re) / 2)
    bins = [torch.stack(pair, 1).flatten(0, 1)[:, : N // 2 + 1] for pair in zip(first, second, strict=True)]
    return bins[0], bins[1]


def signals(y: Complex, N: int) -> torch.Tensor:
    """Real channels [2p, N] from their bins 0 … N/2."""
    whole = torch.complex(*y)
    whole = torch.cat([whole, whole[:, 1 : N // 2].flip(-1).conj()], -1)
    joined = whole[0::2] + 1j * whole[1::2]
    re, im = transform((joined.real, joined.imag), 1)
    return torch.stack([re, im], 1).flatten(0, 1) / N


def by_transform(v: torch.Tensor, filters: Complex, S: int, N: int) -> torch.Tensor:
    """The last S outputs of v [channels, L] with filters given by their spectra."""
    return signals(multiply(spectra(v, N), filters), N)[:, v.shape[-1] - S : v.shape[-1]]


def direct(v: torch.Tensor, k: torch.Tensor, S: int) -> torch.Tensor:
    """The same, position by position: y[t] = Σ k[t − j]·v[j]."""
    L = v.shape[-1]
    columns = []
    for t in range(L - S, L):
        with vector():
            columns.append(torch.bmm(v[:, None, : t + 1], k[:, : t + 1].flip(-1)[..., None])[:, 0])
    return torch.cat(columns, -1)


def length(S: int, L: int) -> int:
    """The power of two from L + S on."""
    return 1 << (L + S - 1).bit_length()


def counted(d: Dims, D: int, step: Step) -> None:
    """One layer on random data; filters are computed and transformed once for the batch."""
    stages, N = range(d.n - 1), length(step.S, step.L)
    k = [random(d.W, step.L) for _ in stages]
    if not step.decoding:
        hidden = linear(random(step.L, d.emb), d.f)
        for _ in range(INNER):
            hidden = linear(torch.sin(hidden), d.f)
        k = list(linear(torch.sin(hidden), (d.n - 1) * d.W).T.chunk(d.n - 1))
        filters = [spectra(one, N) for one in k]
    for _ in range(step.B):
        x = random(step.S, D)
        branches = short_conv(linear(x, (d.n + 1) * d.W), d.conv).T.chunk(d.n + 1)
        v = branches[-1]
        for o in stages:
            history = torch.cat([random(d.W, step.P), v * branches[o + 1]], -1)
            v = direct(history, k[o], step.S) if step.decoding else by_transform(history, filters[o], step.S, N)
        linear((v * branches[0]).T, D)


def compare(d: Dims) -> float:
    """Transforms against direct convolution, for a whole sequence and for its last tokens."""
    found = []
    for S, P in ((13, 0), (16, 0), (5, 20), (1, 30)):
        v, k, N = random(d.W, P + S), random(d.W, P + S), length(S, P + S)
        found.append(difference(by_transform(v, spectra(k, N), S, N), direct(v, k, S)))
    return max(found)
