"""Kernels that read and write each element once or a few times: norms, activations, RoPE, gates, cache writes."""

from costmodel.algebra import Quantity
from costmodel.kernels.base import Form, Kernel, Parameter, Work, scaled, unit_terms


def backward(kernel: Kernel) -> tuple[Kernel, ...]:
    """The gradient reads the saved input and the incoming gradient and writes one: twice the traffic at most."""
    ideal, executed = scaled(kernel.ideal, 2, 2), scaled(kernel.executed, 2, 2)
    return (kernel._replace(name=f"{kernel.name} backward", ideal=ideal, executed=executed),)


PARAMETERS = (
    Parameter("launch_s", 2.0e-6, 0.4, 0.5e-6, 3e-5, "s", "time from the end of the last kernel to useful work"),
    Parameter("memory_efficiency", 0.80, 0.12, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("l2_share", 0.7, 0.4, 0.1, 2.0, "1", "part of L2 in which replayed bytes are found again"),
    Parameter("l2_over_hbm", 2.5, 0.4, 1.0, 10.0, "1", "L2 bandwidth over HBM's"),
    Parameter("vector_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the fp32 FLOP/s reached"),
    Parameter("special_efficiency", 0.5, 0.4, 0.02, 1.0, "1", "share of the special-function rate reached"),
    Parameter("overlap", 4.0, 0.4, 1.0, 8.0, "1", "exponent of the p-norm"),
)

FORM = Form(
    family="elementwise",
    summary="norms, activations, rotary embedding, gates, cache writes",
    parameters=PARAMETERS,
    terms=unit_terms,
    backward=backward,
    sources=("Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009",),
    model_spread=0.15,
    by_mechanism=True,  # hyper-connections have kernels of their own
)


def elementwise(
    name: str,
    *,
    read: Quantity,
    written: Quantity,
    vector: Quantity = 0,
    special: Quantity = 0,
    weights: Quantity = 0,
) -> Kernel:
    """One fused pass: bytes read and written, and the arithmetic that rides along.

    Its arithmetic is bookkeeping (norms, activations), so it counts as executed work, not as ideal FLOPs.

    >>> elementwise("norm", read=8, written=8).work.hbm_bytes
    16
    """
    traffic = Work(read=read, written=written, weights=weights)
    executed = Work(vector=vector, special=special, read=read, written=written, weights=weights)
    return Kernel(name=name, form=FORM, ideal=traffic, executed=executed, implementation="fused elementwise")
