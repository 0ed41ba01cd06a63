"""A call that is timed on a GPU neither waits for the device nor sends it anything: a CUDA graph could not hold it.

Forms in torch run here on tensors without data, those that launch kernels in `tests/test_cuda_implementations.py`.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.waiting import waits  # noqa: E402
from validation.absent_device import described  # noqa: E402
from validation.runners import Implementation, Runner, Shape, runners  # noqa: E402

FACTS = described("sm_90")
COMPILED = ("torch.flex", "torch.compile")
"""Compiled before they are timed."""
ASK_BEFORE = ("torch.mm-by-expert",)
"""What these prepare, outside of the call, the host has to know: they run on a processor."""


def smallest(operator: Runner, implementation: Implementation) -> Shape | None:
    """The smallest shape of a point that an implementation takes."""
    taken = [each.shape for each in operator.points(FACTS, "full") if not implementation.supports(each.shape, FACTS)]
    return min(taken, key=lambda shape: int(shape["context"]) * int(shape["batch"]), default=None)


IN_TORCH = {
    f"{operator.name} {implementation.name}": (operator, implementation, shape)
    for operator in runners().values()
    for implementation in operator.implementations
    if "cuda" in implementation.devices and not implementation.requires and implementation.name not in COMPILED
    if (shape := smallest(operator, implementation)) is not None
}


def waited(name: str) -> list[str]:
    """What a call waits for."""
    operator, implementation, shape = IN_TORCH[name]
    device = torch.device("cpu" if implementation.name in ASK_BEFORE else "meta")
    shape = dict(operator.small(shape)) if device.type == "cpu" else shape
    drawn = operator.inputs(shape, device, torch.Generator())
    given = {**drawn, **implementation.prepare(shape, drawn)}
    with waits() as found:
        implementation.run(shape, given)
    return found


@pytest.mark.parametrize("name", IN_TORCH)
def test_a_call_that_is_timed_does_not_wait_for_the_device(name: str) -> None:
    assert waited(name) == []


WAITING: dict[str, Callable[[Any], Any]] = {
    "a list as an index": lambda x: x[..., [0, 1]],
    "a list as a place": lambda x: x.__setitem__([0, 1], 0.0),
    "a mask": lambda x: x[torch.ones(3, dtype=torch.bool, device=x.device)],
    "numbers of the host": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "a tensor of the host": lambda x: torch.arange(4).to(x.device),
    "a number of the device": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x.sum() > 0),
}


@pytest.mark.parametrize("name", WAITING)
def test_calls_that_wait_are_noticed(name: str) -> None:
    # There are no data to ask for.
    with waits() as found, contextlib.suppress(RuntimeError, NotImplementedError):
        WAITING[name](torch.empty(3, 4, device="meta"))
    assert found
