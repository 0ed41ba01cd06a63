"""What devices that share the work of a block must add up inside it, beside its output.

A block whose heads, channels or inner width are split ends in a matrix whose rows are split, so each device has a part
of the sum of its output. A mechanism that has such a sum in between as well says so in a function
`partial_sums(d, D, ways)`, D the width of the model and ways the number of devices.

Source: arXiv:1909.08053 (Megatron-LM), section 3.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity


class PartialSum(NamedTuple):
    """A sum over the devices: `width` elements per token, of so many bytes (None: those of the hidden state)."""

    name: str
    width: Quantity
    bytes: float | None = None


NORM_OF_ALL_HEADS = PartialSum("norm over all heads", 1, 4.0)
"""The mean square of a token's channels, one fp32 number."""
