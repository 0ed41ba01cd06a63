"""Compression of a run of tokens to one cache entry: a softmax over learned gates pools their projected values.

Every ratio tokens make an entry of width c. With overlap 2, each token is projected to two series, and an entry pools
the first series of the block before with the second of its own: a softmax over overlap · ratio slots per element.
Projections of tokens whose entry is not finished wait in a fp32 buffer.

Source: DeepSeek-V4 technical report, section 2.3, equations 9 to 12 and 20 to 23; huggingface/transformers,
models/deepseek_v4/modeling_deepseek_v4.py (compressors); vllm-project/vllm, models/deepseek_v4/compressor.py (buffer).
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, floor_div, named
from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection
from costmodel.step import Precision, Step


class Compressor(NamedTuple):
    """Entries of width c, one per `ratio` tokens, pooled over `overlap` blocks."""

    name: str
    c: Quantity
    ratio: Quantity
    overlap: Quantity

    def projection(self, D: Quantity) -> Projection:
        """Values and gates of all series as one matrix."""
        return Projection(f"{self.name}.kv_gate_proj", D, 2 * self.overlap * self.c)

    @property
    def extra_parameters(self) -> Quantity:
        """A bias per position of a block and element, and the scale of the norm."""
        return self.ratio * self.overlap * self.c + self.c

    @property
    def state_bytes(self) -> Quantity:
        """Bytes that a sequence keeps: values and gates of overlap · ratio tokens in fp32."""
        return 4 * self.overlap * self.ratio * 2 * self.overlap * self.c


def compress(x: Compressor, entry_bytes: Quantity, step: Step, precision: Precision) -> Kernel:
    """Pooling, norm, rotation and the write of the entries that the step finishes: ⌊L/ratio⌋ − ⌊P/ratio⌋.

    In decode every token's projections pass through the buffer, which an entry reads whole.

    >>> x = Compressor("compressor", c=512, ratio=4, overlap=2)
    >>> work = compress(x, 584, Step(B=1, S=8, P=2), Precision()).work
    >>> work.read == 8 * 2 * 1024 * 2, work.written == 2 * 584
    (True, True)
    """
    entries = named("entries", step.B * (floor_div(step.L, x.ratio) - floor_div(step.P, x.ratio)))
    width = 2 * x.overlap * x.c
    pooled = entries * x.overlap * x.ratio * x.c
    projected, written = step.tokens * width * precision.hidden_bytes, entries * entry_bytes
    kernel = elementwise(
        f"{x.name}: pool, norm, rope, cache write",
        read=projected,
        written=written,
        vector=6 * pooled + 10 * entries * x.c,
        special=pooled,
    )
    if not step.decoding:
        return kernel
    buffered = Work(read=8 * pooled, written=4 * step.tokens * width)
    executed = kernel.executed
    return kernel._replace(
        executed=executed._replace(read=executed.read + buffered.read, written=executed.written + buffered.written)
    )
