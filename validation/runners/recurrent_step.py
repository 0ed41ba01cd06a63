"""One token of every linear recurrence: the state is read, stepped and written."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from validation.runners import Implementation, Planned, Runner, Shape, number, planned, shapes
from validation.runners._mechanisms import MECHANISMS, Mechanism, fast, inputs, kernels, reference

if TYPE_CHECKING:
    from validation.device import DeviceFacts

COLUMNS = "batch heads"


def points(m: Mechanism, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """States from a launch's worth to more than any cache holds."""
    common: Shape
    if facts.kind == "cpu":
        common = {"dtype": "fp32", "d_k": 64, "d_v": 64, "context": 1024, "new_tokens": 1}
        fit, held_out = [(1, 2), (1, 4), (4, 4), (16, 4), (64, 4), (256, 4)], [(2, 4), (32, 4), (128, 4)]
        sweep = [(512, 4)]
        if m.pairs > 1:
            fit, held_out = [(1, 2), (1, 4), (4, 4), (16, 4), (64, 4)], [(2, 4), (32, 4)]
    else:
        width = 64 if m.name.startswith("rwkv") else 128
        value = 64 if m.name == "mamba2" else width
        common = {"dtype": "bf16", "d_k": width, "d_v": value, "context": 8192, "new_tokens": 1}
        fit, held_out = [(1, 32), (8, 32), (64, 32), (512, 32)], [(32, 32), (256, 32)]
        sweep = [(2, 32), (16, 32), (128, 32), (1024, 32)]
    return planned(*(shapes(common, COLUMNS, *rows) for rows in (fit, held_out, sweep if effort == "full" else [])))


def small(shape: Shape) -> Shape:
    """Two sequences of two heads."""
    return {**shape, "batch": min(number(shape, "batch"), 2), "heads": 2}


RUNNERS = tuple(
    Runner(
        name=f"{m.name}-decode",
        family="recurrent-step",
        mechanism=m.name,
        phase="decode",
        kernels=partial(kernels, m),
        inputs=partial(inputs, m),
        reference=partial(reference, m),
        implementations=(Implementation("torch-step", ("cpu", "cuda"), partial(fast, m)),),
        points=partial(points, m),
        small=small,
    )
    for m in MECHANISMS
)
