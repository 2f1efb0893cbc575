"""``robolearn train``: an episode store in, a run folder with a trained policy out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from robolearn.commands.recipe import Recipe, load_recipe
from robolearn.commands.simulation import make_recipe_env, rollout_config
from robolearn.core.config import to_yaml
from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.run import create_run_dir, provenance, write_json
from robolearn.core.seeding import VALIDATION_SEED_BLOCK, generator
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.normalizer import Normalizer
from robolearn.data.split import select_episodes, split
from robolearn.data.store import EpisodeStore
from robolearn.data.weights import EpisodeWeights
from robolearn.evaluate.rollout import evaluate
from robolearn.policies import make_policy
from robolearn.train.device import choose_device
from robolearn.train.interrupts import Interrupted
from robolearn.train.supervised import OnCheckpoint, TrainResult
from robolearn.train.supervised import train as train_policy

RECIPE_FILE = "recipe.yaml"
PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True)
class Learnables:
    """What training joins: a fresh policy and the windows of one store."""

    policy: Any
    training: WindowDataset
    validation: WindowDataset | None


def train(file: Path, overrides: list[str], *, resume: bool) -> None:
    """Train the recipe's policy; with ``resume`` continue the run in its run folder."""
    recipe = load_recipe(file, overrides)
    result = train_recipe(recipe, resume=resume)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes: the first one speaks
    best = f", best {result.best} (score {result.best_score:.3f})" if result.best else ""
    Console().print(f"{result.stopped} after {result.step} updates: {result.checkpoint}{best}", soft_wrap=True)


type Learn = Callable[[Recipe, EpisodeStore, str], Learnables]
"""From a recipe, its open store and a device to what training joins."""


def train_recipe(recipe: Recipe, *, resume: bool = False, learn: Learn | None = None) -> TrainResult:
    """Train a recipe's policy in its run folder; ``learn`` makes what is trained, by default :func:`learnables`.

    Started by ``torchrun`` or ``accelerate launch``, every process trains on its part of each batch and the first one writes.

    Raises:
        RefusedError: no usable store, or the run folder is taken, or there is nothing to resume.
        Interrupted, NonFiniteError: see :func:`robolearn.train.supervised.train`.
    """
    accelerator = _accelerator(recipe.train.device)
    device = str(accelerator.device if accelerator else choose_device(recipe.train.device))
    store = _open_store(recipe)
    joined = learn(recipe, store, device) if learn else learnables(recipe, store, device=device)
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


def learnables(recipe: Recipe, store: EpisodeStore, *, device: str, normalizer: Normalizer | None = None) -> Learnables:
    """Split the store by episode, fit the normaliser on the training part and build the policy from the recipe's seed.

    A ``normalizer`` that is given is copied instead.
    """
    data, config = recipe.data, recipe.policy.config
    for field in ("obs_horizon", "pred_horizon", "observation_keys"):
        if not hasattr(config, field):
            raise RefusedError(f"Policy {recipe.policy.name!r} has nothing to train; evaluate it as it is.")
    chosen = select_episodes(store, successes_only=data.successes_only, limit=data.episodes)
    training_rows, validation_rows = split(len(chosen), data.validation_fraction, recipe.train.seed)
    windows = WindowConfig(config.obs_horizon, config.pred_horizon, data.action)
    keys = list(config.observation_keys)
    weights = EpisodeWeights.read(Path(data.weights), store) if data.weights else None

    def dataset(rows: list[int], weights: EpisodeWeights | None = None) -> WindowDataset:
        return WindowDataset(store, windows, episodes=[chosen[i] for i in rows], keys=keys, device=device, weights=weights)

    training = dataset(training_rows, weights)
    spaces = select_observation(store.header.spaces, keys)
    if normalizer is None:
        normalizer = Normalizer(flat_streams(spaces), data.normalization).fit(training.statistics())
    normalizer = copy.deepcopy(normalizer)
    # torch draws initial weights from its global generator; fork it so that nothing else depends on this.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(recipe.train.seed, "weights").integers(2**63)))
        policy = make_policy(recipe.policy.name, config, spaces, normalizer)
    return Learnables(policy, training, dataset(validation_rows) if validation_rows else None)


def _open_store(recipe: Recipe) -> EpisodeStore:
    path = Path(recipe.data.path)
    if not (path / "store.json").exists():
        raise RefusedError(f"No episode store at {path}; collect one first: robolearn collect RECIPE (or set data.path).")
    return EpisodeStore.open(path, task=recipe.env.task, fidelity=recipe.env.fidelity)


def _scorer(recipe: Recipe) -> OnCheckpoint:
    """Return a function that scores checkpoints by success on validation seeds, which no report uses."""
    env = make_recipe_env(recipe)
    seeds = [VALIDATION_SEED_BLOCK + i for i in range(recipe.evaluate.checkpoint_episodes)]

    def score(step: int, folder: Path, policy: Any) -> float:
        result = evaluate(env, policy, seeds, rollout_config(recipe))
        if result.interrupted_by is not None:
            raise Interrupted(result.interrupted_by)  # a score of some of the episodes would be taken for one of all
        return result.success_rate

    return score


def read_provenance(run_dir: Path) -> Mapping[str, object]:
    """Return the provenance of a run folder, or nothing where there is none."""
    from robolearn.core.run import read_json

    file = run_dir / PROVENANCE_FILE
    return read_json(file, what="provenance record") if file.exists() else {}
