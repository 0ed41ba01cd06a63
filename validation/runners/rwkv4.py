"""RWKV-4's weighted mean: over many tokens, and of one token with the state of the earlier ones.

Tensors are k, v [B, T, channels], the logarithm w of the decay (negative) and the bonus u [channels], and the state
[B, 3, channels] in fp32: the decayed sums of e^k·v and e^k over earlier tokens, both over e^m, and the largest exponent
m among their terms.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.mixers import rwkv4
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
from validation.runners.fla_core import fla_module

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

CHUNK = 32
"""Tokens that are walked one after another, those of all chunks at once."""
SLOWEST, FASTEST = -5.0, 3.0
"""ln(−w) of the first and the last channel, as models are initialised.

Source: BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py (decay_speed).
"""


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """One launch."""
    S = number(shape, "new_tokens")
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    kernel = rwkv4.wkv(rwkv4.Dims(inner=number(shape, "channels")), step, precision(shape))
    # One kernel for any number of channels.
    return [kernel._replace(instance="rwkv4") if step.decoding else kernel]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Channels from those that remember hundreds of tokens to those that remember none, and a state of some tokens."""
    import torch

    B, T, channels = (number(shape, name) for name in ("batch", "new_tokens", "channels"))
    dtype = torch_dtype(str(shape["dtype"]))

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    tokens = {"k": drawn(B, T, channels), "v": drawn(B, T, channels)}
    weight = 1.0 + torch.rand(B, channels, device=device, generator=generator)
    state = torch.stack([weight * drawn(B, channels), weight, drawn(B, channels)], 1)
    w = -torch.linspace(SLOWEST, FASTEST, channels, device=device).exp()
    return {**{name: x.to(dtype) for name, x in tokens.items()}, "w": w, "u": drawn(channels), "state": state}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Token by token, the sums as they are; their largest exponent afterwards."""
    import torch

    from validation.references import rwkv4 as plain

    outs, states = [], []
    for k, v, (a, b, m) in zip(inputs["k"], inputs["v"], inputs["state"], strict=True):
        out, a, b = plain.recurrent((k, v, inputs["w"], inputs["u"], a * m.exp(), b * m.exp()))
        for row in k:
            m = torch.maximum(m + inputs["w"], row)
        outs.append(out)
        states.append(torch.stack([a / m.exp(), b / m.exp(), m]))
    return torch.stack(outs), torch.stack(states)


def chunked(shape: Shape, inputs: Inputs) -> Outputs:
    """Whole chunks, then the ragged one."""
    import torch

    T = number(shape, "new_tokens")
    whole = T - T % CHUNK
    k, v, state, outs = inputs["k"].float(), inputs["v"].float(), inputs["state"], []
    for first, last, C in ((0, whole, CHUNK), (whole, T, T - whole)):
        if first < last:
            out, state = chunks(k[:, first:last], v[:, first:last], inputs, state, C)
            outs.append(out)
    return torch.cat(outs, 1).to(inputs["v"].dtype), state


def chunks(k: Any, v: Any, inputs: Inputs, state: Any, C: int) -> tuple[Any, Any]:
    """Chunks of C tokens: all walk their tokens at once, and then the sums are carried from chunk to chunk.

    Exponentials stay in range over the largest exponent of a chunk. Tensors are [B, chunks, C, channels] inside, the
    sums with an axis of two in front.
    """
    import torch

    B, T, channels = k.shape
    w, u = inputs["w"].float(), inputs["u"].float()
    k, v = (x.reshape(B, T // C, C, channels) for x in (k, v))
    top = k.amax(2, keepdim=True)
    written = (k - top).exp()
    both, step = torch.stack([written * v, written]), w.exp()
    sums = torch.zeros(2, B, T // C, C + 1, channels, device=k.device)
    for t in range(C):
        torch.addcmul(both[:, :, :, t], sums[:, :, :, t], step, out=sums[:, :, :, t + 1])
    after = w * torch.arange(C, device=k.device)[:, None]  # [C, channels]
    exponents = [state[:, 2]]  # the largest of the terms so far at every chunk's end
    for each in (k + after.flip(0)).amax(2).unbind(1):
        exponents.append(torch.maximum(exponents[-1] + C * w, each))
    began, ended = torch.stack(exponents[:-1], 1), torch.stack(exponents[1:], 1)
    kept, added = (began + C * w - ended).exp(), (top[:, :, 0] - ended).exp() * sums[:, :, :, C]
    carried = [state[:, :2].transpose(0, 1)]
    for n in range(T // C):
        carried.append(torch.addcmul(added[:, :, n], kept[:, n], carried[-1]))
    # What came in decays with every token, and all terms are brought over the larger exponent.
    over = torch.maximum(began[:, :, None], top)
    came = ((began[:, :, None] - over).exp() * torch.stack(carried[:-1], 2)[:, :, :, None]) * after.exp()
    upper, lower = torch.addcmul(came, sums[:, :, :, :C], (top - over).exp()).unbind(0)
    own = (u + k - over).exp()
    out = torch.addcmul(upper, own, v).div_(own.add_(lower)).reshape(B, T, channels)
    return out, torch.cat([carried[-1].transpose(0, 1), exponents[-1][:, None]], 1)


def update(shape: Shape, inputs: Inputs) -> Outputs:
    """One token."""
    import torch

    k, v, w, u, state = (inputs[name].float() for name in ("k", "v", "w", "u", "state"))
    (a, b, m), k, v = state.unbind(1), k[:, 0], v[:, 0]
    top = torch.maximum(m, u + k)
    kept, own = (m - top).exp(), (u + k - top).exp()
    out = (kept * a + own * v) / (kept * b + own)
    decayed = m + w
    new = torch.maximum(decayed, k)
    kept, added = (decayed - new).exp(), (k - new).exp()
    return out[:, None].to(inputs["v"].dtype), torch.stack([kept * a + added * v, kept * b + added, new], 1)


def fla_arguments(shape: Shape, inputs: Inputs) -> Inputs:
    """fla's function, which takes ln(−w), and a state with an axis for tokens."""
    arguments: dict[str, Any] = {name: inputs[name] for name in ("u", "k", "v")}
    arguments |= {"w": (-inputs["w"]).log(), "state": inputs["state"][:, :, None].contiguous()}
    return {"function": fla_module("fla.ops.rwkv4").fused_recurrent_rwkv4, "arguments": arguments}


