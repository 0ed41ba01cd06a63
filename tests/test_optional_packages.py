"""Optional packages are called as their documentation says: stand-ins with those arguments must give the reference."""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch

from validation.absent_device import described
from validation.runners import (
    Implementation,
    Runner,
    Shape,
    causal_conv1d,
    deep_gemm,
    flash_attention,
    flash_mla,
    flashinfer,
    gathered_rows,
    mamba_ssm,
    retention,
    runner,
)

FILES = (causal_conv1d, deep_gemm, flash_attention, flash_mla, flashinfer, gathered_rows, mamba_ssm, retention)
CASES = {
    f"{name} {implementation.name}": (name, implementation)
    for file in FILES
    for name, implementations in file.IMPLEMENTATIONS.items()
    for implementation in implementations
    if "triton" not in implementation.requires
}


def masked(q: Any, k: Any, v: Any, *, causal: bool, window: tuple[int, int]) -> Any:
    """Tokens before heads; the last query stands at the last key."""
    S, L = q.shape[1], k.shape[1]
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    position = torch.arange(L - S, L)[:, None]
    seen = torch.arange(L) <= position if causal else torch.ones(S, L, dtype=torch.bool)
    if window[0] >= 0:
        seen &= torch.arange(L) >= position - window[0]
    scores = torch.einsum("bshd,blhd->bhsl", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhsl,blhd->bshd", torch.softmax(scores.masked_fill(~seen, -torch.inf), -1), v)


def flash_attn_func(q: Any, k: Any, v: Any, *, causal: bool = False, window_size: Any = (-1, -1)) -> Any:
    return masked(q, k, v, causal=causal, window=window_size)


def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, *, cache_seqlens: Any, causal: bool = False) -> Any:
    assert cache_seqlens.dtype == torch.int32
    assert set(cache_seqlens.tolist()) == {k_cache.shape[1]}
    return masked(q, k_cache, v_cache, causal=causal, window=(-1, -1))


def with_log_sum(function: Any, *args: Any, **options: Any) -> Any:
    """As FlashAttention 3 before it returned the output alone."""
    return function(*args, **options), torch.zeros(1)


def single_prefill_with_kv_cache(
    q: Any, k: Any, v: Any, *, causal: bool = False, kv_layout: str = "NHD", window_left: int = -1
) -> Any:
    assert kv_layout == "NHD"
    return masked(q[None], k[None], v[None], causal=causal, window=(window_left, 0))[0]


def single_decode_with_kv_cache(q: Any, k: Any, v: Any, *, kv_layout: str = "NHD") -> Any:
    assert kv_layout == "NHD"
    return masked(q[None, None], k[None], v[None], causal=True, window=(-1, -1))[0, 0]


