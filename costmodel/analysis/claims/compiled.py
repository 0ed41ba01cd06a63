"""A set-up's kernels as their source compiles and times them, where that differs from the measured ones."""

from costmodel.analysis.claims.setups import SetUp, device_of
from costmodel.dtypes import element_bytes
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Pipeline, without_states
from costmodel.kernels.gemm import Gemm


def as_compiled(setup: SetUp, kernel: Kernel) -> Kernel:
    """The kernel with what the set-up says of how its tiles are run, and of the format in which products leave."""
    if setup.stateless:
        kernel = without_states(kernel)
    shape = kernel.shape
    if setup.block_per_tile and isinstance(shape, Attention | Gemm):
        shape = shape._replace(block_per_tile=True)
    if (setup.in_order or setup.without_pingpong) and isinstance(shape, Attention):
        shape = shape._replace(in_order=setup.in_order, pingpong=not setup.without_pingpong)
    if setup.shared_state and isinstance(shape, Pipeline):
        shape = shape._replace(scan=shape.scan._replace(shared_state=True))
    if setup.outputs and isinstance(shape, Gemm):
        shape = shape._replace(output=setup.outputs)
        written = shape.m * shape.n * shape.batch * element_bytes(setup.outputs)
        ideal, executed = (work._replace(written=written) for work in (kernel.ideal, kernel.executed))
        kernel = kernel._replace(ideal=ideal, executed=executed)
    return kernel if shape is kernel.shape else kernel._replace(shape=shape)


def after_clearing(setup: SetUp, kernels: list[Kernel]) -> list[Kernel]:
    """The kernels of a call, the first of which writes back what a benchmark has left in L2 (`flushed`): a buffer
    larger than L2 is cleared before each call, and what was cleared last is only in L2 when the call begins.

    Source: tile-ai/tilelang, tilelang/profiler/bench.py; triton-lang/triton, python/triton/testing.py (do_bench).
    """
    if not setup.flushed:
        return kernels
    first, *others = kernels
    left = device_of(setup).memory.l2.capacity / first.count
    ideal, executed = (work._replace(written=work.written + left) for work in (first.ideal, first.executed))
    return [first._replace(ideal=ideal, executed=executed), *others]
