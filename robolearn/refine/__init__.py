"""One file per refinement method: its ``Config`` and its ``Refiner``. A new file in this folder is a new method."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from robolearn.core.errors import RefusedError, nearest

_NOT_METHODS = {"base", "cloning", "correction_head", "demonstrations", "recorded"}


def method_names() -> list[str]:
    """Return the names of all methods, sorted; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_METHODS)


def method(name: str) -> ModuleType:
    """Return the module of method ``name``, with its ``Config`` and ``Refiner``.

    Raises:
        RefusedError: there is no such method; the nearest name is given.
    """
    if name not in method_names():
        raise RefusedError(f"Unknown refinement method {name!r}. {nearest(name, method_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def config_class(name: str) -> type:
    """Return the frozen dataclass that configures method ``name``."""
    return method(name).Config
