"""Recurrent decode: the state of every head is read, stepped token by token on the fp32 lanes, and written back.

About one FLOP per byte: bound by the state's bytes, and because each sequence has its own state a larger
batch does not help. The tokens of a speculative block are stepped one after another with the state in
registers; the state after every token is kept, so that a rejected draft can be taken back (executed work only).

Source: fla-org/flash-linear-attention, fla/ops/gated_delta_rule/fused_recurrent.py; state-spaces/mamba,
mamba_ssm/ops/triton/selective_state_update.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from costmodel.algebra import Quantity, ceil_div, maximum, nominal
from costmodel.einsum import size
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Terms, Work, no_backward, unit_terms, waves

if TYPE_CHECKING:
    from costmodel.hardware import Hardware

SLICE = 32
"""Value columns of the state that one thread block steps."""
RESIDENT = 8
"""Thread blocks that share a unit: a lane of the one warp holds a column of 128 keys in 255 registers, and 8 such warps
take a unit's 65,536."""
MANY_ROUNDS = 4.0
"""Rounds of thread blocks from which their chains hide behind one another's bytes more than those of one round."""


class Recurrence(NamedTuple):
    """B sequences, S tokens one after another, H heads with a state of dk × dv.

    operations: FLOPs per state element and token (decay 1, read by a key 2, rank-1 write 2, read by the query
    2); state: bytes per state element. in_place: the state is written where it was read, as in serving; else a
    library keeps what it wrote beside what it read.
    """

    mechanism: str
    B: Quantity
    S: Quantity
    H: Quantity
    dk: Quantity
    dv: Quantity
    operations: int
    state: float = 4
    in_place: bool = True

    @property
    def length(self) -> Quantity:
        """Tokens of a sequence."""
        return self.S


PARAMETERS = (
    Parameter("launch_s", 3.5e-6, 0.5, 0.5e-6, 3e-5, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("block_s", 0.6e-6, 0.6, 0.02e-6, 1e-5, "s", "start and end of one thread block"),
    Parameter("step_s", 0.4e-6, 0.5, 0.02e-6, 5e-6, "s", "one token in the chain of one thread block"),
    Parameter("vector_efficiency", 0.4, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s reached"),
    Parameter("special_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.88, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_share", 0.8, 0.4, 0.1, 4.0, "1", "part of L2 in which replayed states are found again"),
    Parameter("l2_over_hbm", 2.5, 0.4, 1.0, 10.0, "1", "L2 bandwidth over HBM's"),
    Parameter("l2_sharpness", 8.0, 0.4, 2.0, 30.0, "1", "how abruptly replayed states fall out of L2"),
    Parameter("wave_weight", 0.3, 0.8, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 3.0, 0.5, 1.0, 8.0, "1", "exponent of the p-norm in one round of thread blocks"),
    Parameter("overlap_many", 1.0, 0.5, 1.0, 2.5, "1", "exponent in many rounds over that in one"),
)


def terms(kernel: Kernel, hardware: "Hardware", theta: Mapping[str, float]) -> Terms:
    """As everywhere, but for the arithmetic of a small grid, which is the chain of its thread blocks itself.

    t = launch_s + pnorm(vector, special, memory, waves · (block_s + S · step_s)). Blocks of one round load and store
    together, so that little overlaps; in many rounds some load while others step.
    """
    work, special_peak = kernel.executed, hardware.special_peak
    r: Recurrence = kernel.shape
    if kernel.circulating is not None and r.in_place:
        # What is written where it was read takes room in L2 once.
        kernel = kernel._replace(circulating=kernel.circulating - r.B * r.H * r.dk * r.dv * r.state)
    grid = kernel.grid
    assert grid is not None
    slots = hardware.compute.units * grid.occupancy
    rounds = waves(grid.blocks, slots, theta["wave_weight"])
    more = maximum(grid.blocks / slots - 1.0, 0.0)
    many = more / (more + MANY_ROUNDS)
    return unit_terms(kernel, hardware, theta)._replace(
        chain=rounds * (theta["block_s"] + r.S * theta["step_s"]),
        vector=work.vector / (hardware.compute.vector * theta["vector_efficiency"]),
        special=work.special / (special_peak * theta["special_efficiency"]) if special_peak else 0.0,
        overlap=theta["overlap"] * (1.0 + (theta["overlap_many"] - 1.0) * many),
    )


FORM = Form(
    family="recurrent-step",
    summary="decode of linear recurrences: state read, stepped and written",
    parameters=PARAMETERS,
    terms=terms,
    backward=no_backward,
    sources=("fla-org/flash-linear-attention, fused_recurrent kernels", "state-spaces/mamba, selective_state_update"),
    model_spread=0.12,
    starts=({"wave_weight": 0.9, "overlap": 1.2},),
    by_mechanism=True,
    elsewhere=("resident",),
)


def recurrent_step(
    name: str,
    r: Recurrence,
    *,
    read: Quantity,
    written: Quantity,
    vector: Quantity = 0,
    special: Quantity = 0,
) -> Kernel:
    """The kernel; read and written are the bytes of the tokens' vectors, vector and special the gates' arithmetic.

    >>> r = Recurrence("gdn", B=1, S=1, H=32, dk=128, dv=128, operations=7)
    >>> k = recurrent_step("step", r, read=0, written=0)
    >>> k.work.flops == 7 * 32 * 128 * 128, k.work.hbm_bytes == 2 * 4 * 32 * 128 * 128
    (True, True)
    """
    s = {"B": r.B, "S": r.S, "H": r.H, "dk": r.dk, "dv": r.dv}
    block = nominal(r.S, 1) > 1  # a kernel of its own: it takes several tokens and keeps their states
    state = size("B H dk dv", s) * r.state
    steps = r.operations * size("B S H dk dv", s)
    return Kernel(
        name=name,
        form=FORM,
        ideal=Work(vector=steps, read=state + read, written=state + written),
        executed=Work(vector=steps + vector, special=special, read=state + read, written=r.S * state + written),
        grid=Grid(blocks=r.B * r.H * ceil_div(r.dv, SLICE), occupancy=RESIDENT, chain_steps=r.S),
        instance=f"{r.mechanism}-{r.dk}x{r.dv}{'-block' if block else ''}",
        shape=r,
        implementation="fused recurrent (flash-linear-attention, mamba-ssm)",
    )
