"""One token of Mamba-2: the state of every head is read, decayed, written to, read out and stored in place.

Source: state-spaces/mamba, mamba_ssm/ops/triton/selective_state_update.py with one step size and decay per head.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.triton_kernels.selective_scan import softplus

ROWS = 32
"""State rows (elements of the head) of one thread block."""


@triton.jit
def mamba2_update_kernel(
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
    heads,
    groups,
    p: tl.constexpr,
    N: tl.constexpr,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
):
    """Program (tile of state rows, head, sequence)."""
    head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, n = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, STATES)
    real = row < p
    wide = real[:, None] & (n < N)[None, :]
    own = sequence * heads + head
    shared = (sequence * groups + head // (heads // groups)) * N + n
    at = (own * p + row)[:, None] * N + n[None, :]
    h = tl.load(state + at, mask=wide, other=0.0).to(tl.float32)
    token = tl.load(x + own * p + row, mask=real, other=0.0).to(tl.float32)
    step = softplus(tl.load(dt + own).to(tl.float32) + tl.load(bias + head))
    key = tl.load(B + shared, mask=n < N, other=0.0).to(tl.float32)
    query = tl.load(C + shared, mask=n < N, other=0.0).to(tl.float32)
    h = h * tl.exp(tl.load(A + head) * step) + (step * token)[:, None] * key[None, :]
    tl.store(new_state + at, h, mask=wide)
    y = tl.sum(h * query[None, :], 1) + tl.load(D + head) * token
    if GATED:
        gate = tl.load(z + own * p + row, mask=real, other=0.0).to(tl.float32)
        y *= gate * tl.sigmoid(gate)
    tl.store(out + own * p + row, y, mask=real)


def mamba2_update(
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
    """H ← exp(Δ A) H + Δ x Bᵀ; y = (H C + D x) · silu(z) (without z, no gate), with Δ = softplus(dt + bias).

    state [batch, H, p, N] is overwritten unless there is a new_state to write to; x and z [batch, H, p]; dt [batch, H];
    A, D and bias [H], fp32; B and C [batch, G, N], consecutive heads share a group. All contiguous. Returns y like x.
    """
    batch, H, p, N = state.shape
    out = torch.empty_like(x)
    mamba2_update_kernel[triton.cdiv(p, ROWS), H, batch](
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
        H,
        B.shape[1],
        p,
        N,
        triton.next_power_of_2(N),
        ROWS,
        z is not None,
        num_warps=4,
    )
    return out


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """80 heads with a state of 64 × 128 in one group, as in Mamba-2 2.7B."""
    state, heads = torch.empty(8, 80, 64, 128, device=device), torch.empty(80, device=device)
    x = torch.empty(8, 80, 64, dtype=torch.bfloat16, device=device)
    dt = torch.empty(8, 80, dtype=torch.bfloat16, device=device)
    shared = torch.empty(8, 1, 128, dtype=torch.bfloat16, device=device)
    return {"64 x 128": lambda: mamba2_update(state, x, dt, heads, shared, shared, heads, heads, z=x)}
