"""Probe: what a launch costs."""

from collections.abc import Callable

import torch
import triton


@triton.jit
def empty_kernel():
    """Does nothing."""


def empty(programs: int = 1) -> None:
    """Launches `programs` thread blocks that do nothing on the current device."""
    empty_kernel[(programs,)](num_warps=4)


def examples(device: torch.device) -> dict[str, Callable[[], object]]:
    """One thread block; nothing to place on a device."""
    return {"one block": empty}
