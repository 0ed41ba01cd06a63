"""Scans and steps of Mamba, Mamba-2 and Mamba-3 by mamba-ssm, where it is installed.

Source: state-spaces/mamba, mamba_ssm/ops/triton.
"""

import importlib

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import of

CHUNK = 256
"""Tokens of a chunk of Mamba-2."""


def mamba1_token(shape: Shape, inputs: Inputs) -> Inputs:
    """States that the package overwrites."""
    return {"state": inputs["h"].clone()}


def mamba1_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token; step sizes are given as they are."""
    function = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    x, delta, z, B, C = (inputs[name][:, 0] for name in ("x", "delta", "z", "B", "C"))
    y = function(inputs["state"], x, delta, inputs["A"], B, C, D=inputs["skip"], z=z)
    return y[:, None], inputs["state"]


def mamba2_states(shape: Shape, inputs: Inputs) -> Inputs:
    """States with N contiguous."""
    return {"state": inputs["M"].mT.contiguous()}


def mamba2_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token; step sizes and rates are repeated without copies, which the package recognises."""
    function = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    state = inputs["state"]
    x, B, C = (inputs[name][:, 0] for name in ("v", "k", "q"))
    A = inputs["rate"][:, None, None].expand(state.shape[1:])
    y = function(state, x, inputs["delta"][:, 0].expand_as(x), A, B, C)
    return y[:, None], state.mT


def mamba2_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Chunks of the sequence; heads share B and C in memory."""
    function = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    out, state = function(
        inputs["v"],
        inputs["delta"][..., 0],
        inputs["rate"],
        inputs["k"],
        inputs["q"],
        chunk_size=CHUNK,
        initial_states=inputs["state"],
        return_final_states=True,
    )
    return out, state.mT


def mamba3_tokens(shape: Shape, inputs: Inputs) -> Inputs:
    """What Mamba-3's kernels of one input and output per head take: heads before tokens for what has no width, angles
    for every head, and states with N contiguous."""
    H = number(shape, "heads")
    rows = {"ADT": inputs["delta"] * inputs["rate"], "DT": inputs["delta"], "Trap": inputs["trap"]}
    last = (inputs[name].to(inputs["M"].dtype) for name in ("last_B", "last_x"))
    tokens = {
        **{name: each.mT.contiguous() for name, each in rows.items()},
        **{name: inputs[other] for name, other in (("Q", "C"), ("K", "B"), ("V", "x"), ("Z", "z"))},
        "Angles": inputs["angles"][:, :, None].expand(-1, -1, H, -1).contiguous(),
    }
    fixed = {"Q_bias": inputs["C_bias"], "K_bias": inputs["B_bias"], "D": inputs["skip"]}
    states = {"Input_States": (inputs["turn"], inputs["M"].mT.contiguous(), *last)}
    if number(shape, "new_tokens") == 1:
        tokens = {name: each[..., 0] if name in rows else each[:, 0] for name, each in tokens.items()}
    return {"arguments": {**tokens, **fixed, **states}}


def mamba3_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """The gated scan of many tokens, after the cumulative angles."""
    function = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined").mamba3_siso_combined
    y, _, M, b, _ = function(**inputs["arguments"], return_final_states=True)
    return y, M.mT, b


def mamba3_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token."""
    function = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_step").mamba3_siso_step
    y, (_, M, b, _) = function(**inputs["arguments"])
    return y[:, None], M.mT, b


IMPLEMENTATIONS = {
    "mamba1-decode": (of("mamba_ssm", "mamba-ssm.update", mamba1_decode, prepare=mamba1_token),),
    "mamba2-decode": (of("mamba_ssm", "mamba-ssm.update", mamba2_decode, prepare=mamba2_states),),
    "mamba2-prefill": (of("mamba_ssm", "mamba-ssm.chunk-scan", mamba2_prefill, prepare=mamba2_states),),
    "mamba3-decode": (of("mamba_ssm", "mamba-ssm.siso-step", mamba3_decode, prepare=mamba3_tokens),),
    "mamba3-prefill": (of("mamba_ssm", "mamba-ssm.siso-scan", mamba3_prefill, prepare=mamba3_tokens),),
}
