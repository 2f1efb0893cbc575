"""``robolearn export``: a trained diffusion policy as a folder that stock LeRobot loads."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from robolearn.commands.policy_reference import run_folder
from robolearn.commands.recipe import load_recipe
from robolearn.commands.train import RECIPE_FILE
from robolearn.deploy.lerobot_export import export_lerobot
from robolearn.policies.loading import load_policy
from robolearn.train.checkpoint import find_checkpoint


def export(reference: str, folder: Path, *, exec_horizon: int | None) -> None:
    """Write the averaged policy of a run into ``folder``.

    Args:
        reference: run or checkpoint folder.
        folder: missing or empty.
        exec_horizon: actions executed per decision; the run's own by default.

    Raises:
        RefusedError: see :func:`robolearn.deploy.lerobot_export.export_lerobot`.
    """
    checkpoint, run_dir = find_checkpoint(Path(reference)), run_folder(Path(reference))
    if exec_horizon is None:
        exec_horizon = load_recipe(run_dir / RECIPE_FILE if run_dir else None, []).evaluate.exec_horizon
    export_lerobot(load_policy(checkpoint), folder, exec_horizon=exec_horizon)
    Console().print(f"LeRobot policy: {folder}", soft_wrap=True)
