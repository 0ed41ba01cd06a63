"""Linear mechanisms and short convolutions as fla-core runs them: over a sequence, and for one token.

fla hands over to other packages' kernels where it finds them; here it is told not to, so that a row names what ran.
Layouts are fla's own, [B, T, H, d], states [B, H, dk, dv] in fp32, decays as logarithms.

Source: fla-org/flash-linear-attention, fla/ops/*/chunk.py and fused_recurrent.py (fla-core 0.6).
"""

import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from validation.runners import Implementation, Inputs, Outputs, Shape, number

if TYPE_CHECKING:
    from validation.device import DeviceFacts

Arguments = dict[str, Any]


class Operator(NamedTuple):
    """Where fla has a mechanism, and what its functions call the inputs besides q, k, v and the state.

    stepping: the module whose function steps one token, where it is another.
    """

    module: str
    chunked: Callable[[Inputs], Arguments]
    stepped: Callable[[Inputs], Arguments]
    stepping: str = ""


def constant(x: Inputs) -> Arguments:
    """One decay per head for all tokens."""
    return {"g_gamma": x["g"][0, 0, :, 0].contiguous()}


def per_head(x: Inputs) -> Arguments:
    """One decay per head and token."""
    return {"g": x["g"][..., 0].contiguous()}


def shared_keys(x: Inputs) -> Arguments:
    """Mamba-2's B and C repeated for every head, and its inputs times their step sizes."""
    H = x["v"].shape[2]
    wide = {name: x[name].expand(-1, -1, H, -1).contiguous() for name in ("q", "k")}
    return {**wide, "v": (x["v"].float() * x["delta"].float()).to(x["v"].dtype), **per_head(x)}


def beta(x: Inputs) -> Arguments:
    """Writing strengths."""
    return {"beta": x["beta"][..., 0].contiguous()}


def gated_delta(x: Inputs) -> Arguments:
    """Writing strengths and a decay per head."""
    return {**beta(x), **per_head(x)}


def channel_delta(x: Inputs) -> Arguments:
    """Writing strengths and a decay per key channel."""
    return {**beta(x), "g": x["g"]}


