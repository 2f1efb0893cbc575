"""One file per policy: its ``Config`` and its ``Policy``. A new file in this folder is a new policy; nothing is registered."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.protocols import Policy
from robolearn.core.types import Spaces

_NOT_POLICIES = {"edm_transformer", "generative", "loading", "one_task", "refined"}


def policy_names() -> list[str]:
    """Return the names of all policies, sorted; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_POLICIES)


def config_class(name: str) -> type:
    """Return the frozen dataclass that configures policy ``name``.

    Raises:
        RefusedError: there is no such policy; the nearest name is given.
    """
    return _module(name).Config


def make_policy(name: str, config: object, spaces: Spaces, normalizer: Any) -> Policy:
    """Return policy ``name`` with fresh weights.

    Args:
        name: one of :func:`policy_names`.
        config: an instance of its ``Config``.
        spaces: what the data or the environment offers; the policy keeps the observation keys that it reads.
        normalizer: :class:`robolearn.data.normalizer.Normalizer` of exactly the flat streams that the policy reads and
            ``action``; None for a policy without weights.

    Raises:
        RefusedError: unknown name, a configuration of another policy, or an observation key that is not offered.
    """
    module = _module(name)
    if not isinstance(config, module.Config):
        came = f"{type(config).__module__}.{type(config).__name__}"
        raise RefusedError(f"Policy {name!r} takes a {module.__name__}.Config, got a {came}.")
    return module.Policy(config, spaces, normalizer)


def foreign_card(name: str, folder: Path, spaces: Spaces | None) -> dict[str, object]:
    """Return the card of a policy that another tool saved in ``folder``, by the policy ``name`` that reads its layout.

    Raises:
        RefusedError: no policy here reads it, or its files are refused.
    """
    if not hasattr(module := _module(name), "foreign_card"):
        raise RefusedError(f"Policy {name!r} reads no other tool's folders, such as {folder}.")
    return module.foreign_card(folder, spaces)


def _module(name: str) -> ModuleType:
    if name not in policy_names():
        raise RefusedError(f"Unknown policy {name!r}. {nearest(name, policy_names())}")
    return importlib.import_module(f"{__name__}.{name}")
