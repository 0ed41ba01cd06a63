"""Latent and sparse attention by FlashMLA, where it is installed.

Source: deepseek-ai/FlashMLA, flash_mla/flash_mla_interface.py.
"""

import importlib
from functools import partial
from typing import TYPE_CHECKING

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import from_hopper, of

if TYPE_CHECKING:
    from validation.device import DeviceFacts

PAGE = 64
"""Tokens of a page of the cache."""
SEQUENCES = 2**20
"""More than any batch has."""


def latents_of(most: int, shape: Shape, facts: "DeviceFacts") -> str:
    """FlashMLA: bf16 latents of 512 + 64 elements, of so many sequences at most, from Hopper on."""
    if shape["dtype"] != "bf16" or (number(shape, "latent"), number(shape, "rope")) != (512, 64):
        return "FlashMLA takes bf16 latents of 512 + 64 elements"
    return f"takes {most} sequence" if number(shape, "batch") > most else from_hopper(facts)


def pages(shape: Shape, inputs: Inputs) -> Inputs:
    """The latents in pages, one after another, and the plan of the kernel."""
    import torch

    q, latents = inputs["q"], inputs["latents"]
    B, L, width = latents.shape
    padded = torch.nn.functional.pad(latents, (0, 0, 0, -L % PAGE))
    count = padded.shape[1] // PAGE
    table = torch.arange(B * count, dtype=torch.int32, device=q.device).reshape(B, count)
    lengths = torch.full((B,), L, dtype=torch.int32, device=q.device)
    plan, splits = importlib.import_module("flash_mla").get_mla_metadata(lengths, q.shape[1], 1)
    cache = padded.reshape(-1, PAGE, 1, width)
    return {"cache": cache, "table": table, "lengths": lengths, "plan": plan, "plan_splits": splits}


def decode(shape: Shape, inputs: Inputs) -> Outputs:
    """One token over a paged cache of latents."""
    function = importlib.import_module("flash_mla").flash_mla_with_kvcache
    paged = (inputs[name] for name in ("cache", "table", "lengths"))
    plan = inputs["plan"], inputs["plan_splits"]
    out, _ = function(inputs["q"][:, None], *paged, number(shape, "latent"), *plan)
    return (out[:, 0],)


def rows_of_sequence(shape: Shape, inputs: Inputs) -> Inputs:
    """Indices in 32 bits, with an axis for the one head that selects."""
    import torch

    return {"rows": inputs["indices"][0, :, None].to(torch.int32).contiguous()}


def sparse(shape: Shape, inputs: Inputs) -> Outputs:
    """Selected latents of one sequence."""
    function = importlib.import_module("flash_mla").flash_mla_sparse_fwd
    q, latents = inputs["q"][0], inputs["latents"][0]
    out, *_ = function(q, latents[:, None], inputs["rows"], q.shape[-1] ** -0.5, number(shape, "latent"))
    return (out.flatten(1)[None],)


IMPLEMENTATIONS = {
    "mla-decode": (of("flash_mla", "flash-mla", decode, partial(latents_of, SEQUENCES), pages),),
    "sparse-attention": (of("flash_mla", "flash-mla.sparse", sparse, partial(latents_of, 1), rows_of_sequence),),
}
