"""Kernels for a GPU that gather the rows of each query, for attention to a window and to compressed entries.

The project's own kernel, which reads latents whose last columns are no values: of these one holds the logit of the
sink, which is a row more whose values are zero. And FlashMLA's, where it is installed.

Source: deepseek-ai/FlashMLA, flash_mla/flash_mla_interface.py (flash_mla_sparse_fwd).
"""

import importlib
from typing import TYPE_CHECKING

from validation.runners import Implementation, Inputs, Outputs, Shape, number
from validation.runners._package import from_hopper
from validation.runners.compressed_attention import OPERATORS, finished
from validation.runners.own_triton import sixteen_bits, slots

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

EXTRA = 16
"""Columns that are no values: the fewest of a matrix instruction."""
TILE = 128
"""FlashMLA's lists of rows are filled up to a multiple of it."""
WIDTH, HEADS = 512, (64, 128)
"""What FlashMLA takes: elements of a row, query heads."""


def rows(inputs: Inputs) -> "torch.Tensor":
    """The keys and the entries of each sequence one after another: [B, rows, d]."""
    import torch

    return torch.cat([inputs[name] for name in ("keys", "entries") if name in inputs], 1)


def lists(shape: Shape, inputs: Inputs) -> "torch.Tensor":
    """The numbers of the rows that each query sees, −1 for none: [B, S, most]."""
    import torch

    q, keys = inputs["q"], inputs["keys"]
    (B, S), w, device = q.shape[:2], number(shape, "window"), q.device
    query = torch.arange(S, device=device)[:, None]
    near = keys.shape[1] - S + query + torch.arange(1 - w, 1, device=device)
    parts = [near.masked_fill(near < 0, -1).expand(B, -1, -1)]
    if "k" in shape:
        indices = inputs["indices"]
        parts.append(torch.where(indices < 0, indices, indices + keys.shape[1]))
    elif "ratio" in shape:
        every = torch.arange(inputs["entries"].shape[1], device=device)
        seen = every < finished(shape, device)[:, None]
        parts.append(torch.where(seen, every + keys.shape[1], -1).expand(B, -1, -1))
    return torch.cat(parts, -1).to(torch.int32)


def with_sinks(shape: Shape, inputs: Inputs) -> Inputs:
    """Queries and rows with columns more, the sink's row at the end of both lists, and splits that fill the device."""
    import torch

    from validation.triton_kernels.mla_decode import split_count, tile_of
    from validation.triton_kernels.shared_memory import roomy

    q, seen = inputs["q"], lists(shape, inputs)
    (B, S, H, d), device = q.shape, q.device
    queries, latents = (torch.nn.functional.pad(x, (0, EXTRA)) for x in (q, rows(inputs)))
    queries[..., d] = inputs["sinks"] * d**0.5  # the kernel divides every score by it
    sink = torch.zeros(B, 1, d + EXTRA, dtype=q.dtype, device=device)
    sink[..., d] = 1
    last = torch.full((B, S, 1), latents.shape[1], dtype=seen.dtype, device=device)
    programs = B * S * -(-H // tile_of(H, roomy(device)).heads)
    room = slots(device, "sparse_mla", "16 heads" if H <= 16 else "128 heads")
    return {
        "queries": queries,
        "latents": torch.cat([latents, sink], 1),
        "lists": torch.cat([seen, last], -1),
        "splits": split_count(programs, seen.shape[-1], room),
    }


def triton_gather(shape: Shape, inputs: Inputs) -> Outputs:
    """A thread block per query and tile of heads."""
    from validation.triton_kernels.sparse_mla import sparse_mla

    given = (inputs[name] for name in ("queries", "latents", "lists"))
    scale = number(shape, "head_dim") ** -0.5
    return (sparse_mla(*given, dr=EXTRA, scale=scale, splits=inputs["splits"]).flatten(2),)


def of_one_sequence(shape: Shape, inputs: Inputs) -> Inputs:
    """Lists in whole tiles with an axis for the one head of rows, and the sinks in fp32."""
    import torch

    seen = lists(shape, inputs)[0]
    filled = torch.nn.functional.pad(seen, (0, -seen.shape[-1] % TILE), value=-1)
    return {"lists": filled[:, None].contiguous(), "rows": rows(inputs)[0, :, None], "logits": inputs["sinks"].float()}


def flash_mla(shape: Shape, inputs: Inputs) -> Outputs:
    """Attention of one sequence."""
    function = importlib.import_module("flash_mla").flash_mla_sparse_fwd
    d = number(shape, "head_dim")
    out, *_ = function(inputs["q"][0], inputs["rows"], inputs["lists"], d**-0.5, d, attn_sink=inputs["logits"])
    return (out.flatten(1)[None],)


def whole_rows(shape: Shape, facts: "DeviceFacts") -> str:
    """The own kernel loads rows whole."""
    d = number(shape, "head_dim")
    return sixteen_bits(shape, facts) or ("" if d.bit_count() == 1 else f"head_dim {d} is no power of two")


def as_published(shape: Shape, facts: "DeviceFacts") -> str:
    """FlashMLA: one sequence, bf16 rows of 512 elements, 64 or 128 heads, from Hopper on."""
    if shape["dtype"] != "bf16" or number(shape, "head_dim") != WIDTH or number(shape, "heads") not in HEADS:
        return "FlashMLA takes bf16 rows of 512 elements and 64 or 128 heads"
    return "takes 1 sequence" if number(shape, "batch") > 1 else from_hopper(facts)


OWN = Implementation(
    "triton-gather", ("cuda",), triton_gather, requires=("triton",), prepare=with_sinks, supports=whole_rows
)
FLASH_MLA = Implementation(
    "flash-mla.sparse", ("cuda",), flash_mla, requires=("flash_mla",), prepare=of_one_sequence, supports=as_published
)
IMPLEMENTATIONS = {name: (OWN, FLASH_MLA) if phase == "prefill" else (OWN,) for name, _, _, phase, _ in OPERATORS}
