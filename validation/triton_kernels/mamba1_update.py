"""One token of Mamba-1: the state of every channel is read, decayed, written to, read out and stored in place.

Source: state-spaces/mamba, mamba_ssm/ops/triton/selective_state_update.py (arguments).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.triton_kernels.selective_scan import softplus

CHANNELS = 64
"""Channels of one thread block."""


@triton.jit
def mamba1_update_kernel(
    state,
    new_state,
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    bias,
    out,
    channels,
    N: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    GATED: tl.constexpr,
):
    """Program (tile of channels, sequence)."""
    sequence = tl.program_id(1).to(tl.int64)
    channel, n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    real = channel < channels
    wide = real[:, None] & (n < N)[None, :]
    row = sequence * channels + channel
    at = row[:, None] * N + n[None, :]
    h = tl.load(state + at, mask=wide, other=0.0).to(tl.float32)
    rate = tl.load(A + channel[:, None] * N + n[None, :], mask=wide, other=0.0)
    token = tl.load(x + row, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=real, other=0.0)
    step = softplus(tl.load(dt + row, mask=real, other=0.0).to(tl.float32) + offset)
    key = tl.load(B + sequence * N + n, mask=n < N, other=0.0).to(tl.float32)
    query = tl.load(C + sequence * N + n, mask=n < N, other=0.0).to(tl.float32)
    h = h * tl.exp(rate * step[:, None]) + (step * token)[:, None] * key[None, :]
    tl.store(new_state + at, h, mask=wide)
    y = tl.sum(h * query[None, :], 1) + tl.load(D + channel, mask=real, other=0.0) * token
    if GATED:
        gate = tl.load(z + row, mask=real, other=0.0).to(tl.float32)
        y *= gate * tl.sigmoid(gate)
    tl.store(out + row, y, mask=real)


def mamba1_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    bias: torch.Tensor,
    *,
    z: torch.Tensor | None = None,
    new_state: torch.Tensor | None = None,
) -> torch.Tensor:
    """h ← exp(Δ A) h + Δ B x; y = (C · h + D x) · silu(z) (without z, no gate), with Δ = softplus(dt + bias).

    state [batch, channels, N] is overwritten unless there is a new_state to write to; x, dt and z [batch, channels];
    A [channels, N], D and bias [channels], fp32; B and C [batch, N]. All contiguous. Returns y like x.
    """
    batch, channels, N = state.shape
    out = torch.empty_like(x)
    mamba1_update_kernel[triton.cdiv(channels, CHANNELS), batch](
        state,
        state if new_state is None else new_state,
        x,
        dt,
        A,
        B,
        C,
        D,
        x if z is None else z,
        bias,
        out,
        channels,
        N,
        triton.next_power_of_2(N),
        CHANNELS,
        z is not None,
        num_warps=4,
    )
    return out


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """8,192 channels with 16 state elements, as in Falcon-Mamba 7B."""
    state, A = torch.empty(8, 8192, 16, device=device), torch.empty(8192, 16, device=device)
    x = torch.empty(8, 8192, dtype=torch.bfloat16, device=device)
    shared, D = torch.empty(8, 16, dtype=torch.bfloat16, device=device), torch.empty(8192, device=device)
    return {"N = 16": lambda: mamba1_update(state, x, x, A, shared, shared, D, D, z=x)}
