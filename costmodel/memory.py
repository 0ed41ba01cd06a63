"""Bytes on the device during a step, read from the same list of kernels as the time.

Inference: weights, cache, and activations: what a kernel writes together with what the kernel before it wrote,
where that is largest. A kernel reads the cache as well, but that is counted once, as cache. Training: weights and
gradients in 16 bit, fp32 master weights and two Adam moments (16 bytes per parameter together, arXiv:1910.02054,
section 3.1), and every forward kernel's output kept for the backward pass (no recomputation besides the attention
kernel's own).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from costmodel.algebra import Quantity
from costmodel.architecture import Architecture
from costmodel.kernels.base import Kernel
from costmodel.step import Precision, Step

TRAINING_BYTES_PER_PARAMETER = 16


class MemoryUse(NamedTuple):
    """Bytes by purpose; reserved: what an engine keeps besides, where it is counted."""

    weights: Quantity
    cache: Quantity
    activations: Quantity
    reserved: Quantity = 0

    @property
    def total(self) -> Quantity:
        """All of it."""
        return self.weights + self.cache + self.activations + self.reserved


def memory_use(architecture: Architecture, kernels: Sequence[Kernel], step: Step, precision: Precision) -> MemoryUse:
    """What a step needs on one device. A training step and a denoising step without a cache keep none."""
    if step.phase == "train":
        kept = sum(kernel.executed.written * kernel.count for kernel in kernels if not kernel.gradient)
        return MemoryUse(architecture.parameters * TRAINING_BYTES_PER_PARAMETER, 0, kept)
    written = [kernel.executed.written for kernel in kernels if kernel.count]
    working = max(before + after for before, after in pairwise(written))
    cache = 0 if step.bidirectional else step.B * architecture.cache_bytes(step.L, precision)
    return MemoryUse(architecture.weight_bytes(precision), cache, working)
