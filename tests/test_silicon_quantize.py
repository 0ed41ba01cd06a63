"""How measured casts are read."""

import numpy
import pandas
import pytest

from costmodel.fitting.silicon import FLAG, Table, readers
from costmodel.hardware import load_hardware


def table(name: str, library: str) -> Table:
    frame = pandas.DataFrame(
        {"m": [1, 64], "k": [128, 256], "kernel_source": "cast", "latency": [0.002, 0.003], FLAG: ""}
    )
    return Table("h100_sxm", "quantize", library, "1", name, frame, load_hardware("h100-sxm"))


def test_a_cast_reads_two_bytes_and_writes_one() -> None:
    (series,) = readers()["scale_matrix"](table("scale_matrix", "vllm"))
    (kernel,) = series.parts(series.used)[0].kernels
    assert list(numpy.asarray(kernel.ideal.hbm_bytes)) == [3 * 128, 3 * 64 * 256]
    assert kernel.circulating is not None


@pytest.mark.parametrize(
    "name,library,reason",
    [
        ("computescale", "vllm", "difference of two timings"),
        ("scale_matrix", "sglang", "expression of several kernels"),
    ],
)
def test_rows_that_are_not_one_pass_are_flagged(name: str, library: str, reason: str) -> None:
    (series,) = readers()[name](table(name, library))
    assert set(series.flags) == {reason}
