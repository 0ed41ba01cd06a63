"""Mamba-1's selective scan: a recurrence of independent channels, scanned in parallel within pieces of the sequence.

A thread block owns one channel of one sequence and walks it piece by piece; inside a piece all N state elements are
scanned along the tokens at once. Layouts are those of mamba-ssm's selective_scan_fn, tokens contiguous.

Source: arXiv:2312.00752, section 3.3; state-spaces/mamba, csrc/selective_scan (the same loop order).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.triton_kernels.mla_decode import LOG2_E

PIECE = 256
"""Tokens that a thread block scans at once."""


@triton.jit
def softplus(x):
    """log(1 + exp(x)), and x itself where the exponential would swallow the 1."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@triton.jit
def compose(decay, written, later_decay, later_written):
    """Two steps h → decay · h + written as one."""
    return decay * later_decay, later_decay * written + later_written


@triton.jit
def selective_scan_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    state,
    final,
    out,
    tokens,
    channels,
    log2_e: tl.constexpr,
    N: tl.constexpr,
    STATES: tl.constexpr,
    PIECE: tl.constexpr,
    GATED: tl.constexpr,
):
    """Program (channel, sequence)."""
    channel, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    own = (sequence * channels + channel) * tokens
    shared = sequence * N * tokens + n[:, None] * tokens
    decay_rate = tl.load(A + channel * N + n, mask=n < N, other=0.0) * log2_e
    skip, offset = tl.load(D + channel), tl.load(bias + channel)
    row = (sequence * channels + channel) * N + n
    h = tl.load(state + row, mask=n < N, other=0.0)
    for first in range(0, tokens, PIECE):
        t = first + tl.arange(0, PIECE)
        inside = t < tokens
        wide = (n < N)[:, None] & inside[None, :]
        x = tl.load(u + own + t, mask=inside, other=0.0).to(tl.float32)
        step = softplus(tl.load(delta + own + t, mask=inside, other=0.0).to(tl.float32) + offset)
        step = tl.where(inside, step, 0.0)  # past the end nothing decays and nothing is written
        decay = tl.exp2(decay_rate[:, None] * step[None, :])
        written = (step * x)[None, :] * tl.load(B + shared + t[None, :], mask=wide, other=0.0).to(tl.float32)
        decay, written = tl.associative_scan((decay, written), 1, compose)
        states = decay * h[:, None] + written
        h = tl.sum(tl.where((tl.arange(0, PIECE) == PIECE - 1)[None, :], states, 0.0), 1)
        read = tl.load(C + shared + t[None, :], mask=wide, other=0.0).to(tl.float32)
        y = tl.sum(states * read, 0) + skip * x
        if GATED:
            gate = tl.load(z + own + t, mask=inside, other=0.0).to(tl.float32)
            y *= gate * tl.sigmoid(gate)
        tl.store(out + own + t, y, mask=inside)
    tl.store(final + row, h, mask=n < N)


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    bias: torch.Tensor,
    state: torch.Tensor,
    *,
    z: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t; y_t = (C_t · h_t + D u_t) · silu(z_t), with Δ = softplus(delta + bias).

    u, delta and z [batch, channels, T]; A [channels, N], D and bias [channels], fp32; B and C [batch, N, T]; state
    [batch, channels, N] fp32 is h before the first token. All contiguous. Returns y like u and h after the last token.
    """
    batch, channels, tokens = u.shape
    N = A.shape[1]
    out, final = torch.empty_like(u), torch.empty_like(state)
    selective_scan_kernel[channels, batch](
        u,
        delta,
        A,
        B,
        C,
        D,
        z if z is not None else u,
        bias,
        state,
        final,
        out,
        tokens,
        channels,
        LOG2_E,
        N,
        triton.next_power_of_2(N),
        PIECE,
        z is not None,
        num_warps=4,
    )
    return out, final


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """8,192 channels with 16 state elements, as in Falcon-Mamba 7B."""
    x = torch.empty(1, 8192, 4096, dtype=torch.bfloat16, device=device)
    shared = torch.empty(1, 16, 4096, dtype=torch.bfloat16, device=device)
    A, D = torch.empty(8192, 16, device=device), torch.empty(8192, device=device)
    state = torch.empty(1, 8192, 16, device=device)
    return {"N = 16": lambda: selective_scan(x, x, A, shared, shared, D, D, state, z=x)}
