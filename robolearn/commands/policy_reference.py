"""What a person writes for a policy on the command line: a baseline's name, a run folder or a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from robolearn.commands.recipe import Recipe, load_recipe
from robolearn.commands.train import RECIPE_FILE, read_provenance
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env, Policy
from robolearn.policies import config_class, make_policy
from robolearn.policies.loading import load_policy
from robolearn.train.checkpoint import find_checkpoint
from robolearn.train.device import choose_device

BASELINES = ("hold", "random")
"""Policies without weights; they are named instead of pointed at."""


def run_folder(path: Path) -> Path | None:
    """Return the run folder that a checkpoint belongs to, or None for a checkpoint on its own.

    Raises:
        RefusedError: there is no checkpoint at ``path``.
    """
    checkpoint = find_checkpoint(path)
    return next((folder for folder in (path, *checkpoint.parents[:2]) if (folder / RECIPE_FILE).is_file()), None)


def follow_up_recipe(reference: Path, overrides: list[str], *, suffix: str, fixed: str) -> Recipe:
    """Return the recipe of a run that goes on from another's policy and demonstrations, in ``<run folder><suffix>``.

    Args:
        reference: run folder, or checkpoint folder inside one.
        overrides: changes to that run's recipe, as a.b=c.
        suffix: of the run folder, unless ``run_dir`` is overridden.
        fixed: why the policy's settings stay as they are.

    Raises:
        RefusedError: there is no run, or an override is of the policy's settings.
    """
    run_dir = run_folder(reference)
    if run_dir is None:
        raise RefusedError(f"{reference} belongs to no run folder: without its recipe the demonstrations are not known.")
    if any(text.lstrip("-").startswith("policy") for text in overrides):
        raise RefusedError(f"{fixed}: the policy's settings cannot be overridden.")
    return load_recipe(run_dir / RECIPE_FILE, [f"run_dir={run_dir}{suffix}", *overrides])


def open_policy(reference: str, env: Env, recipe: Recipe) -> tuple[Policy, dict[str, object]]:
    """Return the policy that ``reference`` names or points at, and where it came from.

    Raises:
        RefusedError: no such policy, or it does not fit the environment.
    """
    if reference in BASELINES:
        return make_policy(reference, config_class(reference)(), env.spec.spaces, None), {"policy": reference}
    checkpoint = find_checkpoint(Path(reference))
    device = str(choose_device(recipe.train.device))
    run_dir = run_folder(Path(reference))
    origin: dict[str, object] = {"checkpoint": str(checkpoint)}
    if run_dir:
        origin["training"] = dict(read_provenance(run_dir))
    return load_policy(checkpoint, device, spaces=env.spec.spaces, task=env.spec.task), origin


def default_name(reference: str) -> str:
    """Return what tables call a policy: a baseline's name or the name of its run folder."""
    if reference in BASELINES:
        return reference
    return (run_folder(Path(reference)) or Path(reference)).resolve().name