def selective_state_update(
    state: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, *, D: Any = None, z: Any = None, dt_softplus: bool = False
) -> Any:
    """state (batch, dim, dstate) or (batch, nheads, dim, dstate), in place; B, C (batch[, ngroups], dstate)."""
    assert x.shape == dt.shape == state.shape[:-1]
    assert A.shape == state.shape[1:]
    step = torch.nn.functional.softplus(dt) if dt_softplus else dt
    if state.ndim == 4:
        B, C = (each.repeat_interleave(state.shape[1] // each.shape[1], 1)[:, :, None] for each in (B, C))
    else:
        B, C = B[:, None], C[:, None]
    state.copy_(state * torch.exp(step[..., None] * A) + (step * x)[..., None] * B)
    out = (state * C).sum(-1) + (0 if D is None else x * D)
    return out if z is None else out * torch.nn.functional.silu(z)


def mamba_chunk_scan_combined(
    x: Any, dt: Any, A: Any, B: Any, C: Any, *, chunk_size: int, initial_states: Any, return_final_states: bool
) -> Any:
    """x (batch, seqlen, nheads, headdim), dt (batch, seqlen, nheads), A (nheads), B, C (batch, seqlen, ngroups, n)."""
    assert return_final_states
    assert chunk_size > 0
    state, outs = initial_states.clone(), []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None].expand_as(x[:, t])
        rates = A[:, None, None].expand(state.shape[1:])
        outs.append(selective_state_update(state, x[:, t], step, rates, B[:, t], C[:, t]))
    return torch.stack(outs, 1), state


def mamba3_siso_step(
    Q: Any,
    K: Any,
    V: Any,
    ADT: Any,
    DT: Any,
    Trap: Any,
    Q_bias: Any,
    K_bias: Any,
    Angles: Any,
    D: Any = None,
    Z: Any = None,
    Input_States: Any = None,
) -> Any:
    """Q, K (batch, nheads_qk, dqk), V, Z (batch, nheads, dv), ADT, DT, Trap (batch, nheads), Angles (batch, nheads, a).

    Input_States: angles (batch, nheads, a), state (batch, nheads, dv, dqk), K (batch, nheads, dqk), V (…, dv).
    """
    turn, state, before_k, before_v = Input_States
    turn = torch.remainder(turn + torch.tanh(Angles) * torch.pi * DT[..., None], 2 * torch.pi)
    width = 2 * turn.shape[-1]
    by = torch.polar(torch.ones_like(turn), turn)
    turned = []
    for each in (Q + Q_bias, K + K_bias):
        pairs = torch.view_as_complex(each[..., :width].unflatten(-1, (-1, 2)).contiguous())
        turned.append(torch.cat([torch.view_as_real(pairs * by).flatten(-2), each[..., width:]], -1))
    (q, k), share = turned, torch.sigmoid(Trap)
    state = state + ((1 - share) * DT)[..., None, None] * before_v[..., None] * before_k[..., None, :]
    state = ADT.exp()[..., None, None] * state + (share * DT)[..., None, None] * V[..., None] * k[..., None, :]
    out = (state * q[..., None, :]).sum(-1) + D[:, None] * V
    return out * torch.nn.functional.silu(Z), [turn, state, k, V]


def mamba3_siso_combined(
    *tokens: Any, Input_States: Any = None, chunk_size: int = 64, return_final_states: bool = False, **named: Any
) -> Any:
    """As one token, with an axis for tokens before the heads, behind them in ADT, DT and Trap."""
    assert not tokens
    assert return_final_states
    outs, kept = [], Input_States
    for t in range(named["Q"].shape[1]):
        one = {name: named[name][:, t] for name in ("Q", "K", "V", "Angles", "Z")}
        one |= {name: named[name][..., t] for name in ("ADT", "DT", "Trap")}
        out, kept = mamba3_siso_step(
            **one, **{name: named[name] for name in ("Q_bias", "K_bias", "D")}, Input_States=kept
        )
        outs.append(out)
    return torch.stack(outs, 1), *kept


def power_retention(Q: Any, K: Any, V: Any, log_G: Any = None, *, deg: int = 2, chunk_size: int | None = None) -> Any:
    """Q (batch, seq_len, q_heads, d), K, V (batch, seq_len, kv_heads, d), log_G (batch, seq_len, kv_heads).

    The package keeps the first column of the values for the normaliser, and sets it to one.
    """
    assert deg == 2
    assert chunk_size is not None
    assert bool((V[..., 0] == 1).all())
    group = Q.shape[2] // K.shape[2]
    K, V, logs = (each.repeat_interleave(group, 2) for each in (K, V, log_G.cumsum(1)))
    between = logs.mT[..., :, None] - logs.mT[..., None, :]
    weights = torch.einsum("bshd,bthd->bhst", Q, K) ** deg * between.exp().tril()
    return torch.einsum("bhst,bthv->bshv", weights / weights.sum(-1, keepdim=True), V)


def causal_conv1d_fn(
    x: Any, weight: Any, bias: Any = None, *, initial_states: Any = None, activation: str | None = None
) -> Any:
    """x (batch, dim, seqlen), weight (dim, width), initial_states (batch, dim, width - 1): both channels last."""
    assert bias is None
    assert x.stride(1) == initial_states.stride(1) == 1
    assert x.shape[1] % 8 == 0
    whole = torch.cat([initial_states, x], -1)
    out = torch.nn.functional.conv1d(whole, weight[:, None], groups=x.shape[1])
    return out if activation is None else torch.nn.functional.silu(out)


def causal_conv1d_update(x: Any, conv_state: Any, weight: Any, bias: Any = None, activation: str | None = None) -> Any:
    """x (batch, dim, seqlen), conv_state (batch, dim, state_len) in place."""
    out = causal_conv1d_fn(x, weight, bias, initial_states=conv_state, activation=activation)
    conv_state.copy_(torch.cat([conv_state, x], -1)[..., -conv_state.shape[-1] :])
    return out


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, max_q: int, begins_q: Any, max_k: int, begins_k: Any, *, causal: bool = False
) -> Any:
    """Sequences one after another, tokens before heads."""
    assert begins_q.dtype == begins_k.dtype == torch.int32
    assert (max_q, max_k) == tuple(int((begins[1:] - begins[:-1]).max()) for begins in (begins_q, begins_k))
    spans = zip(begins_q.tolist(), begins_q[1:].tolist(), strict=False)
    parts = [masked(*(x[None, a:b] for x in (q, k, v)), causal=causal, window=(-1, -1))[0] for a, b in spans]
    return torch.cat(parts)


