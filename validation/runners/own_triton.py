"""The project's own Triton kernels, for the operators that no package serves everywhere."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from validation.resources import occupancy_of
from validation.runners import Implementation, Inputs, Outputs, Shape, has_fp8, number

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

PROGRAMS_WITHOUT_DEVICE = 132
"""Thread blocks to fill where tensors have no device to ask: one per unit of an H100."""


def slots(device: "torch.device", kernel: str, example: str = "") -> int:
    """Thread blocks of a kernel that a device holds at once; one in each unit where no report says."""
    import torch

    if device.type != "cuda":
        return PROGRAMS_WITHOUT_DEVICE
    properties = torch.cuda.get_device_properties(device)
    units = int(properties.multi_processor_count)
    return units * (occupancy_of(kernel, (properties.major, properties.minor), example) or 1)


def sixteen_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """The kernels with matrix products take bf16 and fp16: tiles of wider rows do not fit on a unit."""
    dtype = str(shape["dtype"])
    return "" if dtype in ("bf16", "fp16") else f"takes bf16 or fp16, not {dtype}"


def powers_of_two(shape: Shape, facts: "DeviceFacts") -> str:
    """Rows of latents are loaded whole."""
    odd = [name for name in ("latent", "rope") if number(shape, name).bit_count() != 1]
    return sixteen_bits(shape, facts) or (f"{odd[0]} {number(shape, odd[0])} is no power of two" if odd else "")


def scored(shape: Shape, facts: "DeviceFacts") -> str:
    """The indexer takes fp8 too, where matrix instructions do."""
    if shape["dtype"] != "fp8":
        return sixteen_bits(shape, facts)
    return "" if has_fp8(facts) else "this part has no fp8 matrix instructions"


def splits_of_cache(shape: Shape, inputs: Inputs) -> Inputs:
    """Lengths, and as many splits as fill the device."""
    import torch

    from validation.triton_kernels.mla_decode import split_count, tile_of
    from validation.triton_kernels.shared_memory import roomy

    B, H, L = (number(shape, name) for name in ("batch", "heads", "context"))
    device = inputs["q"].device
    room = slots(device, "mla_decode", "16 heads" if H <= 16 else "128 heads")
    splits = split_count(B * -(-H // tile_of(H, roomy(device)).heads), L, room)
    return {"lengths": torch.full((B,), L, dtype=torch.int32, device=device), "splits": splits}


def mla_decode(shape: Shape, inputs: Inputs) -> Outputs:
    """Keys split over thread blocks, then combined."""
    from validation.triton_kernels.mla_decode import mla_decode as kernel

    q, r = inputs["q"], number(shape, "rope")
    scale = q.shape[-1] ** -0.5
    return (kernel(q, inputs["latents"], inputs["lengths"], dr=r, scale=scale, splits=inputs["splits"]),)


def ends_of_queries(shape: Shape, inputs: Inputs) -> Inputs:
    """How many keys every query sees, and as many splits as fill the device."""
    import torch

    from validation.triton_kernels.indexer_logits import ROWS
    from validation.triton_kernels.mla_decode import split_count

    B, S, L, H = (number(shape, name) for name in ("batch", "new_tokens", "context", "heads"))
    device = inputs["q"].device
    ends = torch.arange(L - S + 1, L + 1, dtype=torch.int32, device=device).expand(B, S).contiguous()
    programs = B * -(-S // max(1, ROWS // H))
    example = "fp8" if shape["dtype"] == "fp8" else "bf16"
    return {"ends": ends, "splits": split_count(programs, L, slots(device, "indexer_logits", example), 512)}


def indexer(shape: Shape, inputs: Inputs) -> Outputs:
    """Logits of all keys."""
    from validation.triton_kernels.indexer_logits import indexer_logits

    q, k, w, ends = (inputs[name] for name in ("q", "k", "w", "ends"))
    return (indexer_logits(q, k, w, ends, splits=inputs["splits"], hidden=0.0),)


def narrow_indices(shape: Shape, inputs: Inputs) -> Inputs:
    """Indices in 32 bits, and as many splits as fill the device."""
    import torch

    from validation.triton_kernels.mla_decode import split_count, tile_of
    from validation.triton_kernels.shared_memory import roomy

    q, H = inputs["q"], number(shape, "heads")
    programs = q.shape[0] * q.shape[1] * -(-H // tile_of(H, roomy(q.device)).heads)
    room = slots(q.device, "sparse_mla", "16 heads" if H <= 16 else "128 heads")
    return {"rows": inputs["indices"].to(torch.int32), "splits": split_count(programs, number(shape, "k"), room)}


def sparse_mla(shape: Shape, inputs: Inputs) -> Outputs:
    """A thread block per query gathers its rows."""
    from validation.triton_kernels.sparse_mla import sparse_mla as kernel

    q, r = inputs["q"], number(shape, "rope")
    scale = q.shape[-1] ** -0.5
    out = kernel(q, inputs["latents"], inputs["rows"], dr=r, scale=scale, splits=inputs["splits"])
    return (out.flatten(2),)


def tokens_outside(shape: Shape, inputs: Inputs) -> Inputs:
    """Tokens before heads, and every query's own block among its blocks."""
    import torch

    S, b, chosen = number(shape, "new_tokens"), number(shape, "block"), inputs["blocks"]
    own = (torch.arange(S, device=chosen.device) // b)[:, None].expand(*chosen.shape[:3], 1)
    blocks = torch.cat([chosen, own], -1).transpose(1, 2).to(torch.int32).contiguous()
    rows = {f"{name}_rows": inputs[name].transpose(1, 2).contiguous() for name in "qkv"}
    return {**rows, "block_rows": blocks}


def block_sparse(shape: Shape, inputs: Inputs) -> Outputs:
    """A thread block per query and selecting head."""
    from validation.triton_kernels.block_sparse import block_sparse as kernel

    q, k, v, blocks = (inputs[name] for name in ("q_rows", "k_rows", "v_rows", "block_rows"))
    return (kernel(q, k, v, blocks, b=number(shape, "block"), scale=q.shape[-1] ** -0.5).flatten(2),)


def before_softplus(step: Any) -> Any:
    """What a kernel that applies softplus must be given for these step sizes."""
    import torch

    return torch.log(torch.expm1(step.float()))


def tokens_inside(shape: Shape, inputs: Inputs) -> Inputs:
    """Channels before tokens, raw step sizes, and no bias on them."""
    import torch

    raw = before_softplus(inputs["delta"]).to(inputs["delta"].dtype)
    rows = {name: inputs[name].mT.contiguous() for name in ("x", "z", "B", "C")}
    return {"raw": raw.mT.contiguous(), "bias": torch.zeros_like(inputs["skip"]), "rows": rows}


def selective_scan(shape: Shape, inputs: Inputs) -> Outputs:
    """A thread block per channel scans pieces of the sequence."""
    from validation.triton_kernels.selective_scan import selective_scan as kernel

    rows, A, skip = inputs["rows"], inputs["A"], inputs["skip"]
    B, C = rows["B"], rows["C"]
    y, h = kernel(rows["x"], inputs["raw"], A, B, C, skip, inputs["bias"], inputs["h"], z=rows["z"])
    return y.mT, h


def one_token(shape: Shape, inputs: Inputs) -> Inputs:
    """The token's raw step sizes, no bias on them, and room for the new states."""
    import torch

    raw = before_softplus(inputs["delta"][:, 0]).to(inputs["delta"].dtype)
    return {"raw": raw, "bias": torch.zeros_like(inputs["skip"]), "new": torch.empty_like(inputs["h"])}


def mamba1_update(shape: Shape, inputs: Inputs) -> Outputs:
    """A thread block per tile of channels."""
    from validation.triton_kernels.mamba1_update import mamba1_update as kernel

    x, z, B, C = (inputs[name][:, 0] for name in ("x", "z", "B", "C"))
    h, new, A = inputs["h"], inputs["new"], inputs["A"]
    y = kernel(h, x, inputs["raw"], A, B, C, inputs["skip"], inputs["bias"], z=z, new_state=new)
    return y[:, None], new


def rows_of_states(shape: Shape, inputs: Inputs) -> Inputs:
    """The states with N contiguous, raw step sizes in fp32, no bias on them, and room for the new states."""
    import torch

    state = inputs["M"].mT.contiguous()
    fixed = {"bias": torch.zeros_like(inputs["rate"]), "new": torch.empty_like(state)}
    return {**fixed, "state": state, "raw": before_softplus(inputs["delta"][:, 0, :, 0])}


def mamba2_update(shape: Shape, inputs: Inputs) -> Outputs:
    """A thread block per head and tile of its state."""
    from validation.triton_kernels.mamba2_update import mamba2_update as kernel

    x, C, B = (inputs[name][:, 0] for name in ("v", "q", "k"))
    state, new, none = inputs["state"], inputs["new"], inputs["bias"]
    y = kernel(state, x, inputs["raw"], inputs["rate"], B, C, none, none, new_state=new)
    return y[:, None], new.mT


def own(
    name: str,
    run: Callable[[Shape, Inputs], Outputs],
    prepare: Callable[[Shape, Inputs], Inputs],
    supports: Callable[[Shape, "DeviceFacts"], str],
    compiled: tuple[str, str] | None = None,
) -> tuple[Implementation, ...]:
    """An implementation by a kernel of the project."""
    return (
        Implementation(
            name, ("cuda",), run, requires=("triton",), prepare=prepare, supports=supports, compiled=compiled
        ),
    )


def anything(shape: Shape, facts: "DeviceFacts") -> str:
    """Kernels without matrix products take every number format and width."""
    return ""


IMPLEMENTATIONS = {
    "mla-decode": own("triton-split-kv", mla_decode, splits_of_cache, powers_of_two),
    "indexer": own("triton-logits", indexer, ends_of_queries, scored),
    "sparse-attention": own("triton-gather", sparse_mla, narrow_indices, powers_of_two),
    "moba-prefill": own("triton-block-sparse", block_sparse, tokens_outside, sixteen_bits, ("block_sparse", "moba")),
    "msa-prefill": own("triton-block-sparse", block_sparse, tokens_outside, sixteen_bits, ("block_sparse", "msa")),
    "infllm2-prefill": own("triton-block-sparse", block_sparse, tokens_outside, sixteen_bits, ("block_sparse", "msa")),
    "mamba1-prefill": own("triton-scan", selective_scan, tokens_inside, anything, ("selective_scan", "N = 16")),
    "mamba1-decode": own("triton-update", mamba1_update, one_token, anything, ("mamba1_update", "N = 16")),
    "mamba2-decode": own("triton-update", mamba2_update, rows_of_states, anything, ("mamba2_update", "64 x 128")),
}
