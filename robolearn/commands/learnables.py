"""From a recipe to what training joins: the windows of its demonstrations and a fresh policy, for one task or several."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from robolearn.commands.recipe import Recipe, task_recipes
from robolearn.core.errors import RefusedError
from robolearn.core.multitask import TASK, join_spaces
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.seeding import generator
from robolearn.core.types import ACTION, Spaces
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.hindsight import GOAL, HindsightWindows
from robolearn.data.joined import JoinedDataset, TaskWindows, joined_statistics
from robolearn.data.normalizer import Mode, Normalizer, Statistics
from robolearn.data.split import select_episodes, split
from robolearn.data.store import EpisodeStore
from robolearn.data.weights import EpisodeWeights
from robolearn.policies import make_policy

type AnyWindows = TaskWindows | JoinedDataset


@dataclass(frozen=True)
class Learnables:
    """What training joins: a fresh policy and the windows of one store, or of one store per task."""

    policy: Any
    training: AnyWindows
    validation: AnyWindows | None


def learnables(recipe: Recipe, *, device: str, normalizer: Normalizer | None = None) -> Learnables:
    """Split each task's store by episode, fit the normaliser on the training part and build the policy from the recipe's seed.

    A ``normalizer`` that is given is copied instead.

    Raises:
        RefusedError: a store is missing or of another task, tasks do not fit each other, a stream or goal is not there, or the
            policy would cut demonstrated actions off.
    """
    config = recipe.policy.config
    for field in ("obs_horizon", "pred_horizon", "observation_keys"):
        if not hasattr(config, field):
            raise RefusedError(f"Policy {recipe.policy.name!r} has nothing to train; evaluate it as it is.")
    keys = list(config.observation_keys)
    _require_keys(recipe, keys)
    own = [key for key in keys if key != TASK]
    parts = {single.env.task: _windows(single, own, device) for single in task_recipes(recipe)}
    training = {name: pair[0] for name, pair in parts.items()}
    held_out = {name: pair[1] for name, pair in parts.items() if pair[1] is not None}
    spaces = {name: select_observation(windows.spaces, own) for name, windows in training.items()}
    if TASK not in keys:
        (name,) = training
        fitted = _normalizer(spaces[name], recipe, training[name].statistics(), normalizer)
        return Learnables(_policy(recipe, spaces[name], fitted), training[name], held_out.get(name))
    joined = select_observation(join_spaces(spaces), keys)
    statistics = joined_statistics({name: windows.statistics() for name, windows in training.items()}, joined)
    fitted = _normalizer(joined, recipe, statistics, normalizer)
    source = JoinedDataset(training, joined, fitted, balanced=recipe.data.balanced)
    validation = JoinedDataset(held_out, joined, fitted, balanced=False) if len(held_out) == len(training) else None
    return Learnables(_policy(recipe, joined, fitted), source, validation)


def _require_keys(recipe: Recipe, keys: Sequence[str]) -> None:
    """Refuse a policy that does not read which task or which goal it is given."""
    if recipe.env.tasks and TASK not in keys:
        raise RefusedError(
            f"env.tasks={list(recipe.env.tasks)}: policy.observation_keys must name {TASK!r}, or the policy could not tell its "
            f"tasks apart; it names {list(keys)}."
        )
    if TASK in keys and not recipe.env.tasks:
        raise RefusedError(f"policy.observation_keys names {TASK!r}, but the recipe has no env.tasks.")
    if bool(recipe.data.goals.keys) != (GOAL in keys):
        raise RefusedError(
            f"data.goals.keys={list(recipe.data.goals.keys)} and policy.observation_keys={list(keys)} do not fit: goals are made "
            f"exactly if the policy reads {GOAL!r}."
        )
    if recipe.data.weights and recipe.env.tasks:
        raise RefusedError("data.weights belongs to one store; with several tasks, data.balanced decides what is drawn.")


def _windows(recipe: Recipe, keys: list[str], device: str) -> tuple[TaskWindows, TaskWindows | None]:
    """Return the training and the held-out windows of one task."""
    data, config = recipe.data, recipe.policy.config
    store = _open_store(recipe)
    chosen = select_episodes(store, successes_only=data.successes_only, limit=data.episodes or None)
    offered = len(select_episodes(store, successes_only=data.successes_only))
    if len(chosen) < offered and os.environ.get("RANK", "0") == "0":
        left = f"{store.path}: the first {len(chosen)} of {offered} episodes are learned from (data.episodes={data.episodes})."
        Console().print(left, highlight=False, soft_wrap=True)
    training_rows, held_out = split(len(chosen), data.validation_fraction, recipe.train.seed)
    shape = WindowConfig(config.obs_horizon, config.pred_horizon, data.action)
    weights = EpisodeWeights.read(Path(data.weights), store) if data.weights else None
    goals = data.goals
    read = list(dict.fromkeys([*(key for key in keys if key != GOAL), *goals.keys]))

    def windows(rows: list[int], weights: EpisodeWeights | None = None) -> TaskWindows:
        episodes = [chosen[i] for i in rows]
        plain = WindowDataset(store, shape, episodes=episodes, keys=read, device=device, weights=weights)
        if not goals.keys:
            return plain
        return HindsightWindows(plain, goals.keys, per_window=goals.per_window, furthest=goals.furthest, seed=recipe.train.seed)

    return windows(training_rows, weights), windows(held_out) if held_out else None


def _normalizer(spaces: Spaces, recipe: Recipe, statistics: dict, given: Normalizer | None) -> Normalizer:
    """Return a copy of ``given``, or a normaliser fitted to ``statistics``; which task it is stays 0 or 1."""
    if given is not None:
        return copy.deepcopy(given)
    streams, chosen = flat_streams(spaces), recipe.data.normalization
    modes: dict[str, Mode] = {key: "identity" if key == TASK else chosen for key in streams}
    fitted = Normalizer(streams, modes).fit(statistics)
    _require_reach(recipe, fitted, statistics[ACTION])
    return fitted


def _require_reach(recipe: Recipe, fitted: Normalizer, demonstrated: Statistics) -> None:
    """Refuse a policy whose ``clip`` cuts demonstrated actions off; scaled by their extremes, they end at its default of 1."""
    nested = hasattr(recipe.policy.config, "edm")
    clip = getattr(recipe.policy.config.edm if nested else recipe.policy.config, "clip", 0.0)
    reach = float(fitted.apply(ACTION, torch.tensor([demonstrated.minimum, demonstrated.maximum])).abs().max())
    if fitted.modes[ACTION] != "min_max" and clip and reach > clip:
        name = "policy.edm.clip" if nested else "policy.clip"
        raise RefusedError(
            f"data.normalization={fitted.modes[ACTION]}: demonstrated actions reach {reach:.3g} in these units, {name}={clip:g} "
            f"cuts them off. Set {name}=0, or a bound beyond them."
        )


def _policy(recipe: Recipe, spaces: Spaces, normalizer: Normalizer) -> Any:
    # torch draws initial weights from its global generator; fork it so that nothing else depends on this.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(recipe.train.seed, "weights").integers(2**63)))
        return make_policy(recipe.policy.name, recipe.policy.config, spaces, copy.deepcopy(normalizer))


def _open_store(recipe: Recipe) -> EpisodeStore:
    path = Path(recipe.data.path)
    if not (path / "store.json").exists():
        raise RefusedError(f"No episode store at {path}; collect one first: robolearn collect RECIPE (or set data.path).")
    return EpisodeStore.open(path, task=recipe.env.task, fidelity=recipe.env.fidelity)
