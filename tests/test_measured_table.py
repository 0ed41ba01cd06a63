"""What a measured table reads from a kernel's shape: the numbers that lie between points, and what must be equal."""

from costmodel.fitting.measured_table import described
from costmodel.kernels.base import Kernel
from costmodel.mixers import kda
from costmodel.step import Precision, Step


def scan(batch: int, length: int) -> Kernel:
    found = kda.kernels(kda.EXAMPLES[0], 64, Step(B=batch, S=length, P=0), Precision())
    return next(kernel for kernel in found if kernel.family == "chunk-scan")


def test_scans_of_other_batches_and_lengths_are_other_places_of_one_table() -> None:
    (one, other) = (described([scan(batch, length)], qualified=False) for batch, length in ((1, 4096), (4, 1024)))
    assert one.words == other.words
    assert one.numbers != other.numbers
    assert (one.numbers["scan.B"], one.numbers["scan.S"]) == (1, 4096)
    hash(one.words)
