"""A step: what is processed, and in which number formats."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from costmodel.algebra import Quantity
from costmodel.dtypes import element_bytes

Phase = Literal["prefill", "decode", "train"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "train")


class Step(NamedTuple):
    """B sequences process S new tokens each, after P cached ones; the context after the step is L = P + S.

    phase chooses kernels, not formulas: prefill and decode of the same S and P do the same ideal work.
    bidirectional steps (diffusion) let every new token see all L.
    """

    B: Quantity
    S: Quantity
    P: Quantity
    phase: Phase = "prefill"
    bidirectional: bool = False

    @property
    def L(self) -> Quantity:
        """Tokens in the sequence after the step."""
        return self.P + self.S

    @property
    def tokens(self) -> Quantity:
        """New tokens of the whole batch."""
        return self.B * self.S

    @property
    def decoding(self) -> bool:
        """Whether the decode kernels run; a denoising step works on whole sequences and takes the prefill kernels."""
        return self.phase == "decode" and not self.bidirectional


class Precision(NamedTuple):
    """Number formats of a step.

    activations: what GEMMs multiply; weights: dtype by role ("mixer", "ffn", "experts", "shared_experts",
    "head", "embedding", "router"), with "default" for the roles not named; kv: cached keys and values;
    attention: what attention multiplies; hidden: residual stream and elementwise traffic.
    """

    activations: str = "bf16"
    weights: Mapping[str, str] = MappingProxyType({"default": "bf16"})
    kv: str = "bf16"
    attention: str = "bf16"
    hidden: str = "bf16"

    def weight(self, role: str) -> str:
        """The dtype of the weights with this role."""
        return self.weights.get(role, self.weights["default"])

    def operand(self, role: str) -> str:
        """The dtype of the activations that meet these weights: a layer left in 16 bit gets 16-bit input."""
        weights = self.weight(role)
        narrow = element_bytes(self.activations) < 2
        return self.hidden if narrow and element_bytes(weights) >= 2 else self.activations

    @property
    def hidden_bytes(self) -> float:
        """Bytes per element of the residual stream."""
        return element_bytes(self.hidden)

    @property
    def kv_bytes(self) -> float:
        """Bytes per cached element."""
        return element_bytes(self.kv)
