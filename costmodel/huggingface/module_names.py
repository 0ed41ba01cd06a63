"""Lists of module names in quantization files: names, parts of names, globs, and `re:` expressions.

Sources: transformers, quantizers (parts of names); vllm-project/compressed-tensors (`re:`); NVIDIA ModelOpt (globs).
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.loading import Problems

OUTSIDE_DECODER = re.compile(r"(^|\.)(mtp|visual|vision\w*|vit|audio\w*|mm_projector|embed_vision|eagle)\b")
MAX_QUANTIFIERS = 3
MAX_EXPRESSIONS = 64
MAX_NAMES = 2_000


@dataclass(frozen=True, slots=True)
class Names:
    """A list of module names as the formats write it: names, parts of names, globs, and `re:` expressions."""

    by_layer: Mapping[str, Sequence[str]]
    anywhere: tuple[str, ...]
    expressions: tuple[re.Pattern[str], ...]

    def match(self, name: str, layer: str) -> bool:
        """Whether the list names this module or something that contains it."""
        if any(expression.search(name) for expression in self.expressions):
            return True
        return any(_covers(entry, name) for entry in (*self.by_layer.get(layer, ()), *self.anywhere))


def _covers(entry: str, name: str) -> bool:
    """Whether an entry means the module: the whole name, a part of it between dots, or a glob of either."""
    if any(sign in entry for sign in "*?["):
        return fnmatch.fnmatchcase(name, entry) or fnmatch.fnmatchcase(name, f"{entry}.*")
    return f".{entry}." in f".{name}."


def usual_name(entry: str) -> str:
    """The name without what a wrapper puts in front of the decoder.

    >>> usual_name("model.language_model.layers.3.self_attn*"), usual_name("lm_head")
    ('model.layers.3.self_attn*', 'lm_head')
    """
    found = re.search(r"(?:^|\.)layers\.", entry)
    return f"model.layers.{entry[found.end() :]}" if found else entry


def read_names(problems: Problems, place: str, entries: Any) -> Names:
    """The list as `Names`. Expressions that could take exponential time are refused."""
    by_layer: dict[str, list[str]] = {}
    anywhere: list[str] = []
    expressions: list[re.Pattern[str]] = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, str) or not entry or len(entry) > 300:
            problems.add(f"{place}: {str(entry)[:60]!r} is not a module name")
            continue
        if entry.startswith("re:"):
            expressions += _expression(problems, place, entry.removeprefix("re:"))
            continue
        if OUTSIDE_DECODER.search(entry):
            continue
        name = usual_name(entry)
        numbered = re.match(r"model\.layers\.(\d+)\b", name)
        if numbered:
            by_layer.setdefault(numbered[1], []).append(name)
        else:
            anywhere.append(name)
    if len(expressions) > MAX_EXPRESSIONS or len(anywhere) > MAX_NAMES:
        problems.add(f"{place}: too long; allowed: {MAX_EXPRESSIONS} expressions, {MAX_NAMES} names without a layer")
        return Names({}, (), ())
    return Names(by_layer, tuple(anywhere), tuple(expressions))


def _expression(problems: Problems, place: str, text: str) -> list[re.Pattern[str]]:
    quantifiers = len(re.findall(r"(?<!\\)[*+{]", text))
    if re.search(r"(?<!\\)\)[*+?{]", text) or quantifiers > MAX_QUANTIFIERS:
        allowed = f"{MAX_QUANTIFIERS} repetitions, none of a group"
        problems.add(f"{place}: {text[:60]!r} is too intricate; allowed: {allowed}")
        return []
    try:
        return [re.compile(text)]
    except (re.error, OverflowError, RecursionError):
        problems.add(f"{place}: {text[:60]!r} is not a regular expression")
        return []
