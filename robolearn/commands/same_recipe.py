"""Whether a run folder was made with the settings of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robolearn.core.config import dotted
from robolearn.core.errors import RefusedError
from robolearn.train.config import FREE_ON_RESUME

FREE = frozenset(
    {"run_dir", "base", "device", "env.num_threads", "evaluate.episodes", "online.threads", "online.tensorboard"}
    | {"online.keep_checkpoints", *(f"train.{name}" for name in FREE_ON_RESUME)}
)
"""Settings that do not decide what is learned; the base is held to its hash instead of its path."""


def require_same_recipe(folder: Path, made: Any, wanted: Any, *, free: frozenset[str] = FREE) -> None:
    """Refuse a run folder whose recipe, ``made``, differs from the ``wanted`` one in more than the settings ``free``.

    Raises:
        RefusedError: names the settings that differ, with both values.
    """
    there, here = dotted(made), dotted(wanted)
    names = [name for name in sorted(there.keys() | here.keys()) if name not in free and there.get(name) != here.get(name)]
    if names:
        differ = "; ".join(f"{name} is {there.get(name)} there, {here.get(name)} here" for name in names)
        raise RefusedError(f"{folder} was made with other settings: {differ}. Move it away, or change the recipe back.")
