"""The formulas that stand beside the curves: of every block of a model, read with symbols."""

from collections.abc import Sequence
from typing import Any

from costmodel.analysis.explain import explanation
from costmodel.analysis.explanation import Explanation
from costmodel.analysis.lone_blocks import lone_block
from costmodel.analysis.printing import text
from costmodel.analysis.symbolic import Size, definitions, labels, symbolic_dims
from costmodel.architecture import Architecture, Block
from costmodel.coverage import doubt_of
from costmodel.report.page.architectures import blocks, dimensions

PHASES = ("prefill", "decode")
SHOWN = {"tensor_flops": "FLOP", "vector_flops": "FLOP (vector)", "hbm_bytes": "bytes", "cache_bytes": "cache"}


class Formulas:
    """Collects blocks; those with the same formulas share them."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._place: dict[Any, int] = {}

    def add(self, architecture: Architecture) -> list[dict[str, Any]]:
        """The blocks of a model: name, mechanism, layers, sizes, and the place of their formulas."""
        return [
            {
                "name": block.name,
                "kind": block.module.NAME,
                "title": block.module.TITLE,
                "layers": layers,
                "sizes": dimensions(block),
                "formulas": self._of(block, architecture),
            }
            for block, layers in blocks(architecture)
        ]

    def _of(self, block: Block, architecture: Architecture) -> int:
        symbolic = symbolic_dims(block.module, block.dims)
        fields = [getattr(symbolic, name) for name in symbolic.__slots__]
        identity = (block.module.NAME, *(each.name if isinstance(each, Size) else repr(each) for each in fields))
        if identity not in self._place:
            self._place[identity] = len(self.entries)
            self.entries.append(block_entry(block, architecture.D))
        return self._place[identity]


def block_entry(block: Block, D: int) -> dict[str, Any]:
    """The formulas of one layer of a block in bf16, by phase, with the sources of the mechanism."""
    alone = lone_block(block.module, block.dims, D)
    return {
        "sources": list(block.module.SOURCES),
        "unverified": [*getattr(block.module, "UNVERIFIED", ()), *filter(None, [doubt_of(block)])],
        "phases": {phase: formula_lines(explanation(alone, phase=phase)) for phase in PHASES},
    }


def formula_lines(found: Explanation) -> list[list[Any]]:
    """Kernel, quantity, formula, definitions of named parts, and growth with the context."""
    lines: list[list[Any]] = []
    outside: Sequence[str] = ("norm", "embedding", "final norm", "lm_head", "sampling")
    for formula in found.formulas:
        if formula.quantity not in SHOWN or formula.kernel in outside:
            continue
        shown = labels(definitions(formula.expression))
        parts = {label: text(symbol.definition, shown) for symbol, label in shown.items()}
        lines.append(
            [
                formula.kernel,
                SHOWN[formula.quantity],
                text(formula.expression, shown),
                parts,
                str(formula.leading.power),
                str(formula.leading.log_power),
            ]
        )
    return lines
