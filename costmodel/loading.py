"""Reading files that strangers wrote: YAML and JSON with limits, and a strict reader with suggestions."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from costmodel.errors import BadInput, suggestion

MAX_BYTES = 8 * 2**20
MAX_DEPTH = 40
SHALLOW_CHARACTERS = 10_000
"""A text this short cannot be nested so deeply that a parser's stack overflows: its depth is counted afterwards."""


def read_text(path: Path) -> str:
    """The text of a regular file of at most 8 MiB.

    Raises BadInput for a missing file, a folder, a device, a file that is too large or not UTF-8.
    """
    shown = str(path)[:200]
    try:
        if not path.exists():
            raise BadInput(f"{shown}: no such file")
        if not path.is_file():
            raise BadInput(f"{shown}: not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"{shown}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{shown}: not UTF-8 text") from None
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"{shown}: cannot be read ({reason})") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds; no objects are constructed, aliases are refused.

    Raises BadInput, which names the file and, where the parser knows it, the line.
    """
    return parse_mapping(read_text(path), path)


def parse_mapping(text: str, path: Path, json: bool | None = None) -> dict[str, Any]:
    """The mapping that a text from this file holds; the path is named in errors.

    json: whether it is JSON, else YAML (None: as the file's name says).
    """
    is_json = path.suffix == ".json" if json is None else json
    data = _parse_json(text, path) if is_json else _parse_yaml(text, path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: holds a {type(data).__name__}, not a mapping of names to values")
    _check_depth(data, path)
    return data


def _parse_json(text: str, path: Path) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise BadInput(f"{path}: not readable as JSON ({reason})") from None


def _parse_yaml(text: str, path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if "*" in text or len(text) > SHALLOW_CHARACTERS:
            _check_events(yaml, yaml.parse(text, Loader=loader), path)
        return yaml.load(text, Loader=loader)  # a safe loader: builds plain values only
    except BadInput:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise BadInput(f"{path}: not valid YAML{place}: {reason}") from None
    except (RecursionError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not readable as YAML ({str(error)[:120]})") from None


def _check_events(yaml: Any, events: Iterable[Any], path: Path) -> None:
    """Refuse aliases and depth before anything is built."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(f"{path}: YAML aliases (*{event.anchor}) are not accepted; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise BadInput(f"{path}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_depth(data: Any, path: Path) -> None:
    layer = [data]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in layer:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        layer = below
    raise BadInput(f"{path}: nested deeper than {MAX_DEPTH} levels")


class Problems:
    """Collects everything that is wrong with a file, so that one message tells it all.

    >>> problems = Problems("gpu.yaml")
    >>> problems.unknown_keys({"peek": 1}, ["peak"], "compute")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    costmodel.errors.BadInput: gpu.yaml: unknown key 'compute.peek'; did you mean 'peak'?
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.found: list[str] = []

    def add(self, message: str) -> None:
        """Note one problem."""
        self.found.append(message)

    def unknown_keys(self, mapping: Mapping[Any, Any], known: Iterable[str], where: str = "") -> None:
        """Note every key that is not known, with the nearest that is."""
        allowed = list(known)
        for key in mapping:
            if key not in allowed:
                shown = f"{where}.{key}" if where else f"{key}"
                self.add(f"unknown key {shown[:100]!r}{suggestion(str(key), allowed)}")

    def whole_number(self, value: Any, where: str, *, least: int = 1, most: int = 10**12) -> int:
        """The value as an int in [least, most]; a problem is noted and `least` returned otherwise."""
        integral = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not integral:
            self.add(f"{where}: {str(value)[:60]!r} is not a whole number")
            return least
        if not least <= value <= most:
            self.add(f"{where}: {str(value)[:60]} is outside {least} to {most}")
            return least
        return int(value)

    def number(self, value: Any, where: str, *, least: float = 0.0, most: float = 1e30) -> float:
        """The value as a float in [least, most]; a problem is noted and `least` returned otherwise."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.add(f"{where}: {str(value)[:60]!r} is not a number")
            return least
        if not least <= value <= most:
            self.add(f"{where}: {str(value)[:60]} is outside {least:g} to {most:g}")
            return least
        return float(value)

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        """The value as a mapping with text keys, else an empty one with a problem noted."""
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
        self.add(f"{where}: expected a mapping of names to values, found {type(value).__name__}")
        return {}

    def raise_if_any(self) -> None:
        """Raise BadInput with all problems in one message."""
        if self.found:
            shown = self.found[:20] + ([f"… {len(self.found) - 20} more"] if len(self.found) > 20 else [])
            raise BadInput("\n".join(f"{self.place}: {message}" for message in shown))


def data_folder(name: str) -> Path:
    """Where shipped data lies: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "data" / name
    return installed if installed.is_dir() else package.parent / name


def user_folder(name: str) -> Path:
    """Where a user's own profiles and calibrations lie (`COSTMODEL_DATA`, else the platform's data directory)."""
    override = os.environ.get("COSTMODEL_DATA")
    if override:
        return Path(override) / name
    if sys.platform == "linux":
        # The same folder as below, without the cost of an import in every run.
        base = os.environ.get("XDG_DATA_HOME", "").strip() or os.path.expanduser("~/.local/share")
        return Path(base) / "costmodel" / name
    import platformdirs

    return Path(platformdirs.user_data_dir("costmodel", appauthor=False)) / name


def find_file(text: str, folder: str, kind: str) -> Path:
    """The file that a name, a unique prefix or a path means; the user's own files come before shipped ones."""
    if "/" in text or os.sep in text or text.endswith((".yaml", ".yml", ".json")):
        return Path(text)
    if 0 < len(text) < 100:
        for place in (user_folder(folder), data_folder(folder)):
            if (place / f"{text}.yaml").is_file():
                return place / f"{text}.yaml"
    known = available(folder)
    if text in known:
        return known[text]
    matches = [name for name in known if name.startswith(text)] if text else []
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise BadInput(f"{kind} {text[:80]!r} is ambiguous: {', '.join(sorted(matches)[:20])}")
    from costmodel.errors import unknown

    raise unknown(kind, text, known)


def available(folder: str) -> dict[str, Path]:
    """Name → file of everything in the shipped and the user's folder."""
    found: dict[str, Path] = {}
    for place in (data_folder(folder), user_folder(folder)):
        if place.is_dir():
            for path in sorted(place.glob("*.yaml")):
                found[path.stem] = path
    return found


def check_folder(path: str | Path | None) -> None:
    """Raise BadInput where a file could not be written for want of its folder, before the work for it begins."""
    if path is None:
        return
    if os.path.isdir(path):
        raise BadInput(f"{path}: is a folder, not a file")
    if not os.path.isdir(Path(path).parent):
        raise BadInput(f"{path}: the folder {Path(path).parent} does not exist")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that nobody sees half of it."""
    with written_atomically(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a file that has a temporary name until its end; if that is not reached, nothing is left of it.

    Raises BadInput where the file cannot be written.
    """
    import tempfile

    check_folder(path)
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
            temporary = stream.name
            yield stream
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        _forget(temporary)
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
    except BaseException:
        _forget(temporary)
        raise


def _forget(temporary: str) -> None:
    if temporary:
        Path(temporary).unlink(missing_ok=True)
