"""Per-layer input: every layer looks the token up in a table of its own and adds what a gate lets through.

Source: transformers, models/gemma4/modeling_gemma4.py (per_layer_input_gate, per_layer_projection,
embed_tokens_per_layer, per_layer_model_projection); Gemma 3n model card.

The tables are most of a small model's weights, and a token reads one row of each: P elements, looked up and mixed with
a projection of the embedding, multiply a D → P gate before P → D leads back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import Quantity
from costmodel.dims import choice, dim
from costmodel.ffns import mlp
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.partial_sum import PartialSum
from costmodel.layers.projection import Projection, projection, total_parameters
from costmodel.step import Precision, Step

NAME = "per_layer_input"
ALIASES = ("per-layer-embedding", "ple")
TITLE = "Per-layer input"
SUMMARY = "a table of embeddings for every layer, behind a gate"
SOURCES = ("transformers, models/gemma4/modeling_gemma4.py",)
TENSOR_PARALLEL = "the tables by rows, the matrices on every device: vllm-project/vllm, models/gemma3n.py"


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a per-layer input."""

    P: int = dim("width", "width of a row of the layer's table")
    V: int = dim("vocabulary", "rows of the table", split="rows")
    act: str = choice("act", "activation function of the gate", "gelu", mlp.ACTIVATIONS)


EXAMPLES = (Dims(P=8, V=50), Dims(P=16, V=30, act="relu"))


def check(d: Dims) -> list[str]:
    """Nothing to divide."""
    return []


def projections(d: Dims, D: Quantity) -> tuple[Projection, ...]:
    """The embedding's share of the input, the gate, and the way back."""
    return (
        Projection("model_projection", D, d.P),
        Projection("input_gate", D, d.P),
        Projection("projection", d.P, D),
    )


def parameters(d: Dims, D: Quantity) -> Quantity:
    """Three matrices, the layer's table, and the scale of a norm."""
    return active_parameters(d, D) + d.V * d.P


def active_parameters(d: Dims, D: Quantity) -> Quantity:
    """Without the table, of which a token reads one row."""
    return total_parameters(projections(d, D)) + d.P


def partial_sums(d: Dims, D: Quantity, ways: int) -> tuple[PartialSum, ...]:
    """A row is found on the device that has it."""
    return (PartialSum("per-layer lookup", d.P),)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """Projection of the embedding, lookup and sum, gate, product, the way back."""
    elements, e = step.tokens * d.P, precision.hidden_bytes
    share, gate, back = (projection(p, step, precision, role="ffn") for p in projections(d, D))
    return [
        share,
        elementwise("per-layer lookup", read=2 * elements * e, written=elements * e, vector=6 * elements),
        gate,
        mlp.activation(mlp.Dims(F=d.P, gated=True, act=d.act), step.tokens, precision, "per-layer gate"),
        back,
    ]
