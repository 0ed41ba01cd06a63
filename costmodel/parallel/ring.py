"""Ring attention: devices that share the tokens of a sequence pass blocks of keys and values around.

Each of cp devices has the queries, keys and values of S/cp tokens. In the first step it attends to its own block, in
the next cp − 1 to the one that its neighbour sent meanwhile; the outputs of the steps are put together by their softmax
sums. Causal masks are balanced by zigzag: of 2cp chunks a device has one from the front and one from the back, so that
to every other block either all of its queries see half of the keys, or half of its queries see all of them: S²/(2cp²)
pairs. Backward: keys and values go around again, in the other direction, and their gradients with them, so that these
end at home after cp − 1 steps.

Source: arXiv:2310.01889, section 3 (ring); arXiv:2405.07719, section 3.2 (zigzag); NVIDIA/TransformerEngine,
attention/dot_product_attention/context_parallel.py (AttnFuncWithCPAndKVP2P: directions, correction of outputs).
"""

from collections.abc import Sequence

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum
from costmodel.kernels.attention import PREFILL, Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.parallel.materialised_attention import is_core

AROUND = "keys and values around the ring"
"""The exchange of one step."""
OTHERS = "attention, other blocks"
"""Attention to the blocks that arrive."""
MERGE = "attention merge"
"""The passes that put the outputs of the steps together, and their gradients."""
SUM = 4
"""Bytes of a running output, gradient or softmax sum, in fp32."""


def prefix(P: Quantity, S: Quantity, cp: Quantity, bidirectional: bool) -> Quantity:
    """Cached tokens before the new ones, from the local step (`placement.local_step`), whose P has the mean position.

    >>> prefix(1536, 1024, 4, bidirectional=False), prefix(3072, 1024, 4, bidirectional=True)
    (0, 0)
    """
    others = (cp - 1) * S
    return maximum(P - (others if bidirectional else floor_div(others, 2)), 0)


def block_tokens(P: Quantity, S: Quantity, cp: Quantity, bidirectional: bool) -> Quantity:
    """Tokens whose keys and values a device has and sends: its new ones, and its part of the cached ones."""
    return S + ceil_div(prefix(P, S, cp, bidirectional), cp)


def in_steps(kernel: Kernel, cp: int) -> Sequence[Kernel]:
    """The kernels of the steps in place of the one that attends to everything at once; others stay as they are.

    The cached tokens before the new ones are counted with the first step.
    """
    if not is_core(kernel) or kernel.shape.w is not None:
        return [kernel]
    a: Attention = kernel.shape._replace(passes=1)
    own = a._replace(P=prefix(a.P, a.S, cp, a.bidirectional))
    # Half of the queries with all keys, or all of them with half of the keys.
    half = a.S if a.bidirectional else ceil_div(a.S, 2)
    other = a._replace(S=half, P=a.S - half, bidirectional=True, appends=False)
    name = kernel.name.removesuffix(" backward")
    steps = [
        attention(name, own, form=kernel.form),
        attention(OTHERS, other, form=None if kernel.form is PREFILL else kernel.form).times(cp - 1),
    ]
    elements, sums = a.B * a.S * a.H * a.dv, a.B * a.S * a.H
    if kernel.gradient:
        steps = [part._replace(count=step.count) for step in steps for part in step.form.backward(step)]
        # Gradients of the queries, and of the block that passes.
        elements = a.B * a.S * (a.H * a.dk + a.Hkv * (a.dk + a.dv))
        sums = 0
    merge = elementwise(
        f"{MERGE} backward" if kernel.gradient else MERGE,
        read=elements * (2 + SUM) + 2 * sums * SUM,
        written=(elements + sums) * SUM,
        vector=3 * elements,
        special=2 * sums,
    )
    run = [*steps, merge.times(cp - 1)]
    return [
        part._replace(group=kernel.group, gradient=kernel.gradient, module=kernel.module).times(kernel.count)
        for part in run
    ]
