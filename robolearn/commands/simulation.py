"""From a recipe to its environments and to the settings of its rollouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robolearn.commands.recipe import Recipe
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.data.hindsight import goal_of, with_goal
from robolearn.data.split import select_episodes
from robolearn.data.store import EpisodeStore
from robolearn.deploy.executor import ExecutorConfig
from robolearn.evaluate.goal_env import GoalEnv
from robolearn.evaluate.result import RolloutConfig
from sim_envs.task import EnvOptions, make_env


def make_task_env(recipe: Recipe, *, max_episode_steps: int | None = None) -> Env:
    """Build the recipe's batch of environments as they are, without goals; ``max_episode_steps`` replaces the task's.

    Raises:
        RefusedError: the recipe names several tasks, of which each needs environments of its own.
    """
    env = recipe.env
    if env.tasks:
        raise RefusedError(
            f"Environments are of one task; the recipe names {list(env.tasks)}. Choose with env.tasks=[] env.task=..."
        )
    options = EnvOptions(env.num_envs, env.fidelity, env.cameras, env.image_size, env.num_threads, max_episode_steps)
    return make_env(env.task, options)


def make_recipe_env(recipe: Recipe, *, max_episode_steps: int | None = None) -> Env:
    """Build the recipe's batch of environments; where policies are given goals, with goals from its demonstrations.

    Raises:
        RefusedError: see :func:`make_task_env`; or goals are wanted and there are no demonstrations.
    """
    env, goals = make_task_env(recipe, max_episode_steps=max_episode_steps), recipe.data.goals
    if not goals.keys:
        return env
    with EpisodeStore.open(Path(recipe.data.path), task=recipe.env.task) as store:
        with_goal(store.header.spaces, goals.keys)
        chosen = select_episodes(store, successes_only=True, limit=recipe.data.episodes)
        ends = [store.read(i, list(goals.keys)).data for i in chosen]
    return GoalEnv(env, goals.keys, np.stack([goal_of({k: v[-1] for k, v in end.items()}, goals.keys) for end in ends]))


def rollout_config(recipe: Recipe) -> RolloutConfig:
    """Return how the recipe's episodes are run."""
    judged = recipe.evaluate
    expected = judged.delay_steps + judged.delay_jitter if judged.continuation != "switch" else 0
    executor = ExecutorConfig(
        judged.exec_horizon, judged.temporal_overlap, continuation=judged.continuation, delay_steps=expected
    )
    return RolloutConfig(executor, judged.delay_steps, judged.delay_jitter, policy_seed=judged.policy_seed)