def by_fla(shape: Shape, inputs: Inputs) -> Outputs:
    """Output and last state; fla also writes the state after every token, which training wants.

    Source: fla-org/flash-linear-attention, fla/ops/rwkv4/fused_recurrent.py (fla-core 0.6).
    """
    out, state = inputs["function"](**inputs["arguments"])
    return out, state[:, :, -1]


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Prefill: tokens and channels; decode: sequences."""
    columns = "batch channels context new_tokens"
    common: Shape
    if facts.kind == "cpu":
        common = {"dtype": "fp32"}
        fit = [(1, 1024, 64), (1, 1024, 256), (1, 1024, 1024), (1, 2048, 128), (4, 512, 128)]
        held_out, sweep = [(1, 1024, 512), (2, 1024, 128)], [(1, 1024, 2048)]
        steps, held_steps, swept = [(1, 256), (1, 2048), (16, 512), (64, 1024), (128, 2048)], [(8, 1024), (64, 512)], []
    else:
        common = {"dtype": "bf16"}
        fit = [(1, 4096, 64), (1, 1024, 4096), (1, 4096, 2048), (8, 4096, 512), (1, 4096, 16384)]
        held_out, sweep = [(1, 4096, 32768), (4, 2560, 4096)], [(1, 4096, 1024), (1, 4096, 8192), (1, 1024, 65536)]
        held_out += [(1, 1024, 2**18)] if effort == "full" else []
        steps, held_steps = [(1, 4096), (8, 4096), (64, 4096), (512, 4096)], [(32, 4096), (256, 4096)]
        swept = [(16, 4096), (128, 4096), (1024, 4096)]
    if phase == "decode":
        tables = (steps, held_steps, swept if effort == "full" else [])
        return planned(*(shapes(common, columns, *single_tokens(*rows)) for rows in tables))
    sequences = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *new_sequences(*rows)) for rows in sequences))


def small(shape: Shape) -> Shape:
    """Few channels, two whole chunks of tokens and a ragged one."""
    tokens = min(number(shape, "new_tokens"), 2 * CHUNK + 3)
    return {**shape, "batch": 2, "channels": 24, "new_tokens": tokens, "context": tokens}


RUN: tuple[tuple[Phase, str, Callable[[Shape, Inputs], Outputs]], ...] = (
    ("prefill", "torch-chunked", chunked),
    ("decode", "torch-step", update),
)
RUNNERS = tuple(
    Runner(
        name=f"rwkv4-{phase}",
        family="recurrent-step" if phase == "decode" else "selective-scan",
        mechanism="rwkv4",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation(name, ("cpu", "cuda"), run),),
        points=partial(points, phase),
        small=small,
    )
    for phase, name, run in RUN
)
IMPLEMENTATIONS = {
    f"rwkv4-{phase}": (
        Implementation(
            "fla.fused_recurrent-rwkv4", ("cuda",), by_fla, requires=("fla", "triton"), prepare=fla_arguments
        ),
    )
    for phase in ("prefill", "decode")
}
