"""Which kernels of a step depend on how many tokens it has, which on how many logits, and which on its sequences.

Nobody has to say so: the lists of steps that have the same tokens in other sequences are compared.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from costmodel.kernels.base import Kernel
from costmodel.planning.side_by_side import Apart
from costmodel.step import Step

KernelSource = Callable[[Step], Sequence[Kernel]]
"""The kernels of a step, such as those of a model on one device, or of one rank of a parallel layout."""


Key = tuple[str, str, int]
"""Group, name, how many of that name came before."""
Kinds = dict[Key, str]
"""The kind of kernels by what they are called."""


MANY = 65_537
"""Tokens of a prompt of which more than one falls to each device, however many share it."""
FEW = numpy.array([4.0, 208.0])
"""Tokens of the steps that are compared."""
DECODING = Step(
    B=numpy.concatenate([FEW, FEW / 2]),
    S=numpy.array([1.0, 1.0, 2.0, 2.0]),
    P=numpy.array([96.0, 96.0, 7000.0, 7000.0]),
    phase="decode",
)
PROMPTS = Step(
    B=numpy.concatenate([numpy.ones(4), FEW]),
    S=numpy.concatenate([FEW, FEW, [MANY, MANY]]),
    P=numpy.array([0.0, 0.0, 4096.0, 4096.0, 4096.0, 4096.0]),
    phase="prefill",
)


def kinds(kernels: KernelSource) -> Kinds:
    """Which kernels are token-wise ("token") and which row-wise ("row"); all others are sequence-wise.

    The key is (group, name, how many of that name came before). Raises Apart where that depends on the layout, of
    kernels of layouts side by side.
    """
    prompts = named(kernels(PROMPTS))
    found: Kinds = {}
    for key, kernel in named(kernels(DECODING)).items():
        if key in prompts:
            kind = _kind(kernel, prompts[key])
            if kind:
                found[key] = kind
    return found


def _kind(decoding: Kernel, prompt: Kernel) -> str:
    """The kind of a kernel, from what it does in `DECODING` and in `PROMPTS`."""
    of_decoding, of_prompt = _numbers(decoding), _numbers(prompt)
    if of_decoding.keys() != of_prompt.keys():
        return ""
    token = row = numpy.ones((1, len(FEW)), dtype=bool)
    for name, values in of_decoding.items():
        prompts = of_prompt[name]
        if not (isinstance(values, numpy.ndarray) or isinstance(prompts, numpy.ndarray)):
            if values != prompts:
                return ""
            continue
        decoding_steps, prompt_steps = _columns(values, 4), _columns(prompts, 6)
        one = decoding_steps[..., 0:2]
        alike = one == decoding_steps[..., 2:4]
        token = token & alike & (one == prompt_steps[..., 0:2]) & (one == prompt_steps[..., 2:4])
        row = row & alike & (one == prompt_steps[..., 4:6])
    # Of many layouts, one row for each.
    answers = numpy.where(token, 2, numpy.where(row, 1, 0))
    of_layouts = numpy.where(answers[:, 0] == answers[:, 1], answers[:, 0], 0)
    if (of_layouts != of_layouts[0]).any():
        raise Apart(of_layouts[:, None])
    return ("", "row", "token")[of_layouts[0]]


def _numbers(kernel: Kernel) -> dict[Any, Any]:
    """Everything that is counted of a kernel, by a name."""
    found = {"count": kernel.count}
    for which, work in (("ideal", kernel.ideal), ("executed", kernel.executed)):
        found |= {(which, dtype): flops for dtype, flops in work.tensor.items()}
        found |= {(which, name): value for name, value in zip(work._fields[1:], work[1:], strict=True)}
    return found


def _columns(values: Any, steps: int) -> Any:
    """Numbers of so many steps, one in each column."""
    values = numpy.asarray(values)
    return values if values.shape[-1:] == (steps,) else numpy.broadcast_to(values, (*values.shape[:-1], steps))


def named(kernels: Sequence[Kernel]) -> dict[tuple[str, str, int], Kernel]:
    """The kernels by (group, name, how many of that name came before)."""
    found: dict[tuple[str, str, int], Kernel] = {}
    for kernel in kernels:
        before = 0
        while (kernel.group, kernel.name, before) in found:
            before += 1
        found[kernel.group, kernel.name, before] = kernel
    return found
