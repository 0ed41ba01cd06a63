"""Linear recurrences with a matrix state in plain torch: chunk by chunk for many tokens, at once for one.

Every recurrence of this folder is one of three, with per-token decay α (of a head or a key channel):
    M ← α·M + kᵀ·v                          retention, lightning, Mamba-2, GLA, RWKV-5 and 6 (they read M first)
    M ← (I − β·k·kᵀ)·α·M + β·kᵀ·v           DeltaNet, Gated DeltaNet, KDA; Gated DeltaProduct n times per token
    M ← α·M + bᵀ·(a·M) + kᵀ·v               RWKV-7

Tensors are q, k [B, T, H, dk], v [B, T, H, dv], g = ln α [B, T, H, 1 or dk], β [B, T, H, 1], M [B, H, dk, dv]. Tokens
that write n pairs have n rows each of k, v and β, one after another; their decay comes before the first of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]


def in_chunks(x: Any, C: int) -> Any:
    """[B, T, H, d] as [B, H, chunks, C, d], the last chunk filled with zeros."""
    import torch

    B, T, H, d = x.shape
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -T % C))
    return x.reshape(B, -1, C, H, d).permute(0, 3, 1, 2, 4)


def in_order(x: Any, T: int) -> Any:
    """[B, H, chunks, C, d] as [B, T, H, d]."""
    B, H, n, C, d = x.shape
    return x.permute(0, 2, 3, 1, 4).reshape(B, n * C, H, d)[:, :T]


def inverse(A: Any) -> Any:
    """(I + A)⁻¹ for strictly lower triangular A [..., C, C]."""
    import torch

    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve_triangular(A + eye, eye.expand_as(A), upper=False, unitriangular=True)


def decayed(q: Any, k: Any, v: Any, g: Any, M: Any, C: int, bonus: Any = None) -> "Pair":
    """The first recurrence; with bonus u [H, dk] a token reads the state before it, and itself through u."""
    import torch

    T = q.shape[1]
    q, k, v, g = (in_chunks(x, C) for x in (q, k, v, g))
    upto = g.cumsum(-2)
    last = upto[..., -1:, :]
    queries = q * (upto if bonus is None else upto - g).exp()
    scores = (queries @ (k * (-upto).exp()).mT).tril(0 if bonus is None else -1)
    if bonus is not None:
        scores = scores + torch.diag_embed((q * k * bonus[:, None, None]).sum(-1))
    written = (k * (last - upto).exp()).mT @ v
    whole = last.exp().mT
    states = []
    for i in range(q.shape[2]):
        states.append(M)
        M = M * whole[:, :, i] + written[:, :, i]
    return in_order(queries @ torch.stack(states, 2) + scores @ v, T), M


def delta(q: Any, k: Any, v: Any, g: Any, beta: Any, M: Any, C: int) -> "Pair":
    """The second recurrence in its WY form."""
    T = q.shape[1]
    q, k, v, g, beta = (in_chunks(x, C) for x in (q, k, v, g, beta))
    upto, down, states, new, M = corrected(k, v, g, beta, M)
    queries = q * upto.exp()
    return in_order(queries @ states + (queries @ down.mT).tril() @ new, T), M


def delta_product(q: Any, k: Any, v: Any, g: Any, beta: Any, M: Any, C: int) -> "Pair":
    """The same for several pairs per token: written in chunks of C pairs, read in chunks of C tokens with theirs."""
    import torch

    T, n = q.shape[1], k.shape[1] // q.shape[1]
    g = torch.cat([g[:, :, None], g.new_zeros(g.shape).expand(n - 1, *g.shape).movedim(0, 2)], 2).flatten(1, 2)
    full = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, n * (-T % C))) for x in (k, v, g, beta)]
    keys, values, decays, rates = (in_chunks(x, C) for x in full)
    _, _, states, new, M = corrected(keys, values, decays, rates, M)
    q, (k, _, g, _) = in_chunks(q, C), (in_chunks(x, n * C) for x in full)
    upto = g.cumsum(-2)
    queries, down = q * upto[..., n - 1 :: n, :].exp(), k * (-upto).exp()
    token = torch.arange(C, device=q.device)
    seen = token[:, None] >= token.repeat_interleave(n)
    inside = ((queries @ down.mT) * seen) @ new.unflatten(2, (-1, n)).flatten(3, 4)
    return in_order(queries @ states[:, :, ::n] + inside, T), M


def corrected(k: Any, v: Any, g: Any, beta: Any, M: Any) -> Any:
    """Of chunks: ln of the decay up to each row, keys without it, states before, rows to write; and the last state."""
    import torch

    upto = g.cumsum(-2)
    last = upto[..., -1:, :]
    up, down = k * upto.exp(), k * (-upto).exp()
    solved = inverse((beta * (up @ down.mT)).tril(-1))
    w, u = solved @ (beta * up), solved @ (beta * v)
    kept, whole = (k * (last - upto).exp()).mT, last.exp().mT
    states, new = [], []
    for i in range(k.shape[2]):
        states.append(M)
        new.append(u[:, :, i] - w[:, :, i] @ M)
        M = M * whole[:, :, i] + kept[:, :, i] @ new[-1]
    return upto, down, torch.stack(states, 2), torch.stack(new, 2), M


def low_rank(q: Any, k: Any, v: Any, g: Any, a: Any, b: Any, M: Any, C: int) -> "Pair":
    """The third recurrence; y holds the rows a·M that are written back along b."""
    import torch

    T = q.shape[1]
    q, k, v, g, a, b = (in_chunks(x, C) for x in (q, k, v, g, a, b))
    upto = g.cumsum(-2)
    last = upto[..., -1:, :]
    queries, before = q * upto.exp(), a * (upto - g).exp()
    keys, corrections = k * (-upto).exp(), b * (-upto).exp()
    solved = inverse(-(before @ corrections.mT).tril(-1))
    u, w = solved @ ((before @ keys.mT).tril(-1) @ v), solved @ before
    kept, returned, whole = (k * (last - upto).exp()).mT, (b * (last - upto).exp()).mT, last.exp().mT
    written = kept @ v
    states, ys = [], []
    for i in range(q.shape[2]):
        states.append(M)
        ys.append(u[:, :, i] + w[:, :, i] @ M)
        M = M * whole[:, :, i] + written[:, :, i] + returned[:, :, i] @ ys[-1]
    y = torch.stack(ys, 2)
    read = (queries @ keys.mT).tril() @ v + (queries @ corrections.mT).tril() @ y
    return in_order(queries @ torch.stack(states, 2) + read, T), M


def decayed_step(q: Any, k: Any, v: Any, g: Any, M: Any, bonus: Any = None) -> "Pair":
    """One token of the first recurrence."""
    q, k, v, g = (x[:, 0] for x in (q, k, v, g))
    write = k[..., None] * v[..., None, :]
    new = M * g.exp()[..., None] + write
    read = new if bonus is None else M + bonus[..., None] * write
    return (q[..., None, :] @ read)[..., 0, :][:, None], new


def delta_step(q: Any, k: Any, v: Any, g: Any, beta: Any, M: Any) -> "Pair":
    """One token of the second recurrence, which may write several pairs."""
    q, g = q[:, 0], g[:, 0]
    M = M * g.exp()[..., None]
    for key, value, rate in zip(k.unbind(1), v.unbind(1), beta.unbind(1), strict=True):
        new = rate * (value - (key[..., None, :] @ M)[..., 0, :])
        M = M + key[..., None] * new[..., None, :]
    return (q[..., None, :] @ M)[..., 0, :][:, None], M


def low_rank_step(q: Any, k: Any, v: Any, g: Any, a: Any, b: Any, M: Any) -> "Pair":
    """One token of the third recurrence."""
    q, k, v, g, a, b = (x[:, 0] for x in (q, k, v, g, a, b))
    held = a[..., None, :] @ M
    M = M * g.exp()[..., None] + b[..., None] * held + k[..., None] * v[..., None, :]
    return (q[..., None, :] @ M)[..., 0, :][:, None], M
