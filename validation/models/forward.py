"""A step of a small whole model: embedding, layers, head, and the token that is sampled."""

from typing import Any

from validation.models import architecture, layers_of, step_of
from validation.models.blocks import BLOCKS, Layer, Mark, Operator, rms
from validation.runners import Inputs, Outputs, Shape


def unmarked(name: str) -> None:
    """For steps whose parts nobody times."""


def forward(model: str, shape: Shape, inputs: Inputs, operator: Operator, mark: Mark = unmarked) -> Outputs:
    """Logits of the last token of each sequence [B, V], and what the layers remember, in the order of the layers."""
    import torch

    step = step_of(shape)
    rotation = (inputs["cos"], inputs["sin"]) if "cos" in inputs else None
    total = torch.nn.functional.embedding(inputs["tokens"], inputs["embedding"])
    mark("embedding")
    remembered: list[Any] = []
    branch = torch.zeros_like(total[:1, :1])

    def normed(name: str, label: str) -> Any:
        nonlocal total
        total = total + branch
        x = rms(total, inputs[name])
        mark(label)
        return x

    for index, blocks in enumerate(layers_of(architecture(model, shape))):
        begin = f"{index}."
        given = {name.removeprefix(begin): x for name, x in inputs.items() if name.startswith(begin)}
        for block, norm in zip(blocks, ("mixer norm", "mlp norm"), strict=True):
            layer = Layer(block.dims, step, str(shape["dtype"]), given, rotation, operator, mark)
            branch, kept = BLOCKS[block.kind](layer, normed(begin + norm, "norm"))
            remembered += kept.values()
    x = normed("final norm", "final norm")
    logits = torch.nn.functional.linear(x[:, -1], inputs["lm_head"])
    mark("lm_head")
    share = torch.softmax(logits.float(), -1)
    (share / torch.empty_like(share).exponential_()).argmax(-1)
    mark("sampling")
    return (logits, *remembered)