def fp8_gemm_nt(a: Any, b: Any, d: Any) -> None:
    """x [m, k] with a scale per row and 128 elements, w [n, k] with one per 128 × 128, into d."""
    (x, x_scales), (w, w_scales) = a, b
    assert x_scales.shape == (x.shape[0], x.shape[1] // 128)
    assert w_scales.shape == (w.shape[0] // 128, w.shape[1] // 128)
    left = x * x_scales.repeat_interleave(128, 1)
    right = w * w_scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    d.copy_(left @ right.mT)


def fp8_mqa_logits(q: Any, kv: Any, weights: Any, first: Any, last: Any, clean_logits: bool = True) -> Any:
    """q [S, H, d], keys [L, d] with a scale each, weights [S, H]; keys outside first … last are not computed."""
    k, scales = kv
    assert first.dtype == last.dtype == torch.int32
    scores = torch.relu(torch.einsum("shd,ld->shl", q, k * scales[:, None]))
    logits = torch.einsum("shl,sh->sl", scores, weights)
    places = torch.arange(len(k))
    return logits.masked_fill((places < first[:, None]) | (places >= last[:, None]), torch.nan)


def get_mla_metadata(cache_seqlens: Any, num_q_tokens_per_head_k: int, num_heads_k: int) -> Any:
    assert num_heads_k == 1
    return "plan", num_q_tokens_per_head_k


def flash_mla_with_kvcache(
    q: Any, k_cache: Any, block_table: Any, cache_seqlens: Any, head_dim_v: int, plan: Any, num_splits: Any
) -> Any:
    """q [B, S, H, d], pages [n, 64, 1, d], the pages of each sequence in order."""
    assert (plan, num_splits) == ("plan", q.shape[2])
    assert k_cache.shape[1:3] == (64, 1)
    outs = []
    for one, table, length in zip(q, block_table, cache_seqlens, strict=True):
        keys = k_cache[table.long(), :, 0].flatten(0, 1)[: int(length)]
        share = torch.softmax(one @ keys.mT * q.shape[-1] ** -0.5, -1)
        outs.append(share @ keys[:, :head_dim_v])
    return torch.stack(outs), torch.zeros(1)


def flash_mla_sparse_fwd(
    q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int = 512, attn_sink: Any = None, topk_length: Any = None
) -> Any:
    """q [S, H, d], latents [L, 1, d], indices [S, 1, k], −1 for none; sinks [H] in fp32 take their share of the sum."""
    assert indices.dtype == torch.int32
    rows, absent = kv[indices[:, 0].clamp(min=0).long(), 0], indices < 0
    scores = (q @ rows.mT * sm_scale).masked_fill(absent, -torch.inf)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    if attn_sink is None:
        return torch.exp(scores - lse) @ rows[..., :d_v], torch.zeros(1), torch.zeros(1)
    assert attn_sink.dtype == torch.float32
    assert indices.shape[-1] % 128 == 0
    share = torch.sigmoid(lse - attn_sink.to(lse.dtype)[:, None])
    return torch.exp(scores - lse) * share @ rows[..., :d_v], torch.zeros(1), torch.zeros(1)


STAND_INS = {
    "retention": (power_retention,),
    "causal_conv1d": (causal_conv1d_fn, causal_conv1d_update),
    "deep_gemm": (fp8_gemm_nt, fp8_mqa_logits),
    "flash_mla": (get_mla_metadata, flash_mla_with_kvcache, flash_mla_sparse_fwd),
    "vllm": (),
    "vllm.vllm_flash_attn": (flash_attn_varlen_func,),
    "flash_attn": (flash_attn_func, flash_attn_with_kvcache),
    "flash_attn_interface": (flash_attn_func, flash_attn_with_kvcache),
    "flashinfer": (single_prefill_with_kv_cache, single_decode_with_kv_cache),
    "mamba_ssm": (),
    "mamba_ssm.ops": (),
    "mamba_ssm.ops.triton": (),
    "mamba_ssm.ops.triton.selective_state_update": (selective_state_update,),
    "mamba_ssm.ops.triton.mamba3": (),
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined": (mamba3_siso_combined,),
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_step": (mamba3_siso_step,),
    "mamba_ssm.ops.triton.ssd_combined": (mamba_chunk_scan_combined,),
}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, functions in STAND_INS.items():
        module = ModuleType(name)
        for function in functions:
            told = partial(with_log_sum, function) if name == "flash_attn_interface" else function
            setattr(module, function.__name__, told)
        monkeypatch.setitem(sys.modules, name, module)


def distances(operator: Runner, implementation: Implementation) -> list[float]:
    shape = {**operator.small(operator.points(described("sm_90"), "quick")[0].shape), "dtype": "fp32"}
    shape |= {name: size for name, size in {"heads": 4, "kv_heads": 2}.items() if name in shape}
    shape |= {"kv_heads": 4} if operator.name == "mla-prefill" else {}
    drawn = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(1))
    exact = {name: x.double() if x.is_floating_point() else x for name, x in drawn.items()}
    expected = operator.reference(shape, exact)
    found = implementation.run(shape, {**exact, **implementation.prepare(shape, exact)})
    assert [out.shape for out in found] == [right.shape for right in expected]
    return [float((out - right).norm() / right.norm()) for out, right in zip(found, expected, strict=True)]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", CASES)
def test_a_package_is_given_what_its_function_expects(name: str) -> None:
    operator, implementation = CASES[name]
    assert max(distances(runner(operator), implementation)) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_a_package_supports_points_of_its_operator_on_hopper(name: str) -> None:
    operator, implementation = CASES[name]
    points = runner(operator).points(described("sm_90"), "quick")
    assert any(implementation.supports(point.shape, described("sm_90")) == "" for point in points)


def test_what_a_package_does_not_run_is_said() -> None:
    flash2, flash3, one_sequence = flash_attention.FLASH2, flash_attention.FLASH3, flashinfer.PREFILL
    shape: Shape = {"dtype": "bf16", "head_dim": 128, "batch": 2}
    assert flash2.supports(shape, described("sm_80")) == ""
    assert "compute capability 9" in flash3.supports(shape, described("sm_100"))
    assert one_sequence.supports(shape, described("sm_90")) == "takes one sequence"
    assert "256" in flash2.supports({**shape, "head_dim": 512}, described("sm_80"))
    assert "not fp32" in flash2.supports({**shape, "dtype": "fp32"}, described("sm_80"))
