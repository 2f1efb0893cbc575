"""Formats of other programs, one module each; episodes go both ways through :mod:`robolearn.data.formats.exchange`."""

from __future__ import annotations

import importlib
import pkgutil

from robolearn.data.formats.exchange import Format, as_format


def formats() -> dict[str, Format]:
    """Return the formats of this folder by name: every module that defines ``NAME``."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.NAME: as_format(m) for m in modules if hasattr(m, "NAME")}
