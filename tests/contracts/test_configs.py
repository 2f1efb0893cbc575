"""Every recipe in ``configs/`` resolves against its schema, survives a round trip through YAML, and runs two updates.

Recipes of deployments (``*_sim.yaml``) are run by tests/ros; here their launch files must take what they give.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from robolearn.commands.collect import collect_demonstrations
from robolearn.commands.deploy import BRINGUP, WORKSPACE, DeployRecipe, load_deployment
from robolearn.commands.recipe import Recipe, load_recipe
from robolearn.commands.train import train_recipe
from robolearn.core.config import load, to_yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs"
DEPLOYMENTS = sorted(FOLDER.glob("*_sim.yaml"))
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - set(DEPLOYMENTS))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_recipe_survives_a_round_trip(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe))
    assert load(Recipe, file=copy) == recipe


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_recipe_runs_two_updates(file: Path, tmp_path: Path) -> None:
    tiny = ["data.episodes=2", "env.num_envs=2", "train.steps=2", "train.batch_size=4", "train.warmup_steps=1"]
    places = [f"data.path={tmp_path}/demos", f"run_dir={tmp_path}/run"]
    recipe = load_recipe(file, [*tiny, *places])
    collect_demonstrations(recipe, Console(quiet=True)).close()
    assert train_recipe(recipe).step == 2


@pytest.mark.parametrize("file", DEPLOYMENTS, ids=lambda f: f.stem)
def test_deployment_survives_a_round_trip_and_names_what_exists(file: Path, tmp_path: Path) -> None:
    settings = load_deployment(file, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings))
    assert load(DeployRecipe, file=copy) == settings
    assert (WORKSPACE / BRINGUP / "launch" / settings.launch).is_file()
    assert (WORKSPACE / BRINGUP / "config" / f"{settings.robot}.yaml").is_file()
    assert (FOLDER.parent / settings.train).is_file()
