"""Selective scans: recurrences of independent channels, run along the sequence on the vector lanes.

No matrix products: every channel has its own decay for each of its N state elements (Mamba-1), or carries a few
running sums (RWKV-4). The exponentials of the decays and, with N state elements that each read B and C, the traffic
from L2 limit them; the state itself stays in registers.

A block of Mamba's kernel owns one channel of one sequence and walks it in pieces of 2048 tokens; inside a piece its
threads scan in parallel, 16 tokens each, so that short sequences take smaller blocks. RWKV-4's kernel has a thread per
channel that walks token by token.

Source: Mamba arXiv:2312.00752, section 3.3; state-spaces/mamba, csrc/selective_scan/selective_scan_fwd_kernel.cuh.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, where
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Work, unit_terms

PIECE = 2048
"""Tokens that a block scans at once."""

ITEMS = 16
"""Tokens of a piece in one thread."""

WARP = 32
"""Channels of a block whose threads walk token by token."""


RESIDENT_WARPS = 12
"""Warps of scanning threads on one unit: three blocks of 128 threads, whose registers the compiler keeps to 168.

Source: state-spaces/mamba, csrc/selective_scan/selective_scan_fwd_kernel.cuh (kMinBlocks).
"""


def scanning_blocks(S: Quantity) -> Quantity:
    """Thread blocks on one unit: of one, two or four warps, which scan a piece at once, 16 tokens in a thread.

    Source: state-spaces/mamba, csrc/selective_scan/selective_scan_fwd_kernel.cuh (selective_scan_fwd_cuda).

    >>> [scanning_blocks(S) for S in (512, 1024, 2048, 65536)]
    [12, 6, 3, 3]
    """
    return where(S <= 512, RESIDENT_WARPS, where(S <= 1024, RESIDENT_WARPS // 2, RESIDENT_WARPS // 4))


class ChannelScan(NamedTuple):
    """B sequences of S new tokens, `channels` with N state elements each.

    updates: state updates of one thread per token, one after another. parallel: the tokens of a piece are scanned by
    many threads; else one thread walks its channel through all tokens.
    """

    mechanism: str
    B: Quantity
    S: Quantity
    channels: Quantity
    N: Quantity
    updates: Quantity
    parallel: bool = True

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.S


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """The gradient walks the tokens backwards; the states are recomputed on the way, not stored.

    It reads the inputs and the incoming gradients and writes those of the inputs: twice the arithmetic, and the
    forward once more as executed work.
    """
    ideal, done, grid = kernel.ideal, kernel.executed, kernel.grid
    return (
        kernel._replace(
            name=f"{kernel.name} backward",
            ideal=Work(vector=2 * ideal.vector, read=ideal.read + ideal.written, written=ideal.read),
            executed=Work(
                vector=3 * done.vector,
                special=2 * done.special,
                read=done.read + done.written,
                written=done.read,
                l2=2 * done.l2,
            ),
            grid=grid._replace(chain_steps=2 * grid.chain_steps) if grid else None,
        ),
    )


PARAMETERS = (
    Parameter("launch_s", 3.0e-6, 0.4, 0.5e-6, 3e-5, "s", "launch and tail of the kernel"),
    Parameter("block_s", 0.5e-6, 0.5, 0.1e-6, 1e-5, "s", "prologue and epilogue of one thread block"),
    Parameter("step_s", 8e-9, 0.5, 1e-9, 5e-7, "s", "one state update in the chain of one thread"),
    Parameter("vector_efficiency", 0.4, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s reached"),
    Parameter("special_efficiency", 0.4, 0.4, 0.02, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.70, 0.3, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's, where the profile has no figure"),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 2.0, 0.25, 1.2, 8.0, "1", "exponent of the p-norm"),
)

FORM = Form(
    family="selective-scan",
    summary="recurrences of independent channels on the vector lanes",
    parameters=PARAMETERS,
    terms=unit_terms,
    backward=backward,
    sources=(
        "arXiv:2312.00752, section 3.3",
        "state-spaces/mamba, csrc/selective_scan",
        "NX-AI/mlstm_kernels, notebooks (times of the Mamba-1 kernel on H100, for the priors)",
    ),
    model_spread=0.3,
)


def selective_scan(
    name: str,
    c: ChannelScan,
    *,
    flops: tuple[Quantity, Quantity],
    needed: tuple[Quantity, Quantity],
    moved: tuple[Quantity, Quantity],
    reread: Quantity = 0,
    special: Quantity = 0,
    implementation: str = "mamba-ssm (CUDA)",
) -> Kernel:
    """The kernel; flops are the recurrence's and all that is executed, needed and moved bytes read and written.

    reread: bytes that come again from L2.

    >>> c = ChannelScan("mamba1", B=1, S=4096, channels=5120, N=16, updates=16)
    >>> k = selective_scan("scan", c, flops=(5, 10), needed=(8, 4), moved=(8, 8))
    >>> k.grid.blocks, k.grid.chain_steps == 2 * 16 * 16, k.executed.hbm_bytes - k.ideal.hbm_bytes
    (5120, True, 4)
    """
    if c.parallel:
        grid = Grid(
            blocks=c.B * c.channels,
            occupancy=scanning_blocks(c.S),
            chain_steps=ceil_div(c.S, PIECE) * ITEMS * c.updates,
        )
    else:
        grid = Grid(blocks=c.B * ceil_div(c.channels, WARP), occupancy=16, chain_steps=c.S * c.updates)
    return Kernel(
        name=name,
        form=FORM,
        ideal=Work(vector=flops[0], read=needed[0], written=needed[1]),
        executed=Work(
            vector=flops[1], special=special, read=moved[0], written=moved[1], l2=moved[0] + moved[1] + reread
        ),
        grid=grid,
        instance=f"{c.mechanism}-{c.N}",
        shape=c,
        implementation=implementation,
    )
