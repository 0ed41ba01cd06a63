"""One file per kernel family: its shape, its work, and the time form with its parameters."""

import functools
import importlib
import pkgutil

from costmodel.kernels.base import Form


@functools.cache
def forms() -> dict[str, Form]:
    """Every kernel family of this folder by its name; files without a form of their own are not families."""
    found: dict[str, Form] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for form in getattr(module, "FORMS", (module.FORM,) if hasattr(module, "FORM") else ()):
            found[form.family] = form
    return found
