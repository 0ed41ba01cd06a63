"""Every own Triton kernel in Triton's interpreter, on small and awkward shapes, against formulas in float64.

Run as a program, the file evaluates the cases: Triton decides when it is imported whether it compiles or interprets.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CASES: dict[str, Callable[[], float]] = {}
"""By name: the largest error relative to the largest expected value."""


def case(name: str, *args: Any) -> Callable[[Callable[..., float]], Callable[..., float]]:
    def add(check: Callable[..., float]) -> Callable[..., float]:
        CASES[f"{check.__name__}: {name}"] = lambda: check(*args)
        return check

    return add


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> Any:
    import torch

    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(getattr(torch, dtype))


def error(found: Any, expected: Any) -> float:
    import torch

    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert torch.equal(found.isneginf(), expected.isneginf())
    finite = ~expected.isneginf()
    difference = (found.double()[finite] - expected[finite]).abs().max()
    return float(difference / expected[finite].abs().max().clamp(min=1e-30))


def attend(q: Any, k: Any, v: Any, scale: float) -> Any:
    """q [H, dk], k [n, dk], v [n, dv]: [H, dv]; 0 without a key."""
    import torch

    return torch.softmax(scale * q.double() @ k.double().T, -1) @ v.double()


@case("many keys, ragged last tile", 3, [200, 131, 64], "float32", 2)
@case("one key", 5, [1, 2], "float32", 1)
@case("more splits than tiles", 16, [1, 65, 129], "float32", 7)
@case("more heads than a tile", 70, [40, 97], "float32", 2)
@case("fp16", 16, [100], "float16", 2)
def mla_decode(heads: int, lengths: list[int], dtype: str, splits: int) -> float:
    import torch

    from validation.triton_kernels.mla_decode import mla_decode

    c, dr = 32, 16
    B, L = len(lengths), max(lengths) + 3
    q, latents = normal(B, heads, c + dr, dtype=dtype), normal(B, L, c + dr, dtype=dtype, seed=1)
    out = mla_decode(q, latents, torch.tensor(lengths, dtype=torch.int32), dr=dr, scale=0.2, splits=splits)
    rows = [attend(q[b], latents[b, :n], latents[b, :n, :c], 0.2) for b, n in enumerate(lengths)]
    return error(out, torch.stack(rows))


@case("chosen rows, some absent", 8, 70, 20, 1, "float32")
@case("one row each", 3, 9, 1, 1, "float32")
@case("more splits than tiles", 20, 200, 130, 5, "float32")
@case("fp16", 16, 100, 64, 2, "float16")
def sparse_mla(heads: int, L: int, k: int, splits: int, dtype: str) -> float:
    import torch

    from validation.triton_kernels.sparse_mla import sparse_mla

    c, dr, B, S = 32, 16, 2, 3
    q, latents = normal(B, S, heads, c + dr, dtype=dtype), normal(B, L, c + dr, dtype=dtype, seed=1)
    indices = torch.stack([torch.randperm(L)[:k] for _ in range(B * S)]).view(B, S, k).int()
    if k > 1:
        indices[0, 0, k // 2 :] = -1
        indices[1, 2, :] = -1
    out = sparse_mla(q, latents, indices, dr=dr, scale=0.2, splits=splits)
    expected = torch.zeros(B, S, heads, c, dtype=torch.float64)
    for b in range(B):
        for i in range(S):
            rows = latents[b, indices[b, i][indices[b, i] >= 0].long()]
            if len(rows):
                expected[b, i] = attend(q[b, i], rows, rows[:, :c], 0.2)
    return error(out, expected)


@case("causal chunk", 5, 150, 4, 32, 1, "float32")
@case("odd heads, odd width, several splits", 3, 300, 3, 24, 4, "float32")
@case("one query, one key", 1, 1, 2, 16, 1, "float32")
@case("more splits than tiles", 2, 130, 64, 16, 9, "float32")
@case("fp16", 3, 140, 8, 32, 2, "float16")
@case("fp8 keys with scales", 3, 140, 8, 32, 2, "float8_e4m3fn")
def indexer_logits(S: int, L: int, heads: int, d: int, splits: int, dtype: str) -> float:
    import torch

    from validation.triton_kernels.indexer_logits import indexer_logits

    B = 2
    q, k = normal(B, S, heads, d, dtype=dtype), normal(B, L, d, dtype=dtype, seed=1)
    weights, scale = normal(B, S, heads, seed=2), normal(B, L, seed=3).abs()
    ends = torch.arange(L - S + 1, L + 1, dtype=torch.int32).expand(B, S).contiguous()
    fp8 = dtype.startswith("float8")
    found = indexer_logits(q, k, weights, ends, key_scale=scale if fp8 else None, splits=splits)
    products = torch.einsum("bshd,bld->bshl", q.double(), k.double()).relu()
    expected = torch.einsum("bshl,bsh->bsl", products, weights.double()) * (scale.double()[:, None] if fp8 else 1)
    return error(found, expected.masked_fill(torch.arange(L) >= ends[..., None], -torch.inf))


@case("every head selects", 9, 70, 4, 2, 4, 3, 16, 1, "float32")
@case("groups share", 5, 200, 8, 2, 2, 3, 20, 1, "float32")
@case("a single block", 7, 7, 4, 1, 1, 1, 32, 1, "float32")
@case("one token", 1, 1, 2, 1, 2, 1, 16, 3, "float32")
@case("blocks wider than a tile, decode", 1, 500, 8, 2, 2, 3, 150, 5, "float32")
@case("fp16", 4, 130, 8, 2, 2, 2, 32, 1, "float16")
def block_sparse(
    S: int, L: int, heads: int, key_heads: int, selectors: int, n: int, b: int, splits: int, dtype: str
) -> float:
    import torch

    from validation.references.moba import attend_chosen, tokens_of
    from validation.triton_kernels.block_sparse import block_sparse

    B, dk, dv = 2, 24, 32
    q, k = normal(B, S, heads, dk, dtype=dtype), normal(B, L, key_heads, dk, dtype=dtype, seed=1)
    v = normal(B, L, key_heads, dv, dtype=dtype, seed=2)
    blocks = torch.full((B, S, selectors, n), -1, dtype=torch.int32)
    for sequence in range(B):
        for i in range(S):
            own = (L - S + i) // b
            for s in range(selectors):
                earlier = torch.randperm(own)[: n - 1]
                chosen = torch.cat([earlier, torch.tensor([own])])
                blocks[sequence, i, s, torch.randperm(n)[: len(chosen)]] = chosen.int()
    out = block_sparse(q, k, v, blocks, b=b, scale=dk**-0.5, splits=splits)

    def choice(sequence: int) -> Callable[[int, int], Any]:
        def positions(s: int, i: int) -> Any:
            chosen = blocks[sequence, i, s]
            return tokens_of(chosen[chosen >= 0].long(), b, L - S + i + 1)

        return positions

    rows = [
        attend_chosen(*(x[s].double().transpose(0, 1) for x in (q, k, v)), selectors, choice(s)).view(S, heads, dv)
        for s in range(B)
    ]
    return error(out, torch.stack(rows))


def step_size(raw: Any, bias: Any) -> Any:
    import torch

    return torch.nn.functional.softplus(raw.double() + bias.double())


@case("one token", 1, 2, 16, True)
@case("several pieces, the last ragged, odd N", 300, 2, 5, True)
@case("no gate", 256, 3, 4, False)
@case("large steps", 20, 1, 16, True, 30.0)
def selective_scan(T: int, channels: int, N: int, gated: bool, shift: float = 0.0) -> float:
    import torch

    from validation.references.mamba1 import recurrent
    from validation.triton_kernels.selective_scan import selective_scan

    batch = 2
    u, delta, z = (normal(batch, channels, T, seed=seed) for seed in (0, 1, 2))
    B, C, state = normal(batch, N, T, seed=3), normal(batch, N, T, seed=4), normal(batch, channels, N, seed=5)
    A, D, bias = -normal(channels, N, seed=6).exp(), normal(channels, seed=7), normal(channels, seed=8) + shift
    found, final = selective_scan(u, delta, A, B, C, D, bias, state, z=z if gated else None)
    rows, last = [], []
    for b in range(batch):
        step = step_size(delta[b], bias[:, None]).T  # [T, channels]
        decay = torch.exp(step[..., None] * A.double())
        x = u[b].double().T
        y, h = recurrent((step * x, decay, B[b].double().T, C[b].double().T, state[b].double()))
        y = y + D.double() * x
        rows.append((y * torch.nn.functional.silu(z[b].double().T) if gated else y).T)
        last.append(h)
    return max(error(found, torch.stack(rows)), error(final, torch.stack(last)))


@case("odd channels and states", 70, 5, "float32")
@case("one channel", 1, 16, "float32")
@case("bf16 state", 64, 16, "bfloat16")
def mamba1_update(channels: int, N: int, kept: str) -> float:
    import torch

    from validation.triton_kernels.mamba1_update import mamba1_update

    batch = 3
    state = normal(batch, channels, N, dtype=kept)
    x, dt, z = (normal(batch, channels, seed=seed) for seed in (1, 2, 3))
    A, D, bias = -normal(channels, N, seed=4).exp(), normal(channels, seed=5), normal(channels, seed=6)
    B, C = normal(batch, N, seed=7), normal(batch, N, seed=8)
    before = state.double()
    y = mamba1_update(state, x, dt, A, B, C, D, bias, z=z)
    step = step_size(dt, bias)[..., None]
    h = torch.exp(step * A.double()) * before + step * x.double()[..., None] * B.double()[:, None]
    expected = ((h * C.double()[:, None]).sum(-1) + D.double() * x) * torch.nn.functional.silu(z.double())
    return max(error(y, expected), error(state, h))


@case("odd head, groups", 6, 40, 24, 3, "float32", True)
@case("one head, no gate", 1, 64, 128, 1, "float32", False)
@case("bf16 state", 4, 16, 16, 1, "bfloat16", True)
def mamba2_update(heads: int, p: int, N: int, groups: int, kept: str, gated: bool) -> float:
    import torch

    from validation.triton_kernels.mamba2_update import mamba2_update

    batch = 2
    state = normal(batch, heads, p, N, dtype=kept)
    x, z, dt = normal(batch, heads, p, seed=1), normal(batch, heads, p, seed=2), normal(batch, heads, seed=3)
    A, D, bias = -normal(heads, seed=4).exp(), normal(heads, seed=5), normal(heads, seed=6)
    B, C = normal(batch, groups, N, seed=7), normal(batch, groups, N, seed=8)
    before, new = state.double(), torch.empty_like(state)
    y = mamba2_update(state, x, dt, A, B, C, D, bias, z=z if gated else None, new_state=new)
    assert torch.equal(state.double(), before)
    b, c = (t.double().repeat_interleave(heads // groups, 1)[:, :, None] for t in (B, C))
    step = step_size(dt, bias)[..., None, None]
    h = torch.exp(step * A.double()[:, None, None]) * before + step * x.double()[..., None] * b
    expected = (h * c).sum(-1) + D.double()[:, None] * x
    expected = expected * torch.nn.functional.silu(z.double()) if gated else expected
    return max(error(y, expected), error(new, h))


@case("some splits empty, one row without any", 5, 3, 40)
@case("wider than a thread block", 3, 2, 300)
@case("one split", 1, 4, 16)
def combine(splits: int, rows: int, width: int) -> float:
    import torch

    from validation.triton_kernels.combine import combine

    partial, lse = normal(splits, rows, width), normal(splits, rows, seed=1)
    if splits > 4:
        lse[2], lse[:, 1] = -torch.inf, -torch.inf
    out = combine(partial, lse, torch.empty(rows, width))
    weights = torch.softmax(lse.double() * torch.log(torch.tensor(2.0, dtype=torch.float64)), 0).nan_to_num(0.0)
    return error(out, (weights[..., None] * partial.double()).sum(0))


@case("bandwidth and rate probes")
def probes() -> float:
    import torch

    from validation.triton_kernels.empty import empty
    from validation.triton_kernels.exp_chain import exp_chain
    from validation.triton_kernels.fma_chain import fma_chain
    from validation.triton_kernels.l2_reread import l2_reread
    from validation.triton_kernels.limited_copy import limited_copy

    empty(2)
    x = normal(4096).abs()
    exponentials, expected = x.clone(), x.double()
    assert exp_chain(exponentials, 16) == 4096 * 16
    for _ in range(16):
        expected = torch.exp2(-expected)
    sums = normal(4096, seed=1)
    fused = sums.double()
    assert fma_chain(sums, 16) == 2 * 4096 * 16
    for _ in range(16):
        fused = fused / 2 + 1
    source, copied = normal(20_001), torch.zeros(20_001)
    assert limited_copy(copied, source, 2) == 2 * 4 * 20_001
    totals = torch.zeros(3)
    assert l2_reread(source, totals, 4) == 4 * 4 * 20_001
    slices = torch.stack([4 * part.double().sum() for part in source.split(-(-20_001 // 3))])
    pairs = [(exponentials, expected), (sums, fused), (copied, source.double()), (totals, slices)]
    return max(error(found, right) for found, right in pairs)


def tolerance(name: str) -> float:
    # Stored numbers of 8 and 11 bits. The interpreter computes everything else in fp32, and no products of bf16.
    return 1e-2 if "bf16" in name else 2e-3 if "fp16" in name else 1e-5


@cache
def interpreted() -> dict[str, float | str]:
    """All cases, in a process whose Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, __file__], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(json.loads(result.stdout))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("name", CASES)
def test_an_own_kernel_gives_what_its_formula_says(name: str) -> None:
    found = interpreted()[name]
    assert isinstance(found, float), found
    assert found <= tolerance(name)


def main() -> None:
    import traceback

    import torch

    torch.manual_seed(20261124)
    errors: dict[str, float | str] = {}
    for name, check in CASES.items():
        try:
            errors[name] = check()
        except Exception:
            errors[name] = traceback.format_exc()[-2000:]
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
