"""The order of kernels in a calibration file, and the order in which they are fitted: each stands on those before."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy

from costmodel.fitting.inside_modules import compiled_name
from costmodel.fitting.series import Series

FIRST = ("gemm", "elementwise")


def in_order(series: Iterable[Series]) -> list[list[Series]]:
    """Series of the same family and kernel together: the first families, bare kernels, modules; large before small."""
    groups: dict[tuple[str, str, str], list[Series]] = {}
    for one in series:
        groups.setdefault((one.family, one.source, one.module), []).append(one)

    def rank(same: list[Series]) -> tuple[int, str, int, int]:
        family = same[0].family
        stage = 0 if family in FIRST else 2 if same[0].mechanism else 1
        return stage, family, min(one.rank for one in same), -sum(len(one.used) for one in same)

    return sorted(groups.values(), key=rank)


def fit_order(groups: Sequence[Sequence[Series]]) -> list[int]:
    """The order in which the groups of a file are fitted: of a compiled kernel in a module those first that run fewer
    kinds of kernels, and of these the ones of shorter contexts, as what they show is part of the others."""
    first: dict[tuple[str, str], int] = {}

    def code(index: int) -> tuple[str, str]:
        one = groups[index][0]
        return one.module, compiled_name(one.source) if one.module else str(index)

    for index in range(len(groups)):
        first.setdefault(code(index), index)

    def rank(index: int) -> tuple[int, int, float, int]:
        used = [one for one in groups[index] if len(one.used)]
        if not groups[index][0].module or not used:
            return first[code(index)], 0, 0.0, index
        kinds = {family for one in used for family in one.families}
        longest = max(float(numpy.max(one.tokens[one.used])) for one in used)
        return first[code(index)], len(kinds), float(numpy.round(numpy.log2(longest))), index

    return sorted(range(len(groups)), key=rank)


T = TypeVar("T")


def in_file_order(found: Mapping[int, Sequence[T]]) -> list[T]:
    """What was found of each group, in the order of the groups."""
    return [one for index in sorted(found) for one in found[index]]