def several_pairs(x: Inputs) -> Arguments:
    """Writing strengths of all pairs, a decay per token, and how many pairs a token writes."""
    return {**gated_delta(x), "num_householder": x["k"].shape[1] // x["q"].shape[1]}


def pair_by_pair(x: Inputs) -> Arguments:
    """Every pair as a token: only the first of a token decays, only the last one is asked, as in fla's layer."""
    import torch

    T, rows = x["q"].shape[1], x["k"].shape[1]
    place = torch.arange(rows, device=x["q"].device) % (rows // T)
    q, g = (each.repeat_interleave(rows // T, 1) for each in (x["q"], x["g"][..., 0]))
    return {**beta(x), "q": q * (place == place[-1])[:, None, None], "g": g * (place == 0)[:, None]}


def bonus(x: Inputs) -> Arguments:
    """RWKV-6's names; RWKV-5 is it with decays that do not change."""
    return {"q": None, "r": x["q"], "w": x["g"], "u": x["bonus"]}


def low_rank(x: Inputs) -> Arguments:
    """RWKV-7's names."""
    return {"q": None, "r": x["q"], "w": x["g"], "a": x["a"], "b": x["b"]}


OPERATORS = {
    "retnet": Operator("simple_gla", constant, constant),
    "lightning": Operator("simple_gla", constant, constant),
    "mamba2": Operator("simple_gla", shared_keys, shared_keys),
    "gla": Operator("gla", lambda x: {"g": x["g"]}, lambda x: {"gk": x["g"]}),
    "rwkv5": Operator("rwkv6", bonus, bonus),
    "rwkv6": Operator("rwkv6", bonus, bonus),
    "deltanet": Operator("delta_rule", beta, beta),
    "gated-delta-product": Operator("gated_delta_product", several_pairs, pair_by_pair, "gated_delta_rule"),
    "gdn": Operator("gated_delta_rule", gated_delta, gated_delta),
    "kda": Operator("kda", channel_delta, channel_delta),
    "rwkv7": Operator("rwkv7", low_rank, low_rank),
}


def fla_module(name: str) -> Any:
    """A module of fla, told before its first import to run its own kernels."""
    os.environ.setdefault("FLA_DISABLE_BACKEND_DISPATCH", "1")
    return importlib.import_module(name)


def module_of(mechanism: str, kind: str) -> str:
    """fla's module for a mechanism and a kind of function, "chunk" or "fused_recurrent"."""
    operator = OPERATORS[mechanism]
    return operator.stepping or operator.module if kind == "fused_recurrent" else operator.module


def function(module: str, kind: str) -> Any:
    """fla's function of this kind."""
    return getattr(fla_module(f"fla.ops.{module}"), f"{kind}_{module}")


def arguments(mechanism: str, kind: str, x: Inputs) -> Arguments:
    """What fla's function is called with; no scale on the queries, and the state is returned."""
    operator = OPERATORS[mechanism]
    named = {name: x[name] for name in "qkv"} | (operator.chunked if kind == "chunk" else operator.stepped)(x)
    fixed = {"scale": 1.0, "initial_state": x["M"], "output_final_state": True}
    return {name: value for name, value in named.items() if value is not None} | fixed


def prepare(mechanism: str, kind: str, shape: Shape, inputs: Inputs) -> Inputs:
    """The function and its arguments in fla's layouts."""
    return {
        "function": function(module_of(mechanism, kind), kind),
        "arguments": arguments(mechanism, kind, inputs),
    }


def run(shape: Shape, inputs: Inputs) -> Outputs:
    """Output and final state; of a token that was run pair by pair, the last pair's output."""
    out, state = inputs["function"](**inputs["arguments"])
    pairs = out.shape[1] // number(shape, "new_tokens")
    return out[:, pairs - 1 :: pairs], state


def supports(mechanism: str, kind: str, shape: Shape, facts: "DeviceFacts") -> str:
    """The chunked delta rule and product of rules refuse fp32; all others take every format."""
    if mechanism in ("deltanet", "gated-delta-product") and kind == "chunk" and shape["dtype"] == "fp32":
        return "fla's chunked delta rule takes bf16 or fp16"
    return ""


def convolution(activation: str | None, shape: Shape, inputs: Inputs) -> Inputs:
    """Tokens before channels, and a history as long as the taps, whose first place is not read."""
    import torch

    module = fla_module("fla.modules.causal_conv1d")
    cache = torch.cat([torch.zeros_like(inputs["history"][..., :1]), inputs["history"]], -1)
    rows = {f"{name}_rows": inputs[name].mT.contiguous() for name in ("before", "x", "behind") if name in inputs}
    given = {"weight": inputs["taps"], "activation": activation}
    if inputs["x"].shape[-1] == 1:
        return {"function": module.causal_conv1d_update, "arguments": {**given, "cache": cache}, **rows}
    return {"function": module.causal_conv1d, "arguments": {**given, "initial_state": cache}, **rows}


def convolve(shape: Shape, inputs: Inputs) -> Outputs:
    """The convolved channels; the updated history stays with fla."""
    out, _ = inputs["function"](x=inputs["x_rows"], **inputs["arguments"])
    return (out.mT,)


def gate_and_convolve(shape: Shape, inputs: Inputs) -> Outputs:
    """The same between two gates, as LFM2's layers call such a kernel."""
    out, _ = inputs["function"](x=inputs["before_rows"] * inputs["x_rows"], **inputs["arguments"])
    return ((inputs["behind_rows"] * out).mT,)


def implementation(mechanism: str, kind: str) -> tuple[Implementation, ...]:
    """One of fla's functions for a mechanism."""
    return (
        Implementation(
            f"fla.{kind}-{module_of(mechanism, kind)}",
            ("cuda",),
            run,
            requires=("fla", "triton"),
            supports=partial(supports, mechanism, kind),
            prepare=partial(prepare, mechanism, kind),
        ),
    )


IMPLEMENTATIONS = {
    f"{mechanism}-{phase}": implementation(mechanism, kind)
    for mechanism in OPERATORS
    for phase, kind in (("prefill", "chunk"), ("decode", "fused_recurrent"))
} | {
    f"{name}-{phase}": (
        Implementation(
            "fla.causal-conv1d",
            ("cuda",),
            call,
            requires=("fla", "triton"),
            prepare=partial(convolution, activation),
        ),
    )
    for name, call, activation in (("short-conv", convolve, "silu"), ("gated-conv", gate_and_convolve, None))
    for phase in ("prefill", "decode")
}
