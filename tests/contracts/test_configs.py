"""Every recipe in ``configs/`` resolves against its schema, survives a round trip through YAML, and runs two updates.

Recipes of deployments (``*_sim.yaml``) are run by tests/ros; here their launch files must take what they give.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from robolearn.commands.collect import collect_demonstrations
from robolearn.commands.deploy import BRINGUP, WORKSPACE, DeployRecipe, load_deployment
from robolearn.commands.recipe import Recipe, load_recipe, task_recipes
from robolearn.commands.refine import RefineRecipe, load_refine_recipe, refine_recipe
from robolearn.commands.table import TableRecipe, load_table
from robolearn.commands.train import train_recipe
from robolearn.core.config import load, to_yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs"
DEPLOYMENTS = sorted(FOLDER.glob("*_sim.yaml"))
REFINEMENTS = sorted(file for file in FOLDER.rglob("*.yaml") if "method" in OmegaConf.load(file))
TABLES = sorted(FOLDER.rglob("*_table.yaml"))
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - set(DEPLOYMENTS) - set(REFINEMENTS) - set(TABLES))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_recipe_survives_a_round_trip(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe))
    assert load(Recipe, file=copy) == recipe


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_recipe_runs_two_updates(file: Path, tmp_path: Path) -> None:
    tiny = ["data.episodes=2", "env.num_envs=2", "train.steps=2", "train.batch_size=4", "train.warmup_steps=1"]
    places = [f"data.path={tmp_path}/demos_{{task}}", f"run_dir={tmp_path}/run"]
    recipe = load_recipe(file, [*tiny, *places])
    for single in task_recipes(recipe):
        collect_demonstrations(single, Console(quiet=True)).close()
    assert train_recipe(recipe).step == 2


@pytest.mark.parametrize("file", REFINEMENTS, ids=lambda f: f.stem)
def test_refinement_survives_a_round_trip_and_learns_a_few_steps(file: Path, tmp_path: Path) -> None:
    settings = load_refine_recipe(file, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings))
    assert load(RefineRecipe, file=copy) == settings
    train_file = FOLDER / f"{settings.env.task}_diffusion.yaml"
    tiny = ["data.episodes=2", "env.num_envs=2", "train.steps=2", "train.batch_size=4", "train.warmup_steps=1"]
    base = load_recipe(train_file, [*tiny, f"data.path={tmp_path}/demos", f"run_dir={tmp_path}/base"])
    collect_demonstrations(base, Console(quiet=True)).close()
    train_recipe(base)
    few = ["env.num_envs=2", "online.env_steps=40", "online.learning_starts=16", "online.warmup_steps=20"]
    few += ["online.utd_ratio=0.2", "online.batch_size=8", "validation_episodes=0"]
    places = [f"base={tmp_path}/base", f"run_dir={tmp_path}/run"]
    if settings.demos.path:
        places.append(f"demos.path={tmp_path}/demos")
    assert refine_recipe(load_refine_recipe(file, [*few, *places])).env_steps == 40


@pytest.mark.parametrize("file", TABLES, ids=lambda f: f.stem)
def test_table_survives_a_round_trip_and_every_recipe_it_names_resolves(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parent)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(load(TableRecipe, file=file)))
    assert load(TableRecipe, file=copy) == load(TableRecipe, file=file)
    assert load_table(file, []).cells


@pytest.mark.parametrize("file", DEPLOYMENTS, ids=lambda f: f.stem)
def test_deployment_survives_a_round_trip_and_names_what_exists(file: Path, tmp_path: Path) -> None:
    settings = load_deployment(file, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings))
    assert load(DeployRecipe, file=copy) == settings
    assert (WORKSPACE / BRINGUP / "launch" / settings.launch).is_file()
    assert (WORKSPACE / BRINGUP / "config" / f"{settings.robot}.yaml").is_file()
    assert (FOLDER.parent / settings.train).is_file()
