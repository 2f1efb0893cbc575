"""``robolearn train``: an episode store in, a run folder with a trained policy out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from robolearn.commands.learnables import Learnables, learnables
from robolearn.commands.recipe import Recipe, load_recipe, task_recipes
from robolearn.commands.simulation import make_recipe_env, rollout_config
from robolearn.core.config import to_yaml
from robolearn.core.run import create_run_dir, provenance, write_json
from robolearn.core.seeding import VALIDATION_SEED_BLOCK
from robolearn.evaluate.rollout import evaluate
from robolearn.policies.one_task import one_task
from robolearn.train.device import choose_device
from robolearn.train.interrupts import Interrupted
from robolearn.train.supervised import OnCheckpoint, TrainResult
from robolearn.train.supervised import train as train_policy

RECIPE_FILE = "recipe.yaml"
PROVENANCE_FILE = "provenance.json"


def train(file: Path, overrides: list[str], *, resume: bool) -> None:
    """Train the recipe's policy; with ``resume`` continue the run in its run folder."""
    recipe = load_recipe(file, overrides)
    result = train_recipe(recipe, resume=resume)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes: the first one speaks
    best = f", best {result.best} (score {result.best_score:.3f})" if result.best else ""
    Console().print(f"{result.stopped} after {result.step} updates: {result.checkpoint}{best}", soft_wrap=True)


type Learn = Callable[[Recipe, str], Learnables]
"""From a recipe and a device to what training joins."""


def train_recipe(recipe: Recipe, *, resume: bool = False, learn: Learn | None = None) -> TrainResult:
    """Train a recipe's policy in its run folder; ``learn`` makes what is trained, by default :func:`learnables`.

    Started by ``torchrun`` or ``accelerate launch``, every process trains on its part of each batch and the first one writes.

    Raises:
        RefusedError: no usable store, or the run folder is taken, or there is nothing to resume.
        Interrupted, NonFiniteError: see :func:`robolearn.train.supervised.train`.
    """
    accelerator = _accelerator(recipe.train.device)
    device = str(accelerator.device if accelerator else choose_device(recipe.train.device))
    joined = learn(recipe, device) if learn else learnables(recipe, device=device)
    record = provenance(seed=recipe.train.seed, device=device, dataset=joined.training.provenance())
    run_dir = Path(recipe.run_dir)
    if accelerator is None or accelerator.is_main_process:
        create_run_dir(run_dir, resume=resume)
        if not resume:
            (run_dir / RECIPE_FILE).write_text(to_yaml(recipe), encoding="utf-8")
            write_json(run_dir / PROVENANCE_FILE, record)
    scorer = _scorer(recipe) if recipe.evaluate.checkpoint_episodes else None
    return train_policy(
        joined.policy,
        joined.training,
        joined.validation,
        recipe.train,
        run_dir,
        resume=resume,
        provenance=record,
        on_checkpoint=scorer,
        accelerator=accelerator,
    )


def _accelerator(device: str) -> Any:
    """Return an accelerator if a launcher started several processes, else None; its import is slow."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())


def _scorer(recipe: Recipe) -> OnCheckpoint:
    """Return a function that scores checkpoints by success on validation seeds, which no report uses; by the mean over tasks."""
    envs = {single.env.task: make_recipe_env(single) for single in task_recipes(recipe)}
    seeds = [VALIDATION_SEED_BLOCK + i for i in range(recipe.evaluate.checkpoint_episodes)]

    def score(step: int, folder: Path, policy: Any) -> float:
        rates = []
        for task, env in envs.items():
            result = evaluate(env, one_task(policy, task) if recipe.env.tasks else policy, seeds, rollout_config(recipe))
            if result.interrupted_by is not None:
                raise Interrupted(result.interrupted_by)  # a score of some of the episodes would be taken for one of all
            rates.append(result.success_rate)
        return sum(rates) / len(rates)

    return score


def read_provenance(run_dir: Path) -> Mapping[str, object]:
    """Return the provenance of a run folder, or nothing where there is none."""
    from robolearn.core.run import read_json

    file = run_dir / PROVENANCE_FILE
    return read_json(file, what="provenance record") if file.exists() else {}
