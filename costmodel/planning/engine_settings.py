"""How a library's engine batches unless told otherwise: facts of `hardware_profiles/engines`, with their sources."""

from typing import Any

from costmodel.calibration_files import library_name
from costmodel.errors import BadInput, unknown
from costmodel.hardware import Hardware
from costmodel.loading import Problems, data_folder, read_mapping
from costmodel.planning.deployment import DEFAULTS, Settings
from costmodel.units import parse_count

KEYS = ("library", "settings", "source")
SETTINGS = tuple(name for name in Settings._fields if name != "longest")
"""Settings that a question or a measured run may state; the longest sequence follows from its lengths."""
WORDS = {"true": True, "yes": True, "false": False, "no": False}


def library_settings(library: str | None, hardware: Hardware | None = None) -> Settings:
    """The settings of a library's engine, vLLM's for one that is not known.

    library None takes the one whose calibration of this device is preferred, as predictions do.
    """
    if hardware is not None:
        library = library_name(hardware, library)
    path = data_folder("hardware_profiles") / "engines" / f"{library}.yaml"
    if not path.is_file():
        return DEFAULTS
    raw = read_mapping(path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, KEYS)
    given = problems.mapping(raw.get("settings"), "settings")
    problems.unknown_keys(given, Settings._fields, "settings")
    problems.raise_if_any()
    return changed(DEFAULTS, given)


def changed(settings: Settings, given: dict[str, Any]) -> Settings:
    """The settings with what is given; None leaves an entry as it is. Raises BadInput for what no engine could have."""
    known = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        default = DEFAULTS._asdict()[name]
        right = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if default is not None and (not right or isinstance(value, bool) != isinstance(default, bool)):
            raise BadInput(f"{name.replace('_', ' ')}: {str(value)[:40]!r} is not a {type(default).__name__}")
    return settings._replace(**known).checked()


def parse_setting(text: str) -> tuple[str, Any]:
    """A setting written NAME=VALUE. Raises BadInput for an unknown name or a value that is none.

    >>> parse_setting("poll_iterations=30"), parse_setting("ahead=no")
    (('poll_iterations', 30), ('ahead', False))
    """
    name, _, value = text.partition("=")
    if name not in SETTINGS:
        raise unknown("setting of an engine", name, SETTINGS)
    return name, setting_value(name, value)


def setting_value(name: str, text: str) -> Any:
    """The value of a setting, of the type that it has."""
    default = DEFAULTS._asdict()[name]
    if isinstance(default, bool):
        if text.lower() not in WORDS:
            raise BadInput(f"{name} {text[:40]!r} is neither true nor false")
        return WORDS[text.lower()]
    if isinstance(default, str):
        return text
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            raise BadInput(f"{name} {text[:40]!r} is not a number") from None
    return 0 if text == "0" else parse_count(text, name, 2**27)
