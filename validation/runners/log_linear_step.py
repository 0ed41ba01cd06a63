"""One token of log-linear attention inside an open chunk: it meets the chunk's rows one by one, and every state once.

Tensors are those of a sequence, of one token; the rows of the open chunk before it, open_k, open_v and open_g, and the
states of the levels that hold something [B, live, H, dk, dv]. fla's function asks the device for the number of tokens
before it goes on, which no call that is timed may do: on a GPU torch runs the step.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.kernels.base import Kernel
from costmodel.mixers import log_linear
from costmodel.step import Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    precision,
    shapes,
)
from validation.runners import log_linear as sequence
from validation.runners.log_linear import INSIDE, C, dims

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def live(shape: Shape) -> list[int]:
    """Levels that hold something: the bits of the number of whole chunks before the token, in the last all beyond."""
    from validation.references import log_linear as plain

    return plain.live((number(shape, "context") - 1) // C, dims(shape))


def kernels(shape: Shape) -> list[Kernel]:
    """The launches of a sequence, for a token whose chunk goes on."""
    step = Step(B=number(shape, "batch"), S=1, P=number(shape, "context") - 1, phase="decode")
    return log_linear.scan(dims(shape), step, precision(shape))


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """The last token of a chunk's part that is there, the rows before it, and random states."""
    import torch

    d, rows = dims(shape), (number(shape, "context") - 1) % C
    drawn = sequence.inputs({**shape, "context": rows + 1}, device, generator)
    states = torch.randn(number(shape, "batch"), len(live(shape)), d.Hv, d.dk, d.dv, device=device, generator=generator)
    token = {name: each[:, rows:].contiguous() for name, each in drawn.items()}
    return token | {f"open_{name}": drawn[name][:, :rows].contiguous() for name in "kvg"} | {"states": states}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Head by head; scores once for all heads."""
    import torch

    from validation.references import log_linear as plain

    x, d, outs = inputs, dims(shape), []
    for b in range(number(shape, "batch")):
        q, k = x["q"][b, 0], torch.cat([x["open_k"][b, :, 0], x["k"][b, 0]])
        scores, rows = q @ k.T, []
        for h in range(d.Hv):
            head = plain.Decayed(d, dict(zip(live(shape), x["states"][b, :, h], strict=True)), 0)
            head.k, head.v, head.a = k[:-1], x["open_v"][b, :, h], x["open_g"][b, :, h, 0].exp()
            v, alpha, weight = x["v"][b, :, h], x["g"][b, :, h, 0].exp(), x["weights"][b, 0, h]
            rows.append(head.step(number(shape, "context") - 1, scores, q, k[-1:], v, alpha, weight))
        outs.append(torch.cat(rows))
    return (torch.stack(outs)[:, None],)


def gates(shape: Shape, inputs: Inputs) -> Inputs:
    """Which weight each open row has, and which each state: on the device before a call begins."""
    import torch

    place, device = (number(shape, "context") - 1) % C, inputs["q"].device
    rows, states = [(place ^ j).bit_length() for j in range(place)], [INSIDE + at for at in live(shape)]
    return {
        "row_gates": torch.tensor(rows, dtype=torch.int64, device=device),
        "state_gates": torch.tensor(states, dtype=torch.int64, device=device),
    }


def step(shape: Shape, inputs: Inputs) -> Outputs:
    """Products with the open rows and with all states, each with its weight and its decay."""
    import torch

    x = {name: each.float() for name, each in inputs.items() if each.is_floating_point()}
    q, k, weights = x["q"][:, 0], x["k"][:, 0], x["weights"][:, 0]  # [B, 1, dk], [B, H, gates]
    upto = torch.cat([x["open_g"], x["g"]], 1)[..., 0].cumsum(1).mT  # [B, H, rows and the token]
    pair = weights.index_select(-1, inputs["row_gates"]) * (upto[..., -1:] - upto[..., :-1]).exp()
    scores = q @ x["open_k"][:, :, 0].mT
    out = ((scores * pair)[..., None, :] @ x["open_v"].transpose(1, 2))[..., 0, :]
    out = out + weights[..., :1] * (q * k).sum(-1, keepdim=True) * x["v"][:, 0]
    scale = weights.index_select(-1, inputs["state_gates"]) * upto[..., -1:].exp()  # [B, H, live]
    read = (q[:, None, :, None] @ x["states"])[..., 0, :]
    out = out + (scale.mT[..., None] * read).sum(1)
    return (out[:, None].to(inputs["v"].dtype),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Sequences, and lengths with few and with many states; chunks that stay open."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "d_k": 64, "d_v": 64, "levels": 8}
        fit = [(1, 4, 1000), (2, 4, 1000), (8, 4, 1000), (32, 4, 1000), (8, 4, 600)]
        held_out, sweep = [(4, 4, 1000), (16, 4, 700)], [(64, 4, 1000)]
    else:
        common = {"dtype": "bf16", "d_k": 128, "d_v": 64, "levels": 11}
        fit = [(1, 32, 8100), (8, 32, 8100), (64, 32, 8100), (256, 32, 8100), (64, 32, 60000)]
        held_out, sweep = [(32, 32, 8100), (128, 32, 30000)], [(16, 32, 8100), (64, 32, 1000)]
        held_out += [(16, 32, 300000)] if effort == "full" else []
    tables = (fit, held_out, sweep if effort == "full" else [])
    columns = "batch heads context new_tokens"
    return planned(*(shapes(common, columns, *((*row, 1) for row in rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """Two heads of two sequences at most."""
    return {**shape, "batch": min(number(shape, "batch"), 2), "heads": 2}


RUNNER = Runner(
    name="log-linear-decode",
    family="chunk-scan",
    mechanism="log-linear",
    phase="decode",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch-step", ("cpu", "cuda"), step, prepare=gates),),
    points=points,
    small=small,
)
