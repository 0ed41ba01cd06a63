"""Where the fit of a kernel inside a measured module begins, and how far it may move from there.

A module's time is the sum of its kernels' times, most of which were measured alone before. What its own measurements
decide of them is what depends on where they run.
"""

from collections.abc import Iterable, Mapping

from costmodel.fitting.least_squares import Block
from costmodel.kernels.base import Form

HELD, LOOSE = 0.5, 2.0
"""Shares of a prior spread: where a kernel is nearly what was found of it elsewhere, and where that says little."""
MOVED: Mapping[str, Mapping[str, float]] = {
    "gemm": {
        **dict.fromkeys(("launch_s", "quantise_s", "join_s"), LOOSE),
        **dict.fromkeys(("tensor_efficiency", "memory_efficiency"), 1.0),
        **dict.fromkeys(("l2_over_hbm", "l2_share", "block_bandwidth", "wave_weight", "overlap", "crowding"), HELD),
        **dict.fromkeys(("block_s", "apart", "split_k", "split_s", "few_step", "few_block"), HELD),
        **dict.fromkeys(("small_step", "small_block", "half_step", "half_block"), HELD),
    }
}
"""What moves of the kernels that were fitted outside a module, by family (others: everything), as shares of the prior
spreads.

A product's launches depend on where it runs: alone, DeepGEMM on B200 takes 6 µs to begin and 8 µs to quantise, in a
captured module about 2 and 5. How a product chooses and walks its tiles does not, but a module has few matrices, whose
kernels are faster or slower than those of all others, and it finds more of them in L2.
"""
THROTTLED = ("ada",)
"""Generations whose clock falls by half under the power limit (L40S: 2,520 MHz of boost over 1,110 of base). A table of
products repeats each alone, as long as the next; in a module they run at the clock that its whole time leaves. Short
ones are faster there and long ones slower, so that `sustained` moves as well."""
BEGUN_FROM = {"hca-prefill": "csa-prefill", "hca-decode": "csa-decode"}
"""Modules that run the kernels of another one over other lists of rows, and whose fit begins where the other's ended:
what few or short points of one leave open, those of the other may have shown. Both are named as their families."""

STEADY = ("tensor_efficiency", "vector_efficiency", "step_s", "many", "split_s", "pair_step")
FIRM = 0.1
"""What a tile takes once the loop over tiles runs, and the share of its prior spread that is left in a module that
begins where another's fit ended: it is the compiled kernel's. A module's own lists of a few tiles show how they begin,
and took for the price of every tile what their first ones cost more. So is what one more part of a query takes to be
combined: a fit of three parts had made it twice as dear, and missed lists of a hundred by a fifth."""


STREAMING = (
    "memory_efficiency",
    "unit_share",
    "stream_share",
    "tensor_efficiency",
    "wave_weight",
    "overlap",
)
"""How fast a compiled decode kernel streams its cache and multiplies, and how these overlap: in a module it does as it
did when it was measured alone, so that `FIRM` is left. A module's short contexts show the rest of it better: launches,
ends and what L2 holds. Prefill is bound by products, which the power limit slows by what runs beside them."""


def measured_elsewhere(form: Form) -> Form:
    """The form for a module's decode kernel that no table of this library holds alone, but those of others do, which
    its priors come from: it streams as they say there (`STREAMING`).

    >>> from costmodel.kernels.mla_decode import FLASHINFER_GENERATED
    >>> spreads = [{one.name: one.spread for one in form.parameters}
    ...     for form in (FLASHINFER_GENERATED, measured_elsewhere(FLASHINFER_GENERATED))]
    >>> [round(spread["overlap"], 3) for spread in spreads], spreads[0]["launch_s"] == spreads[1]["launch_s"]
    ([0.3, 0.03], True)
    """
    return form.adjusted({one.name: {"spread": FIRM * one.spread} for one in form.parameters if one.name in STREAMING})


BESIDE_ATTENTION = ("gemm", "elementwise")
INDEXING = ("indexer", "top-k")
"""Families whose kernels a library runs inside a module whichever attention kernel it takes there: products and
elementwise kernels everywhere, in DSA also the indexer and its selection, which are a kernel's own in MSA."""


def compiled_name(source: str) -> str:
    """The name of a module's attention kernel without what says of which layers and lengths it was measured.

    >>> compiled_name("sglang_dsa_skip_indexer_trtllm below top-k 0.5.14")
    'sglang_dsa_indexer_trtllm'
    """
    return source.split()[0].replace("_skip_", "_")


def same_code(family: str, module: str, source: str, other: str) -> bool:
    """Whether two attention kernels of a module run the same compiled kernel of a family."""
    beside = BESIDE_ATTENTION + (INDEXING if module.startswith("dsa-") else ())
    return family in beside or compiled_name(source) == compiled_name(other)


def nearest_name(name: str, others: Iterable[str]) -> str | None:
    """The kernel whose name shares the most words with a name and has the fewest others.

    >>> nearest_name("dsa_indexer_trtllm 1.0", ["dsa_indexer_flashmla 1.0", "dsa_skip_indexer_trtllm 1.0"])
    'dsa_skip_indexer_trtllm 1.0'
    """
    words = set(name.replace("_", " ").split())

    def unlike(other: str) -> tuple[int, int]:
        its = set(other.replace("_", " ").split())
        return -len(words & its), len(its - words)

    return min(others, key=unlike, default=None)


def within(
    one: Block,
    family: str,
    begun: bool = False,
    held: bool = False,
    generation: str | None = None,
    alone: bool = False,
) -> Block:
    """A block of a module's kernel. One beside the family that is fitted starts from what was found outside the module
    only, and of products most parameters stay as they are there, or near it; begun: the family's own starts where
    another module's fit of the same compiled kernel ended; held: the same compiled kernel was found in another run of
    the module; generation: of the device; alone: the same compiled kernel was measured outside of modules."""
    if held:
        one = one._replace(spread={name: value * HELD for name, value in one.spread.items()})
    if one.key[0] == family:
        steady = STEADY if begun else STREAMING if alone and family.endswith("-decode") else ()
        firm = dict.fromkeys(steady, FIRM)
        return one._replace(spread={name: value * firm.get(name, 1.0) for name, value in one.spread.items()})
    free = MOVED.get(one.key[0], dict.fromkeys(one.spread, 1.0))
    if one.key[0] == "gemm" and generation in THROTTLED:
        free = {**free, "sustained": LOOSE}
    spread = {name: value * free.get(name, 0.0) for name, value in one.spread.items()}
    return one._replace(spread=spread, others=())
