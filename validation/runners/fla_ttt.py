"""TTT-Linear over a sequence by fla-core's two kernels, without the norm and the residual that its function adds.

A token's rate times its place in the mini-batch is what the kernels call eta, in the format of the products.

Source: fla-org/flash-linear-attention, fla/ops/ttt/chunk.py (fla-core 0.6).
"""

from typing import TYPE_CHECKING

from validation.runners import Implementation, Inputs, Outputs, Shape, number
from validation.runners.fla_core import fla_module
from validation.runners.ttt import C

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def prepare(shape: Shape, inputs: Inputs) -> Inputs:
    """The function with its rates and bias as it takes them."""
    import torch

    x = inputs
    place = 1 / (torch.arange(x["q"].shape[1], device=x["q"].device) % C + 1)
    given = {
        **{name: x[name] for name in "qkv"},
        "w": x["scale"],
        "b": x["shift"],
        "eta": (x["eta"] * place[:, None, None]).to(x["q"].dtype),
        "scale": 1.0,
        "eps": 1e-6,
        "initial_state": x["W"],
        "initial_state_bias": x["b"][:, :, None],
        "output_final_state": True,
        "chunk_size": C,
    }
    return {"function": fla_module("fla.ops.ttt.chunk").chunk_ttt_linear_fwd, "arguments": given}


def run(shape: Shape, inputs: Inputs) -> Outputs:
    """Outputs, and the state after the last token."""
    out, W, b = inputs["function"](**inputs["arguments"])
    return out, W, b[:, :, 0]


def full_batches(shape: Shape, facts: "DeviceFacts") -> str:
    """Rows beyond the last token have the bias as output and a gradient, which the first kernel adds to the bias."""
    return "" if number(shape, "new_tokens") % C == 0 else f"counts rows beyond the last token: takes multiples of {C}"


IMPLEMENTATIONS = {
    "ttt-prefill": (
        Implementation(
            "fla.chunk-ttt_linear",
            ("cuda",),
            run,
            requires=("fla", "triton"),
            supports=full_batches,
            prepare=prepare,
        ),
    )
}
