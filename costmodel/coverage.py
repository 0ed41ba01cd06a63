"""Which mechanisms a measurement covers: whether anyone has timed the kernels that only they run.

A mechanism is covered where every kernel of its own, projections and elementwise passes aside, is of a kind that some
calibration was fitted to: one that the project ships, or the one in use, such as a user's own of this very device.
Scans and steps of a recurrence are kernels of their own for each mechanism; all other families' serve several.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from costmodel.calibration import PRIOR, Calibration
from costmodel.kernels.base import Kernel

COMMON = ("gemm", "elementwise", "collective")
"""Families that say nothing of a mechanism."""
OWN = ("chunk-scan", "recurrent-step")
"""Families whose instances begin with the mechanism's name."""
SHIPPED = frozenset(
    [
        ("chunk-scan", "gdn"),
        ("chunk-scan", "kda"),
        ("chunk-scan", "mamba2"),
        ("csa-decode", ""),
        ("csa-prefill", ""),
        ("decode-attention", ""),
        ("hca-decode", ""),
        ("hca-prefill", ""),
        ("indexer", ""),
        ("mla-decode", ""),
        ("mla-prefill", ""),
        ("moe", ""),
        ("msa-decode", ""),
        ("msa-prefill", ""),
        ("prefill-attention", ""),
        ("recurrent-step", "gdn"),
        ("recurrent-step", "kda"),
        ("short-conv", ""),
        ("sparse-attention", ""),
        ("top-k", ""),
        ("window-attention", ""),
    ]
)
"""Kinds of kernels, as (family, mechanism or ""), that the shipped calibrations were fitted to. They stand here so that
a prediction need not read every calibration; a test compares the two."""

Kind = tuple[str, str]


def kind_of(family: str, instance: str) -> Kind:
    """The kind of a kernel.

    >>> kind_of("chunk-scan", "gdn-128x128-bf16"), kind_of("mla-decode", "h128-bf16")
    (('chunk-scan', 'gdn'), ('mla-decode', ''))
    """
    return family, instance.partition("-")[0] if family in OWN else ""


def kinds_of(calibration: Calibration) -> set[Kind]:
    """The kinds that a calibration was fitted to, without what its instances have in common."""
    return {
        kind_of(family, document.key[1])
        for family, documents in calibration.entries.items()
        if family not in COMMON
        for document in documents
        if document.key[1] or family not in OWN
    }


def unmeasured(kernels: Iterable[Kernel], calibration: Calibration = PRIOR) -> tuple[str, ...]:
    """The mixers and feed-forward blocks among whose kernels is one of a kind that nobody has measured.

    Where only a variant lacks measurements (attention without a mask), the family is named, not the mechanism.
    """
    own: set[Kind] | None = None
    found: dict[str, None] = {}
    for kernel in kernels:
        if kernel.family in COMMON or kernel.gradient:
            continue
        kind = kind_of(kernel.family, kernel.instance)
        if kind in SHIPPED:
            continue
        own = kinds_of(calibration) if own is None else own
        if kind not in own:
            mechanism = "" if kernel.form.like is not None else kernel.module.rpartition("-")[0]
            found[mechanism or kernel.family] = None
    return tuple(found)


def borrowed(kernels: Iterable[Kernel], calibration: Calibration) -> tuple[str, ...]:
    """Families of kernels that a calibration does not hold, each with where the parameters come from instead."""
    found: dict[str, None] = {}
    for kernel in kernels:
        if kernel.count and (origin := calibration.fit(kernel).origin):
            found[f"{kernel.family} from {origin}"] = None
    return tuple(found)


def unmeasured_in(architecture: Any, calibration: Calibration = PRIOR) -> tuple[str, ...]:
    """The blocks of an architecture that no measurement covers, in prefill or decode."""
    from costmodel.step import Precision, Step

    steps = (Step(B=1, S=4096, P=0), Step(B=1, S=1, P=4095, phase="decode"))
    found = (unmeasured(architecture.kernels(step, Precision()), calibration) for step in steps)
    return tuple(dict.fromkeys(name for names in found for name in names))


@cache
def measured_phases(mechanism: str) -> tuple[str, ...]:
    """The phases of a mechanism that a measurement covers of which the project ships a calibration.

    >>> measured_phases("gqa"), measured_phases("hyena")
    (('prefill', 'decode'), ())
    """
    from costmodel.mixers import mixer
    from costmodel.step import Precision, Step

    module = mixer(mechanism)
    steps = {"prefill": Step(B=1, S=64, P=0), "decode": Step(B=1, S=1, P=63, phase="decode")}
    return tuple(
        phase
        for phase, step in steps.items()
        if not any(unmeasured(module.kernels(d, 64, step, Precision())) for d in module.EXAMPLES)
    )


def doubt(mechanism: str) -> str:
    """What is said of a mechanism of which no measurement covers a phase; "" of another.

    >>> doubt("gqa"), doubt("hyena")
    ('', 'no measurement covers it yet')
    """
    missing = [phase for phase in ("prefill", "decode") if phase not in measured_phases(mechanism)]
    if not missing:
        return ""
    return "no measurement covers it yet" if len(missing) == 2 else f"no measurement covers its {missing[0]} yet"


def told(names: Iterable[str]) -> str:
    """What outputs say of such mechanisms; "" of none.

    >>> told(["hyena", "mamba1"])
    'no measurement covers hyena, mamba1'
    """
    listed = ", ".join(dict.fromkeys(names))
    return f"no measurement covers {listed}" if listed else ""


def doubt_of(block: Any) -> str:
    """The same of an architecture's block; "" of a feed-forward block, whose kernels are products."""
    from costmodel.mixers import mixer

    return doubt(block.kind) if hasattr(block.module, "ORDER") and mixer(block.kind) is block.module else ""
