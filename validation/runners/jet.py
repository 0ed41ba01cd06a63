"""JetBlock's convolution, whose taps are computed for every token: over a sequence, and of one new token.

The recurrence behind it is that of Gated DeltaNet, which has operators of its own. Tensors are x [B, S, channels], taps
[B, S, channels, width] and the history [B, width − 1, channels]; the last inputs are returned as the next history.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.mixers import jet
from costmodel.step import Phase, Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    new_sequences,
    number,
    planned,
    precision,
    shapes,
    single_tokens,
    torch_dtype,
)
from validation.runners._tails import last_along

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """One launch."""
    B, S, channels, width = (number(shape, name) for name in ("batch", "new_tokens", "channels", "width"))
    step = Step(B=B, S=S, P=number(shape, "context") - S, phase=phase)
    return [jet.dynamic_conv(jet.Dims(H=1, dk=1, dv=channels, conv=width), step, precision(shape))]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal numbers."""
    import torch

    B, S, channels, width = (number(shape, name) for name in ("batch", "new_tokens", "channels", "width"))
    dtype = torch_dtype(str(shape["dtype"]))
    sizes = {"x": (B, S, channels), "taps": (B, S, channels, width), "history": (B, width - 1, channels)}
    return {name: torch.randn(*size, device=device, generator=generator).to(dtype) for name, size in sizes.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Position by position, as the mechanism's own reference."""
    import torch

    from validation.references import jet as plain

    x, before = inputs["x"], inputs["history"]
    rows = [plain.dynamic_conv(*each) for each in zip(x, inputs["taps"], before, strict=True)]
    return torch.nn.functional.silu(torch.stack(rows)), torch.cat([before, x], 1)[:, x.shape[1] :]


def products(shape: Shape, inputs: Inputs) -> Outputs:
    """Taps times what they lie on, then their sum."""
    import torch

    taps = inputs["taps"]
    seen = torch.cat([inputs["history"], inputs["x"]], 1)
    out = (seen.unfold(1, taps.shape[-1], 1) * taps).sum(-1)
    return torch.nn.functional.silu(out), seen[:, taps.shape[1] :].clone()


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Tokens and channels; of one token, sequences."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "width": 4}
        fit = [(1, 256, 64), (1, 256, 512), (1, 256, 2048), (1, 1024, 128), (2, 512, 64)]
        held_out, sweep = [(1, 256, 1024), (1, 512, 256)], [(1, 256, 8192)]
        steps, held_steps = [(1, 256), (1, 2048), (8, 512), (16, 1024), (64, 1024)], [(4, 1024), (32, 512)]
    else:
        # Channels of Jet-Nemotron 2B, and of a narrower layer.
        common = {"dtype": "bf16", "width": 4}
        fit = [(1, 3072, 128), (1, 3072, 2048), (1, 3072, 32768), (8, 3072, 2048), (1, 1024, 16384)]
        held_out, sweep = [(1, 3072, 8192), (1, 3072, 131072)], [(1, 3072, 2**n) for n in (9, 16, 18)]
        steps, held_steps = [(1, 3072), (16, 3072), (128, 3072), (512, 3072), (1, 1024)], [(64, 3072), (256, 3072)]
    columns = "batch channels context new_tokens"
    if phase == "decode":
        return planned(*(shapes(common, columns, *single_tokens(*rows)) for rows in (steps, held_steps)))
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *new_sequences(*rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few channels and tokens."""
    tokens = min(number(shape, "new_tokens"), 21)
    return {**shape, "batch": 2, "channels": 12, "new_tokens": tokens, "context": tokens}


PHASES: tuple[Phase, ...] = ("prefill", "decode")
RUNNERS = tuple(
    Runner(
        name=f"jet-{phase}",
        family="short-conv",
        mechanism="jet",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation("torch-products", ("cpu", "cuda"), products),),
        points=partial(points, phase),
        small=small,
        tail=partial(last_along, reference, {"x": 2, "taps": 2, "history": 2}, (2, 2)),
    )
    for phase in PHASES
)
