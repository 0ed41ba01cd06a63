"""Which kernels of a step depend on how many tokens it has, which on how many logits, and which on its sequences.

Nobody has to say so: the lists of steps that have the same tokens in other sequences are compared.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from costmodel.kernels.base import Kernel, Work
from costmodel.planning.side_by_side import Apart, Indices
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
    return kinds_among(named(kernels(DECODING)), named(kernels(PROMPTS)), (numpy.arange(4), numpy.arange(6)))


def kinds_among(
    decoding: Mapping[Key, Kernel], prompts: Mapping[Key, Kernel], places: tuple[Indices, Indices]
) -> Kinds:
    """The same from kernels of steps among which `DECODING` and `PROMPTS` stand at some places."""
    found: Kinds = {}
    for key, kernel in decoding.items():
        if key in prompts:
            kind = _kind(kernel, prompts[key], *places)
            if kind:
                found[key] = kind
    return found


def _kind(decoding: Kernel, prompt: Kernel, decoded: Indices, prompted: Indices) -> str:
    """The kind of a kernel, from what it does in `DECODING` and in `PROMPTS`."""
    same = all(kernel.ideal is kernel.executed for kernel in (decoding, prompt))
    of_decoding, of_prompt = (
        _numbers(kernel, ("executed",) if same else ("ideal", "executed")) for kernel in (decoding, prompt)
    )
    if of_decoding.keys() != of_prompt.keys():
        return ""
    token = row = numpy.ones((1, len(FEW)), dtype=bool)
    for name, values in of_decoding.items():
        prompts = of_prompt[name]
        if not (isinstance(values, numpy.ndarray) or isinstance(prompts, numpy.ndarray)):
            if values != prompts:
                return ""
            continue
        decoding_steps, prompt_steps = at_steps(values, decoded), at_steps(prompts, prompted)
        one = decoding_steps[..., 0:2]
        alike = one == decoding_steps[..., 2:4]
        token = token & alike & (one == prompt_steps[..., 0:2]) & (one == prompt_steps[..., 2:4])
        row = row & alike & (one == prompt_steps[..., 4:6])
        if not (token.any() or row.any()):
            return ""
    # Of many layouts, one row for each.
    answers = numpy.where(token, 2, numpy.where(row, 1, 0))
    of_layouts = numpy.where(answers[:, 0] == answers[:, 1], answers[:, 0], 0)
    if (of_layouts != of_layouts[0]).any():
        raise Apart(of_layouts[:, None])
    return ("", "row", "token")[of_layouts[0]]


def _numbers(kernel: Kernel, works: Sequence[str]) -> dict[Any, Any]:
    """Everything that is counted of a kernel's work, by a name."""
    found = {"count": kernel.count}
    for which in works:
        work: Work = getattr(kernel, which)
        found |= {(which, dtype): flops for dtype, flops in work.tensor.items()}
        found |= {(which, name): value for name, value in zip(work._fields[1:], work[1:], strict=True)}
    return found


def at_steps(values: Any, places: Indices) -> Any:
    """Numbers of steps, one in each column, at some of these; the same for all where there is one column alone."""
    values = numpy.asarray(values)
    if values.shape[-1:] in ((), (1,)):
        return numpy.broadcast_to(values, (*values.shape[:-1], len(places)))
    return values[..., places]


def named(kernels: Sequence[Kernel]) -> dict[Key, Kernel]:
    """The kernels by (group, name, how many of that name came before)."""
    found: dict[Key, Kernel] = {}
    for kernel in kernels:
        before = 0
        while (kernel.group, kernel.name, before) in found:
            before += 1
        found[kernel.group, kernel.name, before] = kernel
    return found
