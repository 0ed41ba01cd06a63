"""8-bit products and index scores by DeepGEMM, where it is installed.

Source: deepseek-ai/DeepGEMM, README (fp8_gemm_nt, fp8_mqa_logits).
"""

import importlib
from typing import TYPE_CHECKING

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import from_hopper, of

if TYPE_CHECKING:
    from validation.device import DeviceFacts

SCALED = 128
"""Elements of the operands that share a scale; of weights, as many rows as well."""


def unit_scales(shape: Shape, inputs: Inputs) -> Inputs:
    """Scales of one for operands that need none, and room for the product."""
    import torch

    (x,), (w,) = inputs["x"], inputs["w"]
    ones = {"device": x.device, "dtype": torch.float32}
    deep = x.shape[1] // SCALED
    return {
        "x_scales": torch.ones(len(x), deep, **ones),
        "w_scales": torch.ones(len(w) // SCALED, deep, **ones),
        "product": torch.empty(len(x), len(w), device=x.device, dtype=torch.bfloat16 if x.itemsize == 1 else x.dtype),
    }


def product(shape: Shape, inputs: Inputs) -> Outputs:
    """One 8-bit product with a scale for every 128 elements."""
    function = importlib.import_module("deep_gemm").fp8_gemm_nt
    x, w, out = inputs["x"][0], inputs["w"][0], inputs["product"]
    function((x, inputs["x_scales"]), (w, inputs["w_scales"]), out)
    return (out[None],)


def scaled_eight_bits(shape: Shape, facts: "DeviceFacts") -> str:
    """DeepGEMM's product: fp8 with scales by the block, from Hopper on."""
    if shape["dtype"] != "fp8":
        return "DeepGEMM's scaled product takes fp8"
    if number(shape, "batch") != 1 or number(shape, "n") % SCALED or number(shape, "k") % SCALED:
        return "takes one product with n and k in multiples of 128"
    return from_hopper(facts)


def ranges_of_keys(shape: Shape, inputs: Inputs) -> Inputs:
    """The first key of every query and the one after its last, and scales of one."""
    import torch

    S, L = number(shape, "new_tokens"), number(shape, "context")
    device = inputs["q"].device
    last = torch.arange(L - S + 1, L + 1, dtype=torch.int32, device=device)
    return {"first": torch.zeros_like(last), "last": last, "k_scales": torch.ones(L, device=device)}


def logits(shape: Shape, inputs: Inputs) -> Outputs:
    """Index scores of one sequence; what a query does not see is left as it is, and hidden here."""
    function = importlib.import_module("deep_gemm").fp8_mqa_logits
    keys = inputs["k"][0], inputs["k_scales"]
    found = function(inputs["q"][0], keys, inputs["w"][0], inputs["first"], inputs["last"], clean_logits=False)
    S, L = number(shape, "new_tokens"), number(shape, "context")
    return (found[None, :, :L].tril(L - S),)


def eight_bit_keys(shape: Shape, facts: "DeviceFacts") -> str:
    """DeepGEMM's logits: one sequence in fp8, from Hopper on."""
    if shape["dtype"] != "fp8":
        return "DeepGEMM's logits take fp8"
    return "takes one sequence" if number(shape, "batch") > 1 else from_hopper(facts)


IMPLEMENTATIONS = {
    "gemm": (of("deep_gemm", "deep-gemm.fp8", product, scaled_eight_bits, unit_scales),),
    "indexer": (of("deep_gemm", "deep-gemm.mqa-logits", logits, eight_bit_keys, ranges_of_keys),),
}
