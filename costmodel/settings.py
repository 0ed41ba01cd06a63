"""`--set PATH=VALUE`: change one entry of a loaded file, found by its path or by a bare name that is unique."""

from collections.abc import Callable, Sequence
from typing import Any

from costmodel.errors import BadInput, suggestion


def split_settings(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings of the architecture and, without their `hw.`, those of the hardware.

    >>> split_settings(["mixers.kda.heads=16", "hw.memory.hbm.bandwidth=2x"])
    (('mixers.kda.heads=16',), ('memory.hbm.bandwidth=2x',))
    """
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip() or not value.strip():
            raise BadInput(f"--set {text[:80]!r}: expected PATH=VALUE, such as mixers.kda.heads=16")
    own = tuple(text for text in texts if not text.startswith("hw."))
    return own, tuple(text.removeprefix("hw.") for text in texts if text.startswith("hw."))


def leaf_paths(tree: Any, prefix: str = "") -> dict[str, tuple[dict[str, Any], str]]:
    """Every entry below the top level by its dotted path, with the mapping that holds it."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            found.update(leaf_paths(value, path))
        else:
            found[path] = (tree, key)
    return found


def apply_settings(
    raw: dict[str, Any],
    settings: Sequence[str],
    shown_prefix: str,
    place: str,
    quantity: Callable[[str, Any, str], Any],
    extra: Callable[[dict[str, Any]], dict[str, tuple[dict[str, Any], str]]] | None = None,
) -> None:
    """Change `raw` in place. `quantity` makes the new value from (path, old value, text); `extra` may add paths.

    Raises BadInput for an unknown or ambiguous path, with the candidates.
    """
    for text in settings:
        path, _, value = text.partition("=")
        path, value = path.strip(), value.strip()
        leaves = leaf_paths(raw)
        if extra:
            leaves = {**extra(raw), **leaves}
        matches = [path] if path in leaves else [leaf for leaf in leaves if leaf.endswith(f".{path}")]
        if not matches:
            near = suggestion(path, [*leaves, *{leaf.rpartition(".")[2] for leaf in leaves}])
            raise BadInput(f"--set {shown_prefix}{path[:80]}: {place} has no such entry{near}")
        if len(matches) > 1:
            listed = ", ".join(f"{shown_prefix}{match}" for match in sorted(matches))
            raise BadInput(f"--set {shown_prefix}{path[:80]}: ambiguous; candidates: {listed}")
        holder, key = leaves[matches[0]]
        holder[key] = quantity(matches[0], holder.get(key), value)
