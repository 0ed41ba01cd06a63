"""Manifold-constrained hyper-connections: n residual streams, mixed anew at every mixer and FFN.

At each site, three sets of weights are computed from the normed streams of a token by one matrix of n·D × (2 + n)·n:
`pre` collapses the streams to the block's input, `post` spreads its output over the streams, and `comb`, made doubly
stochastic by Sinkhorn's iterations, mixes the streams. Beside the residual stream of D elements of a plain block, every
site reads and writes n·D.

Source: arXiv:2512.24880, sections 4.1 to 4.3 (equations 7 to 9, fused kernels); DeepSeek-V4 technical report, section
2.2; huggingface/transformers, models/deepseek_v4/modeling_deepseek_v4.py (class DeepseekV4HyperConnection).
"""

from collections.abc import Sequence

from costmodel.algebra import Quantity
from costmodel.einsum import dot
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.step import Precision, Step

PRE, POST = "hyper-connections-pre", "hyper-connections-post"
"""The compiled kernels before and after a block."""

ITERATIONS = 20
"""Sinkhorn iterations, each a normalisation of columns and one of rows."""


def mixing_weights(streams: Quantity) -> Quantity:
    """Weights of one token and site: n for pre, n for post, n² for comb.

    >>> mixing_weights(4)
    24
    """
    return (2 + streams) * streams


def parameters(D: Quantity, streams: Quantity) -> Quantity:
    """Weights of one site: the matrix, a bias per mixing weight, and three scales.

    >>> parameters(4096, 4) == 24 * 4 * 4096 + 24 + 3
    True
    """
    return mixing_weights(streams) * (streams * D + 1) + 3


def collapse_parameters(D: Quantity, streams: Quantity) -> Quantity:
    """Weights of the collapse before the head: n weights from the n streams, their biases, and a scale.

    >>> collapse_parameters(4096, 4) == 4 * 4 * 4096 + 4 + 1
    True
    """
    return streams * (streams * D + 1) + 1


def hyper_connections(
    D: Quantity, streams: Quantity, step: Step, precision: Precision, iterations: Quantity = ITERATIONS
) -> Sequence[Kernel]:
    """The kernels of one site: mixing weights and collapse before the block, spread and mix after it.

    Needed are one pass over the streams before the block and one after it; the collapse reads them a second time. The
    products with `pre`, `post` and `comb` ride on these passes in the vector lanes.

    >>> run = hyper_connections(4096, 4, Step(B=1, S=10, P=0), Precision())
    >>> [k.name for k in run], run[0].work.flops == 2 * 10 * 24 * 4 * 4096
    (['hyper-connection weights', 'collapse streams', 'spread and mix streams'], True)
    """
    e, n = precision.hidden_bytes, step.tokens
    weights = mixing_weights(streams)
    stream, block, mixing = n * streams * D * e, n * D * e, 4 * n * weights
    # 24 columns fill no tile of a product: the kernel streams the normed streams once and is bound by that.
    product = elementwise(
        "hyper-connection weights",
        read=stream + weights * streams * D * e,
        written=mixing,
        vector=2 * n * streams * D,
        weights=weights * streams * D * e,
    )
    flops = {precision.hidden: dot("n w, w c -> n c", dict(n=n, w=streams * D, c=weights))}
    product = product._replace(
        ideal=product.ideal._replace(tensor=flops), executed=product.executed._replace(tensor=flops), instance=PRE
    )
    collapse = elementwise(
        "collapse streams",
        read=stream + mixing,
        written=block + mixing,
        vector=2 * n * streams * D + n * (4 * iterations * streams * streams + 4 * weights) + 2 * n * streams * D,
        special=n * weights,
    )
    spread = elementwise(
        "spread and mix streams",
        read=stream + block + mixing,
        written=stream,
        vector=2 * n * (streams * streams + streams) * D,
    )
    return [
        product,
        collapse._replace(ideal=collapse.ideal._replace(read=mixing), instance=PRE),
        spread._replace(instance=POST),
    ]
