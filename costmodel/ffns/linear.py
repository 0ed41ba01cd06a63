"""One D × D matrix in place of a block, as architecture search puts where an attention or feed-forward block was.

Source: arXiv:2411.19146 (Puzzle), section 2; nvidia/Llama-3_1-Nemotron-51B-Instruct, modeling_decilm.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import flag
from costmodel.kernels.base import Kernel
from costmodel.layers.projection import Projection, projection
from costmodel.step import Precision, Step

NAME = "linear"
ALIASES = ("matrix",)
TITLE = "Linear layer"
SUMMARY = "a single matrix, where a search has replaced a block"
SOURCES = ("arXiv:2411.19146, section 2",)
TENSOR_PARALLEL = "not split: one matrix between two whole hidden states"


@dataclass(frozen=True, slots=True)
class Dims:
    """A linear layer as wide as the model."""

    bias: bool = flag("bias", "a bias on the output")


EXAMPLES = (Dims(), Dims(bias=True))


def check(d: Dims) -> list[str]:
    """Nothing to divide."""
    return []


def _matrix(d: Dims, D: Quantity) -> Projection:
    return Projection("linear", D, D, d.bias)


def parameters(d: Dims, D: Quantity) -> Quantity:
    """D²."""
    return _matrix(d, D).parameters


active_parameters = parameters


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """One product: 2·D² FLOPs per token."""
    return [projection(_matrix(d, D), step, precision, role="ffn")]
