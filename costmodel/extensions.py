"""Mechanisms from outside the package: a file given by path, or an entry point of an installed package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

from costmodel import mixers
from costmodel.errors import BadInput
from costmodel.mixers import Mixer, modules_of

GROUP = "costmodel.mixers"
REQUIRED = (
    "NAME",
    "ALIASES",
    "TITLE",
    "SUMMARY",
    "SOURCES",
    "ORDER",
    "Dims",
    "EXAMPLES",
    "projections",
    "extra_parameters",
    "kernels",
    "cache",
    "check",
)


def checked(module: ModuleType, place: str) -> Mixer:
    """The module as a mechanism. Raises BadInput with every name that it lacks."""
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    if missing:
        raise BadInput(f"{place}: not a mechanism; it lacks {', '.join(missing)}")
    return cast(Mixer, module)


def load_mechanism(path: Path) -> Mixer:
    """Import a mechanism's file as `costmodel.mixers.<file name>`, so that architectures can name it as `kind`.

    The file is run as Python code. Raises BadInput when it cannot be imported or is not a mechanism.
    """
    if path.suffix != ".py" or not path.is_file():
        raise BadInput(f"{path}: not a Python file")
    if not path.stem.isidentifier():
        raise BadInput(f"{path}: the file name is the mechanism's name and must be an identifier, such as my_mixer.py")
    name = f"{GROUP}.{path.stem}"
    loaded = sys.modules.get(name)
    if path.stem in modules_of(mixers.__path__) or (loaded and getattr(loaded, "__file__", None) != str(path)):
        raise BadInput(f"{path}: a mechanism called {path.stem!r} exists already")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while the file runs.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return checked(module, str(path))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, BadInput) or not isinstance(error, Exception):
            raise
        raise BadInput(f"{path}: cannot be imported ({type(error).__name__}: {error})") from None


def installed_names() -> list[str]:
    """Names of the mechanisms that installed packages offer."""
    from importlib.metadata import entry_points

    return sorted(point.name for point in entry_points(group=GROUP))


def installed_mechanism(kind: str) -> Mixer | None:
    """The mechanism that an installed package offers under this name, if one does."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=kind):
        return checked(point.load(), f"entry point {kind}")
    return None
