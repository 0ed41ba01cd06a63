"""Choosing the k largest logits of every query: a radix selection, bound by reading the logits.

One thread block takes one row; each pass reads the row's logits once. The first pass makes a histogram of the
leading bits, the last collects the indices. It has no gradient: the selection is piecewise constant.

Source: sgl-project/sglang, sgl-kernel/csrc/elementwise/topk.cu; Alabi et al., "Fast k-selection algorithms for
graphics processing units", ACM JEA 17, 2012 (radix selection).
"""

from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div
from costmodel.kernels.base import Form, Grid, Kernel, Parameter, Work, no_backward, unit_terms

PASSES = 2
"""Times that a row is read: the histogram, and the collection."""

STEP = 4096
"""Logits that one thread block of 1024 threads takes in one step."""


class Selection(NamedTuple):
    """`rows` queries choose k each from `logits` candidates in all; bytes per logit."""

    rows: Quantity
    logits: Quantity
    k: Quantity
    logit_bytes: Quantity = 4


def work(x: Selection) -> tuple[Work, Work]:
    """Ideal and executed work: each logit read once (executed: once per pass), k 4-byte indices per query written."""
    logits, indices = x.logits * x.logit_bytes, 4 * x.rows * x.k
    return (
        Work(read=logits, written=indices),
        Work(vector=2 * PASSES * x.logits, read=PASSES * logits, written=indices, l2=PASSES * logits),
    )


FORM = Form(
    family="top-k",
    summary="the k largest logits of every query",
    parameters=(
        Parameter("launch_s", 2.5e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
        Parameter("block_s", 3.0e-6, 0.5, 0.2e-6, 5e-5, "s", "histogram and refinement of one row in shared memory"),
        Parameter("step_s", 0.6e-6, 0.5, 0.02e-6, 5e-6, "s", "4096 logits of one pass in one thread block"),
        Parameter("vector_efficiency", 0.5, 0.5, 0.02, 1.0, "1", "share of the fp32 FLOP/s"),
        Parameter("memory_efficiency", 0.75, 0.2, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
        Parameter("l2_over_hbm", 2.2, 0.3, 1.0, 8.0, "1", "L2 bandwidth over HBM's, where the profile has no figure"),
        Parameter("wave_weight", 0.25, 0.6, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
        Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
    ),
    terms=unit_terms,
    backward=no_backward,
    sources=("sgl-project/sglang, sgl-kernel/csrc/elementwise/topk.cu",),
    model_spread=0.35,
)


def top_k(name: str, x: Selection) -> Kernel:
    """The selection kernel.

    >>> top_k("t", Selection(rows=2, logits=2 * 1024, k=64)).work.hbm_bytes  # 4 · 2048 in, 4 · 2 · 64 out
    8704
    """
    ideal, executed = work(x)
    # Rows differ in length; over many waves the mean decides, and in one wave of decode they are alike.
    grid = Grid(blocks=x.rows, chain_steps=ceil_div(PASSES * x.logits, x.rows * STEP))
    return Kernel(
        name=name,
        form=FORM,
        ideal=ideal,
        executed=executed,
        grid=grid,
        instance=f"k{x.k}",
        shape=x,
        implementation="radix selection (SGLang, vLLM)",
    )
