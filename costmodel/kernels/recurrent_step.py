"""Recurrent decode: the state of every head is read, stepped token by token on the fp32 lanes, and written back.

About one FLOP per byte: bound by the state's bytes, and because each sequence has its own state a larger
batch does not help. The tokens of a speculative block are stepped one after another with the state in
registers.

Source: fla-org/flash-linear-attention, fla/ops/gated_delta_rule/fused_recurrent.py; state-spaces/mamba,
mamba_ssm/ops/triton/selective_state_update.py.
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div
from costmodel.einsum import size
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Work, no_backward, unit_terms

SLICE = 32
"""Value columns of the state that one thread block steps."""


class Recurrence(NamedTuple):
    """B sequences, S tokens one after another, H heads with a state of dk × dv.

    operations: FLOPs per state element and token (decay 1, read by a key 2, rank-1 write 2, read by the query
    2); state: bytes per state element.
    """

    mechanism: str
    B: Quantity
    S: Quantity
    H: Quantity
    dk: Quantity
    dv: Quantity
    operations: int
    state: float = 4


PARAMETERS = (
    Parameter("launch_s", 4.0e-6, 0.3, 0.5e-6, 3e-5, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("step_s", 0.4e-6, 0.5, 0.02e-6, 5e-6, "s", "one token in the chain of one thread block"),
    Parameter("vector_efficiency", 0.4, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s reached"),
    Parameter("special_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the exp rate"),
    Parameter("memory_efficiency", 0.88, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
)

FORM = Form(
    family="recurrent-step",
    summary="decode of linear recurrences: state read, stepped and written",
    parameters=PARAMETERS,
    terms=unit_terms,
    backward=no_backward,
    sources=("fla-org/flash-linear-attention, fused_recurrent kernels", "state-spaces/mamba, selective_state_update"),
    model_spread=0.12,
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
    state = size("B H dk dv", s) * r.state
    steps = r.operations * size("B S H dk dv", s)
    return Kernel(
        name=name,
        form=FORM,
        ideal=Work(vector=steps, read=state + read, written=state + written),
        executed=Work(vector=steps + vector, special=special, read=state + read, written=state + written),
        grid=Grid(blocks=r.B * r.H * ceil_div(r.dv, SLICE), occupancy=4, chain_steps=r.S),
        instance=f"{r.mechanism}-{r.dk}x{r.dv}",
        shape=r,
        implementation="fused recurrent (flash-linear-attention, mamba-ssm)",
    )
